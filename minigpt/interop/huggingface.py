"""From the folder of a Hugging Face GPT-2 or Llama to a run, and from a run to such a folder."""

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
from minigpt.config import PRESETS, Config, ModelConfig
from minigpt.data import AnyTokenizer
from minigpt.interop.architectures import architecture_of, read_architecture
from minigpt.interop.config_json import describe_dropout, describe_lost_dropout
from minigpt.interop.gguf_model import read_gguf_model
from minigpt.interop.hub import find_gguf, find_model_folder
from minigpt.interop.model_chat_template import chat_template_files, read_chat_template
from minigpt.interop.model_tokenizer import (
    TOKENIZER_FILES,
    read_model_tokenizer,
    special_token_id,
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
MAX_BATCH_TOKENS = 12 * 1024


def read_huggingface(name: Path | str) -> tuple[RunSpec, Any]:
    """The settings, the tokenizer and the parameters of a folder, or of a model of the hub.

    Raises:
      ValueError: a file is missing, damaged, or not of a model that this GPT computes.
    """
    folder = find_model_folder(name)
    if gguf := find_gguf(folder):
        model, tokenizer, template, arrays = read_gguf_model(gguf)
        files = [gguf]
    else:
        model, tokenizer, arrays = _read_folder(folder, name)
        files, template = _files_of(folder), read_chat_template(folder, tokenizer)
    source = str(name if folder != Path(name) else folder.resolve())
    config = _settings(model, tokenizer_setting(tokenizer, folder), source)
    run = RunSpec(config, tokenizer, _sha256(files), template)
    return run, _to_tree(_abstract_state(run).params, arrays)


def _settings(model: ModelConfig, tokenizer: str, source: str) -> Config:
    """The settings of an imported run; `source` is the folder, file or name it comes from."""
    return dataclasses.replace(
        PRESETS["gpt2"],
        steps=STEPS,
        # The memory of a step grows with its tokens: no more of them than GPT-2 has.
        batch_size=max(1, min(PRESETS["gpt2"].batch_size, MAX_BATCH_TOKENS // model.block_size)),
        eval_every=250,
        tokenizer=tokenizer,
        imported_from=source,
        model=model,
    )


def _shorten(config: Config, block_size: int) -> Config:
    """The settings with a shorter context; learned positions are a table of the whole one."""
    model = config.model
    is_valid = model.positions == "rotary" and 1 <= block_size <= model.block_size
    if not (is_valid or block_size == model.block_size):
        allowed = f"from 1 to {model.block_size}" if model.positions == "rotary" else "left out"
        raise ValueError(
            f"block_size={block_size!r} is not allowed: it must be {allowed} for this model, which "
            f"has {model.positions} positions and a context of {model.block_size} tokens."
        )
    model, source = dataclasses.replace(model, block_size=block_size), config.imported_from
    return _settings(model, config.tokenizer, source or "")


def _read_folder(
    folder: Path, name: Path | str
) -> tuple[ModelConfig, AnyTokenizer, dict[str, np.ndarray]]:
    """The model, the tokenizer and the plain parameters of a folder with a config.json."""
    if not folder.is_dir():
        raise ValueError(
            f"{str(name)!r} is not allowed: it must be a folder with config.json, {WEIGHTS} and "
            "tokenizer.json, a GGUF file, or the name of a model of the hub, such as "
            "openai-community/gpt2."
        )
    architecture = read_architecture(folder / CONFIG_JSON)
    model = architecture.read_config(folder / CONFIG_JSON)
    _require_safetensors(folder, architecture.model_class)
    tokenizer = read_model_tokenizer(folder)
    if tokenizer.vocab_size > (model.vocab_size or 0):
        raise ValueError(
            f"{str(folder / CONFIG_JSON)!r}: vocab_size={model.vocab_size} is not allowed: the "
            f"tokenizer of this folder has {tokenizer.vocab_size} tokens. Is it another model's?"
        )
    return model, tokenizer, architecture.read_weights(folder, model)


def import_huggingface(name: Path | str, run_dir: Path, block_size: int | None = None) -> RunSpec:
    """Write a run directory with the weights and the tokenizer of a folder, or of the hub's model.

    `block_size` is a shorter context than the model's, which must have rotary positions: the memory
    of a step and of the cache of keys and values grows with it. The run directory appears when it
    is complete; on error nothing is written.
    """
    _require_new_folder(run_dir, "run-dir")
    run, params = read_huggingface(name)
    if block_size is not None:
        run = run._replace(config=_shorten(run.config, block_size))
    run = run._replace(config=dataclasses.replace(run.config, run_dir=run_dir.absolute()))
    _write_run(run, params, run_dir)
    return run


def import_once(name: Path | str, runs: Path, say: Callable[[str], object]) -> Path:
    """The run directory of an import in `runs`: an earlier one of the same files, or a new one."""
    folder = find_model_folder(name)
    base = f"{_plain_name(folder.resolve() if folder == Path(name) else Path(name))}-imported"
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


def _plain_name(path: Path) -> str:
    return path.stem if path.suffix == ".gguf" else path.name


def export_huggingface(run_dir: Path, out: Path, step: int | None = None) -> tuple[int, list[str]]:
    """Write a step, by default the newest, to a new folder that transformers loads.

    It is a Llama if the positions are rotary, else a GPT-2.


    Returns the step, and a line for each dropout rate that config.json has no key for.
    """
    _require_new_folder(out, "out")
    require_new_file(out)
    run = RunSpec.load(run_dir)
    end_of_text, model = special_token_id(run.tokenizer), run.config.model
    model = dataclasses.replace(model, vocab_size=run.vocab_size)
    architecture = architecture_of(model)
    config = architecture.config(model, run.vocab_size, end_of_text)
    if run.chat_template and (end := run.chat_template.tokens.get("eos_token")):
        config["eos_token_id"] = special_token_id(run.tokenizer, end)
    files = tokenizer_files(run.tokenizer, model.block_size, run.chat_template)
    arrays, step = restore_parameters(run_dir, run, step)
    weights = architecture.weights(arrays, model)
    content = {
        WEIGHTS: safetensors.numpy.save(weights, metadata={"format": "pt"}),
        **files,
        CONFIG_JSON: json.dumps(config, indent=2, sort_keys=True).encode() + b"\n",
    }
    write_dir_atomic(out, content)
    rates = model.without_lora().dropout
    return step, describe_lost_dropout(rates, architecture.sites, architecture.name)


def describe_import(run: RunSpec) -> list[str]:
    """What an imported run is, in lines for the screen."""
    model, setting = run.config.model, run.config.tokenizer
    kind = setting if setting in ("char", "byte") else "subwords"
    architecture, of_keys = architecture_of(model), ""
    if model.kv_heads != model.n_head:
        of_keys = f" ({model.kv_heads} of keys and values)"
    return [
        f"{architecture.name}: {model.n_layer} blocks, {model.n_head} heads{of_keys}, width "
        f"{model.n_embd}, context {model.block_size}, {model.vocab_size} rows in the token table, "
        f"{model.activation}",
        f"tokenizer: {kind}, {run.tokenizer.vocab_size} tokens"
        f"{', with a chat template' if run.chat_template else ''}",
        *describe_dropout(model.dropout, architecture.sites),
    ]


def _require_new_folder(path: Path, option: str) -> None:
    name = option.replace("-", "_")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(
            f"{name}={str(path)!r} is not allowed: it must be a new folder, so that no file is "
            f"overwritten. Choose another --{option}."
        )


def _require_safetensors(folder: Path, model_class: str) -> None:
    """Refuse a folder with weights in another format only; pickles are not read."""
    if any((folder / name).exists() for name in (WEIGHTS, INDEX)):
        return
    pickles = sorted(folder.glob("pytorch_model*.bin*"))
    if not pickles:
        raise ValueError(f"{str(folder)!r} has no weights: {WEIGHTS} is missing.")
    raise ValueError(
        f"{str(pickles[0])!r} is not allowed: it is a pickle, which can run any code, and minigpt "
        f"reads {WEIGHTS} only. If you trust it, convert it: "
        f"{conversion_command(folder, model_class)}"
    )


def conversion_command(folder: Path, model_class: str = "GPT2LMHeadModel") -> str:
    """A command for the shell that writes model.safetensors beside pytorch_model.bin."""
    code = (
        "import sys, transformers; "
        f"transformers.{model_class}.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])"
    )
    return shlex.join(["python", "-c", code, str(folder)])


def _files_of(folder: Path) -> list[Path]:
    """The files that an import of a folder reads."""
    names = [CONFIG_JSON, *TOKENIZER_FILES, INDEX, *chat_template_files(folder)]
    return [*(path for name in names if (path := folder / name).is_file()), *weight_files(folder)]


def _sha256(paths: list[Path]) -> str:
    """SHA-256 of the names and contents of files."""
    digest = hashlib.sha256()
    for path in paths:
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
