"""The chips that are not there: their topologies, and abstract arrays on one of their devices."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from minigpt.distributed import Topology, describe_topology


@dataclass(frozen=True)
class Chip:
    """A chip, and topologies of 1, 4, 8, 64 and 256 of it."""

    name: str
    venv: str
    topologies: dict[int, str]
    in_depth: bool = False
    """whether the short form compiles more for it than a few programs of each kind"""

    @property
    def is_tpu(self) -> bool:
        return self.venv == ".venv-tpu"

    def topology(self, devices: int) -> Topology:
        return _describe(self.topologies[devices])


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", ".venv-tpu", {1: "v4", 8: "v4:2x2x2"}),
        Chip(
            "v5e",
            ".venv-tpu",
            {1: "v5e", 4: "v5e:2x2", 8: "v5e:2x4", 64: "v5e:8x8", 256: "v5e:16x16"},
            True,
        ),
        Chip("v5p", ".venv-tpu", {1: "v5p", 8: "v5p:2x2x2"}),
        Chip("v6e", ".venv-tpu", {1: "v6e", 8: "v6e:2x4"}),
        Chip("h100", ".venv-cuda", {1: "h100", 4: "h100:4", 8: "h100:8"}, True),
    )
}

_describe = functools.cache(describe_topology)


def abstract_array(device: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))


def abstract_key(sharding: Any) -> Any:
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding)
