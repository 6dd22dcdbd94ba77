"""A post-norm block of an encoder, forward and backward: build(framework, case).

A case is {"op": "encoder_block", "shape": [batch, T, features], "heads": N, "rate": RATE, "remat":
BOOL}. The frameworks are dropout_jax (TransformerBlock), flax (the same block around
nnx.MultiHeadAttention and nnx.Dropout, a mask for each row and head) and torch
(nn.TransformerEncoderLayer in training mode).
"""

from attentions import CompiledCall


def build(framework, case):
    """A function that computes the output and all gradients and waits for them."""
    if framework == "torch":
        return _torch(case)
    import jax
    from flax import nnx

    features, rate = case["shape"][-1], case["rate"]
    make = {"dropout_jax": _make_ours, "flax": _make_flax}[framework]
    graph, params, rest = nnx.split(make(features, case["heads"], rate), nnx.Param, ...)

    def apply(params, x, key):
        return nnx.merge(graph, params, rest)(x, nnx.Rngs(dropout=key))

    def both(params, x, g, key):
        forward = jax.checkpoint(apply) if case["remat"] else apply
        y, pullback = jax.vjp(lambda params, x: forward(params, x, key), params, x)
        return y, pullback(g)

    x, g = jax.random.normal(jax.random.key(0), (2, *case["shape"]))
    arguments = params, x, g, jax.random.key(1)
    compiled = jax.jit(both).lower(*arguments).compile()

    def run():
        jax.block_until_ready(compiled(*arguments))

    memory = compiled.memory_analysis()
    return CompiledCall(run, memory.temp_size_in_bytes if memory else None)


def _make_ours(features, heads, rate):
    from flax import nnx

    from dropout_jax.nn import TransformerBlock

    class Block(TransformerBlock):
        def __call__(self, x, rngs):  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().__call__(x, rngs=rngs)

    return Block(features, heads, rates=rate, norm="post", activation="relu", rngs=nnx.Rngs(0))


def _make_flax(features, heads, rate):
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.attn = nnx.MultiHeadAttention(
                *(heads, features),
                dropout_rate=rate,
                broadcast_dropout=False,
                deterministic=False,
                decode=False,
                rngs=rngs,
            )
            self.norms = nnx.List(nnx.LayerNorm(features, rngs=rngs) for _ in range(2))
            self.wide = nnx.Linear(features, 4 * features, rngs=rngs)
            self.out = nnx.Linear(4 * features, features, rngs=rngs)
            self.dropout = nnx.Dropout(rate)

        def __call__(self, x, rngs):
            x = self.norms[0](x + self.dropout(self.attn(x, rngs=rngs), rngs=rngs))
            hidden = self.dropout(nnx.relu(self.wide(x)), rngs=rngs)
            return self.norms[1](x + self.dropout(self.out(hidden), rngs=rngs))

    return Block(nnx.Rngs(0))


def _torch(case):
    import torch
    import torch_device

    device = torch_device.choose_device()
    features, rate = case["shape"][-1], case["rate"]
    model = torch.nn.TransformerEncoderLayer(
        features, case["heads"], 4 * features, rate, batch_first=True, device=device
    )
    x, g = torch.randn(2, *case["shape"], device=device)
    x.requires_grad_()
    arrays = [x, *model.parameters()]
    return torch_device.waiting(lambda: torch.autograd.grad(model(x), arrays, g), device)
