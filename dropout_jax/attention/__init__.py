"""Attention with dropout on its weights: the call, its implementations, and DropKey."""

from dropout_jax.attention._api import attention_implementation, dot_product_attention
from dropout_jax.attention._dropkey import dropkey_bias
