"""Correct training steps in plain JAX, of every form."""

import functools

import jax
import jax.numpy as jnp
from audit_cases import KEY, WEIGHTS, Case, X, at_steps, drop, training_step
from jax.sharding import AxisType, NamedSharding, PartitionSpec


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


def rows_in_turn_in_backward(weights, x, key):
    return _by_rows(jnp.tanh(x @ weights), jax.random.split(key, len(x)))


@jax.custom_vjp
def _by_rows(x, keys):
    return jax.vmap(drop)(keys, x)


_by_rows.defvjp(
    lambda x, keys: (jax.vmap(drop)(keys, x), keys),
    lambda keys, gradient: (jax.lax.map(lambda row: drop(*row), (keys, gradient)), None),
)


def drop_path(weights, x, key):
    h = jnp.tanh(x @ weights)
    keep = jax.random.bernoulli(key, 0.8, (len(x),))
    return x + jax.vmap(lambda h, keep: jnp.where(keep, h / 0.8, 0))(h, keep)


def drop_path_by_rows(weights, x, key):
    def row(x, key):
        return x + jnp.where(jax.random.bernoulli(key, 0.8), jnp.tanh(x @ weights) / 0.8, 0)

    return jax.vmap(row)(x, jax.random.split(key, len(x)))


def layer_drop(weights, x, key):
    def layer(x, key):
        skip = jax.random.bernoulli(key, 0.5)
        return jax.lax.cond(skip, lambda x: x, lambda x: jnp.tanh(x @ weights), x), None

    return jax.lax.scan(layer, x, jax.random.split(key, 3))[0]


def variational(weights, x, key):
    mask = jax.random.bernoulli(key, 0.75, x.shape[1:])

    def turn(h, row):
        return (jnp.tanh(jnp.where(mask, h / 0.75, 0) @ weights + row), None)

    return jax.lax.scan(turn, jnp.zeros_like(x[0]), x)[0]


def zoneout(weights, x, key):
    def turn(h, inputs):
        row, key = inputs
        new = jnp.tanh(h @ weights + row)
        return jnp.where(jax.random.bernoulli(key, 0.2, h.shape), h, new), None

    return jax.lax.scan(turn, jnp.zeros_like(x[0]), (x, jax.random.split(key, len(x))))[0]


def zoneout_by_products(weights, x, key):
    mask = jax.random.bernoulli(key, 0.2, x.shape).astype(x.dtype)
    return mask * x + (1 - mask) * jnp.tanh(x @ weights)


def masked_tokens(weights, x, key):
    masked = jax.random.bernoulli(key, 0.15, (len(x), 1))
    y = jnp.where(masked, weights[0], x) @ weights
    return jnp.where(masked, y - x, 0)


def r_drop(weights, x, key):
    first, second = (drop(k, x @ weights) for k in jax.random.split(key))
    return first + (first - second) ** 2


def sampled_latent(weights, x, key):
    first, second = jax.random.split(key)
    mean = drop(first, x @ weights)
    return mean + jnp.exp(0.1 * mean) * jax.random.normal(second, mean.shape)


def gumbel_gate(weights, x, key):
    first, second = jax.random.split(key)
    gate = jax.nn.softmax(x @ weights + jax.random.gumbel(first, x.shape))
    return drop(second, gate * x)


def patches_that_are_left_out(weights, x, key):
    first, second = jax.random.split(key)
    return drop(second, x[jax.random.permutation(first, len(x))[:8]] @ weights)


def drop_connect(weights, x, key):
    return x @ drop(key, weights, 0.1)


def gaussian(weights, x, key):
    h = x @ weights
    return h * (1 + 0.5 * jax.random.normal(key, h.shape))


def rate_zero_in_one_layer(weights, x, key):
    first, second = jax.random.split(key)
    return drop(second, jnp.tanh(drop(first, x @ weights, 0.0)) @ weights)


def dropout_before_norm(weights, x, key):
    h = drop(key, x @ weights)
    return (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5)


def mixed_precision(weights, x, key):
    h = (x.astype(jnp.bfloat16) @ weights.astype(jnp.bfloat16)).astype(jnp.float32)
    return drop(key, h, 0.1).astype(jnp.bfloat16).astype(jnp.float32)


def threshold_of_integers(weights, x, key):
    h = x @ weights
    keep = jax.random.bits(key, h.shape) < jnp.uint32(0.9 * 2**32)
    return jnp.where(keep, h / 0.9, 0)


def share_of_this_mask(weights, x, key):
    h = x @ weights
    mask = jax.random.bernoulli(key, 0.75, h.shape)
    return h * mask / mask.mean()


def units_of_a_permutation(weights, x, key):
    kept = jax.random.permutation(key, x.shape[1])[:48]
    return (x @ weights) * jnp.zeros(x.shape[1]).at[kept].set(64 / 48)


def binomial_mask(weights, x, key):
    h = x @ weights
    return h * jax.random.binomial(key, 1, 0.75, h.shape) / 0.75


def randint_mask(weights, x, key):
    h = x @ weights
    return jnp.where(jax.random.randint(key, h.shape, 0, 10) < 9, h / 0.9, 0)


def choice_mask(weights, x, key):
    h = x @ weights
    share = jnp.array([0.25, 0.75])
    return jnp.where(jax.random.choice(key, 2, h.shape, p=share) == 1, h / 0.75, 0)


def mask_of_logarithms(weights, x, key):
    h = x @ weights
    return h * jnp.exp(jnp.where(jax.random.bernoulli(key, 0.75, h.shape), 0.28768, -jnp.inf))


def device_mesh(axis_type=AxisType.Auto):
    return jax.make_mesh((4,), ("rows",), axis_types=(axis_type,))


def in_shard_map(weights, x, key):
    rows = PartitionSpec("rows")

    def local(weights, x, key):
        return drop(jax.random.fold_in(key, jax.lax.axis_index("rows")), x @ weights)

    specs = (PartitionSpec(), rows, PartitionSpec())
    return jax.shard_map(local, mesh=device_mesh(), in_specs=specs, out_specs=rows)(weights, x, key)


def layers_in_shard_map(weights, x, key):
    rows = PartitionSpec("rows")

    def local(weights, x, key):
        key = jax.random.fold_in(key, jax.lax.axis_index("rows"))

        def layer(x, key):
            return jnp.tanh(drop(key, x @ weights)), None

        return jax.lax.scan(layer, x, jax.random.split(key, 2))[0]

    specs = (PartitionSpec(), rows, PartitionSpec())
    return jax.shard_map(local, mesh=device_mesh(), in_specs=specs, out_specs=rows)(weights, x, key)


def constrained(weights, x, key):
    sharding = NamedSharding(device_mesh(), PartitionSpec("rows"))
    return drop(key, jax.lax.with_sharding_constraint(x @ weights, sharding))


MODELS = [
    plain, several_layers, layers_in_scan, rates_over_depth_in_scan, remat, remat_in_scan,
    remat_that_saves_products, rows_in_vmap, rows_in_map, accumulated, either_branch,
    same_mask_in_backward, rows_in_turn_in_backward, mask_times_data, floor_of_uniform, drop_mask,
    scaled_by_size_before, attention_before_scale, causal_and_padding, bfloat16_data, dropkey,
    whole_layer, twice_dropped, rate_of_argument, legacy_key, seed_and_step, augmented,
    other_generator, drop_path, drop_path_by_rows, layer_drop, zoneout, zoneout_by_products,
    masked_tokens, r_drop, sampled_latent, gumbel_gate, patches_that_are_left_out, drop_connect,
    gaussian, rate_zero_in_one_layer, dropout_before_norm, mixed_precision, threshold_of_integers,
    share_of_this_mask, units_of_a_permutation, binomial_mask, randint_mask, choice_mask,
    mask_of_logarithms, in_shard_map, layers_in_shard_map, constrained,
]  # fmt: skip
QUICK = {plain, remat_in_scan, rows_in_vmap, accumulated, mask_times_data, dropkey, whole_layer}
QUICK |= {zoneout_by_products, rows_in_turn_in_backward, augmented}


def sharded_arguments():
    """Inputs that are spread over devices, and a jitted step."""
    sharding = NamedSharding(device_mesh(), PartitionSpec("rows"))
    x = jax.device_put(X, sharding)
    return {"train_step": training_step(several_layers), "args_at": at_steps(WEIGHTS, x)}


def monte_carlo_arguments():
    return {
        "train_step": training_step(plain),
        "eval_step": plain,
        "args_at": at_steps(WEIGHTS, X),
        "mc_dropout": True,
    }


def two_passes(weights, x, key):
    """Sharpness-aware minimization: the second pass must have the masks of the first."""

    def loss(weights):
        return (plain(weights, x, key) ** 2).sum()

    gradient = jax.grad(loss)(weights)
    return jax.grad(loss)(weights + 0.05 * gradient / jnp.linalg.norm(gradient))


def evaluation(weights, x, key):
    del key
    return x @ weights


def rates_over_depth(rate, number):
    return [rate * layer / 2 for layer in range(3)]


def ramp(rate, number):
    return [rate * jnp.minimum(number / 2, 1)]


def scheduled(rates_at):
    """The arguments of `check` for rates that change over the depth or the steps."""

    def step(rate, weights, x, key, number):
        for layer, rate_of_layer in enumerate(rates_at(rate, number)):
            x = drop(jax.random.fold_in(key, layer), x @ weights, rate_of_layer)
        return x

    def args_at(number):
        return WEIGHTS, X, jax.random.fold_in(KEY, number), jnp.int32(number)

    return lambda: {
        "train_step": functools.partial(step, 0.5),
        "args_at": args_at,
        "rates": {"rate": lambda rate: functools.partial(step, rate)},
    }


def correct(model):
    def arguments():
        return {"train_step": training_step(model), "args_at": at_steps(WEIGHTS, X)}

    return Case(model, arguments, is_quick=model in QUICK)


def declared(model, **declaration):
    arguments = correct(model).arguments
    return Case(model, lambda: arguments() | declaration)


def at_steps_of(step, **kwargs):
    return Case(step, lambda: {"train_step": step, "args_at": at_steps(WEIGHTS, X), **kwargs})


CASES = [
    *map(correct, MODELS),
    declared(variational, shared=["variational"]),
    at_steps_of(while_loop),
    at_steps_of(two_passes),
    at_steps_of(plain, eval_step=evaluation, resumed_args_at=at_steps(WEIGHTS, X)),
    Case(several_layers, sharded_arguments, name="sharded_inputs"),
    Case(plain, monte_carlo_arguments, name="monte_carlo_dropout"),
    Case(rates_over_depth, scheduled(rates_over_depth)),
    Case(ramp, scheduled(ramp)),
]
