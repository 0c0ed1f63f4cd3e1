"""A real S3 server behind a proxy that spoils requests: one fault is absorbed by the retries of `io`, an outage fails
the run clearly, and submitting again gives what an undisturbed run gives. Nothing cut off is ever taken for whole.

By default a sample; `-m slow` has each of the first 200 requests of a run with each kind of fault.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from datetime import timedelta
from functools import partial

import pytest
from faults import STRICT, World
from faults_proxy import KINDS, S3Proxy
from tables import holds, plan_of, submit_again, undisturbed

from orchestrator.engine import publish
from orchestrator.errors import OrchError, StoreAway
from orchestrator.io import s3
from orchestrator.io.storage import Storage

pytestmark = pytest.mark.timeout(120)

SHAPE = "matrix"
NUM_REQUESTS = 200
QUICK_RETRY = {
    "max_retries": 4,
    "backoff": {
        "init_backoff": timedelta(milliseconds=2),
        "max_backoff": timedelta(milliseconds=10),
        "base": 2,
    },
    "retry_timeout": timedelta(seconds=5),
}


@pytest.fixture
def proxy(s3_env, monkeypatch) -> Iterator[S3Proxy]:
    """The proxy, with this process's storages going through it, and quick retries."""
    monkeypatch.setattr(s3, "RETRY", QUICK_RETRY)
    monkeypatch.setattr(s3, "READ_TIMEOUT", timedelta(seconds=1))
    monkeypatch.setattr(publish, "PAUSE_S", 0.01)
    monkeypatch.setattr(publish, "PATIENCE_S", 0.1)
    with S3Proxy(s3_env.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """An undisturbed run in memory: the same must come out on S3."""
    return undisturbed(SHAPE, f"memory://{secrets.token_hex(6)}", tmp_path_factory.mktemp("truth") / "trace")


def one_fault(number: int, kind: str, proxy: S3Proxy, bucket: str, tmp_path, truth) -> None:
    """One request of a run spoiled: the run finishes, and no stage notices."""
    trace = tmp_path / secrets.token_hex(4)
    with World(f"s3://{bucket}/{secrets.token_hex(6)}") as world:
        plan = plan_of(SHAPE, trace)
        proxy.begin(lambda n, method, path: kind if n == number else None)
        result = world.submit(plan)
        assert proxy.faults == 1, f"only {len(proxy.seen)} requests"
        assert result is not None
        assert result.ok, [f"{s.name}: {s.reason}" for s in result.failed]
        holds(world, plan, trace, truth, 0, result)


def an_outage(first: int, kind: str, proxy: S3Proxy, bucket: str, tmp_path, truth) -> None:
    """All requests from one on spoiled, until the run has ended."""
    trace = tmp_path / secrets.token_hex(4)
    with World(f"s3://{bucket}/{secrets.token_hex(6)}") as world:
        plan = plan_of(SHAPE, trace)
        proxy.begin(lambda n, method, path: kind if n >= first else None)
        try:
            result = world.submit(plan, policy=STRICT)
        except StoreAway:  # before there was a run
            result = None
        assert proxy.faults > 0
        for status in result.failed if result is not None else ():
            assert "storage failed after retries" in status.reason
            assert "submit again" in status.remedy
        assert result is None or not result.ok
        proxy.begin()
        submit_again(world, plan, trace, truth, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_one_spoiled_request_is_absorbed(kind, proxy, s3_env, truth, tmp_path):
    one_fault(10 + KINDS.index(kind) * 27, kind, proxy, s3_env.bucket, tmp_path, truth)


def test_a_run_in_which_every_seventh_request_is_spoiled_finishes(proxy, s3_env, truth, tmp_path):
    trace = tmp_path / "trace"
    with World(f"s3://{s3_env.bucket}/{secrets.token_hex(6)}") as world:
        plan = plan_of(SHAPE, trace)
        kinds = [kind for kind in KINDS if kind not in ("slow", "hang")]
        proxy.begin(lambda n, method, path: None if n % 7 else kinds[n // 7 % len(kinds)])
        result = world.submit(plan)
        assert proxy.faults >= 20
        proxy.begin()
        assert result is not None
        assert result.ok, [f"{s.name}: {s.reason}" for s in result.failed]
        holds(world, plan, trace, truth, 0, result)


@pytest.mark.parametrize(("first", "kind"), [(3, "503"), (40, "lost"), (110, "drop"), (170, "500")])
def test_an_outage_fails_the_run_clearly_and_submitting_again_goes_on(first, kind, proxy, s3_env, truth, tmp_path):
    an_outage(first, kind, proxy, s3_env.bucket, tmp_path, truth)


@pytest.mark.parametrize("size", [100_000, 40 << 20], ids=["one part", "several parts"])
@pytest.mark.parametrize("kind", ["cut", "half", "lost", "503"])
def test_what_is_read_is_what_was_written_or_an_error(kind, size, proxy, s3_root, tmp_path):
    data = secrets.token_bytes(1 << 16) * (size >> 16)
    place = Storage.open(s3_root)
    proxy.begin(lambda n, method, path: kind if n % 2 else None)
    try:
        place.put("some/object", data)
    except StoreAway:
        there = place.head("some/object")
        assert there is None or there.size == len(data)  # no half of it
        proxy.begin()
        place.put("some/object", data)
        proxy.begin(lambda n, method, path: kind if n % 2 else None)

    def download() -> bytes:
        place.download("some/object", tmp_path / "copy")
        return (tmp_path / "copy").read_bytes()

    whole = partial(place.get_ranges, "some/object", [0], [len(data)])
    for read in (lambda: place.get("some/object"), lambda: whole()[0], download):
        try:
            found = read()
        except OrchError:
            continue
        assert found == data
    assert proxy.faults > 0


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_each_of_the_first_requests_spoiled_is_absorbed(kind, proxy, s3_env, truth, tmp_path):
    for number in range(1, NUM_REQUESTS + 1):
        one_fault(number, kind, proxy, s3_env.bucket, tmp_path, truth)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", ["503", "lost"])
def test_an_outage_from_each_of_the_first_requests_fails_clearly_and_resumes(kind, proxy, s3_env, truth, tmp_path):
    for first in range(1, NUM_REQUESTS + 1):
        an_outage(first, kind, proxy, s3_env.bucket, tmp_path, truth)
