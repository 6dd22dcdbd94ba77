"""PyTorch's layers of a transformer with given masks, and their weights as those of ours."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch.nn import functional


def give_masks(monkeypatch, masks) -> None:
    """Let the calls of dropout and of attention in PyTorch's layers take these masks in turn."""
    remaining = iter(masks)

    def drop(x, p):
        mask = torch.from_numpy(np.array(next(remaining))).to(x.dtype)
        return x * mask.reshape(x.shape) / (1 - p)

    def dropout(x, p=0.5, training=True, inplace=False):
        return drop(x, p) if training and p else x

    def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **_):
        logits = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        if is_causal:
            logits = logits.masked_fill(torch.ones(logits.shape[-2:]).triu(1).bool(), -torch.inf)
        if attn_mask is not None:
            logits = logits + attn_mask
        weights = logits.softmax(-1)
        return (drop(weights, dropout_p) if dropout_p else weights) @ value

    monkeypatch.setattr(functional, "dropout", dropout)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", attend)


def set_parameters(module: nnx.Module, arrays: dict[str, Any]) -> None:
    """Set the parameters of a module, by path; every one of them is set."""
    state = nnx.state(module, nnx.Param)
    paths = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    assert set(paths) == set(arrays), set(paths) ^ set(arrays)
    for name, leaf in paths.items():
        assert leaf.shape == arrays[name].shape, name
        leaf.set_value(jnp.asarray(arrays[name], leaf.dtype))
    nnx.update(module, state)


def attention_arrays(source, arrays, prefix="") -> dict[str, Any]:
    """The arrays of nn.MultiheadAttention (or their gradients) by the names of ours."""
    heads, features = source.num_heads, source.embed_dim
    kernels, result = arrays.get("in_proj_weight"), {}
    for i, name in enumerate(("query", "key", "value")):
        rows = slice(i * features, (i + 1) * features)
        kernel = arrays[f"{name[0]}_proj_weight"] if kernels is None else kernels[rows]
        result[f"{prefix}{name}.kernel"] = kernel.T.reshape(-1, heads, features // heads)
        result[f"{prefix}{name}.bias"] = arrays["in_proj_bias"][rows].reshape(heads, -1)
    kernel = arrays["out_proj.weight"].T.reshape(heads, features // heads, -1)
    return result | {f"{prefix}out.kernel": kernel, f"{prefix}out.bias": arrays["out_proj.bias"]}


def layer_arrays(source, arrays, prefix="") -> dict[str, Any]:
    """The arrays of a TransformerEncoderLayer or TransformerDecoderLayer by the names of ours."""
    has_context = hasattr(source, "multihead_attn")
    norms = ("attn", "cross", "mlp") if has_context else ("attn", "mlp")
    result = {}
    for i, name in enumerate(norms, start=1):
        result[f"{prefix}{name}_norm.scale"] = arrays[f"norm{i}.weight"]
        result[f"{prefix}{name}_norm.bias"] = arrays[f"norm{i}.bias"]
    for theirs, ours in (("linear1", "mlp_in"), ("linear2", "mlp_out")):
        result[f"{prefix}{ours}.kernel"] = arrays[f"{theirs}.weight"].T
        result[f"{prefix}{ours}.bias"] = arrays[f"{theirs}.bias"]
    attentions = [("self_attn", "attn")] + [("multihead_attn", "cross")] * has_context
    for theirs, ours in attentions:
        own = below(arrays, f"{theirs}.")
        result |= attention_arrays(getattr(source, theirs), own, f"{prefix}{ours}.")
    return result


def below(arrays, prefix) -> dict[str, Any]:
    return {name[len(prefix) :]: x for name, x in arrays.items() if name.startswith(prefix)}


def values(module) -> dict[str, np.ndarray]:
    return {name: x.detach().numpy() for name, x in module.named_parameters()}


def gradients(module) -> dict[str, np.ndarray]:
    return {name: x.grad.numpy() for name, x in module.named_parameters() if x.grad is not None}
