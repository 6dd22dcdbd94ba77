"""Training steps of models of flax.linen."""

import jax
from audit_cases import KEY, TOKENS, at_steps


def make_params(model):
    return model.init({"params": KEY, "dropout": KEY}, TOKENS)


def train_step(model):
    """A jitted step of parameters, data and key."""

    @jax.jit
    def step(params, x, key):
        def loss(params):
            return (model.apply(params, x, rngs={"dropout": key}) ** 2).mean()

        return jax.value_and_grad(loss)(params)

    return step


def arguments_of(build):
    """What `check` is called with for a model, which is built when it is asked."""

    def arguments():
        model = build()
        return {"train_step": train_step(model), "args_at": at_steps(make_params(model), TOKENS)}

    return arguments


def rate_arguments_of(build):
    """The same for a model of a rate."""

    def arguments():
        def set_rate(rate):
            return train_step(build(rate))

        params = make_params(build(0.5))
        step, args_at = set_rate(0.5), at_steps(params, TOKENS)
        return {"train_step": step, "args_at": args_at, "rates": {"rate": set_rate}}

    return arguments
