"""The architectures of Hugging Face that this GPT computes: how each is read and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minigpt.config import ModelConfig
from minigpt.interop import gpt2_config, llama_config
from minigpt.interop.config_json import MAX_CONFIG_BYTES, OTHER_MODEL, read_json, refuse
from minigpt.interop.gpt2_weights import gpt2_weights, read_gpt2_weights
from minigpt.interop.llama_weights import llama_weights, read_llama_weights


class Architecture(NamedTuple):
    """The files of one kind of model."""

    name: str
    model_class: str
    """of transformers"""
    sites: Mapping[str, tuple[str, ...]]
    """the keys of config.json with dropout rates, and the sites that have them"""
    read_config: Callable[[Path], ModelConfig]
    read_weights: Callable[[Path, ModelConfig], dict[str, np.ndarray]]
    config: Callable[[ModelConfig, int, int | None], dict[str, Any]]
    """(model, rows of the token table, id of the token that ends a text) to config.json"""
    weights: Callable[[Mapping[str, np.ndarray], ModelConfig], dict[str, np.ndarray]]
    """plain parameters to the arrays of model.safetensors"""


ARCHITECTURES = {
    "gpt2": Architecture(
        name="GPT-2",
        model_class="GPT2LMHeadModel",
        sites=gpt2_config.SITES,
        read_config=gpt2_config.read_gpt2_config,
        read_weights=read_gpt2_weights,
        config=gpt2_config.gpt2_config,
        weights=lambda arrays, model: gpt2_weights(arrays, model.n_layer),
    ),
    "llama": Architecture(
        name="Llama",
        model_class="LlamaForCausalLM",
        sites=llama_config.SITES,
        read_config=llama_config.read_llama_config,
        read_weights=read_llama_weights,
        config=llama_config.llama_config,
        weights=llama_weights,
    ),
}


def read_architecture(path: Path) -> Architecture:
    """The architecture that a config.json names; another one is a ValueError."""
    kind = read_json(path, MAX_CONFIG_BYTES).get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        refuse(path, "model_type", kind, " or ".join(map(repr, ARCHITECTURES)), OTHER_MODEL)
    return ARCHITECTURES[kind]


def architecture_of(model: ModelConfig) -> Architecture:
    """The architecture that a model is most like; its `config` refuses what it has not."""
    return ARCHITECTURES["llama" if model.positions == "rotary" else "gpt2"]
