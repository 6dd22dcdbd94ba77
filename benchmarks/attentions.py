"""Causal attention forward and backward in each framework: build(framework, case).

A case is {"op": "attention", "shape": [batch, T, heads, dim], "dtype": NAME, "rate": RATE}. The
frameworks are ours by implementation (blockwise, naive, kernel), flax with a mask a head, and torch
(whose SDPA is flash attention at rate 0 and T x T with dropout, on a CPU).
"""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class CompiledCall:
    """A function to time, and the bytes of temporaries that XLA plans for it."""

    run: Callable[[], None]
    temporary_bytes: int | None

    def __call__(self):
        self.run()


def build(framework, case):
    """A function that computes output and gradients and waits for them."""
    if framework == "torch":
        return _torch(case)
    import jax

    key = jax.random.key(0)
    q, k, v, g = (
        jax.random.normal(each, case["shape"], case["dtype"]) for each in jax.random.split(key, 4)
    )
    attend = _flax(case) if framework == "flax" else _ours(framework, case)

    def both(q, k, v, g, key):
        y, pullback = jax.vjp(lambda q, k, v: attend(q, k, v, key), q, k, v)
        return y, pullback(g.astype(y.dtype))

    compiled = jax.jit(both).lower(q, k, v, g, key).compile()

    def run():
        jax.block_until_ready(compiled(q, k, v, g, key))

    memory = compiled.memory_analysis()
    return CompiledCall(run, memory.temp_size_in_bytes if memory else None)


def _ours(implementation, case):
    from dropout_jax import dot_product_attention

    def attend(q, k, v, key):
        return dot_product_attention(
            *(q, k, v),
            is_causal=True,
            dropout_rate=case["rate"],
            dropout_key=key,
            implementation=implementation,
        )

    return attend


def _flax(case):
    import jax.numpy as jnp
    from flax import nnx

    mask = jnp.tril(jnp.ones((case["shape"][1],) * 2, bool))[None, None]

    def attend(q, k, v, key):
        return nnx.dot_product_attention(
            *(q, k, v),
            mask=mask,
            dropout_rng=key,
            dropout_rate=case["rate"],
            broadcast_dropout=False,
            deterministic=case["rate"] == 0,
        )

    return attend


def _torch(case):
    import torch
    import torch_device
    from torch.nn.functional import scaled_dot_product_attention

    device = torch_device.choose_device()
    batch, time, heads, dim = case["shape"]
    dtype = getattr(torch, case["dtype"])
    q, k, v, g = torch.randn(4, batch, heads, time, dim, dtype=dtype, device=device)
    arrays = [x.requires_grad_() for x in (q, k, v)]

    def run():
        y = scaled_dot_product_attention(*arrays, dropout_p=case["rate"], is_causal=True)
        torch.autograd.grad(y, arrays, g)

    return torch_device.waiting(run, device)
