"""References become edges: which stage's which output, or which external artifact, each reference of a stage means.

    teacher  search.study  arms[seed=1]                                   outputs of stages
    open_clip:ViT-B-32/laion2b_s34b_b79k  hf-hub:org/name  package:name   external weights
    s3://bucket/prefix  ./folder  ../folder  /folder  ~/folder            external artifacts by place

Checked here, before anything runs: the stage and the output exist, the artifact is of the wanted type, a model can
do what is asked of it, and stages do not need each other in a circle.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from orchestrator.recipe.annotations import sites
from orchestrator.recipe.errors import Path, Problem, nearest
from orchestrator.recipe.matrix import split
from orchestrator.recipe.recipe import StageSpec
from orchestrator.recipe.schema import Artifact, Model, Reference, references

MODEL_SCHEMES = ("open_clip:", "hf-hub:", "package:", "random:")
PLACES = ("s3://", "./", "../", "/", "~")


@dataclass(frozen=True)
class Edge:
    """A reference, resolved.

    Attributes:
        key: its path in the configuration; `path` is the one written in the recipe.
        artifact: name of the artifact type.
        stage: the stage it comes from, and `output` the name of that stage's output; None and "" if external.
        external: the reference as written, if external.
        kind: kind of the stage it comes from, or "external".
        needs: capabilities that the field's type wants of a model.
    """

    key: Path
    path: Path
    artifact: str
    stage: str | None
    output: str
    external: str | None
    kind: str
    needs: frozenset[str] = frozenset()


def is_external(text: str) -> bool:
    """Whether a reference names something outside the recipe."""
    return text.startswith(MODEL_SCHEMES + PLACES)


def resolve(
    stages: Mapping[str, StageSpec], broken: Collection[str] = ()
) -> tuple[dict[str, list[Edge]], list[Problem]]:
    """Edges into every stage, and all that is wrong with references and circles.

    References to `broken` stages (refused before they had outputs) are passed over.
    """
    edges: dict[str, list[Edge]] = {}
    problems: list[Problem] = []
    for name, spec in stages.items():
        edges[name] = []
        for key, path, reference in _references(spec):
            if _stage_of(reference) in broken:
                continue
            found = _resolve(spec, key, path, reference, stages)
            if isinstance(found, Edge):
                edges[name].append(found)
            else:
                problems.append(found)
    return edges, problems + _circles(stages, edges)


def _references(spec: StageSpec) -> list[tuple[Path, Path, Reference]]:
    """(key, written path, reference) of a stage; from the plain values where they could not be validated."""
    found = list(sites(spec.type, spec.values))
    if spec.config is not None:
        written = {site.key: site.path for site in found}
        return [(key, written.get(key, key), reference) for key, reference in references(spec.config)]
    return [
        (site.key, site.path, site.wanted(site.value))
        for site in found
        if isinstance(site.wanted, type) and issubclass(site.wanted, Reference) and isinstance(site.value, str)
    ]


def _resolve(
    spec: StageSpec, key: Path, path: Path, reference: Reference, stages: Mapping[str, StageSpec]
) -> Edge | Problem:
    def refuse(message: str, near: str | None = None, allowed: tuple[str, ...] = ()) -> Problem:
        return Problem(spec.position(path), (*spec.path, *path), message, str(reference), near, allowed)

    wanted = reference.artifact
    if is_external(reference):
        if reference.startswith(MODEL_SCHEMES):
            scheme, _, name = reference.partition(":")
            if not issubclass(Model, wanted):
                message = f"'{reference}' is a Model; {_a(wanted.__name__)} is wanted"
                return refuse(message, None, _offering(wanted, stages))
            if not name or (scheme == "open_clip" and "/" not in name):
                form = "open_clip:ARCHITECTURE/WEIGHTS" if scheme == "open_clip" else f"{scheme}:NAME"
                return refuse(f"'{reference}' is not complete; it is written {form}")
            return Edge(key, path, "Model", None, "", str(reference), "external", reference.needs)
        return Edge(key, path, wanted.__name__, None, "", str(reference), "external", reference.needs)
    source_name, output = _target(reference, stages)
    if source_name is None:
        choices = [*_offering(wanted, stages), *stages]
        near = nearest(reference, choices) or nearest(reference.partition(":")[0] + ":", MODEL_SCHEMES)
        return refuse(f"there is no stage '{reference}'", near, tuple(dict.fromkeys(choices)))
    source = stages[source_name]
    outputs = getattr(source.type, "outputs", {})
    if output is None:
        output = next(iter(outputs), "")
    if output not in outputs:
        allowed = tuple(f"{source_name}.{o}" for o in outputs)
        return refuse(f"stage '{source_name}' has no output '{output}'", nearest(reference, allowed), allowed)
    if not issubclass(outputs[output], wanted):
        message = f"'{reference}' is a {outputs[output].__name__} (made by {_a(source.kind)} stage)"
        return refuse(f"{message}; {_a(wanted.__name__)} is wanted", None, _offering(wanted, stages))
    if source.config is not None and outputs[output] is Model:
        can = source.config.capabilities()
        asked = spec.config.asks_of(key, can) if spec.config is not None else frozenset()
        lacking = lacks(reference, reference.needs | asked, can)
        if lacking is not None:
            return refuse(lacking)
    return Edge(key, path, outputs[output].__name__, source_name, output, None, source.kind, reference.needs)


def lacks(reference: str, needs: Collection[str], can: Collection[str]) -> str | None:
    """What a model cannot do though it is needed, as a sentence; None if it can do all of it."""
    lacking = sorted(set(needs) - set(can))
    if not lacking:
        return None
    known = ", ".join(sorted(can)) or "nothing that is declared"
    return f"the model '{reference}' cannot {' or '.join(lacking)}, which is needed here; it can: {known}"


def _stage_of(reference: str) -> str | None:
    found = split(reference)
    return found[0] if found else None


def _target(reference: str, stages: Mapping[str, StageSpec]) -> tuple[str | None, str | None]:
    """The stage and the output that a reference names; (None, None) if there is no such stage."""
    if reference in stages:
        return reference, None
    found = split(reference)
    if found is None:
        return None, None
    stage, picks, output = found
    name = stage if picks is None else f"{stage}[{picks}]"
    return (name, output) if name in stages else (None, None)


def _offering(wanted: type[Artifact], stages: Mapping[str, StageSpec]) -> tuple[str, ...]:
    """References to all stage outputs of a type."""
    found = []
    for name, spec in stages.items():
        for number, (output, artifact) in enumerate(getattr(spec.type, "outputs", {}).items()):
            if issubclass(artifact, wanted):
                found.append(name if number == 0 else f"{name}.{output}")
    return tuple(found)


def _circles(stages: Mapping[str, StageSpec], edges: Mapping[str, list[Edge]]) -> list[Problem]:
    """A problem for each circle, its stages named in order; a stage in several circles is named in one."""
    problems: list[Problem] = []
    done: set[str] = set()

    def visit(name: str, trail: list[tuple[str, Edge]]) -> None:
        names = [*(stage for stage, _ in trail), name]
        for edge in edges[name]:
            if edge.stage in names:
                circle = [*trail, (name, edge)][names.index(edge.stage) :]
                if done.isdisjoint(stage for stage, _ in circle):
                    problems.append(_circle(stages, circle))
                    done.update(stage for stage, _ in circle)
            elif edge.stage is not None and edge.stage not in done:
                visit(edge.stage, [*trail, (name, edge)])
        done.add(name)

    for name in stages:
        if name not in done:
            visit(name, [])
    return problems


def _circle(stages: Mapping[str, StageSpec], circle: list[tuple[str, Edge]]) -> Problem:
    name, edge = circle[0]
    shown = " → ".join([*(stage for stage, _ in circle), name])
    path = (*stages[name].path, *edge.path)
    message = f"stages need each other in a circle: {shown}"
    return Problem(stages[name].position(edge.path), path, message, edge.stage)


def _a(word: str) -> str:
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"
