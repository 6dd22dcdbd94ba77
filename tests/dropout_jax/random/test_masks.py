"""The mask against the oracle, line by line of its specification; and who may draw it."""

import ast
import functools
import itertools
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import export
from marks import slow

import dropout_jax
from dropout_jax import drop_path, dropout, keep_mask, reference
from dropout_jax.random import _masks as masks
from dropout_jax.random import _packing
from dropout_jax.random._packing import packed_axis

short_axes = st.sampled_from([1, 5, 31, 32, 33, 64, 70])
last_axes = st.sampled_from([1, 31, 32, 33, 100]) | st.integers(0, 3000)
lead_axes = st.lists(st.integers(0, 5), max_size=2)
shapes = (
    st.just(())
    | st.builds(
        lambda lead, last: (*lead, last), st.lists(st.integers(0, 5), max_size=3), last_axes
    )
    | st.builds(lambda lead, *last: (*lead, *last), lead_axes, short_axes, short_axes)
)
rates = st.sampled_from([0.0, 0.5, 0.25, 0.1, 1.0, 2**-16, 2**-24, 1 - 2**-24]) | st.floats(0, 1)


def expected(key, rate, shape, broadcast_dims=()):
    """The oracle's mask for a key of any implementation."""
    folded = jax.random.fold_in(key, masks.FOLD)
    if jax.random.key_impl(key) == "threefry2x32":
        return reference.keep_mask(
            jax.random.key_data(key), rate, shape, broadcast_dims=broadcast_dims
        )
    seed = jax.random.bits(folded, (2,), jnp.uint32)
    return reference.compute_mask(seed, rate, shape, broadcast_dims=broadcast_dims)


@given(
    shape=shapes,
    rate=rates,
    seed=st.integers(0, 2**31 - 1),
    impl=st.sampled_from(["threefry2x32", "philox4x32", "rbg"]),
    data=st.data(),
)
def test_mask_is_the_oracles_bit_for_bit(shape, rate, seed, impl, data):
    dims = data.draw(st.sets(st.integers(0, len(shape) - 1)) if shape else st.just(set()))
    key = jax.random.key(seed, impl=impl)
    mask = keep_mask(key, rate, shape, broadcast_dims=tuple(dims))
    assert mask.dtype == bool
    assert mask.shape == tuple(1 if i in dims else n for i, n in enumerate(shape))
    np.testing.assert_array_equal(mask, expected(key, rate, shape, tuple(dims)))


def test_known_answer(key):
    """The first words of version 1, which no later version of this code may change."""
    params = masks.mask_params(jax.random.key(0), jnp.float32(0.1))
    packed = masks.draw_packed_mask(params, (2, 64))
    assert [[f"{int(word):08x}" for word in row] for row in packed] == [
        ["f7ffff7b", "fffeffff"],
        ["fbbfffbf", "fffffffb"],
    ]


def test_borrowed_bits_are_the_oracles(key):
    """About sixteen of 2^20 elements are decided by bits of their neighbours."""
    shape, rate = (8, 128, 1024), 0.3
    words = np.asarray(jax.random.key_data(key))
    np.testing.assert_array_equal(
        keep_mask(key, rate, shape), reference.keep_mask(words, rate, shape)
    )


def test_the_known_answers_of_the_specification():
    """The lines of the docstring: a key, a shape, a rate, and the words in hexadecimal."""
    assert masks.__doc__
    pair = r"(\([\d, ]+\))"
    pattern = rf"^    {pair} +{pair} +(0\.\d+) +([0-9a-f ]+)$"
    lines = re.findall(pattern, masks.__doc__, re.MULTILINE)
    assert len(lines) == 8
    for key, shape, rate, words in lines:
        raw = jnp.array(ast.literal_eval(key), jnp.uint32)
        mask = np.asarray(keep_mask(raw, float(rate), ast.literal_eval(shape)))
        axis = packed_axis(mask.shape)
        bits = mask.ravel() if axis is None else np.moveaxis(mask, axis, -1)
        unused = np.zeros((*bits.shape[:-1], -bits.shape[-1] % 32), bool)
        bits = np.concatenate([bits, unused], axis=-1)
        packed = np.packbits(bits, axis=-1, bitorder="little").view("<u4")
        packed = packed if axis is None else np.moveaxis(packed, -1, axis)
        assert [f"{word:08x}" for word in packed.ravel()] == words.split()


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.75, 1.0])
def test_eager_jit_traced_rate_and_vmap_agree(key, rate):
    shape = (5, 70)
    eager = keep_mask(key, rate, shape)
    np.testing.assert_array_equal(jax.jit(lambda k: keep_mask(k, rate, shape))(key), eager)
    np.testing.assert_array_equal(jax.jit(lambda k, r: keep_mask(k, r, shape))(key, rate), eager)
    keys = jax.random.split(key, 3)
    loop = jnp.stack([keep_mask(k, rate, shape) for k in keys])
    np.testing.assert_array_equal(jax.vmap(lambda k: keep_mask(k, rate, shape))(keys), loop)
    several = jnp.float32([rate, 0.3])
    by_rate = jax.vmap(lambda r: keep_mask(key, r, shape))(several)
    np.testing.assert_array_equal(by_rate[0], eager)


@pytest.mark.parametrize("impl", ["philox4x32", "rbg", "unsafe_rbg"])
def test_vmap_over_keys_of_any_implementation_equals_a_loop(impl):
    keys = jax.random.split(jax.random.key(1, impl=impl), 4)
    loop = jnp.stack([keep_mask(k, 0.3, (3, 40)) for k in keys])
    np.testing.assert_array_equal(jax.vmap(lambda k: keep_mask(k, 0.3, (3, 40)))(keys), loop)


def test_raw_and_typed_keys_agree(key):
    raw = jax.random.key_data(key)
    np.testing.assert_array_equal(keep_mask(raw, 0.3, (50,)), keep_mask(key, 0.3, (50,)))


def test_masks_are_nested_in_the_rate(key):
    kept = [np.asarray(keep_mask(key, rate, (4, 500))) for rate in (0.1, 0.35, 0.36, 0.8)]
    for low, high in itertools.pairwise(kept):
        assert (low | ~high).all()
        assert (low & ~high).any()


def test_short_last_axis_is_taken_flat(key):
    flat = keep_mask(key, 0.3, (6 * 31,))
    np.testing.assert_array_equal(keep_mask(key, 0.3, (6, 31)).ravel(), flat)
    assert (keep_mask(key, 0.3, (6, 32)).ravel() != keep_mask(key, 0.3, (6 * 32,))).any()


def test_a_row_does_not_depend_on_other_rows_or_on_its_length(key):
    whole = keep_mask(key, 0.3, (7, 256))
    np.testing.assert_array_equal(whole[:3], keep_mask(key, 0.3, (3, 256)))
    np.testing.assert_array_equal(whole[:, :100], keep_mask(key, 0.3, (7, 100)))


def test_traced_rates_at_the_edges(key):
    traced = jax.jit(lambda r: keep_mask(key, r, (64, 1024)).sum())
    assert traced(1.0) == 0
    assert traced(0.0) == 64 * 1024
    assert traced(2**-25) == 64 * 1024
    assert traced(np.nextafter(np.float32(1), np.float32(0))) < 3  # one in 2^24


@pytest.mark.parametrize("x64", [slow(False), True])
def test_mask_is_the_same_with_x64(key, x64):
    code = """
import jax, numpy as np
from dropout_jax import keep_mask
key = jax.random.key(20141)
make = [keep_mask(key, r, (9, 77)) for r in (0.1, np.float64(0.1), np.float32(0.1))]
make.append(jax.jit(lambda r: keep_mask(key, r, (9, 77)))(0.1))
print(*(np.packbits(m).tobytes().hex() for m in make))
"""
    env = os.environ | {"JAX_ENABLE_X64": str(int(x64))}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    hexes = set(out.stdout.decode().split())
    assert hexes == {np.packbits(keep_mask(key, 0.1, (9, 77))).tobytes().hex()}


def test_a_rate_that_changes_does_not_retrace(key):
    traces = []

    @jax.jit
    def step(rate):
        traces.append(rate)
        return keep_mask(key, rate, (40,))

    for rate in (0.1, 0.2, 0.5, 0.0, 1.0):
        step(rate)
    assert len(traces) == 1


def test_only_the_random_wing_draws_random_bits():
    generators = [f"jax.random.{name}" for name in ("bits", "uniform", "bernoulli", "normal")]
    generators.append("threefry2x32(")
    package = pathlib.Path(dropout_jax.__file__).parent
    for path in package.rglob("*.py"):
        if path.relative_to(package).parts[0] not in ("random", "reference.py", "parity"):
            text = path.read_text()
            assert not any(generator in text for generator in generators), path.name


@pytest.mark.parametrize(
    "shape",
    [
        *[(8, 40), (12, 5), (90,), (40, 33), (7, 40, 3)],
        *map(slow, [(6, 2, 3, 33), (8, 3, 40), (12, 1, 1), (40, 1), (6, 64, 64)]),
    ],
)
@pytest.mark.parametrize("row_offset", [5, *map(slow, [0, 1, 3])])
def test_a_part_of_a_batch_has_its_part_of_the_mask(shape, row_offset, key):
    whole = reference.keep_mask(jax.random.key_data(key), 0.3, shape)
    part = (shape[0] - row_offset, *shape[1:])
    np.testing.assert_array_equal(
        keep_mask(key, 0.3, part, row_offset=row_offset), whole[row_offset:]
    )
    traced = jax.jit(lambda row_offset: keep_mask(key, 0.3, (1, *shape[1:]), row_offset=row_offset))
    np.testing.assert_array_equal(traced(row_offset), whole[row_offset : row_offset + 1])


def test_a_shared_axis_has_no_part(key):
    whole = keep_mask(key, 0.3, (8, 40), broadcast_dims=(0,))
    np.testing.assert_array_equal(
        keep_mask(key, 0.3, (3, 40), broadcast_dims=(0,), row_offset=5), whole
    )


@pytest.mark.slow
def test_parts_of_dropout_and_drop_path_make_the_whole(key):
    x = np.random.default_rng(0).standard_normal((12, 5, 40)).astype(np.float32)

    def halves(op):
        return np.concatenate([op(x[i : i + 4], row_offset=i) for i in (0, 4, 8)])

    for op in (
        functools.partial(dropout, rate=0.3, key=key),
        functools.partial(drop_path, rate=0.3, key=key),
        functools.partial(drop_path, rate=0.3, key=key, scale=False),
        functools.partial(drop_path, rate=0.3, key=key, mode="batch"),
    ):
        np.testing.assert_array_equal(halves(op), op(x))


@pytest.mark.parametrize(
    ("row_offset", "error"),
    [(-1, ValueError), (2**32, ValueError), (1.0, TypeError), (True, TypeError), ("2", TypeError)],
)
@pytest.mark.usefixtures("without_type_checker")
def test_bad_row_offsets_are_named(row_offset, error, key):
    with pytest.raises(
        error, match=r"^row_offset=.* is not allowed: row_offset must be an integer"
    ):
        keep_mask(key, 0.3, (4, 40), row_offset=row_offset)
    with pytest.raises(TypeError, match="row_offset"):
        keep_mask(key, 0.3, (4, 40), row_offset=jnp.float32(1))


@pytest.mark.parametrize(
    ("spec", "shapes"),
    [
        slow("b, 128, 16", [(2, 128, 16)]),
        slow("2, t, 16", [(2, 5, 16), (2, 33, 16), (2, 64, 16)]),
        slow("2, 64, c", [(2, 64, 5), (2, 64, 40)]),
        ("n", [(5,), (100,)]),
        slow("a, b, c", [(2, 33, 5), (3, 4, 5), (3, 4, 50)]),
    ],
)
@pytest.mark.parametrize("row_offset", [None, slow(3)])
def test_symbolic_sizes_choose_the_packed_axis_when_the_program_runs(
    spec, shapes, row_offset, key, without_type_checker
):
    words = jax.random.key_data(key)

    def mask(words, x):
        k = jax.random.wrap_key_data(words)
        return keep_mask(k, 0.3, x.shape, row_offset=row_offset)

    x = jax.ShapeDtypeStruct(export.symbolic_shape(spec), jnp.float32)
    exported = export.export(jax.jit(mask))(words, x)
    for shape in shapes:
        expected = keep_mask(key, 0.3, shape, row_offset=row_offset)
        np.testing.assert_array_equal(exported.call(words, np.ones(shape, np.float32)), expected)


@pytest.mark.parametrize(
    ("shape", "axis", "size"),
    [
        ((5, 4), 1, 128),
        ((5, 4), 1, 100),
        ((2, 3, 7), 1, 96),
        ((2, 3, 7), 1, 65),
        ((1, 33), 1, 1056),
    ],
)
def test_a_product_unpacks_as_shifts_do(shape, axis, size, monkeypatch):
    """A TPU's form of step 4, on words with all bits. (A CPU lacks this product of bfloat16.)"""
    monkeypatch.setattr(_packing, "BYTE_DTYPE", jnp.float32)
    words = jax.random.bits(jax.random.key(3), shape, jnp.uint32)
    by_product = jax.jit(_packing._unpack_by_product, static_argnums=(1, 2))(words, axis, size)
    element = np.arange(size)
    expected = np.take(np.asarray(words), element // 32, axis)
    shift = np.expand_dims(element % 32, [n for n in range(len(shape)) if n != axis])
    np.testing.assert_array_equal(by_product, expected >> shift & 1)


def test_a_product_unpacks_on_one_tpu_and_shifts_on_several(key):
    """Where an axis is sharded, a product over it would draw every word on every device."""

    def text():
        fn = jax.jit(lambda key: keep_mask(key, 0.1, (8, 64, 32)))
        return export.export(fn, platforms=["tpu"])(key).mlir_module()

    assert "dot_general" in text()
    with jax.set_mesh(jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))):
        assert "dot_general" not in text()
