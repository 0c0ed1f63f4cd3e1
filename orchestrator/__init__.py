"""A Ray-distributed platform for CLIP experiments. The public interface is `submit` and `load_model`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.api import load_model, submit

__all__ = ["load_model", "submit"]
__version__ = "0.4.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        from orchestrator import api

        return getattr(api, name)
    raise AttributeError(f"module 'orchestrator' has no attribute '{name}'")
