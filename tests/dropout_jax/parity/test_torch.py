"""PyTorch's masks: known answers without PyTorch, and PyTorch itself where it is installed."""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from marks import slow

from dropout_jax.parity import torch as parity

KNOWN = {
    0: "00100011011110111100",
    1: "11110110010101110100",
    42: "11110100111100101001",
}
RATES = st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9, 1.0, 1 / 3])
SHAPES = st.lists(st.integers(0, 9), max_size=4).map(tuple)
DTYPES = ("float32", "float64", "bfloat16", "float16")


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("seed", KNOWN)
def test_known_answers(seed):
    """The masks of F.dropout(torch.ones(20), 0.5) of PyTorch 2.13."""
    expected = np.array(list(KNOWN[seed])) == "1"
    np.testing.assert_array_equal(parity.cpu_mask(seed, (20,), 0.5), expected)
    np.testing.assert_array_equal(parity.jax_cpu_mask(seed, (20,), 0.5), expected)


def kept(torch, x, p, drop="dropout"):
    return (getattr(torch.nn.functional, drop)(x, p, training=True) != 0).numpy()


@given(seed=st.integers(0, 2**63 - 1), shape=SHAPES, p=RATES, dtype=st.sampled_from(DTYPES))
def test_masks_are_torchs(seed, shape, p, dtype):
    torch = pytest.importorskip("torch")
    torch.manual_seed(seed)
    theirs = kept(torch, torch.ones(shape, dtype=getattr(torch, dtype)), p)
    np.testing.assert_array_equal(parity.cpu_mask(seed, shape, p), theirs)


@pytest.mark.parametrize("p", [0.1, 1.0, *map(slow, [0.5, 1 / 3, 1e-9, 0.0])])
@pytest.mark.parametrize("count", [1, 311, 312, 313, 10_000])
def test_the_jitted_form_is_the_same(p, count):
    """312 elements take 624 words, one state."""
    for seed in (0, 7, 2**32 - 1):
        ours = jax.jit(lambda s: parity.jax_cpu_mask(s, (count,), p))(np.uint32(seed))
        np.testing.assert_array_equal(ours, parity.cpu_mask(seed, (count,), p))


def test_call_after_call_and_the_state_in_and_out(torch):
    torch.manual_seed(5)
    generator = parity.CPUGenerator(5)
    np.testing.assert_array_equal(generator.state(), torch.get_rng_state().numpy())
    for count in (3, 311, 312, 700, 0, 5):
        theirs = kept(torch, torch.ones(count), 0.3)
        np.testing.assert_array_equal(generator.mask((count,), 0.3), theirs)
        state = torch.get_rng_state()
        np.testing.assert_array_equal(generator.state(), state.numpy())
        again = parity.CPUGenerator.from_state(state.numpy())
        np.testing.assert_array_equal(again.state(), state.numpy())
    torch.set_rng_state(torch.from_numpy(again.state().copy()))
    np.testing.assert_array_equal(again.mask((50,), 0.5), kept(torch, torch.ones(50), 0.5))


def test_memory_order(torch):
    x = torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    theirs = kept(torch, x, 0.5)
    ours = parity.cpu_mask(0, (2, 3, 4, 5), 0.5, memory_order=(0, 2, 3, 1))
    np.testing.assert_array_equal(ours, theirs)
    assert (parity.cpu_mask(0, (2, 3, 4, 5), 0.5) != theirs).any()
    torch.manual_seed(1)
    theirs = kept(torch, torch.ones(6, 7).t(), 0.5)
    np.testing.assert_array_equal(parity.cpu_mask(1, (7, 6), 0.5, memory_order=(1, 0)), theirs)
    for x in (torch.ones(6, 14)[:, ::2], torch.ones(6, 1).expand(6, 7)):
        torch.manual_seed(1)
        np.testing.assert_array_equal(parity.cpu_mask(1, (6, 7), 0.5), kept(torch, x, 0.5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_are_torchs_bit_for_bit(torch, dtype):
    """With what differs from ours: a dropped -1 is -0, and a dropped infinity NaN."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=1000)).to(getattr(torch, dtype))
    x[:3] = float("inf")
    torch.manual_seed(3)
    theirs = torch.nn.functional.dropout(x, 0.1)
    ours = parity.cpu_dropout(as_numpy(torch, x), parity.cpu_mask(3, (1000,), 0.1), 0.1)
    np.testing.assert_array_equal(bits(ours), bits(as_numpy(torch, theirs)))


def as_numpy(torch, x):
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(jax.numpy.bfloat16)
    return x.numpy()


def bits(x):
    """The bits, but one NaN for all."""
    words = x.view(f"uint{8 * x.dtype.itemsize}").copy()
    words[np.isnan(x)] = 1
    return words


@pytest.mark.parametrize(
    ("drop", "shape", "own"),
    [
        ("dropout1d", (3, 4, 5), (3, 4, 1)),
        ("dropout2d", (3, 4, 5, 6), (3, 4, 1, 1)),
        ("dropout3d", (3, 4, 2, 3, 2), (3, 4, 1, 1, 1)),
        ("alpha_dropout", (30, 4), (30, 4)),
        ("feature_alpha_dropout", (3, 40, 5), (3, 40, 1)),
    ],
)
def test_other_ops_have_the_mask_of_their_shape(torch, drop, shape, own):
    """alpha: ones that are dropped become negative, so kept is what is above zero."""
    torch.manual_seed(9)
    y = getattr(torch.nn.functional, drop)(torch.ones(shape), 0.4, training=True).numpy()
    np.testing.assert_array_equal(y > 0, np.broadcast_to(parity.cpu_mask(9, own, 0.4), shape))


def test_native_dropout_and_the_weights_of_attention(torch):
    torch.manual_seed(2)
    _, mask = torch.native_dropout(torch.ones(7, 8), 0.3, True)
    np.testing.assert_array_equal(parity.cpu_mask(2, (7, 8), 0.3), mask.numpy())
    query, key = torch.randn(2, 1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(4)
    weights = torch.nn.functional.scaled_dot_product_attention(
        query, key, torch.eye(6).expand(1, 2, 6, 6), dropout_p=0.3
    )
    np.testing.assert_array_equal(parity.cpu_mask(4, (1, 2, 6, 6), 0.3), weights.numpy() != 0)


def test_nothing_is_drawn_where_nothing_can_be_dropped(torch):
    torch.manual_seed(6)
    generator = parity.CPUGenerator(6)
    for x, p, training in ((5, 0.0, True), (5, 1.0, True), (5, 0.5, False), (0, 0.5, True)):
        torch.nn.functional.dropout(torch.ones(x), p, training)
        generator.mask((x,), p if training else 0.0)
    np.testing.assert_array_equal(generator.state(), torch.get_rng_state().numpy())


def test_parity_fails_where_it_must(torch):
    torch.manual_seed(1)
    theirs = kept(torch, torch.ones(64), 0.5)
    assert (parity.cpu_mask(2, (64,), 0.5) != theirs).any()
    generator = parity.CPUGenerator(1)
    generator.mask((1,), 0.5)
    assert (generator.mask((64,), 0.5) != theirs).any()


@pytest.mark.parametrize(
    ("counter", "key", "result"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers_of_random123(counter, key, result):
    words = ([int(word, 16) for word in text.split()] for text in (counter, key, result))
    counter, key, result = words
    assert [int(word) for word in parity.philox4x32(counter, key)] == result


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("count", [7, 4096, 100_003, 600_000])
def test_cuda_masks_repeat_no_word_and_keep_the_share(itemsize, count):
    """Derived from source: what can be checked without a GPU is the share, |z| < 4.9."""
    device = {"num_sms": 2, "threads_per_sm": 2048, "itemsize": itemsize}
    mask = parity.cuda_mask(123, 8, (count,), 0.3, **device)
    assert abs(mask.mean() - 0.7) < 4.9 * np.sqrt(0.21 / count)
    after = parity.cuda_offset_after(8, count, num_sms=2, threads_per_sm=2048)
    assert after > 8
    assert after % 4 == 0
    if count > 100:
        assert (parity.cuda_mask(123, after, (count,), 0.3, **device) != mask).any()
        assert (parity.cuda_sdpa_mask(123, 8, (1, 1, 1, count), 0.3).ravel() != mask).any()


@pytest.mark.torture
@pytest.mark.filterwarnings("ignore")  # torch's own
def test_torch_compile_draws_others_unless_it_falls_back(torch):
    """Inductor has a generator of its own; fallback_random calls the eager one."""
    expected = parity.cpu_mask(5, (1000,), 0.5)
    for fallback in (False, True):
        torch._dynamo.reset()
        with torch._inductor.config.patch(fallback_random=fallback):
            drop = torch.compile(lambda x: torch.nn.functional.dropout(x, 0.5))
            torch.manual_seed(5)
            mask = (drop(torch.ones(1000)) != 0).numpy()
        assert (mask == expected).all() == fallback


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("count", [1000, 1001, 2048, 2050, 4100])
def test_cuda_masks_are_those_of_the_kernels_loop(itemsize, count):
    """Thread by thread as the kernel goes, on a device of 256 threads; each call is four words."""
    width = next(w for w in (16 // itemsize, 4, 2, 1) if w <= 16 // itemsize and count % w == 0)
    expected = np.zeros(count, bool)
    for thread in range(256):
        block = 2  # offset 8
        if width == 1:
            for first in range(thread, -(-count // 1024) * 1024, 256 * 4):
                for i, kept in enumerate(four(block, thread)):
                    if first + 256 * i < count:
                        expected[first + 256 * i] = kept
                block += 1
            continue
        for first in range(thread * width, count, 256 * width):
            kept = []
            for _ in range(max(1, width // 4)):
                kept += four(block, thread)
                block += 1
            expected[first : first + width] = kept[:width]
    device = {"num_sms": 1, "threads_per_sm": 256, "itemsize": itemsize}
    np.testing.assert_array_equal(parity.cuda_mask(99, 8, (count,), 0.3, **device), expected)


@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_cuda_masks_of_float64_compare_with_an_unrounded_probability(itemsize):
    """A uniform equal to float32(1 - p) is below 1 - p only in float64: seen on an H100."""
    (word,) = parity.philox4x32((2, 0, 0, 0), (99, 0))[:1]
    uniform = float(np.float32(word) * np.float32(2.0**-32) + np.float32(2.0**-33))
    p = 1 - uniform - 1e-10
    assert np.float32(1 - p) == np.float32(uniform)
    device = {"num_sms": 1, "threads_per_sm": 256, "itemsize": itemsize}
    assert parity.cuda_mask(99, 8, (1,), p, **device).tolist() == [itemsize == 8]


def four(block, thread):
    """What one call of curand_uniform4 keeps at a rate of 0.3, for the seed 99."""
    words = parity.philox4x32((block, 0, thread, 0), (99, 0))
    uniform = [np.float32(word) * np.float32(2**-32) + np.float32(2**-33) for word in words]
    return [bool(u < np.float32(0.7)) for u in uniform]


@given(seed=st.integers(-(2**63), 2**64 - 1))
def test_every_seed_of_torch(seed):
    torch = pytest.importorskip("torch")
    torch.manual_seed(seed)
    generator = parity.CPUGenerator(seed)
    np.testing.assert_array_equal(generator.state(), torch.get_rng_state().numpy())
    theirs = kept(torch, torch.ones(20), 0.5)
    np.testing.assert_array_equal(generator.mask((20,), 0.5), theirs)
    np.testing.assert_array_equal(parity.jax_cpu_mask(seed, (20,), 0.5), theirs)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32"])
def test_traced_seeds_of_every_dtype(dtype):
    for seed in (3, np.iinfo(dtype).min, np.iinfo(dtype).max):
        ours = jax.jit(lambda s: parity.jax_cpu_mask(s, (20,), 0.5))(np.array(seed, dtype))
        np.testing.assert_array_equal(ours, parity.cpu_mask(int(seed), (20,), 0.5))


def test_outputs_at_the_ends_and_without_axes_are_torchs(torch):
    x = np.array([1.0, -1.0, np.inf, np.nan], np.float32)
    for p in (0.0, 1.0):
        theirs = torch.nn.functional.dropout(torch.from_numpy(x), p).numpy()
        ours = parity.cpu_dropout(x, np.full(4, p == 0), p)
        np.testing.assert_array_equal(bits(ours), bits(theirs))
    scalar = parity.cpu_dropout(np.array(3, np.float32), np.array(True), 0.5)
    assert isinstance(scalar, np.ndarray)
    assert (scalar, scalar.shape, scalar.dtype) == (6, (), np.float32)
    image = np.ones((2, 3, 4, 4), np.float32)
    torch.manual_seed(0)
    theirs = torch.nn.functional.dropout2d(torch.from_numpy(image), 0.3).numpy()
    ours = parity.cpu_dropout(image, parity.cpu_mask(0, (2, 3, 1, 1), 0.3), 0.3)
    np.testing.assert_array_equal(ours, theirs)


untyped: Any = parity  # for arguments that the annotations forbid
DEVICE = {"num_sms": 2, "threads_per_sm": 2048}
CUDA: dict[str, Any] = {"seed": 0, "offset": 0, "shape": (4,), "p": 0.5, "itemsize": 4, **DEVICE}
AFTER: dict[str, Any] = {"offset": 0, "count": 4, **DEVICE}
SDPA: dict[str, Any] = {"seed": 0, "offset": 0, "shape": (1, 1, 2, 4), "p": 0.5}
CPU: dict[str, Any] = {"seed": 0, "shape": (4,), "p": 0.5}
DROP: dict[str, Any] = {"x": np.ones(4), "mask": np.ones(4, bool), "p": 0.5}
FUNCTIONS = {
    "cpu_mask": (parity.cpu_mask, CPU),
    "jax_cpu_mask": (parity.jax_cpu_mask, CPU),
    "generator": (lambda seed, **call: parity.CPUGenerator(seed).mask(**call), CPU),
    "cpu_dropout": (parity.cpu_dropout, DROP),
    "cuda_mask": (parity.cuda_mask, CUDA),
    "cuda_sdpa_mask": (parity.cuda_sdpa_mask, SDPA),
    "cuda_offset_after": (parity.cuda_offset_after, AFTER),
}
WRONG: dict[str, tuple[Any, ...]] = {
    "p": (-0.1, 1.5, float("nan"), float("inf"), True, "0.5", None, np.array([0.5]), 1j),
    "seed": (2**64, -(2**63) - 1, 0.5, True, None, "0", float("nan")),
    "shape": ((-1,), (1.5,), 3, "ab", None, (float("nan"),), (2, True, "3")),
    "offset": (-4, 6, 0.0, True, None, 2**64),
    "count": (-1, 0.5, True, None),
    "num_sms": (0, -1, 1.5, True),
    "threads_per_sm": (0, 255, 256.0, True),
    "itemsize": (0, 1, 3, 16, 4.0, True),
    "x": ([1.0], 1.0, None, np.ones(4, int), np.ones(4, complex), np.ones(4, bool)),
    "mask": (np.ones(4), np.ones(3, bool), [True] * 4, None),
}


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_wrong_arguments_are_named_alike(name):
    function, call = FUNCTIONS[name]
    function(**call)
    for argument in call:
        for value in WRONG[argument]:
            with pytest.raises((TypeError, ValueError)) as raised:
                function(**(call | {argument: value}))
            assert str(raised.value).startswith((f"{argument}=", f"{argument}.")), (argument, value)
            assert "is not allowed" in str(raised.value)


@pytest.mark.usefixtures("without_type_checker")
def test_other_wrong_arguments_are_named():
    for call, message in (
        (lambda: untyped.cuda_mask(**CUDA, alignment=12), "alignment=12"),
        (lambda: untyped.cuda_mask(**CUDA, alignment=2), "alignment=2"),
        (lambda: untyped.cuda_sdpa_mask(**(SDPA | {"shape": (4,)})), r"shape=\(4,\)"),
        (lambda: untyped.philox4x32((0, 0, 0), (0, 0)), "counter="),
        (lambda: untyped.philox4x32((0, 0, 0, 2**32), (0, 0)), "counter="),
        (lambda: untyped.philox4x32((0, 0, 0, 1.5), (0, 0)), "counter="),
        (lambda: untyped.philox4x32((0, 0, 0, True), (0, 0)), "counter="),
        (lambda: untyped.philox4x32((0, 0, 0, 0), (0, -1)), "key="),
        (lambda: untyped.cpu_mask(0, (2, 3), 0.5, memory_order=(0, 2)), "memory_order="),
        (lambda: untyped.cpu_mask(0, (2, 3), 0.5, memory_order=(False, True)), "memory_order="),
        (lambda: untyped.cpu_mask(0, (2, 3), 0.5, memory_order=(1.0, 0.0)), "memory_order="),
        (lambda: untyped.cpu_mask(0, (2, 3), 0.5, memory_order=1), "memory_order=1"),
        (lambda: untyped.cpu_dropout(np.ones(2), np.array([True, False]), 1.0), "mask=array"),
        (lambda: jax.jit(untyped.jax_cpu_mask, static_argnums=(1, 2))(1.5, (3,), 0.5), "seed="),
        (lambda: jax.jit(untyped.jax_cpu_mask, static_argnums=1)(1, (3,), 0.5), "p="),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{message}.*is not allowed"):
            call()


@pytest.mark.usefixtures("without_type_checker")
def test_states_that_pytorch_cannot_have_are_refused():
    state = parity.CPUGenerator(0).state()
    left = np.array(state)
    left[8] = 7
    for wrong in (bytes(5056), bytes(5055), b"", state.astype(float), state[None], left, 3):
        with pytest.raises(ValueError, match=r"a state .* is not allowed.*get_rng_state"):
            untyped.CPUGenerator.from_state(wrong)


def test_an_empty_draw_on_cuda_leaves_the_offset():
    assert parity.cuda_offset_after(8, 0, **DEVICE) == 8
