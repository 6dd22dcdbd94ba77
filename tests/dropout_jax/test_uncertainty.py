"""Monte Carlo dropout, and its measures of uncertainty against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import temporary_bytes
from op_registry import sample
from scipy import special, stats

import dropout_jax as dj

STACK = special.softmax(sample((20, 30, 5)), axis=-1).astype(np.float32)


@pytest.mark.slow
def test_samples_are_passes_with_folded_keys_and_one_compilation(key):
    x, traces = jnp.ones((3, 4)), []

    def predict(key):
        traces.append(1)
        return {"y": dj.dropout(x, 0.5, key=key), "n": x.sum()}

    for batch_size in (None, 1, 4, 5, 100):
        traces.clear()
        got = dj.mc_dropout(predict, key, 10, batch_size=batch_size)
        assert len(traces) <= 2  # lax.map traces a remainder of another size once more
        loop = [dj.dropout(x, 0.5, key=dj.fold(key, i)) for i in range(10)]
        np.testing.assert_array_equal(got["y"], jnp.stack(loop))
        assert got["n"].shape == (10,)


@pytest.mark.slow
def test_chunks_bound_the_memory(key):
    x = jnp.ones((64, 1024))

    def predict(key):
        return dj.dropout(x, 0.5, key=key).sum()

    def temporaries(batch_size):
        fn = jax.jit(lambda k: dj.mc_dropout(predict, k, 256, batch_size=batch_size))
        return temporary_bytes(fn.lower(key).compile())

    assert temporaries(4) * 8 < temporaries(None)


def test_mean_and_deviation():
    mean, std = dj.predictive_mean_and_std(STACK)
    np.testing.assert_allclose(mean, STACK.mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, STACK.std(0), rtol=1e-4)


def test_entropies_are_scipys():
    total = stats.entropy(STACK.mean(0), axis=-1)
    data = stats.entropy(STACK, axis=-1).mean(0)
    np.testing.assert_allclose(dj.predictive_entropy(STACK), total, rtol=1e-5)
    np.testing.assert_allclose(dj.expected_entropy(STACK), data, rtol=1e-5)
    np.testing.assert_allclose(dj.mutual_information(STACK), total - data, atol=1e-6)
    certain = np.eye(3, dtype=np.float32)[None, :1]
    assert dj.predictive_entropy(certain) == 0
    assert (dj.mutual_information(np.repeat(STACK[:1], 4, 0)) < 1e-6).all()


def test_variation_ratio_counts_votes():
    votes = STACK.argmax(-1)
    expected = 1 - stats.mode(votes, axis=0).count / len(votes)
    np.testing.assert_allclose(dj.variation_ratio(STACK), expected, atol=1e-6)


def test_everything_runs_under_jit():
    measures = (dj.predictive_entropy, dj.mutual_information, dj.variation_ratio)
    for measure in measures:
        np.testing.assert_allclose(jax.jit(measure)(STACK), measure(STACK), rtol=1e-5, atol=1e-6)


def test_nan_gives_nan():
    assert jnp.isnan(dj.variation_ratio(np.full((3, 2), np.nan, np.float32)))


def test_gradient_of_the_deviation_is_finite_where_samples_agree():
    slope = jax.grad(lambda y: dj.predictive_mean_and_std(y)[1].sum())(jnp.ones((4, 3)))
    np.testing.assert_array_equal(slope, 0)
