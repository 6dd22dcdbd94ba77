"""Training steps of functions of Haiku."""

import functools

import haiku as hk
import jax
from audit_cases import KEY, X, at_steps


def train_step(forward):
    """A jitted step of parameters, data and key."""
    model = hk.transform(forward)

    @jax.jit
    def step(params, x, key):
        return jax.grad(lambda params: (model.apply(params, key, x) ** 2).mean())(params)

    return step


def evaluation(forward):
    model = hk.transform(forward)
    return lambda params, x, key: model.apply(params, key, x)


def make_params(forward):
    return hk.transform(forward).init(KEY, X)


def arguments_of(forward):
    """What `check` is called with for a function of Haiku."""
    return lambda: {
        "train_step": train_step(forward),
        "args_at": at_steps(make_params(forward), X),
    }


def rate_arguments_of(forward, set_rate=None):
    """The same for a function of a rate and data."""
    set_rate = set_rate or (lambda rate: train_step(functools.partial(forward, rate)))
    return lambda: {
        "train_step": set_rate(0.5),
        "args_at": at_steps(make_params(functools.partial(forward, 0.5)), X),
        "rates": {"rate": set_rate},
    }
