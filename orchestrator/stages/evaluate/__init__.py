"""`evaluate`: the figures of some models on one data set, with intervals, comparisons and a picture."""
