"""Stage kind `dataset`: outside data becomes a Dataset, with the split of the evaluation protocol as a column."""
