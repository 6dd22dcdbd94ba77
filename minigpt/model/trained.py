"""Which parameters are trained: all, those of the LoRA layers, or those after the first blocks.

The trained ones alone are in the optimizer and in the checkpoints of a run.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from minigpt.config import Config
from minigpt.model.lora import A, B


def trains_all(config: Config) -> bool:
    """Whether every parameter is trained."""
    return config.model.lora.rank is None and config.freeze is None


def split_trained(config: Config, params: Any) -> tuple[Any, Any]:
    """The trained parameters, and the frozen ones in a form for `join_trained`.

    With scan_layers, an array of the trained ones has the layers from config.freeze on.
    """
    if trains_all(config):
        return params, None
    trained, frozen = nnx.split_state(params, functools.partial(_is_trained, config), ...)
    if not (config.model.scan_layers and config.freeze):
        return trained, (frozen, None)
    layers, others = nnx.split_state(trained, _is_in_block, ...)
    first = jax.tree.map(lambda leaf: leaf[: config.freeze], layers)
    layers = jax.tree.map(lambda leaf: leaf[config.freeze :], layers)
    return nnx.merge_state(layers, others), (frozen, first)


def join_trained(trained: Any, frozen: Any) -> Any:
    """All parameters, from the two results of `split_trained`."""
    if frozen is None:
        return trained
    frozen, first = frozen
    if first is not None:
        layers, others = nnx.split_state(trained, _is_in_block, ...)
        layers = jax.tree.map(lambda *parts: jnp.concatenate(parts), first, layers)
        trained = nnx.merge_state(layers, others)
    return nnx.merge_state(frozen, trained)


def _is_trained(config: Config, path: tuple[Any, ...], _: Any) -> bool:
    """By the path of a parameter; with scan_layers, an array has the parameters of all blocks."""
    if config.model.lora.rank is not None and path[-1] not in (A, B):
        return False
    if config.freeze is None:
        return True
    is_frozen_block = _is_in_block(path, _) and isinstance(path[1], int) and path[1] < config.freeze
    return path[0] not in ("tokens", "positions") and not is_frozen_block


def _is_in_block(path: tuple[Any, ...], _: Any) -> bool:
    return path[0] == "blocks"
