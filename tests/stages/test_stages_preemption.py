"""SIGTERM as a stop request: heeded once while a stage is at work, the process's own affair otherwise."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

PROLOGUE = """
import os, signal
from orchestrator.stages.preemption import Notice
told_before = []
{before}
notice = Notice.installed()
assert Notice.installed() is notice
terminate = lambda: os.kill(os.getpid(), signal.SIGTERM)
"""
OWN = "signal.signal(signal.SIGTERM, lambda number, frame: told_before.append(number))"


def outcome(body: str, before: str = "") -> tuple[int, str]:
    """Exit code and output of a process of its own: a signal must not end the tests."""
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE.format(before=before) + body], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


def test_sigterm_while_a_stage_is_at_work_is_a_stop_request():
    body = """
with notice.heeded() as told:
    assert told() is None
    terminate()
    print(told())
"""
    assert outcome(body) == (0, "preempted\n")


@pytest.mark.parametrize(
    "body",
    [
        "terminate()",
        "with notice.heeded(): pass\nterminate()",
        "with notice.heeded():\n    terminate()\n    terminate()",
    ],
    ids=["never at work", "no longer at work", "told twice"],
)
def test_otherwise_sigterm_goes_where_it_went_before(body):
    assert outcome(body + "\nprint('alive')") == (-signal.SIGTERM, "")
    assert outcome(body + "\nprint(told_before)", OWN) == (0, f"[{int(signal.SIGTERM)}]\n")


def test_a_process_that_was_told_says_so_to_its_next_stage_too():
    body = """
with notice.heeded():
    terminate()
with notice.heeded() as told:
    print(told())
"""
    assert outcome(body) == (0, "preempted\n")


def test_importing_it_sets_no_handler():
    before = signal.getsignal(signal.SIGTERM)
    import orchestrator.stages.preemption

    assert orchestrator.stages.preemption
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("local_rank", "reason"), [(0, "preempted"), (1, None)])
def test_a_nodes_first_rank_hears_that_its_node_is_being_drained(local_rank, reason, tmp_path, monkeypatch):
    from orchestrator.stages.train import run
    from orchestrator.store.artifacts import Store

    asked = threading.Event()
    monkeypatch.setattr(run, "node_is_draining", lambda: asked.set() or True)
    monkeypatch.setattr(run, "STOP_POLL_S", 0.01)
    place = run._Exchange(Store.open(str(tmp_path / "store")).storage, "f" * 64, 1)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with place.watched(rank=3, local_rank=local_rank) as should_stop:
            assert asked.wait(5 if local_rank == 0 else 0.1) == (local_rank == 0)
        assert should_stop() == reason
    finally:
        signal.signal(signal.SIGTERM, before)
