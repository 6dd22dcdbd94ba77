"""The ops that PyTorch has too: the same statistics, with PyTorch really run.

Two samples, ours and theirs, are compared: the share of zeros, mean and variance by z (|z| < 4.9),
and the whole distribution of row sums by Kolmogorov and Smirnov.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from marks import slow
from op_registry import sample
from scipy import stats
from torch.nn import functional as F  # noqa: N812

from dropout_jax import alpha_dropout, dropout, fold, spatial_dropout

DRAWS, RATE = 4000, 0.3
P_LIMIT = 2 * stats.norm.sf(4.9)

X = sample((2, 3, 4, 5)) + 1


def attention_weights(values, key):
    """Drop the weights of one attention row over 40 keys, as SDPA's math path does."""
    weights = jax.nn.softmax(jnp.zeros((1, 1, 1, 40)))
    return dropout(weights, RATE, key=key) @ values


def torch_attention(values):
    query = torch.zeros(1, 1, 1, 8)
    keys = torch.zeros(1, 1, 40, 8)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, keys, values, dropout_p=RATE)


def channels_first(x, key, axes):
    x = x.reshape(x.shape[0], x.shape[1], *axes)
    return spatial_dropout(x, RATE, key=key, channel_axis=1)


PAIRS = {
    "dropout": (
        X,
        lambda x, key: dropout(x, RATE, key=key),
        lambda x: F.dropout(x, RATE),
    ),
    "dropout1d": (
        X.reshape(2, 3, 20),
        lambda x, key: channels_first(x, key, (20,)),
        lambda x: F.dropout1d(x, RATE),
    ),
    "dropout2d": (
        X,
        lambda x, key: channels_first(x, key, (4, 5)),
        lambda x: F.dropout2d(x, RATE),
    ),
    "dropout3d": (
        X.reshape(2, 3, 4, 5, 1),
        lambda x, key: channels_first(x, key, (4, 5, 1)),
        lambda x: F.dropout3d(x, RATE),
    ),
    "alpha_dropout": (
        X,
        lambda x, key: alpha_dropout(x, RATE, key=key),
        lambda x: F.alpha_dropout(x, RATE, training=True),
    ),
    "feature_alpha_dropout": (
        X,
        lambda x, key: alpha_dropout(x, RATE, key=key, broadcast_dims=(2, 3)),
        lambda x: F.feature_alpha_dropout(x, RATE, training=True),
    ),
    "scaled_dot_product_attention": (
        sample((1, 1, 40, 6)),
        lambda x, key: attention_weights(x, key),
        lambda x: torch_attention(x),
    ),
}


def agree(ours, theirs):
    """Whether all statistics of two samples, (draws, elements), agree."""
    centre = theirs.mean(0)
    for statistic in (lambda y: y, lambda y: (y - centre) ** 2, lambda y: (y == 0).astype(float)):
        a, b = statistic(ours), statistic(theirs)
        spread = np.sqrt((a.var(0) + b.var(0)) / len(a))
        if (abs(a.mean(0) - b.mean(0)) > 4.9 * spread + 1e-6).any():
            return False
    # Rounded: sums of few values are atoms, and the two scales differ by 2e-6.
    ours_sum, theirs_sum = (np.round(y.sum(1), 2) for y in (ours, theirs))
    _, p_value = stats.ks_2samp(ours_sum, theirs_sum)
    return p_value > P_LIMIT


@pytest.mark.parametrize(
    "name", [slow(name) if name in ("dropout2d", "dropout3d") else name for name in PAIRS]
)
def test_statistics_agree_with_pytorch(name, key):
    x, ours, theirs = PAIRS[name]
    keys = jax.random.split(fold(key, name), DRAWS)
    got = np.asarray(jax.vmap(lambda k: ours(jnp.asarray(x), k))(keys), np.float64)
    torch.manual_seed(0)
    tensor = torch.from_numpy(x)
    expected = np.stack([theirs(tensor).numpy() for _ in range(DRAWS)]).astype(np.float64)
    got, expected = got.reshape(DRAWS, -1), expected.reshape(DRAWS, -1)
    assert agree(got, expected)
    assert not agree(got * 1.1, expected)  # controls: another scale, and another rate
    wrong = np.asarray(jax.vmap(lambda k: dropout(x, 0.25, key=k))(keys), np.float64)
    if wrong[0].size == expected[0].size:
        assert not agree(wrong.reshape(DRAWS, -1), expected)


def test_alphas_constants_are_pytorchs():
    """torch.nn.functional.alpha_dropout of zeros takes just two values, a alpha' + b and b."""
    torch.manual_seed(0)
    theirs = np.unique(F.alpha_dropout(torch.zeros(1000), RATE, training=True).numpy())
    ours = np.unique(alpha_dropout(jnp.zeros(1000), RATE, key=jax.random.key(0)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    q = 1 - RATE
    a = (q + 1.7580993408473766**2 * q * (1 - q)) ** -0.5
    b = a * 1.7580993408473766 * (1 - q)
    np.testing.assert_allclose(ours, [b - a * 1.7580993408473766, b], rtol=1e-4)


def test_alpha_keeps_mean_zero_and_variance_one(key):
    y = np.asarray(alpha_dropout(sample((1000, 1000)), RATE, key=key), np.float64)
    assert abs(y.mean()) < 4.9 / 1000 * 1.1
    assert abs(y.var() - 1) < 4.9 * np.sqrt(3 / y.size) * 1.5
