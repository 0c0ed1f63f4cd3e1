"""Curation operators: one file an operator. To add one: a file (configuration and function) and a line here."""

from orchestrator.recipe.schema import Table

OPERATORS = Table(
    "operator",
    {
        "aspect_ratio": "orchestrator.curation.aspect_ratio:AspectRatio",
        "boilerplate": "orchestrator.curation.boilerplate:Boilerplate",
        "balance": "orchestrator.curation.balance:Balance",
        "clip_score": "orchestrator.curation.clip_score:ClipScore",
        "cluster": "orchestrator.curation.cluster:Cluster",
        "dedup": "orchestrator.curation.dedup:Dedup",
        "generate_captions": "orchestrator.curation.generate_captions:GenerateCaptions",
        "join": "orchestrator.curation.join:Join",
        "keep_top": "orchestrator.curation.keep_top:KeepTop",
        "language": "orchestrator.curation.language:Language",
        "match_score": "orchestrator.curation.match_score:MatchScore",
        "max_pixels": "orchestrator.curation.max_pixels:MaxPixels",
        "members": "orchestrator.curation.members:Members",
        "min_size": "orchestrator.curation.min_size:MinSize",
        "near_duplicates": "orchestrator.curation.near_duplicates:NearDuplicates",
        "sample": "orchestrator.curation.sample:Sample",
        "sample_by": "orchestrator.curation.sample:SampleBy",
        "select_per_cluster": "orchestrator.curation.select_per_cluster:SelectPerCluster",
        "semdedup": "orchestrator.curation.semdedup:SemDeDup",
        "text_length": "orchestrator.curation.text_length:TextLength",
        "tag_concepts": "orchestrator.curation.tag_concepts:TagConcepts",
        "threshold": "orchestrator.curation.threshold:Threshold",
        "uid_list": "orchestrator.curation.uid_list:UidList",
    },
)
