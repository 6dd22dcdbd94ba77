"""The data and the loss of the models whose sequences are padded."""

import jax
import jax.numpy as jnp
from audit_cases import Case, at_steps

TOKENS = jnp.arange(16 * 32).reshape(16, 32) % 7
LENGTHS = jnp.arange(16) + 10
EMBEDDING = jnp.linspace(-1, 1, 7 * 64).reshape(7, 64)
PADDED = jnp.where(jnp.arange(32) < LENGTHS[:, None], TOKENS, 0)
VALID = (jnp.arange(32) < LENGTHS[:, None]).astype(jnp.float32)


def losses_of(weights, tokens):
    logits = weights[tokens] @ weights.T
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]


def padded(loss, *data, code="", about="", is_quick=False, **options):
    """The case of a loss of padded tokens; `data` follows the embedding."""

    def arguments():
        step = jax.jit(jax.value_and_grad(loss))
        return {"train_step": step, "args_at": at_steps(EMBEDDING, *data), **options}

    return Case(loss, arguments, code, about, is_quick=is_quick)
