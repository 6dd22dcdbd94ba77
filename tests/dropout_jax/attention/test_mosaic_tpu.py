"""The kernel for TPUs, interpreted: against the naive form, bit for bit, and looked over for races.

(`interpret=True` runs a kernel as XLA would. `pltpu.InterpretParams` simulates a TPU's memories and
copies, fills memory that nobody wrote with NaN, and prints the races that it sees.)
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.test_util import check_grads
from marks import slow

from dropout_jax import dot_product_attention, keep_mask, ops, random
from dropout_jax.attention import _mosaic_tpu
from dropout_jax.attention._inputs import Inputs, MaskArrays, StaticMask
from dropout_jax.attention._kernel_inputs import Operands, Plan

RATE = 0.3


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 128, so that short arrays have more than one."""
    monkeypatch.setattr(_mosaic_tpu, "BLOCK", 128)


@dataclasses.dataclass(frozen=True)
class Case:
    """Shapes, and what hides or biases weights."""

    name: str
    batch: int = 1
    queries: int = 140
    keys: int = 150
    heads: int = 2
    key_heads: int = 2
    dim: int = 8
    bias: tuple | None = None
    mask: tuple | None = None
    is_causal: bool = False
    window: tuple | None = None
    lengths: tuple = (None, None)
    rate: float = RATE

    def __str__(self):
        return self.name

    def arrays(self, dtype: Any = np.float32):
        """Query, key, value, bias, and the gradient of the output."""
        rng = np.random.default_rng(7)
        query, d_out = rng.normal(size=(2, self.batch, self.queries, self.heads, self.dim))
        key, value = rng.normal(size=(2, self.batch, self.keys, self.key_heads, self.dim))
        bias = None if self.bias is None else jnp.array(rng.normal(size=self.bias), dtype)
        return *(jnp.array(x, dtype) for x in (query, key, value)), bias, jnp.array(d_out, dtype)

    def hidden(self):
        """The mask and the lengths, of queries and of keys."""
        rng = np.random.default_rng(8)
        mask = None if self.mask is None else jnp.array(rng.random(self.mask) < 0.6)
        return mask, *(None if x is None else jnp.array(x, jnp.int32) for x in self.lengths)


EVERYTHING = Case(
    "everything",
    *(2, 300, 300, 4, 2, 32),
    bias=(2, 1, 1, 300),
    mask=(1, 4, 300, 300),
    is_causal=True,
    window=(20, 0),
    lengths=((300, 90), (100, 300)),
)
DECODING = Case("decoding", queries=1, keys=300)
SMALL = Case("small", queries=5, keys=7)


def pack(case, key, query, key_array, value, bias):
    """The operands of the kernel."""
    mask, *lengths = case.hidden()
    lengths = [None if x is None else x[:, None, None, None] for x in lengths]
    inputs = Inputs(query, key_array, value, bias, MaskArrays(mask, *lengths))
    heads = jnp.arange(case.batch * case.heads, dtype=jnp.uint32).reshape(case.batch, case.heads)
    params = random.mask_params(key, jnp.float32(case.rate))
    words = jnp.stack([*params.seed, params.threshold])
    scale = ops.compute_keep_scale(jnp.float32(case.rate), ops.compute_dtype(query))
    return Operands(inputs, heads, words, scale[None])


def plan_of(case, interpret: Any = True):
    mask = StaticMask(case.is_causal, case.window)
    return Plan(case.dim**-0.5, mask, case.rate > 0, interpret)


def run_kernel(case, key, arrays=None, interpret: Any = True):
    """The output, and the gradients of query, key, value and bias."""
    plan = plan_of(case, interpret)

    @jax.jit
    def run(key, arrays):
        *inputs, d_out = arrays
        operands = pack(case, key, *inputs)
        out, log_sum = _mosaic_tpu.forward(plan, operands)
        return out, *_mosaic_tpu.backward(plan, operands, out, log_sum, d_out)

    return run(key, case.arrays() if arrays is None else arrays)


def run_naive(case, key, arrays=None):
    """The same of the naive form."""
    mask, query_lengths, key_lengths = case.hidden()

    @jax.jit
    def run(key, arrays):
        *inputs, d_out = arrays

        def attend(query, key_array, value, bias):
            return dot_product_attention(
                *(query, key_array, value, bias, mask),
                is_causal=case.is_causal,
                local_window_size=case.window,
                query_seq_lengths=query_lengths,
                key_value_seq_lengths=key_lengths,
                dropout_rate=case.rate,
                dropout_key=key,
                implementation="naive",
            )

        out, pull = jax.vjp(attend, *inputs)
        return out, *pull(d_out)

    return run(key, case.arrays() if arrays is None else arrays)


def assert_near(results, expected, bound=1e-5):
    for result, want in zip(results, expected, strict=True):
        assert (result is None) == (want is None)
        if want is not None:
            assert (result.shape, result.dtype) == (want.shape, want.dtype)
            np.testing.assert_allclose(result, want, rtol=bound, atol=bound)


@pytest.mark.parametrize(
    "case",
    [
        slow(Case("causal, grouped", is_causal=True, heads=4, key_heads=2, keys=140)),
        slow(Case("plain")),
        slow(Case("more queries than keys, causal", is_causal=True, queries=270, keys=40)),
        slow(Case("window", window=(20, 5), queries=270, keys=270, heads=1, key_heads=1)),
        slow(Case("window past the keys", window=(3, 3), queries=300, keys=40)),
        slow(Case("causal window", window=(20, 5), is_causal=True, keys=140)),
        Case(
            "mask, bias over heads, lengths",
            batch=2,
            mask=(2, 2, 140, 150),
            bias=(2, 1, 140, 150),
            lengths=((140, 90), (100, 130)),
        ),
        slow(Case("mask of keys", mask=(1, 1, 1, 150))),
        slow(Case("mask of queries, scalar bias", mask=(1, 1, 140, 1), bias=(1, 1, 1, 1))),
        slow(Case("bias over batch and queries", batch=2, bias=(1, 2, 1, 150))),
        slow(Case("bias over keys", batch=2, bias=(2, 2, 140, 1), is_causal=True)),
        slow(Case("lengths", batch=2, lengths=((140, 3), (0, 130)), is_causal=True)),
        slow(Case("few queries", queries=5)),
        slow(Case("few queries and keys", queries=5, keys=7)),
        slow(Case("evaluation", rate=0.0)),
        slow(Case("dim of many lanes", dim=160)),
    ],
    ids=str,
)
def test_outputs_and_gradients_are_those_of_the_naive_form(case, key):
    assert_near(run_kernel(case, key), run_naive(case, key))


@pytest.mark.parametrize(
    "shape", [slow((160, 160)), slow((40, 150)), (5, 150), slow((5, 7))], ids=str
)
def test_every_kernel_drops_the_weights_of_keep_mask(shape, key):
    """Uniform weights and an identity show each one, and `heads` says whose they are."""
    queries, keys = shape
    case = Case("identity", 2, queries, keys, dim=keys)
    identity = jnp.broadcast_to(jnp.eye(keys)[None, :, None], (2, keys, 2, keys))
    query = jnp.zeros((2, queries, 2, keys))
    heads = jnp.array([[5, 0], [3, 7]], jnp.uint32)
    operands = pack(case, key, query, identity, identity, None)._replace(heads=heads)
    mask = keep_mask(key, RATE, (4, 2, queries, keys)).reshape(8, queries, keys)[heads]

    @functools.partial(jax.jit, static_argnums=0)
    def run(plan, operands, d_out):
        out, log_sum = _mosaic_tpu.forward(plan, operands)
        return out, *_mosaic_tpu.backward(plan, operands, out, log_sum, d_out)

    d_out = jnp.broadcast_to(jnp.eye(queries, keys)[None, :, None], query.shape)
    out, _, _, d_value, _ = run(plan_of(case), operands, d_out)
    np.testing.assert_array_equal(out.transpose(0, 2, 1, 3) != 0, mask)
    by_query = d_value.transpose(0, 2, 3, 1)[:, :, :queries]
    np.testing.assert_array_equal(by_query != 0, mask)

    _, d_query, *_ = run(plan_of(case), operands, jnp.ones_like(query))
    d_weights = d_query * keys / case.dim**-0.5 + out.sum(axis=3, keepdims=True)
    np.testing.assert_array_equal(d_weights.transpose(0, 2, 1, 3) > 0.5, mask)


@pytest.mark.slow
def test_bfloat16_is_at_most_twice_as_far_from_float32_as_the_naive_form(key):
    case = Case("bfloat16", heads=1, key_heads=1)
    arrays = case.arrays(jnp.bfloat16)
    expected = run_naive(case, key, jax.tree.map(lambda x: x.astype(np.float32), arrays))
    results, naive = run_kernel(case, key, arrays), run_naive(case, key, arrays)
    for result, low, want in zip(results[:4], naive[:4], expected[:4], strict=True):
        assert result.dtype == jnp.bfloat16
        error, allowed = (np.abs(np.float32(x) - want).max() for x in (result, low))
        assert error <= 2 * allowed


@pytest.mark.slow
def test_a_row_that_sees_no_key_is_zero(key):
    case = Case("blind", batch=2, lengths=((140, 3), (0, 130)))
    operands = pack(case, key, *case.arrays()[:4])
    out, log_sum = _mosaic_tpu.forward(plan_of(case), operands)
    assert (out[0] == 0).all()
    assert (log_sum[0] == np.inf).all()
    assert np.isfinite(log_sum[1, :, :3]).all()


@pytest.mark.slow
def test_gradients_are_the_differences_of_the_output(key):
    case = Case("causal", queries=40, keys=40, bias=(1, 2, 40, 40), is_causal=True)
    plan = plan_of(case)

    @jax.custom_vjp
    def attend(query, key_array, value, bias):
        return _mosaic_tpu.forward(plan, pack(case, key, query, key_array, value, bias))[0]

    def attend_forward(query, key_array, value, bias):
        operands = pack(case, key, query, key_array, value, bias)
        out, log_sum = _mosaic_tpu.forward(plan, operands)
        return out, (operands, out, log_sum)

    def attend_backward(saved, d_out):
        operands, out, log_sum = saved
        return _mosaic_tpu.backward(plan, operands, out, log_sum, d_out)

    attend.defvjp(attend_forward, attend_backward)
    with jax.enable_x64(True):
        check_grads(jax.jit(attend), case.arrays(np.float64)[:4], order=1, modes=["rev"])


@pytest.mark.parametrize("case", [EVERYTHING, slow(DECODING), slow(SMALL)], ids=str)
@pytest.mark.parametrize("x64", [True, slow(False)])
def test_both_passes_lower_for_a_tpu(case, x64, key):
    """To Mosaic's input, without a TPU or its compiler; 64-bit constants would end there."""

    def run(key, arrays):
        *inputs, d_out = arrays
        operands, plan = pack(case, key, *inputs), plan_of(case, interpret=False)
        out, log_sum = _mosaic_tpu.forward(plan, operands)
        return _mosaic_tpu.backward(plan, operands, out, log_sum, d_out)

    with jax.enable_x64(x64):
        arrays = jax.tree.map(lambda x: x.astype(jnp.bfloat16), case.arrays())
        exported = jax.export.export(jax.jit(run), platforms=["tpu"])(key, arrays)
    calls = 2 if case.bias is None else 3
    assert exported.mlir_module().count("@tpu_custom_call") == 1 + calls


TWO_CORES = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)


@pytest.mark.slow
def test_two_cores_do_not_race(key, capsys):
    case = Case("causal, grouped", keys=140, key_heads=1, is_causal=True)
    assert_near(run_kernel(case, key, interpret=TWO_CORES), run_naive(case, key))
    assert "RACE DETECTED" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_kernel_that_races_is_caught(key, capsys, monkeypatch):
    """Two cores that share the axis whose steps add to one block overwrite each other's sums."""
    params = pltpu.CompilerParams

    def share_all(dimension_semantics):
        return params(dimension_semantics=("parallel",) * len(dimension_semantics))

    monkeypatch.setattr(_mosaic_tpu.pltpu, "CompilerParams", share_all)
    case = Case("one block of queries", queries=40, heads=1, key_heads=1)
    operands = pack(case, key, *case.arrays()[:4])
    jax.block_until_ready(_mosaic_tpu.forward(plan_of(case, TWO_CORES), operands))
    assert "RACE DETECTED" in capsys.readouterr().out
