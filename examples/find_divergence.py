"""Find the wrong line in a port of minigpt to PyTorch.

The port applies dropout after the residual is added instead of before. Its loss looks plausible and
it trains, but worse. Both models get the same weights, tokens and masks. Their values at the
dropout sites are saved to files, as on two machines, and `first_difference` names the first
difference. The correct port is the control; a third case flips one bit of one mask.

    python examples/find_divergence.py
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import torch
from flax import nnx

sys.path.insert(0, str(Path(__file__).parent / "lockstep"))  # torch_port

import torch_port
from dropout_jax import fold
from dropout_jax.parity import divergence, hooks
from minigpt.config import PRESETS, DropoutConfig
from minigpt.model import GPT, draw_masks

RATE, ROWS, VOCABULARY = 0.2, 4, 65


class WrongBlock(torch_port.Block):
    """A port with a plausible mistake."""

    def forward(self, x):
        x = x + self.attn_out(self.attend(self.attn_norm(x)))
        hidden = torch.nn.functional.gelu(self.wide(self.mlp_norm(x)))
        return self.mlp_out(x + self.narrow(self.mlp_hidden(hidden)))  # the wrong line


def record_minigpt(gpt, tokens, masks):
    tape = {}
    gpt(tokens, key=None, masks=masks, captures=tape)
    return tape


def record_port(gpt, block, tokens, masks):
    model, tape = torch_port.GPT(gpt.config, VOCABULARY, block), {}
    torch_port.copy_weights(model, gpt)
    hooks.give_masks(model, masks)
    hooks.record(model, tape)
    model(torch.from_numpy(tokens.astype(np.int64)))
    return tape


def compare_recordings(one, other, folder):
    """Compare two recordings through files, as between two machines."""
    for name, run in (("minigpt.npz", [one]), ("port.npz", [other])):
        divergence.save(run, folder / name)
    runs = (divergence.load(folder / name) for name in ("minigpt.npz", "port.npz"))
    return divergence.first_difference(*runs)


def find_differences():
    """The first difference for the correct port, the wrong port, and one flipped bit."""
    preset = PRESETS["shakespeare-char-cpu"].model
    config = dataclasses.replace(preset, dropout=DropoutConfig(*[RATE] * 6))
    gpt = GPT(config, VOCABULARY, rngs=nnx.Rngs(0))
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (ROWS, config.block_size))
    masks = draw_masks(config, fold(jax.random.key(0), "dropout", 0), *tokens.shape)
    flipped = {name: np.array(mask) for name, mask in masks.items()}
    flipped["block/2/attn_out"][1, 7, 30] ^= True
    ours = record_minigpt(gpt, tokens, masks)
    ports = {
        "the right port": record_port(gpt, torch_port.Block, tokens, masks),
        "dropout after the residual": record_port(gpt, WrongBlock, tokens, masks),
        "one bit of one mask flipped": record_port(gpt, torch_port.Block, tokens, flipped),
    }
    with tempfile.TemporaryDirectory() as folder:
        return {name: compare_recordings(ours, port, Path(folder)) for name, port in ports.items()}


def main(arguments=None):
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args(arguments)
    for name, difference in find_differences().items():
        print(f"{name}: {difference or 'no difference'}")


if __name__ == "__main__":
    main()
