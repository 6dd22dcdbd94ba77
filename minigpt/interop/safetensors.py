"""Write the parameters of a run to one safetensors file, under plain names.

The names do not depend on how the run computed (scan_layers, remat, mesh, dtype); they are listed
with their shapes in docs/checkpoints.md.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from minigpt.atomic_write import write_atomic
from minigpt.data import tokenizer_content
from minigpt.model import merge_lora
from minigpt.run import RunSpec, restore_run
from minigpt.training import build_abstract_train_functions


def export_safetensors(run_dir: Path, out: Path, step: int | None = None) -> int:
    """Write the parameters of a step, by default of the newest, to a new file; return the step.

    All arrays are float32. The file's metadata are strings: "format" (minigpt), "step", "config"
    (JSON of the run's settings without its paths) and "tokenizer" (JSON with the alphabet, null
    for bytes, or with tokenizer_json, for subwords).
    """
    require_new_file(out)
    spec = RunSpec.load(run_dir)
    arrays, step = restore_parameters(run_dir, spec, step)
    write_atomic(out, safetensors.numpy.save(arrays, metadata=_metadata(spec, step)))
    return step


def restore_parameters(
    run_dir: Path, spec: RunSpec, step: int | None
) -> tuple[dict[str, np.ndarray], int]:
    """The plain parameters of a step, by default of the newest, and the step; LoRA is merged."""
    config = dataclasses.replace(spec.config, mesh="data=1")
    compiled = build_abstract_train_functions(config, spec.vocab_size, jax.local_devices())
    state, _ = restore_run(run_dir, spec.config, compiled.state, step)
    return plain_parameters(merge_lora(spec.config.model, state.params)), int(state.step)


def require_new_file(out: Path) -> None:
    """Raise ValueError unless `out` is a new file in a folder that exists."""
    if out.exists():
        raise ValueError(
            f"out={str(out)!r} is not allowed: it must be a new file, so that none is overwritten. "
            "Choose another --out."
        )
    if not out.absolute().parent.is_dir():
        raise ValueError(
            f"out={str(out)!r} is not allowed: its folder must exist. Create it, or choose another "
            "--out."
        )


def plain_parameters(params: Any) -> dict[str, np.ndarray]:
    """The parameters of a GPT as float32 arrays by names such as `blocks.0.attn.qkv.kernel`."""
    named = {
        tuple(str(getattr(key, "key", key)) for key in path if hasattr(key, "key")): leaf
        for path, leaf in jax.tree.leaves_with_path(params)
    }
    arrays = {}
    for path, leaf in named.items():
        array = np.asarray(leaf, np.float32)
        if path[0] == "blocks" and not path[1].isdigit():  # stacked by scan_layers
            for i, layer in enumerate(array):
                arrays[".".join(("blocks", str(i), *path[1:]))] = np.ascontiguousarray(layer)
        else:
            arrays[".".join(path)] = np.ascontiguousarray(array)
    return arrays


def _metadata(spec: RunSpec, step: int) -> dict[str, str]:
    merged = dataclasses.replace(spec.config, freeze=None, model=spec.config.model.without_lora())
    config = dataclasses.asdict(merged)
    # Names of files of this machine, which may be private.
    for name in ("data", "val_data", "run_dir", "parent", "imported_from"):
        del config[name]
    if Path(config["tokenizer"]).name != config["tokenizer"]:
        config["tokenizer"] = Path(config["tokenizer"]).name
    tokenizer = {"kind": config["tokenizer"]} | tokenizer_content(spec.tokenizer)
    return {
        "format": "minigpt",
        "step": str(step),
        "config": json.dumps(config),
        "tokenizer": json.dumps(tokenizer),
    }
