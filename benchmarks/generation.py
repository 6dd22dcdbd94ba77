"""Tokens sampled from a GPT with random weights, in each framework: build(framework, case).

A case is {"op": "generation", "model": NAME, "tokens": N, "rows": N, "window": "slide" or "half"};
NAME is one of shapes.find_model. The prompt is one token.
"""

import dataclasses

import numpy as np
import shapes

from minigpt.config import PRESETS


def build(framework, case):
    """A function that draws all tokens and waits for them."""
    model, vocabulary = shapes.find_model(case["model"])
    builders = {"minigpt": _minigpt, "torch": _torch, "transformers": _transformers}
    return builders[framework](model, vocabulary, case["tokens"], case["rows"], case["window"])


def _minigpt(model, vocabulary, tokens, rows, window):
    from minigpt.model import generate_ids
    from minigpt.training import build_train_functions

    config = dataclasses.replace(PRESETS["shakespeare-char"], model=model, mesh="data=1")
    training = build_train_functions(config, vocabulary)

    def draw():
        chunks = generate_ids(
            training.generation,
            training.state.params,
            [np.zeros(1, np.int32)] * rows,
            tokens=tokens,
            vocab_size=vocabulary,
            seeds=range(rows),
            window=window,
        )
        assert sum(chunk.shape[1] for chunk in chunks) == tokens

    return draw


def _torch(model, vocabulary, tokens, rows, window):
    import torch
    import torch_device
    import torch_gpt

    device = torch_device.choose_device()
    gpt = torch_gpt.GPT(vocabulary, model, 0.0).eval().to(device)
    prompt = torch.zeros((rows, 1), dtype=torch.long, device=device)
    return lambda: torch_gpt.generate(gpt, prompt, tokens, model.block_size).cpu()


def _transformers(model, vocabulary, tokens, rows, window):
    """GPT-2 with Hugging Face's cache; its positions do not slide, so it gets enough of them."""
    import torch
    import torch_device

    device = torch_device.choose_device()
    block = max(model.block_size, tokens + 1)
    gpt = shapes.transformers_model(dataclasses.replace(model, block_size=block), vocabulary)
    gpt.eval().to(device)
    prompt = torch.zeros((rows, 1), dtype=torch.long, device=device)
    options = {"max_new_tokens": tokens, "do_sample": True, "top_k": 0, "pad_token_id": 0}

    def draw():
        with torch.no_grad():
            drawn = gpt.generate(prompt, attention_mask=torch.ones_like(prompt), **options).cpu()
        assert drawn.shape == (rows, tokens + 1)

    return draw
