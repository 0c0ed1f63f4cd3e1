"""The `benchmark` stage on folders of real shards: planned, read and run as the engine does it."""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))
from data_benchmark import (
    captioned,
    classes,
    labelled,
    write_associations,
    write_cifar10,
    write_retrieval,
    write_set,
)
from evaluation_toy import PREPROCESS, ToyModel, tokenize

from orchestrator import submit
from orchestrator.data import source
from orchestrator.data.sets import SETS
from orchestrator.engine.local import LocalExecutor
from orchestrator.errors import DataError, UserError
from orchestrator.evaluation.benchmark_figures import FIGURES
from orchestrator.evaluation.datacomp import TASKS
from orchestrator.plan.compile import External, compile
from orchestrator.plan.types import Resources
from orchestrator.recipe.errors import RecipeError
from orchestrator.recipe.load import load
from orchestrator.report.benchmark import Benchmark, render
from orchestrator.report.summary import reports
from orchestrator.stages import KINDS
from orchestrator.stages.benchmark import run as runner
from orchestrator.stages.benchmark.config import BenchmarkStage
from orchestrator.store.artifacts import Handle, Store

MODELS = {"fine": ToyModel(), "coarse": ToyModel(200)}
FLICKR = "retrieval/flickr_1k_test_image_text_retrieval"
FOUR = ["cifar10", "fairness/geode", FLICKR, "misc/winogavil"]


class Events(list):
    def emit(self, type, **fields):
        self.append((type, fields))

    @property
    def messages(self):
        return [fields["text"] for type, fields in self if type == "message"]


@pytest.fixture
def store(tmp_path):
    return Store.open(str(tmp_path / "store"))


@pytest.fixture
def sets(tmp_path):
    """A folder with a set of each kind, and one whose samples have regions."""
    root = tmp_path / "sets"
    write_cifar10(root)
    write_retrieval(root)
    write_associations(root)
    samples = [labelled(2 if n == 1 else n % 3, n % 3, facts=[n % 2]) for n in range(12)]  # one of region 1 is wrong
    write_set(root / "wds_geode_test", samples, classes(range(3)))
    return root


@pytest.fixture
def stage(tmp_path, store, monkeypatch):
    """Reads the sets of a stage and runs it on toy models; its output folder, events and Outcome."""
    monkeypatch.setattr(
        "orchestrator.stages.models.artifact.load", lambda handle, device: (MODELS[handle], PREPROCESS, tokenize)
    )

    def call(path, tasks=FOUR, models=("fine", "coarse"), should_stop=lambda: None, smoke=False, **settings):
        config = BenchmarkStage.model_validate(
            {"models": list(models), "path": str(path), "tasks": tasks, "bootstrap": 20} | settings
        )
        config = config.smoke() if smoke else config
        sources = config.external_sources()
        for name in sources:
            source.prepare(name, store)
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        keys = [f"models.{place}" for place in range(len(models))]
        ctx = SimpleNamespace(
            config=config,
            inputs=dict(zip(keys, models)),
            input_names=dict(zip(keys, models)),
            sources={name: source.identify(name, store).place for name in sources},
            store=store,
            out=out,
            resources=Resources(),
            events=Events(),
            should_stop=should_stop,
        )
        return out, ctx.events, runner.run(ctx)

    return call


def plan(store, path, **settings):
    body = {"kind": "benchmark", "models": ["open_clip:ViT-B-32/openai"], "path": str(path)} | settings
    recipe = Path(store.url).parent / "recipe.yaml"
    recipe.write_text(json.dumps({"name": "test", "stages": {"scores": body}}))
    known = External("weights", frozenset({"encode_image", "encode_text", "score"}))
    return compile(load(recipe, kinds=KINDS), lambda s: source.identify(s, store), lambda reference: known)


def record(out):
    return json.loads((out / "benchmark.json").read_text())


def test_every_kind_of_set_is_answered_and_scored_by_its_own_figure(stage, sets):
    out, events, outcome = stage(sets)
    found = record(out)
    fine, coarse = found["models"]
    assert {key: task["value"] for key, task in fine["tasks"].items()} == {
        "cifar10": 1,
        "fairness/geode": pytest.approx(5 / 6),
        FLICKR: 1,
        "misc/winogavil": pytest.approx((1 / 3 + 1) / 2),  # finds 7, not 1; the item of five counts in no main figure
    }
    assert fine["tasks"]["fairness/geode"]["figures"]["acc1"] == pytest.approx(11 / 12)
    assert fine["tasks"]["misc/winogavil"]["figures"]["jaccard_score_5-6"] == 1
    assert coarse["tasks"]["cifar10"]["value"] < 1
    assert {task["key"]: (task["metric"], task["size"], task["classes"]) for task in found["tasks"]} == {
        "cifar10": ("acc1", 18, 6),
        "fairness/geode": ("acc_wg", 12, 3),
        FLICKR: ("mean_recall@1", 5, None),
        "misc/winogavil": ("jaccard_score_10-12", 3, None),
    }
    assert "cifar10 has 18 samples here, 10,000 in DataComp's list" in events.messages
    assert outcome.metrics["fine/cifar10.acc1"] == outcome.metrics[f"fine/{FLICKR}.mean_recall_at_1"] == 1
    assert outcome.metrics["fine/images_per_s"] > 0
    assert outcome.metrics["fine/parameters"] == 256
    steps = [fields for type, fields in events if type == "progress"]
    assert steps[-1]["done"] == steps[-1]["total"]


def test_means_are_of_main_figures_and_called_what_they_are(stage, sets):
    out, _, outcome = stage(sets)
    found = record(out)
    assert list(found["means"]) == ["mean_of_4"]  # of DataComp's, all lack a set
    for model in found["models"]:
        values = [task["value"] for task in model["tasks"].values()]
        mean = model["means"]["mean_of_4"]
        assert mean["value"] == pytest.approx(sum(values) / 4)
        assert mean["low"] <= mean["value"] <= mean["high"]
    assert outcome.metrics["coarse/mean_of_4"] == found["models"][1]["means"]["mean_of_4"]["value"]
    (pair,) = found["compared"]
    assert (pair["model"], pair["against"]) == (1, 0)
    assert pair["means"]["mean_of_4"]["high"] < 0


def test_the_tables_of_a_report_hold_every_task_and_say_what_is_other_than_the_benchmark(stage, sets):
    out, _, _ = stage(sets, tasks="datacomp38", missing="skip")
    console = Console(file=io.StringIO(), width=100)
    console.print(render(Benchmark(["fine", "coarse"], record(out))))
    text = console.file.getvalue()
    assert "mean of 4" in text
    assert re.search(r"GeoDE +acc_wg +12 +- +83\.3", text)
    assert re.search(r"CIFAR-10 +acc1 +18 +10\.0 +100\.0", text)
    assert "34 of 38 sets were not there: vtab/caltech101" in text
    assert "cifar10 18 instead of 10,000" in " ".join(text.split())


def test_results_are_written_in_datacomps_shape_too(stage, sets):
    out, _, _ = stage(sets)
    lines = [json.loads(line) for line in (out / "eval_results.1.jsonl").read_text().splitlines()]
    coarse = record(out)["models"][1]
    assert [line["key"] for line in lines] == FOUR
    assert lines[0]["dataset"] == "CIFAR-10"
    assert all(line["metrics"]["main_metric"] == coarse["tasks"][line["key"]]["value"] for line in lines)


def test_files_are_bit_equal_on_a_second_run_with_another_batch(stage, sets):
    (one, _, _), (other, _, _) = stage(sets), stage(sets, batch=5)
    for name in ("benchmark.json", "eval_results.0.jsonl", "eval_results.1.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_a_set_outside_the_table_goes_by_its_folder_and_its_type(stage, tmp_path):
    root = tmp_path / "mine"
    write_retrieval(root, "birds")
    write_cifar10(root, "wds_boats", num_classes=3)
    samples = [labelled(n, 0, facts=np.eye(3)[n] + np.eye(3)[0]) for n in range(3)]  # each its own class, and class 0
    write_set(root / "several", samples, classes(range(3)) | {"dataset_type.txt": "multilabel"})
    out, events, outcome = stage(root, tasks=["birds", "boats", "several"])
    tasks = record(out)["tasks"]
    assert {task["key"]: task["metric"] for task in tasks} == {
        "birds": "mean_recall@1",
        "boats": "acc1",
        "several": "mean_average_precision",
    }
    assert outcome.metrics["fine/several.mean_average_precision"] == 1
    assert events.messages == []
    assert record(out)["models"][0]["tasks"]["boats"]["figures"]["acc5"] is None


def test_missing_sets_are_left_out_when_asked_and_said(stage, sets):
    out, events, outcome = stage(sets, tasks="datacomp38", missing="skip")
    assert len(record(out)["missing"]) == 34
    assert outcome.summary["missing"] == record(out)["missing"]
    assert any(
        line.startswith("34 of 38 evaluation sets are not there: vtab/caltech101, ") for line in events.messages
    )
    assert not any("average_of_38" in name for name in outcome.metrics)


def test_with_all_sets_there_is_an_average_of_38(stage, tmp_path):
    root = tmp_path / "all"
    for task in TASKS:
        if task.metric == "mean_recall@1":
            write_retrieval(root, task.folders[0])
        elif task.key == "misc/winogavil":
            write_associations(root, task.folders[0])
        else:
            samples = [labelled(n, n, facts=[0]) for n in range(2)]
            write_set(root / task.folders[0], samples, classes(range(2), ["{c}"]), shards=1)
    out, _, outcome = stage(root, tasks="datacomp38", models=["fine"], bootstrap=2)
    value = outcome.metrics["fine/average_of_38"]
    assert value == pytest.approx((37 + (1 / 3 + 1) / 2) / 38)
    assert outcome.metrics["fine/retrieval"] == pytest.approx((2 + (1 / 3 + 1) / 2) / 3)
    assert outcome.metrics["fine/vtab"] == outcome.metrics["fine/shifts"] == outcome.metrics["fine/imagenet"] == 1
    assert record(out)["missing"] == []


WRONG_SETS = {
    "no class names": ({"samples": [labelled(0, 0)], "texts": {}}, "0 class names and 0 templates"),
    "no place for the class": (
        {"samples": [labelled(0, 0)], "texts": classes([0], ["a view"])},
        "1 of them without {c}",
    ),
    "a class too many": (
        {"samples": [labelled(0, 3)], "texts": classes([0])},
        "no class among its 1, the first is 's000'",
    ),
    "no caption": ({"samples": [captioned(0, "")], "texts": {"dataset_type.txt": "retrieval"}}, "no caption"),
    "unknown type": ({"samples": [labelled(0, 0)], "texts": {"dataset_type.txt": "video"}}, "of type 'video'"),
    "no labels": (
        {"samples": [labelled(0, 0, facts=[1, 0])], "texts": classes([0]) | {"dataset_type.txt": "multilabel"}},
        "do not say which of its 1 classes",
    ),
}


@pytest.mark.parametrize("case", WRONG_SETS)
def test_a_set_that_cannot_be_asked_is_refused(stage, tmp_path, case):
    made, message = WRONG_SETS[case]
    write_set(tmp_path / "sets" / "wrong", shards=1, **made)
    with pytest.raises(DataError, match=message):
        stage(tmp_path / "sets", tasks=["wrong"])


def test_associations_that_name_no_image_are_refused(stage, tmp_path):
    item = {"cue": "owl", "candidates": ["picture-0", "a ghost"], "associations": ["picture-0"]}
    write_associations(tmp_path / "sets", items=[item])
    with pytest.raises(DataError, match="cue 'owl' names images that are not there"):
        stage(tmp_path / "sets", tasks=["winogavil"])


def test_a_worst_group_without_groups_is_refused(stage, tmp_path):
    write_cifar10(tmp_path / "sets", "wds_geode_test")
    with pytest.raises(DataError, match="'acc_wg' of benchmark set 'wds_geode_test' needs its samples' groups"):
        stage(tmp_path / "sets", tasks=["fairness/geode"])


def test_a_set_in_the_wrong_folder_is_refused(stage, tmp_path):
    write_retrieval(tmp_path / "sets", "wds_cifar10_test")
    with pytest.raises(DataError, match="is of type 'retrieval', which has no figure 'acc1'"):
        stage(tmp_path / "sets", tasks=["cifar10"])


def test_a_line_that_is_no_item_is_refused_by_its_number(stage, tmp_path):
    folder = write_associations(tmp_path / "sets")
    with (folder / "associations.jsonl").open("a") as file:
        file.write('{"cue": "owl"}\n')
    with pytest.raises(DataError, match=r"line 4 of associations\.jsonl of benchmark set 'winogavil' is no item"):
        stage(tmp_path / "sets", tasks=["winogavil"])


def test_images_that_cannot_be_decoded_are_refused_by_name(stage, tmp_path):
    good = labelled(0, 0)
    write_set(tmp_path / "sets" / "bad", [good, good | {"png": good["png"][:40]}], classes([0]), shards=1)
    with pytest.raises(DataError, match="1 images of benchmark set 'bad' cannot be decoded, the first is 's001'"):
        stage(tmp_path / "sets", tasks=["bad"])


def test_a_stop_request_is_obeyed_between_batches(stage, sets):
    out, _, outcome = stage(sets, should_stop=lambda: "cancelled")
    assert outcome.stopped == "cancelled"
    assert list(out.iterdir()) == []


def test_a_recipe_can_be_planned_before_its_sets_are_there(store, tmp_path):
    node = plan(store, tmp_path / "not yet").nodes["scores"]
    assert node.fingerprint is None
    assert "wds_vtab-caltech101_test" in node.pending
    with pytest.raises(UserError, match="no benchmark set at"):
        source.prepare(next(iter(node.external)), store)


def test_a_folder_that_lacks_some_sets_is_refused_in_the_plan_unless_they_are_to_be_skipped(store, sets):
    with pytest.raises(RecipeError) as refused:
        plan(store, sets)
    message = str(refused.value)
    assert "34 of 38 evaluation sets are not in" in message
    assert "wds_vtab-caltech101_test" in message
    assert "missing: skip" in message
    assert len(plan(store, sets, missing="skip").nodes["scores"].external) == 4
    with pytest.raises(RecipeError, match="did you mean vtab/pets"):
        plan(store, sets, tasks=["cifar10", "vtab/pest"])


def test_the_same_sets_elsewhere_are_the_same_stage_and_others_are_not(store, tmp_path):
    def fingerprint(path, **settings):
        for name in plan(store, path, tasks=["cifar10"], **settings).nodes["scores"].external:
            source.prepare(name, store)
        return plan(store, path, tasks=["cifar10"], **settings).nodes["scores"].fingerprint

    write_cifar10(tmp_path / "a")
    write_cifar10(tmp_path / "b", "cifar10")
    write_cifar10(tmp_path / "c", each=2)
    one = fingerprint(tmp_path / "a")
    assert one is not None
    assert fingerprint(tmp_path / "b", missing="skip", batch=9) == one
    assert fingerprint(tmp_path / "c") != one
    assert fingerprint(tmp_path / "a", max_samples=3) != one


def test_smoke_looks_at_few_samples_of_the_sets_that_are_there(stage, sets, tmp_path):
    body = {"models": ["m"], "path": str(sets)}
    small = BenchmarkStage.model_validate(body).smoke()
    assert (small.max_samples, small.missing, len(small.external_sources())) == (32, "skip", 4)
    none = BenchmarkStage.model_validate(body | {"path": str(tmp_path / "none")}).smoke()
    assert none.external_sources() == []
    out, events, outcome = stage(tmp_path / "none", smoke=True)
    assert record(out)["tasks"] == []
    assert events.messages == [f"no evaluation set is in '{tmp_path / 'none'}': nothing is scored"]
    assert "fine/parameters" in outcome.metrics
    out, _, _ = stage(sets, max_samples=2)
    assert {task["size"] for task in record(out)["tasks"]} == {2}


@pytest.mark.parametrize(
    "wrong",
    [
        {"models": []},
        {"tasks": []},
        {"tasks": ["cifar10", "cifar10"]},
        {"tasks": ["vtab/pets", "vtab-pets"]},
        {"tasks": "all"},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        BenchmarkStage.model_validate({"models": ["a"], "path": "/data"} | wrong)


def test_the_page_lists_the_table_of_tasks_and_every_figure():
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    rows = [f"| {task.name} | `{task.key}` | {task.size:,} | `{task.metric}` |" for task in TASKS]
    assert [row for row in rows if row not in page] == []
    assert [name for known in FIGURES.values() for name in known if name.partition("@")[0] not in page] == []


def sample_set(number: int) -> list[dict[str, bytes]]:
    """The first samples of the built-in set, as (image, caption)."""
    with tarfile.open(SETS["emoji"] / "emoji-00000.tar") as tar:
        read = {member.name: tar.extractfile(member).read() for member in tar}
    keys = [name.removesuffix(".webp") for name in read if name.endswith(".webp")][:number]
    return [{"webp": read[f"{key}.webp"], "txt": read[f"{key}.txt"]} for key in keys]


def test_a_submitted_recipe_scores_real_networks_on_drawings_and_is_then_there(tmp_path):
    drawings = sample_set(24)
    names = sorted({drawing["txt"].decode() for drawing in drawings})
    labels = [{"webp": d["webp"], "cls": str(names.index(d["txt"].decode())).encode()} for d in drawings]
    texts = {"classnames.txt": "\n".join(names), "zeroshot_classification_templates.txt": "{c}\na drawing of {c}\n"}
    write_set(tmp_path / "sets" / "wds_drawings_test", labels, texts)
    write_set(tmp_path / "sets" / "drawn-pairs", drawings, {"dataset_type.txt": "retrieval"})
    model = "random:open_clip:ViT-B-32/openai"
    body = {"kind": "benchmark", "models": [model, model], "path": "sets", "tasks": ["drawings", "drawn-pairs"]}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"name": "scored", "stages": {"scores": body | {"bootstrap": 20}}}))

    def states(**asked):
        store = str(tmp_path / "store")
        result = submit(recipe, store=store, tracking=False, quiet=True, executor=LocalExecutor(), **asked)
        return {name: status.state for name, status in result.stages.items()}, result

    with chdir(tmp_path):
        first, result = states()
        assert first == {"scores": "done"}
        assert states()[0] == {"scores": "cached"}
    store = Store.open(str(tmp_path / "store"))
    found = json.loads(Handle(store, result.manifests["scores"]).read("benchmark.json"))
    one, other = found["models"]
    assert one["tasks"] == other["tasks"]  # the same network
    assert 0 <= one["tasks"]["drawings"]["value"] < 0.5  # that has learnt nothing
    assert one["tasks"]["drawn-pairs"]["low"] <= one["tasks"]["drawn-pairs"]["value"]
    assert [task["size"] for task in found["tasks"]] == [24, 24]
    (shown,) = reports(result.manifests, store, 100)
    console = Console(file=io.StringIO(), width=100)
    console.print(shown.tables)
    assert "drawn-pairs" in console.file.getvalue()
