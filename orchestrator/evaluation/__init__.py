"""Evaluation tasks: one file a task family. To add one: a file and a line here."""

from orchestrator.recipe.schema import Table

TASKS = Table(
    "task",
    {
        "zeroshot": "orchestrator.evaluation.config:ZeroShot",
        "retrieval": "orchestrator.evaluation.config:Retrieval",
    },
)
