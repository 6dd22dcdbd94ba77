"""LoRA layers: their numbers, their dropout site, what is trained, and the same as peft's."""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from gpt2_folders import make_model, save_model
from marks import slow
from tiny import CONFIG, LLAMA, MODEL, SITES, with_dropout

from dropout_jax.parity import hooks
from minigpt.config import LORA_TARGETS, Config, DropoutConfig, LoraConfig, ModelConfig
from minigpt.interop import read_huggingface
from minigpt.interop.safetensors import plain_parameters
from minigpt.model import GPT, join_trained, merge_lora, split_lora, split_trained
from minigpt.model.dropout_sites import draw_masks, site_specs

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (3, 32)))
GPT_TARGETS = [target for target in LORA_TARGETS if target != "mlp_gate"]
ADAPTED = dataclasses.replace(MODEL, lora=LoraConfig(3, 6.0, ",".join(GPT_TARGETS)))
LLAMA_ADAPTED = dataclasses.replace(LLAMA, lora=LoraConfig(3, 6.0, ",".join(LORA_TARGETS)))
DROPPED = with_dropout(ADAPTED, **dict.fromkeys((*SITES, "lora"), 0.25))


def randomize(params, seed=0):
    """A and B as large as trained ones: B is zero at first."""
    random = np.random.default_rng(seed)
    lora, others = split_lora(params)
    lora = jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.3, leaf.shape), "f4"), lora)
    return nnx.merge_state(lora, others)


def split_gpt(config=ADAPTED):
    return nnx.split(GPT(config, 11, rngs=nnx.Rngs(0)))


@pytest.mark.slow
def test_it_begins_as_the_function_of_the_parent_with_the_numbers_of_peft(key):
    wide = dataclasses.replace(ADAPTED, n_embd=64, lora=LoraConfig(16))
    graph, params = split_gpt(wide)
    lora, others = split_lora(params)
    arrays = {path[-2:]: leaf[...] for path, leaf in nnx.to_flat_state(lora)}
    assert {name: leaf.shape for name, leaf in arrays.items()} == {
        ("qkv", "lora_a"): (64, 16),
        ("qkv", "lora_b"): (16, 192),
        ("out", "lora_a"): (64, 16),
        ("out", "lora_b"): (16, 64),
    }
    for layer in ("qkv", "out"):
        assert not arrays[layer, "lora_b"].any()
        a = arrays[layer, "lora_a"]
        assert abs(a).max() == pytest.approx(1 / 8, rel=0.05)
        assert abs(a).max() <= 1 / 8
        assert a.std() == pytest.approx(1 / 8 / 3**0.5, rel=0.05)
    plain = nnx.split(GPT(wide.without_lora(), 11, rngs=nnx.Rngs(0)))[0]
    one, other = (
        nnx.merge(*parts)(TOKENS, key=key) for parts in ((graph, params), (plain, others))
    )
    np.testing.assert_array_equal(one, other)


def test_a_layer_by_its_formula(key):
    """y = W x + (alpha / rank) B A dropout(x), in every one of the four layers."""
    graph, params = split_gpt(DROPPED)
    params = randomize(params)
    captures: Any = {}
    nnx.merge(graph, params)(TOKENS, key=key, captures=captures)
    specs = site_specs(DROPPED, *TOKENS.shape)
    assert list(captures) == list(specs)
    assert [name for name in specs if name.startswith("block/1/lora")] == [
        f"block/1/lora/{target}" for target in GPT_TARGETS
    ]
    assert {name: entry["mask"].shape for name, entry in captures.items()} == {
        name: spec.shape for name, spec in specs.items()
    }
    layer = nnx.merge(graph, params).blocks[1].mlp.wide
    site = captures["block/1/lora/mlp_in"]
    dropped = np.where(site["mask"], np.asarray(site["input"]) / 0.75, 0)
    update = dropped @ np.asarray(layer.lora_a[...]) @ np.asarray(layer.lora_b[...]) * (6 / 3)
    expected = np.asarray(site["input"]) @ np.asarray(layer.kernel[...]) + update
    hidden = np.asarray(nnx.gelu(jnp.asarray(expected), approximate=True))
    np.testing.assert_allclose(captures["block/1/mlp_hidden"]["input"], hidden, rtol=0, atol=1e-5)


def test_the_gate_of_swiglu_by_its_formula(key):
    """The same formula, in the layer whose activation multiplies the hidden layer."""
    config = with_dropout(LLAMA_ADAPTED, lora=0.25)
    graph, params = split_gpt(config)
    params = randomize(params)
    captures: Any = {}
    nnx.merge(graph, params)(TOKENS, key=key, captures=captures)
    assert list(captures) == list(site_specs(config, *TOKENS.shape))
    layer = nnx.merge(graph, params).blocks[1].mlp.gate
    assert layer is not None
    site = captures["block/1/lora/mlp_gate"]
    dropped = np.where(site["mask"], np.asarray(site["input"]) / 0.75, 0)
    update = dropped @ np.asarray(layer.lora_a[...]) @ np.asarray(layer.lora_b[...]) * (6 / 3)
    gate = np.asarray(site["input"]) @ np.asarray(layer.kernel[...]) + update
    wide = nnx.merge(graph, params).blocks[1].mlp.wide
    site = captures["block/1/lora/mlp_in"]
    dropped = np.where(site["mask"], np.asarray(site["input"]) / 0.75, 0)
    hidden = np.asarray(site["input"]) @ np.asarray(wide.kernel[...])
    hidden += dropped @ np.asarray(wide.lora_a[...]) @ np.asarray(wide.lora_b[...]) * (6 / 3)
    expected = np.asarray(nnx.silu(jnp.asarray(gate))) * hidden
    actual = captures["block/1/lora/mlp_out"]["input"]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_its_masks_are_of_its_own_and_change_no_other(key):
    masks, others = (
        draw_masks(DROPPED, key, 3, 32),
        draw_masks(
            dataclasses.replace(
                DROPPED,
                lora=LoraConfig(),
                dropout=DropoutConfig(**{**DROPPED.dropout.rates, "lora": 0.0}),
            ),
            key,
            3,
            32,
        ),
    )
    for name, mask in others.items():
        np.testing.assert_array_equal(masks[name], mask)
    new = [np.asarray(masks[name]) for name in masks.keys() - others.keys()]
    assert len(new) == 8
    assert len({mask.tobytes() for mask in new}) == 8


@pytest.mark.parametrize(
    "how", [slow({"scan_layers": True}), {"remat": True}, slow({"dtype": "bfloat16"})]
)
def test_scan_remat_and_bfloat16_compute_the_same(how, key):
    graph, params = split_gpt(DROPPED)
    params = randomize(params)
    other_graph, like = split_gpt(dataclasses.replace(DROPPED, **how))
    other = params
    if "scan_layers" in how:
        blocks = [params["blocks"][i] for i in range(MODEL.n_layer)]
        other = nnx.merge_state(
            nnx.filter_state(params, lambda path, _: path[0] != "blocks"),
            nnx.State({"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}),
        )
    assert jax.tree.structure(other) == jax.tree.structure(like)
    tolerance = 0.05 if "dtype" in how else 2e-5
    one, two = nnx.merge(graph, params), nnx.merge(other_graph, other)
    np.testing.assert_allclose(two(TOKENS, key=key), one(TOKENS, key=key), 0, tolerance)
    np.testing.assert_allclose(two(TOKENS, key=None), one(TOKENS, key=None), 0, tolerance)


@pytest.mark.parametrize(
    "config", [DROPPED, dataclasses.replace(DROPPED, scan_layers=True), LLAMA_ADAPTED]
)
def test_the_merged_model_computes_the_same(config):
    graph, params = split_gpt(config)
    params = randomize(params)
    plain, like = split_gpt(config.without_lora())
    merged = merge_lora(config, params)
    assert jax.tree.structure(merged) == jax.tree.structure(like)
    logits = nnx.merge(graph, params)(TOKENS, key=None)
    np.testing.assert_allclose(nnx.merge(plain, merged)(TOKENS, key=None), logits, 0, 2e-6)
    assert abs(nnx.merge(plain, split_lora(params)[1])(TOKENS, key=None) - logits).max() > 0.01


# What is trained.

FROZEN = [
    (3, 1, lambda name: "lora" in name and "blocks.1" in name),
    (3, None, lambda name: "lora" in name),
    (None, 0, lambda name: name.startswith(("blocks", "norm"))),
    (None, 1, lambda name: name.startswith(("blocks.1", "norm"))),
    (None, 2, lambda name: name.startswith("norm")),
    (None, None, lambda name: True),
]


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(("rank", "freeze", "is_trained"), FROZEN)
def test_which_parameters_are_trained(rank, freeze, is_trained, scan):
    model = dataclasses.replace(MODEL, lora=LoraConfig(rank), scan_layers=scan)
    config = dataclasses.replace(CONFIG, model=model, freeze=freeze)
    _, params = split_gpt(model)
    params = randomize(params)
    trained, frozen = split_trained(config, params)
    joined = join_trained(trained, frozen)
    assert jax.tree.structure(joined) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, joined, params)
    marked = join_trained(jax.tree.map(lambda leaf: leaf + 100, trained), frozen)
    before, after = plain_parameters(params), plain_parameters(marked)
    assert {name for name in before if (before[name] != after[name]).all()} == {
        name for name in before if is_trained(name)
    }
    assert {name for name in before if (before[name] == after[name]).all()} == {
        name for name in before if not is_trained(name)
    }


# Refused values.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoraConfig(0), "lora.rank=0 is not allowed: .*--lora-rank 8"),
        (lambda: LoraConfig(2.5), "lora.rank=2.5 is not allowed"),  # pyright: ignore[reportArgumentType]
        (lambda: LoraConfig(-1), "lora.rank=-1 is not allowed"),
        (lambda: ModelConfig(lora=LoraConfig(129)), "lora.rank=129 .*at most 128"),
        (lambda: LoraConfig(8, 0.0), "lora.alpha=0.0 is not allowed: .*--lora-alpha"),
        (lambda: LoraConfig(8, float("nan")), "lora.alpha=nan"),
        (
            lambda: LoraConfig(8, targets="qkv,ffn"),
            "lora.targets='qkv,ffn' .*qkv,out,mlp_in,mlp_gate,mlp_out",
        ),
        (lambda: LoraConfig(8, targets=""), "lora.targets=''"),
        (lambda: LoraConfig(alpha=8.0), "lora.alpha=8.0 .*--lora-rank"),
        (lambda: LoraConfig(targets="qkv"), "lora.targets='qkv' .*--lora-rank"),
        (lambda: DropoutConfig(lora=1.0), "dropout.lora=1.0 is not allowed"),
        (lambda: DropoutConfig(lora=-0.1), "dropout.lora=-0.1 is not allowed"),
        (lambda: ModelConfig(dropout=DropoutConfig(lora=0.1)), "dropout.lora=0.1 .*--lora-rank"),
        (lambda: Config(freeze=-1), "freeze=-1 is not allowed"),
        (lambda: Config(freeze=5), "freeze=5 is not allowed: it must be from 0 to 4"),
        (lambda: Config(freeze=4, model=ModelConfig(lora=LoraConfig(8))), "freeze=4 .*from 0 to 3"),
        (lambda: Config(freeze=4, model=ModelConfig(norm="post")), "freeze=4 .*from 0 to 3"),
    ],
)
def test_impossible_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# The same as peft.

IDS = np.random.default_rng(0).integers(0, 50, (3, 16))
RANK, ALPHA, TARGETS = 3, 6, "qkv,out,mlp_out"  # c_proj is the name of two layers
MODULES = {"attn/qkv": "attn/c_attn", "attn/out": "attn/c_proj", "mlp/out": "mlp/c_proj"}
SITE_OF = {
    "attn_out": "attn/resid_dropout",
    "mlp_out": "mlp/dropout",
    "lora/qkv": "attn/c_attn/lora_dropout/default",
    "lora/out": "attn/c_proj/lora_dropout/default",
    "lora/mlp_out": "mlp/c_proj/lora_dropout/default",
}
# (transformers drops attention weights by a function, which no hook reaches.)
RATES = {"embed": 0.125, "attn_out": 0.125, "mlp_out": 0.125, "lora": 0.25}


def adapt_with_peft(model, dtype):
    """The model with peft's layers, with random A and B."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = peft.LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=RATES["lora"],
            target_modules=["c_attn", "c_proj"],
            fan_in_fan_out=True,
        )
        adapted = peft.get_peft_model(model, settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return adapted.to(getattr(torch, dtype)).train()


def lora_of_peft(adapted, convert):
    """A and B, or their gradients, by our path of the layer and the name: transposed."""
    named = dict(adapted.named_parameters())
    arrays: dict[Any, np.ndarray] = {
        ("blocks", i, *ours.split("/"), "lora_a" if letter == "A" else "lora_b"): np.asarray(
            convert(
                named[
                    f"base_model.model.transformer.h.{i}.{theirs.replace('/', '.')}"
                    f".lora_{letter}.default.weight"
                ]
            )
        ).T
        for i in range(2)
        for ours, theirs in MODULES.items()
        for letter in "AB"
    }
    return arrays


def hook_name(site):
    path = site.split("/", 2)
    name = "drop" if site == "embed" else f"h/{path[1]}/{SITE_OF[path[2]]}"
    return f"base_model/model/transformer/{name}"


def assert_close(ours, theirs, tolerance, name=""):
    scale = abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, 0, tolerance * scale, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_forward_and_gradients_equal_those_of_peft(tmp_path, key, dtype, tolerance):
    theirs = make_model(attn_pdrop=0.0, embd_pdrop=0.125, resid_pdrop=0.125)
    run, base = read_huggingface(save_model(tmp_path / "model", theirs))
    adapted = adapt_with_peft(theirs, dtype)
    lora = LoraConfig(RANK, ALPHA, TARGETS)
    config = with_dropout(dataclasses.replace(run.config.model, lora=lora), **RATES)
    masks = {hook_name(name): np.asarray(m) for name, m in draw_masks(config, key, 3, 16).items()}
    hooks.give_masks(adapted, masks)
    their_logits = adapted(torch.tensor(IDS)).logits
    flat_logits, targets = their_logits[:, :-1].reshape(-1, 50), torch.tensor(IDS[:, 1:])
    their_loss = torch.nn.functional.cross_entropy(flat_logits, targets.reshape(-1))
    their_loss.backward()
    their_gradients = lora_of_peft(adapted, lambda parameter: parameter.grad)
    weights = lora_of_peft(adapted, lambda parameter: parameter.detach())

    with jax.enable_x64(dtype == "float64"):
        graph, params = nnx.split(nnx.eval_shape(lambda: GPT(config, 50, rngs=nnx.Rngs(0))))
        lora, _ = split_lora(params)
        assert {path for path, _ in nnx.to_flat_state(lora)} == set(weights)
        lora = nnx.from_flat_state(
            {
                path: leaf.replace(jnp.asarray(weights[path]))
                for path, leaf in nnx.to_flat_state(lora)
            }
        )
        base = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), base)

        def loss(lora):
            logits = nnx.merge(graph, nnx.merge_state(base, lora))(IDS, key=key)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], IDS[:, 1:])
            return losses.mean(), logits

        (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(lora)
        gradients = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(gradients)}
    assert logits.dtype == dtype
    assert_close(logits, their_logits.detach().numpy(), tolerance)
    assert_close(float(value), np.asarray(their_loss.item()), tolerance)
    for path, gradient in gradients.items():
        assert abs(gradient).max() > 1e-4, path
        assert_close(gradient, their_gradients[path], tolerance, str(path))
