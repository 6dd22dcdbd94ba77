"""LoRA: a dense layer with a low-rank update that is trained in its place, and dropout before it.

Like peft's `lora.Linear`: y = W x + bias + (alpha / rank) B A dropout(x). A begins with numbers
from -1 / sqrt(inputs) to 1 / sqrt(inputs), uniformly distributed, and B with zeros, so that the
first step begins with the function of W. A model knows its LoRA layers by `config.lora`; which
parameters are trained is not its matter (trained.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from minigpt.config import LoraConfig, ModelConfig
from minigpt.model.dropout_sites import DropoutSite

if TYPE_CHECKING:
    from jaxtyping import Array, Float

A, B = "lora_a", "lora_b"


class LoraLinear(nnx.Linear):
    """A dense layer with a low-rank update: `apply_dense` adds it."""

    def __init__(
        self, inputs: int, outputs: int, lora: LoraConfig, *, rngs: nnx.Rngs, **options: Any
    ):
        super().__init__(inputs, outputs, rngs=rngs, **options)
        assert lora.rank is not None
        init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.lora_a = nnx.Param(init(rngs.params(), (inputs, lora.rank)))
        self.lora_b = nnx.Param(jnp.zeros((lora.rank, outputs)))
        self.scale = lora.scale

    def low_rank_update(self, x: Float[Array, "tokens inputs"]) -> Float[Array, "tokens outputs"]:
        """(alpha / rank) B A x."""
        dtype = self.dtype or jnp.result_type(x, self.lora_a[...])
        x, a, b = (jnp.asarray(array, dtype) for array in (x, self.lora_a[...], self.lora_b[...]))
        return x @ a @ b * self.scale


def apply_dense(
    layer: nnx.Linear, x: Float[Array, "batch time inputs"], site: DropoutSite, name: str
) -> Float[Array, "batch time outputs"]:
    """Apply the dense layer of this name in the block of this site, with LoRA if it has it."""
    y = apply_per_token(layer, x)
    if isinstance(layer, LoraLinear):
        dropped = site.at("lora", name).dropout(x, site.rates.lora)
        y += apply_per_token(layer.low_rank_update, dropped)
    return y


def apply_per_token(layer: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Apply a layer to (batch * time, dim): one large matrix product is faster on a CPU."""
    return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


def split_lora(params: Any) -> tuple[Any, Any]:
    """The parameters of the LoRA layers, A and B, and all others."""
    lora, others = nnx.split_state(params, lambda path, _: path[-1] in (A, B), ...)
    return lora, others


def merge_lora(config: ModelConfig, params: Any) -> Any:
    """The parameters of `config.without_lora()` that compute the same with dropout off.

    W + (alpha / rank) B A is computed in float64 on the host and rounded once.
    """
    if config.lora.rank is None:
        return params
    leaves: dict[tuple[Any, ...], Any] = dict(nnx.to_flat_state(params))
    for *layer, name in list(leaves):
        if name == A:
            a, b = (leaves.pop((*layer, name)) for name in (A, B))
            kernel = leaves[(*layer, "kernel")]
            merged = _float64(kernel) + config.lora.scale * (_float64(a) @ _float64(b))
            leaves[(*layer, "kernel")] = kernel.replace(merged.astype(kernel.dtype))
    return nnx.from_flat_state(leaves)


def _float64(variable: Any) -> np.ndarray:
    return np.asarray(variable[...], np.float64)
