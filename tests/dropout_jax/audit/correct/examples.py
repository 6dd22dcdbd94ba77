"""Models of this repository's examples, and the trainer of minigpt."""

import dataclasses
import functools
import importlib
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from audit_cases import KEY, Case, at_steps

from minigpt.data import Batch
from minigpt.training import train_step

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
    return lambda params, key: loss(params, None)


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


def trainer_arguments():
    """The compiled steps of a small trainer with dropout at every site."""
    model = tiny.with_dropout(**dict.fromkeys(tiny.SITES, 0.2))
    model = dataclasses.replace(model, n_embd=32, scan_layers=True, remat=True)
    config = dataclasses.replace(
        tiny.CONFIG, batch_size=8, accumulate=2, mesh="data=1", model=model
    )
    steps = train_step.build_train_functions(config, 11)
    shape = (2, config.batch_size, config.model.block_size)
    batch = steps.put_batch(Batch(*np.random.default_rng(0).integers(0, 11, shape, np.int32)))

    def args_at(step):
        return steps.state._replace(step=jnp.int32(step)), batch, jax.random.key(config.seed)

    return {
        "train_step": steps.train_step,
        "eval_step": steps.eval_step,
        "args_at": args_at,
        "eval_args": (steps.state.params, batch),
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
    case("trainer", trainer_arguments),
]
