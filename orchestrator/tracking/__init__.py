"""MLflow: the one writer of metrics, runs, models and lineage.

What happened is written down as operations in a spool on the submitting machine (spool.py), by an observer of the
engine (tracker.py) that never imports MLflow, never waits and never fails a stage. A process of its own
(deliver.py) carries the operations to the MLflow server (operations.py), in batches, once each, now or when the
server is back.
"""
