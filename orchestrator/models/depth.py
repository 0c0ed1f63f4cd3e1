"""How far each parameter lies from the outputs. Layer-wise learning-rate decay (BEiT, Bao et al. 2022) scales the rate
by `layer_decay ** distance`.
"""

from __future__ import annotations

from orchestrator.models.interface import Model
from orchestrator.models.layers import image_layers, text_layers


def depths(model: Model) -> dict[str, int]:
    """Layers between each parameter, by name, and the output of its tower: 0 for projections and the logit scale, then
    1 for the last block, and so on to the embeddings. UserError for a model whose layers are not known.
    """
    distance: dict[int, int] = {}
    for layers in (image_layers(model), text_layers(model)):
        for number, layer in enumerate(reversed(layers)):
            distance |= {id(parameter): number for parameter in layer}
    return {name: distance.get(id(parameter), 0) for name, parameter in model.named_parameters()}
