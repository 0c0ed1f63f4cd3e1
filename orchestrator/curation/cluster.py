"""Clusters: samples grouped by what they show, with K-means over codes or features (TL;DR, section 3.2).

Centres are fitted to a sample, which a hash of the ids chooses, and then each sample is told its nearest one. TL;DR's
release clusters the lists of code numbers, whose distances mean nothing (`code_ids`); counting how often an image has
each code does not depend on how codes are numbered, nor on where things stand in the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from orchestrator.curation.operator import Arrays, ColumnType, FittedOperator, Judge, Tools, Verdict
from orchestrator.errors import StageError
from orchestrator.recipe.schema import Embeddings, Ref

if TYPE_CHECKING:
    import numpy as np

    from orchestrator.curation.block import Block

Size = Annotated[int, Field(ge=1)]
COMPONENTS = 256
"""Of codes: what the release takes."""
OVERSHOOT = 4
"""Times as many samples as are needed are noted, as operators before may leave few."""


class Cluster(FittedOperator):
    """Tells each sample its cluster (column `cluster`) and its distance from the centre (`cluster_distance`)."""

    features: Ref[Embeddings]
    """Embeddings of these samples, by a captioner (`output: codes`) or any model; samples without are left out."""
    feature: Literal["code_histogram", "code_ids", "image", "text"] = "code_histogram"
    """What is compared: how often an image has each code; its code numbers in their order, as TL;DR's release does;
    or the features of images, or of texts."""
    idf: bool = False
    """Of a histogram: weigh codes by how few samples have them."""
    clusters: Size | Literal["auto"] = "auto"
    """How many. `auto`: the square root of the number of samples."""
    pca: Size | Literal["auto"] | None = "auto"
    """Principal components that features are reduced to. `auto`: of code numbers 256, of histograms 256 or as many as
    there are, of features none. `null`: none. Rows are scaled to length 1 in any case."""
    whiten: bool | None = None
    """Scale the components to equal variance, as TL;DR's release does. That needs components which all mean something:
    among many of noise the others drown. Default: of code numbers alone."""
    spherical: bool = False
    """Scale centres to length 1, too (spherical K-means, as SemDeDup does); distances are then 1 - cosine."""
    iterations: Size = 20
    """Lloyd's iterations, at most."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides the sample and the first centres."""
    sample: Size = 1 << 18
    """Samples that centres are fitted to, at most."""

    def adds(self) -> Mapping[str, ColumnType]:
        """Number and distance."""
        return {"cluster": "uint32", "cluster_distance": "float32"}

    def observe(self, tools: Tools) -> Callable[[Block], Arrays]:
        """Features of those samples of a block whose hash is among the lowest, as stored."""
        import numpy as np

        from orchestrator.curation.features import StoredFeatures
        from orchestrator.data.draws import hashes

        features = StoredFeatures(tools.embeddings("features"), self.feature)

        def seen(block: Block) -> Arrays:
            uid = block.uid
            key = hashes(self.seed, "cluster sample", uid)
            share = OVERSHOOT * self.sample / block.data.num_rows
            low = np.flatnonzero(key * 2.0**-64 <= share)
            there, values = features.read(uid[low])
            return {"key": key[low][there], "values": values, "count": np.array([features.stored.holds(uid).sum()])}

        return seen

    def fit(self, seen: Iterator[Arrays], tools: Tools) -> Arrays:
        """Reduction and centres, fitted to the samples with the lowest hashes."""
        import numpy as np

        from orchestrator.curation.features import Reduction
        from orchestrator.curation.kmeans import kmeans

        raw, count = self._sample(seen)
        if not len(raw):
            raise StageError(
                "cluster: the embeddings have features of none of these samples",
                "give the `embed` stage the same `data`, and `split: null` if it is not about training samples",
            )
        whiten = self.feature == "code_ids" if self.whiten is None else self.whiten
        reduction = Reduction.fit(raw, self._components(raw), self.feature == "code_histogram", self.idf, whiten)
        wanted = round(count**0.5) if self.clusters == "auto" else self.clusters
        found = kmeans(reduction(raw), max(1, wanted), self.iterations, self.seed, self.spherical)
        facts = {"inertia": np.array([found.inertia]), "sizes": found.sizes, "centres": found.centres}
        return {**reduction.arrays(), **facts}

    def facts(self, fitted: Arrays) -> Mapping[str, float]:
        """How many clusters there are, how large in the sample, and how tight."""
        sizes = fitted["sizes"]
        return {
            "clusters": len(sizes),
            "samples fitted": int(sizes.sum()),
            "smallest cluster fitted": int(sizes.min()),
            "largest cluster fitted": int(sizes.max()),
            "mean squared distance": float(fitted["inertia"][0] / sizes.sum()),
        }

    def open(self, fitted: Arrays, tools: Tools) -> Judge:
        """Gives each sample its nearest centre."""
        import numpy as np

        from orchestrator.curation.features import Reduction, StoredFeatures
        from orchestrator.curation.kmeans import nearest

        features = StoredFeatures(tools.embeddings("features"), self.feature)
        reduction, centres = Reduction.of(fitted), fitted["centres"]

        def judge(block: Block) -> Verdict:
            there, values = features.read(block.uid)
            label, distance = np.zeros(len(block), np.uint32), np.zeros(len(block), np.float32)
            label[there], squares = nearest(reduction(values), centres)
            distance[there] = squares / 2 if self.spherical else np.sqrt(squares)
            reasons = np.where(there, "", "no features").astype(object)
            return Verdict(reasons, {"cluster": label, "cluster_distance": distance})

        return judge

    def _sample(self, seen: Iterator[Arrays]) -> tuple[np.ndarray, int]:
        """Features of the samples with the lowest hashes, in the order of these, and the number of all samples."""
        import numpy as np

        count, waiting = 0, 0
        kept: list[tuple[np.ndarray, np.ndarray]] = []

        def lowest() -> tuple[np.ndarray, np.ndarray]:
            key, values = (np.concatenate(arrays) for arrays in zip(*kept))
            order = np.argsort(key, kind="stable")[: self.sample]
            return key[order], values[order]

        for block in seen:
            count, waiting = count + int(block["count"][0]), waiting + len(block["key"])
            kept.append((block["key"], block["values"]))
            if waiting > 2 * self.sample:
                kept = [lowest()]
                waiting = len(kept[0][0])
        return lowest()[1], count

    def _components(self, raw: np.ndarray) -> int | None:
        """Principal components of features as stored."""
        if self.pca != "auto":
            return self.pca
        if self.feature == "code_histogram":
            return min(COMPONENTS, int(raw.max()) + 1)
        return COMPONENTS if self.feature == "code_ids" else None
