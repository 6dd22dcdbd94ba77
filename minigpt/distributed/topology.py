"""Devices that are not there: those of a TPU slice or of a host of H100s, for the compiler only.

`make_mesh(config, topology.devices)` is a mesh of them, for which a step can be compiled.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

# Memory in bytes that the compiler lets a program use; the rest of the chip's is the runtime's.
_TPU_HBM = {
    "v4": 30.75 * 2**30,
    "v5e": 15.75 * 2**30,
    "v5p": 95.74 * 2**30,
    "v6e": 31.25 * 2**30,
}
_H100_HBM = 84_929_347_584

# XLA's GpuTargetConfig of an H100 with 80 GB, SXM5.
_H100 = f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: {_H100_HBM}
  shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 minor: 0 }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Topology(NamedTuple):
    """Devices to compile for, which need not be there."""

    name: str
    devices: list[Any]
    hbm_bytes: int
    """memory of one device that a program may use"""


class MissingCompilerError(ValueError):
    """The compiler for a device is not installed; the message is the line that installs it."""


def parse_topology(text: str) -> tuple[str, tuple[int, ...]]:
    """Parse `v5e:4x4` or `h100:8`: the chip and the shape; a chip alone is one of it."""
    chip, _, shape = text.partition(":")
    is_valid = re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape or "1") is not None
    sizes = tuple(map(int, (shape or "1").split("x"))) if is_valid else ()
    dimensions = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "h100": 1}.get(chip)
    if dimensions is None or not (len(sizes) == dimensions or sizes == (1,)):
        raise ValueError(
            f"topology={text!r} is not allowed: it must be one chip (v4, v5e, v5p, v6e or h100) or "
            "a shape of them, such as v5e:4x4, v6e:2x4, v4:2x2x1, v5p:2x2x2 or h100:8."
        )
    return chip, sizes


def describe_topology(text: str) -> Topology:
    """The devices of a topology such as `v5e:4x4` or `h100:8`, from their compiler.

    Raises MissingCompilerError with the line that installs the compiler, and ValueError for a shape
    that the compiler does not know.
    """
    chip, shape = parse_topology(text)
    if chip == "h100":
        _require_compiler(text, "CUDA", ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13"))
        options = {"target_config": _H100, "topology": f"1x1x{shape[0]}"}
        return Topology(text, _devices(text, "cuda", options), _H100_HBM)
    _require_compiler(text, "TPU", ("libtpu",))
    # Nothing here opens a chip, so several processes may load the library, and none asks for one.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    if math.prod(shape) == 1:
        shape = (1,) * 3 if chip in ("v4", "v5p") else (1,) * 2
        options: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)}
    else:
        options = {}
    if chip == "v4":
        options["chip_config_name"] = "megacore"  # one device a chip, as JAX shows them
    options["topology_name"] = f"{chip}:{'x'.join(map(str, shape))}"
    return Topology(text, _devices(text, "tpu", options), int(_TPU_HBM[chip]))


def _devices(text: str, platform: str, options: dict[str, Any]) -> list[Any]:
    try:
        return list(topologies.get_topology_desc(platform=platform, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"topology={text!r} is not allowed: the compiler does not know this shape ({error}). "
            "Use one that can be rented, such as v5e:2x2, v5e:4x4, v4:2x2x1 or h100:8."
        ) from None


def _require_compiler(text: str, platform: str, modules: tuple[str, ...]) -> None:
    """Raise MissingCompilerError unless one of the modules is installed."""
    for module in modules:
        parent, _, _ = module.rpartition(".")
        if (not parent or importlib.util.find_spec(parent)) and importlib.util.find_spec(module):
            return
    version = jax.__version__
    install = {
        "TPU": f"pip install 'jax[tpu]=={version}'",
        "CUDA": f"pip install --no-deps jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version}",
    }[platform]
    raise MissingCompilerError(
        f"topology={text!r} needs the compiler for {platform}, which is not installed (it runs on "
        f"any machine, without the device): {install}"
    )
