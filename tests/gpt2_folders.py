"""Folders of tiny random GPT-2 models, as transformers saves them."""

import json
import pathlib
import warnings
from typing import Any

import torch
import transformers

from minigpt.data import Tokenizer
from minigpt.interop.model_tokenizer import tokenizer_files

ALPHABET = "".join(map(chr, range(32, 82)))
SIZES = {"vocab_size": 50, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}
TOKENS = {"bos_token_id": None, "eos_token_id": None}


def make_model(seed=0, **options: Any) -> Any:
    """A model with larger random numbers than GPT-2's initial ones, also in biases and norms."""
    torch.manual_seed(seed)
    values: dict[str, Any] = SIZES | TOKENS | options
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**values))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def save_model(folder: pathlib.Path, model=None, alphabet=ALPHABET, **options: Any) -> pathlib.Path:
    """Save a model, by default a new one, and a tokenizer of characters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (model or make_model()).save_pretrained(folder, **options)
    for name, content in tokenizer_files(Tokenizer(alphabet), 16).items():
        (folder / name).write_bytes(content)
    return folder


def edit_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder
