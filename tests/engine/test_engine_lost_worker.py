"""Which errors of a stage mean that a process of its died, so that it goes on, and which are its own."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

from orchestrator.engine.worker import _lost_worker


def caused(cause: Exception) -> Exception:
    error = RuntimeError("the controller failed")
    error.__cause__ = cause
    return error


def of_ranks(*failures: Exception) -> WorkerGroupError:
    return WorkerGroupError("ranks failed", dict(enumerate(failures)))


def raised(error: Exception) -> UserExceptionWithTraceback:
    return UserExceptionWithTraceback(error, "its traceback")


HUNG_UP = RuntimeError("[transport/tcp/pair.cc:544] Connection closed by peer [127.0.0.1]:4242")


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ActorDiedError(), True),
        (caused(ActorDiedError()), True),
        (of_ranks(ActorDiedError()), True),
        (of_ranks(raised(HUNG_UP), WorkerHealthCheckFailedError("unhealthy", ActorDiedError())), True),
        (of_ranks(raised(HUNG_UP)), True),
        (HUNG_UP, False),
        (of_ranks(raised(ValueError("a mistake"))), False),
        (WorkerHealthCheckFailedError("what it raised cannot be pickled", TypeError("cannot pickle")), False),
    ],
)
def test_an_error_is_a_lost_worker_where_a_process_died_and_only_there(error, lost):
    assert (_lost_worker(error) is not None) == lost
