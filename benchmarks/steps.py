"""A whole training step of a GPT: build(framework, case), for minigpt, torch and transformers.

A case is {"op": "train_step", "preset": NAME, "batch_size": N, "time": TOKENS, "rate": RATE}; the
rate is that of embed, attn_weights, attn_out and mlp_out. torch is nanoGPT's architecture,
transformers is GPT2LMHeadModel.
"""

import dataclasses

import numpy as np

from minigpt.config import PRESETS, DropoutConfig

VOCABULARY = 65


def build(framework, case):
    """A function that runs one step and waits for its loss."""
    preset, rate = PRESETS[case["preset"]], case["rate"]
    rates = DropoutConfig.uniform(rate)
    model = dataclasses.replace(preset.model, dropout=rates, block_size=case["time"])
    config = dataclasses.replace(preset, batch_size=case["batch_size"], model=model)
    vocabulary = 50_257 if case["preset"] == "gpt2" else VOCABULARY
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
    from transformers import GPT2Config, GPT2LMHeadModel  # pyright: ignore[reportMissingImports]

    class Logits(torch.nn.Module):
        def __init__(self, gpt2):
            super().__init__()
            self.gpt2 = gpt2

        def forward(self, tokens):
            return self.gpt2(tokens, use_cache=False).logits

    model, rate = config.model, config.model.dropout.embed
    sizes = {"n_layer": model.n_layer, "n_head": model.n_head, "n_embd": model.n_embd}
    sizes |= {"vocab_size": vocabulary, "n_positions": model.block_size}
    rates = {"embd_pdrop": rate, "attn_pdrop": rate, "resid_pdrop": rate}
    gpt2 = GPT2LMHeadModel(GPT2Config(**sizes, **rates, bos_token_id=0, eos_token_id=0))
    return _torch_step(Logits(gpt2).train(), config, rows)


def _torch_step(model, config, rows):
    import torch
    import torch_gpt

    device = torch_gpt.choose_device()
    model.to(device)
    optimizer = torch_gpt.make_optimizer(model, config.optim)
    batch = torch.from_numpy(rows).to(device)
    return lambda: torch_gpt.train_step(
        model, optimizer, batch, 1e-4, config.optim.grad_clip
    ).item()
