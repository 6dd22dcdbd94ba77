"""minigpt chat: a conversation with a trained model in the terminal."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from minigpt.cli.sampling import SamplingOptions
from minigpt.config import Checkpoint, require_seed
from minigpt.data import Message, normalize_text

if TYPE_CHECKING:
    from minigpt.tasks.inference import LoadedModel

RESET = "/reset"


@dataclass(frozen=True)
class Chat:
    """Talk to a model that was trained on conversations, in the terminal or through a pipe.

    For example:

      $ minigpt chat runs/tuned --temperature 0.7 --system "You answer briefly."
      $ echo "What is a sonnet?" | minigpt chat runs/tuned --temperature 0

    Ctrl-C ends an answer, and a second one the program; so does Ctrl-D. /reset begins a new
    conversation. With standard input from a pipe, each line is a message and its answer is one
    line: a newline in it is \\n, and a backslash \\\\.
    """

    run_dir: tyro.conf.Positional[Path]
    """directory of a run, such as one of `minigpt finetune`, or a Hugging Face model"""
    system: str | None = None
    """a system message, with which every conversation begins"""
    tokens: int = 500
    """the most tokens of an answer"""
    sampling: Annotated[SamplingOptions, tyro.conf.arg(name="")] = field(
        default_factory=SamplingOptions
    )
    seed: int = 0
    """the same seed and messages give the same answers"""
    checkpoint: Checkpoint | None = None
    """last, best (lowest validation loss) or a step; None: best if the run
    overfitted or stopped early, else last"""


def run_chat(command: Chat) -> None:
    """Read messages and print answers until the input ends."""
    require_seed(command.seed)
    system = None if command.system is None else normalize_text(command.system, "system")
    if system is not None and not system.strip():
        raise ValueError(
            f"system={system!r} is not allowed: it must be text that is not empty. Leave --system "
            "out."
        )
    from minigpt import load

    model = load(command.run_dir, command.checkpoint)
    # From here on Ctrl-C only ends what it interrupts: see main.run_as_process.
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.default_int_handler)
    is_terminal = sys.stdin.isatty()
    _describe(model, is_terminal=is_terminal)
    conversation = _Conversation(model, command, system, is_terminal=is_terminal)
    for line in _read_lines(is_terminal=is_terminal):
        conversation.reply(line)


def _describe(model: LoadedModel, *, is_terminal: bool) -> None:
    template = "its chat template"
    if not model.run.chat_template:
        template = (
            "the plain chat template (User: ..., Assistant: ...), which only a model that was "
            "fine-tuned on conversations answers"
        )
    _say(f"checkpoint of step {model.step}, {template}")
    if is_terminal:
        _say(f"Ctrl-C ends an answer, Ctrl-D the program; {RESET} begins a new conversation")


def _say(text: str) -> None:
    print(f"minigpt: {text}", file=sys.stderr, flush=True)


def _read_lines(*, is_terminal: bool) -> Iterator[str]:
    """The lines of standard input without their ends; in a terminal, with a prompt."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    if not is_terminal:
        yield from (line.removesuffix("\n") for line in sys.stdin)
        return
    import readline  # noqa: F401 (edits the line that `input` reads)

    is_visible = sys.stdout.isatty()
    while True:
        try:
            print("" if is_visible else "> ", end="", file=sys.stderr, flush=True)
            yield input("> " if is_visible else "")
        except EOFError:
            print()
            return


class _Conversation:
    """The messages so far, and what has been said about them."""

    def __init__(self, model: LoadedModel, command: Chat, system: str | None, *, is_terminal: bool):
        self._model, self._command, self._is_terminal = model, command, is_terminal
        self._first = [] if system is None else [Message(role="system", content=system)]
        self._is_interrupted = False
        self._reset()

    def _reset(self) -> None:
        self._messages, self._answers, self._has_dropped = list(self._first), 0, False

    def reply(self, line: str) -> None:
        """Answer a line of the user."""
        if line.strip() == RESET:
            self._reset()
            _say("a new conversation")
        elif line.strip():
            try:
                self._answer(normalize_text(line, "message"))
            except ValueError as error:
                if not self._is_terminal:
                    raise
                _say(str(error))
        elif not self._is_terminal:  # so that line n of the output answers line n of the input
            print(flush=True)

    def _answer(self, text: str) -> None:
        from minigpt.tasks.chat import make_prompt, stream_answer

        command, answer = self._command, ""
        messages = [*self._messages, Message(role="user", content=text)]
        prompt = make_prompt(self._model, messages, command.tokens)
        self._tell_dropped(len(prompt.messages) < len(messages), prompt.is_cut)
        pieces = stream_answer(
            self._model,
            prompt.ids,
            tokens=command.tokens,
            seed=(command.seed + self._answers) % 2**32,
            **asdict(command.sampling),
        )
        try:
            for piece in pieces:
                answer += piece
                print(piece if self._is_terminal else _escape(piece), end="", flush=True)
            self._is_interrupted = False
        except KeyboardInterrupt:
            if self._is_interrupted and not self._is_terminal:  # where no prompt comes in between
                raise
            self._is_interrupted = True
        print(flush=True)
        self._answers += 1
        self._messages = list(prompt.messages)
        if answer:
            self._messages.append(Message(role="assistant", content=answer))
        else:  # nothing to go on with
            self._messages.pop()

    def _tell_dropped(self, is_dropped: bool, is_cut: bool) -> None:
        block_size = self._model.config.model.block_size
        if is_cut:
            _say(
                f"the message is longer than the context of {block_size} tokens; its beginning is "
                "not read"
            )
        if is_dropped and not self._has_dropped:
            self._has_dropped = True
            _say(f"the context of {block_size} tokens is full: the oldest turns are forgotten")


def _escape(text: str) -> str:
    """A text on one line, as `minigpt sample --escapes` reads it."""
    return text.replace("\\", "\\\\").replace("\n", "\\n")
