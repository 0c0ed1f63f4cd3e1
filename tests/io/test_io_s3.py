"""What is tried again and what is not, uploads in parts, endpoints, credentials: a real server behind a bad line."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from s3_proxy import Proxy, proxied

from orchestrator.errors import OrchError, StoreAway
from orchestrator.io import s3
from orchestrator.io.storage import PART_BYTES, Storage

QUICK = {"init_backoff": timedelta(milliseconds=5), "max_backoff": timedelta(milliseconds=20), "base": 2}


@pytest.fixture
def line(s3_env, monkeypatch) -> Iterator[Proxy]:
    """The way to the server, with pauses between attempts that tests can wait for."""
    monkeypatch.setitem(s3.RETRY, "backoff", QUICK)
    monkeypatch.setattr(s3, "BACKOFF", QUICK)
    with proxied(s3_env.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def storage(line, s3_root) -> Storage:
    """Holds one object, `there`."""
    storage = Storage.open(s3_root)
    storage.put("there", b"whole")
    line.requests.clear()
    return storage


OPERATIONS = {
    "get": (lambda s, folder: s.get("there"), b"whole"),
    "get_ranges": (lambda s, folder: s.get_ranges("there", [1], [3]), [b"ho"]),
    "head": (lambda s, folder: s.head("there").size, 5),
    "download": (lambda s, folder: s.download("there", folder / "d") or (folder / "d").read_bytes(), b"whole"),
    "list": (lambda s, folder: [info.key for info in s.list("")], ["there"]),
    "children": (lambda s, folder: s.children(""), []),
    "put": (lambda s, folder: s.put("new", b"1") or s.get("new"), b"1"),
    "create": (lambda s, folder: s.create("new", b"1"), True),
    "delete": (lambda s, folder: s.delete("there") or s.head("there"), None),
    "delete_many": (lambda s, folder: s.delete_many(["there", "other"]) or s.head("there"), None),
}
AGAIN = [408, 429, 500, 502, 503, 504, "reset", "lost", "short"]
NEVER = [400, 403, 404, 405, 411]


@pytest.mark.parametrize("fault", AGAIN)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_may_pass_is_tried_again(operation, fault, storage, line, tmp_path):
    call, expected = OPERATIONS[operation]
    line.fail("", fault, times=2)
    found = call(storage, tmp_path)
    if operation == "create" and fault == "lost":
        assert found is False  # our own first try won: callers look who did
        assert storage.get("new") == b"1"
    else:
        assert found == expected


@pytest.mark.parametrize("status", NEVER)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_would_be_the_same_again_is_not_tried_again(operation, status, storage, line, tmp_path):
    line.fail("", status, times=100)
    if status == 404 and operation in ("delete", "delete_many"):  # it is done
        OPERATIONS[operation][0](storage, tmp_path)
    elif (status, operation) == (404, "head"):
        assert storage.head("there") is None
    else:
        with pytest.raises((OrchError, FileNotFoundError), match=r"refused|no such bucket|not found") as refused:
            OPERATIONS[operation][0](storage, tmp_path)
        assert not isinstance(refused.value, StoreAway)
    once = {"delete_many": 3}.get(operation, 1)  # all together, then each: on a disk one may be absent
    assert max(Counter(line.requests).values()) <= once


def test_two_writers_at_once_are_not_taken_for_one_that_won(storage, line):
    line.fail("PUT", 409, times=1, code="ConditionalRequestConflict")
    assert storage.create("new", b"1") is True
    assert storage.get("new") == b"1"


@pytest.mark.parametrize("operation", ["get", "create", "list", "delete"])
@pytest.mark.parametrize("fault", [503, "reset"])
def test_trying_again_has_an_end_and_says_that_the_store_may_come_back(operation, fault, storage, line, monkeypatch):
    monkeypatch.setitem(s3.RETRY, "max_retries", 2)
    storage = Storage.open(storage.url)
    line.fail("", fault, times=1000)
    with pytest.raises(StoreAway, match="storage failed after retries"):
        OPERATIONS[operation][0](storage, Path())
    assert len(line.requests) == 3


def test_a_server_that_is_not_there_is_asked_again_and_then_said(s3_env, monkeypatch):
    monkeypatch.setattr(s3, "BACKOFF", QUICK)
    monkeypatch.setitem(s3.RETRY, "backoff", QUICK)
    monkeypatch.setitem(s3.RETRY, "max_retries", 2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    for call in (lambda s: s.get("k"), lambda s: s.create("k", b""), lambda s: s.delete("k")):
        with pytest.raises(StoreAway, match="AWS_ENDPOINT_URL"):
            call(Storage.open("s3://orch-artifacts/x"))


def test_a_server_that_is_silent_is_asked_again(storage, line, monkeypatch):
    monkeypatch.setattr(s3, "READ_TIMEOUT", timedelta(milliseconds=300))
    storage = Storage.open(storage.url)
    for operation in ("get", "list", "create"):
        line.fail("", "silent")
        assert OPERATIONS[operation][0](storage, Path()) == OPERATIONS[operation][1]


LARGE = 2 * PART_BYTES + 1


@pytest.mark.parametrize(
    "request_of", [r"POST .*uploads", r"PUT .*partNumber=2", r"POST .*uploadId"], ids=["begin", "part", "end"]
)
@pytest.mark.parametrize("fault", [503, "reset", "lost"])
def test_an_upload_in_parts_survives_a_fault_in_any_of_its_requests(request_of, fault, storage, line, tmp_path):
    path = tmp_path / "large"
    path.write_bytes(os.urandom(LARGE))
    line.fail(request_of, fault)
    storage.put("large", path)
    assert line.count("partNumber") >= 3
    storage.download("large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("fault", [400, 503])
def test_an_upload_that_is_given_up_leaves_nothing_to_be_seen(fault, storage, line, tmp_path, monkeypatch):
    monkeypatch.setitem(s3.RETRY, "max_retries", 1)
    storage = Storage.open(storage.url)
    path = tmp_path / "large"
    path.write_bytes(os.urandom(LARGE))
    line.fail("partNumber=2", fault, times=100)
    with pytest.raises(OrchError):
        storage.put("large", path)
    assert storage.head("large") is None
    assert [info.key for info in storage.list("")] == ["there"]
    assert line.count("DELETE .*uploadId") == 1  # the server's parts go too: they would cost money
    line.faults.clear()
    storage.put("large", path)
    assert storage.head("large").size == LARGE


@pytest.mark.parametrize("fault", ["short", "cut"])
def test_half_a_download_is_never_taken_for_the_whole(fault, storage, line, tmp_path, monkeypatch):
    monkeypatch.setitem(s3.RETRY, "max_retries", 2)
    storage = Storage.open(storage.url)
    storage.put("large", os.urandom(3_000_000))
    line.fail("GET .*large", fault, times=1000)
    for call in (lambda: storage.get("large"), lambda: storage.download("large", tmp_path / "copy")):
        with pytest.raises(OrchError):
            call()
    assert list(tmp_path.iterdir()) == []


def test_many_are_deleted_in_few_requests(storage, line):
    keys = [f"many/{n}" for n in range(30)]
    for key in keys:
        storage.put(key, b"")
    line.requests.clear()
    storage.delete_many([*keys, "many/absent"])
    assert len(line.requests) == 1
    assert [info.key for info in storage.list("")] == ["there"]


@pytest.fixture
def profile(s3_env, tmp_path, monkeypatch):
    """Writes an AWS config file whose only profile is used; the environment has no credentials of its own."""

    def write(text: str) -> None:
        (tmp_path / "config").write_text(text)
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_PROFILE", "lab")

    return write


KEYS = "aws_access_key_id = {key}\naws_secret_access_key = {secret}\nregion = us-east-1\n"
CONFIGS = {
    "of the profile": "[profile lab]\n" + KEYS + "endpoint_url = {endpoint}\n",
    "of its services": "[profile lab]\n"
    + KEYS
    + "services = here\nendpoint_url = http://127.0.0.1:1\n[services here]\ns3 =\n  endpoint_url = {endpoint}\n",
}


@pytest.mark.parametrize("config", CONFIGS)
def test_the_endpoint_is_that_of_the_profile(config, s3_server, s3_root, profile):
    facts = {"key": s3_server.access_key, "secret": s3_server.secret_key, "endpoint": s3_server.endpoint}
    profile(CONFIGS[config].format(**facts))
    storage = Storage.open(s3_root)
    storage.put("k", b"1")
    assert storage.get("k") == b"1"


def test_s3s_own_endpoint_comes_before_the_general_one(s3_root, s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
    Storage.open(s3_root).put("k", b"1")


def test_a_profile_that_is_not_there_is_said(profile, monkeypatch):
    profile("")
    with pytest.raises(OrchError, match="lab"):
        Storage.open("s3://bucket/x")


def test_credentials_that_expire_are_asked_for_again(profile, s3_server, s3_root, tmp_path, monkeypatch):
    """A process that hands out wrong keys first, then right ones, as a role's keys change."""
    count = tmp_path / "count"
    program = tmp_path / "keys"
    keys = {"Version": 1, "AccessKeyId": s3_server.access_key, "Expiration": "2026-01-01T00:00:00Z"}
    program.write_text(
        f"#!{sys.executable}\nimport datetime, json, pathlib\nfile = pathlib.Path({str(count)!r})\n"
        "file.write_text(str(int(file.read_text() or 0) + 1) if file.exists() else '1')\n"
        "soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=12)\n"
        f"secret = {s3_server.secret_key!r} if int(file.read_text()) > 2 else 'wrong'\n"
        f"print(json.dumps({json.dumps(keys)} | {{'SecretAccessKey': secret, 'Expiration': soon.isoformat()}}))\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    profile(f"[profile lab]\ncredential_process = {program}\nendpoint_url = {s3_server.endpoint}\n")
    monkeypatch.setattr(s3, "CREDENTIALS_TTL", timedelta(0))
    storage = Storage.open(s3_root)
    with pytest.raises(OrchError, match="refused the credentials"):
        storage.put("k", b"1")
    storage.put("k", b"1")
    assert int(count.read_text()) >= 3


def test_credentials_are_kept_for_less_than_the_shortest_time_they_may_still_be_good():
    from botocore.credentials import RefreshableCredentials

    assert s3.CREDENTIALS_TTL.total_seconds() < RefreshableCredentials._mandatory_refresh_timeout


def test_nothing_of_aws_is_imported_where_s3_is_not_used(tmp_path):
    code = (
        "import sys, orchestrator.api\nfrom orchestrator.io.storage import Storage\n"
        "Storage.open(sys.argv[1]).put('k', b'')\nprint([m for m in ('boto3', 'botocore') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
