"""How compare_frameworks.py calls each framework: a Peer, or the reason why it is missing."""

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

import dropout_jax
from dropout_jax import reference
from dropout_jax.parity import bernoulli, keys
from dropout_jax.parity import torch as parity


@dataclass(frozen=True)
class Peer:
    """The calls of a framework. Arrays go in and come out as NumPy's, bfloat16 by ml_dtypes."""

    ops: dict[str, Callable]  # "dropout", "spatial", ...: (x, rate, seed) -> y
    used: Callable  # rate -> the probability with which an element is kept
    switch: str  # how the caller chooses training or evaluation
    default_mode: Callable  # x -> y, where the caller does not choose
    evaluate: Callable  # x -> y
    backward: Callable | None = None  # (x, rate) -> gradient of the sum, bytes kept for it
    traced: Callable | None = None  # (x, rate, seed) -> y, the rate traced
    same: dict[str, Callable] = field(default_factory=dict)  # must agree bit for bit
    other: dict[str, Callable] = field(default_factory=dict)  # need not agree; see make_comparison


def call_without_key(dropout: Callable, x):
    """What a call does that leaves out the required key: a TypeError."""
    return dropout(x, 0.5)


def make_comparison(expected, actual):
    """(seed, rate, shape, dtype) -> two arrays, where one of them is all that the seed changes."""
    return lambda *case, wrong=0: (expected(case[0] + wrong, *case[1:]), actual(*case))


def make_mask(drop):
    """The mask: which ones stay positive."""
    return lambda seed, rate, shape, dtype: drop(np.ones(shape, dtype), rate, seed) > 0


def load_peers():
    """Every framework by name; a sentence in place of one that cannot be run."""
    peers = {}
    for name, build in FRAMEWORKS.items():
        try:
            peers[name] = build()
        except ImportError as error:  # of the package itself, or of what it needs
            missing = error.name == name.split()[0].split(".")[0]
            peers[name] = "not installed" if missing else str(error)
    return peers


def _on_jax(ops, *, traced=None, **known):
    """A framework on JAX, from ops on JAX's arrays."""

    def with_numpy(op):
        return lambda x, rate, seed: np.asarray(op(jnp.asarray(x), rate, seed))

    def backward(x, rate):
        y, pullback = jax.vjp(lambda x: ops["dropout"](x, rate, 0), jnp.asarray(x))
        saved_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(pullback))
        return np.asarray(pullback(jnp.ones_like(y))[0]), saved_bytes

    jitted = jax.jit(traced or ops["dropout"], static_argnums=2)
    run = {name: with_numpy(op) for name, op in ops.items()}
    for name in ("default_mode", "evaluate"):
        known[name] = (lambda call: lambda x: np.asarray(call(jnp.asarray(x))))(known[name])
    return Peer(run, backward=backward, traced=lambda *args: np.asarray(jitted(*args)), **known)


def _jax_family(ops, key_of, other=(), **known):
    """A framework that calls jax.random.bernoulli with the key that `key_of` makes of a seed."""

    def expected(seed, rate, shape, dtype):
        return np.asarray(bernoulli.keep_mask(key_of(seed), rate, shape))

    def drop(x, rate, seed):
        return np.asarray(ops["dropout"](jnp.asarray(x), rate, seed))

    return _on_jax(
        ops,
        used=lambda rate: math.ceil(float(np.float32(1 - rate)) * 2**23) / 2**23,
        same={"dropout, mask": make_comparison(expected, make_mask(drop))},
        other={
            name: make_comparison(make(drop), make_mask(drop)) for name, make in dict(other).items()
        },
        **known,
    )


def _with_x64(drop):
    def mask(*case):
        with jax.enable_x64(True):
            return make_mask(drop)(*case)

    return mask


def _op(module, key_of, name):
    fn = getattr(module, name)
    return lambda x, rate, seed: fn(x, rate, key=key_of(seed))


def _ops(module, key_of):
    names = {"dropout": "dropout", "spatial": "spatial_dropout", "alpha": "alpha_dropout"}
    return {short: _op(module, key_of, name) for short, name in names.items()}


def numpy():
    return Peer(
        _ops(reference, reference.prng_key),
        used=lambda rate: reference.threshold(rate) / 2**32,
        switch="`key=` a key, or None",
        default_mode=lambda x: call_without_key(reference.dropout, x),
        evaluate=lambda x: reference.dropout(x, 0.5, key=None),
    )


def ours():
    op = functools.partial(_op, dropout_jax, jax.random.key)

    def outputs(name, reshape: Callable = tuple):
        jitted, oracle = jax.jit(op(name)), getattr(reference, name)

        def expected(seed, rate, shape, dtype):
            return oracle(_normals(reshape(shape), dtype), rate, key=reference.prng_key(seed))

        def actual(seed, rate, shape, dtype):
            return np.asarray(jitted(_normals(reshape(shape), dtype), rate, seed))

        return make_comparison(expected, actual)

    def mask(seed, rate, shape, dtype):
        return np.asarray(dropout_jax.keep_mask(jax.random.key(seed), rate, shape))

    def oracle_mask(seed, rate, shape, dtype):
        return reference.keep_mask(reference.prng_key(seed), rate, shape)

    def jaxs_mask(seed, rate, shape, dtype):
        return np.asarray(bernoulli.keep_mask(jax.random.key(seed), rate, shape))

    drop = op("dropout")
    return _on_jax(
        _ops(dropout_jax, jax.random.key) | {"gaussian": op("gaussian_dropout")},
        used=lambda rate: reference.threshold(rate) / 2**32,
        switch="`key=` a key, or None; required",
        default_mode=lambda x: call_without_key(dropout_jax.dropout, x),
        evaluate=lambda x: dropout_jax.dropout(x, 0.5, key=None),
        same={
            "keep_mask, NumPy oracle": make_comparison(oracle_mask, mask),
            "dropout, output, NumPy oracle": outputs("dropout"),
            "spatial_dropout, output, NumPy oracle": outputs("spatial_dropout", _rows),
            "dropout, x64 on and off": make_comparison(_with_x64(drop), make_mask(drop)),
        },
        other={"keep_mask, jax.random.bernoulli of the same key": make_comparison(jaxs_mask, mask)},
    )


def _normals(shape, dtype):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def flax_nnx():
    from flax import nnx

    def drop(x, rate, seed, **options):
        rngs = nnx.Rngs(dropout=seed)
        return nnx.Dropout(rate, deterministic=False, rngs=rngs, **options)(x)

    return _jax_family(
        {"dropout": drop, "spatial": lambda *args: drop(*args, broadcast_dims=(1,))},
        lambda seed: keys.nnx(keys.nnx(jax.random.key(seed))),
        other={"dropout, x64 on and off": _with_x64},
        switch="`deterministic=`, of the layer or the call; `model.train()`, `model.eval()`",
        default_mode=lambda x: nnx.Dropout(0.5, rngs=nnx.Rngs(0))(x),
        evaluate=lambda x: nnx.Dropout(0.5, deterministic=True)(x),
    )


def flax_linen():
    from flax import linen

    def drop(x, rate, seed, **options):
        layer = linen.Dropout(rate, deterministic=False, **options)
        return layer.apply({}, x, rngs={"dropout": jax.random.key(seed)})

    return _jax_family(
        {"dropout": drop, "spatial": lambda *args: drop(*args, broadcast_dims=(1,))},
        lambda seed: keys.linen(jax.random.key(seed), ()),
        switch="`deterministic=`, of the layer or the call; required",
        default_mode=lambda x: linen.Dropout(0.5).apply({}, x, rngs={"dropout": jax.random.key(0)}),
        evaluate=lambda x: linen.Dropout(0.5, deterministic=True).apply({}, x),
    )


def equinox():
    import equinox

    def drop(x, rate, seed):
        return equinox.nn.Dropout(rate)(x, key=jax.random.key(seed))

    return _jax_family(
        {"dropout": drop},
        jax.random.key,
        switch="`inference=`, of the layer or the call; `inference_mode(model)`",
        default_mode=lambda x: drop(x, 0.5, 0),
        evaluate=lambda x: equinox.nn.Dropout(0.5, inference=True)(x),
    )


def haiku():
    import haiku

    def drop(x, rate, seed, **options):
        def model(x):
            return haiku.dropout(haiku.next_rng_key(), rate, x, **options)

        return haiku.transform(model).apply({}, jax.random.key(seed), x)

    return _jax_family(
        {"dropout": drop, "spatial": lambda *args: drop(*args, broadcast_dims=(1,))},
        lambda seed: keys.haiku(jax.random.key(seed)),
        switch="none: the caller leaves it out, or passes rate 0",
        default_mode=lambda x: drop(x, 0.5, 0),
        evaluate=lambda x: drop(x, 0.0, 0),
    )


def keras():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    if keras.backend.backend() != "jax":
        raise ImportError(f"runs on {keras.backend.backend()} here, not on jax")

    def op(name):
        def run(x, rate, seed):
            layer = getattr(keras.layers, name)(rate, seed=seed, dtype=x.dtype.name)
            return layer(x, training=True)

        return run

    names = {"Dropout": "dropout", "SpatialDropout1D": "spatial"}
    names |= {"AlphaDropout": "alpha", "GaussianDropout": "gaussian"}
    return _jax_family(
        {short: op(name) for name, short in names.items()},
        keys.keras,
        traced=lambda x, rate, seed: keras.random.dropout(x, rate, seed=seed),
        switch="`training=` of the call; `fit` and `predict` pass it on",
        default_mode=lambda x: keras.layers.Dropout(0.5, dtype=x.dtype.name)(x),
        evaluate=lambda x: keras.layers.Dropout(0.5, dtype=x.dtype.name)(x, training=False),
    )


def torch():
    import torch
    from torch.nn import functional

    def tensor(x):
        bits = x.dtype == jnp.bfloat16
        values = torch.from_numpy(np.array(x.view(np.int16) if bits else x))
        return values.view(torch.bfloat16) if bits else values

    def array(y):
        if y.dtype == torch.bfloat16:
            return y.detach().contiguous().view(torch.int16).numpy().view(jnp.bfloat16)
        return y.detach().numpy()

    def op(name, channels_last=False):
        def run(x, rate, seed):
            torch.manual_seed(seed)
            x = tensor(x).transpose(1, 2).contiguous() if channels_last else tensor(x)
            y = getattr(functional, name)(x, rate, training=True)
            return array(y.transpose(1, 2) if channels_last else y)

        return run

    def sdpa(seed, rate, shape, dtype):
        """The mask of equal attention weights; values that are the identity return the weights."""
        torch.manual_seed(seed)
        zeros = torch.zeros(shape[0], 2, 24, 24)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            weights = functional.scaled_dot_product_attention(
                zeros, zeros, torch.eye(24).expand_as(zeros), dropout_p=rate
            )
        return array(weights) != 0

    def backward(x, rate):
        saved_bytes = []
        x_tensor = tensor(x).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda saved: saved_bytes.append(saved.nbytes) or saved, lambda saved: saved
        ):
            y = functional.dropout(x_tensor, rate)
        (gradient,) = torch.autograd.grad(y.sum(), x_tensor)
        return array(gradient), sum(saved_bytes)

    def cpu_mask(seed, rate, shape, dtype):
        return parity.cpu_mask(seed, shape, rate)

    def channel_mask(seed, rate, shape, dtype):
        rows = _rows(shape)
        return np.broadcast_to(parity.cpu_mask(seed, (*rows[:2], 1), rate), rows)

    def by_rows(name):
        return lambda seed, rate, shape, dtype: make_mask(op(name))(seed, rate, _rows(shape), dtype)

    def output(seed, rate, shape, dtype):
        mask = parity.cpu_mask(seed, shape, rate)
        return parity.cpu_dropout(_normals(shape, dtype), mask, rate)

    same = {
        "dropout, mask": make_comparison(cpu_mask, make_mask(op("dropout"))),
        "dropout, output": make_comparison(
            output, lambda seed, rate, *rest: op("dropout")(_normals(*rest), rate, seed)
        ),
        "alpha_dropout, mask": make_comparison(cpu_mask, make_mask(op("alpha_dropout"))),
        "dropout1d, mask": make_comparison(channel_mask, by_rows("dropout1d")),
        "feature_alpha_dropout, mask": make_comparison(
            channel_mask, by_rows("feature_alpha_dropout")
        ),
        "attention weights (SDPA, math), mask": make_comparison(
            lambda seed, rate, shape, dtype: parity.cpu_mask(seed, (shape[0], 2, 24, 24), rate),
            sdpa,
        ),
    }
    return Peer(
        {
            "dropout": op("dropout"),
            "spatial": op("dropout1d", channels_last=True),
            "alpha": op("alpha_dropout"),
        },
        used=lambda rate: math.ceil((1 - rate) * 2**53) / 2**53,
        switch="`training=` of the call; `model.train()`, `model.eval()`",
        default_mode=lambda x: array(functional.dropout(tensor(x), 0.5)),
        evaluate=lambda x: array(functional.dropout(tensor(x), 0.5, training=False)),
        backward=backward,
        same=same,
    )


def _rows(shape):
    """Three axes of any shape: batch, channel, length."""
    return (shape[0], math.prod(shape[1:-1]), shape[-1]) if len(shape) > 1 else (1, *shape, 2)


FRAMEWORKS = {
    "dropout_jax": ours,
    "NumPy oracle": numpy,
    "flax.nnx": flax_nnx,
    "flax.linen": flax_linen,
    "equinox": equinox,
    "haiku": haiku,
    "keras on jax": keras,
    "torch": torch,
}
