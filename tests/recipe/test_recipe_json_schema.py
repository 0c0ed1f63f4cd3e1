"""The JSON Schema knows every kind and field, and lets through what `load` lets through."""

from __future__ import annotations

import json

from toy_recipe_kinds import KINDS

from orchestrator.recipe.json_schema import schema, write


def resolve(root, node):
    return root["$defs"][node["$ref"].removeprefix("#/$defs/")] if "$ref" in node else node


def refs(node):
    if isinstance(node, dict):
        yield from [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        for item in node.values():
            yield from refs(item)
    elif isinstance(node, list):
        for item in node:
            yield from refs(item)


def kind_of(root, kind):
    conditions = root["$defs"]["stage"]["allOf"]
    (found,) = (c["then"] for c in conditions if c["if"]["properties"]["kind"]["const"] == kind)
    return resolve(root, found)


def test_every_kind_has_its_fields_with_their_docs_and_kind_and_matrix():
    root = schema(KINDS)
    assert root["$defs"]["stage"]["properties"]["kind"]["enum"] == list(KINDS)
    train = kind_of(root, "train")["properties"]
    assert {"kind", "matrix", "data", "learning_rate", "resources"} <= set(train)
    assert train["learning_rate"]["description"] == "Peak learning rate."
    assert train["learning_rate"]["default"] == 1e-3


def test_every_reference_inside_the_schema_leads_somewhere():
    root = schema(KINDS)
    assert all(ref.removeprefix("#/$defs/") in root["$defs"] for ref in refs(root))


def test_a_choice_is_a_name_or_a_name_with_options():
    root = schema(KINDS)
    options = kind_of(root, "train")["properties"]["method"]["anyOf"]
    assert [o["const"] for o in options if "const" in o] == ["plain", "mimic"]
    bodies = [o for o in options if "mimic" in o.get("properties", {})]
    inside = bodies[0]["properties"]["mimic"]["anyOf"][0]
    assert "temperature" in resolve(root, inside)["properties"]


def test_no_field_is_required_and_every_number_may_be_a_variable():
    root = schema(KINDS)
    train = kind_of(root, "train")
    assert "required" not in train
    for name in ("steps", "shuffle", "betas", "method", "size", "init"):
        assert any("vars" in o.get("pattern", "") for o in train["properties"][name]["anyOf"]), name


def test_it_is_written_as_json(tmp_path):
    write(tmp_path / "schema.json", KINDS)
    assert json.loads((tmp_path / "schema.json").read_text()) == schema(KINDS)
