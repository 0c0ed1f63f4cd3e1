"""What a person sees: progress from events, plain lines."""

from __future__ import annotations

import io
import time

import pytest
import toy_kinds
from rich.console import Console

from orchestrator.engine.observe import Observer, Observers, StageStatus
from orchestrator.engine.progress import Progress, duration
from orchestrator.engine.view import LiveView, PlainView

NOW = time.time() + 3600  # later than any view here


def event(type: str, t: float = 0.0, **fields):
    return {"t": NOW + t, "type": type, **fields}


def test_progress_gives_share_rate_and_time_left():
    progress = Progress()
    progress.take(event("progress", 100.0, done=0, total=1000, unit="samples"))
    progress.take(event("progress", 110.0, done=250, total=1000, unit="samples"))
    assert progress.share == 0.25
    assert progress.left_s == pytest.approx(30)
    assert progress.numbers() == "25 samples/s  30 s left"


def test_time_left_is_not_measured_across_a_resume():
    progress = Progress()
    progress.take(event("progress", 0.0, done=0, total=1000))
    progress.take(event("resumed", 50.0, samples=500))
    progress.take(event("progress", 50.0, done=500, total=1000))
    assert progress.left_s is None
    progress.take(event("progress", 60.0, done=600, total=1000))
    assert progress.left_s == pytest.approx(40)


def test_reports_show_loss_and_measured_samples_per_second():
    progress = Progress()
    progress.take(event("report", samples=64, metrics={"loss": 2.34567, "samples_per_s": 1234.4}))
    assert progress.numbers() == "1,234 samples/s  loss 2.346"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (61, "1:01"), (3725, "1:02:05")])
def test_durations_read_as_people_write_them(seconds, text):
    assert duration(seconds) == text


def test_plain_view_says_every_state_and_about_every_tenth(tmp_path):
    output = io.StringIO()
    view = PlainView(Console(file=output, width=200))
    node = toy_kinds.plan({"a": ()}, tmp_path).nodes["a"]
    view.stage_state(node, StageStatus("a", "toy", "f" * 64, state="running"))
    for done in range(0, 1001, 10):
        view.stage_event(node, event("progress", float(done), done=done, total=1000, unit="samples"))
    view.stage_event(node, event("message", level="warning", text="[odd] text"))
    view.stage_state(node, StageStatus("a", "toy", "f" * 64, "failed", "it broke", "mend it"))
    lines = [line.split(" ", 1)[1] for line in output.getvalue().splitlines()]
    assert lines[0] == "a: running"
    assert sum("%" in line for line in lines) == 10
    assert lines[-3:] == ["a: [odd] text", "a: failed  it broke", "a: mend it"]


def test_live_view_has_a_line_a_stage(tmp_path):
    output = io.StringIO()
    view = LiveView(Console(file=output, width=120, force_terminal=True))
    plan = toy_kinds.plan({"first": (), "second": ("first",)}, tmp_path)
    view.run_started(plan, "r1", {})
    view.stage_state(plan.nodes["first"], StageStatus("first", "toy", "f", "running"))
    view.stage_event(plan.nodes["first"], event("progress", 1.0, done=5, total=10, unit="samples"))
    view.close()
    shown = output.getvalue()
    assert "first" in shown
    assert "waiting" in shown
    assert "running" in shown


def test_an_observer_that_raises_is_dropped_and_others_go_on():
    class Broken(Observer):
        def tick(self) -> None:
            raise RuntimeError("no disk")

    class Counting(Observer):
        ticks = 0

        def tick(self) -> None:
            self.ticks += 1

    said: list[str] = []
    counting = Counting()
    observers = Observers([Broken(), counting], said.append)
    observers.tell("tick")
    observers.tell("tick")
    assert counting.ticks == 2
    assert said == ["Broken is switched off: RuntimeError: no disk"]


def test_what_an_earlier_submission_told_is_not_said_again(tmp_path):
    file, node = io.StringIO(), toy_kinds.plan({"first": ()}, tmp_path).nodes["first"]
    view = PlainView(Console(file=file))
    view.stage_event(node, {"t": 0.0, "type": "message", "level": "info", "text": "long ago"})
    view.stage_event(node, {"t": 0.0, "type": "resumed", "samples": 1280, "generation": 1})
    assert "long ago" not in file.getvalue()
    assert "resumed at 1,280 samples" in file.getvalue()
