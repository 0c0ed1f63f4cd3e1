"""Curation operators: one file an operator. To add one: a file (configuration and function) and a line here."""

from orchestrator.recipe.schema import Table

OPERATORS = Table(
    "operator",
    {
        "aspect_ratio": "orchestrator.curation.aspect_ratio:AspectRatio",
        "balance": "orchestrator.curation.balance:Balance",
        "boilerplate": "orchestrator.curation.boilerplate:Boilerplate",
        "choose_caption": "orchestrator.curation.choose_caption:ChooseCaption",
        "clip_score": "orchestrator.curation.clip_score:ClipScore",
        "cluster": "orchestrator.curation.cluster:Cluster",
        "dedup": "orchestrator.curation.dedup:Dedup",
        "generate_captions": "orchestrator.curation.generate_captions:GenerateCaptions",
        "join": "orchestrator.curation.join:Join",
        "join_captions": "orchestrator.curation.join_captions:JoinCaptions",
        "keep_top": "orchestrator.curation.keep_top:KeepTop",
        "language": "orchestrator.curation.language:Language",
        "match_score": "orchestrator.curation.match_score:MatchScore",
        "max_pixels": "orchestrator.curation.max_pixels:MaxPixels",
        "members": "orchestrator.curation.members:Members",
        "min_size": "orchestrator.curation.min_size:MinSize",
        "near_duplicates": "orchestrator.curation.near_duplicates:NearDuplicates",
        "rewrite_captions": "orchestrator.curation.rewrite_captions:RewriteCaptions",
        "sample": "orchestrator.curation.sample:Sample",
        "sample_by": "orchestrator.curation.sample:SampleBy",
        "select_per_cluster": "orchestrator.curation.select_per_cluster:SelectPerCluster",
        "semdedup": "orchestrator.curation.semdedup:SemDeDup",
        "tag_concepts": "orchestrator.curation.tag_concepts:TagConcepts",
        "text_length": "orchestrator.curation.text_length:TextLength",
        "threshold": "orchestrator.curation.threshold:Threshold",
        "uid_list": "orchestrator.curation.uid_list:UidList",
    },
)
