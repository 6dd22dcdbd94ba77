"""Faulty and correct models of Flax (nnx and linen), Equinox and Haiku."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from audit_cases import KEY, X, assert_reported
from flax import nnx

import dropout_jax.nn
from dropout_jax import audit

TOKENS = X.reshape(2, 8, 64)


def accused(findings):
    return [str(finding) for finding in findings if finding.severity != "note"]


class Block(nnx.Module):
    """A correct block: attention without sharing, and a layer of dropout."""

    def __init__(self, rngs, *, layer=nnx.Dropout, **attention):
        options = {"broadcast_dropout": False, **attention}
        self.attention = nnx.MultiHeadAttention(
            4, 64, dropout_rate=0.2, decode=False, rngs=rngs, **options
        )
        self.linear = nnx.Linear(64, 64, rngs=rngs)
        self.drop = layer(0.2, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(x)  # D06
        return x + self.drop(self.linear(x))


@nnx.jit
def nnx_step(model, x):
    return nnx.value_and_grad(lambda model: (model(x) ** 2).mean())(model)


@nnx.jit
def nnx_loss(model, x):
    return (model(x) ** 2).mean()


def nnx_args(model):
    """The model with its stream of keys at each step, as training moves it on."""

    def args_at(step):
        moved = nnx.clone(model)
        for _, stream in nnx.iter_graph(moved):
            if isinstance(stream, nnx.RngCount):
                stream[...] = stream[...] + 10 * jnp.uint32(step)
        return moved, TOKENS

    return args_at


def nnx_block(**options):
    model = Block(nnx.Rngs(0), **options)
    model.train()
    return model


@pytest.mark.parametrize("layer", [nnx.Dropout, dropout_jax.nn.Dropout])
def test_nnx_block_is_not_accused(layer):
    model = nnx_block(layer=layer)
    evaluation = nnx.clone(model)
    evaluation.eval()
    findings = audit.check(nnx_step, nnx_loss, nnx_args(model), eval_args=(evaluation, TOKENS))
    assert accused(findings) == []


def test_flax_attention_that_shares_one_mask_by_default():
    findings = audit.check(nnx_step, args_at=nnx_args(nnx_block(broadcast_dropout=True)))
    assert_reported(findings, Block.__call__, "D06")


def test_nnx_model_that_evaluation_leaves_in_training_mode():
    findings = audit.check(nnx_step, nnx_loss, nnx_args(nnx_block()))
    assert {finding.code for finding in findings} == {"D03"}
    assert len(findings) == 2


def test_nnx_model_that_training_leaves_in_evaluation_mode():
    model = nnx_block()
    model.eval()
    findings = audit.check(nnx_step, args_at=nnx_args(model))
    assert [finding.code for finding in findings] == ["D02"]


def test_nnx_keys_that_are_made_in_every_step():
    class Model(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(64, 64, rngs=nnx.Rngs(0))
            self.drop = nnx.Dropout(0.2)

        def __call__(self, x):
            return self.drop(self.linear(x), rngs=nnx.Rngs(0))  # D15

    findings = audit.check(nnx_step, args_at=[(Model(), TOKENS)] * 2)
    assert_reported(findings, Model.__call__, "D15")


class LinenModel(nn.Module):
    """Layers in one compact module, each with its own key."""

    rate: float = 0.2
    deterministic: bool = False

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.Dropout(self.rate, deterministic=self.deterministic)(nn.Dense(64)(x))
        return nn.Dropout(self.rate, (1,), deterministic=self.deterministic)(x)


class LinenScan(nn.Module):
    """Layers in nn.scan, with remat; `split` says whether each has its own key."""

    split: bool = True

    @nn.compact
    def __call__(self, x):
        block = nn.remat(LinenLayer, prevent_cse=False)
        rngs: Any = {"params": True, "dropout": self.split}
        layers = nn.scan(block, variable_axes={"params": 0}, split_rngs=rngs, length=3)
        return layers()(x, None)[0]


class LinenLayer(nn.Module):
    """One layer of the scan."""

    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dropout(0.2, deterministic=False)(nn.Dense(64)(x))), None  # D05


def linen_step(model):
    params = model.init({"params": KEY, "dropout": KEY}, TOKENS)

    @jax.jit
    def step(params, x, key):
        def loss(params):
            return (model.apply(params, x, rngs={"dropout": key}) ** 2).mean()

        return jax.value_and_grad(loss)(params)

    return step, lambda number: (params, TOKENS, jax.random.fold_in(KEY, number))


@pytest.mark.parametrize("model", [LinenModel(), LinenScan()], ids=["compact", "scan"])
def test_linen_model_is_not_accused(model):
    step, args_at = linen_step(model)
    assert accused(audit.check(step, args_at=args_at)) == []


def test_linen_scan_that_does_not_split_its_keys():
    step, args_at = linen_step(LinenScan(split=False))
    assert_reported(audit.check(step, args_at=args_at), LinenLayer.__call__, "D05")


def test_linen_names_its_modules():
    step, args_at = linen_step(LinenModel())
    modules = [site.module for site in audit.trace(step, *args_at(0)).sites]
    assert [module.split("/")[-1] for module in modules] == ["Dropout_0", "Dropout_1", "Dropout_2"]


class EquinoxModel(eqx.Module):
    """Two linear layers and dropout."""

    linear: eqx.nn.Linear
    drop: eqx.nn.Dropout

    def __call__(self, x, key):
        return self.drop(jnp.tanh(self.linear(x)), key=key)  # D06


EQUINOX = EquinoxModel(eqx.nn.Linear(64, 64, key=KEY), eqx.nn.Dropout(0.2))


def equinox_step(keys_of):
    @eqx.filter_jit
    def step(model, x, key):
        keys, axis = keys_of(key, len(x))

        def loss(model):
            return (jax.vmap(model, (0, axis))(x, keys) ** 2).mean()

        return eqx.filter_value_and_grad(loss)(model)

    return step


def equinox_args(step):
    return EQUINOX, X, jax.random.fold_in(KEY, step)


def test_equinox_model_is_not_accused():
    step = equinox_step(lambda key, rows: (jax.random.split(key, rows), 0))
    inference = eqx.nn.inference_mode(EQUINOX)
    findings = audit.check(step, step, equinox_args, eval_args=(inference, X, KEY))
    assert accused(findings) == []


def test_equinox_model_with_one_key_for_all_rows():
    step = equinox_step(lambda key, rows: (key, None))
    findings = audit.check(step, args_at=equinox_args)
    assert_reported(findings, EquinoxModel.__call__, "D06")


def haiku_args(forward):
    model = hk.transform(forward)
    params = model.init(KEY, X)

    def step(params, key, x):
        return jax.grad(lambda params: (model.apply(params, key, x) ** 2).mean())(params)

    return step, lambda number: (params, jax.random.fold_in(KEY, number), X)


def test_haiku_model_is_not_accused():
    def forward(x):
        return hk.dropout(hk.next_rng_key(), 0.2, jnp.tanh(hk.Linear(64)(x)))

    step, args_at = haiku_args(forward)
    assert accused(audit.check(step, args_at=args_at)) == []


def test_haiku_model_with_one_key_for_two_layers():
    def forward(x):
        key = hk.next_rng_key()
        x = hk.dropout(key, 0.2, jnp.tanh(hk.Linear(64)(x)))
        return hk.dropout(key, 0.2, jnp.tanh(hk.Linear(64)(x)))  # D05

    step, args_at = haiku_args(forward)
    assert_reported(audit.check(step, args_at=args_at), forward, "D05")
