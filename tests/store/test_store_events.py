"""Events and logs: segments that never change, read in order over generations, never in the way of the work."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading

import numpy as np
import pytest

from orchestrator.errors import OrchError
from orchestrator.io.storage import Storage
from orchestrator.store import segments
from orchestrator.store.events import EventReader, EventWriter, compact_events, curves
from orchestrator.store.logs import LogReader, LogWriter, compact_logs


@pytest.fixture
def storage(any_root) -> Storage:
    return Storage.open(any_root)


def writer(storage: Storage, generation: int = 1, interval_s: float = 3600) -> EventWriter:
    """A writer that closes a segment only when told to."""
    return EventWriter(storage, "f", generation, interval_s)


def samples(events: list[dict]) -> list[int]:
    return [event["samples"] for event in events]


def emit(events: EventWriter, *points: int) -> None:
    for point in points:
        events.emit("report", samples=point, metrics={"loss": 1 / (1 + point)})


def test_events_are_read_once_in_order_with_time_and_type(storage):
    reader = EventReader(storage, "f")
    assert reader.poll() == []
    with writer(storage) as events:
        emit(events, 1, 2)
        events.flush()
        first = reader.poll()
        emit(events, 3)
    assert [event["type"] for event in first] == ["report"] * 2
    assert all(event["t"] > 1.7e9 for event in first)
    assert samples(first) == [1, 2]
    assert samples(reader.poll()) == [3]
    assert reader.poll() == []


def test_segments_are_numbered_and_never_change(storage):
    with writer(storage) as events:
        for point in range(3):
            emit(events, point)
            assert events.flush()
        before = {info.key: storage.get(info.key) for info in storage.list("work/f/1/events")}
        emit(events, 3)
    assert sorted(before) == [f"work/f/1/events/{n}.jsonl" for n in range(3)]
    assert all(storage.get(key) == data for key, data in before.items())


def test_a_reader_follows_over_generations_and_never_back(storage):
    reader = EventReader(storage, "f")
    overtaken, holder = writer(storage, 9), writer(storage, 10)
    emit(overtaken, 1, 2)
    overtaken.close()
    assert samples(reader.poll()) == [1, 2]
    emit(holder, 3)
    holder.flush()
    late = writer(storage, 9)
    emit(late, 99)
    late.flush()
    assert samples(reader.poll()) == [99, 3], "what came before the newer generation was seen is still read"
    emit(late, 100)
    emit(holder, 4)
    late.close()
    holder.close()
    assert samples(reader.poll()) == [4], "what an overtaken process writes later is not"


def test_a_reader_goes_on_at_anothers_position(storage):
    with writer(storage) as events:
        emit(events, 1)
        events.flush()
        reader = EventReader(storage, "f")
        reader.poll()
        emit(events, 2)
    assert samples(EventReader(storage, "f", reader.position).poll()) == [2]


def test_a_late_reader_catches_up_over_many_segments(storage):
    count = segments.READ_AHEAD * 2 + 5
    with writer(storage) as events:
        for point in range(count):
            emit(events, point)
            events.flush()
    reader = EventReader(storage, "f")
    assert samples(reader.poll()) == list(range(count))
    assert reader.position == (1, count)


def test_a_restarted_writer_of_one_generation_goes_on_after_the_last_segment(storage):
    for point in (1, 2):
        with writer(storage) as events:
            emit(events, point)
    assert samples(EventReader(storage, "f").poll()) == [1, 2]


def test_writers_that_share_a_generation_lose_nothing(storage):
    writers = [writer(storage) for _ in range(4)]

    def work(number: int) -> None:
        for point in range(5):
            emit(writers[number], 10 * number + point)
            writers[number].flush()
        writers[number].close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    read = samples(EventReader(storage, "f").poll())
    assert sorted(read) == sorted(10 * n + p for n in range(4) for p in range(5))
    assert all([s for s in read if s // 10 == n] == sorted(s for s in read if s // 10 == n) for n in range(4))


def test_threads_may_share_a_writer(tmp_path):
    storage = Storage.open(str(tmp_path))
    with writer(storage) as events:
        threads = [threading.Thread(target=emit, args=(events, *range(n * 100, n * 100 + 100))) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(samples(EventReader(storage, "f").poll())) == list(range(800))


def test_segments_are_closed_in_the_background(tmp_path):
    storage = Storage.open(str(tmp_path))
    written = threading.Event()
    create = storage.create
    storage.create = lambda *a, **options: (create(*a, **options), written.set())[0]
    with EventWriter(storage, "f", 1, interval_s=0.001) as events:
        emit(events, 1)
        assert written.wait(10)
        assert samples(EventReader(Storage.open(str(tmp_path)), "f").poll()) == [1]


def test_many_waiting_bytes_close_a_segment_early(tmp_path):
    storage = Storage.open(str(tmp_path))
    written = threading.Event()
    create = storage.create
    storage.create = lambda *a, **options: (create(*a, **options), written.set())[0]
    with writer(storage) as events:
        events.emit("message", level="info", text="x" * (1 << 20))
        assert written.wait(10)


def test_a_store_that_is_down_never_stops_the_stage_and_nothing_is_lost(tmp_path, monkeypatch, caplog):
    storage = Storage.open(str(tmp_path))
    down = True
    create = Storage.create

    def flaky(self, key, data, durable=False):
        if down:
            raise OrchError("the store is down")
        return create(self, key, data, durable)

    monkeypatch.setattr(Storage, "create", flaky)
    with caplog.at_level(logging.WARNING), writer(storage) as events:
        emit(events, 1)
        assert events.flush() is False
        emit(events, 2)
        down = False
        assert events.flush() is True
    assert "the store is down" in caplog.text
    assert samples(EventReader(storage, "f").poll()) == [1, 2]


def test_a_writer_holds_a_bounded_amount(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "MAX_BUFFER_BYTES", 10_000)
    storage = Storage.open(str(tmp_path))
    with writer(storage) as events:
        emit(events, *range(1000))
        events.flush()
        emit(events, 1000)
    read = samples(EventReader(storage, "f").poll())
    assert 10 < len(read) < 500
    assert read[-1] == 1000


def test_any_value_can_be_emitted(storage):
    with writer(storage) as events:
        events.emit("report", samples=np.int64(3), metrics={"a": np.float32(0.5), "b": float("nan")})
        events.emit("message", level="info", text={1, 2}, array=np.zeros(3))
    report, message = EventReader(storage, "f").poll()
    assert (report["samples"], report["metrics"]["a"]) == (3, 0.5)
    assert report["metrics"]["b"] != report["metrics"]["b"]
    assert message["text"] == "{1, 2}"


def test_what_was_flushed_survives_kill_9(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from orchestrator.io.storage import Storage\n"
        "from orchestrator.store.events import EventWriter\n"
        "events = EventWriter(Storage.open(sys.argv[1]), 'f', 1, interval_s=3600)\n"
        "events.emit('report', samples=1, metrics={}); events.flush()\n"
        "events.emit('report', samples=2, metrics={})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)])
    storage = Storage.open(str(tmp_path))
    with writer(storage, 2) as events:
        events.emit("resumed", samples=1, generation=1)
    assert [e["type"] for e in EventReader(storage, "f").poll()] == ["report", "resumed"]


def report(samples: int, **metrics: float) -> dict:
    return {"t": 0.0, "type": "report", "samples": samples, "metrics": metrics}


def resumed(samples: int) -> dict:
    return {"t": 0.0, "type": "resumed", "samples": samples, "generation": 1}


CURVES = {
    "nothing": ([], {}),
    "points by metric": ([report(1, a=1, b=2), report(2, a=3)], {"a": [(1, 1), (2, 3)], "b": [(1, 2)]}),
    "sorted": ([report(2, a=2), report(1, a=1)], {"a": [(1, 1), (2, 2)]}),
    "last value": ([report(1, a=1), report(1, a=5)], {"a": [(1, 5)]}),
    "resume drops what is above": (
        [report(1, a=1), report(2, a=2), report(3, a=3), resumed(1), report(2, a=9)],
        {"a": [(1, 1), (2, 9)]},
    ),
    "resume keeps its own point": ([report(2, a=2), resumed(2)], {"a": [(2, 2)]}),
    "resume from the start": ([report(2, a=2), resumed(0), report(1, a=1)], {"a": [(1, 1)]}),
    "a metric may vanish": ([report(1, a=1), report(2, b=2), resumed(1)], {"a": [(1, 1)]}),
    "other events": ([{"t": 0.0, "type": "progress", "done": 1, "total": 2, "unit": "x"}], {}),
}


@pytest.mark.parametrize(("events", "expected"), CURVES.values(), ids=CURVES)
def test_curves(events, expected):
    assert curves(json.loads(json.dumps(events))) == expected


def test_logs_are_cut_between_lines_and_read_once(storage):
    reader = LogReader(storage, "f")
    log = LogWriter(storage, "f", 1, interval_s=3600)
    print("first", file=log, flush=True)
    log.write("sec")
    log.write("ond\nthird, not ended: é")
    log._segments.flush()
    assert reader.poll() == "first\nsecond\n"
    log.close()
    log.close()
    assert reader.poll() == "third, not ended: é\n"
    assert reader.poll() == ""
    with LogWriter(storage, "f", 2, interval_s=3600) as again:
        again.write("again\n")
    assert reader.poll() == "again\n"
    assert LogReader(storage, "f").poll() == "first\nsecond\nthird, not ended: é\nagain\n"


def test_a_flush_after_each_line_does_not_make_a_segment_each(storage):
    with LogWriter(storage, "f", 1, interval_s=3600) as log:
        for number in range(50):
            print(number, file=log, flush=True)
    assert len(list(storage.list("work/f/1/logs"))) == 1


# Compaction: readers see each segment once and in order, whatever happens meanwhile.


class Killed(Exception):
    """Stands for the end of the process."""


def fill(storage: Storage, generations: dict[int, int]) -> list[int]:
    """Generations with so many segments of one event; the events' sample counts in order."""
    expected = []
    for generation, count in generations.items():
        with writer(storage, generation) as events:
            for number in range(count):
                emit(events, 100 * generation + number)
                events.flush()
                expected.append(100 * generation + number)
    return expected


def after(storage: Storage, calls: int, do) -> Storage:
    """The same storage, whose user is interrupted by `do` before its call number `calls`."""
    opened = Storage.open(storage.url)
    left = [calls]

    def wrapped(method):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                do()
            return method(*arguments, **options)

        return call

    for name in ("get", "create", "delete", "list", "children", "put"):
        setattr(opened, name, wrapped(getattr(opened, name)))
    return opened


def calls(storage: Storage) -> range:
    """Numbers of calls to interrupt at: each, on S3 some of them."""
    return range(1, 200, 5 if storage.url.startswith("s3") else 1)


def one_by_one(monkeypatch) -> None:
    monkeypatch.setattr(segments, "READ_AHEAD", 1)


def kill() -> None:
    raise Killed


GENERATIONS = {1: 5, 3: 6}


def test_a_compacted_stream_reads_as_before_from_every_position(storage):
    expected = fill(storage, GENERATIONS)
    positions = [(generation, n) for generation, count in GENERATIONS.items() for n in range(count)]
    reader = EventReader(storage, "f")
    assert compact_events(storage, "f") == 11
    assert len(list(storage.list("work/f"))) == 2
    assert samples(reader.poll()) == expected
    for read, position in enumerate(positions):
        assert samples(EventReader(storage, "f", position).poll()) == expected[read:]
    assert compact_events(storage, "f") == 0


def test_packs_hold_a_bounded_amount_and_a_writer_goes_on_after_them(storage, monkeypatch):
    expected = fill(storage, {1: 12})
    monkeypatch.setattr(segments, "PACK_BYTES", 3 * len(storage.get("work/f/1/events/0.jsonl")) + 20)
    compact_events(storage, "f")
    packs = [info.key.rpartition("/")[2] for info in storage.list("work/f/packed/events/1")]
    assert sorted(packs) == ["0-3.jsonl", "3-6.jsonl", "6-9.jsonl", "9-12.jsonl"]
    expected += fill(storage, {1: 5})
    assert storage.head("work/f/1/events/16.jsonl") is not None
    assert samples(EventReader(storage, "f").poll()) == expected
    compact_events(storage, "f")
    assert samples(EventReader(storage, "f").poll()) == expected


def test_few_segments_are_left_as_they_are(storage):
    fill(storage, {1: segments.WORTH_PACKING - 1})
    assert compact_events(storage, "f") == 0


def test_a_compaction_killed_at_any_call_loses_nothing_and_can_be_repeated(storage, monkeypatch):
    one_by_one(monkeypatch)
    for call in calls(storage):
        fingerprint = f"f{call}"
        with EventWriter(storage, fingerprint, 1, 3600) as events:
            for number in range(5):
                emit(events, number)
                events.flush()
        try:
            compact_events(after(storage, call, kill), fingerprint)
            break
        except Killed:
            pass
        assert samples(EventReader(storage, fingerprint).poll()) == list(range(5))
        compact_events(storage, fingerprint)
        assert samples(EventReader(storage, fingerprint).poll()) == list(range(5))
        assert len(list(storage.list(f"work/{fingerprint}"))) == 1
    assert call > 10


@pytest.mark.parametrize("generations", [{1: 5}, GENERATIONS], ids=["one", "two"])
def test_a_reader_in_the_middle_of_which_all_is_packed_reads_each_event_once(storage, monkeypatch, generations):
    one_by_one(monkeypatch)
    for call in calls(storage):
        for info in list(storage.list("work/f")):
            storage.delete(info.key)
        expected = fill(storage, generations)
        packed: list[int] = []
        reader = EventReader(
            after(storage, call, lambda packed=packed: packed.append(compact_events(storage, "f"))), "f"
        )
        first = samples(reader.poll())
        assert first == expected, f"packed before call {call}"
        assert reader.poll() == []
        if not packed:
            break
    assert call > 5


def test_a_reader_polling_between_the_steps_of_a_compaction_reads_each_event_once(storage, monkeypatch):
    """The other way round: the reader stands anywhere, and the compaction goes on step by step under it."""
    one_by_one(monkeypatch)
    expected = fill(storage, GENERATIONS)
    readers = [
        (EventReader(storage, "f", position), read) for position, read in (((0, 0), 0), ((1, 3), 3), ((3, 2), 7))
    ]
    seen = [[] for _ in readers]

    def look() -> None:
        for (reader, _), found in zip(readers, seen, strict=True):
            found += samples(reader.poll())

    opened = Storage.open(storage.url)
    for name in ("get", "create", "delete"):
        method = getattr(opened, name)
        setattr(opened, name, lambda *a, method=method, **options: (look(), method(*a, **options))[1])
    compact_events(opened, "f")
    look()
    assert seen == [expected[read:] for _, read in readers]


def test_two_compactions_at_once_lose_nothing(storage, monkeypatch):
    one_by_one(monkeypatch)
    for call in calls(storage):
        for info in list(storage.list("work/f")):
            storage.delete(info.key)
        expected = fill(storage, {1: 5})
        done = []
        compact_events(after(storage, call, lambda done=done: done.append(compact_events(storage, "f"))), "f")
        assert samples(EventReader(storage, "f").poll()) == expected
        if not done:
            break
    assert call > 10


def test_a_reader_at_the_end_asks_for_no_more_than_it_must(storage):
    fill(storage, {1: 5})
    opened = Storage.open(storage.url)
    reader = EventReader(opened, "f")
    reader.poll()
    calls = []
    for name in ("get", "list", "children", "head"):
        method = getattr(opened, name)
        setattr(opened, name, lambda *a, name=name, method=method: (calls.append(name), method(*a))[1])
    assert reader.poll() == []
    assert calls == ["children", "get"]


def test_a_log_tells_its_attempts_apart_also_when_packed(storage):
    for generation in (1, 2):
        with LogWriter(storage, "f", generation, 3600) as log:
            for number in range(4):
                log.write(f"{generation}.{number}\n")
                log._segments.flush()
    before = LogReader(storage, "f").parts()
    assert before == [(1, "1.0\n1.1\n1.2\n1.3\n"), (2, "2.0\n2.1\n2.2\n2.3\n")]
    assert compact_logs(storage, "f") == 8
    assert LogReader(storage, "f").parts() == before
