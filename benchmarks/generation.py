"""Tokens sampled from a GPT with random weights, in each framework: build(framework, case).

A case is {"op": "generation", "preset": NAME, "tokens": N, "rows": N, "window": "slide" or "half"}.
The prompt is one token.
"""

import dataclasses
from typing import Any

import numpy as np

from minigpt.config import PRESETS

VOCABULARY = 65


def build(framework, case):
    """A function that draws all tokens and waits for them."""
    model = PRESETS[case["preset"]].model
    builders = {"minigpt": _minigpt, "torch": _torch, "transformers": _transformers}
    return builders[framework](model, case["tokens"], case["rows"], case["window"])


def _minigpt(model, tokens, rows, window):
    from minigpt.model import generate_ids
    from minigpt.training import build_train_functions

    config = dataclasses.replace(PRESETS["shakespeare-char"], model=model, mesh="data=1")
    training = build_train_functions(config, VOCABULARY)

    def draw():
        chunks = generate_ids(
            training.generation,
            training.state.params,
            [np.zeros(1, np.int32)] * rows,
            tokens=tokens,
            vocab_size=VOCABULARY,
            seeds=range(rows),
            window=window,
        )
        assert sum(chunk.shape[1] for chunk in chunks) == tokens

    return draw


def _torch(model, tokens, rows, window):
    import torch
    import torch_gpt

    device = torch_gpt.choose_device()
    gpt = torch_gpt.GPT(VOCABULARY, model, 0.0).eval().to(device)
    prompt = torch.zeros((rows, 1), dtype=torch.long, device=device)
    return lambda: torch_gpt.generate(gpt, prompt, tokens, model.block_size).cpu()


def _transformers(model, tokens, rows, window):
    """GPT-2 with Hugging Face's cache; its positions do not slide, so it gets enough of them."""
    import torch
    import torch_gpt
    from transformers import GPT2Config, GPT2LMHeadModel  # pyright: ignore[reportMissingImports]

    device = torch_gpt.choose_device()
    sizes = {"n_layer": model.n_layer, "n_head": model.n_head, "n_embd": model.n_embd}
    sizes |= {"vocab_size": VOCABULARY, "n_positions": max(model.block_size, tokens + 1)}
    gpt: Any = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=None))
    gpt.eval().to(device)
    prompt = torch.zeros((rows, 1), dtype=torch.long, device=device)
    options = {"max_new_tokens": tokens, "do_sample": True, "top_k": 0, "pad_token_id": 0}

    def draw():
        with torch.no_grad():
            drawn = gpt.generate(prompt, attention_mask=torch.ones_like(prompt), **options).cpu()
        assert drawn.shape == (rows, tokens + 1)

    return draw
