"""A whole training step of a GPT: build(framework, case), for minigpt, torch and transformers.

A case is {"op": "train_step", "model": NAME, "batch_size": N, "time": TOKENS, "rate": RATE}; NAME
is one of shapes.find_model. The rate is that of embed, attn_weights, attn_out and mlp_out; of a
Llama, which has no other dropout in transformers, of attn_weights. torch is nanoGPT's architecture.
"""

import dataclasses

import numpy as np
import shapes

from minigpt.config import PRESETS, DropoutConfig


def build(framework, case):
    """A function that runs one step and waits for its loss."""
    model, vocabulary = shapes.find_model(case["model"])
    rates = DropoutConfig.uniform(case["rate"])
    if model.positions == "rotary":
        rates = DropoutConfig(attn_weights=case["rate"])
    model = dataclasses.replace(model, dropout=rates, block_size=case["time"])
    preset = PRESETS["gpt2" if case["model"] == "gpt2" else "shakespeare-char"]
    config = dataclasses.replace(preset, batch_size=case["batch_size"], model=model)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, vocabulary, (config.batch_size, model.block_size + 1))
    builders = {"minigpt": _minigpt, "torch": _torch, "transformers": _transformers}
    return builders[framework](config, vocabulary, rows)


def _minigpt(config, vocabulary, rows):
    import jax

    from minigpt.data import Batch
    from minigpt.training import build_train_functions

    training = build_train_functions(config, vocabulary)
    batch, key = (
        Batch(*(rows.astype(np.int32)[:, cut] for cut in (np.s_[:-1], np.s_[1:]))),
        jax.random.key(0),
    )
    state = training.state

    def step():
        nonlocal state
        state, metrics = training.train_step(state, batch, key)
        float(metrics["train_loss"])

    return step


def _torch(config, vocabulary, rows):
    import torch_gpt

    rate = config.model.dropout.embed
    return _torch_step(torch_gpt.GPT(vocabulary, config.model, rate), config, rows)


def _transformers(config, vocabulary, rows):
    import torch

    class Logits(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, tokens):
            return self.model(tokens, use_cache=False).logits

    model = shapes.transformers_model(config.model, vocabulary, **config.model.dropout.rates)
    return _torch_step(Logits(model).train(), config, rows)


def _torch_step(model, config, rows):
    import torch
    import torch_device
    import torch_gpt

    device = torch_device.choose_device()
    model.to(device)
    optimizer = torch_gpt.make_optimizer(model, config.optim)
    batch = torch.from_numpy(rows).to(device)
    return lambda: torch_gpt.train_step(
        model, optimizer, batch, 1e-4, config.optim.grad_clip
    ).item()
