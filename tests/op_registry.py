"""One registry of ops, shared by the tests and the benchmarks.

A row is an op as fn(x, rate, *, key), its NumPy twin, and what is known of it in closed form. The
closed forms are written here by hand, in float64, and use neither the package nor the oracle.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import dropout_jax
from dropout_jax import reference

ALPHA = -1.7580993408473766  # SELU's saturation, as published
OLD = 0.25  # the previous state of the zoneout row
BLOCK = 2


def kept_share(rate):
    """The exact probability of keeping: 1 - rate in float32."""
    return float(np.float32(1) - np.float32(rate))


def groups(mask_shape, shape):
    """For every element, which decision it follows."""
    names = np.arange(int(np.prod(mask_shape))).reshape(mask_shape)
    return np.broadcast_to(names, shape).ravel()


def same_decision(own, shape):
    """1 where two elements share a decision: there is one for each index along the axes `own`."""
    own = {axis % len(shape) for axis in own}
    group = groups([n if axis in own else 1 for axis, n in enumerate(shape)], shape)
    return (group[:, None] == group).astype(float)


def inverted(own):
    """Mean x, covariance x_i x_j p / q for a shared decision."""

    def moments(x, rate):
        q, flat = kept_share(rate), x.ravel()
        return flat, np.outer(flat, flat) * (1 - q) / q * same_decision(own(x), x.shape)

    return moments


def two_valued(own, kept, dropped):
    """Mean q a + p b, covariance p q (a - b)_i (a - b)_j for values a kept and b dropped."""

    def moments(x, rate):
        q = kept_share(rate)
        a, b = (np.broadcast_to(value(x, q), x.shape).ravel() for value in (kept, dropped))
        spread = np.outer(a - b, a - b) * q * (1 - q)
        return q * a + (1 - q) * b, spread * same_decision(own(x), x.shape)

    return moments


def every_axis(x):
    return range(x.ndim)


def alpha_scale(q):
    return (q + ALPHA**2 * q * (1 - q)) ** -0.5


ALPHA_KEPT = (
    lambda x, q: alpha_scale(q) * (x - ALPHA * (1 - q)),
    lambda x, q: alpha_scale(q) * (ALPHA - ALPHA * (1 - q)),
)


def gaussian_moments(x, rate):
    flat = x.ravel()
    return flat, np.diag(flat**2 * rate / (1 - rate))


def where_of(x):
    """Padding for the masked row: every third element."""
    return (np.arange(x.size) % 3 != 2).reshape(x.shape)


def masked_moments(x, rate):
    q, flat = kept_share(rate), x.ravel()
    return flat, np.diag(flat**2 * (1 - q) / q * where_of(x).ravel())


def multi_moments(x, rate):
    mean, covariance = inverted(every_axis)(x, rate)
    return mean, covariance / 4


def block_moments(x, rate):
    """P(i and j kept) = (1 - gamma)^(blocks that cover i or j), one row and channel at a time."""
    batch, n, channels = x.shape
    gamma = rate / BLOCK * n / (n - BLOCK + 1)
    keep = kept_share(gamma)
    first = np.arange(n - BLOCK + 1)
    position = np.arange(n)[:, None]
    covered = (first <= position) & (position < first + BLOCK)
    either = (covered[:, None] | covered).sum(-1)
    alone = keep ** covered.sum(-1)
    ratio = keep**either / np.outer(alone, alone) - 1
    flat = x.ravel()
    indices = np.arange(x.size).reshape(x.shape)
    covariance = np.zeros((x.size, x.size))
    for row in range(batch):
        for channel in range(channels):
            index = indices[row, :, channel]
            covariance[np.ix_(index, index)] = ratio
    return flat, covariance * np.outer(flat, flat)


@dataclass(frozen=True)
class Op:
    """An op and what is known of it."""

    name: str
    fn: Callable
    oracle: Callable
    moments: Callable  # (x, rate) -> mean and covariance of the flat output
    shapes: tuple[tuple[int, ...], ...] = ((3, 33), (2, 5, 64))
    small: tuple[int, ...] = (2, 3, 4)  # for covariances
    ulps: int = 0  # 0: bit for bit in float32; else of the largest output
    at_one: Callable = np.zeros_like  # what rate 1 gives
    evaluation: Callable | None = None  # (x, rate) -> what key=None gives; None: x itself
    zeroes: bool = True  # a dropped element is 0
    linear: bool = True  # in x, so its gradient is the op itself on the cotangent
    shared: bool = True  # has a mask of fewer decisions than elements
    complex_too: bool = True

    def __str__(self):
        return self.name


def _op(name, moments, *, label=None, ours=None, twin=None, options=None, **known):
    """A row whose function and twin have the same name and options."""
    options = options or {}
    ours = ours or getattr(dropout_jax, name)
    twin = twin or getattr(reference, name)
    return Op(
        label or name,
        lambda x, rate, *, key: ours(x, rate, key=key, **options),
        lambda x, rate, *, key: twin(x, rate, key=key, **options),
        moments,
        **known,
    )


def _ten(x):
    return 10 * x


def own(*axes):
    return lambda x: axes


OPS = [
    _op(
        "dropout",
        inverted(every_axis),
        shapes=((), (7,), (3, 33), (2, 5, 64), (4, 3, 2, 40)),
        shared=False,
    ),
    _op("dropout", inverted(own(1, 2)), label="dropout-rows", options={"broadcast_dims": (0,)}),
    _op("dropout", inverted(own(0, 1)), label="dropout-last", options={"broadcast_dims": (-1,)}),
    _op(
        "dropout_unscaled",
        two_valued(every_axis, lambda x, q: x, lambda x, q: 0),
        evaluation=lambda x, rate: reference.dropout_unscaled(x, rate, key=None),
        shared=False,
    ),
    _op("spatial_dropout", inverted(own(0, -1))),
    _op(
        "spatial_dropout",
        inverted(own(1)),
        label="spatial_dropout-first",
        options={"channel_axis": 1, "batch_axis": None},
    ),
    _op(
        "alpha_dropout",
        two_valued(every_axis, *ALPHA_KEPT),
        ulps=4,
        zeroes=False,
        linear=False,
        shared=False,
        complex_too=False,
    ),
    _op(
        "alpha_dropout",
        two_valued(own(0, 2), *ALPHA_KEPT),
        label="alpha_dropout-feature",
        options={"broadcast_dims": (1,)},
        shapes=((2, 5, 64),),
        ulps=4,
        zeroes=False,
        linear=False,
        complex_too=False,
    ),
    _op(
        "gaussian_dropout",
        gaussian_moments,
        ulps=64,  # of XLA's inverse error function in float32
        zeroes=False,
        shared=False,
        complex_too=False,
    ),
    _op("drop_path", inverted(own(0))),
    _op("drop_path", inverted(own()), label="drop_path-batch", options={"mode": "batch"}),
    _op(
        "drop_path",
        two_valued(own(0), lambda x, q: x, lambda x, q: 0),
        label="drop_path-unscaled",
        options={"scale": False},
    ),
    _op("drop_connect", inverted(every_axis), shared=False),
    _op(
        "drop_block",
        block_moments,
        options={"block_size": BLOCK},
        shapes=((2, 9, 5), (1, 6, 7, 33), (2, 3, 4, 5, 2)),
        small=(2, 5, 2),
        ulps=2,
        complex_too=False,
    ),
    _op("token_dropout", inverted(own(0, 1))),
    _op("embedding_dropout", inverted(own(0)), shapes=((3, 33), (100, 8))),
    _op("locked_dropout", inverted(own(0, 2))),
    _op("head_dropout", inverted(own(0, 1)), options={"head_axis": 1}),
    Op(
        "zoneout",
        lambda x, rate, *, key: dropout_jax.zoneout(x, x * 0 + x.dtype.type(OLD), rate, key=key),
        lambda x, rate, *, key: reference.zoneout(x, np.full_like(x, OLD), rate, key=key),
        two_valued(every_axis, lambda x, q: x, lambda x, q: OLD),
        at_one=lambda x: np.full_like(x, OLD),
        evaluation=lambda x, rate: reference.zoneout(x, np.full_like(x, OLD), rate, key=None),
        zeroes=False,
        linear=False,
        shared=False,
    ),
    Op(
        "layer_drop",
        lambda x, rate, *, key: dropout_jax.layer_drop(_ten, x, rate, key=key),
        lambda x, rate, *, key: reference.layer_drop(_ten, x, rate, key=key),
        two_valued(own(), lambda x, q: 10 * x, lambda x, q: x),
        at_one=lambda x: x,
        evaluation=lambda x, rate: 10 * x,
        zeroes=False,
    ),
    Op(
        "masked_dropout",
        lambda x, rate, *, key: dropout_jax.masked_dropout(x, rate, where_of(x), key=key),
        lambda x, rate, *, key: reference.masked_dropout(x, rate, where_of(x), key=key),
        masked_moments,
        at_one=lambda x: np.where(where_of(x), 0, x),
        zeroes=False,
        shared=False,
    ),
    Op(
        "multi_sample_dropout",
        lambda x, rate, *, key: dropout_jax.multi_sample_dropout(
            lambda x: x, x, rate, key=key, samples=4
        ),
        lambda x, rate, *, key: reference.multi_sample_dropout(
            lambda x: x, x, rate, key=key, samples=4
        ),
        multi_moments,
        ulps=2,
        zeroes=False,
        shared=False,
    ),
]


# One op of each family, of those that share most of their code.
FAMILIES = ("dropout", "alpha_dropout", "gaussian_dropout", "drop_block", "zoneout", "layer_drop")


def sample(shape, dtype="float32", seed=0):
    """Standard normals of a dtype, the same for every caller."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)
