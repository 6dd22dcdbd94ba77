"""The record of a run: what it says of each site, in every form of program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audit_cases import KEY, WEIGHTS, X, drop, marked_lines
from jax.sharding import PartitionSpec

import dropout_jax
import linen_models
from correct import linen
from correct.kernels import own_seed
from dropout_jax import audit


def only_site(*args, **kwargs):
    (site,) = audit.trace(*args, **kwargs).sites
    return site


def test_site_of_a_plain_step():
    def step(x, key):
        return drop(key, x, 0.25)  # location

    site = only_site(step, X, KEY)
    assert (site.shape, site.applied_shape, site.times) == ((16, 64), (16, 64), 1)
    assert (site.use, site.generator, site.probability) == ("zero", "random_bits", 0.75)
    assert site.scale == pytest.approx(4 / 3)
    assert site.interval[0] < 0.75 < site.interval[1]
    assert site.key_arguments == ("key",)
    assert not site.is_key_constant
    assert site.location.function == "drop"
    assert site.callers[1].line in marked_lines(step, "location")


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_masks_are_those_of_the_step(rate):
    def step(x, key):
        return dropout_jax.dropout(x, rate, key=key)

    site = only_site(step, X, KEY, masks=True)
    assert site.masks is not None
    np.testing.assert_array_equal(site.masks[0], dropout_jax.keep_mask(KEY, rate, X.shape))
    assert site.kept == site.masks.mean()


def test_loops_are_counted():
    def layer(x, key):
        return drop(key, x), None

    def step(x, key):
        keys = jax.random.split(key, (3, 2))
        return jax.lax.scan(lambda x, keys: jax.lax.scan(layer, x, keys), x, keys)[0]

    site = only_site(step, X, KEY)
    assert (site.times, site.loops) == (6, ("scan 3", "scan 2"))
    assert len({tuple(words) for words in site.hashes.tolist()}) == 6


def test_branch_that_is_not_taken_decides_nothing():
    def step(x, key, flag):
        return jax.lax.cond(flag, lambda x: drop(key, x), lambda x: x, x)

    assert only_site(step, X, KEY, jnp.array(True)).times == 1
    assert audit.trace(step, X, KEY, jnp.array(False)).sites == ()


def test_while_loop_is_recorded_to_its_64th_turn():
    def step(x, key, turns):
        def turn(state):
            return state[0] + 1, drop(jax.random.fold_in(key, state[0]), state[1])

        return jax.lax.while_loop(lambda state: state[0] < turns, turn, (0, x))

    assert only_site(step, X, KEY, 5).times == 5
    assert only_site(step, X, KEY, 100).times == 64


def test_recomputation_is_counted_and_not_a_site():
    layer = jax.checkpoint(lambda x: jnp.tanh(drop(KEY, jnp.tanh(x)) @ WEIGHTS))
    site = only_site(jax.grad(lambda x: layer(x).sum()), X)
    assert (site.times, site.recomputations) == (1, 1)


@pytest.mark.parametrize("form", ["shard_map", "pmap"])
def test_devices_are_turns(form):
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("rows")

    def local(x, key):
        return drop(jax.random.fold_in(key, jax.lax.axis_index("rows")), x)

    if form == "pmap":
        step = jax.pmap(local, "rows", in_axes=(0, None), devices=jax.devices()[:4])
        site = only_site(step, X.reshape(4, 4, 64), KEY)
    else:
        specs = (spec, PartitionSpec())
        step = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=spec)
        site = only_site(step, X, KEY)
    assert (site.shape, site.times) == ((4, 64), 4)
    assert len({tuple(words) for words in site.hashes.tolist()}) == 4


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_every_implementation_of_keys(impl):
    site = only_site(drop, jax.random.key(1, impl=impl), X)
    assert (site.generator, site.key_arguments) == ("random_bits", ("key",))
    assert site.is_active


def test_raw_keys():
    assert only_site(drop, jax.random.PRNGKey(1), X).key_arguments == ("key",)


def test_python_numbers_booleans_and_strings_stay_arguments():
    def step(x, key, layers, mode, is_training=False):
        for layer in range(layers):
            x = drop(jax.random.fold_in(key, layer), x) if is_training and mode == "all" else x
        return x

    assert len(audit.trace(step, X, KEY, 3, "all", is_training=True).sites) == 3


def test_noise_is_no_site():
    def step(x, key):
        first, second = jax.random.split(key)
        x = x * (1 + 0.1 * jax.random.normal(first, x.shape))
        return x + jax.random.uniform(second, x.shape)

    record = audit.trace(step, X, KEY)
    assert record.sites == ()
    assert [noise.use for noise in record.noise] == ["multiplied", "added"]


def test_callback_is_opaque():
    def step(x):
        return x * jax.pure_callback(np.ones_like, jax.typeof(x), x)  # callback

    (call,) = audit.trace(step, X).opaque
    assert call.primitive == "pure_callback"
    assert call.location.line in marked_lines(step, "callback")


def test_the_step_is_not_run_itself():
    called = []

    def step(x, key):
        jax.debug.callback(lambda: called.append(1))
        return drop(key, x)

    only_site(step, X, KEY)
    assert called == []


def test_record_prints_a_line_for_each():
    text = str(audit.trace(drop, KEY, X))
    assert "drop): zero (16, 64) x1" in text
    assert str(audit.trace(lambda x: x, X)) == "nothing is random"


def test_step_that_sets_a_mesh_is_refused_with_a_remedy():
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))

    def step(x, key):
        with jax.set_mesh(mesh):
            return drop(key, x)

    with pytest.raises(ValueError, match="Set the mesh around the audit"):
        audit.trace(step, X, KEY)
    with jax.set_mesh(mesh):
        assert only_site(drop, KEY, X).times == 1


def test_place_is_not_that_of_the_caller_for_whom_jax_traced_its_function_first():
    @jax.custom_vjp
    def drop_gradient(x, key):
        return x

    def backward(key, gradient):
        return drop(key, gradient), None

    drop_gradient.defvjp(lambda x, key: (x, key), backward)

    def first(x, key):
        return (drop_gradient(x, key) ** 2).sum()

    def second(x, key):
        return (drop_gradient(x, key) ** 2).sum()  # location

    only_site(jax.grad(first), X, KEY)
    assert only_site(jax.grad(second), X, KEY).location.line in marked_lines(second, "location")


def test_linen_names_its_modules():
    args = linen_models.arguments_of(linen.Layers)()
    modules = [site.module for site in audit.trace(args["train_step"], *args["args_at"](0)).sites]
    assert [module.split("/")[-1] for module in modules] == ["Dropout_0", "Dropout_1", "Dropout_2"]


def test_record_names_the_argument_of_a_kernels_seed():
    (call,) = audit.trace(own_seed, X, KEY).opaque
    assert (call.seed_arguments, call.is_random) == (("key",), True)
    assert str(call).endswith("seed of argument key")
