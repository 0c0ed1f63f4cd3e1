"""Stage kind `curate`: operators choose among a Dataset's samples, and say why the others are left out."""
