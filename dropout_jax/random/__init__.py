"""Random bits of an explicit key: masks, noise, and keys by name.

The docstring of `_masks.py` is the specification of the mask, that of `_noise.py` of the noise.
`keep_mask` and `fold` are public; the other names are for the other wings of this package.
"""

from dropout_jax.random._keys import fold
from dropout_jax.random._masks import (
    MaskParams,
    check_row_offset,
    draw_packed_mask,
    draw_packed_tile,
    is_valid_rate,
    keep_mask,
    lowest_bit,
    mask_params,
    mask_shape,
    rate_array,
    threshold,
)
from dropout_jax.random._noise import draw_normal, draw_uniform
from dropout_jax.random._packing import WORD, unpack_mask, unpack_tile
from dropout_jax.random._threefry import fold_in, threefry2x32
