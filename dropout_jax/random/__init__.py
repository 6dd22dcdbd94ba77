"""Random bits of an explicit key: masks, noise, and keys by name.

The specification of the mask is the docstring of `_masks.py`, that of the noise of `_noise.py`.
Users take `keep_mask` and `fold`; the rest is for the other wings of this package.
"""

from dropout_jax.random._keys import fold
from dropout_jax.random._masks import (
    ONE,
    WORD,
    Dice,
    dice,
    in_range,
    keep_mask,
    mask_shape,
    packed_mask,
    row_words,
    start_of,
    threshold,
    unpack,
    unpack_rows,
)
from dropout_jax.random._noise import normal, uniform
from dropout_jax.random._threefry import fold_in, threefry2x32
