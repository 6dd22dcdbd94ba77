"""From the folder of a Hugging Face GPT-2 to a run, and from a run to such a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import itertools
import json
import os
import secrets
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
import safetensors.numpy

from minigpt import checkpoint
from minigpt.atomic_write import fsync_dir, name_in_errors, write_dir_atomic
from minigpt.config import PRESETS
from minigpt.interop.gpt2_config import (
    describe_dropout,
    describe_lost_dropout,
    gpt2_config,
    read_gpt2_config,
)
from minigpt.interop.gpt2_weights import gpt2_weights, read_gpt2_weights
from minigpt.interop.hub import find_model_folder
from minigpt.interop.model_tokenizer import (
    TOKENIZER_FILES,
    end_of_text_id,
    read_model_tokenizer,
    tokenizer_files,
    tokenizer_setting,
)
from minigpt.interop.safetensors import require_new_file, restore_parameters
from minigpt.interop.safetensors_files import INDEX, WEIGHTS, weight_files
from minigpt.run import LOCK, RunSpec
from minigpt.training import TrainState, build_abstract_train_functions

CONFIG_JSON = "config.json"
# Fine-tuning takes a quarter of the steps and a tenth of the learning rate: 500 and 6e-5.
STEPS = 2000


def read_huggingface(name: Path | str) -> tuple[RunSpec, Any]:
    """The settings, the tokenizer and the parameters of a folder, or of a model of the hub.

    Raises:
      ValueError: a file is missing, damaged, or not of a GPT-2 that this GPT computes.
    """
    folder = find_model_folder(name)
    if not folder.is_dir():
        raise ValueError(
            f"{str(name)!r} is not allowed: it must be a folder with config.json, {WEIGHTS} and "
            "tokenizer.json, or the name of a model of the hub, such as openai-community/gpt2."
        )
    model = read_gpt2_config(folder / CONFIG_JSON)
    _require_safetensors(folder)
    tokenizer = read_model_tokenizer(folder)
    if tokenizer.vocab_size > (model.vocab_size or 0):
        raise ValueError(
            f"{str(folder / CONFIG_JSON)!r}: vocab_size={model.vocab_size} is not allowed: the "
            f"tokenizer of this folder has {tokenizer.vocab_size} tokens. Is it another model's?"
        )
    arrays = read_gpt2_weights(folder, model)
    config = dataclasses.replace(
        PRESETS["gpt2"],
        steps=STEPS,
        eval_every=250,
        tokenizer=tokenizer_setting(tokenizer, folder),
        imported_from=str(name if folder != Path(name) else folder.resolve()),
        model=model,
    )
    run = RunSpec(config, tokenizer, _sha256(folder))
    return run, _to_tree(_abstract_state(run).params, arrays)


def import_huggingface(name: Path | str, run_dir: Path) -> RunSpec:
    """Write a run directory with the weights and the tokenizer of a folder, or of the hub's model.

    The run directory appears when it is complete; on error nothing is written.
    """
    _require_new_folder(run_dir, "run-dir")
    run, params = read_huggingface(name)
    run = run._replace(config=dataclasses.replace(run.config, run_dir=run_dir.absolute()))
    _write_run(run, params, run_dir)
    return run


def import_once(name: Path | str, runs: Path, say: Callable[[str], object]) -> Path:
    """The run directory of an import in `runs`: an earlier one of the same files, or a new one."""
    folder = find_model_folder(name)
    base = f"{folder.resolve().name if folder == Path(name) else Path(name).name}-imported"
    run, params = read_huggingface(folder)
    run = run._replace(config=dataclasses.replace(run.config, imported_from=str(name)))
    for number in itertools.count(1):
        path = runs / (f"{base}-{number}" if number > 1 else base)
        if not path.exists():
            run = run._replace(config=dataclasses.replace(run.config, run_dir=path.absolute()))
            try:
                _write_run(run, params, path)
            except OSError:
                if not path.exists():
                    raise
                # another process has imported to this name: see whether it is the same
            else:
                say(f"imported {name} to {path}")
                return path
        if _is_import(path, run.data_sha256):
            say(f"{name} is imported already: {path}")
            return path
    raise AssertionError


def export_huggingface(run_dir: Path, out: Path, step: int | None = None) -> tuple[int, list[str]]:
    """Write a step, by default the newest, to a new folder that transformers loads as a GPT-2.

    Returns the step, and a line for each dropout rate that config.json has no key for.
    """
    _require_new_folder(out, "out")
    require_new_file(out)
    run = RunSpec.load(run_dir)
    end_of_text = end_of_text_id(run.tokenizer)
    config = gpt2_config(run.config.model, run.vocab_size, end_of_text)
    files = tokenizer_files(run.tokenizer, run.config.model.block_size)
    arrays, step = restore_parameters(run_dir, run, step)
    weights = gpt2_weights(arrays, run.config.model.n_layer)
    content = {
        WEIGHTS: safetensors.numpy.save(weights, metadata={"format": "pt"}),
        **files,
        CONFIG_JSON: json.dumps(config, indent=2, sort_keys=True).encode() + b"\n",
    }
    write_dir_atomic(out, content)
    return step, describe_lost_dropout(run.config.model.without_lora().dropout)


def describe_import(run: RunSpec) -> list[str]:
    """What an imported run is, in lines for the screen."""
    model, setting = run.config.model, run.config.tokenizer
    kind = setting if setting in ("char", "byte") else "subwords"
    return [
        f"GPT-2: {model.n_layer} blocks, {model.n_head} heads, width {model.n_embd}, context "
        f"{model.block_size}, {model.vocab_size} rows in the token table, {model.activation}",
        f"tokenizer: {kind}, {run.tokenizer.vocab_size} tokens",
        *describe_dropout(model.dropout),
    ]


def _require_new_folder(path: Path, option: str) -> None:
    name = option.replace("-", "_")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(
            f"{name}={str(path)!r} is not allowed: it must be a new folder, so that no file is "
            f"overwritten. Choose another --{option}."
        )


def _require_safetensors(folder: Path) -> None:
    """Refuse a folder with weights in another format only; pickles are not read."""
    if any((folder / name).exists() for name in (WEIGHTS, INDEX)):
        return
    pickles = sorted(folder.glob("pytorch_model*.bin*"))
    if not pickles:
        raise ValueError(f"{str(folder)!r} has no weights: {WEIGHTS} is missing.")
    raise ValueError(
        f"{str(pickles[0])!r} is not allowed: it is a pickle, which can run any code, and minigpt "
        f"reads {WEIGHTS} only. If you trust it, convert it: {conversion_command(folder)}"
    )


def conversion_command(folder: Path) -> str:
    """A command for the shell that writes model.safetensors beside pytorch_model.bin."""
    code = (
        "import sys, transformers; "
        "transformers.GPT2LMHeadModel.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])"
    )
    return shlex.join(["python", "-c", code, str(folder)])


def _sha256(folder: Path) -> str:
    """SHA-256 of the names and contents of the files that an import reads."""
    names = [CONFIG_JSON, *TOKENIZER_FILES, INDEX]
    paths = [path for name in names if (path := folder / name).is_file()]
    digest = hashlib.sha256()
    for path in [*paths, *weight_files(folder)]:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name}\0{content}".encode())
    return digest.hexdigest()


def _abstract_state(run: RunSpec) -> TrainState:
    config = dataclasses.replace(run.config, mesh="data=1")
    return build_abstract_train_functions(config, run.vocab_size, jax.local_devices()).state


def _to_tree(like: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Parameters in the structure of `like`, from arrays by the names of `plain_parameters`."""

    def find(path: tuple[Any, ...], _: Any) -> np.ndarray:
        return arrays[".".join(str(key.key) for key in path if hasattr(key, "key"))]

    return jax.tree.map_with_path(find, like)


def _write_run(run: RunSpec, params: Any, run_dir: Path) -> None:
    """Write to a hidden folder, flush it to disk and rename it.

    The folder is locked, so that a later import removes what a killed one has left.
    """
    run_dir = run_dir.absolute()
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(run_dir)
    partial = run_dir.with_name(f".{run_dir.name}.{secrets.token_hex(4)}.partial")
    try:
        with name_in_errors(partial):
            partial.mkdir()
        with filelock.FileLock(partial / LOCK):
            state = TrainState(np.zeros((), np.int32), params, None)  # pyright: ignore
            with checkpoint.CheckpointWriter(partial, keep_last=1) as writer:
                writer.save(0, checkpoint.host_arrays(state), {"data_sha256": run.data_sha256})
            run.write(partial)
            fsync_dir(partial)
            with name_in_errors(run_dir):
                os.rename(partial, run_dir)
        fsync_dir(run_dir.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _remove_leftovers(run_dir: Path) -> None:
    """Remove the hidden folders of killed imports: those that no process has locked."""
    for path in run_dir.parent.glob(f".{glob.escape(run_dir.name)}.*.partial"):
        lock = filelock.FileLock(path / LOCK, timeout=0)
        with contextlib.suppress(filelock.Timeout, OSError), lock:
            shutil.rmtree(path)


def _is_import(path: Path, sha256: str) -> bool:
    try:
        run = RunSpec.load(path)
    except ValueError:
        return False
    return run.config.imported_from is not None and run.data_sha256 == sha256
