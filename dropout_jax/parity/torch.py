"""Draw the dropout masks of PyTorch without PyTorch: its CPU and CUDA generators, in NumPy and JAX.

CPU (tests/dropout_jax/parity/test_torch.py compares it with PyTorch 2.13). The generator is MT19937
of 32-bit words, seeded with the low 32 bits of the seed. For every element, of any dtype and on any
number of threads, `bernoulli_` draws the next two words and keeps the element if
r / 2^53 < 1 - p in float64, where r is the low 53 bits of (first << 32 | second). The elements of a
dense tensor (contiguous, transposed, channels_last) are in memory order, those of another tensor
(sliced, expanded) in C order. Rates 0 and 1, evaluation and empty tensors draw nothing. The masks
are PyTorch's for dropout, alpha_dropout and native_dropout with the shape of the input, for
dropout1d, 2d, 3d and feature_alpha_dropout with the shape (batch, channel, 1, ...), and for the
weights of scaled_dot_product_attention without flash attention. `torch.compile` draws other masks,
unless torch._inductor.config.fallback_random is True.

CUDA (derived from PyTorch's source; an H100 with PyTorch 2.11 drew the same masks, see
docs/check_torch_cuda.json and `cuda_mask`). The generator is Philox4x32-10, whose key is the seed.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax
from jax.typing import ArrayLike

from dropout_jax import _validation

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, UInt32

N, M = 624, 397  # MT19937: words of state, and the distance of its recurrence
_STATE = struct.Struct("<QiiQ624Q")  # seed, left, seeded, next, words; normals follow
_STATE_BYTES = 5056


def cpu_mask(
    seed: int, shape: Sequence[int], p: float, *, memory_order: Sequence[int] | None = None
) -> np.ndarray:
    """Draw the mask of the first `torch.nn.functional.dropout` after `torch.manual_seed(seed)`.

    Formula: see the docstring of this module. True is kept.

    Args:
      seed: an integer from -2^63 to 2^64 - 1, as for torch.manual_seed; its low 32 bits count.
      shape: the shape of the tensor.
      p: the probability of dropping, in [0, 1].
      memory_order: the axes of a dense tensor from the slowest to the fastest in memory, such as
        (0, 2, 3, 1) for channels_last; None is C order.

    Returns:
      A bool array of `shape`.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: PyTorch 2.13, aten/src/ATen/native/cpu/DistributionTemplates.h; Matsumoto and Nishimura,
      "Mersenne Twister", 1998.

    Example:
      >>> from dropout_jax.parity import torch
      >>> torch.cpu_mask(0, (10,), 0.5).astype(int)
      array([0, 0, 1, 0, 0, 0, 1, 1, 0, 1])
    """
    return CPUGenerator(seed).mask(shape, p, memory_order=memory_order)


class CPUGenerator:
    """The default CPU generator of PyTorch: masks in the order of calls, and its state."""

    def __init__(self, seed: int) -> None:
        seed = _check_seed(seed)
        seeded: Any = np.random.RandomState(seed & 0xFFFFFFFF).get_state(legacy=False)
        self._seed, self._is_fresh, self._tail = seed, True, None
        self._bits = np.random.MT19937()
        self._set_words(seeded["state"]["key"], N)

    @classmethod
    def from_state(cls, state: bytes | npt.ArrayLike) -> CPUGenerator:
        """Restore a generator from `torch.get_rng_state()`, as bytes or a uint8 array."""
        seed, left, seeded, following, *words = _STATE.unpack_from(raw := _check_state(state))
        is_fresh = left == 1 and following == 0
        is_known = is_fresh or (1 <= left <= N and left + following == N + 1)
        if not is_known or seeded != 1 or max(words) >= 2**32:
            raise ValueError(
                f"a state with left={left}, next={following} and seeded={seeded} is not allowed: "
                "it must be one that PyTorch's generator can have. Pass "
                "torch.get_rng_state().numpy()."
            )
        generator = cls(seed)
        generator._is_fresh = is_fresh
        generator._tail = raw[_STATE.size :]
        generator._set_words(np.array(words, np.uint32), N if left == 1 else following)
        return generator

    def state(self) -> np.ndarray:
        """Return the state as `torch.get_rng_state()` does: 5,056 bytes, as uint8."""
        inner = self._bits.state["state"]
        following = 0 if self._is_fresh else int(inner["pos"])
        left = N + 1 - int(inner["pos"])
        head = _STATE.pack(self._seed, left, 1, following, *map(int, inner["key"]))
        tail = self._tail or bytes(_STATE_BYTES - _STATE.size)
        return np.frombuffer(head + tail, np.uint8)

    def mask(
        self, shape: Sequence[int], p: float, *, memory_order: Sequence[int] | None = None
    ) -> np.ndarray:
        """Draw the mask of the next dropout; arguments as in `cpu_mask`."""
        shape, p = _validation.check_shape(shape), _validation.check_probability(p, "p")
        order = _check_memory_order(memory_order, len(shape))
        count = math.prod(shape)
        if p in (0, 1) or count == 0:
            return np.full(shape, p == 0)
        self._is_fresh = False
        words = self._bits.random_raw(2 * count).astype(np.uint64).reshape(-1, 2)
        numbers = ((words[:, 0] << np.uint64(32)) | words[:, 1]) & np.uint64(2**53 - 1)
        kept = numbers * 2.0**-53 < 1 - p
        in_memory = kept.reshape([shape[axis] for axis in order])
        return in_memory.transpose(np.argsort(order))

    def _set_words(self, words: np.ndarray, position: int) -> None:
        state: Any = {"bit_generator": "MT19937", "state": {"key": words, "pos": position}}
        self._bits.state = state


def _check_seed(seed: int) -> int:
    """Return a seed of torch.manual_seed as 64 bits, as PyTorch does with a negative one."""
    return _validation.check_integer(seed, "seed", -(2**63), 2**64 - 1) & (2**64 - 1)


def _check_state(state: bytes | npt.ArrayLike) -> bytes:
    array = np.frombuffer(state, np.uint8) if isinstance(state, bytes) else np.asarray(state)
    if array.dtype != np.uint8 or array.shape != (_STATE_BYTES,):
        raise ValueError(
            f"a state of {array.dtype} and shape {array.shape} is not allowed: it must be "
            f"{_STATE_BYTES} bytes. Pass torch.get_rng_state().numpy()."
        )
    return array.tobytes()


def _check_memory_order(order: Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    order = tuple(range(ndim)) if order is None else order
    order = tuple(
        _validation.check_integer(axis, "memory_order", -ndim)
        for axis in _validation.check_sequence(order, "memory_order")
    )
    if sorted(order) != list(range(ndim)):
        raise ValueError(
            f"memory_order={order} is not allowed: it must name each of the {ndim} axes once. List "
            "them from the slowest to the fastest in memory."
        )
    return order


def cpu_dropout(x: np.ndarray, mask: np.ndarray, p: float) -> np.ndarray:
    """Apply this mask to x as `torch.nn.functional.dropout` does on a CPU, bit for bit.

    Formula: x * noise, with noise = mask / (1 - p) rounded to the dtype of x (the division in
    float32, in float64 for float64) and the product rounded to it. So a dropped -1 is -0.0
    and a dropped infinity NaN. `dropout_jax.apply_mask` differs: both are 0.

    Args:
      x: an array of float16, bfloat16 (of ml_dtypes), float32 or float64.
      mask: bool, True is kept, of the shape of x, or of one that broadcasts to it (dropout2d).
      p: the probability of dropping, in [0, 1]. At 1, PyTorch multiplies by 0.

    Returns:
      An array of the shape and dtype of x.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: PyTorch 2.13, aten/src/ATen/native/Dropout.cpp.

    Example:
      >>> import numpy as np
      >>> from dropout_jax.parity import torch
      >>> torch.cpu_dropout(np.array([1.0, -1.0]), np.array([True, False]), 0.5)
      array([ 2., -0.])
    """
    p = _validation.check_probability(p, "p")
    if not isinstance(x, np.ndarray) or x.dtype.name not in _CPU_DTYPES:
        allowed = f"a NumPy array of {', '.join(_CPU_DTYPES)}"
        remedy = "Convert it: np.asarray(x, np.float32)."
        _validation.fail(TypeError, "x", x, allowed, remedy)
    mask = np.asarray(_validation.check_mask(mask, x.shape, "mask"))
    if p == 1 and mask.any():
        allowed = "False everywhere at p=1"
        _validation.fail(ValueError, "mask", mask, allowed, "Pass the p that it was drawn with.")
    wide = np.float64 if x.dtype == np.float64 else np.float32
    noise = (np.asarray(mask, wide) / wide(1 - p if p < 1 else 1)).astype(x.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(x.astype(wide) * noise.astype(wide)).astype(x.dtype)


_CPU_DTYPES = ("float16", "bfloat16", "float32", "float64")


def jax_cpu_mask(seed: ArrayLike, shape: Sequence[int], p: float) -> Bool[Array, "..."]:
    """Draw `cpu_mask` in JAX, jitted; the seed may be traced.

    Formula: as `cpu_mask`, with the comparison in integers: r < ceil((1 - p) 2^53).

    Args:
      seed: as in `cpu_mask`, or a traced scalar of an integer dtype.
      shape: the shape of the tensor, in C order.
      p: the probability of dropping, in [0, 1]; a Python number, for a comparison in float64.

    Returns:
      A bool array of `shape`.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: as `cpu_mask`.

    Example:
      >>> from dropout_jax.parity import torch
      >>> torch.jax_cpu_mask(0, (10,), 0.5).astype(int)
      Array([0, 0, 1, 0, 0, 0, 1, 1, 0, 1], dtype=int32)
    """
    seed = _validation.check_scalar_integer(seed, "seed", -(2**63), 2**64 - 1)
    if isinstance(seed, int):
        word = _validation.put_number(seed & 0xFFFFFFFF, np.uint32)
    else:
        word = seed.astype(jnp.uint32)
    shape, p = _validation.check_shape(shape), _validation.check_probability(p, "p")
    return _draw_cpu_mask(word, shape=shape, p=p)


@functools.partial(jax.jit, static_argnames=("shape", "p"))
def _draw_cpu_mask(
    seed: UInt32[Array, ""], *, shape: tuple[int, ...], p: float
) -> Bool[Array, "..."]:
    count = math.prod(shape)
    if p in (0, 1) or count == 0:
        return jnp.full(shape, p == 0)
    _, words = lax.scan(_twist, _derive_state(seed), length=-(-2 * count // N))
    words = words.reshape(-1)[: 2 * count].reshape(-1, 2)
    high, low = words[:, 0] & jnp.uint32(0x1FFFFF), words[:, 1]
    limit = math.ceil((1 - p) * 2**53)  # at most 2^53 - 1 unless p is below 2^-53
    if limit >> 53:
        return jnp.ones(shape, bool)
    limit_high, limit_low = jnp.uint32(limit >> 32), jnp.uint32(limit & 0xFFFFFFFF)
    kept = (high < limit_high) | ((high == limit_high) & (low < limit_low))
    return kept.reshape(shape)


def _derive_state(seed: UInt32[Array, ""]) -> UInt32[Array, "624"]:
    """Derive the state of MT19937 from a seed."""

    def advance(last, index):
        last = jnp.uint32(1812433253) * (last ^ (last >> 30)) + index
        return last, last

    _, rest = lax.scan(advance, seed, jnp.arange(1, N, dtype=jnp.uint32))
    return jnp.concatenate([seed[None], rest])


def _twist(
    state: UInt32[Array, "624"], _: None
) -> tuple[UInt32[Array, "624"], UInt32[Array, "624"]]:
    """Compute the next state, and its 624 words of output.

    A word needs the word 397 positions after it, so there are three parts.
    """

    def mix(high, low):
        both = (high & jnp.uint32(0x80000000)) | (low & jnp.uint32(0x7FFFFFFF))
        return (both >> 1) ^ jnp.where(both & 1 == 1, jnp.uint32(0x9908B0DF), jnp.uint32(0))

    mixed = mix(state[:-1], state[1:])
    first = state[M:] ^ mixed[: N - M]
    second = first ^ mixed[N - M : 2 * (N - M)]
    third = second[: M - (N - M) - 1] ^ mixed[2 * (N - M) :]
    last = second[M - (N - M) - 1] ^ mix(state[-1], first[0])
    state = jnp.concatenate([first, second, third, last[None]])
    word = state ^ (state >> 11)
    word = word ^ ((word << 7) & jnp.uint32(0x9D2C5680))
    word = word ^ ((word << 15) & jnp.uint32(0xEFC60000))
    return state, word ^ (word >> 18)


def philox4x32(
    counter: Sequence[npt.ArrayLike], key: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Compute the four words of Philox4x32-10 for arrays of counters, in NumPy.

    Formula: ten rounds over a counter of four 32-bit words and a key of two.

    Args:
      counter: four integers or arrays of integers below 2^32.
      key: two integers below 2^32.

    Returns:
      Four uint64 arrays of 32-bit words.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.

    Example:
      >>> from dropout_jax.parity.torch import philox4x32
      >>> [hex(int(word)) for word in philox4x32((0, 0, 0, 0), (0, 0))]
      ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = _check_words(counter, "counter", 4)
    k0, k1 = (int(word) for word in _check_words(key, "key", 2))
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        first, second = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (second >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            second & low,
            (first >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            first & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.asarray(c0), np.asarray(c1), np.asarray(c2), np.asarray(c3)


def _check_words(words: Sequence[npt.ArrayLike], name: str, count: int) -> list[np.ndarray]:
    """Return 32-bit words as uint64, and refuse what is no integer or does not fit."""
    allowed = f"{count} integers{' or arrays of integers' if name == 'counter' else ''} below 2^32"
    remedy = "Split a larger number: n & 0xFFFFFFFF, n >> 32."
    if not isinstance(words, tuple | list | np.ndarray) or len(words) != count:
        _validation.fail(TypeError, name, words, allowed, f"Pass a tuple of {count}.")
    arrays = [np.asarray(word) for word in words]
    for array in arrays:
        if array.dtype.kind not in "iu" or (name == "key" and array.ndim):
            _validation.fail(TypeError, name, words, allowed, remedy)
        if array.size and not 0 <= array.min() <= array.max() < 2**32:
            _validation.fail(ValueError, name, words, allowed, remedy)
    return [array.astype(np.uint64) for array in arrays]


def cuda_mask(
    seed: int,
    offset: int,
    shape: Sequence[int],
    p: float,
    *,
    num_sms: int,
    threads_per_sm: int,
    itemsize: int,
    alignment: int = 16,
) -> np.ndarray:
    """Draw the mask of `torch.nn.functional.dropout` on CUDA.

    Formula: T = 256 min(ceil(n / 256), num_sms (threads_per_sm // 256)) threads; V = 16 / itemsize
    elements per load, limited by the alignment, and halved until it divides n. With V > 1 element e
    is number e % V of the load of thread (e // V) % T in turn (e // V) // T, and a turn has
    ceil(V / 4) blocks; with V = 1 it is number (e // T) % 4 of block e // T // 4 of thread e % T.
    The counter of the block is (offset // 4 + block, thread), its key the seed. An element is kept
    if float32(x) 2^-32 + 2^-33 < 1 - p, which is rounded to float32 unless itemsize is 8.

    examples/check_torch_cuda.py compares it with a GPU. In its run on an H100 one element of
    3.4e7 in float64 differed, as 1 - p was then rounded in float64 too; all others were equal.

    Args:
      seed: `torch.cuda.initial_seed()`.
      offset: of the generator before the call, a multiple of 4; `cuda_offset_after` computes the
        next.
      shape: the shape of the dense tensor, in memory order.
      p: the probability of dropping, in [0, 1].
      num_sms: multi_processor_count of the device.
      threads_per_sm: max_threads_per_multi_processor of the device, at least 256.
      itemsize: bytes per element, 2, 4 or 8. (Before PyTorch 2.7 a load has at most 4 elements:
        pass 4 for 16-bit dtypes.)
      alignment: of the tensor's address, in bytes, a power of two.

    Returns:
      A bool array of `shape`.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: PyTorch, aten/src/ATen/native/cuda/Dropout.cu; cuRAND's Philox.

    Example:
      >>> from dropout_jax.parity import torch
      >>> m = torch.cuda_mask(0, 0, (4, 8), 0.5, num_sms=132, threads_per_sm=2048, itemsize=4)
      >>> m.shape
      (4, 8)
    """
    seed, offset = _check_seed(seed), _check_offset(offset)
    shape, p = _validation.check_shape(shape), _validation.check_probability(p, "p")
    itemsize = _check_power_of_two(itemsize, "itemsize", 2, 8)
    alignment = _check_power_of_two(alignment, "alignment", itemsize, 2**63)
    count = math.prod(shape)
    threads = _count_threads(max(count, 1), num_sms, threads_per_sm)
    if p in (0, 1) or count == 0:
        return np.full(shape, p == 0)
    width = min(16, alignment) // itemsize
    while width > 1 and count % width:
        width //= 2
    element = np.arange(count, dtype=np.uint64)
    if width > 1:
        load, rest = element // width, element % width
        thread, turn = load % threads, load // threads
        block, number = turn * -(-width // 4) + rest // 4, rest % 4
    else:
        thread, turn = element % threads, element // threads
        block, number = turn // 4, turn % 4
    uniform = _draw_cuda_uniform(seed, np.uint64(offset // 4) + block, thread, number)
    threshold = (np.float64 if itemsize == 8 else np.float32)(1 - p)
    return (uniform < threshold).reshape(shape)


def cuda_offset_after(offset: int, count: int, *, num_sms: int, threads_per_sm: int) -> int:
    """Compute the offset of the generator after a dropout of `count` elements.

    Formula: offset + 4 ((count - 1) // (4 T) + 1), with T as in `cuda_mask`.

    Args:
      offset: of the generator before the call, a multiple of 4.
      count: the number of elements; for 0, as at a rate of 0 or 1, PyTorch draws nothing.
      num_sms: multi_processor_count of the device.
      threads_per_sm: max_threads_per_multi_processor of the device.

    Returns:
      An integer.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: as `cuda_mask`.

    Example:
      >>> from dropout_jax.parity import torch
      >>> torch.cuda_offset_after(0, 1000, num_sms=132, threads_per_sm=2048)
      4
    """
    offset, count = _check_offset(offset), _validation.check_integer(count, "count", 0)
    threads = _count_threads(max(count, 1), num_sms, threads_per_sm)
    return offset + ((count - 1) // (4 * threads) + 1) * 4


def cuda_sdpa_mask(seed: int, offset: int, shape: Sequence[int], p: float) -> np.ndarray:
    """Draw the mask of memory-efficient attention on CUDA.

    Formula: the weight with linear index i over (batch, heads, queries, keys) has word number
    offset + i of the stream with subsequence 0. It is kept if float32(x) 2^-32 + 2^-33 > p, on any
    device.

    Args:
      seed: `torch.cuda.initial_seed()`.
      offset: of the generator before the call, a multiple of 4.
      shape: (batch, heads, queries, keys).
      p: the probability of dropping, in [0, 1].

    Returns:
      A bool array of `shape`.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: PyTorch, aten/src/ATen/native/transformers/cuda/mem_eff_attention/kernel_forward.h.

    Example:
      >>> from dropout_jax.parity import torch
      >>> torch.cuda_sdpa_mask(0, 0, (1, 1, 2, 4), 0.5).shape
      (1, 1, 2, 4)
    """
    seed, offset = _check_seed(seed), _check_offset(offset)
    shape, p = _validation.check_shape(shape), _validation.check_probability(p, "p")
    if len(shape) != 4:
        allowed = "(batch, heads, queries, keys)"
        _validation.fail(ValueError, "shape", shape, allowed, "Use 1 for an axis without entries.")
    word = np.uint64(offset) + np.arange(math.prod(shape), dtype=np.uint64)
    uniform = _draw_cuda_uniform(seed, word // 4, np.uint64(0), word % 4)
    return (uniform > np.float32(p)).reshape(shape)


def _check_offset(offset: int) -> int:
    """Return an offset of PyTorch's CUDA generator, which counts words in blocks of 4."""
    offset = _validation.check_integer(offset, "offset", 0, 2**62)
    if offset % 4:
        remedy = "Pass what cuda_offset_after returns, or 0 after torch.cuda.manual_seed."
        _validation.fail(ValueError, "offset", offset, "a multiple of 4", remedy)
    return offset


def _check_power_of_two(value: int, name: str, low: int, high: int) -> int:
    value = _validation.check_integer(value, name, low, high)
    if value & (value - 1):
        allowed, remedy = f"a power of two from {low} to {high}", f"Pass {low}."
        _validation.fail(ValueError, name, value, allowed, remedy)
    return value


def _count_threads(count: int, num_sms: int, threads_per_sm: int) -> int:
    num_sms = _validation.check_integer(num_sms, "num_sms", 1)
    threads_per_sm = _validation.check_integer(threads_per_sm, "threads_per_sm", 256)
    return 256 * min(-(-count // 256), num_sms * (threads_per_sm // 256))


def _draw_cuda_uniform(
    seed: int, block: np.ndarray, thread: np.ndarray | np.uint64, number: np.ndarray
) -> np.ndarray:
    """Draw as cuRAND does: counter (block, thread) of 64 bits each, with the seed as the key."""
    low = np.uint64(0xFFFFFFFF)
    counter = (block & low, block >> np.uint64(32), thread & low, thread >> np.uint64(32))
    words = np.stack(np.broadcast_arrays(*philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))))
    word = np.take_along_axis(words, number.astype(np.int64)[None], axis=0)[0]
    return word.astype(np.float32) * np.float32(2.0**-32) + np.float32(2.0**-33)
