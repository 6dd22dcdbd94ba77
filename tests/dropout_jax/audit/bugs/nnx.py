"""Faulty models of flax.nnx."""

import functools

import jax
import jax.numpy as jnp
from audit_cases import TOKENS, Case
from flax import nnx

from nnx_models import Block, args_at, make_block, train_step


class Layer(nnx.Module):
    """A linear layer, and dropout."""

    def __init__(self, rngs, drop):
        self.linear = nnx.Linear(64, 64, rngs=rngs)
        self.drop = drop

    def __call__(self, x):
        return jnp.tanh(self.drop(self.linear(x)))


class UnreadRate(Block):
    """The rate of attention does not reach it."""

    def __init__(self, rngs, attention_rate):
        super().__init__(rngs, dropout_rate=0.0)
        self.attention_rate = attention_rate


def unread_attention_rate(rate):  # D01
    graph = nnx.graphdef(UnreadRate(nnx.Rngs(0), rate))
    return lambda state, x: (nnx.merge(graph, state)(x) ** 2).mean()


def state_args_at(step):
    model, x = args_at(UnreadRate(nnx.Rngs(0), 0.1))(step)
    return nnx.state(model), x


class FlagOfCall(nnx.Module):
    """A block with a flag that its callers must pass, as in a public miniGPT."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.linear = nnx.Linear(64, 64, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x, training=False):
        return self.drop(self.linear(x), deterministic=not training)


@nnx.jit  # D02
def step_without_the_flag(model, x):
    return nnx.value_and_grad(lambda model: (model(x) ** 2).mean())(model)


def training_in_evaluation_mode(model, x):  # D02
    return nnx.value_and_grad(lambda model: (model(x) ** 2).mean())(model)


def evaluated(model):
    model.eval()
    return model


def generate(model, x):
    for _ in range(2):
        x = model.drop(model.linear(x))  # D03
    return x


def state_of_keys_that_is_not_kept(params, keys, x):
    model = nnx.merge(nnx.graphdef(make_block()), params, keys)

    def loss(model):
        return (model.drop(model.linear(x)) ** 2).mean()  # D04

    return nnx.grad(loss)(model)


def split_once():
    _, params, keys = nnx.split(make_block(), nnx.Param, ...)
    return [(params, keys, TOKENS)] * 3


class ScanOfOneKey(nnx.Module):
    """Layers in a scan; the keys are not split."""

    def __init__(self):
        keys = nnx.split_rngs(splits=3)
        self.layers = keys(nnx.vmap(lambda rngs: nnx.Linear(64, 64, rngs=rngs)))(nnx.Rngs(0))
        self.key = nnx.Rngs(1)

    def __call__(self, x):
        key = self.key()

        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def layer(x, linear):
            return jnp.tanh(nnx.Dropout(0.2, deterministic=False)(linear(x), rngs=key))  # D05

        return layer(x, self.layers)


class StreamsOfOneSeed(nnx.Module):
    """Two layers, each with its own Rngs of the same seed."""

    def __init__(self):
        linear = nnx.Linear(64, 64, rngs=nnx.Rngs(0))
        self.first = Layer(nnx.Rngs(0), nnx.Dropout(0.2, rngs=nnx.Rngs(1)))
        self.second = nnx.Dropout(0.2, rngs=nnx.Rngs(1))
        self.linear = linear

    def __call__(self, x):
        return self.second(self.linear(self.first(x)))  # D05


class RowsInVmap(nnx.Module):
    """Dropout of one row, in a vmap whose keys are not split."""

    def __init__(self):
        self.layer = Layer(nnx.Rngs(0), nnx.Dropout(0.2, rngs=nnx.Rngs(1)))
        self.keys = nnx.Rngs(2)

    def __call__(self, x):
        key = self.keys()
        drop = nnx.Dropout(0.2, deterministic=False)
        return jax.vmap(lambda row: drop(row, rngs=key))(self.layer.linear(x))  # D06


class KeepProbability(nnx.Module):
    """nnx.Dropout takes a rate and gets the share to keep."""

    def __init__(self, rate):
        self.drop = nnx.Dropout(1 - rate, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.drop(x)  # D09


def keep_probability(rate):
    return lambda model, x: (nnx.merge(nnx.graphdef(KeepProbability(rate)), model)(x) ** 2).mean()


def keep_args_at(step):
    model, x = args_at(KeepProbability(0.5))(step)
    return nnx.state(model), x


class ScaledAgain(Layer):
    """A block that divides what nnx.Dropout has divided."""

    def __call__(self, x):
        return self.drop(self.linear(x)) / 0.8  # D10


class OwnDropout(nnx.Module):
    """A layer of dropout that draws in the dtype of the data."""

    def __init__(self):
        self.rngs = nnx.Rngs(0)

    def __call__(self, x):
        x = x.astype(jnp.bfloat16)
        keep = jax.random.uniform(self.rngs(), x.shape, x.dtype) < 0.9  # D11
        return jnp.where(keep, x / 0.9, 0).astype(jnp.float32)


def noisy_evaluation(model, x):
    noise = jax.random.normal(model.drop.rngs(), x.shape)  # D13
    return (model.linear(x + 0.1 * noise) ** 2).mean()


def resumed_without_keys(model, x):
    h = model.linear(x)
    return (model.drop(h) ** 2).mean()  # D14


class KeysOfTheStep(nnx.Module):
    """A model that makes its keys in every step."""

    def __init__(self):
        self.linear = nnx.Linear(64, 64, rngs=nnx.Rngs(0))
        self.drop = nnx.Dropout(0.2)

    def __call__(self, x):
        return self.drop(self.linear(x), rngs=nnx.Rngs(0))  # D15


def faulty(code, model, about, build=None, **kwargs):
    """The case of a model in the training step."""
    build = build or model

    def arguments():
        return {"train_step": train_step, "args_at": args_at(build())}

    return Case(model, arguments, code, about, **kwargs)


def asked(code, model, about, arguments, **kwargs):
    return Case(model, arguments, code, about, **kwargs)


CASES = [
    asked(
        "D01",
        unread_attention_rate,
        "the rate of attention is kept and not passed on",
        lambda: {
            "train_step": unread_attention_rate(0.1),
            "args_at": state_args_at,
            "rates": {"attention": unread_attention_rate},
        },
    ),
    asked(
        "D02",
        step_without_the_flag,
        "training=False (a miniGPT of a tutorial)",
        lambda: {"train_step": step_without_the_flag, "args_at": args_at(FlagOfCall())},
        is_quick=True,
    ),
    asked(
        "D02",
        training_in_evaluation_mode,
        "model.eval() stays after an evaluation",
        lambda: {
            "train_step": training_in_evaluation_mode,
            "args_at": args_at(evaluated(make_block())),
        },
    ),
    asked(
        "D03",
        generate,
        "sampling without model.eval() (a miniGPT's page)",
        lambda: {"eval_step": generate, "eval_args": (make_block(), TOKENS)},
        is_quick=True,
    ),
    asked(
        "D04",
        state_of_keys_that_is_not_kept,
        "jax.jit gets the keys that nnx.split gave once",
        lambda: {"train_step": state_of_keys_that_is_not_kept, "args_at": split_once()},
    ),
    faulty("D05", ScanOfOneKey, "one key for the layers of nnx.scan"),
    faulty("D05", StreamsOfOneSeed, "two streams with one seed"),
    faulty(
        "D06",
        Block.__call__,
        "broadcast_dropout=True, the default of attention",
        functools.partial(make_block, broadcast_dropout=True),
        name="default_of_attention",
    ),
    faulty("D06", RowsInVmap, "one key for the rows of a vmap"),
    asked(
        "D09",
        KeepProbability,
        "the share to keep in place of the rate",
        lambda: {
            "train_step": keep_probability(0.5),
            "args_at": keep_args_at,
            "rates": {"rate": keep_probability},
        },
    ),
    faulty(
        "D10",
        ScaledAgain,
        "the block divides once more",
        lambda: ScaledAgain(nnx.Rngs(0), nnx.Dropout(0.2, rngs=nnx.Rngs(1))),
    ),
    faulty("D11", OwnDropout, "a uniform of the dtype of the data"),
    asked(
        "D13",
        noisy_evaluation,
        "noise in evaluation",
        lambda: {"eval_step": noisy_evaluation, "eval_args": (make_block(), TOKENS)},
    ),
    asked(
        "D14",
        resumed_without_keys,
        "the checkpoint has no counts of keys",
        lambda: {
            "train_step": resumed_without_keys,
            "args_at": args_at(make_block()),
            "resumed_args_at": lambda step: args_at(make_block())(step - 1),
        },
    ),
    asked(
        "D15",
        KeysOfTheStep,
        "nnx.Rngs(0) in every call",
        lambda: {"train_step": train_step, "args_at": [(KeysOfTheStep(), TOKENS)] * 2},
        is_quick=True,
    ),
]
