"""Models of this repository's examples, and the GPT of minigpt."""

import dataclasses
import functools
import importlib
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tiny
from audit_cases import KEY, Case, at_steps
from flax import nnx

from minigpt.model import GPT

EXAMPLES = Path(__file__).parents[4] / "examples"


def load(name: str) -> Any:
    """A module of examples/, such as variants.drop_path of examples/claims."""
    folders = [EXAMPLES, EXAMPLES / "claims", EXAMPLES / "claims" / "variants"]
    sys.path[:0] = [str(folder) for folder in folders if str(folder) not in sys.path]
    return importlib.import_module(name)


def recurrent_arguments(module: str, kind: str):
    """A kind of dropout in the LSTM of the memory task."""
    memory, step = load("common.memory"), getattr(load(module), kind)
    x, y, _ = memory.sample_sequences(KEY, 16)

    def loss(params, key):
        logits = memory.predict_symbol(params, x, step, key=key)
        return load("common.nets").cross_entropy(logits, y)

    args_at = at_steps(memory.init(KEY))
    return {"train_step": jax.jit(jax.grad(loss)), "args_at": args_at, "eval_step": eval_of(loss)}


def eval_of(loss):
    return lambda *args: loss(*args[:-1], None)


def residual_net_arguments():
    module = load("drop_path")

    def loss(params, x, key):
        rates = jnp.linspace(0, 0.5, module.DEPTH)
        return jnp.square(module.net(params, x, rates, key=key)).mean()

    args_at = at_steps(module.init(KEY), jax.random.normal(KEY, (32, 64)))
    return {"train_step": jax.jit(jax.grad(loss)), "args_at": args_at}


def attention_arguments(name: str):
    attend = getattr(load("attention_dropout"), name)

    def loss(x, key):
        return jnp.square(attend(x, x, x, key)).mean()

    x = jax.random.normal(KEY, (2, 32, 2, 32))
    return {"train_step": jax.jit(jax.grad(loss)), "args_at": at_steps(x)}


def gpt_arguments(**settings):
    """A small GPT of minigpt, with dropout at every site."""
    rates = tiny.with_dropout(**dict.fromkeys(tiny.SITES, 0.2))
    config = dataclasses.replace(rates, n_embd=32, **settings)
    graph, params = nnx.split(GPT(config, 11, rngs=nnx.Rngs(0)))

    def loss(params, tokens, key):
        return jnp.square(nnx.merge(graph, params)(tokens, key=key)).mean()

    tokens = jnp.arange(4 * 32).reshape(4, 32) % 11
    return {
        "train_step": jax.jit(jax.grad(loss)),
        "eval_step": eval_of(loss),
        "args_at": at_steps(params, tokens),
    }


def case(name, arguments, *args, **kwargs):
    return Case(arguments, functools.partial(arguments, *args, **kwargs), name=name)


def declared(kind):
    return recurrent_arguments("recurrent", kind) | {"shared": [kind]}


CASES = [
    case("lstm_with_fresh_masks", recurrent_arguments, "recurrent", "naive"),
    case("lstm_with_fresh_masks_on_both", recurrent_arguments, "recurrent", "naive_both"),
    case("lstm_with_one_mask_declared", declared, "locked"),
    case("lstm_with_zoneout", recurrent_arguments, "zoneout", "zoneout_lstm"),
    case("deep_residual_net", residual_net_arguments),
    case("dropout_on_attention_weights", attention_arguments, "drop_weights"),
    case("dropout_on_context", attention_arguments, "drop_context"),
    case("gpt", gpt_arguments),
    case("gpt_with_scan_and_remat", gpt_arguments, scan_layers=True, remat=True),
]
