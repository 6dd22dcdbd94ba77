"""A dropout site of the model: what decides there, and what is written down of it.

A site's name says where it is: "embed", "block/0/attn_weights", "block/0/drop_path/mlp". Its path,
the name's parts with numbers as integers, is folded into the key, so that masks differ by site and
layer, and adding a site changes no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from dropout_jax import apply_mask, drop_path, dropout, fold, keep_mask
from minigpt.config import ModelConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


class FullTape(dict[str, dict[str, Any]]):
    """A tape that gets the sites of rate 0 too: what came in and went out, and no mask."""


class DropoutSite(NamedTuple):
    """A place in the model, and the model's root with the name ""."""

    key: jax.Array | None
    """decides what is dropped; None evaluates"""
    masks: Mapping[str, Any] | None = None
    """decide instead of the key, by name: a bool array (True is kept), or (mask, scale)"""
    tape: dict[str, dict[str, jax.Array]] | None = None
    """gets the input, the mask and the output of every site that drops, by name"""
    name: str = ""
    start: jax.Array | None = None
    """the row of a larger batch at which this one begins, whose masks it then has"""

    def at(self, *path: str | int) -> DropoutSite:
        """The site or the part of the model further down."""
        names = [self.name] if self.name else []
        return self._replace(key=fold(self.key, *path), name="/".join([*names, *map(str, path)]))

    @property
    def plain(self) -> bool:
        """Whether a key decides and nothing is written down."""
        return self.masks is None and self.tape is None

    def dropout(self, x: Float[Array, "..."], rate: float) -> Float[Array, "..."]:
        """Drop elements."""
        if self.plain:
            return dropout(x, rate, key=self.key, row_offset=self.start)
        return self._drop(x, rate, x.shape)

    def drop_path(self, x: Float[Array, "batch ..."], rate: float) -> Float[Array, "batch ..."]:
        """Drop rows of the batch."""
        if self.plain:
            return drop_path(x, rate, key=self.key, row_offset=self.start)
        return self._drop(x, rate, (x.shape[0],) + (1,) * (x.ndim - 1))

    def _drop(self, x, rate: float, mask_shape: tuple[int, ...]):
        """The same from a mask that is held, so that it can be given and written down."""
        if self.key is None and self.masks is None:
            return x
        if rate == 0:
            if isinstance(self.tape, FullTape):
                self.tape[self.name] = {"input": x, "output": x}
            return x
        scale = None
        if self.masks is None:
            keep = keep_mask(self.key, rate, mask_shape, row_offset=self.start)
        elif self.name in self.masks:
            given = self.masks[self.name]
            keep, scale = given if isinstance(given, tuple) else (given, None)
        else:
            raise ValueError(
                f"masks={sorted(self.masks)} are not allowed: there must be one for {self.name!r}, "
                f"of shape {mask_shape}. minigpt.sites.places lists every site."
            )
        y = apply_mask(x, keep, rate if scale is None else None, scale=scale)
        if self.tape is not None:
            self.tape[self.name] = {"input": x, "mask": keep, "output": y}
        return y


class SiteSpec(NamedTuple):
    """What a site drops."""

    rate: float
    shape: tuple[int, ...]


def site_specs(config: ModelConfig, batch: int, time: int) -> dict[str, SiteSpec]:
    """Every site that drops, in the order of the forward pass, for (batch, time) tokens.

    So masks from elsewhere can be drawn in the same order: PyTorch's, after `generator =
    dropout_jax.parity.torch.CPUGenerator(seed)`, are `{name: generator.mask(place.shape,
    place.rate) for name, place in places(...).items()}`.
    """
    rates, dense = config.dropout, (batch, time, config.n_embd)
    block = {
        "attn_weights": SiteSpec(rates.attn_weights, (batch, config.n_head, time, time)),
        "attn_context": SiteSpec(rates.attn_context, dense),
        "attn_out": SiteSpec(rates.attn_out, dense),
        "drop_path/attn": SiteSpec(rates.drop_path, (batch, 1, 1)),
        "mlp_hidden": SiteSpec(rates.mlp_hidden, (batch, time, 4 * config.n_embd)),
        "mlp_out": SiteSpec(rates.mlp_out, dense),
        "drop_path/mlp": SiteSpec(rates.drop_path, (batch, 1, 1)),
    }
    found = {"embed": SiteSpec(rates.embed, dense)}
    for i in range(config.n_layer):
        found |= {f"block/{i}/{name}": place for name, place in block.items()}
    return {name: place for name, place in found.items() if place.rate}


def draw_masks(
    config: ModelConfig, key: jax.Array, batch: int, time: int
) -> dict[str, Bool[Array, "*"]]:
    """The mask of every site that drops: what the model draws from the key."""
    return {
        name: keep_mask(fold(key, *_path(name)), place.rate, place.shape)
        for name, place in site_specs(config, batch, time).items()
    }


def _path(name: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in name.split("/")]
