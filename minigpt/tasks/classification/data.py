"""Labeled texts: read from a CSV file, split into three parts, and padded to rows of ids."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minigpt.data import Tokenizer, read_text

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
    tokenizer: Tokenizer, texts: list[str], block_size: int, *, drop_unknown: bool = False
) -> PaddedRows:
    """Tokenize texts; only the first `block_size` tokens of each are kept.

    A character that the tokenizer does not know is an error, or is dropped before the cut.
    """
    tokens = np.zeros((len(texts), block_size), np.int32)
    lengths = np.zeros(len(texts), np.int32)
    alphabet = set(tokenizer.alphabet or "")
    for i, text in enumerate(texts):
        if drop_unknown and tokenizer.alphabet is not None:
            text = "".join(character for character in text if character in alphabet)
        try:
            # Every character has at least one id.
            ids = tokenizer.encode(text[:block_size])[:block_size]
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


def read_csv(data: Path, seed: int) -> LabelledSplit:
    """Read a UTF-8 CSV file with the columns text, label and optionally split.

    The column split has the values train, validation and test. Without it, a tenth of each label's
    rows, chosen by the seed, is for validation and another tenth for the test.
    """
    content = read_text(data, "data")
    reader = csv.DictReader(io.StringIO(content), strict=True)
    limit = csv.field_size_limit(len(content) + 1)  # a cell may be as long as the file
    try:
        header = reader.fieldnames or []
        _validate_header(header, data)
        rows = [_validate_row(row, data, reader.line_num, "split" in header) for row in reader]
    except csv.Error as error:
        location = f"data={str(data)!r}, after line {reader.line_num}"
        raise ValueError(f"{location}: this is not valid CSV ({error}).") from None
    finally:
        csv.field_size_limit(limit)
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    parts = [row["split"] for row in rows if "split" in header] or _assign_parts(labels, seed)
    return LabelledSplit(
        *(_select_part(texts, labels, parts, name) for name in LabelledSplit._fields)
    )


def _validate_header(header: Sequence[str], data: Path) -> None:
    """Raise ValueError if a column is missing or repeated."""
    if repeated := [name for name in (*COLUMNS, "split") if header.count(name) > 1]:
        raise ValueError(
            f"data={str(data)!r} is not allowed: it has the column {repeated[0]!r} more than "
            f"once. Its first line names the columns {header}."
        )
    if missing := [name for name in COLUMNS if name not in header]:
        raise ValueError(
            f"data={str(data)!r} is not allowed: it lacks the column {missing[0]!r}. Its first "
            f"line must name the columns text and label, but it names {header}."
        )


def _validate_row(
    row: dict[str | Any, str | Any], data: Path, line: int, has_split: bool
) -> dict[str, str]:
    """Validate one CSV row, and strip all cells except the text."""
    location = f"data={str(data)!r}, line {line}"
    if None in row or None in row.values():
        raise ValueError(
            f'{location}: there must be one cell per column. Put texts in "quotation marks".'
        )
    row = {name: cell if name == "text" else cell.strip() for name, cell in row.items()}
    for name in COLUMNS:
        if not row[name].strip():
            raise ValueError(f"{location}: {name} is empty. Fill it or remove the line.")
    if has_split and row["split"] not in LabelledSplit._fields:
        allowed = ", ".join(LabelledSplit._fields)
        raise ValueError(
            f"{location}: split={row['split']!r} is not allowed: it must be one of {allowed}."
        )
    return row


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
