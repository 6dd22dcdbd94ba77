"""Training steps of models of Keras on JAX, in the stateless form that JAX takes."""

import os

import jax
from audit_cases import TOKENS

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported


def import_keras():
    """Keras takes seconds to import, so the cases do it when they are run."""
    import keras

    if keras.backend.backend() != "jax":
        raise ImportError(f"Keras runs on {keras.backend.backend()} here, not on jax")
    return keras


def make_model(*layers):
    """A built model of these layers, of (2, 8, 64)."""
    model = import_keras().Sequential(list(layers))
    model.build(TOKENS.shape)
    return model


def state_of(model):
    """Its trainable variables, and the others, the seeds among them."""
    parts = model.trainable_variables, model.non_trainable_variables
    return [[variable.value for variable in variables] for variables in parts]


def train_step(model, **options):
    """A step that returns the gradient, and the other variables as they are afterwards."""
    options = {"training": True} | options

    @jax.jit
    def step(trainable, others, x):
        def loss(trainable):
            y, after = model.stateless_call(trainable, others, x, **options)
            return (y**2).mean(), after

        return jax.grad(loss, has_aux=True)(trainable)

    return step


def args_at(model, *, keeps_seeds=True):
    """The arguments of three steps, in which the variables that a step returns go on."""
    step = train_step(model)
    trainable, others = state_of(model)
    arguments = []
    for _ in range(3):
        arguments.append((trainable, others, TOKENS))
        if keeps_seeds:
            _, others = step(trainable, others, TOKENS)
    return arguments
