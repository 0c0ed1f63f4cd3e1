"""Stage kind `materialize`: a selection becomes shards of its own, to be read from end to end."""
