"""Curation operators: one file an operator. To add one: a file (configuration and function) and a line here."""

from orchestrator.recipe.schema import Table

OPERATORS = Table(
    "operator",
    {
        "dedup": "orchestrator.curation.dedup:Dedup",
        "min_size": "orchestrator.curation.min_size:MinSize",
    },
)
