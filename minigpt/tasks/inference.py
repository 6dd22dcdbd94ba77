"""A trained model in Python: load it from its run directory, score texts and generate."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack, overload

import jax
import numpy as np
from numpy.typing import ArrayLike

from minigpt import checkpoint as checkpoints
from minigpt.config import Checkpoint, Config, require_seed
from minigpt.data import AnyTokenizer
from minigpt.distributed import shard_state
from minigpt.model import Window, default_prompt, generate_ids
from minigpt.run import RunSpec, read_metrics, restore_run
from minigpt.tasks.text_stream import TextStream
from minigpt.training import (
    CompiledSteps,
    Evaluation,
    build_abstract_train_functions,
    evaluate_text,
    is_past_its_best,
)

ROWS = 16  # samples that are drawn at the same time


class GenerationOptions(TypedDict, total=False):
    """The options of `LoadedModel.generate`."""

    tokens: int
    """number of tokens to generate: 500"""
    temperature: float
    """divisor of the logits: 1.0; 0 takes the likeliest token"""
    top_k: int | None
    """sample only from the k likeliest tokens"""
    top_p: float | None
    """sample only from the fewest tokens whose probabilities sum to at least this"""
    seed: int
    """seed of each prompt's first sample: 0; sample i has the seed (seed + i) mod 2^32"""
    stop: str | Sequence[str] | None
    """a sample ends before this text, or before the first of several"""
    window: Window
    """once block_size tokens are full: "slide" by one for each token, the default, or drop "half",
    which is faster; see minigpt.model.generate_ids"""


class Piece(NamedTuple):
    """Text that a sample has got."""

    sample: int
    """index of the sample"""
    text: str
    is_last: bool


class LoadedModel(NamedTuple):
    """A trained model with its settings and tokenizer; dropout is off."""

    run: RunSpec
    compiled: CompiledSteps
    step: int
    """the step of the checkpoint"""
    val_loss: float | None
    """the validation loss that the trainer measured at this step"""

    def __repr__(self) -> str:
        """One line: without the parameters."""
        model = self.config.model
        return (
            f"LoadedModel({model.n_layer} layers, {model.n_head} heads, width {model.n_embd}, "
            f"context {model.block_size}, vocabulary {self.tokenizer.vocab_size}, step {self.step})"
        )

    @property
    def config(self) -> Config:
        """The run's settings."""
        return self.run.config

    @property
    def tokenizer(self) -> AnyTokenizer:
        """The run's tokenizer."""
        return self.run.tokenizer

    @property
    def params(self) -> Any:
        """The trained parameters."""
        return self.compiled.state.params

    def encode(self, text: str) -> np.ndarray:
        """Convert text to token ids; an unknown character is a ValueError.

        A special token such as <|im_start|> in the text is text: `minigpt chat` writes real ones.
        """
        if not isinstance(text, str):
            raise TypeError(f"text={text!r:.200} is not allowed: it must be a str.")
        return self.tokenizer.encode(text)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Convert token ids to text.

        Raises:
          ValueError: an id is not one of the tokenizer's.
        """
        array, size = np.asarray(ids), self.tokenizer.vocab_size
        if array.size and not (
            np.issubdtype(array.dtype, np.integer) and 0 <= array.min() <= array.max() < size
        ):
            raise ValueError(
                f"ids={ids!r:.200} is not allowed: they must be integers from 0 to {size - 1}."
            )
        return self.tokenizer.decode(array.ravel())

    def logits(self, tokens: ArrayLike) -> jax.Array:
        """Logits of the next token after each token, for (time,) or (batch, time) ids.

        The result has one more axis, of the size of the tokenizer's vocabulary. A row may have at
        most `config.model.block_size` ids; every shape is compiled once.
        """
        ids, size = np.asarray(tokens), self.tokenizer.vocab_size
        is_valid = ids.ndim in (1, 2) and ids.size and np.issubdtype(ids.dtype, np.integer)
        if not (is_valid and ids.min() >= 0 and ids.max() < size):
            raise ValueError(
                f"tokens={tokens!r:.200} is not allowed: it must be one row of ids, or rows of the "
                f"same length, each from 0 to {size - 1}. Use encode(text)."
            )
        rows = np.atleast_2d(ids).astype(np.int32)
        logits = self.compiled.logits(self.params, rows)[..., :size]
        return logits if ids.ndim == 2 else logits[0]

    def loss(self, text: str) -> Evaluation:
        """The loss on a text: nats per token, perplexity and bits per character.

        Every token except the first is predicted once, from at most block_size tokens before it.
        """
        tokens = self.encode(text)
        if len(tokens) < 2:
            raise ValueError(f"text={text!r} is not allowed: it must have at least two tokens.")
        block_size = min(self.config.model.block_size, len(tokens) - 1)
        return evaluate_text(
            self.compiled.eval_step,
            self.params,
            tokens,
            len(text),
            batch_size=min(self.config.batch_size, -(-(len(tokens) - 1) // block_size)),
            block_size=block_size,
            first_characters=len(self.decode(tokens[:1])),
        )

    @overload
    def generate(self, prompt: str | None = None, **options: Unpack[GenerationOptions]) -> str: ...

    @overload
    def generate(
        self, prompt: str | None = None, *, num_samples: int, **options: Unpack[GenerationOptions]
    ) -> list[str]: ...

    @overload
    def generate(
        self,
        prompt: list[str],
        *,
        num_samples: int | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[str]: ...

    def generate(
        self,
        prompt: str | list[str] | None = None,
        *,
        num_samples: int | None = None,
        **options: Unpack[GenerationOptions],
    ) -> str | list[str]:
        """Generate the text that continues a prompt, or each of several prompts.

        Args:
          prompt: a text or several; None is a newline, or the first character of an alphabet
            without a newline.
          num_samples: continuations of each prompt.
          **options: tokens=500, temperature=1.0 (0: the likeliest token), top_k, top_p, seed=0,
            stop (a text or several, before which a continuation ends), window="slide" or "half".

        Returns:
          The continuation, without the prompt. With several prompts or with `num_samples`, a list:
          all continuations of the first prompt, then those of the next.

        A continuation depends on its prompt, its seed and the options, not on how many are
        generated at the same time (but for rounding: two tokens with equal chances).
        """
        given = prompt if isinstance(prompt, list) else ["" if prompt is None else prompt]
        if not all(isinstance(text, str) for text in given):
            allowed = "a text, a list of texts, or None"
            raise TypeError(f"prompt={prompt!r:.200} is not allowed: it must be {allowed}.")
        is_one = num_samples is None and (prompt is None or isinstance(prompt, str))
        prompts = [prompt] if prompt is None or isinstance(prompt, str) else prompt
        count = 1 if num_samples is None else num_samples
        texts = [""] * (len(prompts) * count)
        for piece in self.stream(prompts, num_samples=count, **options):
            texts[piece.sample] += piece.text
        return texts[0] if is_one else texts

    def stream(
        self,
        prompts: Sequence[str | np.ndarray | None],
        *,
        num_samples: int = 1,
        **options: Unpack[GenerationOptions],
    ) -> Iterator[Piece]:
        """Yield the texts of `generate` piece by piece, as they are drawn.

        A prompt may also be token ids.
        """
        _check(num_samples, options)
        defaults = GenerationOptions(tokens=500, seed=0, stop=None)
        keywords: Any = defaults | options
        seed, stop = keywords.pop("seed"), keywords.pop("stop")
        default = default_prompt(self.tokenizer)
        texts = [default if prompt is None else prompt for prompt in prompts]
        encoded = [self.encode(text) if isinstance(text, str) else text for text in texts]
        rows = [(ids, (seed + i) % 2**32) for ids in encoded for i in range(num_samples)]
        batches = [rows[first : first + ROWS] for first in range(0, len(rows), ROWS)]
        chunks = [
            generate_ids(
                self.compiled.generation,
                self.params,
                [ids for ids, _ in batch],
                seeds=[seed for _, seed in batch],
                vocab_size=self.tokenizer.vocab_size,
                **keywords,
            )
            for batch in batches
        ]
        streams = [TextStream(self.tokenizer, stop) for _ in rows]
        return _pieces(chunks, streams, keywords["tokens"])


def _pieces(
    batches: list[Iterator[np.ndarray]], streams: list[TextStream], tokens: int
) -> Iterator[Piece]:
    """The pieces of all samples, one batch of ROWS samples after the other."""
    for batch, chunks in enumerate(batches):
        first, drawn = batch * ROWS, 0
        rows = streams[first : first + ROWS]
        for chunk in itertools.chain([np.zeros((len(rows), 0), np.int32)], chunks):
            drawn += chunk.shape[1]
            for row, stream in enumerate(rows):
                if stream.is_stopped:
                    continue
                text = stream.add(chunk[row].tolist(), is_last=drawn == tokens)
                yield Piece(first + row, text, stream.is_stopped or drawn == tokens)
            if all(stream.is_stopped for stream in rows):
                break


def _check(num_samples: int, options: GenerationOptions) -> None:
    names = GenerationOptions.__annotations__
    for name in options:
        if name not in names:
            allowed = f"one of {', '.join(names)}"
            raise TypeError(f"the option {name!r} is not allowed: it must be {allowed}.")
    tokens = options.get("tokens", 0)
    if isinstance(tokens, bool) or not hasattr(tokens, "__index__"):
        raise TypeError(f"tokens={tokens!r} is not allowed: it must be an integer.")
    require_seed(options.get("seed", 0))
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples} is not allowed: it must be at least 1.")
    stop = options.get("stop")
    if "" in ([stop] if isinstance(stop, str) else stop or ()):
        raise ValueError("stop='' is not allowed: it must have at least one character.")


def load(run_dir: str | Path, checkpoint: Checkpoint | None = None) -> LoadedModel:
    """Load a trained model from its run directory, on one device.

    Args:
      run_dir: directory of a run of `minigpt train` or `minigpt finetune`.
      checkpoint: "last", "best" (the lowest validation loss), or a step. None: the best if the run
        reported overfitting or stopped early, otherwise the last.

    Raises:
      ValueError: there is no run, or no such checkpoint, or it is damaged.

    >>> import tempfile
    >>> from rich.console import Console
    >>> from minigpt.config import Config, ModelConfig
    >>> from minigpt.training import train
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "text.txt").write_text("to be or not to be, " * 20)
    >>> tiny = ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=4)
    >>> config = Config(folder / "text.txt", steps=1, sample_tokens=0, model=tiny)
    >>> train(config, folder / "run", Console(quiet=True))
    >>> model = load(folder / "run")
    >>> model.step, model.config.model.block_size, model.tokenizer.vocab_size
    (1, 4, 8)
    >>> len(model.generate("to be", tokens=5, seed=1))
    5
    >>> [len(text) for text in model.generate(["to", "not to"], num_samples=2, tokens=3)]
    [3, 3, 3, 3]
    >>> model.logits(model.encode("to b")).shape
    (4, 8)
    >>> evaluation = model.loss("to be or not")
    >>> round(evaluation.loss, 1), round(evaluation.bits_per_character, 1), evaluation.tokens
    (2.1, 3.0, 11)
    """
    run_dir = Path(run_dir)
    run = RunSpec.load(run_dir)
    one_device = dataclasses.replace(run.config, mesh="data=1")
    compiled = build_abstract_train_functions(one_device, run.vocab_size, jax.local_devices())
    step = choose_step(run_dir, run.config, checkpoint)
    state, meta = restore_run(run_dir, run.config, compiled.state, step)
    return _with_parameters(run, compiled, state.params, int(state.step), meta.get("val_loss"))


def load_parameters(run: RunSpec, params: Any) -> LoadedModel:
    """A model of these settings, tokenizer and parameters, on one device; its step is 0."""
    one_device = dataclasses.replace(run.config, mesh="data=1")
    compiled = build_abstract_train_functions(one_device, run.vocab_size, jax.local_devices())
    return _with_parameters(run, compiled, params, 0, None)


def _with_parameters(
    run: RunSpec, compiled: CompiledSteps, params: Any, step: int, val_loss: float | None
) -> LoadedModel:
    """Only the parameters are needed on the device."""
    params = shard_state(compiled.mesh, params)
    state = compiled.state._replace(step=np.int32(step), params=params, opt_state=None)
    return LoadedModel(run, compiled._replace(state=state), step, val_loss)


def choose_step(run_dir: Path, config: Config, checkpoint: Checkpoint | None) -> int | None:
    """The step of a checkpoint by `load`'s rule; None is the newest."""
    if isinstance(checkpoint, int) and not isinstance(checkpoint, bool):
        return checkpoint
    if checkpoint not in ("best", "last", None):
        raise ValueError(
            f"checkpoint={checkpoint!r} is not allowed: it must be 'best', 'last' or a step."
        )
    takes_best = checkpoint == "best"
    if checkpoint is None:
        takes_best = is_past_its_best(read_metrics(run_dir), config)
    return checkpoints.best_step(run_dir) if takes_best else None
