"""Towers and surgery: the open_clip bridge, weight inheritance, and the `Model` interface that everything else talks
to.
"""

SURGERY_VERSION = 1
"""Raised when weight inheritance gives other weights for the same source and shapes."""
