"""Delivery goes wrong in every way that was thought of; MLflow has it all in the end, and nothing twice."""

from __future__ import annotations

import errno
import http.server
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tracking_toy import SMALL, Tracker, everything, points, report, stage_run, submission

from orchestrator.store.process import this_process
from orchestrator.tracking import spool

pytestmark = pytest.mark.timeout(120)

LOSSES = {100: 2.0, 200: 1.0, 300: 0.5}


class Killed(BaseException):
    """Stands for kill -9: no handler of errors sees it."""


def delivery(folder):
    from orchestrator.tracking.deliver import Delivery

    return Delivery(folder)


def deliver(patience_s: float = 0) -> bool:
    from orchestrator.tracking.deliver import deliver

    return deliver(patience_s)


def readdressed(folder, uri: str) -> str:
    """Send a spool elsewhere; what its header was."""
    before = (folder / "header.json").read_text()
    (folder / "header.json").write_text(json.dumps(json.loads(before) | {"tracking_uri": uri}))
    return before


@pytest.fixture
def undisturbed(tmp_path, monkeypatch, client, empty_database) -> dict:
    """What MLflow has of the submission when nothing goes wrong."""
    from mlflow import MlflowClient

    submission("run-1", str(tmp_path / "store"), losses=LOSSES)
    (folder,) = spool.pending()
    shutil.copytree(folder, tmp_path / "kept")
    copy = tmp_path / "undisturbed.db"
    shutil.copy(empty_database, copy)
    readdressed(folder, f"sqlite:///{copy}")
    assert deliver()
    shutil.copytree(tmp_path / "kept", folder)
    return everything(MlflowClient(tracking_uri=f"sqlite:///{copy}"))


def test_a_deliverer_killed_after_each_operation_and_within_it_leaves_the_same_in_mlflow(
    client, undisturbed, monkeypatch
):
    """Killed after every single call that changes something on the server, and before every note of the cursor."""
    from orchestrator.tracking import deliver as module

    (folder,) = spool.pending()
    killed: set[tuple] = set()
    changing = ("create_", "log_", "set_", "update_", "finalize_")

    class Dying:
        """The client, which dies after each call that changes something, once."""

        def __init__(self, client, delivery) -> None:
            self.client, self.delivery, self.calls = client, delivery, 0

        def __getattr__(self, name):
            method = getattr(self.client, name)

            def call(*arguments, **named):
                answer = method(*arguments, **named)
                self.calls += 1
                once(self.delivery.offset, name, self.calls)
                return answer

            return call if name.startswith(changing) else method

    def once(*where) -> None:
        if where not in killed:
            killed.add(where)
            raise Killed

    save = module.Delivery._save

    def dying_save(self, offset: int) -> None:
        self.client.calls = 0
        once("cursor", offset)
        save(self, offset)

    monkeypatch.setattr(module.Delivery, "_save", dying_save)
    while True:
        living = delivery(folder)
        living.client = Dying(living.client, living)
        try:
            living.step()
            if living.finished():
                break
        except Killed:
            continue
    assert len(killed) > 60
    assert everything(client) == undisturbed


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that says the same to everybody."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def refusing() -> Iterator[str]:
    yield "http://127.0.0.1:9"


AWAY = {
    "refuses": refusing,
    "never answers": silent,
    "error 500": lambda: answering(500, b'{"error_code": "INTERNAL_ERROR", "message": "no"}'),
    "error 503": lambda: answering(503, b"<html>later</html>"),
    "not MLflow": lambda: answering(404, b"<html>what?</html>"),
    "not allowed": lambda: answering(401, b"<html>who?</html>"),
    "too many": lambda: answering(429, b'{"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "slowly"}'),
    "nonsense": lambda: answering(200, b"<html>hello</html>"),
}


@pytest.mark.parametrize("how", AWAY)
def test_whatever_is_wrong_with_a_server_its_spool_stays_and_others_are_delivered(how, client, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    store = str(tmp_path / "store")
    submission("run-1", store, losses=LOSSES)
    (first,) = spool.pending()
    with AWAY[how]() as uri:
        good = readdressed(first, uri)
        submission("run-2", store, losses={})
        assert not deliver()
        assert spool.pending() == [first]
        (waiting,) = spool.waiting()
        assert (waiting.run, waiting.tracking_uri) == ("run-1", uri)
        assert waiting.operations > 20
        assert waiting.error
        assert "`orch ui`" in waiting.text()
        assert spool.wait_delivered("run-1", timeout_s=60) is False  # says so at once
    (first / "header.json").write_text(good)
    assert deliver()
    (own,) = stage_run(client, "small-fingerprint")
    assert points(client, own) == list(LOSSES.items())
    assert not spool.waiting()


def test_a_server_that_goes_away_in_the_middle_gets_the_rest_later(client, undisturbed, monkeypatch):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    calls, log_batch = [], MlflowClient.log_batch

    def flaky(self, *arguments, **named):
        calls.append(1)
        if len(calls) % 3:
            raise MlflowException("API request failed")
        return log_batch(self, *arguments, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", flaky)
    monkeypatch.setattr("orchestrator.tracking.deliver.MAX_PAUSE_S", 0.0)
    monkeypatch.setattr("orchestrator.tracking.deliver.IDLE_S", 0.01)
    assert deliver(patience_s=60)
    assert len(calls) > 10
    assert everything(client) == undisturbed


def test_what_the_server_refuses_for_good_is_skipped_and_everything_else_delivered(client, tmp_path, capsys):
    store = str(tmp_path / "store")
    submission("run-1", store, losses={100: 2.0})
    assert deliver()
    (small,) = stage_run(client, "small-fingerprint")
    tracker = begun(store, "run-2")
    tracker.stage_event(SMALL, report(200, 1.0))
    (folder,) = spool.pending()
    living = delivery(folder)
    living.step()
    client.delete_run(small.info.run_id)  # by somebody, in the middle
    tracker.stage_event(SMALL, report(300, 0.5))
    tracker.attach("", "summary.txt", "still told")
    tracker.run_finished(ok=True)
    assert deliver()
    assert "skipped points" in capsys.readouterr().out
    submitted = [r for r in client.search_runs([small.info.experiment_id]) if r.data.tags["orch.run"] == "run-2"]
    assert any(a.path == "summary.txt" for r in submitted for a in client.list_artifacts(r.info.run_id))


def begun(store: str, run: str) -> Tracker:
    """A submission whose stage `small` has just begun."""
    from tracking_toy import PLAN

    tracker = Tracker(store)
    tracker.run_started(PLAN, run, {})
    tracker.stage_started(SMALL)
    return tracker


def later(samples: int, loss: float, t: float) -> dict:
    return report(samples, loss) | {"t": t}


def test_a_training_resumed_elsewhere_has_one_run_and_one_history_whoever_is_delivered_first(
    client, tmp_path, monkeypatch
):
    """The first machine is cut off at 300 samples and told late; the second goes on from 200 and computes 300 anew."""
    store = str(tmp_path / "store")
    homes = [tmp_path / "one", tmp_path / "two"]
    monkeypatch.setenv("ORCH_HOME", str(homes[0]))
    first = begun(store, "20260101-000000-a")
    for samples, loss in LOSSES.items():
        first.stage_event(SMALL, later(samples, loss, 1000.0 + samples))
    (early,) = spool.pending()
    one = delivery(early)
    living = list(spool.read(early, 0))
    assert len(living) > 4
    one.step()
    first.stage_event(SMALL, later(400, 0.45, 1400.0))  # written, not delivered
    monkeypatch.setenv("ORCH_HOME", str(homes[1]))
    second = begun(store, "20260102-000000-b")
    for samples, t in ((100, 1100.0), (200, 1200.0), (300, 5300.0), (400, 5400.0), (500, 5500.0)):
        second.stage_event(SMALL, later(samples, 1 / samples, t))
    (late,) = spool.pending()
    two = delivery(late)
    two.step()
    (own,) = stage_run(client, "small-fingerprint")
    assert own.info.status == "RUNNING"
    one.step()  # points that the server has from the other machine by now
    first.stage_failed(SMALL, "killed", stopped=True)
    first.run_finished(ok=False)
    one.step()
    assert client.get_run(own.info.run_id).info.status == "RUNNING", "the later submission has it"
    second.stage_event(SMALL, later(600, 0.1, 5600.0))
    second.run_finished(ok=True)
    two.step()
    steps = [step for step, _ in points(client, own)]
    assert steps == [100, 200, 300, 400, 500, 600]
    assert len(stage_run(client, "small-fingerprint")) == 1


def test_a_stopped_submission_told_late_does_not_undo_a_finished_stage(client, tmp_path):
    store = str(tmp_path / "store")
    tracker = begun(store, "20260101-000000-a")
    tracker.stage_failed(SMALL, "cancelled", stopped=True)
    tracker.run_finished(ok=False, stopped=True)
    (old,) = spool.pending()
    shutil.move(old, tmp_path / "late")
    submission("20260102-000000-b", store, losses=LOSSES)
    assert deliver()
    shutil.move(tmp_path / "late", old)
    assert deliver()
    (own,) = stage_run(client, "small-fingerprint")
    assert own.info.status == "FINISHED"


def test_points_of_one_step_are_told_once_whatever_their_time(client, tmp_path):
    tracker = begun(str(tmp_path / "store"), "run-1")
    for t in (1.0, 2.0, 3.0):
        for samples, loss in LOSSES.items():
            tracker.stage_event(SMALL, later(samples, loss + t, t))
    tracker.run_finished(ok=True)
    assert deliver()
    (own,) = stage_run(client, "small-fingerprint")
    assert points(client, own) == [(samples, loss + 1.0) for samples, loss in LOSSES.items()]


def test_a_final_metric_does_not_double_the_last_point_of_its_curve(client, tmp_path):
    """After a resume the last report is computed anew: its speed differs from what the curve has."""
    from tracking_toy import manifest

    tracker = begun(str(tmp_path / "store"), "run-1")
    tracker.stage_event(SMALL, report(200, 1.0) | {"metrics": {"loss": 1.0, "samples_per_s": 90.0}})
    tracker.stage_finished(SMALL, manifest(SMALL, {"loss": 1.0, "samples_per_s": 97.0}), cached=False)
    tracker.run_finished(ok=True)
    assert deliver()
    (own,) = stage_run(client, "small-fingerprint")
    assert points(client, own, "samples_per_s") == [(200, 90.0)]


def test_a_killed_submitters_torn_last_line_and_unreadable_ones_are_passed_over(client, tmp_path, monkeypatch, capsys):
    tracker = begun(str(tmp_path / "store"), "run-1")
    tracker.stage_event(SMALL, report(100, 2.0))
    (folder,) = spool.pending()
    with (folder / "ops.jsonl").open("a") as file:
        file.write('{"op":"points","finger\x00\n')
    tracker.stage_event(SMALL, report(200, 1.0))
    with (folder / "ops.jsonl").open("a") as file:
        file.write('{"op":"end","key":"run:run')
    dead = this_process().record() | {"pid_started": "1"}  # this pid, given to another process
    about = json.loads((folder / "header.json").read_text()) | {"submitter": dead}
    (folder / "header.json").write_text(json.dumps(about))
    assert spool.is_left(folder)
    assert deliver()
    assert spool.pending() == []
    assert "cannot be read" in capsys.readouterr().out
    (own,) = stage_run(client, "small-fingerprint")
    assert points(client, own) == [(100, 2.0), (200, 1.0)]
    assert own.info.status == "KILLED"


def test_a_spool_of_another_machine_is_left_only_after_a_long_silence(client, tmp_path):
    begun(str(tmp_path / "store"), "run-1")
    (folder,) = spool.pending()
    about = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps(about | {"submitter": about["submitter"] | {"host": "elsewhere"}}))
    assert not spool.is_left(folder)
    os.utime(folder / "ops.jsonl", (0, 0))
    assert spool.is_left(folder)


def test_a_full_disk_stops_nothing_and_what_could_not_be_written_is_written_later(client, tmp_path, monkeypatch):
    tracker = begun(str(tmp_path / "store"), "run-1")
    write, room = os.write, [50]

    def full(file: int, data: bytes) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = write(file, data[: room[0]])
        room[0] -= count
        return count

    monkeypatch.setattr("orchestrator.tracking.spool.os.write", full)
    for samples, loss in LOSSES.items():
        tracker.stage_event(SMALL, report(samples, loss))
    room[0] = 1 << 20
    tracker.run_finished(ok=True)
    monkeypatch.undo()
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "home"))
    assert tracker.spool is not None
    assert tracker.spool.dropped == 0
    assert deliver()
    (own,) = stage_run(client, "small-fingerprint")
    assert points(client, own) == list(LOSSES.items())


def test_a_disk_that_is_full_from_the_start_costs_the_submission_nothing_but_memory(client, tmp_path, monkeypatch):
    monkeypatch.setenv("ORCH_HOME", "/proc/no-such-folder")
    monkeypatch.setattr(spool, "MAX_WAITING_BYTES", 5000)
    tracker = begun(str(tmp_path / "store"), "run-1")
    for samples in range(1000):
        tracker.stage_event(SMALL, report(samples, 1.0))
    tracker.run_finished(ok=True)
    assert tracker.spool is not None
    assert tracker.spool.dropped > 900


def test_a_spool_is_bounded_and_only_points_of_curves_are_dropped(client, tmp_path, monkeypatch):
    tracker = begun(str(tmp_path / "store"), "run-1")
    monkeypatch.setattr(spool, "MAX_SPOOL_BYTES", 20_000)
    for samples in range(1, 1001):
        tracker.stage_event(SMALL, report(samples, 1.0))
    tracker.attach("", "summary.txt", "told")
    tracker.run_finished(ok=True)
    (folder,) = spool.pending()
    assert (folder / "ops.jsonl").stat().st_size < 25_000
    assert [op["op"] for op, _ in spool.read(folder, 0)][-2:] == ["text", "end"]


def test_a_deliverer_that_was_killed_is_started_again(client, tmp_path, monkeypatch):
    started = []

    class Ended:
        def poll(self) -> int:
            return -9

    monkeypatch.setattr("orchestrator.tracking.tracker.start_delivery", lambda: started.append(1) or Ended())
    monkeypatch.setattr("orchestrator.tracking.tracker.LOOK_EVERY_S", 0.0)
    tracker = begun(str(tmp_path / "store"), "run-1")
    tracker.tick()
    assert len(started) == 2
    monkeypatch.setattr("orchestrator.tracking.tracker.is_delivering", lambda: True)
    tracker.tick()
    assert len(started) == 2
