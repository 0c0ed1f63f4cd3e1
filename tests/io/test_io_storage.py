"""One table of behaviours for all kinds of storage, and what only some of them do."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from orchestrator.errors import OrchError, UserError
from orchestrator.io import s3
from orchestrator.io.storage import PART_BYTES, Storage, check_key


@pytest.fixture
def storage(any_root) -> Storage:
    return Storage.open(any_root)


def keys(storage: Storage, prefix: str) -> list[str]:
    return [info.key for info in storage.list(prefix)]


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 1000], ids=len)
def test_get_returns_what_was_put(storage, data):
    storage.put("a/b", data)
    assert storage.get("a/b") == data
    assert storage.head("a/b").size == len(data)


def test_put_replaces(storage):
    storage.put("k", b"old, and longer")
    storage.put("k", b"new")
    assert storage.get("k") == b"new"


def test_absent_objects(storage, tmp_path):
    storage.put("there", b"")
    with pytest.raises(FileNotFoundError, match="nope"):
        storage.get("nope")
    with pytest.raises(FileNotFoundError):
        storage.get_ranges("nope", [0], [1])
    with pytest.raises(FileNotFoundError):
        storage.download("nope", tmp_path / "copy")
    assert storage.head("nope") is None
    assert keys(storage, "nope") == []
    assert storage.children("nope") == []
    storage.delete("nope")
    assert not list(tmp_path.glob("copy*"))


def test_an_empty_root_can_be_looked_at_and_is_not_made_by_looking(storage):
    assert storage.head("k") is None
    assert keys(storage, "") == []
    assert storage.children("") == []
    storage.delete("k")
    with pytest.raises(FileNotFoundError):
        storage.get("k")
    root = storage.local("k")
    assert root is None or not root.parent.exists()


def test_create_writes_once(storage):
    assert storage.create("k", b"first") is True
    assert storage.create("k", b"second") is False
    assert storage.get("k") == b"first"


def test_of_sixteen_that_create_exactly_one_wins(storage):
    rounds = 1 if storage.url.startswith("s3:") else 5  # a contended key takes SeaweedFS some seconds
    for number in range(rounds):
        barrier, winners = threading.Barrier(16), []

        def compete(name: bytes, key: str, barrier=barrier, winners=winners) -> None:
            barrier.wait()
            if storage.create(key, name):
                winners.append(name)

        threads = [threading.Thread(target=compete, args=(b"%d" % i, f"race/{number}")) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(winners) == 1
        assert storage.get(f"race/{number}") == winners[0]


def test_list_is_sorted_by_key_and_takes_whole_segments(storage):
    written = ["a/b", "a-b", "a/b/c", "ab", "a/z", "a/10", "a/9", "a b/é"]
    if storage.local("x") is not None:
        written.remove("a/b/c")  # on a disk a name cannot be a file and a directory
    for key in written:
        storage.put(key, key.encode())
    assert keys(storage, "") == sorted(written)
    assert keys(storage, "a") == sorted(k for k in written if k.startswith("a/"))
    assert storage.children("") == ["a", "a b"]


def test_list_is_complete_beyond_one_page(storage):
    written = sorted(f"many/{i % 7}/{i}" for i in range(1010))
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: storage.put(key, b""), written))
    assert keys(storage, "many") == written


def test_delete_removes(storage):
    storage.put("a/k", b"1")
    storage.delete("a/k")
    assert storage.head("a/k") is None
    assert keys(storage, "a") == []


@pytest.mark.parametrize("coalesce", [0, 1 << 20])
def test_get_ranges_returns_each_range_in_the_order_asked(storage, coalesce):
    data = os.urandom(100_000)
    storage.put("k", data)
    starts, ends = [50_000, 0, 7, 99_999, 50_000], [60_000, 10, 7, 100_000, 50_001]
    assert storage.get_ranges("k", starts, ends, coalesce) == [data[s:e] for s, e in zip(starts, ends, strict=True)]
    assert storage.get_ranges("k", [], []) == []


@pytest.mark.parametrize(("start", "end"), [(3, 5), (4, 5), (9, 10)])
def test_a_range_past_the_end_is_an_error_and_never_short(storage, start, end):
    storage.put("k", b"1234")
    with pytest.raises(ValueError, match="end"):
        storage.get_ranges("k", [0, start], [1, end])


@pytest.mark.parametrize("size", [100, 2 * PART_BYTES + 1], ids=["small", "in parts"])
def test_files_are_put_and_downloaded(storage, tmp_path, size):
    source, copy = tmp_path / "source", tmp_path / "deep" / "copy"
    source.write_bytes(os.urandom(size))
    storage.put("k", source)
    storage.download("k", copy)
    assert copy.read_bytes() == source.read_bytes()
    assert os.listdir(copy.parent) == ["copy"]


def test_modified_times_of_later_writes_are_not_earlier(storage):
    storage.put("a", b"")
    storage.put("b", b"")
    assert storage.head("b").modified >= storage.head("a").modified


BAD_KEYS = ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a/.", "a\nb", "a\0", "a#1"]


@pytest.mark.parametrize("key", BAD_KEYS)
@pytest.mark.parametrize("method", ["get", "head", "delete", "put", "create"])
def test_bad_keys_are_refused_by_every_method(tmp_path, key, method):
    storage = Storage.open(str(tmp_path))
    with pytest.raises(ValueError, match="not a storage key"):
        getattr(storage, method)(key, *([b""] if method in ("put", "create") else []))


@pytest.mark.parametrize("key", ["a", "a/b.c", "a b", "é", "x#y", "a=1,b=2", "~", "%20"])
def test_other_names_are_kept_as_they_are(storage, key):
    storage.put(check_key(key), b"1")
    assert keys(storage, "") == [key]


def test_storage_is_pickled_by_its_address(storage):
    storage.put("k", b"1")
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.url == storage.url
    assert copy.get("k") == b"1"


def test_local_roots_are_absolute_whatever_way_they_are_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for url in ("x y#1", "./x y#1", "~/x y#1", f"file://{tmp_path}/x y#1", f"{tmp_path}/x y#1/"):
        assert Storage.open(url).url == f"{tmp_path}/x y#1"
    Storage.open("x y#1").put("k", b"1")
    assert (tmp_path / "x y#1" / "k").read_bytes() == b"1"


@pytest.mark.parametrize("url", ["ftp://x/y", "s3://", "http://x"])
def test_other_addresses_are_refused(url):
    with pytest.raises(UserError, match="cannot open storage"):
        Storage.open(url)


def test_a_reader_sees_a_whole_object_while_it_is_replaced(any_root):
    storage = Storage.open(any_root)
    versions = {bytes([n]) * 300_000 for n in range(4)}
    storage.put("k", next(iter(versions)))
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            for data in versions:
                storage.put("k", data)

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        seen = {storage.get("k") for _ in range(30)}
    finally:
        stop.set()
        thread.join()
    assert seen <= versions


def test_a_full_disk_is_called_so(tmp_path):
    # A limit on the size of files is the one kind of "full" that needs no privileges.
    script = (
        "import resource, sys\n"
        "from orchestrator.io.storage import Storage\n"
        "from orchestrator.errors import OrchError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "s = Storage.open(sys.argv[1])\n"
        "s.put('small', b'1')\n"
        "try: s.put('large', b'1' * 5000)\n"
        "except OrchError as error: print(error)\n"
        "print(s.head('large'), [i.key for i in s.list('')])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "disk full" in done.stdout
    assert "finished work is kept" in done.stdout
    assert "None ['small']" in done.stdout


def test_a_place_that_cannot_be_written_is_called_so():
    with pytest.raises(OrchError, match=r"storage failed|not allowed"):
        Storage.open("/proc/orch").put("k", b"")


def test_a_missing_bucket_is_never_taken_for_an_absent_object(s3_env):
    storage = Storage.open("s3://orch-missing/prefix")
    calls = [
        lambda: storage.get("k"),
        lambda: storage.put("k", b""),
        lambda: storage.create("k", b""),
        lambda: storage.list("k"),
    ]
    for call in calls:
        with pytest.raises(OrchError, match="no such bucket"):
            call()


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials_are_called_so_by_every_method(s3_root, monkeypatch, name):
    monkeypatch.setenv(name, "wrong")
    storage = Storage.open(s3_root)
    for call in (
        lambda: storage.get("k"),
        lambda: storage.put("k", b""),
        lambda: storage.head("k"),
        lambda: storage.list(""),
    ):
        with pytest.raises(OrchError, match="refused the credentials"):
            call()


def test_credentials_come_from_a_profile(s3_root, s3_server, monkeypatch, tmp_path):
    Storage.open(s3_root).put("k", b"1")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    credentials = tmp_path / "credentials"
    credentials.write_text(
        f"[lab]\naws_access_key_id = {s3_server.access_key}\naws_secret_access_key = {s3_server.secret_key}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert Storage.open(s3_root).get("k") == b"1"


def test_missing_credentials_are_said_with_the_way_out(monkeypatch, tmp_path):
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(OrchError, match="no AWS credentials") as caught:
        Storage.open("s3://bucket/prefix")
    assert "AWS_PROFILE" in caught.value.remedy


class Faulty(BaseHTTPRequestHandler):
    """Answers the first `failures` requests with `status`, the others with `body`."""

    failures, status, body = 0, 503, b"whole"
    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        bad = type(self).requests <= self.failures
        body = b"<Error><Code>SlowDown</Code></Error>" if bad else self.body
        self.send_response(self.status if bad else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Sun, 01 Jan 2023 00:00:00 GMT")
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def faulty_server(monkeypatch):
    servers = []

    def start(**behaviour) -> type[Faulty]:
        handler = type("Handler", (Faulty,), {"requests": 0, **behaviour})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        return handler

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("status", [500, 503, 429])
def test_throttling_and_server_errors_are_tried_again(faulty_server, status):
    handler = faulty_server(failures=2, status=status)
    assert Storage.open("s3://bucket/prefix").get("k") == b"whole"
    assert handler.requests == 3


def test_retries_have_an_end(faulty_server, monkeypatch):
    monkeypatch.setitem(s3.RETRY, "max_retries", 1)
    handler = faulty_server(failures=100)
    with pytest.raises(OrchError, match="storage failed after retries"):
        Storage.open("s3://bucket/prefix").get("k")
    assert handler.requests == 2


def test_local_gives_paths_on_disks_only(storage):
    storage.put("a/b", b"1")
    path = storage.local("a/b")
    assert path is None or (isinstance(path, Path) and path.read_bytes() == b"1")
    assert (path is None) == ("://" in storage.url)
