"""Training methods: one folder a method. To add one: a folder (config.py, method.py, loss.py, README.md), a line here,
a small recipe and a test file. `config.py` imports no torch.
"""

from orchestrator.recipe.schema import Table

METHODS = Table(
    "method",
    {
        "captioner": "orchestrator.methods.captioner.config:Captioner",
        "clip": "orchestrator.methods.clip.config:Clip",
        "tinyclip": "orchestrator.methods.tinyclip.config:TinyCLIP",
    },
)
