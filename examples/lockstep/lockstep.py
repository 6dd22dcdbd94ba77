"""Train a GPT in PyTorch and in minigpt in lockstep, with the same masks at every site.

Weights, batches and masks are the same; dropout 0.2 at all seven sites, AdamW, clipping. There are
three pairs of runs: our masks in PyTorch; PyTorch's own masks (from its seed) in minigpt; and our
masks with one bit of one mask flipped in PyTorch, which shows the effect of one wrong decision.

    python examples/lockstep/lockstep.py --out docs/lockstep.png
"""

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from matplotlib.figure import Figure
from rich.progress import track

import torch_port
from dropout_jax import fold
from dropout_jax.parity import hooks
from dropout_jax.parity.torch import CPUGenerator
from minigpt.config import PRESETS, DropoutConfig
from minigpt.data import build_tokenizer, load_text, make_batch
from minigpt.model import GPT, draw_masks, site_specs
from minigpt.training import build_optimizer, build_train_functions, learning_rate_schedule

RATE, SEED = 0.2, 1337
FLIPPED = "block/0/mlp_out"


def train_minigpt(config, vocab, batches, dtype):
    """Losses of minigpt's trainer, which draws its own masks."""
    training = build_train_functions(config, vocab)
    state, losses = cast_tree(training.state, dtype), []
    for each in track(batches, "minigpt, its own masks  "):
        state, measured = training.train_step(state, each, jax.random.key(config.seed))
        losses.append(float(measured["train_loss"]))
    return losses


def train_minigpt_with_masks(masks_at, config, vocab, batches, dtype):
    """Losses of minigpt's step with given masks."""
    graph, params = nnx.split(GPT(config.model, vocab, rngs=nnx.Rngs(config.seed)))
    params = cast_tree(params, dtype)
    tx = build_optimizer(config.optim, config.steps)
    scale = 1 / (1 - config.model.dropout.embed)  # PyTorch's

    @jax.jit
    def step(params, opt_state, each, masks):
        def mean_loss(params):
            scaled_masks = {name: (mask, scale) for name, mask in masks.items()}
            logits = nnx.merge(graph, params)(each.inputs, key=None, masks=scaled_masks)
            return optax.softmax_cross_entropy_with_integer_labels(logits, each.targets).mean()

        loss, gradient = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state, losses = cast_tree(tx.init(params), dtype), []
    for i, each in enumerate(track(batches, "minigpt, PyTorch's masks")):
        params, opt_state, loss = step(params, opt_state, each, masks_at(i))
        losses.append(float(loss))
    return losses


def train_torch(masks_at, config, vocab, batches, dtype, build_model=torch_port.port):
    """Losses of PyTorch with given masks, or with the masks of its own seed for None."""
    model = build_model(GPT(config.model, vocab, rngs=nnx.Rngs(config.seed)), vocab)
    model.to(getattr(torch, dtype))
    adamw, masks = torch_port.make_optimizer(model, config.optim), {}
    rates = list_learning_rates(config, dtype)
    if masks_at is not None:
        hooks.give_masks(model, masks, scale=our_scale(config.model.dropout.embed))
    torch.manual_seed(config.seed)
    losses = []
    for i, each in enumerate(track(batches, "PyTorch                 ")):
        masks.update(masks_at(i) if masks_at is not None else {})
        step = (model, adamw, each, rates[i], config.optim.grad_clip)
        losses.append(torch_port.train_step(*step))
    return losses


def our_scale(rate):
    """The scale of dropout_jax, which rounds the rate to float32."""
    return 1 / float(np.float32(1) - np.float32(rate))


def list_learning_rates(config, dtype):
    rate = learning_rate_schedule(config.optim, config.steps)
    return [float(np.asarray(rate(cast_tree(jnp.int32(i), dtype)))) for i in range(config.steps)]


def cast_tree(tree, dtype):
    """Cast floats; for float64 also cast counts to int64: optax computes in float32 from int32."""

    def cast(leaf):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf.astype(dtype)
        return leaf.astype("int64") if dtype == "float64" else leaf

    return jax.tree.map(cast, tree)


def draw_our_masks(config):
    """A function from a step to the masks that minigpt's trainer draws in it."""
    shape = (config.batch_size, config.model.block_size)
    drawn = jax.jit(lambda key: draw_masks(config.model, key, *shape))
    root = jax.random.key(config.seed)
    return lambda i: drawn(fold(root, "dropout", i))


def draw_torch_masks(config):
    """A function to PyTorch's masks after manual_seed; call it once for each step, in order."""
    generator = CPUGenerator(config.seed)
    specs = site_specs(config.model, config.batch_size, config.model.block_size)
    return lambda _: {name: generator.mask(p.shape, p.rate) for name, p in specs.items()}


def flip_one_bit(masks_at, step):
    def masks_at_step(i):
        masks = {name: np.array(mask) for name, mask in masks_at(i).items()}
        if i == step:
            masks[FLIPPED][0, 0, 0] ^= True
        return masks

    return masks_at_step


def compare_pairs(config, vocab, batches, dtype):
    """Losses of the three pairs: {name: (minigpt's, PyTorch's)}."""
    with jax.enable_x64(dtype == "float64"):
        args = (config, vocab, batches, dtype)
        ours, masks = train_minigpt(*args), draw_our_masks(config)
        flipped = flip_one_bit(masks, config.steps // 2)
        return {
            "our masks in PyTorch": (ours, train_torch(masks, *args)),
            "PyTorch's masks in minigpt": (
                train_minigpt_with_masks(draw_torch_masks(config), *args),
                train_torch(None, *args),
            ),
            "our masks, one bit flipped": (ours, train_torch(flipped, *args)),
        }


def relative_difference(pair):
    ours, theirs = (np.array(losses) for losses in pair)
    return np.abs(ours - theirs) / theirs


def find_parting_step(differences, quiet):
    """The first step whose difference exceeds ten times the largest one of the unflipped run."""
    parted = np.flatnonzero(differences > 10 * quiet.max())
    return int(parted[0]) if len(parted) else None


def summarize(losses):
    """The largest differences for each dtype and pair, and the step where a pair parts."""
    rows = {}
    for dtype, pairs in losses.items():
        quiet = relative_difference(pairs["our masks in PyTorch"])
        for name, pair in pairs.items():
            apart = relative_difference(pair)
            rows[f"{name}, {dtype}"] = {
                "largest in the first 50 steps": float(apart[:50].max()),
                "largest": float(apart.max()),
                "parts at step": find_parting_step(apart, quiet),
            }
    return rows


def draw(losses, path):
    figure = Figure(figsize=(11, 4), layout="constrained")
    loss_axes, difference_axes = figure.subplots(1, 2)
    for label, index in (("minigpt", 0), ("PyTorch", 1)):
        style = {"lw": 3, "alpha": 0.4} if index == 0 else {"lw": 1, "color": "black"}
        loss_axes.plot(losses["float32"]["our masks in PyTorch"][index], label=label, **style)
    loss_axes.set(title=f"training loss, dropout {RATE} at every site", xlabel="step")
    steps = len(losses["float32"]["our masks in PyTorch"][0])
    for (dtype, pairs), mark in zip(losses.items(), ("o", "x"), strict=True):
        for (name, pair), colour in zip(pairs.items(), ("C0", "C1", "C3"), strict=True):
            apart = relative_difference(pair)
            apart[apart == 0] = np.nan  # equal to the last bit: no point
            style = {"color": colour, "ms": 3, "alpha": 0.8, "label": f"{name}, {dtype}"}
            difference_axes.semilogy(apart, mark, **style)
    title = f"relative difference; one bit flipped at step {steps // 2}"
    difference_axes.set(title=title, xlabel="step", ylim=(1e-17, 1e-4))
    loss_axes.legend(frameon=False)
    difference_axes.legend(frameon=False, fontsize=7, ncols=2, loc="center")
    figure.savefig(path, dpi=110)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/lockstep.png"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args(arguments)
    preset = PRESETS["shakespeare-char-cpu"]
    rates = DropoutConfig(*[RATE] * 7)
    model = dataclasses.replace(preset.model, n_layer=options.layers, dropout=rates)
    config = dataclasses.replace(preset, steps=options.steps, seed=SEED, model=model)
    text = load_text()
    tokenizer = build_tokenizer("char", text.train)
    tokens = tokenizer.encode(text.train)
    shape = (config.batch_size, model.block_size)
    batches = [make_batch(tokens, SEED, i, *shape) for i in range(config.steps)]
    losses = {
        dtype: compare_pairs(config, tokenizer.vocab_size, batches, dtype)
        for dtype in ("float32", "float64")
    }
    draw(losses, options.out)
    result = {"steps": config.steps, "flipped at step": config.steps // 2, "flipped site": FLIPPED}
    result |= summarize(losses)
    options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1), f"\nwrote {options.out}")


if __name__ == "__main__":
    main()
