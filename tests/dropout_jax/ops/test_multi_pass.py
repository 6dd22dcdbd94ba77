"""Several passes: the mean over masks, and the divergence of two."""

import jax
import jax.numpy as jnp
import numpy as np
from op_registry import sample
from scipy import stats

from dropout_jax import dropout, fold, multi_sample_dropout, r_drop_divergence, reference


def test_any_pytree_is_averaged(key):
    x = jnp.asarray(sample((4, 6)))

    def head(x):
        return {"sum": x.sum(), "max": x.max(-1)}

    got = multi_sample_dropout(head, x, 0.4, key=key, samples=3)
    passes = [head(dropout(x, 0.4, key=fold(key, i))) for i in range(3)]
    np.testing.assert_allclose(got["sum"], np.mean([p["sum"] for p in passes]), rtol=1e-5)
    np.testing.assert_allclose(got["max"], np.mean([p["max"] for p in passes], 0), rtol=1e-6)
    assert multi_sample_dropout(head, x, 0.4, key=None, samples=3)["sum"] == x.sum()


def test_one_sample_is_one_pass(key):
    x = jnp.asarray(sample(40))
    got = multi_sample_dropout(lambda x: x, x, 0.4, key=key, samples=1)
    np.testing.assert_array_equal(got, dropout(x, 0.4, key=fold(key, 0)))


def test_divergence_is_scipys_and_the_oracles():
    a, b = sample((7, 5)), sample((7, 5), seed=1)
    got = r_drop_divergence(a, b)
    p, q = (np.asarray(jax.nn.softmax(logits)) for logits in (a, b))
    np.testing.assert_allclose(
        got, (stats.entropy(p, q, axis=1) + stats.entropy(q, p, axis=1)) / 2, rtol=1e-5
    )
    np.testing.assert_allclose(got, reference.r_drop_divergence(a, b), rtol=1e-5)
    np.testing.assert_array_equal(r_drop_divergence(a, a), 0)
    np.testing.assert_allclose(got, r_drop_divergence(b, a), rtol=1e-6)


def test_excluded_classes_add_nothing_and_have_finite_gradients():
    a = jnp.array([1.0, 2.0, -jnp.inf])
    b = jnp.array([2.0, 1.0, -jnp.inf])
    np.testing.assert_allclose(r_drop_divergence(a, b), r_drop_divergence(a[:2], b[:2]), rtol=1e-6)
    assert jnp.isfinite(jax.grad(r_drop_divergence)(a, b)[:2]).all()
    assert r_drop_divergence(a, jnp.ones(3)) == jnp.inf
