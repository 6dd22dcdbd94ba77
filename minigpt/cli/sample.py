"""minigpt sample: generate text with a trained model."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from minigpt.cli.sampling import SamplingOptions
from minigpt.config import Checkpoint, require_seed
from minigpt.data import normalize_text, read_text

if TYPE_CHECKING:
    from minigpt.tasks.inference import LoadedModel, Piece

SEPARATOR = "-" * 15
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


@dataclass(frozen=True)
class Sample:
    """Generate text with a trained model.

    For example:

      $ minigpt sample runs/shakespeare-char-cpu --prompt "To be" --temperature 0.8
    """

    run_dir: tyro.conf.Positional[Path]
    """directory of a run of `minigpt train`"""
    prompt: str | None = None
    """text to continue; None: a newline, or the first character of an alphabet without one"""
    prompt_file: Path | None = None
    """file with the text to continue, used whole"""
    prompts_file: Path | None = None
    """file with a prompt on each line; all are continued at the same time"""
    escapes: bool = False
    """read \\n, \\t and \\\\ in --prompt and --stop as a newline, a tab and a backslash"""
    tokens: int = 500
    """number of tokens to generate"""
    num_samples: int = 1
    """number of samples for each prompt; sample i, from 0, is the one that seed + i gives alone"""
    stop: str | None = None
    """end a sample before this text"""
    sampling: Annotated[SamplingOptions, tyro.conf.arg(name="")] = field(
        default_factory=SamplingOptions
    )
    seed: int = 0
    """the same seed gives the same text"""
    checkpoint: Checkpoint | None = None
    """last, best (lowest validation loss) or a step; None: best if the run
    overfitted or stopped early, else last"""


def run_sample(command: Sample) -> None:
    """Print each prompt and its continuation, the first sample as it is drawn."""
    require_seed(command.seed)
    prompts = _read_prompts(command)
    stop = command.stop and _clean("stop", command.stop, escapes=command.escapes)
    from minigpt.model import default_prompt
    from minigpt.tasks.inference import load

    model = load(command.run_dir, command.checkpoint)
    prompts = [default_prompt(model.tokenizer)] if prompts is None else prompts
    pieces = model.stream(
        prompts,
        num_samples=command.num_samples,
        tokens=command.tokens,
        seed=command.seed,
        stop=stop,
        **asdict(command.sampling),
    )
    print(_describe_checkpoint(model, command), file=sys.stderr, flush=True)
    print_as_drawn([prompt for prompt in prompts for _ in range(command.num_samples)], pieces)


def _read_prompts(command: Sample) -> list[str] | None:
    """The prompts of the option that is set; None if none is set."""
    names = ("prompt", "prompt_file", "prompts_file")
    values = {name: getattr(command, name) for name in names if getattr(command, name) is not None}
    if len(values) > 1:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in values)
        raise ValueError(f"{options} are not allowed together: set one of them.")
    if command.prompts_file:
        prompts = read_text(command.prompts_file, "prompts_file").removesuffix("\n").split("\n")
        for number, prompt in enumerate(prompts, 1):
            if not prompt:
                raise ValueError(
                    f"prompts_file={str(command.prompts_file)!r} is not allowed: its line {number} "
                    "is empty. Each line must be a prompt of at least one character."
                )
        return prompts
    if command.prompt_file:
        return [read_text(command.prompt_file, "prompt_file")]
    if command.prompt is None:
        return None
    return [_clean("prompt", command.prompt, escapes=command.escapes)]


def _clean(name: str, text: str, *, escapes: bool) -> str:
    """A text of the command line, decoded as texts are; `escapes` are read if asked for."""
    if escapes:
        text = re.sub(r"\\[nt\\]", lambda match: _ESCAPES[match[0]], text)
    return normalize_text(text, name)


def _describe_checkpoint(model: LoadedModel, command: Sample) -> str:
    """The step and the validation loss, and why this checkpoint was chosen."""
    from minigpt import checkpoint

    loss = "" if model.val_loss is None else f", validation loss {model.val_loss:.4f}"
    last = checkpoint.list_steps(command.run_dir)[-1]
    is_choice = command.checkpoint is None and model.step != last
    reason = f" (the best: later validations are worse; --checkpoint last takes step {last})"
    return f"minigpt: checkpoint of step {model.step}{loss}{reason if is_choice else ''}"


def print_as_drawn(prompts: Sequence[str], pieces: Iterable[Piece]) -> None:
    """Print the samples in their order, each as soon as it is drawn, with a line between them.

    Ctrl-C ends the line and the command.
    """
    texts, ended, current = list(prompts), [False] * len(prompts), 0  # texts to print

    def write() -> int:
        """Print what can be printed, and return the first sample that has not ended."""
        for sample in range(current, len(texts)):
            print(texts[sample], end="")
            texts[sample] = ""
            if not ended[sample]:
                break
            print(f"\n{SEPARATOR}" if sample + 1 < len(texts) else "")
        else:
            sample = len(texts)
        sys.stdout.flush()
        return sample

    try:
        current = write()
        for piece in pieces:
            texts[piece.sample] += piece.text
            ended[piece.sample] |= piece.is_last
            current = write()
    except KeyboardInterrupt:
        print(flush=True)
        sys.exit(130)
