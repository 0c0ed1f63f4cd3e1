"""Real networks on the committed sample set, through the real store, to the table that a person reads."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from orchestrator.data import source
from orchestrator.data.dataset import Dataset
from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.evaluation.config import Retrieval, ZeroShot
from orchestrator.evaluation.protocol import retrieval, zeroshot
from orchestrator.models import artifact, catalog
from orchestrator.models.open_clip_bridge import create
from orchestrator.plan.types import Resources
from orchestrator.report import table
from orchestrator.stages.dataset import run as dataset_runner
from orchestrator.stages.dataset.config import DatasetStage
from orchestrator.stages.evaluate import run as evaluate_runner
from orchestrator.stages.evaluate.config import EvaluateStage
from orchestrator.store.artifacts import Handle, Manifest, Store


class World:
    """A store, and what the engine does around a runner: an output folder, a context, publication."""

    def __init__(self, folder) -> None:
        self.folder, self.store = folder, Store.open(str(folder / "store"))

    def publish(self, name, out, metrics=None, undeclared=(), inputs=None) -> Handle:
        empty = {"payload": {}, "files": {}, "summary": {}, "provenance": {}, "content_digest": ""}
        manifest = Manifest(
            kind="test",
            fingerprint=name,
            attempt="1",
            generation=1,
            stage=name,
            run="run",
            inputs={key: {"name": handle.manifest.stage} for key, handle in (inputs or {}).items()},
            metrics=metrics or {},
            started=0.0,
            finished=1.0,
            wall_s=1.0,
            **empty,
        )
        return Handle(self.store, self.store.publish(manifest, out, undeclared))

    def run(self, name, runner, config, inputs) -> Handle:
        out = self.out(name)
        ctx = SimpleNamespace(
            config=config,
            store=self.store,
            inputs=inputs,
            input_names={key: handle.manifest.stage for key, handle in inputs.items()},
            out=out,
            resources=Resources(),
            events=SimpleNamespace(emit=lambda type, **fields: None),
            should_stop=lambda: None,
            sources={name: source.known(name, self.store).place for name in config.external_sources()},
        )
        outcome = runner.run(ctx)
        return self.publish(name, out, outcome.metrics, outcome.undeclared, inputs)

    def model(self, name, seed) -> Handle:
        out = self.out(name)
        settings = catalog.resolve("tiny")
        size, length = settings["vision_cfg"]["image_size"], settings["text_cfg"]["context_length"]
        artifact.save(create(settings, seed), Preprocess(size), Tokenizer(context_length=length), out)
        return self.publish(name, out, {"samples_per_s": 100.0 + seed})

    def out(self, name):
        path = self.folder / name
        path.mkdir()
        return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def pairs(world):
    source.prepare("emoji", world.store)
    return world.run("pairs", dataset_runner, DatasetStage(source="emoji"), {})


def test_the_sample_set_has_the_columns_of_the_protocol(pairs):
    dataset = Dataset.open(pairs)
    sizes = {measure.name: measure.sizes for measure in zeroshot(ZeroShot(), dataset)}
    assert list(sizes) == ["zeroshot.id", "zeroshot.ood", "zeroshot.unseen"]
    assert sizes["zeroshot.id"]["n"] >= 600
    assert sizes["zeroshot.id"]["classes"] == sizes["zeroshot.ood"]["classes"] == sizes["zeroshot.ood"]["n"]
    assert sizes["zeroshot.unseen"]["n"] == pytest.approx(3 * sizes["zeroshot.unseen"]["classes"], rel=0.02)
    assert all(size["without_class"] == 0 for size in sizes.values())
    assert {m.name: m.sizes["styles"] for m in retrieval(Retrieval(), dataset)} == {
        "retrieval.id.image_to_text": 2,
        "retrieval.id.text_to_image": 2,
        "retrieval.ood.image_to_text": 1,
        "retrieval.ood.text_to_image": 1,
    }


def test_class_names_of_the_sample_set_differ_so_that_prompts_do(pairs):
    texts = zeroshot(ZeroShot(), Dataset.open(pairs))[0].texts
    assert len(set(texts)) == len(texts)


def test_random_networks_are_near_chance_and_reach_the_table(world, pairs):
    models = {f"models.{seed}": world.model(name, seed) for seed, name in enumerate(("first", "second"))}
    tasks = [{"zeroshot": {"max_samples": 100}}, {"retrieval": {"max_samples": 60}}]
    settings = {"models": ["first", "second"], "data": "pairs", "tasks": tasks, "bootstrap": 50}
    config = EvaluateStage.model_validate(settings)
    report = world.run("scores", evaluate_runner, config, {"data": pairs, **models})
    assert report.manifest.metrics["first/zeroshot.ood.top5"] < 0.06
    assert not report.manifest.files["retrieval.png"].declared
    scores = table.load(report, {key: handle.manifest.metrics for key, handle in models.items()})
    console = Console(file=io.StringIO(), width=100)
    console.print(table.render(scores))
    text = console.file.getvalue()
    assert "ood: 100 images" in text
    assert "101" in text
    sizes = json.loads(models["models.0"].read("model.json"))["parameters"]
    assert scores.rows[0].figures["parameters_without_token_table"] == sizes["without_token_table"]
