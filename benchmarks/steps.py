"""A whole training step of a GPT, in minigpt and in PyTorch: build(framework, case).

A case is {"op": "train_step", "preset": NAME, "batch_size": N, "rate": RATE}.
"""

import dataclasses

import numpy as np

from minigpt.config import PRESETS, DropoutConfig

VOCABULARY = 65


def build(framework, case):
    """A function that runs one step and waits for its loss."""
    preset = PRESETS[case["preset"]]
    model = dataclasses.replace(preset.model, dropout=DropoutConfig.uniform(case["rate"]))
    config = dataclasses.replace(preset, batch_size=case["batch_size"], model=model)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, VOCABULARY, (config.batch_size, model.block_size + 1))
    return {"minigpt": _minigpt, "torch": _torch}[framework](config, rows, case["rate"])


def _minigpt(config, rows, rate):
    import jax

    from minigpt.data import Batch
    from minigpt.training import build_train_functions

    training = build_train_functions(config, VOCABULARY)
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


def _torch(config, rows, rate):
    import torch
    import torch_gpt

    device = torch_gpt.choose_device()
    model = torch_gpt.GPT(VOCABULARY, config.model, rate).to(device)
    optimizer = torch_gpt.make_optimizer(model, config.optim)
    batch = torch.from_numpy(rows).to(device)
    return lambda: torch_gpt.train_step(
        model, optimizer, batch, 1e-4, config.optim.grad_clip
    ).item()
