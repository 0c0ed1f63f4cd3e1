"""Iconify's pure parts, and shards that several processes draw: the same whatever their number, and after a stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.build import iconify, shards
from orchestrator.data.build.processes import WORK, draw_shards, in_order

CIRCLE = {"body": '<circle cx="8" cy="8" r="6"/>'}
DOCUMENT: dict[str, Any] = {
    "prefix": "some",
    "info": {"name": "Some", "author": {"name": "A. Person"}, "license": {"spdx": "MIT"}},
    "icons": {"cat": CIRCLE, "cat-24": CIRCLE, "halloween": {**CIRCLE, "width": 20}},
    "aliases": {
        "jack-o-lantern": {"parent": "halloween"},
        "halloween-24": {"parent": "halloween"},
        "nowolleh": {"parent": "halloween", "hFlip": True},
    },
    "suffixes": {"": "Regular", "24": "24px"},
    "categories": {"Animals": ["cat", "cat-24"], "Pets": ["cat"]},
    "height": 20,
}


@pytest.mark.parametrize(
    ("icon", "expected"),
    [
        ("account-circle", "account circle"),
        ("account-circle-outline", "account circle"),
        ("heart-bold-duotone", "heart"),
        ("home-24", "home"),  # declared by the set
        ("home-20-solid", "home"),  # the longer of two that fit
        ("home-16", "home 16"),  # not declared
        ("twotone-alarm", "alarm"),
        ("round-table", "table"),
        ("table-round", "table round"),  # declared in front only
        ("format-bold", "format"),
        ("bold", "bold"),  # nothing else is left
        ("arrow--right", "arrow right"),
    ],
)
def test_captions_are_names_without_the_way_of_drawing(icon: str, expected: str) -> None:
    assert iconify.caption(icon, {"": "", "24": "", "solid": "", "20-solid": ""}, {"round": ""}) == expected


def test_rows_have_labels_synonyms_and_the_sets_licence() -> None:
    found = dict(iconify.rows(DOCUMENT))
    assert list(found) == ["some/cat", "some/cat-24", "some/halloween"]
    records = {key: row["json"] for key, row in found.items()}
    assert [(r["concept"], r["style"], r.get("category")) for r in records.values()] == [
        ("cat", "some", "Animals"),
        ("cat", "some", "Animals"),
        ("halloween", "some", None),
    ]
    assert records["some/halloween"]["captions"] == {
        "keywords": ["jack o lantern"]
    }  # neither its variant nor mirrored
    assert "captions" not in records["some/cat"]
    assert records["some/cat"]["source"] | {"version": ""} == {
        "package": "@iconify/json",
        "version": "",
        "icon": "some/cat",
        "licence": "MIT",
    }
    assert 'viewBox="0 0 20 20"' in found["some/halloween"]["svg"]


def test_a_set_is_drawn_and_what_cannot_be_is_counted(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    broken = {**DOCUMENT["icons"], "cat-24": {"body": "<g>"}}
    archive = tmp_path / "icons.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        shards.add_member(tar, "package/json/some.json", shards.to_json({**DOCUMENT, "icons": broken}))
        shards.add_member(tar, "package/collections.json", b"{}")
    (tmp_path / "set" / WORK).mkdir(parents=True)
    facts = iconify.write(tmp_path / "set", {"icons": archive}, print)
    assert (facts["samples"], facts["dropped"], facts["styles"]) == (2, {"cannot be drawn": 1}, 1)
    samples = list(shards.read_shards([tmp_path / "set" / "iconify-00000.tar"]))
    assert sorted(sample["txt"] for sample in samples) == [b"cat", b"halloween"]
    for sample in samples:
        assert json.loads(sample["json"])["sha256"] == shards.hashlib.sha256(sample["webp"]).hexdigest()
    assert "Some (some), from @iconify/json" in (tmp_path / "set" / "NOTICE").read_text()


def numbered(folder: Path, stop_at: int, row: int) -> dict[str, bytes] | str:
    """A sample that says its number; every third row has none, and one waits to be killed."""
    if row == stop_at:
        (folder / "reached.half").write_text(str(os.getpid()))
        (folder / "reached.half").rename(folder / "reached")
        time.sleep(60)
    return "divisible by three" if row % 3 == 0 else {"png": b"picture", "txt": str(row).encode(), "json": b"{}"}


def draw_numbers(folder: Path, processes: int, stop_at: int = -1) -> dict:
    return draw_shards(folder, "n", range(50), partial(numbered, folder, stop_at), 10, lambda line: None, processes)


def folder_with_work(folder: Path) -> Path:
    (folder / WORK).mkdir(parents=True)
    return folder


def test_shards_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    facts = [draw_numbers(folder_with_work(tmp_path / f"{n}"), n) for n in (1, 2)]
    assert facts[0] == facts[1]
    assert (facts[0]["samples"], facts[0]["dropped"]) == (33, {"divisible by three": 17})
    paths = [tmp_path / "2" / shard["name"] for shard in facts[1]["shards"]]
    read = list(shards.read_shards(paths))
    assert [int(sample["txt"]) for sample in read] == [row for row in range(50) if row % 3]
    assert len({sample["__key__"] for sample in read}) == 33


def test_a_killed_build_takes_its_processes_along_and_the_next_keeps_its_shards(tmp_path: Path) -> None:
    whole = draw_numbers(folder_with_work(tmp_path / "whole"), 1)
    folder = folder_with_work(tmp_path / "killed")
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import test_data_build_iconify as t\n"
        "if __name__ == '__main__': t.draw_numbers(Path(sys.argv[2]), 2, stop_at=31)"
    )
    building = subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parent), str(folder)])
    wait_until((folder / "reached").exists)
    wait_until((folder / WORK / "n-00004.tar.json").exists)  # the other process has nothing left to do
    building.send_signal(signal.SIGKILL)
    building.wait()
    wait_until(lambda: not Path("/proc", (folder / "reached").read_text()).exists())
    kept = {file: file.stat().st_mtime_ns for file in folder.glob("*.tar") if file.name != "n-00003.tar"}
    assert len(kept) == 4
    assert draw_numbers(folder, 1) == whole
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def parent_of(_: int) -> int:
    return os.getppid()


def test_few_tasks_stay_in_this_process() -> None:
    assert set(in_order(parent_of, range(3))) == {os.getppid()}
    assert set(in_order(parent_of, range(3), processes=2)) == {os.getpid()}
