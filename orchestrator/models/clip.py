"""`OpenClipModel`: an open_clip two-tower network behind the `Model` interface, with less arithmetic.

What open_clip computes and nobody reads is not computed. With a causal mask a token's state does not depend on what
follows it, and the text feature is read at the end-of-text token: padding is cut, and texts of very different lengths
are encoded in groups (models/lengths.py). Of the last block of either tower one token is read, so that block computes
one (models/block.py). Features and gradients are open_clip's to single precision's rounding.

Where this reasoning does not hold (no causal mask, pooling over several tokens, ResNets and other image towers),
open_clip's own path is taken, the tokens padded to the full length again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from orchestrator.models import lengths
from orchestrator.models.block import Block, PatchDropout, at
from orchestrator.models.interface import Model


class OpenClipModel(Model):
    """A CLIP built by open_clip. Legend: B images, M texts, L tokens, w channels, d features.

    Args:
        network: `open_clip.CLIP` or `open_clip.CustomTextCLIP`. Its blocks are replaced by ours; weights and their
            names stay.
        config: the JSON configuration it was built from.
    """

    network: Any

    def __init__(self, network: nn.Module, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.config = dict(config)
        self.context_length: int = self.network.context_length
        for stack in self.stacks():
            for index, block in enumerate(stack.resblocks):
                if isinstance(block.attn, nn.MultiheadAttention):  # else one of open_clip's experimental blocks
                    stack.resblocks[index] = Block(block)
        dropped = getattr(getattr(self.network.visual, "patch_dropout", None), "prob", 0.0)
        if dropped:
            self.network.visual.patch_dropout = PatchDropout(dropped)

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> OpenClipModel:
        """The network that `structure()["config"]` describes, its weights yet to be loaded."""
        from orchestrator.models.open_clip_bridge import create

        return create(config)

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the multiplier of similarities, a trained scalar."""
        return self.network.logit_scale

    @property
    def text_tower(self) -> Any:
        """The module that holds the text tower's parts: the network itself, or its `text`."""
        return getattr(self.network, "text", self.network)

    def stacks(self) -> list[Any]:
        """The transformers (open_clip's, with `resblocks`) among the towers, the image tower's first."""
        towers = (self.network.visual, self.text_tower)
        return [tower.transformer for tower in towers if hasattr(getattr(tower, "transformer", None), "resblocks")]

    def structure(self) -> dict[str, Any]:
        """`{"class": ..., "config": open_clip's JSON configuration}`."""
        return {"class": f"{type(self).__module__}:{type(self).__qualname__}", "config": self.config}

    def train(self, mode: bool = True) -> OpenClipModel:
        """As everywhere, except that batch norms whose weights are frozen keep their statistics, too."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.weight.requires_grad:
                module.eval()
        return self

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] to L2-normalised features [B, d]."""
        if not self.reads_class_token:
            return F.normalize(self.network.encode_image(images), dim=-1)
        visual = self.network.visual
        pooled = visual.ln_post(_run(visual.transformer, visual._embeds(images), read=0))
        return F.normalize(pooled if visual.proj is None else pooled @ visual.proj, dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Token ids [M, L], L at most the context length, to L2-normalised features [M, d].

        Tokens may be on the CPU where the model is not: then nobody waits to learn their lengths.
        """
        if not self.cuts_texts:
            full = F.pad(tokens, (0, self.context_length - tokens.shape[1])).to(self.logit_scale.device)
            return F.normalize(self.network.encode_text(full), dim=-1)
        tower = self.text_tower
        pooled, projection = tower.ln_final(self._ends(tokens)), tower.text_projection
        if isinstance(projection, nn.Linear):
            return F.normalize(projection(pooled), dim=-1)
        return F.normalize(pooled if projection is None else pooled @ projection, dim=-1)

    @property
    def reads_class_token(self) -> bool:
        """Whether only the class token of a vision transformer is read."""
        visual = self.network.visual
        transformer = hasattr(visual, "_embeds") and _ours(visual.transformer)
        return transformer and visual.attn_pool is None and visual.pool_type == "tok"

    @property
    def cuts_texts(self) -> bool:
        """Whether a text's feature depends on nothing behind its end."""
        tower = self.text_tower
        causal = getattr(tower, "attn_mask", None) is not None and getattr(tower, "cls_emb", None) is None
        return causal and getattr(tower, "pool_type", getattr(tower, "text_pool_type", None)) == "argmax"

    def plan(self, tokens: Tensor) -> Plan:
        """How texts [M, L] are encoded where they are cut."""
        ends = tokens.cpu().argmax(dim=-1)  # the end-of-text token has the largest id
        sizes, stack = (ends + 1).tolist(), self.text_tower.transformer
        if len(stack.resblocks) == 1 or hasattr(stack.resblocks[0], "unshard"):
            return Plan(None, ends, [(len(sizes), max(sizes))])  # under FSDP all ranks call the blocks equally often
        groups = lengths.split(sizes, lengths.price(stack.width, self.logit_scale.device.type != "cpu"))
        if len(groups) == 1:
            return Plan(None, ends, groups)
        order = ends.argsort(stable=True)
        return Plan(order, ends[order], groups)

    def _ends(self, tokens: Tensor) -> Tensor:
        """States of the end-of-text tokens of [M, L] after the transformer, [M, w].

        The token table is looked up once: the gradient of each look-up is as large as the table.
        """
        tower, tokens, device = self.text_tower, tokens.cpu(), self.logit_scale.device
        stack, dtype, plan = tower.transformer, tower.transformer.get_cast_dtype(), self.plan(tokens)
        tokens = tokens if plan.order is None else tokens[plan.order]
        rows = [count for count, _ in plan.groups]
        cut = [part[:, :length] for part, (_, length) in zip(tokens.split(rows), plan.groups, strict=True)]
        looked_up = tower.token_embedding(_send(torch.cat([part.flatten() for part in cut]), device)).to(dtype)
        embedded = looked_up.split([part.numel() for part in cut])
        states = []
        for part, x, read in zip(cut, embedded, _send(plan.ends, device).split(rows), strict=True):
            length = part.shape[1]
            x = x.view(*part.shape, -1) + tower.positional_embedding[:length].to(dtype)
            states.append(_run(stack, x, read, tower.attn_mask[:length, :length]))
        if plan.order is None:
            return states[0]
        return torch.cat(states).index_select(0, _send(plan.order.argsort(), device))


@dataclass(frozen=True)
class Plan:
    """A batch of texts in groups of similar length.

    Attributes:
        order: the rows by length, [M]; None for one group in the order given.
        ends: position of the end-of-text token of each, in that order, [M].
        groups: (rows, tokens) of each.
    """

    order: Tensor | None
    ends: Tensor
    groups: list[tuple[int, int]]


def _run(stack: Any, x: Tensor, read: Tensor | int, mask: Tensor | None = None) -> Tensor:
    """The states [B, w] at position `read` of tokens [B, L, w] after a transformer; `mask` is the causal one."""
    if not _ours(stack):
        return at(stack(x, attn_mask=mask), read)
    causal = mask is not None
    for block in stack.resblocks:
        last = read if block is stack.resblocks[-1] else None
        if stack.grad_checkpointing and torch.is_grad_enabled():
            x = checkpoint(block, x, None, None, None, causal, last, use_reentrant=False, preserve_rng_state=False)
        else:
            x = block(x, causal=causal, read=last)
    return x


def _ours(stack: Any) -> bool:
    return all(isinstance(block, Block) for block in stack.resblocks)


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """From the CPU to the device, without waiting for the device's work."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
