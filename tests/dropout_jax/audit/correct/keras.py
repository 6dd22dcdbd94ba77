"""Correct models of Keras on JAX."""

from audit_cases import TOKENS, Case

from keras_models import args_at, import_keras, make_model, state_of, train_step


def linear_and(name, *args, **kwargs):
    """A linear layer, and a layer of keras.layers by name."""

    def build():
        layers = import_keras().layers
        return make_model(layers.Dense(64), getattr(layers, name)(*args, **kwargs))

    return build


def sequence():
    layers = import_keras().layers
    parts = [layers.Dense(64), layers.Dropout(0.2), layers.Dense(64), layers.Dropout(0.2)]
    return make_model(*parts)


def transformer():
    keras = import_keras()

    class Attention(keras.layers.Layer):
        """Attention of a sequence to itself, with dropout."""

        def __init__(self):
            super().__init__()
            self.attention = keras.layers.MultiHeadAttention(4, 16, dropout=0.2)
            self.drop = keras.layers.Dropout(0.1)

        def call(self, x, training=None):
            return x + self.drop(self.attention(x, x, training=training), training=training)

    return make_model(Attention(), keras.layers.Dense(64))


def trained(build, name="", **kwargs):
    def arguments():
        model = build()
        return {
            "train_step": train_step(model),
            "eval_step": train_step(model, training=False),
            "args_at": args_at(model),
            "eval_args": (*state_of(model), TOKENS),
        }

    return Case(build, arguments, name=name, **kwargs)


def rate_arguments():
    def set_rate(rate):
        return train_step(linear_and("Dropout", rate)())

    args = args_at(linear_and("Dropout", 0.5)())
    return {"train_step": set_rate(0.5), "args_at": args, "rates": {"rate": set_rate}}


CASES = [
    trained(sequence, is_quick=True),
    trained(transformer),
    trained(linear_and("SpatialDropout1D", 0.2), "spatial_dropout"),
    trained(linear_and("GaussianDropout", 0.2), "gaussian_dropout"),
    trained(linear_and("AlphaDropout", 0.2), "alpha_dropout"),
    trained(linear_and("Dropout", 0.2, noise_shape=(None, 1, None)), "noise_shape"),
    trained(
        linear_and("LSTM", 64, dropout=0.2, recurrent_dropout=0.2, return_sequences=True), "lstm"
    ),
    trained(linear_and("GRU", 64, dropout=0.2, unroll=True), "unrolled_gru"),
    Case(rate_arguments, rate_arguments, name="rate_of_the_layer"),
]
