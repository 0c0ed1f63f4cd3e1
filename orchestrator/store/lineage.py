"""What was made from what: the graph of all artifacts of a store, back to the data and forward to every use.

Edges are the manifests' inputs. Its ends are external: a `dataset` stage's source, known by its content digest, and
models from outside, known by what decides their weights. `Lineage.read` takes one parallel listing of the store and
answers everything from memory; `Lineage.behind` reads only what given artifacts were made from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.plan.fingerprint import encoded_default
from orchestrator.recipe.schema import Config
from orchestrator.store.artifacts import READERS, Cost, DamagedError, Manifest, Store

EXTERNAL = "external"
"""Kind of what comes from outside the store."""

SOURCE = "source"
"""Role of the external data that a `dataset` stage indexed."""


@dataclass(frozen=True)
class Use:
    """One edge, seen from one end: `role` is the reference's path in the user (`teacher`, `models.0`, `source`), the
    rest says what is at the other end. `manifest` is None where that is external, or no longer in the store.
    """

    role: str
    name: str
    kind: str
    fingerprint: str
    """Of the artifact; the content digest or identity of what is external."""
    manifest: Manifest | None = None

    @property
    def external(self) -> bool:
        """Whether it comes from outside the store."""
        return self.kind == EXTERNAL


def inputs(manifest: Manifest) -> list[Use]:
    """What an artifact was made from directly, manifests not looked up: its inputs and its external data."""
    found = [Use(path, str(i["name"]), i["kind"], str(i["fingerprint"])) for path, i in manifest.inputs.items()]
    digests = [str(digest) for digest in manifest.payload.get("external") or ()]
    return found + [Use(SOURCE, str(manifest.summary.get("source", SOURCE)), EXTERNAL, d) for d in digests]


@dataclass
class Lineage:
    """Artifacts by fingerprint, and by the fingerprint or identity of anything what was made directly from it."""

    artifacts: dict[str, Manifest]
    damaged: Mapping[str, DamagedError] = field(default_factory=dict)
    """By fingerprint, manifests that cannot be read."""
    _users: dict[str, list[tuple[str, Manifest]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._users = defaultdict(list)
        for manifest in self.artifacts.values():
            for use in inputs(manifest):
                self._users[use.fingerprint].append((use.role, manifest))

    @classmethod
    def read(cls, store: Store) -> Lineage:
        """Of the whole store."""
        found, damaged = store.survey()
        return cls({manifest.fingerprint: manifest for manifest in found}, damaged)

    @classmethod
    def behind(cls, store: Store, manifests: Iterable[Manifest]) -> Lineage:
        """Of these artifacts and their ancestors alone; one round of requests a generation."""
        known = {manifest.fingerprint: manifest for manifest in manifests}
        edge = list(known.values())
        with ThreadPoolExecutor(READERS) as pool:
            while edge:
                wanted = {u.fingerprint: u.kind for m in edge for u in inputs(m) if not u.external}
                places = [(kind, fingerprint) for fingerprint, kind in wanted.items() if fingerprint not in known]
                edge = [m for m in pool.map(lambda place: store.find(*place), places) if m is not None]
                known |= {manifest.fingerprint: manifest for manifest in edge}
        return cls(known)

    def inputs(self, manifest: Manifest) -> list[Use]:
        """What an artifact was made from directly, with manifests of what is in the store."""
        return [
            Use(u.role, u.name, u.kind, u.fingerprint, None if u.external else self.artifacts.get(u.fingerprint))
            for u in inputs(manifest)
        ]

    def users(self, identity: str) -> list[Use]:
        """What was made directly from an artifact (its fingerprint) or from something external (its identity)."""
        return [Use(role, m.stage, m.kind, m.fingerprint, m) for role, m in self._users.get(identity, ())]

    def ancestors(self, identities: Iterable[str]) -> dict[str, Manifest]:
        """These artifacts and all that they were made from, each once, those nearest first."""
        return self._closure(identities, lambda m: (use.fingerprint for use in inputs(m)))

    def descendants(self, identity: str) -> dict[str, Manifest]:
        """All that was made from an artifact or from something external, directly or not; not itself."""
        direct = [manifest.fingerprint for _, manifest in self._users.get(identity, ())]
        return self._closure(direct, lambda m: (made.fingerprint for _, made in self._users.get(m.fingerprint, ())))

    def find_external(self, text: str, shortest: int = 6) -> dict[str, str]:
        """Identity -> name of what is external and is called so, or whose identity begins so."""
        names: dict[str, set[str]] = defaultdict(set)
        for manifest in self.artifacts.values():
            for use in inputs(manifest):
                if use.external:
                    names[use.fingerprint].add(use.name)
        return {
            identity: text if text in called else min(called)
            for identity, called in names.items()
            if text in called or identity == text or (len(text) >= shortest and identity.startswith(text))
        }

    def to_json(self, identities: Iterable[str], kinds: Mapping[str, type[Config]]) -> dict[str, Any]:
        """What these were made from and what was made of them, as nodes and edges (from what is used to its user)."""
        roots = list(identities)
        before, after = self.ancestors(roots), {k: v for root in roots for k, v in self.descendants(root).items()}
        nodes = {**before, **after}
        edges = [
            {"from": use.fingerprint, "name": use.name, "kind": use.kind, "role": use.role, "to": manifest.fingerprint}
            for manifest in nodes.values()
            for use in inputs(manifest)
        ]
        return {
            "roots": roots,
            "made_from": [f for f in before if f not in roots],
            "used_by": [f for f in after if f not in roots],
            "cost": asdict(total_cost(before.values())),
            "artifacts": {f: facts(m, kinds.get(m.kind)) for f, m in nodes.items()},
            "edges": edges,
        }

    def _closure(self, identities: Iterable[str], following: Any) -> dict[str, Manifest]:
        found: dict[str, Manifest] = {}
        edge = [fingerprint for fingerprint in identities if fingerprint in self.artifacts]
        while edge:
            level = dict.fromkeys(fingerprint for fingerprint in edge if fingerprint not in found)
            found |= {fingerprint: self.artifacts[fingerprint] for fingerprint in level}
            edge = [f for fingerprint in level for f in following(found[fingerprint]) if f in self.artifacts]
        return found


def total_cost(manifests: Iterable[Manifest]) -> Cost:
    """Cost of distinct artifacts together."""
    return sum((manifest.cost for manifest in manifests), Cost())


def seeds(manifest: Manifest, config: type[Config] | None = None) -> dict[str, int]:
    """Seeds by dotted path: those of the payload, and the kind's own default where `config`, its class, is given."""
    default = encoded_default(config, "seed") if config is not None and "seed" in config.model_fields else ...
    found = dict(_seeds(manifest.payload.get("config", {})))
    return found if default is ... else {"seed": default, **found}


def _seeds(config: Any, path: str = "") -> Iterator[tuple[str, int]]:
    items = config.items() if isinstance(config, Mapping) else enumerate(config) if isinstance(config, list) else ()
    for key, value in items:
        here = f"{path}.{key}" if path else str(key)
        if isinstance(value, int) and (key == "seed" or str(key).endswith("_seed")):
            yield here, value
        else:
            yield from _seeds(value, here)


def facts(manifest: Manifest, config: type[Config] | None = None) -> dict[str, Any]:
    """How an artifact came to be, as JSON values: when, where, by what code and packages, with what seeds and cost."""
    provenance = manifest.provenance
    code = provenance.get("code", {})
    return {
        "stage": manifest.stage,
        "kind": manifest.kind,
        "fingerprint": manifest.fingerprint,
        "content_digest": manifest.content_digest,
        "run": manifest.run,
        "finished": manifest.finished,
        "wall_s": manifest.wall_s,
        **asdict(manifest.cost),
        "host": provenance.get("host", {}).get("name"),
        "device": manifest.summary.get("device"),
        "seeds": seeds(manifest, config),
        "commit": code.get("commit"),
        "uncommitted_changes": code.get("diff_sha256"),
        "packages": dict(provenance.get("packages", {})),
    }


def changed_packages(manifest: Manifest, root: Manifest) -> dict[str, str]:
    """Package versions that an artifact was made with where they are not its descendant's."""
    own, other = (m.provenance.get("packages", {}) for m in (manifest, root))
    return {name: version for name, version in own.items() if other.get(name, version) != version}
