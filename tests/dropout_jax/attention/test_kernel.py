"""The kernel by platform: what an exported program carries, parts of a batch, and the choice."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from marks import slow

from dropout_jax import attention_implementation, dot_product_attention

CALLS = {"cpu": None, "cuda": "__gpu$xla.gpu.triton", "tpu": "@tpu_custom_call"}


def attend(key, query, **options):
    options = {"is_causal": True, "dropout_rate": 0.3, "dropout_key": key} | options
    return dot_product_attention(query, query, query, implementation="kernel", **options)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, slow(jnp.float16)])
def test_an_export_carries_the_kernel_of_each_platform(key, dtype):
    """Whatever the host is: none ships the interpreter to an accelerator."""
    query = jax.ShapeDtypeStruct((1, 128, 2, 64), dtype)
    for platform, call in CALLS.items():
        if platform == "cuda" and jax.__version__ >= "0.11":
            continue  # lowering for Triton asks for the GPU from there on
        text = export_gradient(key, query, platform)
        platforms = {other for other, name in CALLS.items() if name and name in text}
        assert platforms == ({platform} if call else set())


def export_gradient(key, query, platform):
    def gradient(key, query):
        return jax.grad(lambda query: attend(key, query).astype(jnp.float32).sum())(query)

    return export(gradient, platform)(key, query).mlir_module()


def export(fn, platform):
    triton = jax.export.DisabledSafetyCheck.custom_call(CALLS["cuda"])
    return jax.export.export(jax.jit(fn), platforms=[platform], disabled_checks=[triton])


@pytest.mark.slow
def test_under_shard_map_the_offset_tells_each_part(key):
    """The interpreter itself, of Pallas, works without check_vma only; a compiled kernel does."""
    query = jnp.asarray(np.random.default_rng(0).normal(size=(4, 40, 2, 8)), jnp.float32)
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(AxisType.Auto,))
    rows = PartitionSpec("data")

    def part(key, query):
        return attend(key, query, dropout_row_offset=jax.lax.axis_index("data"))

    specs = {"in_specs": (PartitionSpec(), rows), "out_specs": rows}
    mapped = jax.jit(jax.shard_map(part, mesh=mesh, check_vma=False, **specs))
    checked = export(jax.shard_map(part, mesh=mesh, check_vma=True, **specs), "tpu")
    assert CALLS["tpu"] in checked(key, query).mlir_module()
    np.testing.assert_allclose(mapped(key, query), attend(key, query), rtol=1e-5, atol=1e-6)
    results, expected = (
        jax.grad(lambda query, fn=fn: (fn(key, query) ** 2).sum())(query) for fn in (mapped, attend)
    )
    np.testing.assert_allclose(results, expected, rtol=1e-4, atol=1e-5)


def test_vmap_is_a_loop(key):
    query = jnp.asarray(np.random.default_rng(0).normal(size=(3, 1, 40, 2, 8)), jnp.float32)
    keys = jax.random.split(key, 3)
    expected = jnp.stack([attend(k, q) for k, q in zip(keys, query, strict=True)])
    np.testing.assert_allclose(jax.vmap(attend)(keys, query), expected, rtol=1e-5, atol=1e-6)


def test_the_environment_names_the_implementation(monkeypatch):
    query = jax.ShapeDtypeStruct((1, 128, 2, 64), jnp.float32)
    assert attention_implementation(query, query).implementation == "blockwise"
    monkeypatch.setenv("DROPOUT_JAX_ATTENTION", "kernel")
    assert attention_implementation(query, query).implementation == "kernel"
    assert attention_implementation(query, query, implementation="naive").implementation == "naive"
    monkeypatch.setenv("DROPOUT_JAX_ATTENTION", "fast")
    with pytest.raises(ValueError, match="DROPOUT_JAX_ATTENTION='fast'"):
        attention_implementation(query, query)


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        (AxisType.Explicit, ()),
        slow(AxisType.Auto, ()),
        slow(AxisType.Auto, (None, None, "heads")),
        slow(AxisType.Explicit, (None, None, "heads")),
    ],
)
@pytest.mark.slow
def test_grouped_heads_on_more_devices_than_key_heads(key, kind, spec):
    """The compiler gathers the heads then; and replicated arrays are computed everywhere."""
    rng = np.random.default_rng(0)
    query, k = (jnp.asarray(rng.normal(size=(2, 40, n, 8)), jnp.float32) for n in (4, 2))
    mesh = jax.make_mesh((4,), ("heads",), devices=jax.devices()[:4], axis_types=(kind,))

    @jax.jit
    def gradients(query, k):
        def total(query, k):
            options = {"dropout_rate": 0.3, "dropout_key": key, "implementation": "kernel"}
            return (dot_product_attention(query, k, k, **options) ** 2).sum()

        return jax.grad(total, argnums=(0, 1))(query, k)

    expected = gradients(query, k)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(query, NamedSharding(mesh, PartitionSpec(*spec)))
        results = gradients(sharded, jax.device_put(k, NamedSharding(mesh, PartitionSpec())))
    for ours, truth in zip(results, expected, strict=True):
        np.testing.assert_allclose(ours, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (AxisType.Explicit, (1, 2, 40, 40)),
        slow(AxisType.Auto, (1, 2, 40, 40)),
        slow(AxisType.Auto, (4, 1, 1, 40)),
        slow(AxisType.Explicit, (4, 1, 1, 40)),
    ],
)
@pytest.mark.slow
def test_the_gradient_of_a_shared_bias_is_summed_over_devices(key, kind, shape):
    rng = np.random.default_rng(0)
    query = jnp.asarray(rng.normal(size=(4, 40, 2, 8)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=shape), jnp.float32)
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(kind,) * 2)

    @jax.jit
    def gradient(query, bias):
        return jax.grad(lambda bias: (attend(key, query, bias=bias) ** 2).sum())(bias)

    expected = gradient(query, bias)
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
        result = gradient(jax.device_put(query, sharding), bias)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
