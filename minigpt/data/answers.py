"""Conversations as rows of token ids, and which of their tokens are answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minigpt.data.chat_template import ChatTemplate, Rendered, special_tokens
from minigpt.data.conversations import Conversation
from minigpt.data.subword import MarkedIds
from minigpt.data.tokenizer import AnyTokenizer


class AnswerBatch(NamedTuple):
    """Rows of tokens, the next token for each of them, and which of these are answers."""

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    """1 for a target of an answer, 0 for another and for padding, which is on the right"""


@dataclass(frozen=True)
class Answers:
    """Conversations as token ids, one after the other."""

    tokens: np.ndarray
    is_answer: np.ndarray
    """which tokens are answers; the first of a conversation is not predicted and is none"""
    starts: np.ndarray
    """the index of the first token of each conversation, and the number of all tokens"""
    characters: int
    """of the answers, without the text that ends a turn"""

    def __len__(self) -> int:
        """The number of conversations."""
        return len(self.starts) - 1

    @property
    def answer_tokens(self) -> int:
        """The number of tokens that are answers."""
        return int(self.is_answer.sum())

    @property
    def first_prompt(self) -> np.ndarray:
        """The tokens of the first conversation up to its first answer."""
        return self.tokens[: int(np.argmax(self.is_answer))]

    def count_tokens(self, indices: np.ndarray) -> int:
        """The number of tokens that are answers in these conversations."""
        counts = np.append(0, np.cumsum(self.is_answer))
        return int((counts[self.starts[indices + 1]] - counts[self.starts[indices]]).sum())

    def take(self, indices: Sequence[int] | np.ndarray, block_size: int) -> AnswerBatch:
        """A batch with the conversation of each index in a row; -1 is a row of padding."""
        tokens = np.zeros((len(indices), block_size + 1), np.int32)
        weights = np.zeros((len(indices), block_size + 1), np.float32)
        for row, i in enumerate(indices):
            if i >= 0:
                part = slice(self.starts[i], self.starts[i + 1])
                size = part.stop - part.start
                tokens[row, :size], weights[row, :size] = self.tokens[part], self.is_answer[part]
        return AnswerBatch(tokens[:, :-1], tokens[:, 1:], weights[:, 1:])

    def batches(
        self, indices: np.ndarray, batch_size: int, block_size: int
    ) -> Iterator[AnswerBatch]:
        """Batches of one shape with these conversations; the last is padded."""
        for first in range(0, len(indices), batch_size):
            part = indices[first : first + batch_size]
            padded = np.pad(part, (0, batch_size - len(part)), constant_values=-1)
            yield self.take(padded, block_size)


class Encoded(NamedTuple):
    """Conversations as token ids, and how many did not fit."""

    answers: Answers
    cut: int
    """conversations that are longer than a row and lose their end"""
    skipped: int
    """conversations with no answer within a row, which are left out"""


def encode_answers(
    conversations: Sequence[Conversation],
    tokenizer: AnyTokenizer,
    template: ChatTemplate,
    block_size: int,
) -> Encoded:
    """Render conversations and tokenize them; a row has at most block_size + 1 tokens.

    Raises:
      ValueError: the template refuses a conversation, the tokenizer lacks a character, or the
        prompt for an answer has other tokens alone than before its answer.
    """
    special = special_tokens(tokenizer)
    end_of_turn = template.end_of_turn(special)
    rows, cut, skipped = [], 0, 0
    for conversation in conversations:
        with _name_in_errors(conversation):
            rendered = template.render_answers(conversation.messages, special)
            marked = _encode(rendered, tokenizer)
            row = _mark(rendered, marked, end_of_turn, block_size + 1)
        if row.is_answer.any():
            rows.append(row)
            cut += len(row.ids) < len(marked.ids)
        else:
            skipped += 1
    return Encoded(_join(rows, tokenizer), cut, skipped)


def require_answers(encoded: Encoded, name: str, block_size: int) -> None:
    """Raise ValueError if a part, which `name` names, has no conversation with an answer."""
    if len(encoded.answers):
        return
    raise ValueError(
        f"a {name} part of {encoded.skipped} conversations without an answer in the first "
        f"block_size={block_size} tokens is not allowed: it must have one with an answer there. "
        "Give more conversations, or shorter ones (the last tenth is for validation; --val-data "
        "names a file for it)."
    )


def describe_unfit(encoded: Encoded, name: str, block_size: int) -> list[str]:
    """Lines about the conversations of a part that are cut or left out."""
    count, lines = len(encoded.answers) + encoded.skipped, []
    if encoded.cut:
        lines.append(
            f"{encoded.cut} of {count} {name} conversations are longer than "
            f"block_size={block_size} tokens; their end is not read"
        )
    if encoded.skipped:
        lines.append(
            f"{encoded.skipped} of {count} {name} conversations have no answer within "
            f"block_size={block_size} tokens and are left out"
        )
    return lines


class _Row(NamedTuple):
    """A conversation as far as it fits."""

    ids: np.ndarray
    is_answer: np.ndarray
    characters: int
    """of the answers, without the text that ends a turn"""


def _encode(rendered: Rendered, tokenizer: AnyTokenizer) -> MarkedIds:
    """Tokenize a conversation; the text up to each answer must have the same tokens alone."""
    prompts = [rendered.text[:start] for start, _ in rendered.answers]
    whole, *parts = tokenizer.encode_marked([rendered.text, *prompts])
    for number, part in enumerate(parts, 1):
        if not np.array_equal(part.ids, whole.ids[: len(part.ids)]):
            start = rendered.answers[number - 1][0]
            raise ValueError(
                f"answer {number}, {rendered.text[start : start + 20]!r}, is not allowed: its "
                "beginning and the text before it share a token, so the prompt alone would have "
                "other tokens. Remove the white space at the beginning of the answer, or remove "
                "the line."
            )
    return whole


def _mark(rendered: Rendered, marked: MarkedIds, end_of_turn: str, size: int) -> _Row:
    """Mark the tokens of the answers among the first `size` tokens."""
    text, ids, ends = rendered.text, marked.ids[:size], marked.ends[:size]
    begins = np.append(0, ends[:-1])
    is_answer = np.zeros(len(ids), bool)
    visible = len(text.encode()[: ends[-1]].decode(errors="ignore")) if len(ends) else 0
    characters = 0
    for start, end in rendered.answers:
        first, last = (len(text[:position].encode()) for position in (start, end))
        is_answer |= (begins < last) & (ends > first)
        content_end = end - len(end_of_turn) * text[start:end].endswith(end_of_turn)
        characters += max(min(content_end, visible) - start, 0)
    is_answer[:1] = False  # nothing predicts it
    return _Row(ids, is_answer, characters)


def _join(rows: Sequence[_Row], tokenizer: AnyTokenizer) -> Answers:
    ids, marks = [row.ids for row in rows], [row.is_answer for row in rows]
    return Answers(
        np.concatenate(ids) if rows else np.zeros(0, tokenizer.dtype),
        np.concatenate(marks) if rows else np.zeros(0, bool),
        np.cumsum([0, *map(len, ids)]),
        sum(row.characters for row in rows),
    )


@contextlib.contextmanager
def _name_in_errors(conversation: Conversation) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{conversation.location}: {error}") from None
