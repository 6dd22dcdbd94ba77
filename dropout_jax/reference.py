"""The NumPy oracle: the mask and the ops computed again, from the text of the specification.

It imports NumPy only and shares no code with the rest of the package. It is slow on purpose: every
element's 16-bit number is put together bit by bit and compared with the threshold, where
`dropout_jax.masks` combines whole words. A key is a pair of uint32 words, what
`jax.random.key_data(key)` gives for threefry2x32.
"""

import math

import numpy as np

_FOLD = 0x64726F70
_MASK32 = 0xFFFFFFFF
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)


def threefry2x32(key, counter, rounds=20):
    """Threefry-2x32 (Salmon et al., SC 2011) on arrays of words, in 64-bit arithmetic.

    Args:
      key: two words or arrays of words.
      counter: two words or arrays of words.
      rounds: 20 everywhere in this package; Random123 has known answers for others too.

    Returns:
      Two uint32 arrays, broadcast over key and counter.

    Example:
      >>> [hex(int(word)) for word in threefry2x32((0, 0), (0, 0))]
      ['0x6b200159', '0x99ba4efe']
    """
    key = [np.asarray(word, np.uint64) for word in key]
    key.append(key[0] ^ key[1] ^ np.uint64(0x1BD11BDA))
    x, y = ((np.asarray(c, np.uint64) + k) & _MASK32 for c, k in zip(counter, key, strict=False))
    for done in range(rounds):
        x = (x + y) & _MASK32
        left = _ROTATIONS[done % 8]
        y = ((y << np.uint64(left)) | (y >> np.uint64(32 - left))) & _MASK32 ^ x
        if done % 4 == 3:
            inject = done // 4 + 1
            x = (x + key[inject % 3]) & _MASK32
            y = (y + key[(inject + 1) % 3] + np.uint64(inject)) & _MASK32
    return x.astype(np.uint32), y.astype(np.uint32)


def fold_in(key, data):
    """`jax.random.fold_in` for threefry2x32: the block of counter (0, data)."""
    return np.array(threefry2x32(key, (0, data)))


def threshold(rate):
    """T: the integer of 2^16 with which an element is kept, computed in float32."""
    keep = (np.float32(1) - np.float32(rate)) * np.float32(65536)
    whole = math.floor(keep)
    rest = float(keep) - whole
    if rest > 0.5 or (rest == 0.5 and whole % 2 == 1):
        whole += 1
    return whole


def keep_mask(key, rate, shape, *, broadcast_dims=()):
    """The mask of a threefry2x32 key: bool, True is kept, size 1 on `broadcast_dims`."""
    return mask_of_seed(fold_in(key, _FOLD), rate, shape, broadcast_dims=broadcast_dims)


def mask_of_seed(seed, rate, shape, *, broadcast_dims=()):
    """The mask of the two words that a folded key is, or is reduced to."""
    shape = list(shape)
    for dim in broadcast_dims:
        shape[dim] = 1
    flat = len(shape) == 0 or shape[-1] < 32
    rows = 1 if flat else math.prod(shape[:-1])
    width = math.prod(shape) if flat else shape[-1]
    return np.reshape(_numbers(seed, rows, width) + threshold(rate) >= 65536, shape)


def _numbers(seed, rows, width):
    """The 16-bit number of every element: bit j is its bit of plane j."""
    row = np.arange(rows, dtype=np.uint64)[:, None]
    element = np.arange(width, dtype=np.uint64)
    word, bit = element // 32, element % 32
    numbers = np.zeros((rows, width), np.int64)
    for plane in range(16):
        pair = threefry2x32(seed, (row, 8 * word + plane // 2))
        numbers += ((pair[plane % 2] >> bit) & 1).astype(np.int64) << plane
    return numbers


def apply_mask(x, keep, rate):
    """x * 2^16 / T where kept, else 0; the product in float32 or float64, rounded once."""
    x = np.asarray(x)
    wide = x.dtype.itemsize // (2 if np.iscomplexobj(x) else 1) == 8
    kept_of_65536 = threshold(rate)
    if kept_of_65536 == 0:
        return np.zeros_like(x)
    scale = (np.float64 if wide else np.float32)(65536 / kept_of_65536)
    with np.errstate(over="ignore", invalid="ignore"):
        if np.iscomplexobj(x):
            scaled = np.zeros_like(x)
            scaled.real, scaled.imag = np.real(x) * scale, np.imag(x) * scale
        else:
            scaled = (x.astype(type(scale)) * scale).astype(x.dtype)
    return np.where(keep, scaled, np.zeros_like(x))


def dropout(x, rate, *, key, broadcast_dims=()):
    """Inverted dropout with the mask of `keep_mask`; `key=None` is evaluation."""
    if key is None:
        return np.asarray(x)
    shape = np.shape(x)
    return apply_mask(x, keep_mask(key, rate, shape, broadcast_dims=broadcast_dims), rate)
