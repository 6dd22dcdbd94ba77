"""Labelled texts: files, their split into parts, the plays' genres, padding."""

import csv
import json

import pytest
from tiny import DATA

from minigpt.data import shakespeare
from minigpt.data import text as corpus
from minigpt.data.tokenizer import Tokenizer
from minigpt.tasks.classification import shakespeare_genres as speeches
from minigpt.tasks.classification.data import (
    LabelledSplit,
    LabelledTexts,
    count_cut,
    pad_texts,
    read_labelled,
)
from minigpt.tasks.classification.files import read_texts

TOKENIZER = Tokenizer("abc ")


def test_texts_are_cut_padded_and_their_lengths_told():
    rows = pad_texts(TOKENIZER, ["abc", "aaaaaac"], 5)
    assert rows.tokens.tolist() == [[0, 1, 2, 0, 0], [0] * 5]
    assert rows.lengths.tolist() == [3, 5]
    with pytest.raises(ValueError, match=r"example 2, 'axb': text has 'x'.*--unknown drop"):
        pad_texts(TOKENIZER, ["a", "axb"], 5)
    assert pad_texts(TOKENIZER, ["axb", "xxxxxc"], 2, drop_unknown=True).lengths.tolist() == [2, 1]
    with pytest.raises(ValueError, match="example 1 is not allowed: no character of 'x' is left"):
        pad_texts(TOKENIZER, ["x"], 5, drop_unknown=True)
    euro = pad_texts(Tokenizer(None), ["€uro"], 3)
    assert bytes(euro.tokens[0].tolist()) == "€".encode()


def test_a_file_is_split_by_label_and_every_row_is_in_one_part(tmp_path):
    path = tmp_path / "x.csv"
    rows = [f'"text, {i}",{"rare" if i % 10 == 0 else "common"}' for i in range(100)]
    path.write_text("\ufefftext,label\r\n" + "\r\n".join(rows), newline="")
    split = read_labelled(path, seed=1)
    assert [part.labels.count("common") for part in split] == [72, 9, 9]
    assert [part.labels.count("rare") for part in split] == [8, 1, 1]
    everything = [text for part in split for text in part.texts]
    assert sorted(everything) == sorted(f"text, {i}" for i in range(100))
    assert read_labelled(path, seed=1) == split
    assert read_labelled(path, seed=2) != split


def test_a_file_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,label\na,b\n" * 9, encoding="utf-16")
    with pytest.raises(ValueError, match=f"it is UTF-16 text. .* iconv -f utf-16 -t utf-8 {path}"):
        read_labelled(path, seed=1)


def test_a_text_may_be_long(tmp_path):
    """Longer than Python's csv allows by itself, which is left as it was."""
    path, limit = tmp_path / "x.csv", csv.field_size_limit()
    path.write_text("text,label,split\n" + f"{'a' * 2 * limit},b,train\n")
    assert [len(text) for text in read_labelled(path, seed=1).train.texts] == [2 * limit]
    assert csv.field_size_limit() == limit


def test_a_column_split_decides(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("split,label,text\ntrain,a,one\ntest,a,two\nvalidation,b,three\ntrain,b,four\n")
    split = read_labelled(path, seed=1)
    assert split == LabelledSplit(*map(LabelledTexts, (["one", "four"], ["three"], ["two"]),
                               (["a", "b"], ["b"], ["a"])))  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,kind\na,b\n", "lacks the column 'label'.*but is 'text,kind'"),
        ("", "lacks the column 'text'"),
        ("text,label,text\na,b,c\n", "has the column 'text' more than once"),
        ("text,label\na,b\na\n", "line 3: there must be one cell per column"),
        ("text,label\na,b,c\n", "line 2: there must be one cell"),
        ("text,label\n ,b\n", "line 2: text is empty"),
        ("text,label\na, \n", "line 2: label is empty"),
        (
            "text,label,split\na,b,dev\n",
            "line 2: split='dev' is not allowed: it must be one",
        ),
        ("text,label\na,b\na,b\n", "label 'b' has 2 rows, but needs at least 3"),
        ('text,label\n"a"b,c\n', "after line 1: this is not valid CSV"),
    ],
)
def test_a_bad_file_is_an_error_that_says_where(content, message, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_labelled(path, seed=1)


ROWS = [(f"text, {i}; x", "rare" if i % 10 == 0 else "common") for i in range(30)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.tsv", "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS)),
        ("x.csv", "label;text\n" + "".join(f'{label};"{text}"\n' for text, label in ROWS)),
        (
            "x.jsonl",
            "".join(json.dumps({"text": text, "label": label}) + "\n\n" for text, label in ROWS),
        ),
    ],
)
def test_tabs_semicolons_and_json_lines_are_recognised(name, content, tmp_path):
    (tmp_path / "commas.csv").write_text(
        "text,label\n" + "".join(f'"{text}",{label}\n' for text, label in ROWS)
    )
    (tmp_path / name).write_text(content)
    assert read_labelled(tmp_path / name, 1) == read_labelled(tmp_path / "commas.csv", 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1: this is not JSON"),
        ('{"text": "a"}', "line 1: it must be an object with the fields text, label"),
        ("[1]", "line 1: it must be an object"),
        ('{"text": "a", "label": " "}', "line 1: label is empty"),
    ],
)
def test_bad_json_lines_are_an_error_that_says_where(content, message, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_labelled(path, seed=1)


def test_texts_to_label_are_lines_or_a_column(tmp_path):
    (tmp_path / "x.txt").write_text("one, two\nthree\n")
    (tmp_path / "x.csv").write_text('n,text\n1,"one, two"\n2,three\n')
    (tmp_path / "x.jsonl").write_text('{"text": "one, two"}\n{"text": "three"}\n')
    for name in ("x.txt", "x.csv", "x.jsonl"):
        assert read_texts(tmp_path / name) == ["one, two", "three"]
    (tmp_path / "x.txt").write_text("one\n\nthree\n")
    with pytest.raises(ValueError, match="line 2: it is empty"):
        read_texts(tmp_path / "x.txt")


def test_texts_that_are_cut_are_counted():
    assert count_cut(TOKENIZER, ["abc", "abca", "axxxbc"], 3, drop_unknown=True) == 1
    assert count_cut(Tokenizer(None), ["€", "€€"], 3) == 1


@pytest.mark.slow
def test_no_play_is_in_two_parts_and_the_test_was_not_pretrained_on():
    plays, split = shakespeare.load_plays(), speeches.load_genres()
    texts = dict(zip(LabelledSplit._fields, split, strict=True))
    for part, names in (("test", speeches.TEST_PLAYS), ("validation", speeches.VALIDATION_PLAYS)):
        inside = "".join(plays[name] for name in names)
        assert all(text in inside for text in texts[part].texts[::10])
        assert set(texts[part].labels) == set(speeches.GENRES.values())
    held_out = "".join(plays[name] for name in (*speeches.TEST_PLAYS, *speeches.VALIDATION_PLAYS))
    long = [text for text in texts["train"].texts if len(text) > 100]
    assert len(long) > 4000
    assert not any(text in held_out for text in long[::50])
    pretraining_text = corpus.load_text().train
    assert not any(
        text in pretraining_text for text in texts["test"].texts[::20] if len(text) > 100
    )
    with pytest.raises(ValueError, match="'twelfth-night' is not allowed: it is in test and"):
        speeches.load_genres(validation=("twelfth-night",))
    with pytest.raises(ValueError, match="'cymbeline' is not allowed: the plays are"):
        speeches.load_genres(test=("cymbeline",))


def test_parts_must_hold_what_they_are_for():
    with pytest.raises(ValueError, match="the test part is empty"):
        DATA._replace(test=LabelledTexts([], [])).classes()
    with pytest.raises(ValueError, match="label 'new' is not in the training part"):
        DATA._replace(test=LabelledTexts(["a"], ["new"])).classes()
    with pytest.raises(ValueError, match="there must be at least two"):
        LabelledSplit(*[LabelledTexts(["a"], ["only"])] * 3).classes()


def test_texts_of_the_test_that_are_in_another_part_are_counted():
    one, two, three = (
        LabelledTexts(list(part), ["a"] * len(part)) for part in ("ab", "cc", "bcdb")
    )
    assert LabelledSplit(one, two, three).count_test_overlap() == 3
    assert LabelledSplit(one, two, LabelledTexts(["d"], ["a"])).count_test_overlap() == 0
