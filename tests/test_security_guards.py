"""Nothing that a recipe, a data set or a model's folder brings along is run: what could do so is used in known places.

Nor does anything turn Ray's token off or listen to the world.
"""

from __future__ import annotations

import ast
import io
import os
import pickle
import re
from pathlib import Path

import pytest
import torch

import orchestrator
from orchestrator.errors import OrchError
from orchestrator.models import artifact, external
from orchestrator.training import checkpoint

ROOT = Path(orchestrator.__file__).parent
FORBIDDEN = {
    "eval",
    "exec",
    "__import__",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "cloudpickle.load",
    "cloudpickle.loads",
    "marshal.loads",
    "shelve.open",
    "joblib.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "pd.read_pickle",
    "torch.jit.load",
    "torch.hub.load",
    "runpy.run_path",
    "shutil.unpack_archive",
}
IMPORTS_BY_NAME = {
    "cli/main.py": "the table of commands",
    "data/build/__init__.py": "the table of data sets that can be built",
    "engine/worker.py": "a job of our own engine, over Ray's authenticated connection",
    "models/artifact.py": "models of this package only",
    "models/external.py": "the table of known Python packages with weights",
    "report/sections/__init__.py": "the table of a report's sections",
    "recipe/schema.py": "the tables of kinds, methods, operators and tasks",
    "stages/evaluate/run.py": "the table of tasks",
    "stages/train/worker.py": "the table of methods",
    "training/__main__.py": "its own sub-commands",
}
"""Modules that import by a name they were given, and whose names those are."""


def calls() -> list[tuple[str, str, ast.Call]]:
    """(module, what is called, the call) everywhere in the package."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                found.append((path.relative_to(ROOT).as_posix(), ast.unparse(node.func), node))
    return found


CALLS = calls()


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


def test_nothing_that_runs_what_it_reads_is_called():
    assert [(module, name) for module, name, _ in CALLS if name in FORBIDDEN] == []


def test_torch_loads_weights_only_and_numpy_no_pickles():
    loads = [(module, call) for module, name, call in CALLS if name == "torch.load"]
    assert loads, "the guard looks at nothing"
    assert [module for module, call in loads if keyword(call, "weights_only") != "True"] == []
    arrays = [(module, call) for module, name, call in CALLS if name in ("np.load", "numpy.load")]
    assert [module for module, call in arrays if keyword(call, "allow_pickle") not in (None, "False")] == []


def test_archives_are_read_member_by_member_and_never_unpacked():
    assert [(m, name) for m, name, _ in CALLS if name.endswith((".extractall", ".extract"))] == []


def test_no_shell_is_started():
    assert [m for m, name, call in CALLS if keyword(call, "shell") not in (None, "False")] == []


def test_modules_are_imported_by_name_only_where_the_names_are_ours():
    found = {module for module, name, _ in CALLS if name in ("importlib.import_module", "import_module")}
    assert found - set(IMPORTS_BY_NAME) == set()


def test_code_of_a_hub_repository_is_never_asked_for():
    assert [m for m, _, call in CALLS if keyword(call, "trust_remote_code") not in (None, "False")] == []


def test_nothing_turns_the_token_off_or_listens_on_every_address():
    wrong = re.compile("|".join([r"AUTH_MODE['\"]?\]?\s*[=:,]\s*['\"]?dis" + "abled", r"0\.0" + r"\.0\.0"]))
    folders = [ROOT, ROOT.parent / "tests", ROOT.parent / "benchmarks"]
    texts = {path: path.read_text() for folder in folders for path in sorted(folder.rglob("*.py"))}
    assert [str(path) for path, text in texts.items() if wrong.search(text)] == []


class Harm:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def harm(tmp_path) -> Harm:
    """Does harm when unpickled, which is tried first."""
    proof = Harm(tmp_path / "proof")
    pickle.loads(pickle.dumps(proof))
    assert proof.path.exists()
    return Harm(tmp_path / "harm")


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_a_hostile_checkpoint_is_refused_and_does_nothing(how, harm):
    buffer = io.BytesIO()
    if how == "pickle":
        pickle.dump({"format": checkpoint.FORMAT, "model": harm}, buffer)
    else:
        torch.save({"format": checkpoint.FORMAT, "model": harm}, buffer)
    with pytest.raises(OrchError):
        checkpoint.from_bytes(buffer.getvalue())
    assert not harm.path.exists()


def test_a_model_folder_with_pickled_weights_is_refused_and_does_nothing(harm, tmp_path):
    from orchestrator.data.preprocess import Preprocess, Tokenizer
    from orchestrator.models import catalog
    from orchestrator.models.open_clip_bridge import create

    folder = tmp_path / "model"
    folder.mkdir()
    artifact.save(create(catalog.resolve("tiny")), Preprocess(32), Tokenizer(context_length=24), folder)
    torch.save({"weights": harm}, folder / artifact.WEIGHTS)
    with pytest.raises(OrchError, match="not in the safetensors format"):
        external.load_external(str(folder))
    assert not harm.path.exists()


@pytest.mark.parametrize("name", ["os:system", "orchestrator.engine.worker:load", "subprocess:Popen", "harm:Harm"])
def test_a_model_folder_cannot_name_code_of_its_own(name):
    with pytest.raises(OrchError, match="not a model"):
        artifact._class(name)


def test_weights_of_open_clip_are_loaded_without_running_them(harm, tmp_path):
    from orchestrator.models import catalog
    from orchestrator.models.open_clip_bridge import create, open_clip

    path = tmp_path / "weights.pt"
    torch.save({"state_dict": harm}, path)
    with pytest.raises(Exception, match=r"(?i)weights.only|unpickl"):
        open_clip().load_checkpoint(create(catalog.resolve("tiny")).network, str(path))
    assert not harm.path.exists()
