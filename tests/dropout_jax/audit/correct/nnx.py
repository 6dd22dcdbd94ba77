"""Correct models of flax.nnx."""

import jax
import jax.numpy as jnp
from audit_cases import TOKENS, Case
from flax import nnx

import dropout_jax.nn
from nnx_models import Block, args_at, loss, make_block, train_step


class Layers(nnx.Module):
    """Layers that nnx.scan runs; each has its own stream of keys."""

    def __init__(self, *, remat=False):
        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def make(rngs):
            return Layer(rngs)

        self.layers = make(nnx.Rngs(0))
        self.remat = remat

    def __call__(self, x):
        def layer(x, layer):
            return nnx.remat(Layer.__call__)(layer, x) if self.remat else layer(x)

        return nnx.scan(layer, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.layers)


class Layer(nnx.Module):
    """A linear layer and dropout."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(64, 64, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x):
        return jnp.tanh(self.drop(self.linear(x)))


class KeyOfTheCall(nnx.Module):
    """A model that is given its keys."""

    def __init__(self):
        self.linear = nnx.Linear(64, 64, rngs=nnx.Rngs(0))
        self.drop = nnx.Dropout(0.2)

    def __call__(self, x, rngs):
        return self.drop(self.linear(self.drop(x, rngs=rngs)), rngs=rngs)


def step_of_keys(model, x, key):
    return nnx.grad(lambda model: (model(x, nnx.Rngs(key)) ** 2).mean())(model)


def evaluation_arguments(**options):
    model = make_block(**options)
    evaluation = nnx.clone(model)
    evaluation.eval()
    return {
        "train_step": train_step,
        "eval_step": loss,
        "args_at": args_at(model),
        "eval_args": (evaluation, TOKENS),
    }


def rate_arguments():
    def set_rate(rate):
        graph = nnx.graphdef(make_block(rate=rate))
        return lambda state, x: (nnx.merge(graph, state)(x) ** 2).mean()

    def state_at(step):
        model, x = args_at(make_block(rate=0.5))(step)
        return nnx.state(model), x

    return {"train_step": set_rate(0.5), "args_at": state_at, "rates": {"rate": set_rate}}


def monte_carlo_arguments():
    return evaluation_arguments() | {"eval_args": (make_block(), TOKENS), "mc_dropout": True}


def trained(build, name, **kwargs):
    def arguments():
        return {"train_step": train_step, "args_at": args_at(build())}

    return Case(Layers, arguments, name=name, **kwargs)


CASES = [
    Case(Block, evaluation_arguments, name="block_and_evaluation", is_quick=True),
    Case(
        Block,
        lambda: evaluation_arguments(layer=dropout_jax.nn.Dropout),
        name="block_with_this_package",
    ),
    Case(Block, rate_arguments, name="rate_of_every_layer"),
    Case(Block, monte_carlo_arguments, name="monte_carlo_dropout"),
    Case(
        Block,
        lambda: {
            "train_step": train_step,
            "args_at": args_at(make_block(broadcast_dropout=True)),
            "shared": ["Block.__call__"],
        },
        name="declared_default_of_attention",
    ),
    trained(Layers, "layers_in_scan"),
    trained(lambda: Layers(remat=True), "layers_in_scan_and_remat"),
    Case(
        KeyOfTheCall,
        lambda: {
            "train_step": step_of_keys,
            "args_at": lambda step: (KeyOfTheCall(), TOKENS, jax.random.key(step)),
        },
    ),
]
