"""The `orch` commands: parse, call, print. No logic."""
