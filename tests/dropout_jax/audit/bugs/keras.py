"""Faulty models of Keras on JAX."""

import jax
import jax.numpy as jnp
from audit_cases import TOKENS, Case

from keras_models import args_at, import_keras, make_model, state_of, train_step


def linear_and(*layers):
    return make_model(import_keras().layers.Dense(64), *layers)


def dropped(rate=0.2):
    return linear_and(import_keras().layers.Dropout(rate))


def unread_model(rate):
    keras = import_keras()

    class Attention(keras.layers.Layer):
        """Attention that keeps its rate and does not pass it on."""

        def __init__(self, rate):
            super().__init__()
            self.rate = rate
            self.attention = keras.layers.MultiHeadAttention(4, 16)

        def call(self, x):
            return self.attention(x, x)

    return linear_and(keras.layers.Dropout(0.1), Attention(rate))


def unread_rate(rate):  # D01
    return train_step(unread_model(rate))


def step_without_training(trainable, others, x):  # D02
    def loss(trainable):
        return (MODELS["dropped"].stateless_call(trainable, others, x)[0] ** 2).mean()

    return jax.grad(loss)(trainable)


def evaluation_in_training_mode(trainable, others, x):
    y, _ = MODELS["dropped"].stateless_call(trainable, others, x, training=True)  # D03
    return (y**2).mean()


def step_that_drops_the_seeds(trainable, others, x):
    def loss(trainable):
        y, _ = MODELS["dropped"].stateless_call(trainable, others, x, training=True)  # D04
        return (y**2).mean()

    return jax.grad(loss)(trainable)


MODELS = {}  # what these steps call, built when a case is run


def layers_of_one_seed():
    keras = import_keras()

    class Block(keras.layers.Layer):
        """Two layers of dropout that are given one seed, for reproducibility."""

        def __init__(self):
            super().__init__()
            self.first = keras.layers.Dropout(0.2, seed=1337)
            self.linear = keras.layers.Dense(64)
            self.second = keras.layers.Dropout(0.2, seed=1337)

        def call(self, x, training=None):
            h = self.linear(self.first(x, training=training))
            return self.second(h, training=training)  # D05

    return linear_and(Block())


def shared_by_hand():
    keras = import_keras()

    class OneRow(keras.layers.Layer):
        """A layer that draws the mask of one sequence for the whole batch."""

        def __init__(self):
            super().__init__()
            self.seed = keras.random.SeedGenerator(3)

        def call(self, x, training=None):
            numbers = keras.random.uniform(x.shape[1:], seed=self.seed)
            mask = keras.ops.cast(numbers < 0.8, x.dtype)  # D06
            return x * mask / 0.8 if training else x

    return linear_and(OneRow())


def keep_probability(rate):
    keras = import_keras()

    class KeepProbability(keras.layers.Layer):
        """keras.random.dropout takes a rate and gets the share to keep."""

        def __init__(self):
            super().__init__()
            self.seed = keras.random.SeedGenerator(3)

        def call(self, x, training=None):
            return keras.random.dropout(x, 1 - rate, seed=self.seed) if training else x  # D09

    return linear_and(KeepProbability())


def scaled_again():
    keras = import_keras()

    class Scaled(keras.layers.Layer):
        """A layer that divides what keras.layers.Dropout has divided."""

        def __init__(self):
            super().__init__()
            self.drop = keras.layers.Dropout(0.2)

        def call(self, x, training=None):
            return self.drop(x, training=training) / 0.8  # D10

    return linear_and(Scaled())


def numbers_of_bfloat16():
    keras = import_keras()

    class Coarse(keras.layers.Layer):
        """A layer that draws its numbers in bfloat16."""

        def __init__(self):
            super().__init__()
            self.seed = keras.random.SeedGenerator(3)

        def call(self, x, training=None):
            numbers = keras.random.uniform(x.shape, dtype="bfloat16", seed=self.seed)
            mask = keras.ops.cast(numbers < 0.9, x.dtype)  # D11
            return x * mask / 0.9 if training else x

    return linear_and(Coarse())


def noise_that_stays_on():
    keras = import_keras()

    class Noisy(keras.layers.Layer):
        """A layer of noise that does not look at `training`."""

        def __init__(self):
            super().__init__()
            self.seed = keras.random.SeedGenerator(3)

        def call(self, x):
            return x + keras.random.normal(x.shape, stddev=0.1, seed=self.seed)  # D13

    return linear_and(Noisy())


def step_after_a_resume(trainable, others, x):
    def loss(trainable):
        y, after = MODELS["dropped"].stateless_call(trainable, others, x, training=True)  # D14
        return (y**2).mean(), after

    return jax.grad(loss, has_aux=True)(trainable)


def seed_of_the_call():
    keras = import_keras()

    class Seeded(keras.layers.Layer):
        """A layer whose seed is a number, and not a SeedGenerator."""

        def call(self, x, training=None):
            return keras.random.dropout(x, 0.2, seed=42) if training else x  # D04

    return linear_and(Seeded())


def key_of_the_call():
    keras = import_keras()

    class Keyed(keras.layers.Layer):
        """A layer that draws with jax.random and makes its key itself."""

        def call(self, x, training=None):
            keep = jax.random.bernoulli(jax.random.key(0), 0.8, x.shape)  # D15
            return jnp.where(keep, x / 0.8, 0) if training else x

    return linear_and(Keyed())


def faulty(code, build, about, **kwargs):
    """The case of a model in the training step."""

    def arguments():
        model = build()
        return {"train_step": train_step(model), "args_at": args_at(model)}

    return Case(build, arguments, code, about, **kwargs)


def with_dropped(arguments):
    """The arguments of `check` for a step that calls MODELS["dropped"]."""

    def build():
        MODELS["dropped"] = dropped()
        return arguments(MODELS["dropped"])

    return build


def noise_arguments():
    model = noise_that_stays_on()
    step = train_step(model, training=False)
    return {"eval_step": step, "eval_args": (*state_of(model), TOKENS)}


def unread_arguments():
    args = args_at(unread_model(0.1))
    return {"train_step": unread_rate(0.1), "args_at": args, "rates": {"attention": unread_rate}}


def keep_arguments():
    def set_rate(rate):
        return train_step(keep_probability(rate))

    return {
        "train_step": set_rate(0.5),
        "args_at": args_at(keep_probability(0.5)),
        "rates": {"rate": set_rate},
    }


CASES = [
    Case(unread_rate, unread_arguments, "D01", "MultiHeadAttention is built without its rate"),
    Case(
        step_without_training,
        with_dropped(
            lambda model: {"train_step": step_without_training, "args_at": args_at(model)}
        ),
        "D02",
        "stateless_call without training=True",
        is_quick=True,
    ),
    Case(
        evaluation_in_training_mode,
        with_dropped(
            lambda model: {
                "eval_step": evaluation_in_training_mode,
                "eval_args": (*state_of(model), TOKENS),
            }
        ),
        "D03",
        "training=True in evaluation",
    ),
    Case(
        step_that_drops_the_seeds,
        with_dropped(
            lambda model: {
                "train_step": step_that_drops_the_seeds,
                "args_at": args_at(model, keeps_seeds=False),
            }
        ),
        "D04",
        "the seeds that stateless_call returns are dropped",
        is_quick=True,
    ),
    faulty("D04", seed_of_the_call, "seed=42 in the call"),
    faulty("D05", layers_of_one_seed, "two layers with one seed"),
    faulty("D06", shared_by_hand, "one mask for the batch"),
    Case(keep_probability, keep_arguments, "D09", "the share to keep in place of the rate"),
    faulty("D10", scaled_again, "the layer divides once more"),
    faulty("D11", numbers_of_bfloat16, "a uniform of bfloat16 against 0.9"),
    Case(noise_that_stays_on, noise_arguments, "D13", "noise that ignores `training`"),
    Case(
        step_after_a_resume,
        with_dropped(
            lambda model: {
                "train_step": step_after_a_resume,
                "args_at": args_at(model),
                "resumed_args_at": args_at(model)[:2],
            }
        ),
        "D14",
        "the seeds start anew after a resume",
    ),
    faulty("D15", key_of_the_call, "jax.random.key(0) in the layer"),
]
