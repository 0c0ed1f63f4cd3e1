"""The local cluster's supervisor: starts Ray, records where it is, stops it when nobody has used it for a while.

Runs detached, in a session of its own, as `python -m orchestrator.engine.cluster_main`. It is itself a Ray driver, so
Ray's processes end with it, however it ends. "Used" means: another driver's job runs, or somebody touched
`cluster.keep`. A cluster that has lost its raylet or its GCS server is of no use: it ends at once, so that the next
one can start.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from orchestrator.engine import cluster
from orchestrator.io.home import home, private_folder
from orchestrator.io.redact import redact_own_output

IDLE_POLL_S = 5.0
ALIVE_POLL_S = 0.5


def main() -> None:
    """Run until idle or terminated. Exit code 0 at once when another supervisor lives."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--idle-s", type=float, required=True)
    parser.add_argument("--num-cpus", type=int)
    options = parser.parse_args()
    redact_own_output()
    directory = home()
    if cluster.lock(directory) is None:
        return
    record = directory / "cluster.json"
    record.unlink(missing_ok=True)
    try:
        dashboard_url, own_job = _start_ray(directory, options.idle_s, options.num_cpus)
        cluster.keep_alive()
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):  # after ray.init, which sets its own
            signal.signal(number, lambda *_: stop.set())
        if (died := _wait(stop, directory / "cluster.keep", dashboard_url, own_job, options.idle_s)) is not None:
            logging.getLogger(__name__).error("%s died: the cluster ends", died)
            record.unlink(missing_ok=True)
            os._exit(1)  # `ray.shutdown` would wait for what is dead; Ray's other processes end with this one
    finally:
        record.unlink(missing_ok=True)
        import ray

        ray.shutdown()


def _start_ray(directory: Path, idle_s: float, num_cpus: int | None) -> tuple[str, str]:
    """Start the head on free ports, its dashboard on the loopback address, and record it.

    Returns the dashboard's address and this driver's job id.
    """
    started = time.time()
    import ray

    context = _init(num_cpus)
    living = cluster.LocalCluster(
        address=ray.get_runtime_context().gcs_address,
        dashboard_url=f"http://{context.dashboard_url}",
        pid=os.getpid(),
        token_path=os.environ.get("RAY_AUTH_TOKEN_PATH", ""),
        python_path=os.environ["PYTHONPATH"],
        idle_s=idle_s,
        started=started,
    )
    cluster.record(living, directory)
    return living.dashboard_url, ray.get_runtime_context().get_job_id()


def _init(num_cpus: int | None) -> Any:
    """`ray.init`, once more if a busy machine did not bring the node up within Ray's fixed 30 s."""
    import ray

    address = cluster.address_to_listen_on()
    for last in (False, True):
        try:
            with cluster.loopback_kept(address):
                return ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    include_dashboard=True,
                    dashboard_host=cluster.LOOPBACK,
                    object_store_memory=cluster.object_store_bytes(),
                    log_to_driver=False,
                    configure_logging=False,
                    namespace="orch-cluster",
                    _node_ip_address=address,
                    _temp_dir=str(_sessions()),
                )
        except Exception as error:  # Ray raises a bare Exception here
            if last or "timed out during startup" not in str(error):
                raise
            ray.shutdown()
    raise AssertionError("unreachable")


def _sessions() -> Path:
    """The folder of Ray's sessions: logs, sockets, spilled objects. Ray opens it to all, its parent is ours alone.

    It is not below `tempfile`'s folder: the path of a socket has at most 103 characters.
    """
    ours = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / f"orch-ray-{os.getuid()}"
    return private_folder(ours, owned=True) / "ray"


def _in_use(dashboard_url: str, own_job: str) -> bool:
    """Whether another driver is connected; also where that cannot be told, for work may be going on."""
    from ray.util.state import list_jobs

    try:
        running = list_jobs(address=dashboard_url, filters=[("status", "=", "RUNNING")])
    except Exception:
        logging.getLogger(__name__).exception("cannot tell whether the cluster is in use")
        return True
    return any(job.job_id != own_job for job in running)


def _wait(stop: threading.Event, keep: Path, dashboard_url: str, own_job: str, idle_s: float) -> str | None:
    """Return when told to stop, when nothing has used the cluster for `idle_s` seconds, or with the name of an
    essential process that has died.
    """
    next_look = 0.0
    while not stop.wait(ALIVE_POLL_S):
        if (died := _dead()) is not None:
            return died
        if time.monotonic() < next_look:
            continue
        next_look = time.monotonic() + IDLE_POLL_S
        idle = time.time() - keep.stat().st_mtime
        if idle < idle_s / 2:
            continue
        if _in_use(dashboard_url, own_job):
            keep.touch()
        elif idle > idle_s:
            return None
    return None


def _dead() -> str | None:
    """A process without which the cluster does nothing more, if one has died.

    To ask reaps it: as a zombie its workers would take it for alive, and stay.
    """
    import ray

    node: Any = ray._private.worker._global_node
    dead = {kind for kind, _ in node.dead_processes()}
    return next((kind for kind in ("raylet", "gcs_server") if kind in dead), None)


if __name__ == "__main__":
    main()
