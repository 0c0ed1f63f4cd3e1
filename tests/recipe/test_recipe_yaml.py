"""YAML 1.2 values, positions, and what is refused."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.recipe import yaml
from orchestrator.recipe.errors import RecipeError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("1e-3", 1e-3),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-7", -7),
        ("+7", 7),
        ("1.", 1.0),
        (".5", 0.5),
        ("1E+2", 100.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("~", None),
        ("null", None),
        ("", None),
        ("true", True),
        ("False", False),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("0b11", "0b11"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("tRUE", "tRUE"),
    ],
)
def test_plain_scalars_mean_what_the_core_schema_says(text, value):
    found = yaml.parse(f"a: {text}", "r.yaml").value["a"]
    assert found == value
    assert type(found) is type(value)


def test_nan_is_read_as_a_number():
    assert math.isnan(yaml.parse("a: .nan", "r.yaml").value["a"])


def test_marks_hold_key_and_value_positions_of_every_path():
    document = yaml.parse("a:\n  b: [x, {c: 1}]\n", "r.yaml")
    assert str(document.marks[("a", "b")].key) == "r.yaml:2:3"
    assert str(document.marks[("a", "b")].value) == "r.yaml:2:6"
    assert str(document.marks[("a", "b", 1, "c")].value) == "r.yaml:2:14"
    assert document.marks[("a", "b", 1, "c")].value.text == "  b: [x, {c: 1}]"


def test_aliases_are_copies_with_marks_of_their_own():
    document = yaml.parse("a: &x {k: [1]}\nb: *x\n", "r.yaml")
    document.value["a"]["k"].append(2)
    assert document.value["b"] == {"k": [1]}
    assert str(document.marks[("b",)].value) == "r.yaml:2:4"
    assert str(document.marks[("b", "k", 0)].value) == "r.yaml:1:12"


BILLION_LAUGHS = "\n".join(["a0: &a0 [1]", *(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12))])


@pytest.mark.parametrize(
    ("text", "place", "fragment"),
    [
        ("a:\n\tb: 1", "r.yaml:2:1", "tab is used for indentation"),
        ("a:\n  b: 1\n \tc: 2", "r.yaml:3:2", "tab is used for indentation"),
        ("a: b: c", "r.yaml:1:5", "not valid YAML"),
        ("a: [1,\n  2", "r.yaml:3:1", "starts on line 1"),
        ("a: 'x", "r.yaml:1:6", "quoted scalar"),
        ("a: 1\n---\nb: 2", "r.yaml:2:1", "second document"),
        ("", "r.yaml", "empty"),
        ("# only a comment\n", "r.yaml", "empty"),
        ("a: \x01", "r.yaml:1:4", "control character"),
        ("a: 1\nb: 2\na: 3", "r.yaml:3:1", "duplicate key 'a'; it is already on line 1"),
        ("a: {b: 1, b: 2}", "r.yaml:1:11", "duplicate key 'b'"),
        ("a: !!python/object/apply:os.system [ls]", "r.yaml:1:4", "!!python/object/apply:os.system"),
        ("a: !!str 1", "r.yaml:1:4", "tag !!str"),
        ("!!str a: 1", "r.yaml:1:1", "tag !!str"),
        ("a: !mine {}", "r.yaml:1:4", "tag !mine"),
        ("a: *nowhere", "r.yaml:1:4", "no anchor &nowhere"),
        ("a: &a [*a]", "r.yaml:1:8", "contains itself"),
        (BILLION_LAUGHS, "r.yaml:6:14", "more than 50,000 values"),
        ("1: a", "r.yaml:1:1", "a key must be text"),
        ("[a]: b", "r.yaml:1:1", "a key must be text"),
        ("<<: {a: 1}", "r.yaml:1:1", "merge keys"),
        ("[" * 100_000, "r.yaml:1:66", "nested deeper"),
        ("a: " + "9" * 5000, "r.yaml:1:4", "too long"),
    ],
)
def test_what_has_no_place_in_a_recipe_is_one_positioned_error(text, place, fragment):
    with pytest.raises(RecipeError) as caught:
        yaml.parse(text, "r.yaml")
    (problem,) = caught.value.problems
    assert str(problem.position) == place
    assert fragment in problem.message


@pytest.mark.parametrize(
    ("data", "fragment"),
    [
        ("a: ü".encode("utf-16"), "not UTF-8"),
        ("a: 1".encode("utf-16-le"), "not UTF-8"),
        (b"a: 1\nb: \xff", "byte 0xff is not UTF-8"),
        (b"", "empty"),
    ],
)
def test_files_in_other_encodings_are_refused(tmp_path, data, fragment):
    (tmp_path / "r.yaml").write_bytes(data)
    with pytest.raises(RecipeError, match=fragment):
        yaml.read(tmp_path / "r.yaml")


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: |\r\n  x\r\n")
    assert yaml.read(tmp_path / "r.yaml").value == {"a": 1, "b": "x\n"}


def test_a_file_of_50_mb_is_refused_by_its_size_within_a_second(tmp_path):
    with open(tmp_path / "r.yaml", "wb") as file:
        file.truncate(50_000_000)
    start = time.monotonic()
    with pytest.raises(RecipeError, match="50,000,000 bytes"):
        yaml.read(tmp_path / "r.yaml")
    assert time.monotonic() - start < 1


def test_a_misspelt_file_name_gets_the_nearest_one(tmp_path):
    (tmp_path / "clip.yaml").write_text("a: 1")
    with pytest.raises(RecipeError, match=r"did you mean .*clip\.yaml"):
        yaml.read(tmp_path / "clop.yaml")


TEXT = st.text(alphabet="aZ0 .-_:#'\"{}[],&*!|>%@`?~\n\tü→", max_size=8)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
WORDS = ["no", "1e-3", "0o10", "010", "1_000", "on", "~", ".inf", "0x1F", "12:30", "+.5", "null", "True"]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=200)
@given(st.dictionaries(st.sampled_from(["k", *WORDS]), PLAIN | st.sampled_from(WORDS), max_size=4))
def test_dumped_values_read_back_equal(value):
    assert yaml.parse(yaml.dump(value), "r.yaml").value == value
