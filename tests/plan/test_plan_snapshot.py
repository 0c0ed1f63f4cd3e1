"""The schema's snapshot: a default may change only with a version.

Regenerate after a deliberate change: `python tests/plan/test_plan_snapshot.py`. It refuses where a default changed and
the version of its class did not.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest

from orchestrator.plan.snapshot import snapshot, unversioned
from orchestrator.stages import KINDS

FILE = Path(__file__).parent / "schema_snapshot.json"


def test_the_schema_is_the_committed_one():
    committed, now = json.loads(FILE.read_text()), snapshot(KINDS)
    assert unversioned(committed, now) == [], (
        "raise the version of these classes: the same recipe now means another result"
    )
    assert now == committed, "the schema changed; regenerate with: python tests/plan/test_plan_snapshot.py"


TOY = {"method x": {"version": 1, "fields": {"a": {"type": "int", "execution": False, "default": 1}}}}


def changed(**facts):
    other = copy.deepcopy(TOY)
    other["method x"]["version"] = facts.pop("version", 1)
    other["method x"]["fields"]["a"] |= facts
    return other


@pytest.mark.parametrize(
    ("new", "broken"),
    [
        (TOY, []),
        (changed(default=2), ["method x: default of a 1 → 2"]),
        (changed(default=2, version=2), []),
        (changed(default=True), ["method x: default of a 1 → True"]),
        (changed(default=2, execution=True), ["method x: default of a 1 → 2"]),
        ({}, []),
        ({**TOY, "method y": TOY["method x"]}, []),
    ],
)
def test_a_changed_default_needs_a_raised_version(new, broken):
    assert unversioned(TOY, new) == broken


def test_defaults_of_execution_fields_may_change():
    old, new = changed(execution=True), changed(execution=True, default=5)
    assert unversioned(old, new) == []


def regenerate() -> None:
    """Write the snapshot, unless a default changed without a version."""
    now = snapshot(KINDS)
    broken = unversioned(json.loads(FILE.read_text()), now) if FILE.exists() else []
    if broken:
        sys.exit("raise the version of these classes first:\n" + "\n".join(broken))
    FILE.write_text(json.dumps(now, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    regenerate()
