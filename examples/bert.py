"""Load a BertModel of transformers into `dropout_jax.nn.Encoder`, and prove that they are equal.

    python examples/bert.py

The script makes a small BertModel with random weights, loads it, compares the hidden states, and
trains both for twenty steps with the same masks at every site.
"""

import argparse
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.table import Table

from dropout_jax import fold, keep_mask
from dropout_jax.nn import Dropout, Encoder

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu"}


class Bert(nnx.Module):
    """BERT's embeddings and encoder; `config` is that of transformers."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        width, epsilon = config.hidden_size, config.layer_norm_eps
        hidden, weights = config.hidden_dropout_prob, config.attention_probs_dropout_prob
        self.tokens = nnx.Embed(config.vocab_size, width, rngs=rngs)
        self.positions = nnx.Embed(config.max_position_embeddings, width, rngs=rngs)
        self.types = nnx.Embed(config.type_vocab_size, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs)
        self.dropout = Dropout(hidden, deterministic=None)
        self.encoder = Encoder(
            config.num_hidden_layers,
            width,
            config.num_attention_heads,
            hidden_features=config.intermediate_size,
            rates={"attn_weights": weights, "attn_out": hidden, "mlp_out": hidden},
            norm="post",
            activation=ACTIVATIONS[config.hidden_act],
            epsilon=epsilon,
            rngs=rngs,
        )

    def __call__(
        self,
        tokens: jax.Array,
        types: jax.Array | None = None,
        is_token: jax.Array | None = None,
        *,
        key: jax.Array | None,
    ) -> jax.Array:
        """The hidden states of the last layer; `key=None` is evaluation."""
        types = jnp.zeros_like(tokens) if types is None else types
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1])) + self.types(types)
        is_off = key is None
        x = self.dropout(self.norm(x), rngs=fold(key, "embed"), deterministic=is_off)
        keys = fold(key, "encoder")
        return self.encoder(x, key_mask=is_token, rngs=keys, deterministic=is_off)


# Names in a block: those of transformers, and ours.
DENSE = {
    "attention.self.query": "attn.query",
    "attention.self.key": "attn.key",
    "attention.self.value": "attn.value",
    "attention.output.dense": "attn.out",
    "intermediate.dense": "mlp_in",
    "output.dense": "mlp_out",
}
NORMS = {"attention.output.LayerNorm": "attn_norm", "output.LayerNorm": "mlp_norm"}


def rename_arrays(arrays: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The arrays of a BertModel by the names of `Bert`; the pooler is left out."""
    renamed = {
        "tokens.embedding": arrays["embeddings.word_embeddings.weight"],
        "positions.embedding": arrays["embeddings.position_embeddings.weight"],
        "types.embedding": arrays["embeddings.token_type_embeddings.weight"],
        "norm.scale": arrays["embeddings.LayerNorm.weight"],
        "norm.bias": arrays["embeddings.LayerNorm.bias"],
    }
    for i in range(layers):
        theirs, ours = f"encoder.layer.{i}.", f"encoder.blocks.{i}."
        for name, own in DENSE.items():
            renamed[f"{ours}{own}.kernel"] = arrays[f"{theirs}{name}.weight"].T
            renamed[f"{ours}{own}.bias"] = arrays[f"{theirs}{name}.bias"]
        for name, own in NORMS.items():
            renamed[f"{ours}{own}.scale"] = arrays[f"{theirs}{name}.weight"]
            renamed[f"{ours}{own}.bias"] = arrays[f"{theirs}{name}.bias"]
    return renamed


def load(config: Any, arrays: Mapping[str, Any]) -> Bert:
    """A `Bert` with the arrays of a BertModel, such as those of its model.safetensors."""
    model = Bert(config, rngs=nnx.Rngs(0))
    renamed = rename_arrays(arrays, config.num_hidden_layers)
    state = nnx.state(model, nnx.Param)
    for path, leaf in nnx.to_flat_state(state):
        array = renamed.pop(".".join(map(str, path)))
        leaf.set_value(jnp.asarray(array).reshape(leaf.shape))  # heads are an axis of their own
    assert not renamed, f"not loaded: {sorted(renamed)}"
    nnx.update(model, state)
    return model


def draw_masks(config: Any, key: jax.Array, batch: int, time: int) -> dict[str, np.ndarray]:
    """The masks that `Bert` draws from a key, by the sites of `dropout_jax.parity.hooks`."""
    dense = (batch, time, config.hidden_size)
    weights = (batch, config.num_attention_heads, time, time)
    hidden, own = config.hidden_dropout_prob, config.attention_probs_dropout_prob
    masks = {"embeddings/dropout": keep_mask(fold(key, "embed"), hidden, dense)}
    for i in range(config.num_hidden_layers):
        block, name = fold(key, "encoder", "block", i), f"encoder/layer/{i}"
        site = f"{name}/attention/self/F.dropout"
        masks[site] = keep_mask(fold(block, "attn_weights"), own, weights)
        site = f"{name}/attention/output/dropout"
        masks[site] = keep_mask(fold(block, "attn_out"), hidden, dense)
        masks[f"{name}/output/dropout"] = keep_mask(fold(block, "mlp_out"), hidden, dense)
    return {name: np.asarray(mask) for name, mask in masks.items()}


def train_in_lockstep(theirs: Any, ours: Bert, steps: int) -> list[tuple[float, float]]:
    """The losses of both at every step: SGD towards random targets, the same masks."""
    import torch

    from dropout_jax.parity import hooks

    config, (batch, time) = theirs.config, (4, 12)
    rng = np.random.default_rng(0)
    graph, params, rest = nnx.split(ours, nnx.Param, ...)
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    tx = optax.sgd(0.1, momentum=0.9)
    opt_state, masks, losses = tx.init(params), {}, []
    handles = hooks.give_masks(theirs.train(), masks)

    @jax.jit
    def update(params, opt_state, tokens, targets, key):
        def loss(params):
            hidden = nnx.merge(graph, params, rest)(tokens, key=key)
            return ((hidden - targets) ** 2).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state, value

    for step in range(steps):
        key = jax.random.key(step)
        tokens = rng.integers(1, config.vocab_size, (batch, time))  # PyTorch does not train token 0
        targets = rng.standard_normal((batch, time, config.hidden_size)).astype("float32")
        masks.update(draw_masks(config, key, batch, time))
        optimizer.zero_grad()
        hidden = theirs(torch.from_numpy(tokens)).last_hidden_state
        loss = ((hidden - torch.from_numpy(targets)) ** 2).mean()
        loss.backward()
        optimizer.step()
        params, opt_state, value = update(params, opt_state, jnp.asarray(tokens), targets, key)
        losses.append((loss.item(), float(value)))
    handles.remove()
    return losses


def random_model(**options: Any) -> Any:
    """A small BertModel of transformers with random weights."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 64}
    config = BertConfig(num_attention_heads=4, max_position_embeddings=64, **sizes, **options)
    config._attn_implementation = "eager"  # the other ones drop where no hook can reach
    return BertModel(config, add_pooling_layer=False)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args(argv)
    theirs = random_model()
    arrays = {name: x.detach().numpy().copy() for name, x in theirs.named_parameters()}
    losses = train_in_lockstep(theirs, load(theirs.config, arrays), args.steps)
    table = Table("step", "BertModel", "Encoder", "difference", title="loss, with the same masks")
    for step, (a, b) in enumerate(losses):
        table.add_row(str(step), f"{a:.7f}", f"{b:.7f}", f"{abs(a - b):.1e}")
    Console().print(table)


if __name__ == "__main__":
    main()
