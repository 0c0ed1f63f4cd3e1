"""Index, shards, samplers, decoding, transforms, tokenising, loaders. Plain PyTorch and pyarrow: no Ray."""

INDEX_VERSION = 3
"""Raised when the same shards give another index: other usable samples, uids, captions or labels."""
TRANSFORMS_VERSION = 2
"""Raised when the same settings give other pixels or tokens. 2: JPEG in training (data/jpeg.py)."""
READ_RULE_VERSION = 1
"""Version of the rule by which `read: auto` chooses between block and exact shuffling."""
