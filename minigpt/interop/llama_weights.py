"""The arrays of a Hugging Face Llama and the parameters of a GPT: the same numbers, other names.

Linear layers of PyTorch have their outputs first, so kernels are transposed; query, key and value
are one kernel here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minigpt.config import ModelConfig
from minigpt.interop.safetensors_files import (
    list_arrays,
    read_finite,
    require_float,
    require_shape,
)

PREFIX = "model."
HEAD = "lm_head.weight"
TABLE = "embed_tokens.weight"
_DENSE = {
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.out": ("self_attn.o_proj",),
    "mlp.gate": ("mlp.gate_proj",),
    "mlp.wide": ("mlp.up_proj",),
    "mlp.out": ("mlp.down_proj",),
}
_BLOCK = {
    "attn_norm.scale": ("input_layernorm.weight",),
    "mlp_norm.scale": ("post_attention_layernorm.weight",),
    **{f"{ours}.kernel": tuple(f"{one}.weight" for one in names) for ours, names in _DENSE.items()},
    **{f"{ours}.bias": tuple(f"{one}.bias" for one in names) for ours, names in _DENSE.items()},
}
# What the rotary positions are computed from, which earlier versions of transformers stored.
_FREQUENCIES = re.compile(r"layers\.(\d+)\.self_attn\.rotary_emb\.inv_freq")


def llama_names(model: ModelConfig) -> dict[str, tuple[str, ...]]:
    """The parameters here, and Llama's arrays that each is made of, without `model.`."""
    names: dict[str, tuple[str, ...]] = {
        "tokens.embedding": (TABLE,),
        "norm.scale": ("norm.weight",),
    }
    for i in range(model.n_layer):
        for ours, theirs in _BLOCK.items():
            if model.bias or not ours.endswith(".bias"):
                names[f"blocks.{i}.{ours}"] = tuple(f"layers.{i}.{name}" for name in theirs)
    return names if model.tied_head else names | {"head.kernel": (HEAD,)}


def read_llama_weights(folder: Path, model: ModelConfig) -> dict[str, np.ndarray]:
    """The parameters of a GPT as float32 arrays by their plain names, from safetensors files.

    Raises:
      ValueError: an array is missing, unknown, of another shape or dtype, or not finite, or the
        output layer is not the token table where config.json says that it is.
    """
    stored: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    for name, array in list_arrays(folder).items():
        short = name.removeprefix(PREFIX)
        if short in stored:
            raise ValueError(f"{str(array.path)!r} has both {short!r} and {PREFIX + short!r}.")
        stored[short], spelled[short] = array, name
    stored = {
        name: array for name, array in stored.items() if not _is_frequencies(name, array, model)
    }
    for name, array in stored.items():
        require_float(spelled[name], array)

    def spell(name: str) -> str:
        return spelled.get(name) or _whole_name(name)

    return convert_llama_arrays(folder, model, stored, spell, "config.json")


def _whole_name(name: str) -> str:
    """The whole name of an array in LlamaForCausalLM."""
    return name if name == HEAD else PREFIX + name


def convert_llama_arrays(
    path: Path,
    model: ModelConfig,
    stored: Mapping[str, Any],
    spell: Callable[[str], str],
    source: str,
) -> dict[str, np.ndarray]:
    """The parameters of a GPT, from arrays by Llama's names; `spell` gives their names at `path`.

    An array has a path, a shape and read_float32, as a StoredArray. The settings are from `source`.
    """
    stored = dict(stored)
    _require_blocks(path, model, stored)
    names, shapes = llama_names(model), _shapes(model)
    head = stored.pop(HEAD, None) if model.tied_head else None
    known = {name for theirs in names.values() for name in theirs}
    for name, array in stored.items():
        if name not in known:
            raise ValueError(
                f"{str(array.path)!r}: the array {spell(name)!r} of shape {array.shape} is not one "
                "of a Llama language model of these settings."
            )
    for name in sorted(known):
        if name not in stored:
            raise ValueError(f"{str(path)!r}: the array {spell(name)!r} is missing.")
        require_shape(spell(name), stored[name], shapes[name], source)
    arrays = {}
    for ours, theirs in names.items():
        parts = [read_finite(spell(name), stored[name]) for name in theirs]
        array = np.concatenate(parts) if len(parts) > 1 else parts[0]
        arrays[ours] = np.ascontiguousarray(array.T) if ours.endswith(".kernel") else array
    if head is not None:
        require_shape(spell(HEAD), head, shapes[TABLE], source)
        if not np.array_equal(read_finite(spell(HEAD), head), arrays["tokens.embedding"]):
            raise ValueError(
                f"{str(head.path)!r}: {spell(HEAD)} is not allowed to differ from {spell(TABLE)}: "
                "tie_word_embeddings is true in config.json. Set it to false there."
            )
    return arrays


def llama_weights(arrays: Mapping[str, np.ndarray], model: ModelConfig) -> dict[str, np.ndarray]:
    """The arrays of a LlamaForCausalLM from parameters by their plain names."""
    weights, shapes = {}, _shapes(model)
    for ours, theirs in llama_names(model).items():
        array = arrays[ours].T if ours.endswith(".kernel") else arrays[ours]
        ends = np.cumsum([shapes[name][0] for name in theirs])[:-1]
        for name, part in zip(theirs, np.split(array, ends), strict=True):
            weights[_whole_name(name)] = np.ascontiguousarray(part)
    return weights


def _is_frequencies(name: str, array: Any, model: ModelConfig) -> bool:
    match = _FREQUENCIES.fullmatch(name)
    if match is None or int(match[1]) >= model.n_layer:
        return False
    return array.shape == (model.n_embd // model.n_head // 2,)


def _require_blocks(path: Path, model: ModelConfig, stored: Mapping[str, Any]) -> None:
    """Refuse another number of blocks, before anything of this number is made."""
    blocks = {name.split(".")[1] for name in stored if re.match(r"layers\.\d+\.", name)}
    if len(blocks) != model.n_layer:
        raise ValueError(
            f"{str(path)!r}: {model.n_layer} blocks (num_hidden_layers, block_count) are not "
            f"allowed: the weights have {len(blocks)} blocks."
        )


def _shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    width, inner = model.n_embd, model.mlp_width
    kv_width = width // model.n_head * model.kv_heads
    of_layer = {
        **{"q_proj": (width, width), "k_proj": (kv_width, width), "v_proj": (kv_width, width)},
        **{"o_proj": (width, width), "gate_proj": (inner, width), "up_proj": (inner, width)},
        "down_proj": (width, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for names in llama_names(model).values():
        for name in names:
            layer, kind = name.split(".")[-2:]
            shape = of_layer.get(layer, (width,))
            shapes[name] = shape if kind == "weight" else shape[:1]
    return shapes | dict.fromkeys((TABLE, HEAD), (model.vocab_size or 0, width))
