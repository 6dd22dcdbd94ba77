"""Keys by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropout_jax import fold


def words(key):
    return tuple(int(word) for word in jax.random.key_data(key))


def test_fold_is_stable_for_ever(key):
    # First four bytes of sha256(b"block"), by `printf block | sha256sum`; then 3.
    expected = jax.random.fold_in(jax.random.fold_in(key, 0x496ACA80), 3)
    assert words(fold(key, "block", 3)) == words(expected)


def test_fold_composes(key):
    assert words(fold(key, "a", 1, "b")) == words(fold(fold(key, "a"), 1, "b"))
    assert words(fold(key)) == words(key)


def test_paths_give_distinct_keys(key):
    paths = [(s, i, t) for s in ("embed", "block") for i in range(20) for t in ("attn", "mlp", "3")]
    paths += [(3,), ("3",), ("a", "b"), ("b", "a"), ("ab",)]
    assert len({words(fold(key, *path)) for path in paths}) == len(paths)


@pytest.mark.usefixtures("without_type_checker")
def test_none_passes_through_but_its_path_is_checked():
    assert fold(None, "block", 3) is None
    with pytest.raises(TypeError, match="path"):
        fold(None, 1.5)  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_traced_and_numpy_integers_equal_python_ones(key):
    traced = jax.jit(lambda i: fold(key, "block", i))(3)
    assert words(traced) == words(fold(key, "block", 3)) == words(fold(key, "block", np.int64(3)))
    assert words(fold(key, "block", jnp.uint32(3))) == words(traced)


def test_raw_keys_are_wrapped(key):
    assert words(fold(jax.random.key_data(key), "x")) == words(fold(key, "x"))


@pytest.mark.parametrize(
    ("part", "error"),
    [(1.5, TypeError), (True, TypeError), (None, TypeError), (-1, ValueError), (2**32, ValueError)],
)
@pytest.mark.usefixtures("without_type_checker")
def test_bad_parts_are_named(key, part, error):
    with pytest.raises(error, match=f"path={part!r} is not allowed"):
        fold(key, "block", part)
