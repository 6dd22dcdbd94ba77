"""The same work in each framework: build(framework, case) gives a function to time.

A case is a dict: op, mode ("forward", or "backward", which is both), shape, dtype, rate. A
framework without the op gives None. `floor` is the work that none can avoid: x * 2, or for
gelu_dropout_add (gelu -> dropout -> add the residual) the same without dropout.
"""

import os

import attentions
import encoder_blocks
import generation
import steps

WHOLE = {
    "train_step": steps,
    "attention": attentions,
    "generation": generation,
    "encoder_block": encoder_blocks,
}  # ops without a floor

OPS_OF = {
    "torch": {"dropout", "gelu_dropout_add", "spatial_dropout", "alpha_dropout"},
    "flax": {"dropout", "gelu_dropout_add", "locked_dropout", "spatial_dropout"},
    "keras": {"dropout", "gelu_dropout_add"},
    "equinox": {"dropout", "gelu_dropout_add"},
    "haiku": {"dropout", "gelu_dropout_add"},
}


def build(framework, case):
    """A function of no arguments that does the case's work once and waits for it; or None."""
    if case["op"] in WHOLE:
        return WHOLE[case["op"]].build(framework, case)
    if case["op"] not in OPS_OF.get(framework, {case["op"]}):
        return None
    return _torch(case) if framework == "torch" else _jax(framework, case)


def _torch(case):
    import torch
    import torch_device
    from torch.nn import functional as F

    device = torch_device.choose_device()
    x = torch.ones(case["shape"], dtype=getattr(torch, case["dtype"]), device=device)
    g, rate = torch.ones_like(x), case["rate"]
    ops = {
        "dropout": lambda x: F.dropout(x, rate),
        "gelu_dropout_add": lambda x: F.dropout(F.gelu(x, approximate="tanh"), rate) + x,
        "spatial_dropout": lambda x: F.dropout1d(x.transpose(1, 2), rate).transpose(1, 2),
        "alpha_dropout": lambda x: F.alpha_dropout(x, rate, training=True),
    }
    op = ops[case["op"]]
    if case["mode"] == "forward":

        def forward():
            with torch.no_grad():
                op(x)

        return torch_device.waiting(forward, device)
    x.requires_grad_()
    return torch_device.waiting(lambda: torch.autograd.grad(op(x), x, g), device)


def _jax(framework, case):
    import jax
    import jax.numpy as jnp

    x = jnp.ones(case["shape"], case["dtype"])
    g = jnp.ones_like(x)
    key = jax.random.key(0)
    if case["op"] == "gelu_dropout_add":
        drop = (
            OPS[framework](case | {"op": "dropout"}) if framework != "floor" else lambda x, key: x
        )

        def op(x, key):
            return drop(jax.nn.gelu(x), key) + x
    else:
        op = OPS[framework](case)

    def forward(x, g, key):
        return op(x, key)

    def both(x, g, key):
        y, pullback = jax.vjp(lambda x: op(x, key), x)
        return y, pullback(g)

    fn = jax.jit(forward if case["mode"] == "forward" else both)
    return lambda: jax.block_until_ready(fn(x, g, key))


def _ours(case):
    import dropout_jax

    op, rate = getattr(dropout_jax, case["op"]), case["rate"]
    arguments = {"drop_block": (7,)}.get(case["op"], ())
    options = {"head_dropout": {"head_axis": 1}}.get(case["op"], {})
    return lambda x, key: op(x, rate, *arguments, key=key, **options)


def _flax(case):
    from flax import nnx

    shared = {"locked_dropout": (1,), "spatial_dropout": (1,)}.get(case["op"], ())
    layer = nnx.Dropout(case["rate"], broadcast_dims=shared, deterministic=False)
    return lambda x, key: layer(x, rngs=key)


def _equinox(case):
    import equinox

    layer = equinox.nn.Dropout(case["rate"])
    return lambda x, key: layer(x, key=key)


def _haiku(case):
    import haiku

    return lambda x, key: haiku.dropout(key, case["rate"], x)


def _keras(case):
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    return lambda x, key: keras.random.dropout(x, case["rate"], seed=key)


OPS = {
    "floor": lambda case: lambda x, key: x * 2,
    "dropout_jax": _ours,
    "flax": _flax,
    "equinox": _equinox,
    "haiku": _haiku,
    "keras": _keras,
}
