"""A block of flax.nnx, its steps and their arguments."""

import jax.numpy as jnp
from audit_cases import TOKENS
from flax import nnx


class Block(nnx.Module):
    """A correct block: attention without sharing, and a layer of dropout."""

    def __init__(self, rngs, *, layer=nnx.Dropout, rate=0.2, **attention):
        options = {"broadcast_dropout": False, "dropout_rate": rate, **attention}
        self.attention = nnx.MultiHeadAttention(4, 64, decode=False, rngs=rngs, **options)
        self.linear = nnx.Linear(64, 64, rngs=rngs)
        self.drop = layer(rate, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(x)  # D06
        return x + self.drop(self.linear(x))


def make_block(**options):
    model = Block(nnx.Rngs(0), **options)
    model.train()
    return model


@nnx.jit
def train_step(model, x):
    return nnx.value_and_grad(lambda model: (model(x) ** 2).mean())(model)


@nnx.jit
def loss(model, x):
    return (model(x) ** 2).mean()


def args_at(model):
    """The model with its streams of keys at each step, as training moves them on."""

    def args(step):
        moved = nnx.clone(model)
        for _, stream in nnx.iter_graph(moved):
            if isinstance(stream, nnx.RngCount):
                stream[...] = stream[...] + 10 * jnp.uint32(step)
        return moved, TOKENS

    return args
