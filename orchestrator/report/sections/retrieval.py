"""What each model retrieves for some captions: pictures of the very samples where they can be had, else the artifact's
own picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from orchestrator.errors import OrchError
from orchestrator.report import words
from orchestrator.report.blocks import Answers, Block, Image, Thumb
from orchestrator.report.pictures import small
from orchestrator.report.record import RunRecord, StageRecord
from orchestrator.store.artifacts import Handle

WIDTH = 1600
"""Pixels of the artifact's picture, at most."""


def show(run: RunRecord, stages: list[StageRecord]) -> Iterator[Block]:
    """Each Report's captions and answers."""
    for stage in stages:
        handle = stage.handle
        if handle is None:
            continue
        title = stage.name if len(stages) > 1 else ""
        if "retrieval.json" in handle.manifest.files:
            try:
                yield _answers(run, handle, title)
                continue
            except (OrchError, FileNotFoundError):  # the data set is gone; the picture has its images
                pass
        for name in sorted(handle.manifest.files):
            if name.endswith(".png"):
                yield Image(small(handle.read(name), WIDTH), title)


def _answers(run: RunRecord, handle: Handle, title: str) -> Answers:
    record, inputs = json.loads(handle.read("retrieval.json")), handle.manifest.inputs
    asked = record["captions"]
    uids = {uid for one in asked for uid in (one["uid"], *(uid for found in one["found"] for uid in found))}
    data = inputs["data"]
    thumbs = _pictures(run.store.handle(data["kind"], data["fingerprint"]), uids)
    names = [
        run.name_of(inputs[f"models.{place}"]["fingerprint"], inputs[f"models.{place}"]["name"])
        for place in range(len(record["right_within"]))
    ]
    questions = []
    for one in asked:
        answers = [
            (name, [Thumb(thumbs[uid], right=uid == one["uid"]) for uid in found])
            for name, found in zip(names, one["found"])
        ]
        questions.append((Thumb(thumbs[one["uid"]], one["text"]), answers))
    return Answers(questions, title, _note(record, names))


def _note(record: dict[str, Any], names: list[str]) -> str:
    place = f"{record['split']}, {record['style']}" if record["style"] else record["split"]
    shares = ", ".join(f"{name} {words.percent(share)}" for name, share in zip(names, record["right_within"]))
    return (
        f"Captions drawn at random, most of them found by some model; the first {record['top']} of"
        f" {record['size']:,} images ({place}), the right one framed. "
        f"Right within {record['top']}, over all captions: {shares}."
    )


def _pictures(handle: Handle, uids: set[str]) -> dict[str, str]:
    import numpy as np

    from orchestrator.data.dataset import IDENTITY, Dataset

    dataset = Dataset.open(handle)
    wanted = np.frombuffer(bytes.fromhex("".join(sorted(uids))), IDENTITY)
    some = dataset.take(np.flatnonzero(np.isin(dataset.column("uid"), wanted)))
    return dict(zip(some.uids, map(small, some.images(range(len(some))))))
