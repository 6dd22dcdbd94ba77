"""The arrays of a Hugging Face GPT-2 and the parameters of a GPT: the same arrays, other names.

Conv1D of GPT-2 has its inputs first, as the dense layers here, so nothing is transposed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from minigpt.config import ModelConfig
from minigpt.interop.safetensors_files import (
    StoredArray,
    list_arrays,
    read_finite,
    require_float,
    require_shape,
)

PREFIX = "transformer."
HEAD = "lm_head.weight"
_BLOCK = {
    **{f"ln_1.{name}": f"attn_norm.{ours}" for name, ours in (("weight", "scale"), ("bias",) * 2)},
    **{f"ln_2.{name}": f"mlp_norm.{ours}" for name, ours in (("weight", "scale"), ("bias",) * 2)},
    **{
        f"{layer}.{name}": f"{ours}.{our_name}"
        for layer, ours in (
            ("attn.c_attn", "attn.qkv"),
            ("attn.c_proj", "attn.out"),
            ("mlp.c_fc", "mlp.wide"),
            ("mlp.c_proj", "mlp.out"),
        )
        for name, our_name in (("weight", "kernel"), ("bias",) * 2)
    },
}
# The causal mask and its value, which earlier versions of transformers stored.
_MASK = re.compile(r"h\.(\d+)\.attn\.(bias|masked_bias)")


def gpt2_names(n_layer: int) -> dict[str, str]:
    """GPT-2's name of each parameter, without `transformer.`, and the name here."""
    return {
        "wte.weight": "tokens.embedding",
        "wpe.weight": "positions.embedding",
        **{
            f"h.{i}.{name}": f"blocks.{i}.{ours}"
            for i in range(n_layer)
            for name, ours in _BLOCK.items()
        },
        "ln_f.weight": "norm.scale",
        "ln_f.bias": "norm.bias",
    }


def read_gpt2_weights(folder: Path, model: ModelConfig) -> dict[str, np.ndarray]:
    """The parameters of a GPT as float32 arrays by their plain names.

    Raises:
      ValueError: an array is missing, unknown, of another shape or dtype, or not finite, or the
        output layer is not the token table.
    """
    stored = _without_prefix(list_arrays(folder))
    head = stored.pop(HEAD, None)
    shapes = _shapes(folder, model, stored)
    for name, array in stored.items():
        if name not in shapes and not _is_causal_mask(name, array, model):
            raise ValueError(
                f"{str(array.path)!r}: the array {name!r} of shape {array.shape} is not one of a "
                "GPT-2 language model with the config.json beside it."
            )
    for name, shape in shapes.items():
        if name not in stored:
            raise ValueError(f"{str(folder)!r}: the array {PREFIX + name!r} is missing.")
        require_shape(name, stored[name], shape, "config.json")
        require_float(name, stored[name])
    names = gpt2_names(model.n_layer)
    arrays = {ours: read_finite(name, stored[name]) for name, ours in names.items()}
    if head is not None:
        require_shape(HEAD, head, shapes["wte.weight"], "config.json")
        require_float(HEAD, head)
        if not np.array_equal(read_finite(HEAD, head), arrays["tokens.embedding"]):
            raise ValueError(
                f"{str(head.path)!r}: {HEAD} is not allowed to differ from {PREFIX}wte.weight: the "
                "output layer of minigpt is the token table (tie_word_embeddings)."
            )
    return arrays


def gpt2_weights(arrays: Mapping[str, np.ndarray], n_layer: int) -> dict[str, np.ndarray]:
    """The arrays of a GPT-2 from parameters by their plain names; missing biases are zero."""
    weights = {}
    for name, ours in gpt2_names(n_layer).items():
        array = arrays.get(ours)
        if array is None:  # model.bias is False
            kernel = ours.removesuffix("bias") + "kernel"
            width = arrays[kernel if kernel in arrays else ours.removesuffix("bias") + "scale"]
            array = np.zeros(width.shape[-1], np.float32)
        weights[PREFIX + name] = array
    return weights


def _without_prefix(arrays: dict[str, StoredArray]) -> dict[str, StoredArray]:
    """Names as those of GPT2Model: GPT2LMHeadModel adds `transformer.`."""
    plain: dict[str, StoredArray] = {}
    for name, array in arrays.items():
        short = name.removeprefix(PREFIX)
        if short in plain:
            raise ValueError(f"{str(array.path)!r} has both {short!r} and {PREFIX + short!r}.")
        plain[short] = array
    return plain


def _shapes(
    folder: Path, model: ModelConfig, stored: dict[str, StoredArray]
) -> dict[str, tuple[int, ...]]:
    """The shape of each array; a config.json that asks for more blocks than there are is refused.

    The number of blocks is compared first, so that a wrong one costs no memory.
    """
    blocks = {name.split(".")[1] for name in stored if re.match(r"h\.\d+\.", name)}
    if len(blocks) != model.n_layer:
        raise ValueError(
            f"{str(folder / 'config.json')!r}: n_layer={model.n_layer} is not allowed: the weights "
            f"have {len(blocks)} blocks."
        )
    width = model.n_embd
    of_block = {
        **{"attn.c_attn.weight": (width, 3 * width), "attn.c_attn.bias": (3 * width,)},
        **{"attn.c_proj.weight": (width, width), "mlp.c_fc.weight": (width, 4 * width)},
        **{"mlp.c_fc.bias": (4 * width,), "mlp.c_proj.weight": (4 * width, width)},
    }
    others = {"wte.weight": (model.vocab_size or 0, width), "wpe.weight": (model.block_size, width)}
    return {
        name: others.get(name) or of_block.get(name.split(".", 2)[-1]) or (width,)
        for name in gpt2_names(model.n_layer)
    }


def _is_causal_mask(name: str, array: StoredArray, model: ModelConfig) -> bool:
    match = _MASK.fullmatch(name)
    if match is None or int(match[1]) >= model.n_layer:
        return False
    size = model.block_size
    return array.shape in ([(1, 1, size, size)] if match[2] == "bias" else [(), (1,)])
