"""Answer the last message of a conversation with a trained model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Unpack

import numpy as np

from minigpt.data import ChatTemplate, Message, plain_template, special_tokens
from minigpt.tasks.inference import GenerationOptions, LoadedModel


class Prompt(NamedTuple):
    """The text that an answer follows, as token ids."""

    ids: np.ndarray
    messages: list[Message]
    """those that fit"""
    is_cut: bool
    """whether even the last message is longer than the block, so that its beginning is not read"""


def chat_template(model: LoadedModel) -> ChatTemplate:
    """The model's template, or the plain one."""
    return model.run.chat_template or plain_template(model.tokenizer)


def make_prompt(model: LoadedModel, messages: Sequence[Message], answer_tokens: int) -> Prompt:
    """The prompt for an answer to the last message; the oldest turns are dropped until it fits.

    It leaves room for the answer in the block: `answer_tokens`, but at most half of the block.
    A first system message is kept, and the first message after it is one of the user.

    Raises:
      ValueError: the template refuses the messages, or the tokenizer lacks a character.
    """
    template, block_size = chat_template(model), model.config.model.block_size
    room = block_size - min(answer_tokens, block_size // 2)
    kept = list(messages)
    first = 1 if kept[0]["role"] == "system" else 0
    while True:
        text = template.render(kept, add_generation_prompt=True)
        ids = model.tokenizer.encode_marked([text])[0].ids
        later = [i for i in range(first + 1, len(kept)) if kept[i]["role"] == "user"]
        if len(ids) <= room or not later:
            return Prompt(ids, kept, len(ids) > block_size)
        del kept[first : later[0]]


def stream_answer(
    model: LoadedModel, ids: np.ndarray, **options: Unpack[GenerationOptions]
) -> Iterator[str]:
    """Yield an answer piece by piece, without the white space around it.

    It ends with the turn: at the text with which the template ends an answer, or at the token that
    ends a text.
    """
    template, special = chat_template(model), special_tokens(model.tokenizer)
    ends = template.end_of_turn(special), template.tokens.get("eos_token", "")
    options["stop"] = [end for end in dict.fromkeys(ends) if end]
    return _strip(piece.text for piece in model.stream([ids], **options))


def _strip(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces of a text without the white space at its beginning and its end.

    >>> list(_strip([" ", " To be,", "\\n", "or", " not", "\\n\\n"]))
    ['To be,', '\\nor', ' not']
    """
    space, has_begun = "", False
    for piece in pieces:
        text = space + piece if has_begun else piece.lstrip()
        visible = text.rstrip()
        space = text[len(visible) :]
        if visible:
            has_begun = True
            yield visible
