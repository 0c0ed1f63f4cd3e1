"""Stage kind `export`: a Dataset in the formats that other tools read."""
