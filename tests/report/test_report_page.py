"""The page of a run, made from runs written by hand: what it shows, what it survives, and that it is one safe file."""

from __future__ import annotations

import html.parser
import json
import re
from math import inf, nan

import pytest
from report_lab import Lab, picture, write_shard
from test_report_table import NAMES, report

from orchestrator import api
from orchestrator.cli.main import orch
from orchestrator.engine.local import LocalExecutor
from orchestrator.engine.observe import Observers
from orchestrator.errors import OrchError
from orchestrator.report.graph import lanes
from orchestrator.report.page import NAME, page
from orchestrator.report.plots import MOST_POINTS, Curve, curves, thinned
from orchestrator.report.sections.training import over_all
from orchestrator.report.writer import PageWriter
from orchestrator.store.artifacts import Store

SAMPLES = [(f"thing {number}", picture(number)) for number in range(12)]
HOSTILE = '<script>alert("x")</script><img src=http://evil.example/x onerror=alert(1)>'
VOID = {"meta", "img", "br", "hr", "link", "input", "path", "circle", "use"}


class Reader(html.parser.HTMLParser):
    """Collects tags, attributes and text; fails where tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        """What is read, in one line."""
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str, **attributes: str) -> int:
        return sum(t == tag and all(a.get(k.rstrip("_")) == v for k, v in attributes.items()) for t, a in self.tags)


@pytest.fixture
def lab(tmp_path) -> Lab:
    return Lab(str(tmp_path / "store"), tmp_path)


def full(lab: Lab, caption: str = "thing") -> Lab:
    """A finished run with one stage of each kind that there is something to say about."""
    lab.dataset("pairs", [(f"{caption} {number}", image) for number, (_, image) in enumerate(SAMPLES)])
    lab.curated("clean", "pairs", {"min_size: shorter side under 32 px": [1, 4, 5]})
    for place, name in enumerate(NAMES):
        lab.trained(name, "clean", [5.0, 4.0, 3.0 - place / 10], resumed=0, phase=1)
    scores(lab)
    return lab


def scores(lab: Lab, **files: bytes) -> None:
    """A Report on the trained models, with the figures of the table's test."""
    lab.stage("scores", "evaluate", ["pairs", *NAMES])
    made = report(splits={"id": (620, 1100)})
    inputs = {"data": "pairs", **{f"models.{place}": name for place, name in enumerate(NAMES)}}
    tables = {name: made.read(name) for name in ("metrics.json", "paired.json")}
    lab.finish("scores", {**tables, **files}, inputs=inputs)


def test_a_finished_run_is_one_file_that_needs_nothing_else_and_is_well_formed(lab):
    html_text = full(lab).page()
    read = Reader(html_text)
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in read.tags}
    for tag, attributes in read.tags:
        for name in ("src", "href", "xlink:href", "srcset", "poster", "action"):
            value = attributes.get(name) or "#"
            assert value.startswith(("data:", "#")), (tag, name, value[:80])
    assert not re.search(r"url\((?!#)|@import", html_text)
    assert {a["href"][1:] for t, a in read.tags if t == "use"} <= set(ids)
    assert len(html_text) < 3_000_000


def test_it_shows_stages_results_curves_samples_drops_and_lineage(lab):
    read = Reader(full(lab).page())
    for fact in (
        "Finished in",
        "7 of 7 stages made",
        "✓ done",
        "pretrain from clean",
        "Zero-shot classification, %",
        "95% interval",
        "chance",
        "Accuracy against size",
        "Accuracy against cost",
        "id top-5: the row's model over the column's",
        "Loss",
        "Dashed: resumed from a checkpoint.",
        "Dotted: a phase begins.",
        "clean: 9 of 12 samples kept",
        "3 shorter side under 32 px",
        "75.0% of 12",
        "min_size: shorter side under 32 px",
        "thing 3",
        "c0ffeec0ffee with uncommitted changes",
        "+new <line>",
        "torch 2.13.0",
        "seed 7",
        "node-7, Linux, Python 3.11.7",
        "orch submit lab.yaml",
        lab.fingerprint("teacher"),
        lab.made["teacher"].content_digest,
        "name: lab",
    ):
        assert fact in read.text, fact
    assert read.count("img") == 12 + 9 + 3
    assert read.count("circle", class_="done") == 7


def test_the_cost_of_a_model_counts_what_it_was_made_from_once(lab):
    read = Reader(full(lab).page())  # each stage: 2 CPUs for a minute; a model stands on clean and pairs
    assert "teacher 5.46 M 0.72 M 2 CPU min 6 CPU min" in read.text


@pytest.mark.parametrize(
    ("speeds", "waits", "expected"),
    [
        ([], [], (None, None)),
        ([(100, 50.0), (200, 50.0)], [(100, 0.5), (200, 0.1)], (50.0, 0.3)),
        ([(100, 10.0), (200, 100.0)], [(100, 0.9), (200, 0.0)], (200 / 11, 9 / 11)),  # a slow start counts by its time
        ([(100, 100.0)], [], (100.0, 0.0)),
    ],
)
def test_speed_and_waiting_of_a_training_are_those_of_all_its_time(speeds, waits, expected):
    assert over_all({"samples_per_s": speeds, "data_wait_share": waits}) == pytest.approx(expected)


@pytest.mark.parametrize("where", ["caption", "stage", "recipe", "log", "reason"])
def test_whatever_is_written_by_others_stays_text(lab, where):
    lab.dataset("pairs", [(HOSTILE if where == "caption" else "a cat", picture(1))])
    lab.stage(HOSTILE if where == "stage" else "next", "pretrain", ["pairs"], "failed")
    name = list(lab.stages)[-1]
    lab.events(name, [2.0, 1.0])
    if where == "log":
        lab.log(name, HOSTILE)
    if where == "reason":
        lab.states[name] |= {"reason": HOSTILE, "remedy": HOSTILE}
    text = lab.page(recipe=f"name: {HOSTILE}\n" if where == "recipe" else "name: lab\n")
    read = Reader(text)
    assert "<script>" in read.text
    assert "script" not in {tag for tag, _ in read.tags}
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
    assert not any("evil" in (attributes.get("src") or "") for _, attributes in read.tags)
    assert "default-src 'none'" in text


@pytest.mark.parametrize("name", ["a$b", "$x$", r"\frac", "&amp;", "a\tb", "日本"])
def test_curves_and_points_take_any_name(lab, name):
    lab.dataset("pairs", SAMPLES[:2])
    lab.trained(name, "pairs", [2.0, 1.0])
    assert Reader(lab.page()).text


def test_a_page_has_the_same_bytes_for_the_same_store_and_moment(lab, monkeypatch):
    run = full(lab).run()
    monkeypatch.setattr("orchestrator.report.record.time.time", lambda: 2e9)
    assert page(run) == page(run)


def test_a_failed_run_says_why_what_to_do_and_how_its_log_ended(lab):
    lab.dataset("pairs", SAMPLES[:3])
    lab.stage("teacher", "pretrain", ["pairs"], "failed", reason="the loss is not finite", remedy="lower the rate")
    lab.stage("student", "distill", ["teacher"], "skipped", reason="needs teacher")
    lab.log("teacher", "\n".join(f"line {number}" for number in range(100)) + "\n")
    read = Reader(lab.page())
    assert "Failed after" in read.text
    assert "teacher failed: the loss is not finite. What to do: lower the rate." in read.text
    assert "line 99" in read.text
    assert "line 74" not in read.text
    assert "Not run because of that: student." in read.text
    assert "orch submit lab.yaml -s stages.a.steps=5" in read.text
    assert read.count("circle", class_="failed") == 1


def test_a_running_run_says_what_is_at_work_and_how_far_it_is(lab):
    lab.dataset("pairs", SAMPLES[:3])
    lab.stage("teacher", "pretrain", ["pairs"], "running")
    lab.events("teacher", [3.0, 2.0])
    lab.stage("student", "distill", ["teacher"], "waiting")
    read = Reader(lab.page())
    assert "1 of 3 stages are there, now teacher." in read.text
    assert "▶ running 50%" in read.text
    assert "… waiting" in read.text
    assert "Loss" in read.text


def test_a_run_whose_submitter_is_gone_is_interrupted_not_running(lab):
    lab.stage("teacher", "pretrain", [], "running")
    lab.stage("student", "distill", ["teacher"], "waiting")
    read = Reader(lab.page(pid_started="never"))
    assert "Interrupted after" in read.text
    assert "submitting again goes on" in read.text


def test_a_run_that_has_not_begun_has_a_page(lab):
    lab.stage("pairs", "dataset")
    run = lab.run()
    lab.store.storage.delete(f"runs/{run.id}/state.json")
    assert "0 of 1 stages are there" in Reader(page(run)).text


def test_what_was_collected_is_said_and_the_rest_is_shown(lab):
    run = full(lab).run()
    for name in ("pairs", "clean"):
        made = lab.made[name]
        for info in list(lab.store.storage.list(f"{made.kind}/{made.fingerprint}")):
            lab.store.storage.delete(info.key)
    lab.store._cache.clear()
    read = Reader(page(run))
    assert "No longer in the store, so not shown here: what pairs and clean made." in read.text
    assert "Zero-shot classification, %" in read.text


@pytest.mark.parametrize("lost", ["index.parquet", "dataset.json", "shards"])
def test_a_data_set_that_cannot_be_read_leaves_the_rest_of_the_page(lab, lost):
    run = full(lab).run()
    made = lab.made["pairs"]
    if lost == "shards":
        (lab.folder / "shards-pairs" / "00000.tar").unlink()
    else:
        lab.store.storage.delete(f"{made.prefix}/{lost}")
    read = Reader(page(run))
    assert "cannot be shown" in read.text
    assert "Zero-shot classification, %" in read.text
    assert "clean: 9 of 12 samples kept" in read.text


def test_an_image_that_cannot_be_decoded_leaves_its_place_and_caption(lab, monkeypatch):
    monkeypatch.setattr("orchestrator.report.sections.data.small", lambda image: "")
    lab.dataset("pairs", SAMPLES[:3])
    read = Reader(lab.page())
    assert read.count("img") == 0
    assert read.text.count("no picture") == 3
    assert "thing 2" in read.text


def test_bad_samples_of_any_stage_are_told_with_their_reasons(lab):
    lab.dataset("pairs", SAMPLES[:3])
    lab.stage("teacher", "pretrain", ["pairs"])
    bad = {"counts": {"not an image": 3}, "examples": {"not an image": ["sample 12 of 00000.tar"]}}
    lab.finish("teacher", {"model.json": b"{}"}, summary={"bad_samples": bad}, inputs={"data": "pairs"})
    assert "teacher not an image 3 sample 12 of 00000.tar" in Reader(lab.page()).text


def test_answers_show_the_samples_themselves_and_frame_the_right_one(lab):
    full(lab)
    from orchestrator.data.dataset import Dataset
    from orchestrator.store.artifacts import Handle

    uids = list(Dataset.open(Handle(lab.store, lab.made["pairs"])).uids)
    asked = {"text": "a thing", "uid": uids[0], "found": [[uids[1], uids[0]]] * len(NAMES)}
    record = {"split": "ood", "style": None, "size": 12, "top": 2, "right_within": [0.5] * 4, "captions": [asked]}
    lab.made.pop("scores")
    for info in list(lab.store.storage.list(f"evaluate/{lab.fingerprint('scores')}")):
        lab.store.storage.delete(info.key)
    lab.store._cache.clear()
    scores(lab, **{"retrieval.json": json.dumps(record).encode(), "retrieval.png": picture(3)})
    run = lab.run()
    read = Reader(page(run))
    assert read.count("img", class_="right") == len(NAMES)
    assert "scratch 50.0%" in read.text
    (lab.folder / "shards-pairs" / "00000.tar").unlink()
    read = Reader(page(run))
    assert read.count("img", alt="Captions and the images that each model retrieves") == 1


def test_reused_stages_are_counted_apart_from_those_made(lab):
    lab.dataset("pairs", SAMPLES[:3])
    lab.states["pairs"] |= {"state": "cached", "started": None}
    lab.stage("teacher", "pretrain", ["pairs"])
    lab.finish("teacher", {"model.json": b"{}"}, inputs={"data": "pairs"})
    read = Reader(lab.page())
    assert "1 of 2 stages made, 1 reused." in read.text
    assert "1 min 00 s earlier" in read.text


def test_a_page_is_made_from_any_store(any_root, tmp_path):
    assert "7 of 7 stages made" in Reader(full(Lab(any_root, tmp_path)).page()).text


def test_a_secret_in_a_log_is_not_in_the_page(lab, monkeypatch):
    lab.stage("teacher", "pretrain", [], "failed")
    lab.log("teacher", "connecting with hunter2-hunter2\n")
    monkeypatch.setenv("MY_PASSWORD", "hunter2-hunter2")
    text = lab.page()
    assert "connecting with" in text
    assert "hunter2" not in text


def test_the_command_writes_it_beside_the_run_or_where_it_is_told(lab, tmp_path):
    run = full(lab).run()
    assert orch.main(["report", "--store", lab.store.url], standalone_mode=False) is None
    assert b"</html>" in lab.store.storage.get(f"runs/{run.id}/{NAME}")
    orch.main(["report", run.id, "-o", str(tmp_path / "x.html"), "--store", lab.store.url], standalone_mode=False)
    assert (tmp_path / "x.html").read_text().endswith("</html>")


def test_the_writer_hands_on_the_page_only_where_something_was_done(lab):
    run, told, said = full(lab).run(), [], []
    for began in (False, True):
        writer = PageWriter(lab.store, lambda name, text: told.append((name, len(text))), said.append)
        writer.run_started(None, run.id, {})
        if began:
            writer.stage_started(None)
        writer.run_finished(True, False)
        assert len(told) == len(said) == int(began)
    assert told[0][0] == NAME
    assert said == [f"report: {Store.open(lab.store.url).storage.where(f'runs/{run.id}/{NAME}')}"]


def test_a_submission_leaves_its_page_and_one_that_finds_everything_there_makes_none(tmp_path):
    location = write_shard(tmp_path / "shards", SAMPLES)
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        f"name: small\nstages:\n  pairs: {{kind: dataset, source: {location}}}\n"
        "  clean: {kind: curate, data: pairs, steps: [{min_size: {pixels: 31}}]}\n"
    )
    store = Store.open(str(tmp_path / "store"))

    def submit():
        return api.submit(recipe, store=store.url, executor=LocalExecutor(), tracking=False, quiet=True)

    first = submit()
    assert not first.ok  # 30 pixels high: nothing is left
    read = Reader(store.storage.get(f"runs/{first.run}/{NAME}").decode())
    assert "clean failed: 'min_size' left no sample of 12" in read.text
    recipe.write_text(recipe.read_text().replace("31", "30"))
    second = submit()
    assert second.ok
    assert store.storage.head(f"runs/{second.run}/{NAME}") is not None
    third = submit()
    assert third.ok
    assert store.storage.head(f"runs/{third.run}/{NAME}") is None


def test_a_store_that_refuses_the_page_does_not_hurt_the_run(lab):
    run, said = full(lab).run(), []

    def refuse(name, text):
        raise OrchError("no room")

    everyone = Observers([PageWriter(lab.store, refuse, said.append)], said.append)
    everyone.tell("run_started", None, run.id, {})
    everyone.tell("stage_started", None)
    everyone.tell("run_finished", True, False)
    assert said == ["PageWriter is switched off: OrchError: no room"]


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        ({"a": [], "b": ["a"], "c": ["b"]}, {"a": 0, "b": 0, "c": 0}),
        ({"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}, {"a": 0, "b": 1, "c": 0, "d": 0}),
        ({"a": [], "b": []}, {"a": 0, "b": 0}),
    ],
)
def test_rails_that_run_beside_each_other_have_lanes_of_their_own(needs, expected):
    assert lanes(needs) == expected


@pytest.mark.parametrize("number", [1, 2, MOST_POINTS, MOST_POINTS + 1, 10 * MOST_POINTS + 7])
def test_long_curves_are_thinned_and_keep_their_ends_and_mean(number):
    points = [(float(x), float(x % 7)) for x in range(number)]
    thin = thinned(points)
    assert len(thin) <= MOST_POINTS
    assert (thin[0], thin[-1]) == (points[0], points[-1])
    assert sum(y for _, y in thin) / len(thin) == pytest.approx(sum(y for _, y in points) / number, abs=0.2)


@pytest.mark.parametrize("values", [[0.0], [1.0, 1.0], [-3.0, 2.0], [1e-9, 1e9], [nan, 1.0], [inf, 1.0]])
def test_any_values_can_be_drawn(values):
    svg = curves([Curve(0, list(enumerate(values)))], "samples seen")
    assert "<svg" in svg
    assert "#0100" not in svg
