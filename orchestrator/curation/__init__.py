"""Curation operators: one file an operator. To add one: a file (configuration and function) and a line here."""

from orchestrator.recipe.schema import Table

OPERATORS = Table(
    "operator",
    {
        "clip_score": "orchestrator.curation.clip_score:ClipScore",
        "cluster": "orchestrator.curation.cluster:Cluster",
        "dedup": "orchestrator.curation.dedup:Dedup",
        "generate_captions": "orchestrator.curation.generate_captions:GenerateCaptions",
        "keep_top": "orchestrator.curation.keep_top:KeepTop",
        "match_score": "orchestrator.curation.match_score:MatchScore",
        "min_size": "orchestrator.curation.min_size:MinSize",
        "select_per_cluster": "orchestrator.curation.select_per_cluster:SelectPerCluster",
        "threshold": "orchestrator.curation.threshold:Threshold",
    },
)
