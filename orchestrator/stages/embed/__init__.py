"""`embed`: a frozen model's features of a data set's views, computed once and read by any number of stages."""
