"""Curation operators: one file an operator. To add one: a file (configuration and function) and a line here."""

from orchestrator.recipe.schema import Table

OPERATORS = Table(
    "operator",
    {
        "cluster": "orchestrator.curation.cluster:Cluster",
        "dedup": "orchestrator.curation.dedup:Dedup",
        "generate_captions": "orchestrator.curation.generate_captions:GenerateCaptions",
        "min_size": "orchestrator.curation.min_size:MinSize",
        "select_per_cluster": "orchestrator.curation.select_per_cluster:SelectPerCluster",
    },
)
