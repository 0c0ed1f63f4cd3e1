"""A Ray cluster of several nodes: a stage leaves a node that is being drained, and waits until there is another."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator

import pytest
import toy_kinds
from test_engine_scheduler import Recorder, scheduler
from toy_kinds import count, wait

from orchestrator.store.artifacts import Store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(170)]


@pytest.fixture
def nodes(tmp_path, monkeypatch) -> Iterator:
    """A head without CPUs that this process is connected to, and a node with one."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    import ray
    from ray._raylet import AuthenticationTokenLoader, Config
    from ray.cluster_utils import Cluster

    Config.initialize("")  # Ray may have been imported under other variables
    AuthenticationTokenLoader.instance().reset_cache()
    several = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        ray.init(address=several.address, log_to_driver=False, configure_logging=False)
        several.add_node(num_cpus=1)
        yield several
    finally:
        ray.shutdown()
        several.shutdown()


def drain(address: str, node_id: str) -> None:
    """What `ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION` does."""
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = GcsClient(address=address).drain_node(node_id, reason, "a spot notice", 0)
    assert accepted, why


def test_a_stage_leaves_a_draining_node_and_goes_on_where_there_is_room(nodes, tmp_path):
    from orchestrator.engine.ray_executor import RayExecutor

    trace = tmp_path / "trace"
    trace.mkdir()
    (first,) = nodes.worker_nodes
    plan, seen = toy_kinds.plan({"a": ()}, trace, {"a": "waits_for_file"}), Recorder()
    running = scheduler(plan, Store.open(str(tmp_path / "store")), RayExecutor(), observer=seen)
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        wait(lambda: count(trace, "a") == 1)
        drain(nodes.address, first.node_id)
        wait(lambda: running.status["a"].preemptions == 1)
        wait(lambda: running.status["a"].attempts == 2)
        assert count(trace, "a") == 1  # no other node has a CPU
        nodes.add_node(num_cpus=1)
        wait(lambda: count(trace, "a") == 2)
        (trace / "go").touch()
        thread.join(60)
    finally:
        running.cancel()
        thread.join(60)
    assert running.status["a"].state == "done"
    assert (running.status["a"].attempts, running.status["a"].crashes) == (2, 0)
    assert len({path.read_text() for path in trace.glob("a-*")}) == 2
