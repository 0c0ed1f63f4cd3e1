"""Leases: one holder at a time, taken over when it is dead, released or silent, and it learns that it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from orchestrator.errors import LeaseLostError, OrchError
from orchestrator.store import leases
from orchestrator.store.artifacts import Store
from orchestrator.store.leases import Held, Lease, Owner, acquire, current_generation, ensure_current


@pytest.fixture
def store(any_root) -> Store:
    return Store.open(any_root)


@pytest.fixture
def local_store(tmp_path) -> Store:
    return Store.open(str(tmp_path / "root"))


def elsewhere(**fields) -> Owner:
    """A holder on another machine: whether it lives cannot be known from here."""
    return Owner(**{**asdict(template()), "host": "another-machine", "boot": "another boot", **fields})


def template() -> Owner:
    return Owner("id", "host", "boot", 1, "1", created=0.0, ttl_s=30)


def plant(store: Store, generation: int, owner: Owner) -> None:
    store.storage.put(f"leases/f/{generation}", json.dumps(asdict(owner)).encode())


def test_a_free_lease_is_taken_and_held_against_others(store):
    with acquire(store, "f") as lease:
        assert isinstance(lease, Lease)
        assert lease.generation == 1
        lease.check()
        other = acquire(store, "f")
        assert isinstance(other, Held)
        assert (other.by.pid, other.generation) == (os.getpid(), 1)
        assert 0 < other.expires_in_s <= 30
        assert isinstance(acquire(store, "other").release(), type(None))


def test_a_released_lease_is_taken_at_once_under_the_next_generation(store):
    for generation in (1, 2, 3):
        lease = acquire(store, "f")
        assert lease.generation == generation
        lease.release()
        lease.release()


def test_of_sixteen_that_acquire_one_holds(store):
    for taken_over in (False, True):
        barrier, results = threading.Barrier(16), []

        def compete(barrier=barrier, results=results) -> None:
            barrier.wait()
            results.append(acquire(store, "f"))

        threads = [threading.Thread(target=compete) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        holders = [r for r in results if isinstance(r, Lease)]
        assert len(results) == 16
        assert [holder.generation for holder in holders] == [2 if taken_over else 1]
        holders[0].release()


HOLDER = """
import sys, time
from orchestrator.store.artifacts import Store
from orchestrator.store.leases import acquire
lease = acquire(Store.open(sys.argv[1]), "f", ttl_s=3600)
print(lease.generation, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("place", ["local", "s3"])
@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie process"])
def test_the_lease_of_a_killed_process_is_taken_over_at_once(place, reaped, tmp_path, request):
    root = str(tmp_path) if place == "local" else request.getfixturevalue("s3_root")
    store = Store.open(root)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "1\n"
        held = acquire(store, "f")
        assert isinstance(held, Held)
        assert held.by.pid == holder.pid
        holder.kill()
        if reaped:
            holder.wait()
        else:
            os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
        begun = time.monotonic()
        lease = acquire(store, "f")
        assert isinstance(lease, Lease)
        assert lease.generation == 2
        assert time.monotonic() - begun < 5
        lease.release()
    finally:
        holder.kill()
        holder.communicate()


def test_a_process_id_that_was_given_again_is_not_the_holder(local_store):
    lease = acquire(local_store, "f")
    assert not lease.owner.is_dead()
    assert replace(lease.owner, pid_started="0").is_dead()
    assert not replace(lease.owner, pid_started="0", boot="another").is_dead()
    assert not replace(lease.owner, pid_started="0", host="another").is_dead()
    lease.release()


def test_a_silent_holder_elsewhere_is_overtaken_after_its_time_to_live_by_the_servers_clock(local_store, monkeypatch):
    monkeypatch.setattr(leases.time, "time", lambda: 0.0)  # the local clock is wrong; nothing may depend on it
    plant(local_store, 7, elsewhere(ttl_s=30))
    path = local_store.storage.local("leases/f/7")
    now = path.stat().st_mtime
    os.utime(path, (now - 20, now - 20))
    held = acquire(local_store, "f")
    assert isinstance(held, Held)
    assert 19 < held.age_s < 29
    assert 1 < held.expires_in_s < 11
    os.utime(path, (now - 31, now - 31))
    lease = acquire(local_store, "f")
    assert isinstance(lease, Lease)
    assert lease.generation == 8
    lease.release()


def test_looking_leaves_nothing_behind(store):
    with acquire(store, "f"):
        acquire(store, "f")
        assert [info.key for info in store.storage.list("leases")] == ["leases/f/1"]


def test_generations_are_compared_as_numbers(store):
    for generation in (1, 2, 9, 10):
        plant(store, generation, elsewhere(released=True))
    assert current_generation(store.storage, "f") == 10
    with acquire(store, "f") as lease:
        assert lease.generation == 11


def test_an_overtaken_holder_learns_it_when_it_checks(store):
    lease = acquire(store, "f")
    plant(store, 2, elsewhere())
    with pytest.raises(LeaseLostError, match="taken over"):
        lease.check()
    assert lease.lost.is_set()
    with pytest.raises(LeaseLostError):
        ensure_current(store.storage, "f", 1)
    ensure_current(store.storage, "f", 2)
    lease.release()
    assert isinstance(acquire(store, "f"), Held), "the loser's release must not free the winner's lease"


def test_an_overtaken_holder_learns_it_from_its_heartbeat(local_store):
    lease = acquire(local_store, "f", ttl_s=0.03)
    plant(local_store, lease.generation + 1, elsewhere())
    assert lease.lost.wait(10)
    lease.release()


def test_the_heartbeat_keeps_a_lease_alive_and_its_content_the_same(local_store):
    lease = acquire(local_store, "f", ttl_s=0.03)
    path = local_store.storage.local("leases/f/1")
    first, deadline = path.stat().st_mtime_ns, time.monotonic() + 10
    while path.stat().st_mtime_ns == first:
        assert time.monotonic() < deadline
    assert Owner(**json.loads(path.read_bytes())) == lease.owner
    lease.release()
    assert Owner(**json.loads(path.read_bytes())).released


@pytest.mark.parametrize("error", [OrchError("the store is down"), OSError("no such device"), ValueError("a bug")])
def test_a_heartbeat_survives_a_store_that_fails_for_a_while(error, local_store, monkeypatch, caplog):
    lease = acquire(local_store, "f", ttl_s=0.03)
    put, failed = type(lease._storage).put, threading.Event()

    def flaky(storage, key, data):
        if not failed.is_set():
            failed.set()
            raise error
        put(storage, key, data)

    path = local_store.storage.local("leases/f/1")
    monkeypatch.setattr(type(lease._storage), "put", flaky)
    assert failed.wait(10)
    before, deadline = path.stat().st_mtime_ns, time.monotonic() + 10
    while path.stat().st_mtime_ns == before:
        assert time.monotonic() < deadline
    assert not lease.lost.is_set()
    lease.release()


def test_a_create_whose_answer_was_lost_still_counts_as_ours(local_store, monkeypatch):
    create = type(local_store.storage).create
    monkeypatch.setattr(type(local_store.storage), "create", lambda *a: create(*a) and False)
    lease = acquire(local_store, "f")
    assert isinstance(lease, Lease)
    assert lease.generation == 1
    lease.release()
