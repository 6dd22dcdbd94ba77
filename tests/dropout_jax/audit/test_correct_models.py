"""Correct training steps, of every form: none is accused."""

import functools

import jax
import jax.numpy as jnp
import pytest
from audit_cases import KEY, WEIGHTS, X, at_steps, drop

import dropout_jax
from dropout_jax import audit


def plain(weights, x, key):
    return drop(key, x @ weights)


def several_layers(weights, x, key):
    for layer in range(3):
        x = jnp.tanh(drop(jax.random.fold_in(key, layer), x @ weights))
    return x


def layers_in_scan(weights, x, key):
    def layer(x, key):
        return (jnp.tanh(drop(key, x @ weights)), None)

    return jax.lax.scan(layer, x, jax.random.split(key, 3))[0]


def rates_over_depth_in_scan(weights, x, key):
    def layer(x, inputs):
        rate, key = inputs
        return jnp.tanh(drop(key, x @ weights, rate)), None

    rates = jnp.linspace(0.1, 0.5, 3)
    return jax.lax.scan(layer, x, (rates, jax.random.split(key, 3)))[0]


def remat(weights, x, key):
    layer = jax.checkpoint(lambda x, key: jnp.tanh(drop(key, jnp.tanh(x @ weights)) @ weights))
    for key_of_layer in jax.random.split(key, 2):
        x = layer(x, key_of_layer)
    return x


def remat_in_scan(weights, x, key):
    layer = jax.checkpoint(lambda x, key: jnp.tanh(drop(key, jnp.tanh(x @ weights)) @ weights))
    return jax.lax.scan(lambda x, key: (layer(x, key), None), x, jax.random.split(key, 3))[0]


def remat_that_saves_products(weights, x, key):
    policy = jax.checkpoint_policies.dots_saveable
    layer = jax.checkpoint(lambda x: drop(key, jnp.tanh(x @ weights)) @ weights, policy=policy)
    return layer(x)


def rows_in_vmap(weights, x, key):
    return jax.vmap(drop)(jax.random.split(key, len(x)), x @ weights)


def rows_in_map(weights, x, key):
    keys = jax.random.split(key, len(x))
    return jax.lax.map(lambda row: drop(row[1], row[0] @ weights), (x, keys))


def accumulated(weights, x, key):
    def part(total, part):
        number, x = part
        return total + drop(jax.random.fold_in(key, number), x @ weights).sum(), None

    return jax.lax.scan(part, jnp.zeros(()), (jnp.arange(4), x.reshape(4, 4, -1)))[0]


def while_loop(weights, x, key):
    def turn(state):
        return (state[0] + 1, drop(jax.random.fold_in(key, state[0]), state[1]))

    return jax.lax.while_loop(lambda state: state[0] < 3, turn, (0, x @ weights))[1]


def either_branch(weights, x, key):
    h = x @ weights
    return jax.lax.cond(h.sum() > 0, lambda h: drop(key, h), lambda h: drop(key, -h), h)


@jax.custom_vjp
def own_gradient(x, key):
    return drop(key, x)


own_gradient.defvjp(
    lambda x, key: (drop(key, x), key), lambda key, gradient: (drop(key, gradient), None)
)


def same_mask_in_backward(weights, x, key):
    return own_gradient(jnp.tanh(x @ weights), key)


def mask_times_data(weights, x, key):
    h = x @ weights
    return h * (jax.random.bernoulli(key, 0.9, h.shape) / 0.9)


def floor_of_uniform(weights, x, key):
    h = x @ weights
    return h / 0.9 * jnp.floor(jax.random.uniform(key, h.shape) + 0.9)


def drop_mask(weights, x, key):
    h = x @ weights
    return jnp.where(jax.random.uniform(key, h.shape) < 0.1, 0, h / 0.9)


def scaled_by_size_before(weights, x, key):
    return drop(key, (x @ weights) * 8.0)


def attention_before_scale(weights, x, key):
    query = (x @ weights).reshape(16, 4, 16)
    scores = jnp.einsum("thd,shd->hts", query, query) / 4
    return jnp.einsum("hts,shd->thd", drop(key, jax.nn.softmax(scores)), query)


def causal_and_padding(weights, x, key):
    h = x @ weights
    valid = jnp.arange(len(x))[:, None] < 12
    return jnp.where(jax.random.bernoulli(key, 0.75, h.shape) & valid, h / 0.75, 0)


def bfloat16_data(weights, x, key):
    return drop(key, (x @ weights).astype(jnp.bfloat16), 0.1).astype(jnp.float32)


def dropkey(weights, x, key):
    scores = x @ weights
    masked = jnp.where(jax.random.bernoulli(key, 0.25, scores.shape), -1e9, 0.0)
    return jax.nn.softmax(scores + masked)


def whole_layer(weights, x, key):
    return jax.lax.cond(jax.random.bernoulli(key, 0.5), lambda: x @ weights, lambda: x)


def twice_dropped(weights, x, key):
    first, second = jax.random.split(key)
    return drop(second, drop(first, x @ weights))


def rate_of_argument(weights, x, key):
    rate = 0.3 * jnp.abs(weights).max() / jnp.abs(weights).max()
    h = x @ weights
    return jnp.where(jax.random.bernoulli(key, 1 - rate, h.shape), h / (1 - rate), 0)


def legacy_key(weights, x, key):
    return drop(jax.random.fold_in(jax.random.key_data(key), 1), x @ weights)


def seed_and_step(weights, x, key):
    number = jax.random.key_data(key)[0]
    return drop(jax.random.fold_in(jax.random.key(0), number), x @ weights)


def augmented(weights, x, key):
    flip, noise, mask = jax.random.split(key, 3)
    x = jnp.where(jax.random.bernoulli(flip, 0.5, (len(x), 1)), x[:, ::-1], x)
    return drop(mask, (x + 0.1 * jax.random.normal(noise, x.shape)) @ weights)


def other_generator(weights, x, key):
    words = jnp.tile(jax.random.key_data(key), 2)
    return drop(jax.random.wrap_key_data(words, impl="rbg"), x @ weights)


MODELS = [
    plain,
    several_layers,
    layers_in_scan,
    rates_over_depth_in_scan,
    remat,
    remat_in_scan,
    remat_that_saves_products,
    rows_in_vmap,
    rows_in_map,
    accumulated,
    either_branch,
    same_mask_in_backward,
    mask_times_data,
    floor_of_uniform,
    drop_mask,
    scaled_by_size_before,
    attention_before_scale,
    causal_and_padding,
    bfloat16_data,
    dropkey,
    whole_layer,
    twice_dropped,
    rate_of_argument,
    legacy_key,
    seed_and_step,
    augmented,
    other_generator,
]


def accused(findings):
    return [str(finding) for finding in findings if finding.severity != "note"]


def training_step(forward):
    """A jitted step that returns a loss and its gradient."""

    @jax.jit
    def step(weights, x, key):
        def loss(weights):
            return (forward(weights, x, key) ** 2).sum()

        return jax.value_and_grad(loss)(weights)

    return step


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_correct_model_is_not_accused(model):
    findings = audit.check(training_step(model), args_at=at_steps(WEIGHTS, X))
    assert accused(findings) == []


def test_while_loop_is_not_accused():
    assert accused(audit.check(while_loop, args_at=at_steps(WEIGHTS, X))) == []


ATTENTION = functools.partial(dropout_jax.dot_product_attention, dropout_rate=0.2)
OPS = {
    "dropout": lambda x, key: dropout_jax.dropout(x, 0.2, key=key),
    "dropout_shared": lambda x, key: dropout_jax.dropout(x, 0.2, key=key, broadcast_dims=(0,)),
    "dropout_unscaled": lambda x, key: dropout_jax.dropout_unscaled(x, 0.2, key=key),
    "alpha_dropout": lambda x, key: dropout_jax.alpha_dropout(x, 0.2, key=key),
    "gaussian_dropout": lambda x, key: dropout_jax.gaussian_dropout(x, 0.2, key=key),
    "drop_path": lambda x, key: dropout_jax.drop_path(x, 0.2, key=key),
    "locked_dropout": lambda x, key: dropout_jax.locked_dropout(x[None], 0.2, key=key),
    "spatial_dropout": lambda x, key: dropout_jax.spatial_dropout(x[None], 0.2, key=key),
    "token_dropout": lambda x, key: dropout_jax.token_dropout(x[None], 0.2, key=key),
    "drop_block": lambda x, key: dropout_jax.drop_block(x.reshape(1, 16, 16, 4), 0.2, 3, key=key),
    "drop_connect": lambda x, key: x @ dropout_jax.drop_connect(WEIGHTS, 0.2, key=key),
    "attention": lambda x, key: ATTENTION(*[x.reshape(1, 64, 1, 16)] * 3, dropout_key=key),
    "blockwise": lambda x, key: ATTENTION(
        *[x.reshape(1, 64, 1, 16)] * 3, dropout_key=key, implementation="blockwise"
    ),
}
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "op", [pytest.param(op, marks=SLOW if op == "blockwise" else ()) for op in OPS]
)
def test_op_of_this_package_is_not_accused(op):
    def model(weights, x, key):
        return OPS[op](x @ weights, key)

    findings = audit.check(training_step(model), args_at=at_steps(WEIGHTS, X))
    assert accused(findings) == []


def test_monte_carlo_dropout_is_not_accused_where_it_is_meant():
    step = training_step(plain)
    check = functools.partial(audit.check, step, plain, at_steps(WEIGHTS, X))
    assert accused(check(mc_dropout=True)) == []
    assert [finding.code for finding in check()] == ["D03"]


def test_declared_sharing_is_a_note():
    def variational(weights, x, key):
        mask = jax.random.bernoulli(key, 0.75, x.shape[1:])

        def turn(h, row):
            return (jnp.tanh(jnp.where(mask, h / 0.75, 0) @ weights + row), None)

        return jax.lax.scan(turn, jnp.zeros_like(x[0]), x)[0]

    check = functools.partial(audit.check, training_step(variational), args_at=at_steps(WEIGHTS, X))
    assert {finding.severity for finding in check(shared=["variational"])} == {"note"}
    assert [finding.code for finding in check()] == ["D05"]


def test_declared_lack_of_scale_is_not_accused():
    def unscaled(weights, x, key):
        return jnp.where(jax.random.bernoulli(key, 0.75, x.shape), x, 0) @ weights

    step, args_at = training_step(unscaled), at_steps(WEIGHTS, X)
    assert accused(audit.check(step, args_at=args_at, unscaled=["unscaled"])) == []
    assert [finding.code for finding in audit.check(step, args_at=args_at)] == ["D10"]


def rates_over_depth(rate, number):
    return [rate * layer / 2 for layer in range(3)]


def early_rate(rate, number):
    return [dropout_jax.early_dropout(rate, 2)(number)]


def curriculum_rate(rate, number):
    return [dropout_jax.curriculum_dropout(rate, 0.1)(number)]


@pytest.mark.parametrize("rates_at", [rates_over_depth, early_rate, curriculum_rate])
def test_schedules_of_rates_are_not_accused(rates_at):
    def step(rate, weights, x, key, number):
        for layer, rate_of_layer in enumerate(rates_at(rate, number)):
            x = drop(jax.random.fold_in(key, layer), x @ weights, rate_of_layer)
        return x

    def args_at(number):
        return WEIGHTS, X, jax.random.fold_in(KEY, number), jnp.int32(number)

    rates = {"rate": lambda rate: functools.partial(step, rate)}
    findings = audit.check(functools.partial(step, 0.5), args_at=args_at, rates=rates)
    assert accused(findings) == []
