"""Statistics of the mask: exact binomial counts, correlations, and controls that must fail.

Bounds: |z| < 4.9 for each check, which a right mask misses about once in a million.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dropout_jax import fold, keep_mask
from dropout_jax.random import _masks as masks

LIMIT = 4.9
P_LIMIT = 2 * stats.norm.sf(LIMIT)


@jax.jit(static_argnums=2)
def kept(key, rate, shape):
    """How many elements are kept, counted in the words (for a packed axis of whole words)."""
    words = draw_words(key, rate, shape)
    return jax.lax.population_count(words).astype(jnp.int32).sum(-1)


def draw_words(key, rate, shape):
    return masks.draw_packed_mask(masks.mask_params(key, jnp.float32(rate)), shape)


def kept_share(rate):
    return float(np.float32(1) - np.float32(rate))


def z_of_count(count, draws, probability):
    return (count - draws * probability) / np.sqrt(draws * probability * (1 - probability))


def z_of_correlation(a, b, rate):
    """z of the mean product of two centred masks: mean 0, standard deviation pq / sqrt(n)."""
    p = 1 - rate
    a, b = np.ravel(a) - p, np.ravel(b) - p
    return (a * b).mean() * np.sqrt(a.size) / (p * (1 - p))


RATES = [1e-4, 3e-4, 1e-3, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15]
RATES += [0.2, 0.25, 0.3, 1 / 3, 0.5, 0.7, 0.8, 0.9, 0.99, 0.999]


@pytest.mark.slow
@pytest.mark.parametrize("rate", RATES)
def test_counts_follow_the_exact_binomial(key, rate):
    """2^30 draws: a probability that is off by 2^-16 is off by 0.5 sigma at rate 0.5, and is
    noticed at 1e-4 and 0.999, where it is 50 and 16 sigma."""
    shape, draws = (1 << 15, 1 << 15), 1 << 30
    count = int(np.asarray(kept(fold(key, "count"), rate, shape), np.int64).sum())
    assert stats.binomtest(count, draws, kept_share(rate)).pvalue > P_LIMIT


@jax.jit(static_argnums=2)
def count_pairs(key, rate, shape):
    """How many elements are kept, and how many pairs at each distance within a word are."""
    words = draw_words(key, rate, shape)
    rotated = [words, *((words >> n) | (words << (32 - n)) for n in range(1, 32))]
    counts = [jax.lax.population_count(words & other).astype(jnp.int32).sum() for other in rotated]
    return jnp.stack(counts)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.001, 0.02, 0.1, 0.5])
def test_elements_of_a_word_are_uncorrelated_at_every_distance(key, rate):
    """2^32 draws: the covariance, at most 2^-32, is far below sigma, q (1 - q) / 2^16."""
    shape, draws, q = (1 << 14, 1 << 14), 1 << 32, kept_share(rate)
    parts = [count_pairs(fold(key, i), rate, shape) for i in range(16)]
    counts = np.stack(parts).astype(np.int64).sum(0)
    covariance = counts[1:] / draws - 2 * q * counts[0] / draws + q**2
    assert np.abs(covariance * np.sqrt(draws) / (q * (1 - q))).max() < LIMIT


def test_counts_of_small_masks_have_the_binomials_spread(key):
    """2000 masks of 640: chi-square of their counts against the binomial in ten equal classes."""
    keys = jax.random.split(key, 2000)
    counts = np.asarray(jax.vmap(lambda k: kept(k, 0.3, (10, 64)).sum())(keys))
    law = stats.binom(640, kept_share(0.3))
    edges = law.ppf(np.linspace(0, 1, 11)[1:-1])
    observed = np.bincount(np.searchsorted(edges, counts), minlength=10)
    shares = np.diff(np.concatenate([[0], law.cdf(edges), [1]]))
    assert stats.chisquare(observed, shares * 2000).pvalue > P_LIMIT


@pytest.mark.slow
def test_a_rate_off_by_a_thousandth_is_noticed(key):
    """Control: 2^30 draws at 0.1001 are far from 0.1 (expected z is -10.9), and at 0.1 are not."""
    shape, draws = (1 << 15, 1 << 15), 1 << 30
    probability = kept_share(0.1)
    right = np.asarray(kept(key, 0.1, shape), np.int64).sum()
    wrong = np.asarray(kept(key, 0.1001, shape), np.int64).sum()
    assert abs(z_of_count(right, draws, probability)) < LIMIT
    assert abs(z_of_count(wrong, draws, probability)) > LIMIT


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_no_correlation_along_rows_columns_words_and_planes(key, rate):
    mask = np.asarray(keep_mask(key, rate, (1000, 1024)))
    for lag in (1, 2, 3, 7, 31, 32, 33, 64, 256, 512):
        assert abs(z_of_correlation(mask[:, lag:], mask[:, :-lag], rate)) < LIMIT, lag
        assert abs(z_of_correlation(mask[lag:], mask[:-lag], rate)) < LIMIT, lag
    assert abs(z_of_correlation(mask.reshape(-1)[1:], mask.reshape(-1)[:-1], rate)) < LIMIT


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_no_correlation_between_keys(key, rate):
    shape = (200, 1024)
    paths = [("a",), ("b",), ("block", 0), ("block", 1), ("block", 0, "x"), (0,), (1,), (2,)]
    masks_of_keys = [np.asarray(keep_mask(fold(key, *path), rate, shape)) for path in paths]
    masks_of_keys += [np.asarray(keep_mask(jax.random.key(seed), rate, shape)) for seed in range(4)]
    for i, first in enumerate(masks_of_keys):
        for second in masks_of_keys[:i]:
            assert abs(z_of_correlation(first, second, rate)) < LIMIT


def test_a_reused_key_is_noticed(key):
    """Control: the same key gives the same mask, and so does a longer row where they overlap."""
    first = np.asarray(keep_mask(key, 0.1, (200, 512)))
    again = np.asarray(keep_mask(key, 0.1, (200, 1024)))[:, :512]
    assert z_of_correlation(first, again, 0.1) > LIMIT


def test_each_bit_of_a_word_and_each_column_has_the_rate(key):
    mask = np.asarray(keep_mask(key, 0.1, (20000, 256)))
    worst = np.abs(z_of_count(mask.sum(0), 20000, kept_share(0.1))).max()
    assert worst < LIMIT


def test_pairs_of_neighbours_are_independent(key):
    """Chi-square of the 16 patterns of four neighbours."""
    mask = np.asarray(keep_mask(key, 0.3, (4000, 1024))).reshape(-1, 4)
    observed = np.bincount(mask @ (1, 2, 4, 8), minlength=16)
    p = kept_share(0.3)
    ones = np.array([bin(i).count("1") for i in range(16)])
    expected = p**ones * (1 - p) ** (4 - ones) * len(mask)
    assert stats.chisquare(observed, expected).pvalue > P_LIMIT
