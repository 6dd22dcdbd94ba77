"""The auditor accuses neither the training step nor the evaluation step of anything."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dropout_jax import audit
from minigpt.config import Config, DropoutConfig
from minigpt.data import Batch
from minigpt.training import train_step

VOCAB_SIZE = 11
RATES = tiny.with_dropout(**dict.fromkeys(tiny.SITES, 0.2)).dropout


def config_with(dropout: DropoutConfig = RATES, **model: Any) -> Config:
    small = dataclasses.replace(tiny.MODEL, n_embd=32, dropout=dropout, **model)
    return dataclasses.replace(tiny.CONFIG, batch_size=8, accumulate=2, mesh="data=1", model=small)


def audit_trainer(config: Config, **options):
    steps = train_step.build_train_functions(config, VOCAB_SIZE)
    shape = (2, config.batch_size, config.model.block_size)
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, shape, dtype=np.int32)
    batch = steps.put_batch(Batch(*tokens))

    def args_at(step):
        return steps.state._replace(step=jnp.int32(step)), batch, jax.random.key(config.seed)

    eval_args = steps.state.params, batch
    return audit.check(steps.train_step, steps.eval_step, args_at, eval_args=eval_args, **options)


@pytest.mark.slow
def test_trainer_is_not_accused():
    findings = audit_trainer(config_with(scan_layers=True, remat=True))
    assert [str(finding) for finding in findings if finding.severity != "note"] == []


@pytest.mark.slow
def test_every_rate_of_the_trainer_is_alive():
    def step_with(name: str):
        def set_rate(rate: float):
            rates: dict[str, Any] = {**RATES.rates, name: rate}
            config = config_with(DropoutConfig(**rates), n_layer=1)
            return train_step.build_train_functions(config, VOCAB_SIZE).train_step

        return set_rate

    rates = {name: step_with(name) for name in ("attn_weights", "mlp_out")}
    findings = audit_trainer(config_with(n_layer=1), rates=rates, steps=1)
    assert [str(finding) for finding in findings if finding.severity != "note"] == []
