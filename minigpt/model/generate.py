"""Generate token ids with dropout off; a new token costs one position of the model."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from dropout_jax import fold
from minigpt.config import require_seed
from minigpt.data import AnyTokenizer, Tokenizer
from minigpt.distributed import MeshFunction, replicated
from minigpt.model.gpt import GPT, unstack_layers

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Window = Literal["slide", "half"]

CHUNK = 8  # the most ids that a row gets in one call of the device
_SHORTEST_PREFILL = 16  # shorter prompts are padded, so that few programs are compiled


class GenerationSteps(NamedTuple):
    """The compiled steps of generation, for the parameters that `unstack` returns."""

    block_size: int
    unstack: MeshFunction
    """parameters to parameters with the layers one by one"""
    prefill: MeshFunction
    """(params, tokens) to the cache of tokens at positions 0, 1, ..."""
    refill: MeshFunction
    """(params, cache, tokens, rows) to the cache, with that of tokens in these rows; donated"""
    draw: MeshFunction
    """(params, cache, tokens, positions, seeds, index, count, temperature, top_p, top_k,
    vocab_size) to the cache, donated, and `count` new ids per row: (rows, CHUNK)"""


def build_generation_steps(
    stacked_graph: nnx.GraphDef[GPT], params: Any, mesh: Mesh
) -> GenerationSteps:
    """Build the steps for a model; `params` may be abstract."""
    whole = replicated(mesh)

    def unstack(params: Any) -> Any:
        return nnx.split(unstack_layers(nnx.merge(stacked_graph, params)))[1]

    def unstacked_graph() -> nnx.GraphDef[GPT]:
        model = nnx.eval_shape(
            lambda params: unstack_layers(nnx.merge(stacked_graph, params)), params
        )
        return nnx.split(model)[0]

    config = nnx.merge(stacked_graph, params).config
    graph = unstacked_graph() if config.scan_layers else stacked_graph

    def prefill(params: Any, tokens: jax.Array) -> Any:
        return nnx.merge(graph, params).fill_cache(tokens)

    def refill(params: Any, cache: Any, tokens: jax.Array, rows: jax.Array) -> Any:
        return jax.tree.map(lambda old, new: old.at[rows].set(new), cache, prefill(params, tokens))

    def jit(function: Any, **options: Any) -> MeshFunction:
        return MeshFunction(mesh, jax.jit(function, out_shardings=whole, **options))

    draw = functools.partial(_draw, graph)
    return GenerationSteps(
        block_size=config.block_size,
        unstack=MeshFunction(
            mesh, jax.jit(unstack) if config.scan_layers else lambda params: params
        ),
        prefill=jit(prefill),
        refill=jit(refill, donate_argnums=1),
        draw=jit(draw, donate_argnums=1, static_argnums=(9, 10)),
    )


def generate_ids(
    steps: GenerationSteps,
    params: Any,
    prompts: Sequence[np.ndarray],
    *,
    tokens: int,
    vocab_size: int,
    seeds: Sequence[int],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    window: Window = "slide",
) -> Iterator[np.ndarray]:
    """The ids that continue the prompts, in pieces as they are drawn: (rows, at most CHUNK).

    Each id is drawn from softmax(logits / temperature), restricted to the `top_k` likeliest ids and
    to the fewest ids whose probabilities sum to at least `top_p`. Temperature 0 takes the likeliest
    id. A row gets `tokens` ids. Its prompt and its seed, an integer from 0 to 2^32 - 1, decide
    them: id i is drawn with the key `fold(key(seed), "sample", i)`, whatever the other rows are.

    The model reads the last block_size ids, at positions 0, 1, .... Up to block_size ids, a new id
    costs one position. After that, `window` decides: "slide" reads the last block_size ids for each
    new id, which changes all positions and costs a pass over the block; "half" drops the older half
    of the block whenever it is full, so that the model reads between half a block and a block, and
    a new id costs two positions on average.
    """
    _check_options(prompts, tokens, temperature, top_k, top_p, window)
    for seed in seeds:
        require_seed(seed)
    windows = [list(map(int, prompt[-steps.block_size :])) for prompt in prompts]
    kept = steps.block_size if window == "slide" else max(steps.block_size // 2, 1)
    options = temperature or None, top_p, top_k, vocab_size
    return _draw_chunks(steps, params, windows, np.array(seeds, np.uint32), tokens, kept, options)


def _draw_chunks(
    steps: GenerationSteps,
    params: Any,
    windows: list[list[int]],
    seeds: np.ndarray,
    tokens: int,
    kept: int,
    options: tuple[Any, ...],
) -> Iterator[np.ndarray]:
    """Yield the new ids; a window with more than a block of ids is cut to its last `kept` ones."""
    params, block = steps.unstack(params), steps.block_size
    cache, drawn = steps.prefill(params, _pad(windows, block)), 0
    while drawn < tokens:
        full = [row for row, ids in enumerate(windows) if len(ids) > block]
        for row in full:
            windows[row] = windows[row][-kept:]
        cache = _refill(steps, params, cache, windows, full)
        lengths = np.array([len(ids) for ids in windows], np.int32)
        count = min(CHUNK, tokens - drawn, block + 1 - int(lengths.max()))
        last = np.array([ids[-1] for ids in windows], np.int32)
        cache, ids = _draw_chunk(
            steps, params, cache, last, lengths - 1, seeds, drawn, count, *options
        )
        drawn += count
        for row, new in zip(windows, ids.tolist(), strict=True):
            row.extend(new)
        yield ids


def default_prompt(tokenizer: AnyTokenizer) -> str:
    """A newline, or the first character of an alphabet, or the first token, if there is none."""
    if isinstance(tokenizer, Tokenizer):
        alphabet = tokenizer.alphabet or "\n"
        return "\n" if "\n" in alphabet else alphabet[0]
    tokens = (tokenizer.decode([i]) for i in range(tokenizer.vocab_size))
    return next(filter(functools.partial(_is_known, tokenizer), itertools.chain("\n", tokens)))


def _is_known(tokenizer: AnyTokenizer, text: str) -> bool:
    try:
        return len(tokenizer.encode(text)) > 0
    except ValueError:
        return False


def _refill(
    steps: GenerationSteps, params: Any, cache: Any, windows: list[list[int]], rows: list[int]
) -> Any:
    """The cache after the windows of these rows have changed."""
    if len(rows) == len(windows):
        return steps.prefill(params, np.array(windows, np.int32))
    for row in rows:  # one by one: a program for each number of rows would take long to compile
        ids, index = np.array([windows[row]], np.int32), np.array([row])
        cache = steps.refill(params, cache, ids, index)
    return cache


def _draw_chunk(steps: GenerationSteps, *arguments: Any) -> tuple[Any, np.ndarray]:
    """The cache and the new ids, on the host: (rows, count)."""
    cache, ids = steps.draw(*arguments)
    count = arguments[6]
    return cache, np.asarray(ids)[:, :count]


def _pad(windows: list[list[int]], block_size: int) -> np.ndarray:
    """The ids as an array; attention is causal, so what is to the right of a row has no effect."""
    longest = max(len(ids) for ids in windows)
    width = min(max(_SHORTEST_PREFILL, 1 << (longest - 1).bit_length()), block_size)
    padded = np.zeros((len(windows), width), np.int32)
    for row, ids in zip(padded, windows, strict=True):
        row[: len(ids)] = ids
    return padded


def _draw(
    graph: nnx.GraphDef[GPT],
    params: Any,
    cache: Any,
    tokens: jax.Array,
    positions: jax.Array,
    seeds: jax.Array,
    index: jax.Array,
    count: jax.Array,
    temperature: jax.Array | None,
    top_p: jax.Array | None,
    top_k: int | None,
    vocab_size: int,
) -> tuple[Any, jax.Array]:
    """See GenerationSteps; `index` is the number of ids that were drawn before."""
    model = nnx.merge(graph, params)
    keys = jax.vmap(lambda seed: fold(jax.random.key(seed), "sample"))(seeds)

    def draw_one(i: jax.Array, carry: tuple[Any, jax.Array, jax.Array]) -> Any:
        cache, tokens, drawn = carry
        logits, cache = model.next_logits(cache, tokens, positions + i)

        def draw_row(key: jax.Array, logits: jax.Array) -> jax.Array:
            key = fold(key, (index + i).astype(jnp.uint32))
            return sample_token(logits[:vocab_size], key, temperature, top_k, top_p)

        tokens = jax.vmap(draw_row)(keys, logits)
        return cache, tokens, drawn.at[:, i].set(tokens)

    drawn = jnp.zeros((len(tokens), CHUNK), jnp.int32)
    cache, _, drawn = lax.fori_loop(0, count, draw_one, (cache, tokens, drawn))
    return cache, drawn


def sample_token(
    logits: Float[Array, " vocab"],
    key: jax.Array,
    temperature: float | jax.Array | None,
    top_k: int | None,
    top_p: float | jax.Array | None,
) -> jax.Array:
    """Draw an id: see `generate_ids`; without a temperature, the likeliest one."""
    if temperature is None:
        return jnp.argmax(logits).astype(jnp.int32)
    scores = (logits - logits.max()) / temperature
    if top_k is not None and top_k < scores.shape[0]:
        scores = jnp.where(scores < lax.top_k(scores, top_k)[0][-1], -jnp.inf, scores)
    if top_p is not None:
        ranked = jnp.sort(scores, descending=True)
        probability_of_likelier = jnp.cumsum(jax.nn.softmax(ranked)) - jax.nn.softmax(ranked)
        lowest = jnp.min(jnp.where(probability_of_likelier < top_p, ranked, jnp.inf))
        scores = jnp.where(scores < lowest, -jnp.inf, scores)
    return jax.random.categorical(key, scores).astype(jnp.int32)


def _check_options(
    prompts: Sequence[np.ndarray],
    tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    window: Window,
) -> None:
    is_finite = 0 <= temperature < float("inf")
    for is_valid, name, value, allowed in (
        (all(len(prompt) for prompt in prompts), "prompt", "", "at least one character"),
        (tokens >= 0, "tokens", tokens, "at least 0"),
        (
            is_finite,
            "temperature",
            temperature,
            "finite, at least 0 (0: the likeliest token)",
        ),
        (top_k is None or top_k >= 1, "top_k", top_k, "at least 1"),
        (top_p is None or 0 < top_p <= 1, "top_p", top_p, "in (0, 1]"),
        (window in get_args(Window), "window", window, "'slide' or 'half'"),
    ):
        if not is_valid:
            raise ValueError(f"{name}={value!r} is not allowed: it must be {allowed}.")
