"""The shape of the house: what each layer may load, and how fast the command line starts."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

LIGHT = ("orchestrator", "orchestrator.recipe", "orchestrator.plan", "orchestrator.store", "orchestrator.io")


def modules_after(code: str) -> set[str]:
    """Top-level packages loaded in a fresh interpreter after running `code`."""
    script = f"{code}\nimport sys, json\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


def submodules(package: str) -> str:
    """Code that imports every module of a package."""
    return (
        "import importlib, pkgutil\n"
        f"package = importlib.import_module('{package}')\n"
        "for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "    module.name.endswith('__main__') or importlib.import_module(module.name)"
    )


@pytest.mark.parametrize("package", ["recipe", "plan", "store", "io", "cli"])
def test_light_layers_load_no_torch_ray_or_mlflow(package):
    assert not modules_after(submodules(f"orchestrator.{package}")) & {"torch", "ray", "mlflow"}


@pytest.mark.parametrize("package", ["data", "models", "training", "methods", "curation", "evaluation"])
def test_the_science_loads_neither_ray_nor_mlflow(package):
    assert not modules_after(submodules(f"orchestrator.{package}")) & {"ray", "mlflow"}


def test_every_configuration_is_free_of_torch_ray_and_mlflow():
    code = (
        "from orchestrator.stages import KINDS\nfrom orchestrator.methods import METHODS\n"
        "from orchestrator.curation import OPERATORS\nfrom orchestrator.evaluation import TASKS\n"
        "for table in (KINDS, METHODS, OPERATORS, TASKS):\n    [table[name] for name in table]"
    )
    assert not modules_after(code) & {"torch", "ray", "mlflow", "pyarrow"}


def test_help_starts_in_a_blink():
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "orchestrator", "--help"], check=True, capture_output=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.6  # 0.3 s on a quiet machine; twice that leaves room for a busy one
