"""What is in a fingerprint, what is not, and what is refused."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, create_model
from toy_recipe_kinds import KINDS, METHODS, Mimic, Train

from orchestrator.plan.diff import diff
from orchestrator.plan.fingerprint import fingerprint, payload
from orchestrator.plan.types import Input
from orchestrator.recipe.schema import Config, Execution, Model, OneOf, Ref, references
from orchestrator.stages.base import StageConfig

VALUES = {
    "steps": st.integers(1, 1000),
    "learning_rate": st.floats(1e-6, 1.0),
    "betas": st.lists(st.floats(0, 1), max_size=3),
    "size": st.sampled_from(["small", "large", 3, 64]),
    "space": st.dictionaries(st.sampled_from("abc"), st.floats(0, 1), max_size=3),
    "shuffle": st.booleans(),
    "method": st.sampled_from(["plain", "mimic", {"mimic": {"temperature": 20}}, {"plain": {}}]),
    "teacher": st.sampled_from([None, "t", "u"]),
    "init": st.sampled_from([None, {"from": "t"}, {"from": "t", "keep": 0.5}]),
}
TRAINS = st.fixed_dictionaries({}, optional=VALUES)


def resolved(
    config: Config, hashes: Mapping[str, str] | None = None, names: Mapping[str, str] | None = None
) -> list[Input]:
    """Inputs of a configuration whose references mean stages with made-up fingerprints."""
    hashes, names = hashes or {}, names or {}
    return [
        Input(path, ref.artifact.__name__, names.get(ref, ref), "model", None, "train", hashes.get(ref, f"fp-{ref}"))
        for path, ref in references(config)
    ]


def payload_of(values: Mapping[str, Any], kind: type[Config] = Train, **kwargs: Any) -> dict[str, Any]:
    config = kind.model_validate({"data": "d", **values} if kind is Train else values)
    return payload("train", config, resolved(config, **kwargs))


def identity(values: Mapping[str, Any], kind: type[Config] = Train, **kwargs: Any) -> str:
    return fingerprint(payload_of(values, kind, **kwargs))


@settings(deadline=None)
@given(TRAINS, st.randoms())
def test_the_order_of_keys_changes_nothing(values, rng: random.Random):
    shuffled = list(values.items())
    rng.shuffle(shuffled)
    assert identity(dict(shuffled)) == identity(values)
    body = payload_of(values)
    assert fingerprint(dict(reversed(body.items()))) == fingerprint(body)


@settings(deadline=None)
@given(TRAINS)
def test_a_default_written_out_changes_nothing(values):
    defaults = {"steps": 100, "learning_rate": 1e-3, "betas": [0.9, 0.98], "size": "small", "method": {"plain": {}}}
    assert identity({**defaults, **values}) == identity(values)


@settings(deadline=None)
@given(TRAINS, st.integers(1, 9), st.floats(0.5, 8))
def test_execution_fields_change_nothing_at_any_depth(values, log_every, cpus):
    more = {"log_every": log_every, "retries": log_every, "resources": {"cpus": cpus, "workers": log_every}}
    assert identity({**values, **more}) == identity(values)


@settings(deadline=None)
@given(TRAINS)
def test_a_payload_survives_json(values):
    body = payload_of(values)
    assert fingerprint(json.loads(json.dumps(body))) == fingerprint(body)


@settings(deadline=None, max_examples=50)
@given(TRAINS, TRAINS)
def test_equal_fingerprints_mean_equal_identity_and_the_difference_is_said_otherwise(one, other):
    a, b = payload_of(one), payload_of(other)
    same = Train.model_validate({"data": "d", **one}) == Train.model_validate({"data": "d", **other})
    assert (fingerprint(a) == fingerprint(b)) == same
    assert (diff(a, b, Train) == []) == same


@settings(deadline=None)
@given(TRAINS)
def test_a_new_field_with_a_default_changes_nothing(values):
    class Judge(Config):
        """A new part."""

        strict: bool = False

    grown = create_model("Train", __base__=Train, dropout=(float, 0.0), judge=(Judge, Judge()), tags=(list[str], []))
    assert identity(
        values, create_model("Train", __base__=grown, data=(Train.model_fields["data"].annotation, "d"))
    ) == (identity(values))


def test_names_of_stages_are_not_in_a_payload():
    assert identity({"teacher": "t"}, names={"t": "renamed"}) == identity({"teacher": "t"})
    body = json.dumps(payload_of({"teacher": "zebra"}, hashes={"zebra": "0" * 64}))
    assert "zebra" not in body


def test_a_reference_counts_by_what_it_resolves_to():
    assert identity({"teacher": "t"}, hashes={"t": "a"}) != identity({"teacher": "t"}, hashes={"t": "b"})
    assert identity({"teacher": "t"}, hashes={"t": "a"}) == identity({"teacher": "u"}, hashes={"u": "a"})


def test_a_default_reference_is_an_input_too():
    class Scored(StageConfig):
        judge: Ref[Model] = "open_clip:a/b"

    assert identity({}, Scored, hashes={"open_clip:a/b": "1"}) != identity({}, Scored, hashes={"open_clip:a/b": "2"})


def test_an_integer_and_a_float_of_a_float_field_are_the_same():
    assert identity({"learning_rate": 1}) == identity({"learning_rate": 1.0})
    assert identity({"betas": [1, 0]}) == identity({"betas": [1.0, -0.0]})


def test_the_payload_reads_as_documented():
    config = Train.model_validate({"data": "d", "steps": 7, "method": {"mimic": {"temperature": 20}}, "teacher": "t"})
    assert payload("train", config, resolved(config), ["digest"], "nonce") == {
        "kind": "train",
        "version": 1,
        "config": {
            "data": {"artifact": "Dataset", "output": "model", "fingerprint": "fp-d"},
            "method": {"mimic": {"temperature": 20.0}},
            "teacher": {"artifact": "Model", "output": "model", "fingerprint": "fp-t"},
            "steps": 7,
        },
        "versions": {"affinities": 3, "method mimic": 2},
        "external": ["digest"],
        "rerun": "nonce",
    }


@pytest.mark.parametrize("where", ["kind", "method", "shared code"])
def test_raising_a_version_changes_the_fingerprint_also_of_parts_at_their_default(monkeypatch, where):
    class Defaulted(Train):
        method: Annotated[Config, OneOf(METHODS)] = "mimic"

    before = identity({"data": "d"}, Defaulted)
    if where == "kind":
        monkeypatch.setattr(Defaulted, "version", 2)
    elif where == "method":
        monkeypatch.setattr(Mimic, "version", 3)
    else:
        monkeypatch.setattr(Mimic, "versions", lambda self: {"affinities": 4})
    assert identity({"data": "d"}, Defaulted) != before


def test_members_of_a_union_of_classes_are_told_apart():
    class Left(Config):
        side: str = "left"

    class Right(Config):
        side: str = "right"

    class Either(Config):
        part: Left | Right

    one, other = Either(part=Left()), Either(part=Right())
    assert fingerprint(payload("k", one, [])) != fingerprint(payload("k", other, []))


class Loose(Config):
    """Holds what no recipe can."""

    model_config: ClassVar = {"arbitrary_types_allowed": True, "allow_inf_nan": True}
    value: Any = None
    deep: Execution[Any] = None


@pytest.mark.parametrize(
    ("value", "fragment"),
    [
        (print, "cannot be encoded"),
        (object(), "cannot be encoded"),
        ({1, 2}, "cannot be encoded"),
        (b"x", "cannot be encoded"),
        (1j, "cannot be encoded"),
        (math.nan, "not a finite number"),
        (math.inf, "not a finite number"),
        ([{"a": math.nan}], r"value\.0\.a: nan"),
        ({1: 2}, "key 1 is not text"),
        ({None: 2}, "is not text"),
    ],
)
def test_what_has_no_faithful_encoding_is_refused(value, fragment):
    with pytest.raises(ValueError, match=fragment):
        payload("k", Loose(value=value), [])
    assert payload("k", Loose(deep=value), [])["config"] == {}


NAMES = {"teacher": "teacher", "data": "clean"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({"learning_rate": 1e-3}, {"learning_rate": 5e-4}, ["learning_rate 0.001 (default) → 0.0005"]),
        ({"learning_rate": 2e-3}, {"learning_rate": 5e-4}, ["learning_rate 0.002 → 0.0005"]),
        ({"steps": 5}, {}, ["steps 5 → 100 (default)"]),
        ({}, {"shuffle": False}, ["shuffle true (default) → false"]),
        ({}, {"method": "mimic"}, ["method plain (default) → mimic"]),
        ({"method": "mimic"}, {"method": {"mimic": {"weight": 0.9}}}, ["method.mimic.weight 0.5 (default) → 0.9"]),
        ({}, {"init": {"from": "t"}}, ["init null (default) → {from: a Model}"]),
        (
            {"init": {"from": "t"}},
            {"init": {"from": "t", "keep": 0.5}},
            ["init.keep null (default) → 0.5"],
        ),
        ({"space": {"a": 1.0}}, {"space": {"a": 2.0, "b": 1.0}}, ["space.a 1.0 → 2.0", "space.b not given → 1.0"]),
        ({"betas": [0.1]}, {"betas": [0.1, 0.2]}, ["betas [0.1] → [0.1, 0.2]"]),
        ({"size": 3}, {"size": "large"}, ["size 3 → large"]),
        ({}, {}, []),
    ],
)
def test_differences_are_said_field_by_field(old, new, said):
    assert diff(payload_of(old), payload_of(new), Train) == said


def test_another_result_upstream_is_said_by_its_name():
    old, new = payload_of({}, hashes={"d": "1"}), payload_of({"steps": 7}, hashes={"d": "2"})
    assert diff(old, new, Train, NAMES, NAMES) == ["steps 100 (default) → 7", "upstream clean"]
    assert diff(old, new, Train, {"data": "raw"}, NAMES)[0] == "data raw → clean"


def test_raised_versions_and_reruns_and_other_data_are_said():
    config = Train.model_validate({"data": "d"})
    base = payload("train", config, resolved(config), ["a"])
    raised = {**base, "version": 2, "versions": {"loop": 3}}
    assert diff(base, raised, Train) == ["version of train 1 → 2", "version of loop 1 → 3"]
    again = payload("train", config, resolved(config), ["b"], "nonce")
    assert diff(base, again, Train) == ["content of the external data", "a re-run was asked for"]


def test_operators_in_a_list_are_compared_one_by_one():
    config = KINDS["curate"]

    def of(*steps):
        return payload_of({"data": "d", "steps": list(steps)}, config)

    assert diff(of("dedup"), of({"dedup": {"by": "image"}}), config) == ["steps.0.dedup.by pair (default) → image"]
    assert diff(of("dedup"), of(), config) == ["steps [dedup] → [] (default)"]


def test_field_of_a_type_with_constraints_keeps_its_default_out():
    class Bounded(Config):
        share: Annotated[float, Field(ge=0, le=1)] | None = 1

    assert payload("k", Bounded(share=1.0), [])["config"] == {}
