"""Index, shards, samplers, decoding, transforms, tokenising, loaders. Plain PyTorch and pyarrow: no Ray."""

INDEX_VERSION = 3
"""Raised when the same shards give another index: other usable samples, uids, captions or labels."""
TRANSFORMS_VERSION = 2
"""Raised when the same settings give other pixels or tokens. 2: JPEG in training (data/jpeg.py)."""
READ_RULE_VERSION = 1
"""Raised when `read: auto` chooses otherwise (data/read.py), or an order of samples changes."""
