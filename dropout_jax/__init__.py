"""Every kind of dropout as a pure function of an explicit key."""

from dropout_jax._apply import apply_mask as apply_mask
from dropout_jax.elementwise import dropout as dropout
from dropout_jax.keys import fold as fold
from dropout_jax.masks import keep_mask as keep_mask

__all__ = ["apply_mask", "dropout", "fold", "keep_mask"]

__version__ = "0.1.0"
