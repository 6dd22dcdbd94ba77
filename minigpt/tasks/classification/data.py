"""Labelled texts: split into three parts, and padded to rows of ids."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minigpt.data import AnyTokenizer, Tokenizer
from minigpt.tasks.classification.files import Row, read_rows

COLUMNS = ("text", "label")
HELD_OUT_SHARE = 0.1  # share of each label's texts in the validation part, and in the test part


class LabelledTexts(NamedTuple):
    """Texts, and the label of each."""

    texts: list[str]
    labels: list[str]


class LabelledSplit(NamedTuple):
    """Texts for training, for early stopping, and for the final test."""

    train: LabelledTexts
    validation: LabelledTexts
    test: LabelledTexts

    def classes(self) -> list[str]:
        """The sorted labels of the training part.

        An empty part, a label that the training part lacks, or a single label is a ValueError.
        """
        for name, part in self._asdict().items():
            if not part.texts:
                raise ValueError(f"the {name} part is empty: add at least one example.")
        labels = sorted(set(self.train.labels))
        unknown = sorted({*self.validation.labels, *self.test.labels} - set(labels))
        if unknown:
            raise ValueError(
                f"the label {unknown[0]!r} is not in the training part: add examples of it."
            )
        if len(labels) < 2:
            raise ValueError(
                f"labels={labels} is not allowed: there must be at least two labels. Add examples "
                "of another label."
            )
        return labels

    def count_test_overlap(self) -> int:
        """The number of test texts that are also in another part, word for word."""
        other_texts = {*self.train.texts, *self.validation.texts}
        return sum(text in other_texts for text in self.test.texts)


class PaddedRows(NamedTuple):
    """Texts as ids, padded on the right to a common width."""

    tokens: Any
    """int32 of shape (rows, width)"""
    lengths: Any
    """number of real tokens in each row"""


def pad_texts(
    tokenizer: AnyTokenizer, texts: list[str], block_size: int, *, drop_unknown: bool = False
) -> PaddedRows:
    """Tokenize texts; only the first `block_size` tokens of each are kept.

    A character that the tokenizer does not know is an error, or is dropped before the cut.
    """
    tokens = np.zeros((len(texts), block_size), np.int32)
    lengths = np.zeros(len(texts), np.int32)
    for i, text in enumerate(texts):
        if drop_unknown:
            text = _drop_unknown(text, tokenizer)
        try:
            # Of an alphabet or bytes, every character has at least one id.
            is_subword = not isinstance(tokenizer, Tokenizer)
            ids = tokenizer.encode(text if is_subword else text[:block_size])[:block_size]
        except ValueError as error:
            raise ValueError(
                f"example {i + 1}, {texts[i][:40]!r}: {error} Or drop such characters: "
                "--unknown drop."
            ) from None
        if not len(ids):
            raise ValueError(
                f"example {i + 1} is not allowed: no character of {texts[i][:40]!r} is left. "
                "Remove the example."
            )
        tokens[i, : len(ids)], lengths[i] = ids, len(ids)
    return PaddedRows(tokens, lengths)


def count_cut(
    tokenizer: AnyTokenizer, texts: list[str], block_size: int, *, drop_unknown: bool = False
) -> int:
    """The number of texts of which `pad_texts` leaves the end out."""
    if drop_unknown:
        texts = [_drop_unknown(text, tokenizer) for text in texts]

    def is_cut(text: str) -> bool:
        is_long = isinstance(tokenizer, Tokenizer) and len(text) > block_size
        return is_long or len(tokenizer.encode(text)) > block_size

    return sum(map(is_cut, texts))


def _drop_unknown(text: str, tokenizer: AnyTokenizer) -> str:
    if not isinstance(tokenizer, Tokenizer) or tokenizer.alphabet is None:
        return text
    alphabet = set(tokenizer.alphabet)
    return "".join(character for character in text if character in alphabet)


def read_labelled(data: Path, seed: int) -> LabelledSplit:
    """Read a file with the columns text, label and optionally split: see `read_rows`.

    The column split has the values train, validation and test. Without it, a tenth of each label's
    rows, chosen by the seed, is for validation and another tenth for the test.
    """
    rows = read_rows(data, COLUMNS)
    for row in rows:
        _validate_row(row)
    texts, labels = ([row.cells[name] for row in rows] for name in COLUMNS)
    has_split = bool(rows) and "split" in rows[0].cells
    parts = [row.cells["split"] for row in rows] if has_split else _assign_parts(labels, seed)
    return LabelledSplit(
        *(_select_part(texts, labels, parts, name) for name in LabelledSplit._fields)
    )


def _validate_row(row: Row) -> None:
    for name in COLUMNS:
        if not row.cells[name].strip():
            raise ValueError(f"{row.location}: {name} is empty. Fill it or remove the line.")
    split = row.cells.get("split", "train")
    if split not in LabelledSplit._fields:
        raise ValueError(
            f"{row.location}: split={split!r} is not allowed: it must be one of "
            f"{', '.join(LabelledSplit._fields)}."
        )


def _assign_parts(labels: list[str], seed: int) -> list[str]:
    """Assign rows to parts, with the same shares for every label.

    The order is that of raw words of Philox, which no version of NumPy changes.
    """
    words = np.random.Philox(key=seed).random_raw(len(labels))
    parts = np.full(len(labels), "train", object)
    for label, count in Counter(labels).items():
        if count < len(LabelledSplit._fields):
            raise ValueError(
                f"the label {label!r} has {count} rows, but needs at least 3: one each for "
                "training, validation and test. Add rows, or remove the label."
            )
        rows = np.flatnonzero(np.array(labels, object) == label)
        rows, held_out = rows[np.argsort(words[rows])], max(1, round(count * HELD_OUT_SHARE))
        parts[rows[:held_out]], parts[rows[held_out : 2 * held_out]] = "test", "validation"
    return parts.tolist()


def _select_part(texts: list[str], labels: list[str], parts: list[str], name: str) -> LabelledTexts:
    indices = [i for i, part in enumerate(parts) if part == name]
    return LabelledTexts([texts[i] for i in indices], [labels[i] for i in indices])
