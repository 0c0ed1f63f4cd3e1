"""Settings of the evaluation tasks, free of torch; the protocol they name is evaluation/protocol.py.

A task names by string the function that lays out its questions for a data set: `measures(config, dataset) ->
list[Measure]`. A `Measure` is a list of questions with their right answers, the same for every model; how models
answer, and the intervals over the answers, is shared by all tasks.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from orchestrator.recipe.schema import Config


class TaskConfig(Config):
    """Base of all evaluation tasks."""

    needs: ClassVar[frozenset[str]] = frozenset({"encode_image", "encode_text", "score"})
    """Capabilities a Model must have for this task."""
    runner: ClassVar[str] = ""
    """ "module:function" with signature `(config, dataset) -> list[Measure]`."""
    max_samples: int | None = Field(default=None, ge=1)
    """At most this many samples of each split: the first by uid, which is a random draw, for uids are hashes."""
    splits: list[str] | None = Field(default=None, min_length=1)
    """Splits to evaluate, each a column of the final table. Left out: those of the protocol that the data have."""


class ZeroShot(TaskConfig):
    """Zero-shot classification: is the sample's concept among the k whose prompts score highest?"""

    runner: ClassVar[str] = "orchestrator.evaluation.protocol:zeroshot"

    templates: list[str] = Field(default=["{c}"], min_length=1)
    """Prompts of a class, `{c}` being its name; their features are averaged. The default is the name alone, as in the
    captions of the sample set; models trained on sentences want sentences ("a photo of {c}.")."""
    ks: list[int] = Field(default=[1, 5], min_length=1)
    """Report top-k accuracy for these k. A k above the number of classes is left out."""

    @field_validator("templates")
    @classmethod
    def _have_place(cls, templates: list[str]) -> list[str]:
        for template in templates:
            if "{c}" not in template:
                raise ValueError(f"template {template!r} has no place for the class name; write {{c}} where it goes")
        return templates

    @field_validator("ks")
    @classmethod
    def _ascend(cls, ks: list[int]) -> list[int]:
        return _ascending(ks)


class Retrieval(TaskConfig):
    """Retrieval both ways within one drawing style: image to text and text to image, recall at k."""

    runner: ClassVar[str] = "orchestrator.evaluation.protocol:retrieval"

    max_samples: int | None = Field(default=5000, ge=1)
    """At most this many samples of each split, the first by uid. Every image is scored against every text of its
    style, so the work grows with the square; 5,000 images is also the size of COCO's usual test."""
    ks: list[int] = Field(default=[1, 5, 10], min_length=1)
    """Report recall at these k: the share of queries with a right answer among the k highest. A k above the number of
    candidates counts as all of them."""

    @field_validator("ks")
    @classmethod
    def _ascend(cls, ks: list[int]) -> list[int]:
        return _ascending(ks)


def _ascending(ks: list[int]) -> list[int]:
    if any(k < 1 for k in ks) or sorted(set(ks)) != ks:
        raise ValueError("write positive numbers, each once, from small to large")
    return ks
