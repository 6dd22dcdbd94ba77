"""TransformerBlock, and stacks of it: Encoder and Decoder. Dropout at every site."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from dropout_jax import _validation
from dropout_jax.nn._layers import Dropout, DropPath, Rngs, Stochastic
from dropout_jax.nn._multi_head_attention import (
    LECUN_NORMAL,
    KeyValueCache,
    MultiHeadAttention,
    with_stream,
)
from dropout_jax.random import fold

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

SITES = ("attn_weights", "attn_out", "cross_weights", "cross_out", "mlp_hidden", "mlp_out")
DROP_PATH = "drop_path"

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nnx.relu,
    "gelu": functools.partial(nnx.gelu, approximate=False),
    "gelu_tanh": functools.partial(nnx.gelu, approximate=True),
    "swiglu": nnx.silu,
}

Rates = ArrayLike | Mapping[str, Any]


class TransformerBlock(Stochastic):
    """Self-attention, cross-attention if asked for, and a feed-forward network, with residuals.

    Formula: x + drop_path(branch(norm(x))) for each branch in turn, or norm(x + drop_path(
    branch(x))) with `norm="post"`. A branch ends in dropout.

    The sites of dropout, each with a rate of its own, are `attn_weights` and `attn_out` (the
    weights and the output of self-attention), `cross_weights` and `cross_out` (those of
    cross-attention), `mlp_hidden` (after the activation), `mlp_out` (the output of the feed-forward
    network) and `drop_path` (a whole branch, row by row). The mask of a site is that of
    `fold(key, site)`, and of drop_path that of `fold(key, "drop_path", branch)` with branch "attn",
    "cross" or "mlp".

    Args:
      features: of the input and the output.
      num_heads: of attention.
      hidden_features: of the feed-forward network; None is 4 * features.
      rates: one rate for every site but drop_path, as in PyTorch's layers, or a mapping from sites
        to rates; a site that is not in it does not drop.
      norm: "pre" or "post".
      activation: "relu", "gelu", "gelu_tanh" or "swiglu", which has a third matrix, `gate`.
      has_cross_attention: whether there is a branch that attends to a context.
      context_features: of the context; None is `features`.
      num_kv_heads: of the keys and values; None is `num_heads`.
      epsilon: of the layer norms.
      use_bias: whether the linear layers have biases.
      dtype: of the computation; None is the promoted dtype of inputs and parameters.
      param_dtype: of the parameters.
      kernel_init: of every kernel.
      deterministic: True evaluates; `train()`, `eval()` and `nnx.view` set it.
      rng_collection: the stream of `rngs` that gives the keys of dropout.
      rngs: gives the parameters and, if it has that stream, the keys of dropout.

    Raises:
      ValueError: a site, norm or activation that does not exist; a rate outside [0, 1].

    Source: `torch.nn.TransformerEncoderLayer` and `TransformerDecoderLayer`; Shazeer, "GLU variants
      improve Transformer", 2020; Huang et al., "Deep networks with stochastic depth", ECCV 2016.

    Example:
      >>> import jax.numpy as jnp
      >>> from dropout_jax.nn import TransformerBlock
      >>> from flax import nnx
      >>> block = TransformerBlock(16, 4, rates={"mlp_out": 0.1}, rngs=nnx.Rngs(0))
      >>> block(jnp.ones((2, 10, 16)), is_causal=True).shape
      (2, 10, 16)
    """

    def __init__(
        self,
        features: int,
        num_heads: int,
        *,
        hidden_features: int | None = None,
        rates: Rates = 0.0,
        norm: str = "pre",
        activation: str = "gelu",
        has_cross_attention: bool = False,
        context_features: int | None = None,
        num_kv_heads: int | None = None,
        epsilon: float = 1e-5,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        kernel_init: Any = LECUN_NORMAL,
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(
            deterministic=deterministic,
            rng_collection=rng_collection,
            rngs=with_stream(rngs, rng_collection),
        )
        _validation.check_choice(norm, "norm", ("pre", "post"))
        _validation.check_choice(activation, "activation", tuple(ACTIVATIONS))
        rates = check_rates(rates)
        self.has_pre_norm = norm == "pre"
        self.activation = ACTIVATIONS[activation]
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        dense = {"use_bias": use_bias, "kernel_init": kernel_init, **types}
        layer_norm = functools.partial(
            nnx.LayerNorm, features, epsilon=epsilon, use_fast_variance=False, **types
        )
        attention = functools.partial(
            MultiHeadAttention, num_heads, features, num_kv_heads=num_kv_heads, **dense
        )
        self.attn_norm, self.attn = layer_norm(), attention(dropout_rate=rates["attn_weights"])
        cross = functools.partial(
            attention, in_kv_features=context_features, dropout_rate=rates["cross_weights"]
        )
        self.cross_norm = layer_norm() if has_cross_attention else None
        self.cross: Any = cross() if has_cross_attention else None
        hidden = 4 * features if hidden_features is None else hidden_features
        self.mlp_norm = layer_norm()
        self.mlp_in = nnx.Linear(features, hidden, **dense)
        self.mlp_gate = nnx.Linear(features, hidden, **dense) if activation == "swiglu" else None
        self.mlp_out = nnx.Linear(hidden, features, **dense)
        self.drop_attn_out = Dropout(rates["attn_out"])
        self.drop_cross_out = Dropout(rates["cross_out"])
        self.drop_mlp_hidden = Dropout(rates["mlp_hidden"])
        self.drop_mlp_out = Dropout(rates["mlp_out"])
        self.drop_path = DropPath(rates["drop_path"])
        remove_streams(self.attn, self.cross)

    def __call__(
        self,
        inputs: Float[Array, "batch time features"],
        context: Float[Array, "batch context_time context_features"] | None = None,
        *,
        mask: Bool[Array, "#batch #heads #time #keys"] | None = None,
        key_mask: Bool[Array, "batch keys"] | None = None,
        context_mask: Bool[Array, "batch context_time"] | None = None,
        is_causal: bool = False,
        cache: KeyValueCache | None = None,
        deterministic: bool | None = None,
        rngs: Rngs | jax.Array | None = None,
    ) -> Any:
        """Apply every branch.

        Args:
          inputs: one vector for each position.
          context: what cross-attention attends to.
          mask: of self-attention, True is visible.
          key_mask: (batch, time), True is a token, False padding.
          context_mask: likewise of the context.
          is_causal: whether position i sees only positions 0 to i.
          cache: the keys and values of the positions before, at evaluation only; from
            `block.attn.init_cache`.
          deterministic: as in the constructor, over which it takes precedence.
          rngs: likewise; or a key.

        Returns:
          (batch, time, features); with a cache, that and the cache with these positions.
        """
        _check_context(self.cross, context)
        key = self._next_key(deterministic, rngs, self.known_rate())
        masks = {"mask": mask, "key_mask": key_mask, "is_causal": is_causal, "cache": cache}

        def attend(x: jax.Array) -> tuple[jax.Array, KeyValueCache | None]:
            out = self.attn(x, **masks, **_site(key, "attn_weights"))
            out, filled = (out, None) if cache is None else out
            return self.drop_attn_out(out, **_site(key, "attn_out")), filled

        def attend_to_context(x: jax.Array) -> tuple[jax.Array, None]:
            out = self.cross(x, context, key_mask=context_mask, **_site(key, "cross_weights"))
            return self.drop_cross_out(out, **_site(key, "cross_out")), None

        x, cache = self._add_branch("attn", self.attn_norm, attend, inputs, key)
        if self.cross is not None:
            x, _ = self._add_branch("cross", self.cross_norm, attend_to_context, x, key)
        x, _ = self._add_branch("mlp", self.mlp_norm, lambda x: self._feed_forward(x, key), x, key)
        return x if cache is None else (x, cache)

    def known_rate(self) -> float | None:
        """Return 0 if no site drops for certain: then no key is needed."""
        layers = (self.attn, self.cross, self.drop_attn_out, self.drop_cross_out)
        layers += (self.drop_mlp_hidden, self.drop_mlp_out, self.drop_path)
        rates = [layer.rate for layer in layers if layer is not None]
        return 0.0 if all(isinstance(rate, int | float) and rate == 0 for rate in rates) else None

    def _add_branch(
        self,
        name: str,
        norm: Any,
        branch: Callable[[jax.Array], tuple[jax.Array, Any]],
        x: jax.Array,
        key: jax.Array | None,
    ) -> tuple[jax.Array, Any]:
        """Return x with the output of a branch, and what else the branch returns."""
        out, more = branch(norm(x) if self.has_pre_norm else x)
        x = x + self.drop_path(out, **_site(key, "drop_path", name))
        return x if self.has_pre_norm else norm(x), more

    def _feed_forward(self, x: jax.Array, key: jax.Array | None) -> tuple[jax.Array, None]:
        hidden = self.mlp_in(x)
        if self.mlp_gate is None:
            hidden = self.activation(hidden)
        else:
            hidden = self.activation(self.mlp_gate(x)) * hidden
        out = self.mlp_out(self.drop_mlp_hidden(hidden, **_site(key, "mlp_hidden")))
        return self.drop_mlp_out(out, **_site(key, "mlp_out")), None


def _site(key: jax.Array | None, *path: str | int) -> dict[str, Any]:
    """Return the arguments of the call of a layer: whether it draws, and its key."""
    return {"deterministic": key is None, "rngs": fold(key, *path)}


def remove_streams(*layers: Stochastic | None) -> None:
    """Let layers have no stream of keys of their own: they get their keys from the layer above."""
    for layer in layers:
        if layer is not None:
            layer.rngs = nnx.data(None)


class Encoder(Stochastic):
    """A stack of blocks of self-attention; with `norm="pre"`, a layer norm after the last.

    The key of block i is `fold(key, "block", i)`.

    Args:
      num_layers: how many blocks.
      features: as in `TransformerBlock`.
      num_heads: as in `TransformerBlock`.
      rates: as in `TransformerBlock`; a sequence in place of a rate has one for each block, such as
        `{"drop_path": dropout_jax.linear_over_depth(0.1, num_layers)}`.
      has_final_norm: whether there is a layer norm after the last block; None is for `norm="pre"`.
      deterministic: True evaluates; `train()`, `eval()` and `nnx.view` set it.
      rng_collection: the stream of `rngs` that gives the keys of dropout.
      rngs: gives the parameters and, if it has that stream, the keys of dropout.
      **block: the other arguments of `TransformerBlock`.

    Raises:
      ValueError: as in `TransformerBlock`; a sequence of rates of another length.

    Source: `torch.nn.TransformerEncoder`; Devlin et al., "BERT", NAACL 2019, for post-norm.

    Example:
      >>> import jax.numpy as jnp
      >>> from dropout_jax.nn import Encoder
      >>> from flax import nnx
      >>> encoder = Encoder(2, 16, 4, rates=0.1, rngs=nnx.Rngs(0))
      >>> is_token = jnp.arange(10) < jnp.array([[10], [7]])
      >>> encoder(jnp.ones((2, 10, 16)), key_mask=is_token).shape
      (2, 10, 16)
    """

    has_cross_attention = False

    def __init__(
        self,
        num_layers: int,
        features: int,
        num_heads: int,
        *,
        rates: Rates = 0.0,
        norm: str = "pre",
        has_final_norm: bool | None = None,
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs,
        **block: Any,
    ) -> None:
        super().__init__(
            deterministic=deterministic,
            rng_collection=rng_collection,
            rngs=with_stream(rngs, rng_collection),
        )
        options = {"norm": norm, "has_cross_attention": self.has_cross_attention, "rngs": rngs}
        self.blocks = nnx.List(
            TransformerBlock(features, num_heads, rates=layer_rates, **options, **block)
            for layer_rates in _split_rates(rates, num_layers)
        )
        remove_streams(*self.blocks)
        has_norm = norm == "pre" if has_final_norm is None else has_final_norm
        names = ("epsilon", "dtype", "param_dtype")
        types: dict[str, Any] = {"epsilon": 1e-5} | {
            name: block[name] for name in names if name in block
        }
        self.norm = (
            nnx.LayerNorm(features, use_fast_variance=False, rngs=rngs, **types)
            if has_norm
            else None
        )

    def __call__(
        self,
        inputs: Float[Array, "batch time features"],
        *,
        mask: Bool[Array, "#batch #heads #time #keys"] | None = None,
        key_mask: Bool[Array, "batch time"] | None = None,
        is_causal: bool = False,
        deterministic: bool | None = None,
        rngs: Rngs | jax.Array | None = None,
    ) -> Float[Array, "batch time features"]:
        """Apply every block; arguments as in `TransformerBlock`."""
        masks = {"mask": mask, "key_mask": key_mask, "is_causal": is_causal}
        x = inputs
        key = self._next_key(deterministic, rngs, self._known_rate())
        for i, block in enumerate(self.blocks):
            x = block(x, **masks, **_site(key, "block", i))
        return x if self.norm is None else self.norm(x)

    def _known_rate(self) -> float | None:
        return 0.0 if all(block.known_rate() == 0 for block in self.blocks) else None


class Decoder(Encoder):
    """A stack of blocks of causal self-attention and of cross-attention to a context.

    Arguments of the constructor as in `Encoder`.

    Source: `torch.nn.TransformerDecoder`.

    Example:
      >>> import jax.numpy as jnp
      >>> from dropout_jax.nn import Decoder
      >>> from flax import nnx
      >>> decoder = Decoder(2, 16, 4, rates=0.1, rngs=nnx.Rngs(0))
      >>> decoder(jnp.ones((2, 5, 16)), jnp.ones((2, 10, 16))).shape
      (2, 5, 16)
      >>> decoder.eval()
      >>> caches = decoder.init_caches(batch=2, room=5)
      >>> out, caches = decoder(jnp.ones((2, 1, 16)), jnp.ones((2, 10, 16)), caches=caches)
      >>> out.shape
      (2, 1, 16)
    """

    has_cross_attention = True

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  # one input more
        self,
        inputs: Float[Array, "batch time features"],
        context: Float[Array, "batch context_time context_features"],
        *,
        mask: Bool[Array, "#batch #heads #time #keys"] | None = None,
        key_mask: Bool[Array, "batch keys"] | None = None,
        context_mask: Bool[Array, "batch context_time"] | None = None,
        is_causal: bool = True,
        caches: Sequence[KeyValueCache] | None = None,
        deterministic: bool | None = None,
        rngs: Rngs | jax.Array | None = None,
    ) -> Any:
        """Apply every block; with caches, return the output and the caches with these positions."""
        masks = {"mask": mask, "key_mask": key_mask, "is_causal": is_causal}
        x, filled = inputs, []
        key = self._next_key(deterministic, rngs, self._known_rate())
        for i, block in enumerate(self.blocks):
            cache = None if caches is None else caches[i]
            x = block(
                x,
                context,
                context_mask=context_mask,
                cache=cache,
                **masks,
                **_site(key, "block", i),
            )
            if caches is not None:
                x, cache = x
                filled.append(cache)
        x = x if self.norm is None else self.norm(x)
        return x if caches is None else (x, filled)

    def init_caches(self, batch: int, room: int) -> list[KeyValueCache]:
        """Return an empty cache for each block, with room for so many positions."""
        return [block.attn.init_cache(batch, room) for block in self.blocks]


def check_rates(rates: Rates) -> dict[str, Any]:
    """Return the rate of every site."""
    if not isinstance(rates, Mapping):
        _validation.check_rate(rates, "rates")
        return dict.fromkeys(SITES, rates) | {DROP_PATH: 0.0}
    for site, rate in rates.items():
        if site not in (*SITES, DROP_PATH):
            names = ", ".join((*SITES, DROP_PATH))
            allowed = f"a mapping from sites ({names}) to rates"
            _validation.fail(ValueError, "rates", rates, allowed, f"Rename or remove {site!r}.")
        _validation.check_rate(rate, f"rates[{site!r}]")
    return dict.fromkeys((*SITES, DROP_PATH), 0.0) | dict(rates)


def _split_rates(rates: Rates, num_layers: int) -> list[dict[str, Any]]:
    """Return the rates of each block."""
    if not isinstance(rates, Mapping):
        return [check_rates(rates)] * num_layers
    layers: list[dict[str, Any]] = [{} for _ in range(num_layers)]
    for site, rate in rates.items():
        is_sequence = isinstance(rate, Sequence)
        if is_sequence and len(rate) != num_layers:
            allowed = f"a rate, or a sequence of num_layers={num_layers} rates"
            remedy = "Pass one rate for each block."
            _validation.fail(ValueError, f"rates[{site!r}]", rate, allowed, remedy)
        for i, layer in enumerate(layers):
            layer[site] = rate[i] if is_sequence else rate
    return [check_rates(layer) for layer in layers]


def _check_context(cross: MultiHeadAttention | None, context: jax.Array | None) -> None:
    if cross is not None and context is None:
        remedy = "Pass the output of the encoder."
        _validation.fail(ValueError, "context", context, "an array", remedy)
    if cross is None and context is not None:
        allowed, remedy = "None without cross-attention", "Build it with has_cross_attention=True."
        _validation.fail(ValueError, "context", context, allowed, remedy)
