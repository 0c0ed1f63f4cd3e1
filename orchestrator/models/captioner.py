"""`Captioner`: an image as a list of codes, and a text decoder that reads nothing but them (TL;DR, ICCV 2023).

The image tower is a CLIP's vision transformer, all of whose tokens are replaced by their codebook entries
(quantiser.py); the decoder is the same CLIP's text tower with cross-attention (decoder.py). A caption must pass
through the codes, so the codes come to name what captions speak of.

The decoder may know a part of the tokenizer's vocabulary only: `ids`, all other tokens being one, `other`, which is
read and predicted but never written. The table of all 49,408 tokens is ten times the rest of a small captioner's work.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from orchestrator.data.draws import integer
from orchestrator.models import catalog
from orchestrator.models.beam import Search
from orchestrator.models.block import Block
from orchestrator.models.decoder import DecoderBlock, Writing
from orchestrator.models.interface import Model
from orchestrator.models.quantiser import Codebook, Quantised

TOGETHER = 32
"""Images whose codes are found at once, always: an image's codes do not depend on the batch it came in."""


@dataclass(frozen=True)
class Book:
    """What a captioner has beside an open_clip configuration. JSON in its structure.

    Attributes:
        codes: K, entries of the codebook.
        pieces: codes of a token.
        class_token: whether the image's class token is quantised and read with the patches.
        vocabulary: token ids the decoder knows, start and end of text among them; None: all.
    """

    codes: int
    pieces: int = 1
    class_token: bool = True
    vocabulary: int | None = None


class Told(NamedTuple):
    """What a captioner makes of images and their captions, by image, [B] each.

    Attributes:
        loss: summed cross-entropy of the caption's tokens.
        tokens: how many those are, the end token included; int64.
        quantised: the image's codes and their distances.
    """

    loss: Tensor
    tokens: Tensor
    quantised: Quantised


class Captioner(Model):
    """Legend: B images, L image tokens of D channels, T text tokens of w channels, V tokens known.

    Args:
        network: `open_clip.CLIP` of that configuration, its text tower with `vocabulary` (and `other`) rows. Its
            blocks are replaced by ours; what only the contrastive loss needs falls away.
        config: the open_clip configuration, and the book's.
    """

    capabilities: ClassVar[frozenset[str]] = frozenset({"encode_image", "codes", "generate", "likelihood"})
    network: Any

    def __init__(self, network: nn.Module, config: Mapping[str, Any], book: Book) -> None:
        super().__init__()
        self.network, self.config, self.book = network, dict(config), book
        visual, text = self.network.visual, self.text_tower
        width = visual.transformer.width
        visual.proj = text.text_projection = None
        self.network.logit_scale = self.network.logit_bias = None
        for index, block in enumerate(visual.transformer.resblocks):
            visual.transformer.resblocks[index] = Block(block)
        for index, block in enumerate(text.transformer.resblocks):
            text.transformer.resblocks[index] = DecoderBlock(block, width)
        self.codebook = Codebook(book.codes, width, book.pieces)
        nn.init.uniform_(self.codebook.weight, -1 / book.codes, 1 / book.codes)
        self.token_bias = nn.Parameter(torch.zeros(len(text.token_embedding.weight)))
        self.context_length: int = text.context_length
        self.vocab_size: int = catalog.vocab_size(config)
        self.ids: Tensor | None
        self.vocabulary = book.vocabulary or self.vocab_size
        self.register_buffer("ids", None if book.vocabulary is None else self.complete([]))

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> Captioner:
        """The captioner that `structure()["config"]` describes, its weights yet to be loaded."""
        return cls.create(config["open_clip"], Book(**config["book"]))

    @classmethod
    def create(cls, config: Mapping[str, Any], book: Book, seed: int = 0) -> Captioner:
        """A captioner of an open_clip configuration, initialised from `seed`, on the CPU."""
        from orchestrator.models.open_clip_bridge import create

        shape = copy.deepcopy(dict(config))
        if book.vocabulary is not None:
            shape["text_cfg"]["vocab_size"] = book.vocabulary + 1
        network = create(shape, seed).network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(integer(seed, "init captioner") % 2**63)
            return cls(network, config, book)

    @property
    def text_tower(self) -> Any:
        """The module that holds the text tower's parts: the network itself, or its `text`."""
        return getattr(self.network, "text", self.network)

    def stacks(self) -> list[Any]:
        """The transformers (with `resblocks`), the image tower's first."""
        return [self.network.visual.transformer, self.text_tower.transformer]

    def structure(self) -> dict[str, Any]:
        """`{"class": ..., "config": {"open_clip": ..., "book": ...}}`."""
        config = {"open_clip": self.config, "book": asdict(self.book)}
        return {"class": f"{type(self).__module__}:{type(self).__qualname__}", "config": config}

    def kept_whole(self) -> Sequence[nn.Parameter]:
        """The codebook, whose dead codes are placed anew in training."""
        return (self.codebook.weight,)

    @property
    def start(self) -> int:
        """Id of the start-of-text token, the last but one of the tokenizer's."""
        return self.vocab_size - 2

    @property
    def end(self) -> int:
        """Id of the end-of-text token, the last of the tokenizer's."""
        return self.vocab_size - 1

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] to the normalised mean of an image's codes, [B, D]."""
        return F.normalize(self.quantise(images).tokens.mean(dim=1), dim=-1)

    @torch.no_grad()
    def codes(self, images: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] to code numbers [B, L pieces] int64, token by token, in reading order."""
        padded = F.pad(images, (0,) * 7 + (-len(images) % TOGETHER,))
        found = [self.codebook.nearest(self.image_tokens(part)) for part in padded.split(TOGETHER)]
        return torch.cat(found)[: len(images)]

    @torch.no_grad()
    def likelihood(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Mean log-likelihood, a token, of the caption [B, T] of each image [B, 3, H, W]: [B], at most 0."""
        told = self(images, tokens)
        return -told.loss / told.tokens.to(told.loss.device)

    @torch.no_grad()
    def generate(self, images: Tensor, *, beams: int = 1, min_tokens: int = 1, max_tokens: int = 30) -> Tensor:
        """Captions of images [B, 3, H, W]: token ids [B, T] with start and end, zero-padded. No random numbers.

        Args:
            beams: 1 writes the likeliest token each time; more keep so many beginnings and choose the likeliest text
                by its mean log-likelihood a token.
            min_tokens, max_tokens: length without start and end; the context bounds it, too.
        """
        most = min(max_tokens, self.context_length - 2)
        writing, search = Writing(self, self.quantise(images).tokens, beams), Search(len(images), beams, images.device)
        first, last = self.token_rows(torch.tensor([self.start, self.end], device=images.device))
        rows = first.expand(len(images) * beams)
        for written in range(most + 1):
            scores = writing.add(rows)
            scores[:, first] = float("-inf")
            scores[:, self.vocabulary :] = float("-inf")  # `other`
            if written < min_tokens:
                scores[:, last] = float("-inf")
            rows, origin = search.add(scores, last, only_end=written == most)
            if search.done.all():
                break
            writing.reorder(origin)
        return self._spelt(search.best())

    def forward(self, images: Tensor, tokens: Tensor, label_smoothing: float = 0.0) -> Told:
        """The loss of captions [B, T] (start, text, end, padding), each token predicted from those before it."""
        quantised = self.quantise(images)
        states, targets, owner, counts = self._predict(quantised.tokens, tokens)
        logits = self.logits(states).float()
        losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
        loss = losses.new_zeros(len(tokens)).index_add(0, owner, losses)
        return Told(loss, counts, quantised)

    def quantise(self, images: Tensor) -> Quantised:
        """Normalised pixels [B, 3, H, W] to codes and what they stand for."""
        return self.codebook(self.image_tokens(images))

    def image_tokens(self, images: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] to the image tower's normalised tokens before quantisation, [B, L, D]."""
        visual = self.network.visual
        x = _through(visual.transformer, visual._embeds(images))
        return visual.ln_post(x if self.book.class_token else x[:, 1:])

    def text_states(self, rows: Tensor, seen: Tensor) -> Tensor:
        """Rows of the token table [B, T], each seeing those before it and image tokens [B, L, D]: states [B, T, w]."""
        tower = self.text_tower
        x = tower.token_embedding(rows) + tower.positional_embedding[: rows.shape[1]]
        return tower.ln_final(_through(tower.transformer, x, seen))

    def logits(self, states: Tensor) -> Tensor:
        """Decoder states [..., w] to unnormalised log-probabilities of the next token's row [..., V]."""
        return F.linear(states, self.text_tower.token_embedding.weight, self.token_bias)

    def complete(self, ids: Sequence[int]) -> Tensor:
        """The token ids a decoder knows that shall know these, of rising frequency or not: [V] int64, rising.

        The first of them as far as there is room, start and end, and the lowest other ids where room is left.
        """
        wanted = dict.fromkeys((self.start, self.end, *ids, *range(self.vocab_size)))
        return torch.tensor(sorted(itertools.islice(wanted, self.vocabulary)))

    def token_rows(self, tokens: Tensor) -> Tensor:
        """Rows of the token table for token ids of any shape; that of `other` for those the decoder does not know."""
        if self.ids is None:
            return tokens
        places = torch.searchsorted(self.ids, tokens).clamp(max=len(self.ids) - 1)
        return torch.where(self.ids[places] == tokens, places, len(self.ids))

    def _predict(self, seen: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States that predict a token [N, w], the rows of those tokens and their captions [N], and their number [B].

        Nothing behind a caption's end is predicted; the padding's id is a word's, too. Tokens may be on the CPU where
        the model is not: then nobody waits to learn their lengths.
        """
        ends = tokens.argmax(dim=1)  # the end-of-text token has the largest id
        places = (torch.arange(tokens.shape[1] - 1, device=tokens.device) < ends[:, None]).flatten().nonzero()[:, 0]
        places, counts = places.to(seen.device, non_blocking=True), ends.to(seen.device, non_blocking=True)
        rows = self.token_rows(tokens.to(seen.device, non_blocking=True))
        states = self.text_states(rows[:, :-1], seen).flatten(0, 1)
        owners = places // (rows.shape[1] - 1)
        return states[places], rows[:, 1:].flatten()[places], owners, counts

    def _spelt(self, rows: Tensor) -> Tensor:
        """Rows of the token table that a search found [B, T] to token ids with the start, zeros behind the end."""
        ids = rows if self.ids is None else self.ids[rows]
        behind = (ids == self.end).cumsum(dim=1) - (ids == self.end).long() > 0
        return F.pad(ids.masked_fill(behind, 0), (1, 0), value=self.start)


def _through(stack: Any, x: Tensor, *seen: Tensor) -> Tensor:
    """Tokens [B, L, w] through all blocks of a transformer, which look at `seen`, too, where they are a decoder's."""
    for block in stack.resblocks:
        if stack.grad_checkpointing and torch.is_grad_enabled():
            x = checkpoint(block, x, *seen, use_reentrant=False, preserve_rng_state=False)
        else:
            x = block(x, *seen)
    return x
