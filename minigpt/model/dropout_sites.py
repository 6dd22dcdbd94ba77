"""The dropout sites of the model: where the mask comes from, and what is captured there.

A site is named by its position: "embed", "block/0/attn_weights", "block/0/drop_path/mlp". The parts
of the name, numbers as integers, are folded into the key. So masks differ between sites and layers,
and a new site does not change the masks of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from dropout_jax import apply_mask, drop_path, dropout, fold, keep_mask, linear_over_depth
from minigpt.config import LORA_TARGETS, DropoutConfig, ModelConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


Captures = dict[str, dict[str, Any]]
"""By the site's name: its "input", "mask" and "output"."""


class CaptureAll(dict[str, dict[str, Any]]):
    """Captures that include the sites of rate 0, whose entries have no mask."""


class DropoutSite(NamedTuple):
    """A dropout site of the model; the root, whose name is empty, is the whole model."""

    key: jax.Array | None
    """the masks are drawn from this key; None: evaluation"""
    masks: Mapping[str, Any] | None = None
    """masks to use instead of the key, by site: a bool array (True is kept) or (mask, scale)"""
    captures: Captures | None = None
    """the sites that drop add their input, mask and output to this dict"""
    name: str = ""
    row_offset: jax.Array | None = None
    """this batch has the masks of a larger batch's rows from this row on"""
    rates: DropoutConfig = DropoutConfig()
    """the rates of this part of the model"""

    def at(self, *path: str | int | jax.Array) -> DropoutSite:
        """The site, or the part of the model, with this path below this one."""
        names = [self.name] if self.name else []
        return self._replace(key=fold(self.key, *path), name="/".join([*names, *map(str, path)]))

    @property
    def uses_key_only(self) -> bool:
        """Whether the masks are drawn from the key and nothing is captured."""
        return self.masks is None and self.captures is None

    def dropout(self, x: Float[Array, "..."], rate: float | jax.Array) -> Float[Array, "..."]:
        """Drop elements."""
        if self.uses_key_only:
            return dropout(x, rate, key=self.key, row_offset=self.row_offset)
        return self._drop_with_mask(x, rate, x.shape)

    def drop_path(
        self, x: Float[Array, "batch ..."], rate: float | jax.Array
    ) -> Float[Array, "batch ..."]:
        """Drop rows of the batch."""
        if self.uses_key_only:
            return drop_path(x, rate, key=self.key, row_offset=self.row_offset)
        return self._drop_with_mask(x, rate, (x.shape[0],) + (1,) * (x.ndim - 1))

    def _drop_with_mask(
        self, x: Float[Array, "..."], rate: float | jax.Array, mask_shape: tuple[int, ...]
    ) -> Float[Array, "..."]:
        """The same with an explicit mask: `masks` can replace it and `captures` can keep it."""
        if self.key is None and self.masks is None:
            return x
        if rate == 0:
            if isinstance(self.captures, CaptureAll):
                self.captures[self.name] = {"input": x, "output": x}
            return x
        keep, scale = self._mask(rate, mask_shape)
        y = apply_mask(x, keep, rate if scale is None else None, scale=scale)
        if self.captures is not None:
            self.captures[self.name] = {"input": x, "mask": keep, "output": y}
        return y

    def _mask(self, rate: float | jax.Array, shape: tuple[int, ...]) -> tuple[ArrayLike, Any]:
        """The mask, and its scale where `masks` has one."""
        if self.masks is None:
            assert self.key is not None
            return keep_mask(self.key, rate, shape, row_offset=self.row_offset), None
        if self.name not in self.masks:
            raise ValueError(
                f"masks={sorted(self.masks)} are not allowed: there must be one for {self.name!r}, "
                f"of shape {shape}. minigpt.model.site_specs lists all sites."
            )
        mask = self.masks[self.name]
        return mask if isinstance(mask, tuple) else (mask, None)


def rates_over_depth(rates: DropoutConfig, n_layer: int) -> tuple[DropoutConfig, ...]:
    """The rates of each block; products in float32, so traced and known rates give the same masks.

    >>> rates = DropoutConfig(mlp_out=0.5, over_depth="linear")
    >>> [block.mlp_out for block in rates_over_depth(rates, 3)]
    [0.0, 0.25, 0.5]
    """
    if rates.over_depth == "constant":
        return (rates,) * n_layer
    return tuple(
        DropoutConfig(**{name: _multiply(rate, share) for name, rate in rates.rates.items()})
        for share in linear_over_depth(1.0, n_layer)
    )


def _multiply(rate: Any, share: float) -> Any:
    if share == 1:
        return rate
    if isinstance(rate, jax.Array):
        return rate * np.float32(share) if share else 0.0
    return float(np.float32(rate) * np.float32(share))


class SiteSpec(NamedTuple):
    """The rate of a site and the shape of its mask."""

    rate: float
    shape: tuple[int, ...]


def site_specs(config: ModelConfig, batch: int, time: int) -> dict[str, SiteSpec]:
    """Every site with a rate above 0, in the order of the forward pass, for (batch, time) tokens.

    Another generator can draw its masks in this order. PyTorch's, for example, are
    `{name: generator.mask(spec.shape, spec.rate) for name, spec in site_specs(...).items()}` with
    `generator = dropout_jax.parity.torch.CPUGenerator(seed)`.
    """
    dense, hidden = (batch, time, config.n_embd), (batch, time, config.mlp_width)
    specs = {"embed": SiteSpec(config.dropout.embed, dense)}
    for i, rates in enumerate(rates_over_depth(config.dropout, config.n_layer)):
        lora = {
            name: SiteSpec(
                rates.lora if config.lora.adapts(name) else 0.0,
                hidden if name == "mlp_out" else dense,
            )
            for name in LORA_TARGETS
        }
        block = {
            "lora/qkv": lora["qkv"],
            "attn_weights": SiteSpec(rates.attn_weights, (batch, config.n_head, time, time)),
            "attn_context": SiteSpec(rates.attn_context, dense),
            "lora/out": lora["out"],
            "attn_out": SiteSpec(rates.attn_out, dense),
            "drop_path/attn": SiteSpec(rates.drop_path, (batch, 1, 1)),
            "lora/mlp_in": lora["mlp_in"],
            "lora/mlp_gate": lora["mlp_gate"],
            "mlp_hidden": SiteSpec(rates.mlp_hidden, hidden),
            "lora/mlp_out": lora["mlp_out"],
            "mlp_out": SiteSpec(rates.mlp_out, dense),
            "drop_path/mlp": SiteSpec(rates.drop_path, (batch, 1, 1)),
        }
        specs |= {f"block/{i}/{name}": spec for name, spec in block.items()}
    return {name: spec for name, spec in specs.items() if spec.rate}


def draw_masks(
    config: ModelConfig, key: jax.Array, batch: int, time: int
) -> dict[str, Bool[Array, "*"]]:
    """The masks that the model draws from this key, for every site with a rate above 0."""
    return {
        name: keep_mask(fold(key, *_path(name)), spec.rate, spec.shape)
        for name, spec in site_specs(config, batch, time).items()
    }


def _path(name: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in name.split("/")]
