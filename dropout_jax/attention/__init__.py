"""Attention with dropout on its weights: the public function, its implementations, DropKey."""

from dropout_jax.attention._api import attention_implementation, dot_product_attention
from dropout_jax.attention._attention_fn import attention_fn
from dropout_jax.attention._dropkey import dropkey_bias
