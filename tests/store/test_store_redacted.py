"""Whatever is kept or told goes through redaction on its way: a planted secret comes out of no writer."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from orchestrator.io.environment import Environment
from orchestrator.store.artifacts import Manifest, Store
from orchestrator.store.capture import captured_output
from orchestrator.store.events import EventReader, EventWriter
from orchestrator.store.logs import LogReader, LogWriter
from orchestrator.store.runs import create_run
from orchestrator.tracking import serve, spool

SECRET = "planted-0123456789"


@pytest.fixture(autouse=True)
def planted(monkeypatch, tmp_path):
    monkeypatch.setenv("PLANTED_PASSWORD", SECRET)
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "home"))


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.open(str(tmp_path / "store"))


def test_logs_also_where_a_secret_comes_in_two_writes(store):
    with LogWriter(store.storage, "f", 1) as log:
        log.write(f"one {SECRET}\ntwo {SECRET[:9]}")
        log.write(f"{SECRET[9:]}\nthree {SECRET}")
    assert LogReader(store.storage, "f").poll() == "one ***\ntwo ***\nthree ***\n"


def test_messages_of_events(store):
    with EventWriter(store.storage, "f", 1) as events:
        events.emit("message", level="info", text=f"uses {SECRET}")
    assert [event["text"] for event in EventReader(store.storage, "f").poll()] == ["uses ***"]


def test_recipes_plans_and_states_of_runs(store):
    run = create_run(store, "r", f"a: {SECRET}\n", {"a": SECRET})
    run.write_state({"reason": f"no {SECRET}"})
    assert (run.recipe(), run.plan(), run.state()) == ("a: ***\n", {"a": "***"}, {"reason": "no ***"})


def test_manifests():
    facts = {"payload": {}, "inputs": {}, "files": {}, "metrics": {}, "summary": {"said": SECRET}, "provenance": {}}
    names = dict.fromkeys(("kind", "fingerprint", "attempt", "stage", "run", "content_digest"), "x")
    manifest = Manifest(generation=1, started=0.0, finished=0.0, wall_s=0.0, **names, **facts)
    assert json.loads(manifest.to_json())["summary"] == {"said": "***"}


def test_the_spool_has_no_password_and_its_delivery_finds_it_in_the_environment(monkeypatch):
    uri = "https://me:pass@mlflow.example.org/x"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    written = spool.Spool(spool.Header("r", uri, "e", None, os.getpid()))
    written.append("text", text=f"a {SECRET}")
    written.close()
    kept = spool.header(written.folder)
    assert kept.tracking_uri == "https://***@mlflow.example.org/x"
    assert spool.address(kept) == uri
    assert "***" in (written.folder / "ops.jsonl").read_text()
    assert SECRET not in (written.folder / "ops.jsonl").read_text()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://elsewhere.example.org")
    assert spool.address(kept) == kept.tracking_uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert serve.serve("memory://x") == "https://mlflow.example.org/x"


def test_what_a_process_prints_is_redacted_on_both_ways(capfd):
    heard: list[str] = []
    with captured_output(heard.append):
        os.write(1, f"one {SECRET[:9]}".encode())
        os.write(2, f"{SECRET[9:]}\r50%\n".encode())
        subprocess.run([sys.executable, "-c", "import os; print('child', os.environ['PLANTED_PASSWORD'])"], check=True)
        os.write(1, b"end")
    assert "".join(heard) == "one ***\r50%\nchild ***\nend"
    assert capfd.readouterr().out == "".join(heard)


def test_an_environment_that_is_passed_on_shows_names_only(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    passed = Environment.to_pass_on()
    assert "AWS_SECRET_ACCESS_KEY" in repr(passed)
    assert SECRET not in repr(passed) + str({"environment": passed})
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    passed.enter()
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET
    assert repr(Environment.passed_on()) == repr(passed)
