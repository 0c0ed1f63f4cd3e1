"""A recipe is kept, shown and shared: one that holds credentials is refused, at its place, without showing them."""

from __future__ import annotations

import pytest
from toy_recipe_kinds import KINDS

from orchestrator.errors import UserError
from orchestrator.io.storage import Storage
from orchestrator.recipe.errors import RecipeError
from orchestrator.recipe.load import load

SECRET = "wJalrXUtnFEMI7K7MDENG"
CREDENTIALS = {
    "in an address": (f"s3://AKIAABCDEFGHIJKLMNOP:{SECRET}@bucket/x", "a name or password in an address"),
    "presigned": (
        f"https://h/x.tar?X-Amz-Credential=AK&X-Amz-Signature={SECRET}",
        "the signature of a presigned address",
    ),
    "key id": ("AKIAABCDEFGHIJKLMNOP", "an AWS key id"),
    "of the environment": ("x/planted-value-1", "the value of $PLANTED_TOKEN"),
}


@pytest.mark.parametrize(("value", "kind"), CREDENTIALS.values(), ids=CREDENTIALS)
@pytest.mark.parametrize("by", ["the file", "an override", "a variable"])
def test_credentials_are_refused_with_their_place_and_are_not_shown(value, kind, by, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED_TOKEN", "planted-value-1")
    source = {"the file": f'"{value}"', "an override": "emoji", "a variable": "${vars.where}"}[by]
    file = tmp_path / "recipe.yaml"
    variable = f'vars: {{where: "{value}"}}\n' if by == "a variable" else ""
    file.write_text(f"name: x\n{variable}stages:\n  pairs:\n    kind: data\n    source: {source}\n    unknown: 1\n")
    overrides = [f'stages.pairs.source="{value}"'] if by == "an override" else []
    with pytest.raises(RecipeError) as caught:
        load(file, overrides, kinds=KINDS)
    first = caught.value.problems[0]
    assert first.message.startswith(f"holds {kind}; leave it out: credentials come from the environment")
    assert (
        str(first.position)
        == {
            "the file": f"{file}:5:13",
            "an override": "-s #1",
            "a variable": f"{file}:2:15",
        }[by]
    )
    for secret in (SECRET, "AKIAABCDEFGHIJKLMNOP", "planted-value-1"):
        assert secret not in str(caught.value)


@pytest.mark.parametrize("named", [f"AK:{SECRET}", f"AK:a/{SECRET}", SECRET])
def test_a_store_whose_address_names_credentials_is_refused_without_showing_them(named):
    with pytest.raises(UserError, match=r"s3://\*\*\*@bucket/x.*names credentials") as caught:
        Storage.open(f"s3://{named}@bucket/x")
    assert SECRET not in str(caught.value)


TAGS = ["!!python/object/apply:os.system ['touch harm']", "!!python/name:os.system x", "!x y"]


@pytest.mark.parametrize("tag", TAGS)
def test_tags_that_could_name_code_are_refused(tag, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"name: x\nstages:\n  pairs: {{kind: data, source: {tag}}}\n")
    with pytest.raises(RecipeError, match=r"the tag .* is not allowed"):
        load(file, kinds=KINDS)
