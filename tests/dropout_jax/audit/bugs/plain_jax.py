"""Faulty training steps in plain JAX."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from audit_cases import KEY, WEIGHTS, Case, X, at_steps, drop, training_step
from jax.extend.core import Primitive


def seed_in_step(weights, x, key):
    return drop(jax.random.key(0), x @ weights)  # D15


def key_of_module(weights, x, key):
    return drop(KEY, x @ weights)  # D04


def key_without_step(weights, x, key):
    h = jnp.tanh(x @ weights)
    return h * jax.random.bernoulli(jax.random.fold_in(KEY, 3), 0.75, h.shape) / 0.75  # D04


def one_key_for_layers(weights, x, key):
    for _ in range(3):
        x = jnp.tanh(drop(key, x @ weights))  # D05
    return x


def one_key_in_scan(weights, x, key):
    def layer(x, _):
        return jnp.tanh(drop(key, x @ weights)), None  # D05

    return jax.lax.scan(layer, x, None, length=3)[0]


def one_key_for_two_shapes(weights, x, key):
    h = drop(key, x @ weights)
    wide = jnp.concatenate([h, jnp.tanh(h)], axis=1)
    return drop(key, wide, 0.5)  # D05


def one_mask_for_layers(weights, x, key):
    mask = jax.random.bernoulli(key, 0.75, x.shape)  # D05
    for _ in range(3):
        x = jnp.tanh(x @ weights) * mask / 0.75
    return x


def one_mask_in_scan(weights, x, key):
    mask = jax.random.bernoulli(key, 0.75, x.shape)  # D05

    def layer(x, _):
        return jnp.where(mask, jnp.tanh(x @ weights) / 0.75, 0), None

    return jax.lax.scan(layer, x, None, length=3)[0]


def one_key_in_vmap(weights, x, key):
    def row(x):
        return drop(key, x @ weights)  # D06

    return jax.vmap(row)(x)


def equal_keys_in_vmap(weights, x, key):
    keys = jnp.stack([key] * len(x))
    return jax.vmap(drop)(keys, x @ weights)  # D06


def mask_of_one_row(weights, x, key):
    h = x @ weights
    mask = jax.random.bernoulli(key, 0.75, (1, h.shape[1]))  # D06
    return jnp.where(mask, h / 0.75, 0)


def one_mask_for_heads(weights, x, key):
    heads = jax.nn.softmax(jnp.einsum("thd,shd->hts", *[(x @ weights).reshape(16, 4, 16)] * 2))
    mask = jax.random.bernoulli(key, 0.75, heads.shape[1:])  # D06
    return jnp.where(mask, heads / 0.75, 0)


@jax.custom_vjp
def _own_gradient(x, key):
    return drop(key, x)


def _own_backward(key, gradient):
    return drop(jax.random.fold_in(key, 1), gradient), None


_own_gradient.defvjp(lambda x, key: (drop(key, x), key), _own_backward)


def other_mask_in_backward(weights, x, key):
    return _own_gradient(jnp.tanh(x @ weights), key)  # D07


def no_scale(weights, x, key):
    h = x @ weights
    return jnp.where(jax.random.bernoulli(key, 0.75, h.shape), h, 0)  # D10


def scale_by_rate(weights, x, key):
    h = x @ weights
    return jnp.where(jax.random.bernoulli(key, 0.75, h.shape), h / 0.25, 0)  # D10


def multiplied_by_kept(weights, x, key):
    h = x @ weights
    return h * jax.random.bernoulli(key, 0.75, h.shape) * 0.75  # D10


def scaled_twice(weights, x, key):
    h = x @ weights
    mask = jax.random.bernoulli(key, 0.75, h.shape) / 0.75  # D10
    return h * mask / 0.75


def scaled_in_and_out(weights, x, key):
    mask = jax.random.bernoulli(key, 0.75, x.shape)  # D10
    h = jnp.where(mask, x / 0.75, 0)
    return jnp.tanh(h / 0.75) @ weights


def numbers_of_bfloat16(weights, x, key):
    h = x @ weights
    numbers = jax.random.uniform(key, h.shape, jnp.bfloat16)
    return jnp.where(numbers < 0.9, h / 0.9, 0)  # D11


def eight_bits(weights, x, key):
    h = x @ weights
    return jnp.where(jax.random.bits(key, h.shape, jnp.uint8) < 230, h / 0.9, 0)  # D11


@dataclasses.dataclass(frozen=True)
class Config:
    """The rates of a block, as configurations of trainers have them."""

    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1


def block(config, weights, x, key):
    first, second = jax.random.split(key)
    x = drop(first, x @ weights, config.resid_pdrop)
    return drop(second, x @ weights, config.resid_pdrop)


def unread_rate(rate):  # D01
    return functools.partial(block, Config(attn_pdrop=rate))


def overwritten_rate(rate):  # D01
    config = dataclasses.replace(Config(resid_pdrop=rate), resid_pdrop=0.1)
    return functools.partial(block, config)


def block_with_flag(weights, x, key, training=False):
    return drop(key, x @ weights) if training else x @ weights


def flag_left_at_its_default(weights, x, key):  # D02
    return jax.grad(lambda weights: block_with_flag(weights, x, key).sum())(weights)


def rate_left_at_zero(weights, x, key, rate=0.0):  # D02
    return jax.grad(lambda weights: drop(key, x @ weights, rate).sum())(weights)


def evaluation_with_the_training_loss(weights, x, key):
    return drop(key, x @ weights).sum()  # D03


def sampling_with_dropout(weights, x, key):
    def turn(x, key):
        return jnp.tanh(drop(key, x @ weights)), None  # D03

    return jax.lax.scan(turn, x, jax.random.split(key, 4))[0]


fused_attention = Primitive(
    "dot_product_attention_fwd"
)  # stands in for cuDNN's, with its arguments
fused_attention.def_abstract_eval(lambda x, **_: x)


def static_seed_of_kernel(weights, x, key):
    return fused_attention.bind(x @ weights, seed=42, dropout_rate=0.1)  # D04


def key_of_batch(weights, x, key):
    number = jnp.uint32(jnp.abs(x).sum())
    return drop(jax.random.fold_in(KEY, number), x @ weights)  # D04


def one_key_for_microbatches(weights, x, key):
    def part(total, x):
        return total + drop(key, x @ weights).sum(), None  # D05

    return jax.lax.scan(part, jnp.zeros(()), x.reshape(4, 4, -1))[0]


def key_that_the_loop_does_not_move(weights, x, key):
    def turn(state, _):
        x, key = state
        _, own = jax.random.split(key)
        return (jnp.tanh(drop(own, x @ weights)), key), None  # D05

    return jax.lax.scan(turn, (x, key), None, length=3)[0][0]


def attention_and_mlp_with_one_key(weights, x, key):
    for layer in range(2):
        key_of_layer = jax.random.fold_in(key, layer)
        x = x + drop(key_of_layer, jax.nn.softmax(x @ weights))
        x = x + drop(key_of_layer, jax.nn.gelu(x @ weights))  # D05
    return x


def layers_in_vmap_with_one_key(weights, x, key):
    experts = jnp.stack([weights] * 4)
    return jax.vmap(lambda weights: drop(key, x @ weights))(experts).mean(0)  # D06


def _blocks(x, key, rows):
    def block(start):
        own = jax.random.fold_in(key, start)
        return drop(own, jax.lax.dynamic_slice_in_dim(x, start, rows))

    return jnp.concatenate([block(start) for start in range(0, len(x), rows)])


_tiled = jax.custom_vjp(lambda x, key: _blocks(x, key, 8))
_tiled.defvjp(
    lambda x, key: (_blocks(x, key, 8), key),
    lambda key, gradient: (_blocks(gradient, key, 4), None),
)


def other_tiles_in_backward(weights, x, key):
    return _tiled(jnp.tanh(x @ weights), key)  # D07


def complement(rate, weights, x, key):
    h = x @ weights
    mask = jax.random.bernoulli(key, rate, h.shape)  # D09
    return jnp.where(mask, h / rate, 0)


def rate_twice(rate, weights, x, key):
    h = x @ weights
    keep = (1 - rate) * (1 - rate)
    return jnp.where(jax.random.bernoulli(key, keep, h.shape), h / keep, 0)  # D09


def percentage(rate, weights, x, key):
    h = x @ weights
    keep = 1 - rate / 100
    return jnp.where(jax.random.uniform(key, h.shape) < keep, h / keep, 0)  # D09


def scaled_by_the_share(weights, x, key):
    h = x @ weights
    return jnp.where(jax.random.bernoulli(key, 0.9, h.shape), h * 0.9, 0)  # D10


def scaled_again_by_the_block(weights, x, key):
    return drop(key, x @ weights) / 0.75  # D10


def augmented_evaluation(weights, x, key):
    noisy = x + 0.1 * jax.random.normal(key, x.shape)  # D13
    return (noisy @ weights).sum()


def keys_that_come_again(weights, x, key):
    return drop(key, x @ weights)  # D14


def seed_of_numpy(weights, x, key):
    seed = np.random.default_rng(0).integers(1000)
    return drop(jax.random.key(int(seed)), x @ weights)  # D15


def seed_and_layer(weights, x, key):
    key = jax.random.fold_in(jax.random.PRNGKey(0), 3)
    return drop(key, x @ weights)  # D15


def keys_in_pairs(weights, x, key):
    keys = jnp.repeat(jax.random.split(key, len(x) // 2), 2)
    return jax.vmap(drop)(keys, x @ weights)  # D05


def one_key_in_fori_loop(weights, x, key):
    return jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(drop(key, x @ weights)), x)  # D05


def noise_with_the_key_of_the_mask(weights, x, key):
    noisy = x + 0.1 * jax.random.normal(key, x.shape)
    return drop(key, noisy @ weights)  # D05


def step_plus_layer(weights, x, key, step):
    for layer in range(2):
        x = drop(jax.random.fold_in(key, step + layer), x @ weights)  # D14
    return x


def numpy_mask(weights, x, key):
    mask = np.random.default_rng(0).random(x.shape) < 0.75  # D04
    return drop(key, jnp.where(mask, (x @ weights) / 0.75, 0))


def backward_without_mask(weights, x, key):
    h = x @ weights
    return h + jax.lax.stop_gradient(drop(key, h) - h)  # D07


def one_of_two_layers_is_off(weights, x, key):
    first, _ = jax.random.split(key)
    return jnp.tanh(drop(first, x @ weights)) @ weights  # D02


def halves_with_one_mask(weights, x, key):
    half = jax.random.bernoulli(key, 0.75, (len(x), 32))  # D06
    return (x @ weights) * jnp.concatenate([half, half], axis=1) / 0.75


def faulty(code, model, about, **kwargs):
    """The case of a forward pass, in a gradient step."""

    def arguments():
        return {"train_step": training_step(model), "args_at": at_steps(WEIGHTS, X)}

    return Case(model, arguments, code, about, **kwargs)


def faulty_step(code, step, about, **kwargs):
    """The case of a training step."""

    def arguments():
        return {"train_step": step, "args_at": at_steps(WEIGHTS, X)}

    return Case(step, arguments, code, about, **kwargs)


def faulty_evaluation(code, evaluate, about, **kwargs):
    """The case of an evaluation step."""

    def arguments():
        return {"eval_step": evaluate, "eval_args": (WEIGHTS, X, KEY)}

    return Case(evaluate, arguments, code, about, **kwargs)


def faulty_rate(code, model, set_rate, about, **kwargs):
    """The case of a rate."""

    def arguments():
        return {
            "train_step": set_rate(0.5),
            "args_at": at_steps(WEIGHTS, X),
            "rates": {"rate": set_rate},
        }

    return Case(model, arguments, code, about, **kwargs)


def faulty_keys(code, model, args_at, about, **kwargs):
    """The case of the keys that a trainer passes."""

    def arguments():
        return {"train_step": model, "args_at": at_steps(WEIGHTS, X)} | args_at

    return Case(model, arguments, code, about, **kwargs)


def replayed(step):
    return at_steps(WEIGHTS, X)(step - 1)


def every_other(step):
    return at_steps(WEIGHTS, X)(step % 2)


CASES = [
    faulty_rate("D01", unread_rate, unread_rate, "no layer reads attn_pdrop", is_quick=True),
    faulty_rate("D01", overwritten_rate, overwritten_rate, "a default overwrites the rate"),
    faulty_step("D02", flag_left_at_its_default, "training=False", is_quick=True),
    faulty_step("D02", rate_left_at_zero, "the rate is 0"),
    faulty_evaluation("D03", evaluation_with_the_training_loss, "the loss drops", is_quick=True),
    faulty_evaluation("D03", sampling_with_dropout, "each turn of sampling drops"),
    faulty("D04", key_of_module, "one key of the module"),
    faulty("D04", key_without_step, "only the layer is folded in"),
    faulty("D04", key_of_batch, "a key made of the data, which does not change"),
    faulty_step("D04", static_seed_of_kernel, "a kernel's seed is a constant", is_quick=True),
    faulty("D05", one_key_for_layers, "one key for three layers", is_quick=True),
    faulty("D05", one_key_in_scan, "one key for the turns of a scan", is_quick=True),
    faulty("D05", one_key_for_two_shapes, "one key for masks of two shapes"),
    faulty("D05", one_mask_for_layers, "one mask for three layers"),
    faulty("D05", one_mask_in_scan, "one mask for the turns of a scan"),
    faulty("D05", one_key_for_microbatches, "one key for accumulated parts of a batch"),
    faulty("D05", key_that_the_loop_does_not_move, "a carry that keeps the old key"),
    faulty("D05", attention_and_mlp_with_one_key, "a layer's key serves both of its parts"),
    faulty("D05", keys_in_pairs, "each key serves two rows"),
    faulty("D05", one_key_in_fori_loop, "one key for the turns of a loop"),
    faulty("D05", noise_with_the_key_of_the_mask, "one key for noise and for the mask"),
    faulty("D06", one_key_in_vmap, "one key for the rows of a vmap", is_quick=True),
    faulty("D06", equal_keys_in_vmap, "equal keys for the rows of a vmap"),
    faulty("D06", mask_of_one_row, "one row's mask for all"),
    faulty("D06", one_mask_for_heads, "one mask for the heads"),
    faulty("D06", layers_in_vmap_with_one_key, "one key for the experts of a vmap"),
    faulty("D07", other_mask_in_backward, "the backward pass folds the key", is_quick=True),
    faulty("D07", other_tiles_in_backward, "the backward pass has other tiles"),
    faulty_rate(
        "D09",
        complement,
        lambda rate: functools.partial(complement, rate),
        "the rate is taken for its complement",
        is_quick=True,
    ),
    faulty_rate(
        "D09", rate_twice, lambda rate: functools.partial(rate_twice, rate), "it is used twice"
    ),
    faulty_rate(
        "D09", percentage, lambda rate: functools.partial(percentage, rate), "it is divided by 100"
    ),
    faulty("D10", no_scale, "no scale", is_quick=True),
    faulty("D10", scale_by_rate, "x / rate"),
    faulty("D10", multiplied_by_kept, "x * (1 - rate)"),
    faulty("D10", scaled_by_the_share, "x * (1 - rate) inside the choice"),
    faulty("D10", scaled_twice, "the mask has the scale, and the layer"),
    faulty("D10", scaled_in_and_out, "before the mask, and after"),
    faulty("D10", scaled_again_by_the_block, "the block scales what dropout has scaled"),
    faulty("D11", numbers_of_bfloat16, "numbers of bfloat16 against 0.9", is_quick=True),
    faulty("D11", eight_bits, "eight random bits"),
    faulty_evaluation("D13", augmented_evaluation, "noise in evaluation", is_quick=True),
    faulty_keys(
        "D14", keys_that_come_again, {"args_at": every_other}, "the step modulo 2 is folded in"
    ),
    faulty_keys(
        "D14",
        keys_that_come_again,
        {"resumed_args_at": replayed},
        "a resumed run counts from 0",
        name="keys_that_come_again_after_a_resume",
        is_quick=True,
    ),
    faulty_keys(
        "D14",
        step_plus_layer,
        {"args_at": lambda step: (WEIGHTS, X, KEY, jnp.uint32(step))},
        "fold_in(key, step + layer)",
    ),
    faulty("D15", seed_in_step, "key(0) in the step", is_quick=True),
    faulty("D15", seed_of_numpy, "key(np.random...) in a jitted step"),
    faulty("D15", seed_and_layer, "fold_in(PRNGKey(0), layer)"),
    faulty("D04", numpy_mask, "a mask of NumPy is a constant of the program", is_missed=True),
    faulty("D07", backward_without_mask, "the gradient passes the mask by", is_missed=True),
    faulty("D02", one_of_two_layers_is_off, "one layer of two is off", is_missed=True),
    faulty("D06", halves_with_one_mask, "half of the features has the other's", is_missed=True),
]
