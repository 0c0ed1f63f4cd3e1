"""The sample set: see `NOTICE` and `set.json`; `orch data build emoji` makes it again."""
