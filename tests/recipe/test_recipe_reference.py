"""Every field of every stage kind, method, operator and task can be read about."""

from __future__ import annotations

import pytest

from orchestrator.curation import OPERATORS
from orchestrator.evaluation import TASKS
from orchestrator.methods import METHODS
from orchestrator.recipe.reference import describe
from orchestrator.stages import KINDS

EVERYTHING = [(table, name) for table in (KINDS, METHODS, OPERATORS, TASKS) for name in table]


@pytest.mark.parametrize(("table", "name"), EVERYTHING, ids=[name for _, name in EVERYTHING])
def test_every_field_is_documented_once(table, name):
    pages = describe(table[name])
    assert len({page.name for page in pages}) == len(pages)
    assert not [page.name for page in pages if not page.text]
    assert table[name].__doc__


def test_a_page_says_type_default_and_whether_results_change():
    pages = {page.name: page for page in describe(KINDS["distill"])}
    assert pages["learning_rate"].type == "number"
    assert pages["teacher"].type == "a Model"
    assert pages["teacher"].default == "(required)"
    assert pages["method"].type.startswith("one of the methods: captioner, clip, tinyclip")
    assert pages["resources.workers"].execution
    assert not pages["batch"].execution
