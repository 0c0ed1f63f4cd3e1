"""A person finds a stage in Ray's dashboard at once: over HTTP, with the token, while it runs."""

from __future__ import annotations

import signal
import urllib.error
import urllib.request

import pytest
from system_orch import DEMO, QUARTER, overrides, wait

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240, func_only=True)]

LONG = 5000
"""Steps: longer than the test looks."""


@pytest.fixture
def running(orch, copy):
    """Starts a long training of `small`; it is stopped at the end."""
    started = []

    def start(*more: str):
        steps = {f"{stage}__steps": count for stage, count in (QUARTER | {"small": LONG}).items()}
        words = ("submit", DEMO, *overrides(**steps), *more, "--until", "small", "--store", copy, "--no-mlflow")
        started.append(orch.start(*words))
        return started[0]

    yield start
    for process in started:
        process.send_signal(signal.SIGINT)
        orch.end(process, exit_code=130, timeout_s=90)


def test_a_stage_in_a_warm_actor_is_a_running_task_of_its_name(orch, running):
    process = running()

    def task() -> dict | None:
        assert process.poll() is None, process.communicate()
        answer = orch.dashboard("/api/v0/tasks?filter_keys=name&filter_predicates=%3D&filter_values=small&limit=100")
        tasks = answer["data"]["result"]["result"] if answer else []
        return next((each for each in tasks if each["state"] == "RUNNING"), None)

    found = wait(task, 90, "a running task called small")
    assert found["name"] == "small"
    assert found["type"] == "ACTOR_TASK"
    wait(lambda: orch.workers("small"), 30, "a process called small")


def test_a_stage_of_several_workers_is_a_train_run_whose_name_begins_with_the_stage(orch, running):
    process = running("-s", "stages.small.resources.workers=2", "-s", "stages.small.resources.cpus=2")

    def trains() -> dict | None:
        assert process.poll() is None, process.communicate()
        answer = orch.dashboard("/api/train/v2/runs/v1")
        runs = answer["train_runs"] if answer else []
        return next((each for each in runs if each["name"].startswith("small-") and each["status"] == "RUNNING"), None)

    wait(trains, 120, "a running Train run called small-...")


def test_without_the_token_the_dashboard_tells_nothing(orch, demo):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(orch.cluster().dashboard_url + "/api/v0/tasks", timeout=10)
    assert refused.value.code in (401, 403)
