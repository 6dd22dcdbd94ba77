"""Faulty models of Equinox."""

import equinox as eqx
import jax
import jax.numpy as jnp
from audit_cases import KEY, TOKENS, Case, X, at_steps

from equinox_models import Model, arguments_of, train_step


class UnreadRate(Model):
    """A model that keeps its rate and builds its layer without it."""

    rate: float

    def __init__(self, rate):
        super().__init__(0.1)
        self.rate = rate


def unread_rate(rate):  # D01
    step = train_step()
    return lambda _, x, key: step(UnreadRate(rate), x, key)


def model_in_inference_mode(model, x, key):  # D02
    def loss(model):
        return (jax.vmap(model)(x, jax.random.split(key, len(x))) ** 2).mean()

    return eqx.filter_grad(loss)(model)


class WithoutInferenceMode(Model):
    """A correct model, whose evaluation is given keys and not inference_mode."""

    def __call__(self, x, key):
        h = jnp.tanh(self.linear(x))
        return self.drop(h, key=key)  # D03


class KeyInTheModel(Model):
    """A model with its key as an array that no step changes."""

    key: jax.Array

    def __init__(self):
        super().__init__()
        self.key = KEY

    def __call__(self, x, key):
        number = jnp.uint32((x.sum() + 100) * 1e3)
        own = jax.random.fold_in(self.key, number)
        return self.drop(jnp.tanh(self.linear(x)), key=own)  # D04


class OneKeyForLayers(Model):
    """Layers that are all given the key of the model."""

    def __call__(self, x, key):
        for _ in range(2):
            x = self.drop(jnp.tanh(self.linear(x)), key=key)  # D05
        return x


class LayersInScan(Model):
    """Layers stacked in a scan, with the key of the model."""

    def __call__(self, x, key):
        def layer(x, _):
            return self.drop(jnp.tanh(self.linear(x)), key=key), None  # D05

        return jax.lax.scan(layer, x, None, length=3)[0]


class KeepProbability(Model):
    """eqx.nn.Dropout takes the share to drop and gets that to keep."""

    def __init__(self, rate):
        super().__init__(1 - rate)

    def __call__(self, x, key):
        return self.drop(self.linear(x), key=key)  # D09


def keep_probability(rate):
    step = train_step()
    return lambda _, x, key: step(KeepProbability(rate), x, key)


class ScaledAgain(Model):
    """A block that divides what eqx.nn.Dropout has divided."""

    def __call__(self, x, key):
        return self.drop(self.linear(x), key=key) / (1 - 0.2)  # D10


class NumbersOfBfloat16(Model):
    """Dropout that draws its numbers in the dtype of the data."""

    def __call__(self, x, key):
        h = self.linear(x).astype(jnp.bfloat16)
        keep = jax.random.uniform(key, h.shape, h.dtype) < 0.9  # D11
        return jnp.where(keep, h / 0.9, 0).astype(jnp.float32)


def noisy_evaluation(model, x, key):
    noise = jax.random.normal(key, x.shape)  # D13
    return jax.vmap(model.linear)(x + 0.1 * noise)


class Trained(Model):
    """A correct model; its trainer splits the same key after a resume."""

    def __call__(self, x, key):
        h = self.linear(x)
        return self.drop(h, key=key)  # D14


class SeedInside(Model):
    """A model that makes its key of a number."""

    def __call__(self, x, key):
        return self.drop(self.linear(x), key=jax.random.key(0))  # D15


class Attention(eqx.Module):
    """A sequence with attention; one key serves it and the layer after it."""

    attention: eqx.nn.MultiheadAttention
    drop: eqx.nn.Dropout

    def __init__(self):
        self.attention = eqx.nn.MultiheadAttention(4, 64, dropout_p=0.2, key=KEY)
        self.drop = eqx.nn.Dropout(0.2)

    def __call__(self, x, key):
        x = x + self.attention(x, x, x, key=jax.random.fold_in(key, 0))
        x = self.drop(x, key=key)
        return self.drop(jnp.tanh(x), key=key)  # D05


def faulty(code, model, about, **kwargs):
    """The case of a model in the training step."""
    return Case(model, arguments_of(model), code, about, **kwargs)


def make(model):
    return model()


def evaluation(model, x, key):
    return jax.vmap(model)(x, jax.random.split(key, len(x)))


def rated(set_rate):
    return lambda: {
        "train_step": set_rate(0.5),
        "args_at": at_steps(Model(), X),
        "rates": {"rate": set_rate},
    }


CASES = [
    Case(unread_rate, rated(unread_rate), "D01", "the layer is built with another rate"),
    Case(
        model_in_inference_mode,
        lambda: {
            "train_step": model_in_inference_mode,
            "args_at": at_steps(eqx.nn.inference_mode(Model()), X),
        },
        "D02",
        "the model of an evaluation is trained on",
        is_quick=True,
    ),
    Case(
        WithoutInferenceMode,
        lambda: {"eval_step": evaluation, "eval_args": (make(WithoutInferenceMode), X, KEY)},
        "D03",
        "inference_mode is forgotten",
        is_quick=True,
    ),
    faulty("D04", KeyInTheModel, "a key that is a leaf of the model, and the data"),
    faulty("D05", OneKeyForLayers, "the key of the model for both layers"),
    faulty("D05", LayersInScan, "one key for the layers of a scan"),
    Case(
        Attention,
        lambda: {"train_step": train_step(), "args_at": at_steps(Attention(), TOKENS)},
        "D05",
        "one key for two layers after attention",
    ),
    Case(
        Model,
        arguments_of(Model, keys_of=lambda key, rows: (key, None)),
        "D06",
        "one key for the rows of a vmap",
        "one_key_for_rows",
        is_quick=True,
    ),
    Case(KeepProbability, rated(keep_probability), "D09", "the share to keep in place of the rate"),
    faulty("D10", ScaledAgain, "the block divides once more"),
    faulty("D11", NumbersOfBfloat16, "a uniform of bfloat16 against 0.9"),
    Case(
        noisy_evaluation,
        lambda: {"eval_step": noisy_evaluation, "eval_args": (Model(), X, KEY)},
        "D13",
        "noise in evaluation",
    ),
    Case(
        Trained,
        lambda: {
            "train_step": train_step(),
            "args_at": at_steps(make(Trained), X),
            "resumed_args_at": lambda step: at_steps(make(Trained), X)(step - 1),
        },
        "D14",
        "a resumed run splits the key of the run from the start",
    ),
    faulty("D15", SeedInside, "key(0) in the model"),
]
