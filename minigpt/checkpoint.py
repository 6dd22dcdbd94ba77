"""A run's arrays on disk: one safetensors file, replaced atomically, and read back by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

FILE = "checkpoint.safetensors"


def save(run_dir: Path, tree: Any) -> Path:
    """Write every array under its path's name; a reader sees the old file or the new."""
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in _named_leaves(tree)}
    path = run_dir / FILE
    partial = path.with_suffix(".partial")
    save_file(arrays, partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    return path


def restore(run_dir: Path, like: Any) -> Any:
    """Read the arrays of a tree shaped `like` (arrays or jax.ShapeDtypeStruct)."""
    path = run_dir / FILE
    if not path.exists():
        raise ValueError(f"{str(run_dir)!r} holds no {FILE}. Is it a run directory?")
    try:
        arrays = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}.") from None
    leaves = []
    for name, leaf in _named_leaves(like):
        if name not in arrays:
            raise ValueError(f"{str(path)!r} lacks the array {name!r}.")
        found = arrays[name]
        if (found.shape, found.dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(
                f"{str(path)!r}: the array {name!r} is {found.dtype}{found.shape}, and the model "
                f"needs {leaf.dtype}{leaf.shape}. Was config.toml changed?"
            )
        leaves.append(found)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Leaves with names such as `params/blocks/0/attn/qkv/kernel/value`."""
    flat = jax.tree.leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in flat]
