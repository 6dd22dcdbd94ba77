"""The oracle against published answers and against JAX, and its independence."""

import ast
import pathlib
import sys

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropout_jax import reference

ONES = 0xFFFFFFFF


# Random123 1.14, tests/kat_vectors: rounds, counter, key, result.
@pytest.mark.parametrize(
    ("rounds", "counter", "key", "result"),
    [
        (20, (0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        (20, (ONES, ONES), (ONES, ONES), (0x1CB996FC, 0xBB002BE7)),
        (20, (0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
        (13, (0, 0), (0, 0), (0x9D1C5EC6, 0x8BD50731)),
        (13, (ONES, ONES), (ONES, ONES), (0xFD36D048, 0x2D17272C)),
        (13, (0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xBA3E4725, 0xF27D669E)),
    ],
)
def test_threefry_gives_the_random123_known_answers(rounds, counter, key, result):
    assert tuple(int(word) for word in reference.threefry2x32(key, counter, rounds)) == result


@given(seed=st.integers(0, 2**31 - 1), data=st.integers(0, 2**32 - 1))
def test_fold_in_is_jaxs(seed, data):
    key = jax.random.key(seed)
    ours = reference.fold_in(jax.random.key_data(key), data)
    np.testing.assert_array_equal(ours, jax.random.key_data(jax.random.fold_in(key, data)))


@given(seed=st.integers(-(2**31), 2**31 - 1), count=st.integers(1, 50))
def test_key_and_split_are_jaxs(seed, count):
    key = jax.random.key(seed)
    ours = reference.prng_key(seed % 2**32)
    np.testing.assert_array_equal(ours, jax.random.key_data(key))
    theirs = jax.random.key_data(jax.random.split(key, count))
    np.testing.assert_array_equal(reference.split(ours, count), theirs)


def test_a_seed_of_64_bits_is_jaxs():
    with jax.enable_x64(True):
        theirs = jax.random.key_data(jax.random.key(2**40 + 3))
    np.testing.assert_array_equal(reference.prng_key(2**40 + 3), theirs)


@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_bits_are_jaxs(width, key):
    with jax.enable_x64(True):
        theirs = jax.random.bits(key, (3, 50), f"uint{width}")
    np.testing.assert_array_equal(words_of(key, (3, 50), width), theirs)


def words_of(key, shape, width):
    return reference.random_bits(np.asarray(jax.random.key_data(key)), shape, width)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_uniform_and_bernoulli_are_jaxs(dtype, key):
    words = np.asarray(jax.random.key_data(key))
    with jax.enable_x64(True):
        uniform = jax.random.uniform(key, (3, 50), dtype)
        kept = jax.random.bernoulli(key, dtype(1 - 0.3), (3, 50))
    np.testing.assert_array_equal(reference.random_uniform(words, (3, 50), dtype), uniform)
    ours = reference.random_bernoulli(words, 1 - 0.3, (3, 50), dtype)
    np.testing.assert_array_equal(ours, kept)


@pytest.mark.parametrize(
    ("rate", "threshold"),
    [
        *[(0.0, 2**32), (0.5, 2**31), (0.25, 3 * 2**30), (1.0, 0), (2**-25, 2**32)],
        *[(0.1, 0xE6666600), (2**-24, 2**32 - 2**8), (1 - 2**-24, 2**8)],
    ],
)
def test_threshold_by_hand(rate, threshold):
    assert reference.threshold(rate) == threshold


def test_oracle_imports_numpy_and_the_standard_library_only():
    tree = ast.parse(pathlib.Path(reference.__file__).read_text())
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    packages = {name.partition(".")[0] for name in imported}
    assert packages - sys.stdlib_module_names == {"numpy"}
