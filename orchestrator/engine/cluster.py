"""The Ray cluster a run uses: `RAY_ADDRESS` if set, else this user's local cluster, started when there is none.

The local cluster belongs to a supervisor process of its own (cluster_main.py), not to the run, so that a second submit
connects in a second and the dashboard stays open between runs. The supervisor holds a lock on
`<ORCH_HOME>/cluster.lock` as long as it lives; `cluster.json` beside it says where the cluster is and counts only
while that lock is held. It ends after an idle time or by `down()`. Token authentication is on: the token is the one
Ray would use, else one of our own in ORCH_HOME. All of its processes listen on the loopback address alone, unless
ORCH_CLUSTER_IP names another of this machine's.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchError, UserError
from orchestrator.io.home import home, private_file, private_folder
from orchestrator.training.threads import share_cores

START_TIMEOUT_S = 120
IDLE_MINUTES = 10.0
LOOPBACK = "127.0.0.1"
DIRECT_HOSTS = ("", "auto", "local", "127.0.0.1", "localhost")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class LocalCluster:
    """A living local cluster, as recorded in `cluster.json`. Times are Unix seconds; `python_path` is its workers'."""

    address: str
    dashboard_url: str
    pid: int
    token_path: str
    python_path: str
    idle_s: float
    started: float


@dataclass(frozen=True)
class Connection:
    """A driver's connection: GCS address, the dashboard's URL if it has one, and the local cluster if it is that."""

    address: str
    dashboard_url: str | None
    local: LocalCluster | None
    made_here: bool = True


def python_path() -> str:
    """`PYTHONPATH` with which another process imports this very `orchestrator`."""
    root = str(Path(__file__).resolve().parents[2])
    others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != root]
    return os.pathsep.join([root, *others])


def lock(directory: Path) -> int | None:
    """Take the supervisor's lock; its file descriptor, or None while a supervisor lives."""
    private_folder(directory)
    descriptor = os.open(directory / "cluster.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def recorded(directory: Path | None = None) -> LocalCluster | None:
    """The living local cluster, or None."""
    directory = directory or home()
    descriptor = lock(directory)
    if descriptor is not None:
        os.close(descriptor)
        return None
    try:
        return LocalCluster(**json.loads((directory / "cluster.json").read_text()))
    except FileNotFoundError:
        return None  # the supervisor is still starting, or just leaving


def record(cluster: LocalCluster, directory: Path) -> None:
    """Write `cluster.json` at once and whole (the supervisor does)."""
    part = directory / "cluster.json.part"
    part.write_text(json.dumps(asdict(cluster), indent=1))
    part.replace(directory / "cluster.json")


def token_path() -> Path:
    """The authentication token's file: `RAY_AUTH_TOKEN_PATH`, else Ray's own, else ORCH_HOME's, made if absent."""
    if named := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return Path(named).expanduser().absolute()
    ray_default = Path.home() / ".ray" / "auth_token"
    if ray_default.exists():
        with suppress(OSError):
            ray_default.chmod(0o600)  # Ray makes it for everybody to read
        return ray_default
    ours = private_folder(home()) / "auth_token"
    try:
        descriptor = os.open(ours, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return ours
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    return ours


def address_to_listen_on() -> str:
    """`ORCH_CLUSTER_IP`, for instance so that Prometheus reaches the metrics from elsewhere; else loopback."""
    return os.environ.get("ORCH_CLUSTER_IP") or LOOPBACK


@contextmanager
def loopback_kept(address: str) -> Iterator[None]:
    """While inside, `ray.init` takes a loopback address as it is.

    On Linux it puts the machine's own in its place, so that other nodes could join; on macOS, where Ray has no
    clusters, it does not. That switch is what is set here.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    if address.partition(":")[0] == LOOPBACK:
        ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def authentication(token: Path | str) -> dict[str, str]:
    """The environment with which Ray asks for and shows this token."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return {"RAY_AUTH_MODE": "token"}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}


def token_value(cluster: LocalCluster) -> str:
    """The token itself."""
    return os.environ.get("RAY_AUTH_TOKEN") or Path(cluster.token_path).read_text().strip()


def object_store_bytes() -> int:
    """Size of the object store: 400 MB, or less where shared memory is small.

    Data pass through files, not through it.
    """
    try:
        facts = os.statvfs("/dev/shm")
        room = facts.f_bavail * facts.f_frsize
    except FileNotFoundError:  # macOS
        room = 2 << 30
    return max(80 << 20, min(400 << 20, int(0.3 * room)))


def start(
    progress: Progress = lambda text: None, num_cpus: int | None = None, idle_minutes: float = IDLE_MINUTES
) -> LocalCluster:
    """Start the local cluster, or wait for the one that somebody is starting.

    OrchError with the log's end if it fails.
    """
    directory = private_folder(home())
    token = token_path()
    command = [sys.executable, "-m", "orchestrator.engine.cluster_main", "--idle-s", str(idle_minutes * 60)]
    command += [] if num_cpus is None else ["--num-cpus", str(num_cpus)]
    environment = {**os.environ, **authentication(token), "PYTHONPATH": python_path(), "ORCH_HOME": str(directory)}
    environment.pop("RAY_ADDRESS", None)
    environment.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address_to_listen_on() == LOOPBACK:
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # what `loopback_kept` sets, for all of its processes
    share_cores(environment)
    log = directory / "cluster.log"

    def spawn() -> subprocess.Popen[bytes]:
        with private_file(log) as output:
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    supervisor = spawn()
    progress("starting the local Ray cluster (about 10 s)")
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if (found := recorded(directory)) is not None:
            return found
        code = supervisor.poll()
        if code == 0 and (descriptor := lock(directory)) is not None:  # it met one that was just leaving
            os.close(descriptor)
            supervisor = spawn()
        elif code:
            break
        time.sleep(0.1)
    end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise OrchError(
        f"the local Ray cluster did not start; the end of {log}:\n{end}", "run `orch doctor`, then try again"
    )


def connect(progress: Progress = lambda text: None, num_cpus: int | None = None) -> Connection:
    """Connect this process as a Ray driver. UserError if `RAY_ADDRESS` cannot be reached."""
    if (running := sys.modules.get("ray")) is not None and running.is_initialized():
        context = running.get_runtime_context()
        return Connection(context.gcs_address, None, None, made_here=False)
    address = os.environ.get("RAY_ADDRESS")
    if address:
        progress(f"connecting to Ray at {address}")
        local = None
    else:
        local = recorded() or start(progress, num_cpus)
        keep_alive()
        address = local.address
        os.environ.update(authentication(local.token_path))
    import ray

    if local is not None and running is not None:
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        Config.initialize("")  # Ray read RAY_AUTH_MODE when it was imported, before it was set
        AuthenticationTokenLoader.instance().reset_cache()  # it may remember another cluster's
    try:
        with _sigterm_kept(), loopback_kept(address if local is not None else ""):
            context = ray.init(
                address=address,
                log_to_driver=False,
                configure_logging=False,
                runtime_env=_runtime_env(address, local),
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        if local is not None and recorded() != local:  # it ended meanwhile
            ray.shutdown()
            return connect(progress, num_cpus)
        remedy = "unset RAY_ADDRESS to use a local cluster" if local is None else "`orch cluster down`, then try again"
        raise UserError(f"cannot connect to Ray at {address}: {error}", remedy) from error
    return Connection(address, _url(context.dashboard_url), local)


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """`ray.init` sets a SIGTERM handler for good: the process may have one of its own, or want none."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def alive(connection: Connection) -> bool:
    """Whether the local cluster is the one that was connected to. Any other cluster is taken to live."""
    return connection.local is None or recorded() == connection.local


def reconnect(progress: Progress) -> Connection:
    """Leave a cluster that has ended, for the local one there is now or a fresh one.

    The fresh one starts meanwhile: to leave a dead cluster takes 5 to 15 s.
    """
    import ray

    with ThreadPoolExecutor(1) as beside:
        started = beside.submit(lambda: recorded() or start(progress))
        ray.shutdown()
        started.result()
    return connect(progress)


def disconnect(connection: Connection) -> None:
    """End this process's connection, if `connect` made it; the local cluster's idle time begins."""
    if connection.made_here:
        import ray

        ray.shutdown()
        if connection.local is not None:
            keep_alive()


def keep_alive() -> None:
    """Begin the local cluster's idle time anew."""
    (home() / "cluster.keep").touch()


def down(timeout_s: float = 30) -> bool:
    """Stop the local cluster; False if there is none. Only processes that the supervisor started end."""
    cluster = recorded()
    if cluster is None:
        return False
    os.kill(cluster.pid, signal.SIGINT)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (descriptor := lock(home())) is not None:
            os.close(descriptor)
            return True
        time.sleep(0.1)
    raise OrchError(f"the local cluster (process {cluster.pid}) does not stop", f"see {home() / 'cluster.log'}")


def _runtime_env(address: str, local: LocalCluster | None) -> dict[str, Any] | None:
    """How the workers get this package.

    None where they import it anyway: a runtime environment costs a second a worker.
    """
    if local is not None:
        return None if local.python_path == python_path() else {"env_vars": {"PYTHONPATH": python_path()}}
    host = address.removeprefix("ray://").rpartition(":")[0] if ":" in address else address
    if host in DIRECT_HOSTS:
        return {"env_vars": {"PYTHONPATH": python_path()}}
    return {"py_modules": [str(Path(__file__).resolve().parents[1])]}


def _url(dashboard: str | None) -> str | None:
    return None if not dashboard else dashboard if dashboard.startswith("http") else f"http://{dashboard}"
