"""Beam search: of each image's k best unfinished texts, the k best one token longer, until all are finished.

Texts are compared by their mean log-likelihood a token, so that a long one is not worse for being long; a finished
text keeps its place until k better ones have been found. One beam is greedy writing. Nothing here is random.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Search:
    """The texts of B images in k beams each, R = B k of them, an image's next to each other.

    Attributes:
        done: which texts are finished, [R] bool.
    """

    def __init__(self, images: int, beams: int, device: torch.device) -> None:
        self._beams = beams
        self._texts = torch.empty(images * beams, 0, dtype=torch.int64, device=device)
        self._scores = torch.full((images, beams), float("-inf"), device=device)
        self._scores[:, 0] = 0.0  # all beams begin alike: only one may go on
        self._lengths = torch.zeros(images, beams, dtype=torch.int64, device=device)
        self.done = torch.zeros(images * beams, dtype=torch.bool, device=device)

    def add(self, scores: Tensor, end: Tensor, only_end: bool = False) -> tuple[Tensor, Tensor]:
        """Make all texts one token longer; the tokens [R], and which text each continues [R].

        Args:
            scores: log-probabilities of each text's next token, [R, V]; changed.
            end: the token that finishes a text; a finished one is continued by it, for nothing.
            only_end: finish all texts.
        """
        images, vocabulary = len(self._scores), scores.shape[1]
        ending = scores[:, end].masked_fill(self.done, 0.0)
        scores[self.done | only_end] = float("-inf")
        scores[:, end] = ending
        total = self._scores[..., None] + scores.view(images, self._beams, vocabulary)
        lengths = self._lengths + ~self.done.view(images, self._beams)
        best = (total / lengths[..., None]).flatten(1).topk(self._beams, dim=1).indices
        beam = best // vocabulary
        self._scores, self._lengths = total.flatten(1).gather(1, best), lengths.gather(1, beam)
        origin = (beam + torch.arange(images, device=best.device)[:, None] * self._beams).flatten()
        tokens = (best % vocabulary).flatten()
        self._texts = torch.cat([self._texts[origin], tokens[:, None]], dim=1)
        self.done = self.done[origin] | (tokens == end)
        return tokens, origin

    def best(self) -> Tensor:
        """The best text of each image, [B, T], its end repeated where others are longer."""
        return self._texts.view(len(self._scores), self._beams, -1)[:, 0]
