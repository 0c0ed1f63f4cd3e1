"""From what a person asks for to a `Plan`: load, cut down for `--smoke`, compile against a store. Neither torch nor
Ray.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from orchestrator.data.location import is_shared
from orchestrator.data.source import identify, known_at
from orchestrator.errors import UserError
from orchestrator.models.external import RANDOM, describe_external
from orchestrator.plan.compile import compile, named
from orchestrator.plan.types import Node, Plan
from orchestrator.recipe.load import load
from orchestrator.recipe.recipe import Recipe
from orchestrator.recipe.references import is_external
from orchestrator.recipe.schema import Model, references, replaced
from orchestrator.stages import KINDS
from orchestrator.stages.base import StageConfig
from orchestrator.store.artifacts import Store


@dataclass(frozen=True)
class Request:
    """What a person asks for; `compile` may be called again once external data have been indexed.

    Attributes:
        recipe: the loaded recipe, cut down if `smoke`.
        until: stages to stop at; empty for all.
        rerun: nonces of the stages to compute anew.
        said: what `--smoke` replaced, for people.
        again: the arguments of `orch submit` that go on with this very request.
    """

    recipe: Recipe
    until: tuple[str, ...] = ()
    rerun: Mapping[str, str] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    again: tuple[str, ...] = ()

    def compile(self, store: Store) -> Plan:
        """The plan, with fingerprints as far as external data are known to this store."""
        return compile(
            self.recipe,
            lambda source: identify(source, store),
            describe_external,
            until=self.until,
            rerun=self.rerun,
        )


def request(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    until: Collection[str] = (),
    rerun: Collection[str] = (),
    smoke: bool = False,
    kinds: Mapping[str, type[StageConfig]] = cast(Mapping[str, type[StageConfig]], KINDS),
) -> Request:
    """Load a recipe and what was asked beside it. RecipeError or UserError if any of it is wrong.

    A stage in `rerun` may be written `STAGE=NONCE`, to go on with a re-run that was begun before.
    """
    recipe = load(path, overrides, kinds=kinds)
    asked = dict(_nonce(text) for text in rerun)
    for name in (*until, *asked):
        named(recipe, name)
    again = [os.fspath(path), *(part for text in overrides for part in ("-s", text))]
    again += [*(part for name in until for part in ("--until", name)), *(["--smoke"] if smoke else [])]
    again += [part for name, nonce in asked.items() for part in ("--rerun", f"{name}={nonce}")]
    said: list[str] = []
    if smoke:
        recipe = cut_down(recipe, said.append)
    return Request(recipe, tuple(until), asked, tuple(said), tuple(again))


def _nonce(text: str) -> tuple[str, str]:
    """`STAGE` with a fresh nonce, or `STAGE=NONCE`; a matrix stage's own `=` is inside brackets."""
    found = re.fullmatch(r"(.+)=([0-9a-f]{16})", text)
    return (found[1], found[2]) if found else (text, secrets.token_hex(8))


def cut_down(recipe: Recipe, say: Callable[[str], None]) -> Recipe:
    """Every stage as its kind's `smoke` has it; `say` is told what was replaced."""
    stages = {}
    for name, spec in recipe.stages.items():
        whole = cast(StageConfig, spec.config)
        small = whole.smoke()
        for old, new in zip(whole.external_sources(), small.external_sources()):
            if old != new:
                say(f"{name}: '{old}' cannot be reached; the sample set '{new}' stands in for it")
        for path, reference in references(small):
            if is_external(reference) and issubclass(Model, reference.artifact):
                say(f"{name}: a small model with random weights stands in for '{reference}'")
                small = replaced(small, path, type(reference)(RANDOM + reference))
        stages[name] = replace(spec, config=small)
    return replace(recipe, name=f"{recipe.name}-smoke", stages=stages)


def unknown_sources(plan: Plan, store: Store) -> list[str]:
    """External data to index before every stage can have a fingerprint."""
    named_once = dict.fromkeys(source for node in plan.nodes.values() for source in node.external if node.pending)
    return [source for source in named_once if identify(source, store) is None]


def sources_to_copy(nodes: Iterable[Node], store: Store) -> list[str]:
    """External data that must be copied into the store before these stages run, for workers that cannot read them."""
    on_disk = store.storage.local("x") is not None
    wanted = {
        source: place
        for node in nodes
        for source, place in node.external.items()
        if cast(StageConfig, node.config).copies(is_shared(source), on_disk)
    }
    found = {source: known_at(str(place), store) for source, place in wanted.items()}
    return [source for source, known in found.items() if known is None or not known.copied(store)]


def check_known(plan: Plan) -> None:
    """UserError if a stage still has no fingerprint."""
    for node in plan.nodes.values():
        if node.fingerprint is None:
            raise UserError(f"stage '{node.name}' cannot be identified: {node.pending}")
