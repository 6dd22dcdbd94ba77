"""Generation: the tokens of the uncached form, and what each option lets through."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import uncached
from flax import nnx
from marks import slow
from tiny import CONFIG, LLAMA

from minigpt.config import ModelConfig
from minigpt.data import Tokenizer
from minigpt.model.generate import default_prompt, generate_ids, sample_token
from minigpt.model.gpt import GPT
from minigpt.training import build_train_functions

PROBABILITIES = np.array([0.5, 0.25, 0.15, 0.1])
BLOCK, ROWS, VOCABULARY, TOKENS = 12, 31, 29, 20
PROMPTS = [np.random.default_rng(n).integers(0, VOCABULARY, n) for n in (1, 5, 12, 30)]
SEEDS = [3, 2**32 - 1, 0, 3]
LLAMA_PARTS = "activation", "norm_type", "positions", "rope_theta", "tied_head", "n_inner"
MODELS = {
    "plain": {},
    "scan": {"scan_layers": True},
    "post-norm": {"norm": "post"},
    "bias": {"bias": True},
    "remat": {"remat": True},
    "dropout": {"dropout": dataclasses.replace(CONFIG.model.dropout, embed=0.5, attn_weights=0.5)},
    "llama": {name: getattr(LLAMA, name) for name in LLAMA_PARTS} | {"n_kv_head": 1},
}
OPTIONS = [
    {},
    {"temperature": 0},
    {"temperature": 0.7, "top_k": 3},
    {"top_p": 0.5},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.9},
]
ALWAYS = ("plain", "scan", "llama")  # the others are slow


@functools.cache
def build(name, mesh="data=1"):
    """A model whose predictions differ from position to position: its weights are large."""
    model = ModelConfig(2, 2, 16, BLOCK, **MODELS[name])
    compiled = build_train_functions(
        dataclasses.replace(CONFIG, model=model, mesh=mesh, batch_size=4), ROWS
    )

    def enlarge(path, leaf):
        is_in_block = "blocks" in jax.tree_util.keystr(
            path
        )  # a large table: ids predict themselves
        return leaf * 5 if is_in_block and leaf.ndim > 1 else leaf

    return compiled, jax.tree.map_with_path(enlarge, compiled.state.params)


def generate(name, prompts, seeds, *, tokens=TOKENS, mesh="data=1", **options):
    compiled, params = build(name, mesh)
    chunks = generate_ids(
        compiled.generation,
        params,
        prompts,
        seeds=seeds,
        tokens=tokens,
        vocab_size=VOCABULARY,
        **options,
    )
    return np.concatenate([np.zeros((len(prompts), 0), int), *chunks], axis=1)


def generate_uncached(name, prompt, seed, **options):
    compiled, params = build(name)
    sizes = {"tokens": TOKENS, "block_size": BLOCK, "vocab_size": VOCABULARY}
    return uncached.generate(compiled.logits, params, prompt, seed=seed, **sizes, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        case if case[0] == "plain" or case in [(name, {}) for name in ALWAYS] else slow(*case)
        for case in itertools.product(MODELS, OPTIONS)
    ],
    ids=str,
)
def test_the_cache_changes_no_token(name, options):
    """Within the block and past it, for rows of different lengths at the same time."""
    rows = generate(name, PROMPTS, SEEDS, **options)
    for row, prompt, seed in zip(rows, PROMPTS, SEEDS, strict=True):
        assert row.tolist() == generate_uncached(name, prompt, seed, **options)
    assert len(set(rows.ravel())) > 2


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-5), slow("bfloat16", 2e-2)])
def test_cached_logits_are_those_of_the_whole_text(dtype, rtol):
    model = GPT(ModelConfig(3, 2, 32, BLOCK, dtype=dtype), ROWS, rngs=nnx.Rngs(0))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, ROWS, (2, BLOCK)))
    expected = np.asarray(jax.jit(lambda: model(tokens, key=None))())
    cache = jax.jit(lambda: model.fill_cache(tokens[:, :4]))()
    next_logits = jax.jit(model.next_logits)
    for i in range(4, BLOCK):
        logits, cache = next_logits(cache, tokens[:, i], jnp.array([i, i]))
        error = np.abs(np.asarray(logits) - expected[:, i]).max()
        assert error < rtol * np.abs(expected).max()


@pytest.mark.parametrize("window", ["slide", "half"])
def test_a_row_does_not_depend_on_the_others(window):
    together = generate("plain", PROMPTS, SEEDS, tokens=40, window=window)
    for row, prompt, seed in zip(together, PROMPTS, SEEDS, strict=True):
        alone = generate("plain", [prompt], [seed], tokens=40, window=window)
        assert row.tolist() == alone[0].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "scan"])
def test_a_mesh_changes_no_token(name):
    mesh = "fsdp=2,tensor=2"
    np.testing.assert_array_equal(
        generate(name, PROMPTS, SEEDS, mesh=mesh), generate(name, PROMPTS, SEEDS)
    )


def test_half_drops_the_older_half_when_the_block_is_full():
    compiled, params = build("plain")
    ids = list(PROMPTS[1])
    window = list(ids)
    for _ in range(30):
        if len(window) > BLOCK:
            window = window[-BLOCK // 2 :]
        padded = np.zeros((1, BLOCK), np.int32)
        padded[0, : len(window)] = window
        scores = compiled.logits(params, padded)[0, len(window) - 1, :VOCABULARY]
        ids.append(int(scores.argmax()))
        window.append(ids[-1])
    row = generate("plain", PROMPTS[1:2], [0], tokens=30, temperature=0, window="half")[0]
    assert row.tolist() == ids[len(PROMPTS[1]) :]
    slide = generate("plain", PROMPTS[1:2], [0], tokens=30, temperature=0)[0]
    assert row.tolist() != slide.tolist()


def test_fewer_tokens_are_the_first_of_more():
    more = generate("plain", PROMPTS, SEEDS)
    for tokens in (0, 1, 9):
        np.testing.assert_array_equal(
            generate("plain", PROMPTS, SEEDS, tokens=tokens), more[:, :tokens]
        )


def draw(**options):
    """Draws of one distribution, so that options can be counted."""
    settings = {"temperature": 1.0, "top_k": None, "top_p": None, "count": 400} | options
    keys = jax.random.split(jax.random.key(settings.pop("seed", 0)), settings.pop("count"))
    logits = jnp.log(jnp.asarray(PROBABILITIES, jnp.float32))
    return np.asarray(jax.vmap(lambda key: sample_token(logits, key, **settings))(keys)).tolist()


def test_draws_follow_the_distribution():
    counts = np.bincount(draw(count=2000), minlength=4)
    sd = np.sqrt(2000 * PROBABILITIES * (1 - PROBABILITIES))
    assert (abs(counts - 2000 * PROBABILITIES) < 4.9 * sd).all()


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"temperature": None}, {0}),
        ({"top_k": 1}, {0}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 9}, {0, 1, 2, 3}),
        ({"top_p": 0.4}, {0}),
        ({"top_p": 0.6}, {0, 1}),
        ({"top_p": 0.8}, {0, 1, 2}),
        ({"top_p": 1.0}, {0, 1, 2, 3}),
    ],
    ids=str,
)
def test_options_keep_the_likeliest(options, allowed):
    assert set(draw(**options)) == allowed


def test_low_temperature_sharpens():
    assert draw(temperature=0.2).count(0) > draw().count(0) + 50


@pytest.mark.slow
def test_the_seed_decides():
    one, same, other = generate("plain", [PROMPTS[1]] * 3, [1, 1, 2]).tolist()
    assert one == same != other


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"tokens": -1},
        {"seed": -1},
        {"seed": 2**32},
        {"seed": np.int64(2**32 + 1)},
        {"seed": 0.5},
        {"window": "full"},
    ],
    ids=str,
)
@pytest.mark.usefixtures("without_type_checker")
def test_bad_options_are_named(options):
    (name,) = options
    seed = options.pop("seed", 0)
    with pytest.raises(ValueError, match=f"{name}="):
        generate("plain", PROMPTS[:1], [seed], **options)


def test_an_empty_prompt_is_an_error():
    with pytest.raises(ValueError, match="prompt"):
        generate("plain", [np.array([], int)], [0])


@pytest.mark.parametrize(("alphabet", "prompt"), [(None, "\n"), ("\nab", "\n"), ("ab", "a")])
def test_the_default_prompt_is_a_character_of_the_alphabet(alphabet, prompt):
    assert default_prompt(Tokenizer(alphabet)) == prompt
