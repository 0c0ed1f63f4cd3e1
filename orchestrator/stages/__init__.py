"""Stage kinds: one folder a kind, with `config.py` (no torch, no Ray) and `run.py` (where the work and Ray are met).

`KINDS` is the one lazy table of kinds; it is handed to `recipe` and `plan`, which know no stage. To add a kind: a
folder and a line here.
"""

from orchestrator.recipe.schema import Table

KINDS = Table(
    "stage kind",
    {
        "dataset": "orchestrator.stages.dataset.config:DatasetStage",
        "curate": "orchestrator.stages.curate.config:CurateStage",
        "materialize": "orchestrator.stages.materialize.config:MaterializeStage",
        "pretrain": "orchestrator.stages.train.config:Pretrain",
        "distill": "orchestrator.stages.train.config:Distill",
        "finetune": "orchestrator.stages.train.config:Finetune",
        "embed": "orchestrator.stages.embed.config:EmbedStage",
        "evaluate": "orchestrator.stages.evaluate.config:EvaluateStage",
        "export": "orchestrator.stages.export.config:ExportStage",
        "benchmark": "orchestrator.stages.benchmark.config:BenchmarkStage",
    },
)
