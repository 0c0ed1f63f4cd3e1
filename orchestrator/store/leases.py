"""Leases: who may work on a fingerprint now.

    <root>/leases/<fingerprint>/<generation>     created if absent; the holder alone rewrites it, as its heartbeat

The highest generation holds; its number is the fencing token that publication, checkpoints and events carry. A lease
may be taken over when it was released, when its holder ran on this very machine (host, boot, process namespace) and
is dead, or when its heartbeat is older than its time to live by the server's clock: the age is read off a probe
object written now, never off a local clock. A holder that was overtaken learns it from its heartbeat (`lost`) or
from `check`; until then it can write only under its own generation, where nobody takes it for finished.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from dataclasses import asdict, dataclass, replace

from orchestrator.errors import LeaseLostError, OrchError
from orchestrator.io.storage import Storage
from orchestrator.store.artifacts import Store
from orchestrator.store.process import Process, this_process

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """Who holds a lease, on which machine, and since when (Unix seconds by the owner's clock, for people only)."""

    id: str
    host: str
    boot: str
    """The machine's boot and the process namespace: equal means that process ids can be compared."""
    pid: int
    pid_started: str
    created: float
    ttl_s: float
    released: bool = False

    def is_dead(self) -> bool:
        """True where it can be known here that the process is gone; False if alive or on another machine."""
        return Process(self.host, self.boot, self.pid, self.pid_started).alive() is False


@dataclass(frozen=True)
class Held:
    """A lease that somebody else has: who, which generation, and how old its last heartbeat is."""

    by: Owner
    generation: int
    age_s: float

    @property
    def expires_in_s(self) -> float:
        """Seconds until it may be taken over if no heartbeat comes."""
        return max(0.0, self.by.ttl_s - self.age_s)


class Lease:
    """A lease that this process holds, kept alive by a thread until `release`. A context manager."""

    def __init__(self, storage: Storage, fingerprint: str, generation: int, owner: Owner) -> None:
        self.fingerprint = fingerprint
        self.generation = generation
        self.owner = owner
        self.lost = threading.Event()
        """Set when another process has taken over; noticed at the latest one heartbeat after."""
        self._storage = storage
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease-{fingerprint[:8]}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """LeaseLostError if another process has taken over."""
        if self.lost.is_set():
            raise _lost(self.fingerprint, self.generation)
        try:
            ensure_current(self._storage, self.fingerprint, self.generation)
        except LeaseLostError:
            self.lost.set()
            raise

    def release(self) -> None:
        """Let others work on it at once; may be called twice. If the store is down, the lease expires by itself."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._thread.join()
        try:
            self._write(replace(self.owner, released=True))
        except OrchError as error:
            log.warning("lease of %s: not released: %s", self.fingerprint, error)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def _write(self, owner: Owner) -> None:
        self._storage.put(_key(self.fingerprint, self.generation), json.dumps(asdict(owner), sort_keys=True).encode())

    def _run(self) -> None:
        while not self._stopped.wait(self.owner.ttl_s / 3):
            try:
                self.check()
                self._write(self.owner)
            except LeaseLostError:
                return
            except Exception as error:  # the store may come back; whoever publishes checks again
                log.warning("lease of %s: no heartbeat: %s", self.fingerprint, error)


def acquire(store: Store, fingerprint: str, ttl_s: float = 30, id: str | None = None) -> Lease | Held:
    """Take the lease of a fingerprint under the next generation, or say who has it.

    Args:
        store: where.
        fingerprint: of the stage.
        ttl_s: seconds without a heartbeat after which another machine may take over; a heartbeat comes each third.
        id: names this one intention; who tries again under it after a failure gets what his first try had won.
    """
    storage = store.storage
    owner = Owner(
        id=id or secrets.token_hex(8),
        **this_process().record(),
        created=time.time(),
        ttl_s=ttl_s,
    )
    data = json.dumps(asdict(owner), sort_keys=True).encode()
    while True:
        generation = current_generation(storage, fingerprint)
        if generation:
            held = _held(storage, fingerprint, generation)
            if held is not None:  # it may be our own first try, which won although its answer was lost
                return Lease(storage, fingerprint, generation, held.by) if held.by.id == owner.id else held
        if storage.create(_key(fingerprint, generation + 1), data):
            return Lease(storage, fingerprint, generation + 1, owner)


def holder(storage: Storage, fingerprint: str) -> Held | None:
    """Who works on a fingerprint now, or None; takes nothing."""
    generation = current_generation(storage, fingerprint)
    return _held(storage, fingerprint, generation) if generation else None


def is_released(lease: bytes) -> bool:
    """Whether a lease, as it is stored, is nobody's: given back, or torn by a power cut, which ended its holder."""
    by = _owner(lease)
    return by is None or by.released


def current_generation(storage: Storage, fingerprint: str) -> int:
    """The highest generation of a fingerprint's lease; 0 if it never had one."""
    names = (info.key.rpartition("/")[2] for info in storage.list(f"leases/{fingerprint}"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def ensure_current(storage: Storage, fingerprint: str, generation: int) -> None:
    """LeaseLostError if a higher generation than this exists; usable in any process (`Store.publish(check=...)`)."""
    if current_generation(storage, fingerprint) > generation:
        raise _lost(fingerprint, generation)


def _held(storage: Storage, fingerprint: str, generation: int) -> Held | None:
    """Who holds that generation; None if it may be taken over."""
    key = _key(fingerprint, generation)
    by = _owner(storage.get(key))
    if by is None or by.released or by.is_dead():
        return None
    heartbeat = storage.head(key)
    assert heartbeat is not None, "leases are not deleted"
    probe_key = f"leases/{fingerprint}/probe-{secrets.token_hex(8)}"
    storage.put(probe_key, b"")
    now = storage.head(probe_key)
    storage.delete(probe_key)
    assert now is not None
    age_s = now.modified - heartbeat.modified
    return None if age_s > by.ttl_s else Held(by, generation, max(0.0, age_s))


def _owner(lease: bytes) -> Owner | None:
    """Who wrote a lease; None if a power cut has torn it."""
    try:
        return Owner(**json.loads(lease))
    except (ValueError, TypeError):
        return None


def _key(fingerprint: str, generation: int) -> str:
    return f"leases/{fingerprint}/{generation}"


def _lost(fingerprint: str, generation: int) -> LeaseLostError:
    return LeaseLostError(
        f"another process has taken over {fingerprint[:12]} (this one had generation {generation})",
        "nothing is lost: the other process goes on from the last checkpoint; see `orch status`",
    )
