"""How a recipe says which model to train (`model:`) and which weights it starts from (`init:`). No torch.

`model: emoji-96x4` names a shape of the catalog; `model: {open_clip: {...}}` gives an open_clip configuration in
place. What counts for a stage's identity is the resolved configuration, so a shape spelled out is the shape by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    ModelWrapValidatorHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from orchestrator.errors import UserError
from orchestrator.models import SURGERY_VERSION, catalog
from orchestrator.recipe.schema import Config, Execution, Model, Ref


class ModelSpec(Config):
    """A model's shape: a name from the catalog, or an open_clip configuration."""

    name: Execution[str | None] = None
    """The name it was given by. Not part of its identity: the configuration is."""
    open_clip: dict[str, JsonValue]
    """An open_clip model configuration: embed_dim, vision_cfg, text_cfg."""

    @model_validator(mode="wrap")
    @classmethod
    def _resolve(cls, value: Any, handler: ModelWrapValidatorHandler[ModelSpec]) -> ModelSpec:
        if isinstance(value, ModelSpec):
            return value
        try:
            if isinstance(value, str):
                value = {"name": value, "open_clip": catalog.resolve(value)}
            elif isinstance(value, dict) and "name" in value:
                raise UserError("a model is written as its name, or as {open_clip: {...}}", "Write one of the two.")
            spec = handler(value)
            catalog.check(spec.open_clip)
            catalog.image_size(spec.open_clip)
        except UserError as error:
            raise PydanticCustomError(
                "model", "{reason}", {"reason": f"{error.message}. {error.remedy}".strip()}
            ) from None
        return spec

    @model_serializer
    def _as_written(self) -> str | dict[str, Any]:
        return self.name if self.name is not None else {"open_clip": self.open_clip}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        inline = {"type": "object", "properties": {"open_clip": {"type": "object"}}, "required": ["open_clip"]}
        return {
            "description": cls.__doc__,
            "examples": catalog.shipped(),
            "anyOf": [{"type": "string"}, inline | {"additionalProperties": False}],
        }

    @property
    def image_size(self) -> int:
        """Side of its images in pixels."""
        return catalog.image_size(self.open_clip)

    @property
    def context_length(self) -> int:
        """Largest number of tokens of its texts."""
        return catalog.context_length(self.open_clip)

    @property
    def capabilities(self) -> frozenset[str]:
        """What a model of this shape can do."""
        return frozenset({"encode_image", "encode_text", "score"})

    def smoke(self) -> ModelSpec:
        """A CPU-sized shape of the same kind."""
        return ModelSpec(open_clip=catalog.small(self.open_clip))


class Init(Config):
    """Where the initial weights come from. The model takes its shape from `model:` and its weights from `from`."""

    source: Annotated[Ref[Model], Field(alias="from")]
    """The model whose weights are taken: a stage or an external model."""
    mode: Literal["manual"] = "manual"
    """`manual`: every k-th layer, leading channels and heads (TinyCLIP); the same shape is copied whole."""

    def versions(self) -> dict[str, int]:
        """Weight inheritance decides the initial weights."""
        return {"surgery": SURGERY_VERSION}
