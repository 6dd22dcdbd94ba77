"""What the registry cannot say of the structured ops: ids, blocks and their realised rate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow
from op_registry import sample

from dropout_jax import drop_block, embedding_dropout, head_dropout, reference, token_dropout


def words(key):
    return np.asarray(jax.random.key_data(key))


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int16"])
@pytest.mark.parametrize("traced", [False, True])
def test_ids_are_replaced_and_nothing_else(dtype, traced, key):
    ids = np.arange(1, 121).reshape(3, 40).astype(dtype)
    call = jax.jit(lambda x, r: token_dropout(x, r, fill=0, key=key)) if traced else None
    for rate in (0.0, 0.3, 1.0):
        got = call(ids, rate) if call else token_dropout(ids, rate, fill=0, key=key)
        assert got.dtype == dtype
        expected = reference.token_dropout(ids, rate, fill=0, key=words(key))
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(token_dropout(ids, 0.3, fill=0, key=None), ids)


def test_ids_at_a_traced_rate_out_of_range_are_not_quietly_kept(key):
    ids = jnp.arange(5)
    got = jax.jit(lambda r: token_dropout(ids, r, fill=0, key=key))(1.5)
    assert (got == np.iinfo(np.int32).min).all()


def test_a_dropped_word_is_dropped_everywhere(key):
    table = embedding_dropout(jnp.ones((50, 4)), 0.5, key=key)
    text = jnp.array([[3, 7, 3], [7, 3, 9]])
    vectors = table[text]
    np.testing.assert_array_equal(vectors[0, 0], vectors[1, 1])
    np.testing.assert_array_equal(vectors[0, 1], vectors[1, 0])


def test_head_axis_zero_has_no_batch(key):
    y = np.asarray(head_dropout(jnp.ones((40, 3, 2)), 0.5, head_axis=0, key=key))
    assert set(y.reshape(40, -1).min(1)) == set(y.reshape(40, -1).max(1)) == {0.0, 2.0}


@pytest.mark.parametrize(
    ("shape", "block"),
    [slow((40, 20, 8), 3), slow((10, 12, 14, 8), 4), ((8, 8, 8, 8, 4), (2, 3, 1))],
)
def test_blocks_are_whole_and_their_rate_is_ghiasis(shape, block, key):
    """The share dropped is 1 - mean(P), a little below the rate; its deviation is over rows."""
    rate, spatial = 0.2, shape[1:-1]
    blocks = np.broadcast_to(block, len(spatial))
    keys = jax.random.split(key, 50)
    call = jax.vmap(lambda k: drop_block(jnp.ones(shape), rate, block, key=k, scale_by_keep=False))
    dropped = np.asarray(call(keys)) == 0
    gamma = reference.block_gamma(rate, spatial, blocks)
    covers = np.ones(spatial)
    for axis, (n, b) in enumerate(zip(spatial, blocks, strict=True)):
        index = np.arange(n)
        count = np.minimum(index, n - b) - np.maximum(index - b + 1, 0) + 1
        covers *= count.reshape([-1 if i == axis else 1 for i in range(len(spatial))])
    expected = 1 - ((1 - gamma) ** covers).mean()
    shares = dropped.mean(axis=tuple(range(2, dropped.ndim - 1)))  # by key, row, channel
    z = (shares.mean() - expected) / (shares.std() / np.sqrt(shares.size))
    assert abs(z) < 4.9
    assert 0.75 * rate < expected < rate
    borders = dropped[:, :, 0].mean() < dropped[:, :, spatial[0] // 2].mean()
    assert borders or blocks[0] == 1  # fewer blocks can cover a border


def test_a_single_block_is_where_its_seed_is(key):
    x = jnp.ones((64, 9, 9, 1))
    dropped = np.asarray(drop_block(x, 0.02, 3, key=key, scale_by_keep=False)) == 0
    alone = [image for image in dropped[..., 0] if image.sum() == 9]
    assert alone
    for image in alone:
        rows, columns = np.nonzero(image)
        assert np.ptp(rows) == np.ptp(columns) == 2


def test_block_of_one_is_dropout_of_elements(key):
    """With blocks of size 1, gamma is the rate, and the scale is dropout's."""
    from dropout_jax import dropout

    x = sample((2, 6, 7, 33))
    np.testing.assert_array_equal(drop_block(x, 0.3, 1, key=key), dropout(x, 0.3, key=key))


@pytest.mark.parametrize("shared", [(-1,), (0,), (0, -1)])
def test_channels_and_rows_may_have_the_same_blocks(shared, key):
    x = sample((3, 9, 8, 5))
    options = {"broadcast_dims": shared}
    expected = reference.drop_block(x, 0.3, 3, key=jax.random.key_data(key), **options)
    y = np.asarray(drop_block(x, 0.3, 3, key=key, **options))
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    dropped = y == 0
    for axis in shared:
        assert (dropped == dropped.take([0], axis)).all()


def test_blocks_are_not_shared_along_space(key):
    with pytest.raises(ValueError, match="broadcast_dims"):
        drop_block(sample((3, 9, 8, 5)), 0.3, 3, key=key, broadcast_dims=(1,))


def test_drop_block_needs_no_collective_and_no_other_row(key):
    """A row's output does not depend on the other rows (Ghiasi et al.'s normalisation does)."""
    x = sample((4, 9, 9, 3))
    whole = drop_block(x, 0.3, 3, key=key)
    other = drop_block(np.concatenate([x[:2], x[:2] * 7]), 0.3, 3, key=key)
    np.testing.assert_array_equal(whole[:2], other[:2])
