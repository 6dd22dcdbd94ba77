"""minigpt plan: compile the training step for devices that are not there."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich import box
from rich.table import Table

from minigpt.cli.common import make_console
from minigpt.cli.settings import resolve
from minigpt.cli.train import DEFAULT_PRESET, ConfigOptions
from minigpt.config import PRESETS, Config, PresetName

if TYPE_CHECKING:
    from minigpt.training import TrainPlan


@dataclass(frozen=True)
class Plan:
    """Compile the training step for devices that are not there, and print whether it fits.

    For example:

      $ minigpt plan --preset gpt2 --topology v5e:4x4 --mesh data=8,fsdp=2

    It needs the devices' compiler and no device: for TPUs jax[tpu], for H100 the CUDA plugin of
    JAX; where it is missing, the error is the line that installs it. The settings are those of
    `minigpt train`, and each of these overrides the ones before it: --preset, --config, --dropout,
    single options. Without --batch-size and --config, the preset's batch is rounded up to a
    multiple of the rows that the mesh and --accumulate need.
    """

    topology: str
    """the devices: v5e:4x4, v4:2x2x1, v5p:2x2x2, v6e:2x4 or h100:8, or a chip's name for one"""
    preset: PresetName = DEFAULT_PRESET
    """default settings"""
    config: Path | None = None
    """TOML file of settings, such as the config.toml of a run"""
    dropout: float | None = None
    """one rate for nanoGPT's four dropout sites: embed, attn-weights, attn-out, mlp-out"""
    json: bool = False
    """print one JSON object"""
    options: Annotated[ConfigOptions, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=dict
    )


def run_plan(command: Plan) -> None:
    """Compile the step, and print what the compiler says as a table or as JSON."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX starts, so that no device is opened
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    from minigpt.distributed import describe_topology
    from minigpt.training import plan_training

    settings = resolve(PRESETS[command.preset], command.config, command.dropout, command.options)
    if command.config is None and "batch_size" not in command.options:
        settings = _round_up_batch(settings)
    vocab_size = _vocab_size(settings)
    with _without_compiler_logs():
        topology = describe_topology(command.topology)
        plan = plan_training(settings, vocab_size, topology)
    if command.json:
        print(json.dumps(plan._asdict()))
        return
    _print_plan(plan)


@contextlib.contextmanager
def _without_compiler_logs() -> Iterator[None]:
    """Discard what is written to file descriptor 2: pages of log, if a program does not fit."""
    stderr = os.dup(2)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _round_up_batch(settings: Config) -> Config:
    from minigpt.distributed import parse_mesh_spec

    sizes = parse_mesh_spec(settings.mesh) if settings.mesh else {}
    rows = sizes.get("data", 1) * sizes.get("fsdp", 1) * settings.accumulate
    return dataclasses.replace(settings, batch_size=-(-settings.batch_size // rows) * rows)


def _vocab_size(settings: Config) -> int:
    """The rows of the token table; those of char and bpe follow from the text."""
    from minigpt.data import build_tokenizer, load_run_dataset

    if settings.model.vocab_size is not None:
        return settings.model.vocab_size
    if settings.tokenizer not in ("char", "bpe"):
        return build_tokenizer(settings.tokenizer, "").vocab_size
    return load_run_dataset(settings).tokenizer.vocab_size


def _print_plan(plan: TrainPlan) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    for name, value in describe_plan(plan).items():
        table.add_row(name, value)
    console = make_console()
    console.print(table)
    console.print(
        "Compiled, not run: no device was used. The speed is an assumption, not a measurement."
    )
    if not plan.fits:
        console.print(
            "It does not fit. Use more devices on fsdp, a smaller --batch-size, a larger "
            "--accumulate, --model.dtype bfloat16 or --model.remat True."
        )


def describe_plan(plan: TrainPlan) -> dict[str, str]:
    """The rows of the table."""
    used = "more than it has" if plan.peak_bytes is None else f"{plan.peak_bytes / 2**30:.2f} GiB"
    axes = ", ".join(f"{name}={size}" for name, size in plan.mesh.items())
    calls = plan.collectives or {}
    communication = ", ".join(f"{count} {name}" for name, count in calls.items()) or "none"
    speed = f"{plan.assumed_tokens_per_s:,.0f} at {plan.assumed_utilization:.0%} of the peak"
    return {
        "devices": f"{plan.topology}, {plan.device_kind}",
        "mesh": axes,
        "batch size": f"{plan.batch_size} (--batch-size {plan.batch_size})",
        "parameters": f"{plan.parameters:,}",
        "fits": "yes" if plan.fits else "no",
        "peak memory per device": f"{used} of {plan.hbm_bytes / 2**30:.2f} GiB",
        "collectives": communication if plan.collectives is not None else "not compiled",
        "FLOPs per step": f"{plan.flops_per_step:.3g}",
        "tokens per second, assumed": speed,
        "compile time": f"{plan.compile_s} s",
    }
