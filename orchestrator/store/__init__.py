"""Artifacts, attempts, leases, the places of checkpoints and events, runs."""
