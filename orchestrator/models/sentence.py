"""`SentenceEncoder`: a BERT whose tokens' features are averaged, as sentence-transformers' all-MiniLM-L6-v2 is.

BERT's blocks are PyTorch's own (norm after each half, GELU), so no further library is needed; weights and vocabulary
come from a package (packages.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from orchestrator.data.preprocess import WORDPIECE, Preprocess, Tokenizer
from orchestrator.models.interface import Model

MAX_TOKENS = 256
"""What the model was trained to read (its sentence_bert_config.json); its table of positions holds 512."""
EPSILON = 1e-12
"""Of all norms, as BERT has it."""
_HALVES = {
    "self_attn.out_proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm2": "output.LayerNorm",
}
"""PyTorch's names in a block -> BERT's."""


class SentenceEncoder(Model):
    """Reads WordPiece tokens, zero-padded; has no image side.

    `config` has `vocabulary`, `positions`, `width`, `heads`, `hidden`, `layers`. The table of positions holds BERT's
    embedding of the first segment, too: there is no second one.
    """

    capabilities: ClassVar[frozenset[str]] = frozenset({"encode_text"})

    def __init__(self, config: Mapping[str, int]) -> None:
        super().__init__()
        self.config, width = dict(config), config["width"]
        self.tokens = nn.Embedding(config["vocabulary"], width)
        self.positions = nn.Parameter(torch.zeros(config["positions"], width))
        self.norm = nn.LayerNorm(width, EPSILON)
        block = nn.TransformerEncoderLayer(
            width, config["heads"], config["hidden"], 0.0, "gelu", layer_norm_eps=EPSILON, batch_first=True
        )
        self.blocks = nn.TransformerEncoder(block, config["layers"], enable_nested_tensor=False)

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> SentenceEncoder:
        return cls(config)

    def structure(self) -> dict[str, Any]:
        return {"class": f"{type(self).__module__}:{type(self).__qualname__}", "config": self.config}

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Token ids [M, L] to the L2-normalised means of their tokens' features [M, d]."""
        padding = tokens == 0
        found = self.norm(self.tokens(tokens) + self.positions[: tokens.shape[1]])
        found = self.blocks(found, src_key_padding_mask=padding).masked_fill(padding[..., None], 0)
        return F.normalize(found.float().sum(1), dim=-1)  # of a mean and a sum the direction is the same


def load(folder: Path) -> tuple[Model, Preprocess, Tokenizer]:
    """The sentence encoder in a package's folder. Its images' preprocessing is nobody's: it has no image side."""
    described = json.loads((folder / "model/config.json").read_text())
    model = SentenceEncoder(
        {
            "vocabulary": described["vocab_size"],
            "positions": described["max_position_embeddings"],
            "width": described["hidden_size"],
            "heads": described["num_attention_heads"],
            "hidden": described["intermediate_size"],
            "layers": described["num_hidden_layers"],
        }
    )
    model.load_state_dict(_renamed(load_file(folder / "model/model.safetensors"), described["num_hidden_layers"]))
    return model.eval(), Preprocess(224), Tokenizer(f"{WORDPIECE}{folder.name}/model/tokenizer.json", MAX_TOKENS)


def _renamed(bert: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """BERT's weights by this module's names."""
    table = "embeddings.{}_embeddings.weight"
    found = {
        "tokens.weight": bert[table.format("word")],
        "positions": bert[table.format("position")] + bert[table.format("token_type")][0],
    }
    for kind in ("weight", "bias"):
        found[f"norm.{kind}"] = bert[f"embeddings.LayerNorm.{kind}"]
        for layer in range(layers):
            ours, theirs = f"blocks.layers.{layer}.", f"encoder.layer.{layer}."
            three = [bert[f"{theirs}attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            found[f"{ours}self_attn.in_proj_{kind}"] = torch.cat(three)
            for mine, name in _HALVES.items():
                found[f"{ours}{mine}.{kind}"] = bert[f"{theirs}{name}.{kind}"]
    return found
