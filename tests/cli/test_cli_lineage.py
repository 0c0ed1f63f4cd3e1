"""`orch show`, `orch compare`, `orch keep` and `orch gc` as a person and a program see them."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from store_made import DIGEST, demo, make, submitted

from orchestrator.cli.main import orch
from orchestrator.errors import OrchError, UserError
from orchestrator.store.artifacts import Store


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("ORCH_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Store.open(str(tmp_path / "store"))


def told(*arguments: str, code: int = 0):
    """What a command says; an error for people is raised as it is."""
    result = CliRunner().invoke(orch, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def test_both_trees_of_a_model(store):
    made = demo(store)
    run = submitted(store, made)
    lines = told("show", "teacher", "--lineage").stdout.splitlines()
    assert lines[0].startswith(f"teacher (pretrain {made['teacher'].fingerprint[:12]}): ")
    assert "1 CPU h, on here, seed 0, run 20260101" in lines[0]
    assert lines[1].startswith("└── data = clean (curate ")
    assert lines[2].startswith("    └── data = pairs (dataset ")
    assert lines[3] == f"        └── source = emoji (external, {DIGEST[:12]})"
    assert lines[4:6] == ["in all: 3 CPU h", "used by"]
    assert f"small (distill {made['small'].fingerprint[:12]}) as init.from and teacher: " in lines[6]
    assert lines[7].startswith("    └── scores (evaluate ")
    assert lines[8] == f"asked for by: {run.id}"


@pytest.mark.parametrize("what", ["emoji", DIGEST[:10]])
def test_everything_made_of_external_data(store, what):
    demo(store)
    lines = told("show", what, "--lineage").stdout.splitlines()
    assert lines[:2] == [f"emoji (external, {DIGEST[:12]})", "used by"]
    assert [line.lstrip(" │├└─").partition(" ")[0] for line in lines[2:]] == [
        "pairs",
        "clean",
        "teacher",
        "small",
        "scores",
        "small",
        "scores",
    ]
    value = json.loads(told("show", what, "--json").stdout)
    assert value["names"] == {DIGEST: "emoji"}
    assert len(value["used_by"]) == 5


def test_the_lineage_of_a_run_and_what_others_made_of_it(store):
    made = demo(store)
    run = submitted(store, {name: made[name] for name in ("pairs", "clean", "teacher")})
    text = told("show", run.id, "--lineage").stdout
    assert text.count("teacher (pretrain") == 1
    assert "teacher was also used by\n└── small (distill" in text
    assert len(json.loads(told("show", run.id, "--lineage", "--json").stdout)["used_by"]) == 2


def test_packages_of_ancestors_are_said_where_they_differ(store):
    old = make(store, "old", provenance={"packages": {"torch": "2.12"}})
    make(store, "new", "distill", {"teacher": old}, finished=3000.0)
    new = make(store, "new", "distill", {"teacher": old})
    assert "torch 2.12" in told("show", new.fingerprint, "--lineage").stdout


def test_a_page_of_an_artifact_has_recipe_seeds_machine_packages_and_cost(store):
    text = told("show", demo(store)["teacher"].fingerprint).stdout
    for part in ("1 CPU h", "recipe: stage teacher of run 20260101", "seeds", "machine", "torch", "data.bin"):
        assert part in text, part


@pytest.mark.parametrize("truncated", [False, True])
def test_uncommitted_changes_are_a_patch_on_stdout(store, truncated):
    code = {"commit": "c" * 40, "dirty": True, "diff": "--- a\n+++ b\n", "diff_sha256": "d" * 64}
    made = make(store, "t", provenance={"code": {**code, "diff_truncated": truncated}})
    result = told("show", made.fingerprint, "--diff")
    assert result.stdout == "--- a\n+++ b\n"
    assert "c" * 40 in result.stderr
    assert ("cut off" in result.stderr) == truncated


def test_a_damaged_manifest_is_named_and_the_others_are_shown(store):
    made = demo(store)
    store.storage.put(f"distill/{made['small'].fingerprint}/manifest.json", b"{")
    result = told("show", made["teacher"].fingerprint, "--lineage")
    assert result.stdout.startswith("teacher (pretrain")
    assert f"{made['small'].fingerprint}/manifest.json" in result.stderr


def test_what_is_unknown_is_refused(store):
    demo(store)
    with pytest.raises(UserError, match="is called 'nothing'"):
        told("show", "nothing", "--lineage")


def test_two_artifacts_are_compared_down_to_the_first_cause(store):
    old, new = demo(store), demo(store, learning_rate=0.0005)
    pair = old["small"].fingerprint, new["small"].fingerprint
    text = told("compare", *pair).stdout
    assert "because of teacher (by init.from): learning_rate 0.001 (default) → 0.0005" in text
    value = json.loads(told("compare", *pair, "--json").stdout)
    assert value["causes"][0]["stage"] == "teacher"
    assert told("compare", pair[0], pair[0]).stdout.endswith("one and the same artifact\n")


def test_two_runs_are_compared_stage_by_stage(store):
    runs = [submitted(store, demo(store, steps=n)).id for n in (500, 600)]
    lines = told("compare", *runs).stdout.splitlines()
    assert lines[2:7] == [
        "pairs: the same",
        "clean: the same",
        "teacher: steps 500 → 600; their content is identical"
        if "identical" in lines[4]
        else "teacher: steps 500 → 600",
        lines[5],
        lines[6],
    ]
    assert lines[5].startswith("small: because of teacher")
    assert json.loads(told("compare", *runs, "--json").stdout)["stages"]["pairs"]["same"]
    with pytest.raises(UserError, match="is a run and"):
        told("compare", runs[0], "small")


def test_a_kept_name_is_good_everywhere_until_it_is_dropped(store):
    made = demo(store)
    assert "is kept as 'best'" in told("keep", made["small"].fingerprint, "--as", "best").stdout
    assert told("show", "best").stdout.startswith("distill 'small'")
    assert json.loads(told("keep", "--list", "--json").stdout)[0]["fingerprint"] == made["small"].fingerprint
    assert "best" in told("keep", "--list").stdout
    assert "not kept any more" in told("keep", "--drop", "best").stdout
    with pytest.raises(UserError, match="is called 'best'"):
        told("show", "best")
    told("keep", code=2)


def test_collection_shows_first_and_deletes_when_told(store):
    made = demo(store)
    told("keep", made["teacher"].fingerprint, "--as", "best")
    text = told("gc", "--older-than", "0").stdout
    assert "kept as best: 3 artifacts" in text
    assert "distill 'small'" in text
    assert "nothing was deleted" in text
    assert len(list(store.afresh().manifests())) == 5
    assert json.loads(told("gc", "--older-than", "0", "--json").stdout)["by_category"]["artifacts"]["things"] == 2
    assert "artifacts: 2" in told("gc", "--older-than", "0", "--delete").stdout
    assert {m.stage for m in store.afresh().manifests()} == {"pairs", "clean", "teacher"}
    assert "there is nothing to delete" in told("gc", "--older-than", "0").stdout


def test_nothing_young_goes(store):
    demo(store)
    assert "young: 5 artifacts" in told("gc", "--delete").stdout
    assert len(list(store.afresh().manifests())) == 5


def test_nothing_is_deleted_while_mlflow_cannot_be_asked_unless_it_is_left_out(store, monkeypatch):
    demo(store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with pytest.raises(OrchError, match="cannot be asked"):
        told("gc", "--older-than", "0", "--delete")
    assert "cannot be asked" in told("gc", "--older-than", "0").stderr
    assert len(list(store.afresh().manifests())) == 5
    told("gc", "--older-than", "0", "--delete", "--no-mlflow")
    assert list(store.afresh().manifests()) == []


def test_verification_says_what_is_damaged_and_exits_with_1(store):
    small = demo(store)["small"]
    assert "all as published" in told("gc", "--verify").stdout
    store.storage.put(f"{small.prefix}/data.bin", b"?")
    text = told("gc", "--verify", code=1).stdout
    assert f"{small.prefix}/data.bin (stage small of run {small.run})" in text
    assert json.loads(told("gc", "--verify", "--json", code=1).stdout)["problems"][0]["stage"] == "small"
