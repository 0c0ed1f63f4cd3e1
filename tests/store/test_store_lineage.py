"""Lineage: back to the data, forward to every use, each artifact once, its cost summed once."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from store_made import DIGEST, demo, make

from orchestrator.stages import KINDS
from orchestrator.store.artifacts import Cost, Manifest, Store
from orchestrator.store.lineage import Lineage, changed_packages, facts, inputs, seeds, total_cost


@pytest.fixture
def store(any_root) -> Store:
    return Store.open(any_root)


def stages(found) -> set[str]:
    return {manifest.stage for manifest in found.values()}


def test_back_to_the_data_and_forward_to_every_use(store):
    made = demo(store)
    known = Lineage.read(store)
    assert stages(known.ancestors([made["small"].fingerprint])) == {"pairs", "clean", "teacher", "small"}
    assert stages(known.descendants(made["clean"].fingerprint)) == {"teacher", "small", "scores"}
    assert stages(known.descendants(made["scores"].fingerprint)) == set()
    uses = {(u.role, u.name) for u in known.inputs(made["small"])}
    assert uses == {("data", "clean"), ("teacher", "teacher"), ("init.from", "teacher")}
    assert {(u.role, u.name) for u in known.users(made["pairs"].fingerprint)} == {
        ("data", "clean"),
        ("data", "scores"),
    }


@pytest.mark.parametrize("text", ["emoji", DIGEST, DIGEST[:8]])
def test_external_data_are_the_beginning_of_everything_made_of_them(store, text):
    made = demo(store)
    known = Lineage.read(store)
    assert list(known.find_external(text)) == [DIGEST]
    assert stages(known.descendants(DIGEST)) == stages(dict(enumerate(made.values())))
    assert inputs(made["pairs"])[0].role == "source"


@pytest.mark.parametrize("identity", ["open_clip:ViT-B-32/openai", "hf-hub:org/model"])
def test_models_from_outside_are_found_by_what_the_recipe_calls_them(store, identity):
    make(store, "tuned", "finetune", external={"init.from": identity})
    known = Lineage.read(store)
    assert known.find_external(identity) == {identity: identity}
    assert stages(known.descendants(identity)) == {"tuned"}


def test_one_source_with_two_contents_is_two_beginnings(store):
    demo(store)
    make(store, "pairs", "dataset", digest="99" * 32)
    assert set(Lineage.read(store).find_external("emoji")) == {DIGEST, "99" * 32}


def test_a_lineage_behind_something_reads_nothing_else(store):
    made = demo(store)
    behind = Lineage.behind(store.afresh(), [made["teacher"]])
    assert stages(behind.artifacts) == {"pairs", "clean", "teacher"}


def test_an_ancestor_that_is_gone_ends_that_branch_only(store):
    made = demo(store)
    store.storage.delete(f"curate/{made['clean'].fingerprint}/manifest.json")
    known = Lineage.read(store.afresh())
    assert stages(known.ancestors([made["small"].fingerprint])) == {"teacher", "small"}
    assert known.inputs(made["small"])[0].manifest is None


def test_cost_is_the_budget_for_the_time_of_work_and_counts_an_ancestor_once(store):
    made = demo(store)
    assert made["teacher"].cost == Cost(cpu_hours=1.0, gpu_hours=0.0)  # 2 CPUs for half an hour
    gpu = make(store, "big", config={"x": 1}, provenance={"cpus": 8.0, "gpus": 4.0, "workers": 4}, wall_s=7200.0)
    assert gpu.cost == Cost(cpu_hours=16.0, gpu_hours=8.0)
    assert make(store, "old", config={"x": 2}, provenance={}).cost == Cost()
    behind = Lineage.read(store).ancestors([made["small"].fingerprint])
    assert total_cost(behind.values()).cpu_hours == pytest.approx(4.0)


def test_seeds_are_those_written_and_the_kinds_own_default(store):
    written = make(store, "a", config={"seed": 3, "steps": [{"sample": {"seed": 7}}]})
    assert seeds(written, KINDS["pretrain"]) == {"seed": 3, "steps.0.sample.seed": 7}
    assert seeds(make(store, "b"), KINDS["pretrain"]) == {"seed": 0}
    assert seeds(make(store, "c", "curate"), None) == {}


def test_facts_say_code_machine_and_packages(store):
    code = {"commit": "c" * 40, "dirty": True, "diff": "--- a", "diff_sha256": "d" * 64}
    old = make(store, "a", provenance={"code": code, "packages": {"torch": "2.12", "numpy": "2"}, "cpus": 1.0})
    root = make(store, "b", config={"steps": 1})
    known = facts(old, KINDS["pretrain"])
    assert (known["commit"], known["uncommitted_changes"]) == ("c" * 40, "d" * 64)
    assert changed_packages(old, root) == {"torch": "2.12"}


def test_nodes_and_edges_for_programs(store):
    made = demo(store)
    value = Lineage.read(store).to_json([made["teacher"].fingerprint], KINDS)
    name = {m.fingerprint: stage for stage, m in made.items()} | {DIGEST: "emoji"}
    assert {name[f] for f in value["made_from"]} == {"pairs", "clean"}
    assert {name[f] for f in value["used_by"]} == {"small", "scores"}
    assert value["cost"]["cpu_hours"] == pytest.approx(3.0)
    assert ("emoji", "source", "pairs") in {(name[e["from"]], e["role"], name[e["to"]]) for e in value["edges"]}


def test_ten_thousand_artifacts_in_ladders_are_walked_in_a_second():
    """Each step is used twice by the next: 2^5000 paths, 10,000 artifacts."""

    first = Manifest(
        "k", f"{0:064x}", "a", 1, "s", "r", {}, {}, {}, "", {}, {}, {}, started=0.0, finished=0.0, wall_s=1.0
    )

    def step(number: int) -> Manifest:
        below = {"kind": "k", "fingerprint": f"{number - 1:064x}", "name": "s"}
        return replace(first, fingerprint=f"{number:064x}", inputs={"a": below, "b": below} if number else {})

    began = time.perf_counter()
    known = Lineage({m.fingerprint: m for m in map(step, range(10_000))})
    assert len(known.ancestors([f"{9_999:064x}"])) == 10_000
    assert len(known.descendants(f"{0:064x}")) == 9_999
    assert time.perf_counter() - began < 5  # 0.3 s on a quiet machine
