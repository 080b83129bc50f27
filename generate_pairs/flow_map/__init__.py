"""The map from noise to tokens. `from generate_pairs.flow_map import FlowMap` imports torch on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from generate_pairs.flow_map.flow_map import FlowMap

__all__ = ["FlowMap"]


def __getattr__(name: str) -> type[FlowMap]:
    if name == "FlowMap":
        from generate_pairs.flow_map.flow_map import FlowMap

        return FlowMap
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
