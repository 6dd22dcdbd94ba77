"""flax.nnx modules: every kind of dropout, attention, and the layers of a transformer.

All follow the conventions of Flax: `deterministic` and `rngs` in the constructor or in the call;
`train()`, `eval()` and `nnx.view` switch them; a stored stream is a fork. The options of a layer
follow its rate, by name, and those of `Stochastic` follow them.

Every layer is an `nnx.Dropout`, so that `model.set_attributes(nnx.Dropout, deterministic=True)`,
`nnx.view(model, only=nnx.Dropout, deterministic=True)` and any other filter for Flax's layer reach
all that is random, and nothing stays on at evaluation. The layers of one kind are found by their
class, those of one rate by `RateLayer`, and all of this module by `Stochastic`.
"""

try:
    import flax.nnx
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "dropout_jax.nn needs flax: pip install 'dropout-jax[flax]'", name=missing.name
    ) from None

from dropout_jax.attention import attention_fn
from dropout_jax.nn._layers import (
    AlphaDropout,
    ConcreteDropout,
    DropBlock,
    DropConnect,
    Dropout,
    DropoutUnscaled,
    DropPath,
    EmbeddingDropout,
    GaussianDropout,
    HeadDropout,
    Layer,
    LockedDropout,
    MaskedDropout,
    RateLayer,
    Rngs,
    SpatialDropout,
    Stochastic,
    TokenDropout,
    VariationalDropout,
    Zoneout,
)
from dropout_jax.nn._multi_head_attention import KeyValueCache, MultiHeadAttention
from dropout_jax.nn._transformer import Decoder, Encoder, TransformerBlock
