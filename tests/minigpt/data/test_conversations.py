"""Conversations of JSON lines: which files have them, rows of ids, every mistake by its line."""

import gzip
import hashlib
import json
from typing import Any

import numpy as np
import pytest
from chat_models import write_examples
from tiny import CONFIG

from minigpt.config import Config
from minigpt.data import Answers, Tokenizer, load_conversations, load_run_dataset, make_batch
from minigpt.data.batches import batch_rows, example_indices
from minigpt.data.conversations import are_conversations, read_conversations

BYTES = Tokenizer(None)
USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}


def write(path, *records):
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def load(data, val_data=None, block_size=64) -> Any:
    return load_conversations((data,), val_data and (val_data,), BYTES, None, block_size)


def test_rows_have_one_conversation_each(tmp_path):
    pair = {"prompt": "Hi", "completion": "Hello"}
    path = write(tmp_path / "x.jsonl", {"messages": [USER, ASSISTANT, USER, ASSISTANT]}, pair)
    answers = load(path, path).train
    assert isinstance(answers, Answers)
    batch = answers.take([1, 0, -1], 64)
    text = "User: Hi\n\nAssistant: Hello\n\n"
    for row, times in enumerate((1, 2, 0)):
        size = max(len(text) * times - 1, 0)
        assert BYTES.decode(batch.inputs[row][:size]) == (text * times)[:-1]
        assert BYTES.decode(batch.targets[row][:size]) == (text * times)[1:]
        assert not batch.targets[row][size:].any()
        learned = batch.targets[row][batch.weights[row] == 1]
        assert BYTES.decode(learned) == " Hello\n\n" * times
        assert batch.weights.sum(1)[row] == len(learned)
    assert (batch.inputs.dtype, batch.weights.dtype) == (np.int32, np.float32)
    assert (len(answers), answers.answer_tokens, answers.characters) == (2, 24, 18)
    assert answers.count_tokens(np.array([1])) == 8
    assert BYTES.decode(answers.first_prompt) == "User: Hi\n\nAssistant:"


def test_the_last_tenth_is_for_validation(tmp_path):
    data = write_examples(tmp_path / "x.jsonl", 25)
    dataset = load(data)
    assert (len(dataset.train), len(dataset.validation)) == (22, 3)
    assert dataset.sha256 == hashlib.sha256(data.read_bytes()).hexdigest()
    assert dataset.validation_characters == dataset.validation.characters
    other = write_examples(tmp_path / "y.jsonl", 4)
    both = load(data, other)
    assert (len(both.train), len(both.validation)) == (25, 4)
    assert both.sha256 != dataset.sha256
    zipped = tmp_path / "x.jsonl.gz"
    zipped.write_bytes(gzip.compress(data.read_bytes()))
    assert load(zipped).sha256 == dataset.sha256
    several, sha256 = read_conversations((data, other))
    assert len(several) == 29
    assert sha256 not in (dataset.sha256, both.sha256)


def test_what_does_not_fit_is_cut_or_left_out(tmp_path):
    long = "long " * 20
    records = [
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": "Hi", "completion": long},
        {"prompt": long, "completion": "Hello"},
        {"messages": [USER]},
    ]
    data = write(tmp_path / "x.jsonl", *records)
    dataset = load(data, data, block_size=40)
    assert dataset.notes == tuple(
        line
        for name in ("training", "validation")
        for line in (
            f"1 of 4 {name} conversations are longer than block_size=40 tokens; their end is not "
            "read",
            f"2 of 4 {name} conversations have no answer within block_size=40 tokens and are left "
            "out",
        )
    )
    batch = dataset.train.take([0, 1], 40)
    assert batch.inputs.shape == (2, 40)
    assert batch.weights.sum(1).tolist() == [8, 41 - 20]
    assert dataset.train.characters == 6 + 41 - 20
    with pytest.raises(ValueError, match="a validation part of 1 conversations without an answer"):
        load(data, write(tmp_path / "y.jsonl", records[2]), block_size=40)
    with pytest.raises(ValueError, match="a training part of 0 conversations without an answer"):
        load(write(tmp_path / "y.jsonl", records[0]))


def test_a_step_takes_the_next_conversations_of_an_epoch(tmp_path):
    answers = load(write_examples(tmp_path / "x.jsonl", 20)).train
    rows = [batch_rows(answers, 3, step, 4, 64) for step in range(9)]
    first, second = np.split(np.concatenate(rows), 2)
    assert sorted(first) == sorted(second) == list(range(18))
    assert first.tolist() != second.tolist()
    assert rows[2] == example_indices(3, 2, 18, 4).tolist() != batch_rows(answers, 4, 2, 4, 64)
    batch = make_batch(answers, 3, 2, 4, 64)
    part = make_batch(answers, 3, 2, 4, 64, rows=slice(1, 3))
    expected = answers.take(rows[2], 64)
    for ours, one, whole in zip(part, batch, expected, strict=True):
        np.testing.assert_array_equal(one, whole)
        np.testing.assert_array_equal(ours, whole[1:3])


def test_which_files_have_conversations(tmp_path, capsys):
    chat = write_examples(tmp_path / "chat.jsonl", 2)
    text = write(tmp_path / "text.jsonl", {"text": "a"}, {"messages": []})
    both = write(tmp_path / "both.jsonl", {"text": "a", "prompt": "b", "completion": "c"})
    plain = write(tmp_path / "plain.txt", {"prompt": "b", "completion": "c"})
    assert are_conversations((chat,), "text")
    assert not are_conversations((text, plain), "text")
    assert not are_conversations((), "text")
    assert are_conversations((chat,), "messages") is not False
    assert not are_conversations((both,), "text")
    line = capsys.readouterr().err
    assert "of the field 'text' is read; for its conversations: --text-field messages" in line
    assert are_conversations((both,), "messages")
    assert not are_conversations((write(tmp_path / "pair.jsonl", {"prompt": "b"}),), "prompt")
    with pytest.raises(ValueError, match=r"plain.txt' is not allowed beside '.*chat.jsonl'"):
        are_conversations((chat, plain), "text")


def test_other_data_beside_conversations_is_refused(tmp_path):
    chat = write_examples(tmp_path / "chat.jsonl", 20)
    text = tmp_path / "text.txt"
    text.write_text("text " * 100)
    for data, val_data in ((chat, text), (text, chat), ((chat, text), None)):
        with pytest.raises(ValueError, match="is not allowed beside"):
            load_run_dataset(Config(data, val_data, tokenizer="byte", model=CONFIG.model))
    with pytest.raises(ValueError, match="data=None is not allowed with conversations"):
        load_run_dataset(Config(None, chat, tokenizer="byte", model=CONFIG.model))
    for kind in ("char", "bpe"):
        with pytest.raises(ValueError, match=f"tokenizer='{kind}' is not allowed with conv"):
            load_run_dataset(Config(chat, tokenizer=kind, model=CONFIG.model))


GOOD = {"messages": [USER, ASSISTANT]}
MISTAKES = {
    "json": ('{"messages": [', "this is not valid JSON"),
    "deep": ("[" * 100_000, "this is not valid JSON"),
    "list": (["Hi"], "a line must have messages, or prompt and completion, such as {"),
    "neither": ({"text": "Hi"}, r"the fields \['text'\] are not allowed"),
    "no completion": ({"prompt": "Hi"}, r"the fields \['prompt'\] are not allowed"),
    "both": (GOOD | {"prompt": "Hi"}, "messages and prompt are not allowed together"),
    "empty": ({"messages": []}, r"messages=\[\] is not allowed: .* at least one message"),
    "null": ({"messages": None}, "messages=None is not allowed"),
    "object": ({"messages": USER}, "it must be a list"),
    "text": ({"messages": ["Hi"]}, "message 1: 'Hi' is not allowed: it must be an object"),
    "role": (
        {"messages": [USER, ASSISTANT | {"role": "bot"}]},
        "message 2: role='bot' is not allowed: it must be one of system, user, assistant. Rename",
    ),
    "no role": ({"messages": [{"content": "Hi"}]}, r"message 1: the fields \['content'\] are not"),
    "null role": ({"messages": [USER | {"role": None}]}, r"the fields \['content'\] are not"),
    "more": ({"messages": [USER | {"tool_calls": []}]}, r"\['content', 'role', 'tool_calls'\]"),
    "parts": ({"messages": [USER | {"content": [{}]}]}, "content=.* it must be text"),
    "blank": ({"messages": [USER | {"content": " "}]}, "content=' ' is not allowed: .* not empty"),
    "number": ({"prompt": 1, "completion": "2"}, "prompt=1 is not allowed"),
    "no answer": ({"prompt": "1", "completion": ""}, "completion='' is not allowed"),
    "half": ('{"prompt": "a", "completion": "\\ud83d"}', r"completion has '\\ud83d'.*half of a"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named_by_file_and_line(name, tmp_path):
    bad, problem = MISTAKES[name]
    line = bad if isinstance(bad, str) else json.dumps(bad)
    path = tmp_path / "x.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n")
    with pytest.raises(ValueError, match=rf"^data='.*x.jsonl', line 3.*{problem}"):
        load(path)


def test_other_encodings_are_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(json.dumps(GOOD | {"source": "café"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(ValueError, match="must be UTF-8 text"):
        are_conversations((path,), "text")
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n")
    assert are_conversations((path,), "text")
    assert read_conversations((path,))[0][0].messages == GOOD["messages"]


def test_unknown_characters_are_named_by_line(tmp_path):
    path = write(tmp_path / "x.jsonl", GOOD, GOOD | {"messages": [USER, ASSISTANT, USER]})
    tokenizer = Tokenizer("".join(sorted(set("User: Hi\n\nAssistant: Hello\n\n") - {"H"})))
    with pytest.raises(ValueError, match=r"line 1: text has 'H' at position 6"):
        load_conversations((path,), (path,), tokenizer, None, 64)
