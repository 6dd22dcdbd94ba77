"""Texts with labels: read from a CSV file, split into three parts, and as padded rows of ids."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minigpt.data import Tokenizer, decode_utf8, read_blocks

COLUMNS = ("text", "label")
HELD_OUT_SHARE = 0.1  # the share of each label for validation, and again for the test


class LabelledTexts(NamedTuple):
    """Texts, and the label of each."""

    texts: list[str]
    labels: list[str]


class LabelledSplit(NamedTuple):
    """Examples to train on, to stop by, and to report on."""

    train: LabelledTexts
    validation: LabelledTexts
    test: LabelledTexts

    def classes(self) -> list[str]:
        """The labels, sorted; each must be in the training part, and no part may be empty."""
        for name, part in self._asdict().items():
            if not part.texts:
                raise ValueError(f"the {name} part is empty: give it at least one example.")
        known = sorted(set(self.train.labels))
        strange = sorted({*self.validation.labels, *self.test.labels} - set(known))
        if strange:
            raise ValueError(f"the label {strange[0]!r} is not in the training part: add examples.")
        if len(known) < 2:
            raise ValueError(f"labels={known} are not allowed: there must be at least two.")
        return known

    def count_test_overlap(self) -> int:
        """How many texts of the test part are in another part too, word for word."""
        other = {*self.train.texts, *self.validation.texts}
        return sum(text in other for text in self.test.texts)


class PaddedRows(NamedTuple):
    """Texts as ids, padded on the right to one width; the first `length` of a row are real."""

    tokens: Any
    lengths: Any


def pad_texts(
    tokenizer: Tokenizer, texts: list[str], block_size: int, *, drop_unknown: bool = False
) -> PaddedRows:
    """Ids of each text's first `block_size` tokens; what is longer is cut there.

    A character that the tokenizer does not know is an error, or left out before the cut.
    """
    tokens = np.zeros((len(texts), block_size), np.int32)
    lengths = np.zeros(len(texts), np.int32)
    known = set(tokenizer.alphabet or "")
    for i, text in enumerate(texts):
        if drop_unknown and tokenizer.alphabet is not None:
            text = "".join(character for character in text if character in known)
        try:
            ids = tokenizer.encode(text[:block_size])[:block_size]  # a character is an id or more
        except ValueError as error:
            raise ValueError(
                f"example {i + 1}, {texts[i][:40]!r}: {error} Or leave it out: --unknown drop."
            ) from None
        if not len(ids):
            raise ValueError(
                f"example {i + 1} is not allowed: no character of {texts[i][:40]!r} is left. "
                "Remove the example."
            )
        tokens[i, : len(ids)], lengths[i] = ids, len(ids)
    return PaddedRows(tokens, lengths)


def read_csv(data: Path, seed: int) -> LabelledSplit:
    """A UTF-8 file with the columns text and label, and perhaps split: train, validation or test.

    Without a column split a tenth of each label's rows, chosen by the seed, is for validation, and
    another for the test.
    """
    content = "".join(decode_utf8(read_blocks(data), data)).removeprefix("\ufeff")
    reader = csv.DictReader(io.StringIO(content), strict=True)
    limit = csv.field_size_limit(len(content) + 1)  # a cell may be as long as the file
    try:
        header = reader.fieldnames or []
        if twice := [name for name in (*COLUMNS, "split") if header.count(name) > 1]:
            raise ValueError(
                f"data={str(data)!r} is not allowed: it has the column {twice[0]!r} more than "
                f"once. Its first line names {header}."
            )
        if missing := [name for name in COLUMNS if name not in header]:
            raise ValueError(
                f"data={str(data)!r} is not allowed: it lacks the column {missing[0]!r}. Its first "
                f"line must name the columns text and label, and names {header}."
            )
        found = [_validate_row(row, data, reader.line_num, "split" in header) for row in reader]
    except csv.Error as error:
        where = f"data={str(data)!r}, after line {reader.line_num}"
        raise ValueError(f"{where}: this is not CSV ({error}).") from None
    finally:
        csv.field_size_limit(limit)
    texts, labels = [row["text"] for row in found], [row["label"] for row in found]
    given = [row["split"] for row in found if "split" in header]
    parts = given or _assign_parts(labels, seed)
    return LabelledSplit(
        *(_select_part(texts, labels, parts, name) for name in LabelledSplit._fields)
    )


def _validate_row(row: dict, data: Path, line: int, has_split: bool) -> dict[str, str]:
    """A row whose cells are there."""
    where = f"data={str(data)!r}, line {line}"
    if None in row or None in row.values():
        raise ValueError(
            f'{where}: there must be a cell for each column. Put texts in "quotation marks".'
        )
    row = {name: cell if name == "text" else cell.strip() for name, cell in row.items()}
    for name in COLUMNS:
        if not row[name].strip():
            raise ValueError(f"{where}: {name} is empty. Fill it or remove the line.")
    if has_split and row["split"] not in LabelledSplit._fields:
        allowed = ", ".join(LabelledSplit._fields)
        raise ValueError(f"{where}: split={row['split']!r} is not allowed: it is one of {allowed}.")
    return row


def _assign_parts(labels: list[str], seed: int) -> list[str]:
    """The same shares of every label; raw words of Philox, so NumPy's version changes nothing."""
    words = np.random.Philox(key=seed).random_raw(len(labels))
    parts = np.full(len(labels), "train", object)
    for label, count in Counter(labels).items():
        if count < len(LabelledSplit._fields):
            raise ValueError(
                f"the label {label!r} has {count} rows: it must have at least 3, one each to train "
                "on, to validate and to test."
            )
        rows = np.flatnonzero(np.array(labels, object) == label)
        rows, held = rows[np.argsort(words[rows])], max(1, round(count * HELD_OUT_SHARE))
        parts[rows[:held]], parts[rows[held : 2 * held]] = "test", "validation"
    return parts.tolist()


def _select_part(texts: list[str], labels: list[str], parts: list[str], name: str) -> LabelledTexts:
    kept = [i for i, part in enumerate(parts) if part == name]
    return LabelledTexts([texts[i] for i in kept], [labels[i] for i in kept])
