"""MLflow: the one writer of metrics, runs, models and lineage, through a spool that never stops training."""
