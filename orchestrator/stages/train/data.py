"""What a training sees: which samples, in which order, and what is counted of them for manifest and curves."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.data import read
from orchestrator.data.bad import Tally
from orchestrator.data.captions import CaptionPolicy, Survival
from orchestrator.data.dataset import Dataset
from orchestrator.data.embeddings import StoredViews
from orchestrator.data.loader import Loader
from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.store.artifacts import Handle
from orchestrator.training.distributed import from_all_ranks
from orchestrator.training.method import Method
from orchestrator.training.types import World

if TYPE_CHECKING:
    from orchestrator.stages.train.worker import TrainJob


def to_train_on(dataset: Dataset) -> Dataset:
    """The samples of a data set that a training sees."""
    return dataset.where(split="train") if "split" in dataset.columns else dataset


def _reopened(handle: Handle) -> Dataset:
    """The samples to train on, in a loader process."""
    return to_train_on(Dataset.open(handle))


class TrainingData:
    """The samples of a training: in which order they are read, and what is counted while they are seen.

    Args:
        job: of this worker.
        dataset: the samples to train on.
        stored: a teacher's features, if there are any; they bring their caption policy.
        tally: of bad samples.
    """

    def __init__(self, job: TrainJob, dataset: Dataset, stored: StoredViews | None, tally: Tally) -> None:
        self.tally, self.survival = tally, Survival()
        self.captions: CaptionPolicy = job.config.captions if stored is None else stored.captions
        self._job, self._dataset, self._stored = job, dataset, stored
        self._reading = read.choose(job.config.read, dataset)
        self._loader: Loader | None = None
        self._traffic = (0, 0)

    def open(self, method: Method, preprocess: Preprocess, tokenizer: Tokenizer, world: World, start: int) -> Loader:
        """The loader from a position on."""
        config = self._job.config
        self._loader = Loader(
            self._dataset,
            batch=config.batch,
            seed=config.seed,
            views=method.views(),
            augment=config.augment,
            captions=config.captions,
            preprocess=preprocess,
            tokenizer=tokenizer,
            stored=self._stored,
            read=self._reading.mode,
            decoder=config.decoder,
            rank=world.rank,
            size=world.size,
            start=start,
            threads=self._job.threads,
            processes=config.loader_processes,
            reopen=functools.partial(_reopened, self._job.inputs["data"]),
            pin=world.device.type == "cuda",
            tally=self.tally,
            survival=self.survival,
        )
        return self._loader

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes that this worker has read of the shards so far, and requests made."""
        return (0, 0) if self._loader is None else self._loader.traffic

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the counts, in plain values."""
        return {"bad": self.tally.state(), "survival": self.survival.as_json()}

    def restore(self, kept: Sequence[Mapping[str, Any]], rank: int) -> None:
        """Go on from the counts of all ranks at a checkpoint: the first goes on with the sums."""
        for met in kept:
            self.tally.restore(met["bad"])
            if rank == 0:
                self.survival.merge(met["survival"])

    def gather(self, world: World) -> None:
        """Take all ranks' counts together, at the end."""
        states = from_all_ranks((self.state(), self.traffic), world)
        self.survival = Survival()
        self.restore([state for state, _ in states], rank=0)
        num_bytes, requests = zip(*(traffic for _, traffic in states))
        self._traffic = sum(num_bytes), sum(requests)

    def summary(self) -> dict[str, Any]:
        """For the manifest: how samples were read, what was left out, what became of joined captions."""
        num_bytes, requests = self._traffic
        facts = {**dataclasses.asdict(self._reading), "bytes": num_bytes, "requests": requests}
        joined = {} if self.captions.join is None else {"joined_captions": self.survival.as_json()}
        return {"read": facts, "bad_samples": self.tally.found.as_json()} | joined

    def metrics(self) -> dict[str, float]:
        """The share of joined captions whose last part survived, if captions are joined."""
        return {} if self.captions.join is None else {"captions_whole": self.survival.share}
