"""Parameter counts in the two ways that papers quote: with and without the token table, in all and by tower.

The token table (vocabulary x width) is most of a small CLIP and costs no arithmetic; TinyCLIP's names ("ViT-39M/16
Text-19M") leave it out. The scalar logit scale counts towards the total only.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from orchestrator.models.interface import Model


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters.

    Attributes:
        total: everything, the logit scale included.
        image: the image tower.
        text: the text tower, token table included.
        token_table: the text tower's token embedding.
    """

    total: int
    image: int
    text: int
    token_table: int

    @property
    def without_token_table(self) -> int:
        """Everything but the token table."""
        return self.total - self.token_table

    @property
    def text_without_token_table(self) -> int:
        """The text tower but its token table."""
        return self.text - self.token_table


def count(model: Model) -> Parameters:
    """Count a model's parameters; buffers such as batch statistics are not parameters."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    table = sum(parameter.numel() for parameter in model.parameters() if id(parameter) in tables)
    image = sum(size for name, size in sizes.items() if ".visual." in f".{name}")
    scalars = sum(size for name, size in sizes.items() if name.endswith(("logit_scale", "logit_bias")))
    total = sum(sizes.values())
    return Parameters(total=total, image=image, text=total - image - scalars, token_table=table)
