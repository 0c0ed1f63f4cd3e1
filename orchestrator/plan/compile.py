"""Recipe to Plan: references become edges, edges and external data become fingerprints.

Stages are taken in an order in which each comes after those it needs, so that every fingerprint is computed from
finished ones. External data is known by content only: where `identify` does not know a source yet, the stage has no
fingerprint, and neither has anything that follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import UserError
from orchestrator.plan.fingerprint import fingerprint, payload
from orchestrator.plan.types import Input, Node, Plan
from orchestrator.recipe.errors import Problem, nearest, raise_problems
from orchestrator.recipe.recipe import Recipe, StageSpec
from orchestrator.recipe.references import Edge, lacks, resolve


@dataclass(frozen=True)
class Indexed:
    """External data that a store knows: the digest of its content, and the key prefix of what is kept of it."""

    digest: str
    place: str


Identify = Callable[[str], Indexed | None]
"""Source of external data to what a store knows of it; None if it has not been indexed."""


@dataclass(frozen=True)
class External:
    """What is known of an external artifact without loading it.

    Attributes:
        identity: of its content; None while unknown, and `unknown` says why.
        capabilities: what it can do, if it is a model.
    """

    identity: str | None
    capabilities: frozenset[str] = frozenset()
    unknown: str = ""


IdentifyExternal = Callable[[str], External]
"""External reference to what is known of it; UserError: it cannot be had."""


def compile(
    recipe: Recipe,
    identify: Identify,
    identify_external: IdentifyExternal,
    *,
    until: Collection[str] = (),
    rerun: Mapping[str, str] | None = None,
) -> Plan:
    """Compile a recipe.

    Args:
        recipe: the loaded recipe.
        identify: looks up what is known of a stage's external source.
        identify_external: says what is known of an external reference.
        until: stages to stop at; nothing that they do not need is in the plan. Empty: all.
        rerun: nonces by stage, for stages to compute anew.

    Raises:
        RecipeError: references are wrong, an external artifact cannot be had or cannot do what is asked of it, or
            stages do not fit together; all problems at once.
        UserError: `until` or `rerun` names no stage.
    """
    edges, problems = resolve(recipe.stages)
    raise_problems(problems)
    nonces = {name: nonce for asked, nonce in (rerun or {}).items() for name in named(recipe, asked)}
    wanted = _needed({name for asked in until for name in named(recipe, asked)} or set(recipe.stages), edges)
    externals, problems = _identify_externals(recipe, wanted, edges, identify_external)
    raise_problems(problems)
    nodes: dict[str, Node] = {}
    for name in order(recipe.stages, edges):
        if name in wanted:
            spec = recipe.stages[name]
            nodes[name] = _node(spec, edges[name], nodes, externals, identify, nonces.get(name))
            config: Any = nodes[name].config
            problems += [
                Problem(spec.position(path), (*spec.path, *path), message)
                for path, message in config.disagreements(nodes[name], nodes)
            ]
    raise_problems(problems)
    return Plan(recipe.name, nodes, recipe.values)


def named(recipe: Recipe, name: str) -> tuple[str, ...]:
    """The stages that a name on the command line means: one, or all arms of a matrix; UserError if none."""
    if name in recipe.groups:
        return recipe.groups[name]
    if name in recipe.stages:
        return (name,)
    near = nearest(name, [*recipe.stages, *recipe.groups])
    hint = f"did you mean {near}? " if near else ""
    raise UserError(f"there is no stage '{name}' in {recipe.path}", f"{hint}stages: {', '.join(recipe.stages)}")


def order(stages: Collection[str], edges: Mapping[str, list[Edge]]) -> list[str]:
    """Stages so that each comes after those it needs; otherwise in the order of the recipe."""
    done: dict[str, None] = {}

    def visit(name: str) -> None:
        if name not in done:
            for needed in sorted({e.stage for e in edges[name] if e.stage is not None}, key=place.__getitem__):
                visit(needed)
            done[name] = None

    place = {name: number for number, name in enumerate(stages)}
    for name in stages:
        visit(name)
    return list(done)


def _needed(targets: set[str], edges: Mapping[str, list[Edge]]) -> set[str]:
    """The targets and everything before them."""
    found: set[str] = set()
    queue = list(targets)
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            queue += [edge.stage for edge in edges[name] if edge.stage is not None]
    return found


def _identify_externals(
    recipe: Recipe, wanted: set[str], edges: Mapping[str, list[Edge]], identify_external: IdentifyExternal
) -> tuple[dict[str, External], list[Problem]]:
    """What is known of all external references, each looked up once, and what is wrong with them."""
    known: dict[str, External] = {}
    problems = []
    for name, spec in recipe.stages.items():
        for edge in edges[name] if name in wanted else ():
            if edge.external is None:
                continue
            try:
                if edge.external not in known:
                    known[edge.external] = identify_external(edge.external)
                can = known[edge.external].capabilities
                message = lacks(edge.external, edge.needs | spec.config.asks_of(edge.key, can), can)
            except UserError as error:
                message = f"{error.message} ({error.remedy})" if error.remedy else error.message
            if message is not None:
                problems.append(Problem(spec.position(edge.path), (*spec.path, *edge.path), message, edge.external))
    return known, problems


def _node(
    spec: StageSpec,
    edges: list[Edge],
    nodes: Mapping[str, Node],
    externals: Mapping[str, External],
    identify: Identify,
    nonce: str | None,
) -> Node:
    config: Any = spec.config
    inputs = tuple(_input(edge, nodes, externals) for edge in edges)
    indexed = {source: identify(source) for source in config.external_sources()}
    pending = _pending(inputs, externals, indexed)
    body = None
    if pending is None:
        body = payload(spec.kind, config, inputs, [known.digest for known in indexed.values() if known], nonce)
    return Node(
        name=spec.name,
        kind=spec.kind,
        config=config,
        inputs=inputs,
        resources=config.budget(),
        payload=body,
        fingerprint=fingerprint(body) if body is not None else None,
        pending=pending,
        external={source: known.place if known else None for source, known in indexed.items()},
    )


def _input(edge: Edge, nodes: Mapping[str, Node], externals: Mapping[str, External]) -> Input:
    known = nodes[edge.stage].fingerprint if edge.stage is not None else externals[str(edge.external)].identity
    return Input(edge.key, edge.artifact, edge.stage, edge.output, edge.external, edge.kind, known)


def _pending(
    inputs: tuple[Input, ...], externals: Mapping[str, External], indexed: Mapping[str, Indexed | None]
) -> str | None:
    """Why a stage has no fingerprint yet, or None."""
    unknown = [source for source, known in indexed.items() if known is None]
    if unknown:
        return f"to index first: {', '.join(unknown)}"
    for reference in inputs:
        if reference.fingerprint is None and reference.external is not None:
            return externals[reference.external].unknown or f"{reference.external} is not known yet"
    waits = dict.fromkeys(i.stage for i in inputs if i.fingerprint is None and i.stage is not None)
    return f"waits for {', '.join(waits)}" if waits else None
