"""Subword tokenizers against tiktoken and tokenizers: the same ids, and every text given back."""

import json
import os
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tiktoken
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from minigpt.data import dataset as datasets
from minigpt.data import load_plays, load_text, subword, tokenizer_files
from minigpt.data.bpe import train_bpe
from minigpt.data.dataset import load_dataset
from minigpt.data.subword import SubwordTokenizer
from minigpt.data.tokenizer import build_tokenizer, tokenizer_content, tokenizer_from_content
from minigpt.model import default_prompt

# As tiktoken publishes it, in tiktoken_ext/openai_public.py.
GPT2_PATTERN = (
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
)
END = "<|endoftext|>"
TEXTS = (
    *("", " ", "\n", "a\n\nb", "a  b\n\n\n c \t\r\n", f"one{END}two {END}", "it's I'LL we've 's"),
    *("caf\xe9 na\xefve \u4f60\u597d \U0001f600\U0001f468\u200d\U0001f469", "e\u0301\u0085\u3000x"),
    *("\x00\x1c\x7f\xa0\u180e\u200b\ufeff\ufffd\U0010ffff", "12345 \xbd\u0661", " \n \n  x"),
)


@pytest.fixture(scope="module")
def gpt2():
    return SubwordTokenizer.from_file("gpt2")


@pytest.fixture(scope="module")
def library(gpt2):
    """The library's own tokenizer, which looks for no special tokens."""
    tokenizer = tokenizers.Tokenizer.from_str(gpt2.tokenizer_json)
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.fixture(scope="module")
def openai():
    """tiktoken's gpt2, from the same files: its own needs a download."""
    vocabulary_path, _ = tokenizer_files._gpt2_files()
    vocabulary = json.loads(vocabulary_path.read_text(encoding="utf-8"))
    special = {END: vocabulary.pop(END)}
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in visible]
    byte_of = {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(others)}
    ranks = {bytes(byte_of[c] for c in token): rank for token, rank in vocabulary.items()}
    return tiktoken.Encoding(
        "gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special
    )


def random_text(generator):
    def any_character():
        ranges = generator.choice([(0, 0x80), (0, 0xD800), (0xE000, 0x110000), (0x1F300, 0x1FA00)])
        return chr(generator.randrange(*ranges))

    def character():
        return generator.choice([any_character(), generator.choice(" \n\t'sa1.\xe9\u3000")])

    return "".join(character() for _ in range(generator.randrange(30)))


def assert_equal_ids(text, gpt2, library, openai):
    ids = gpt2.encode(text)
    assert ids.tolist() == openai.encode_ordinary(text), ascii(text[:50])
    assert ids.tolist() == library.encode(text).ids, ascii(text[:50])
    assert gpt2.decode(ids) == text


def test_the_vocabulary_is_that_of_gpt2(gpt2):
    assert (gpt2.vocab_size, gpt2.dtype, gpt2.cuts_safely) == (50257, np.uint16, True)
    assert gpt2.decode([50256, 31373]) == END + "hello"
    assert gpt2.decode([31373, 50257, -1, 995]) == "hello world"


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("characters", [1, 3, 1 << 15])
def test_ids_are_those_of_tiktoken_and_tokenizers(
    text, characters, gpt2, library, openai, monkeypatch
):
    monkeypatch.setattr(subword, "PIECE_CHARACTERS", characters)
    assert_equal_ids(text, gpt2, library, openai)
    assert 50256 not in gpt2.encode(text)


def test_random_texts(gpt2, library, openai, monkeypatch):
    monkeypatch.setattr(subword, "PIECE_CHARACTERS", 4)  # cut wherever it is allowed
    generator = random.Random(1)
    for _ in range(500):
        assert_equal_ids(random_text(generator), gpt2, library, openai)


@pytest.mark.slow
@pytest.mark.parametrize("characters", [1, 1 << 15])
def test_many_random_texts(gpt2, library, openai, monkeypatch, characters):
    monkeypatch.setattr(subword, "PIECE_CHARACTERS", characters)
    generator = random.Random(2)
    for _ in range(10_000):
        assert_equal_ids(random_text(generator), gpt2, library, openai)


@pytest.mark.slow
def test_all_the_plays(gpt2, library, openai):
    assert_equal_ids("".join(load_plays().values()), gpt2, library, openai)


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_pieces_of_any_size_give_the_same_ids(gpt2, size, monkeypatch):
    monkeypatch.setattr(subword, "PIECE_CHARACTERS", 3)
    text = "".join(TEXTS) + "To be,\n\n\nor not  to be \n" * 20
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    np.testing.assert_array_equal(
        np.concatenate(list(gpt2.encode_pieces(pieces))), gpt2.encode(text)
    )


def test_digits_before_the_pattern_can_be_cut_too(monkeypatch):
    library = tokenizers.Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    pattern = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([digits, pattern])
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator([" the 12 \n\n  13 ab\n\n ab" * 9], trainer)
    tokenizer = SubwordTokenizer.from_text(library.to_str())
    assert tokenizer.cuts_safely
    monkeypatch.setattr(subword, "PIECE_CHARACTERS", 1)
    generator = random.Random(3)
    for _ in range(300):
        text = random_text(generator)
        assert tokenizer.encode(text).tolist() == library.encode(text).ids


def test_streams_have_no_half_characters(gpt2):
    text = "a \U0001f468\u200d\U0001f469 caf\xe9 \u4f60\u597d"
    decode, ids = gpt2.make_decoder(), gpt2.encode(text).tolist()
    parts = [decode([i], n == len(ids) - 1) for n, i in enumerate(ids)]
    assert "".join(parts) == text
    assert "\ufffd" not in "".join(parts)
    assert gpt2.make_decoder()(ids[1:2], True) != ""  # half a character at the end is shown


def test_ends_of_tokens(gpt2):
    text = "a \U0001f600 caf\xe9"
    ids = gpt2.encode(text)
    expected = [len(b"".join(gpt2._tokens[i] for i in ids[: n + 1])) for n in range(len(ids))]
    assert gpt2.token_ends(text).tolist() == expected
    assert expected[-1] == len(text.encode())


# Trained on a text, and of its own.


def test_bpe_knows_every_text_and_has_the_size_that_is_asked_for():
    tokenizer = build_tokenizer("bpe", "To be, or not to be: " * 50, 262)
    assert tokenizer.vocab_size == 262
    generator = random.Random(4)
    for text in (*TEXTS, *(random_text(generator) for _ in range(200))):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(" to be")) < 5


def test_bpe_is_what_the_library_learns_of_the_whole_text(monkeypatch):
    text = load_plays()["the-tempest"]
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator([text], trainer)
    monkeypatch.setattr(subword, "PIECE_CHARACTERS", 50)
    tokenizer = train_bpe([text[:777], text[777:]], 400)
    assert json.loads(library.to_str())["model"] == json.loads(tokenizer.tokenizer_json)["model"]


@pytest.mark.slow
def test_bpe_does_not_depend_on_the_number_of_threads():
    program = (
        "from minigpt.data import load_plays\nfrom minigpt.data.bpe import train_bpe\n"
        "print(train_bpe(['' .join(load_plays().values())[:900_000]], 3000).sha256)"
    )
    digests = set()
    for threads in ("1", "2", "7"):
        environment = os.environ | {"RAYON_NUM_THREADS": threads}
        command = [sys.executable, "-c", program]
        ended = subprocess.run(command, env=environment, capture_output=True, check=True)
        digests.add(ended.stdout)
    assert len(digests) == 1


def test_bpe_learns_from_the_training_text_only(tmp_path):
    (tmp_path / "a.txt").write_text("ab " * 300)
    (tmp_path / "b.txt").write_text("xyz " * 300)
    dataset = load_dataset(tmp_path / "a.txt", "bpe", val_data=tmp_path / "b.txt", vocab_size=259)
    assert len(dataset.validation) >= 900
    assert len(dataset.train) <= 320


# Files.


@pytest.mark.slow
def test_a_file_a_folder_and_a_vocabulary_give_the_same_tokenizer(gpt2, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(json.loads(gpt2.tokenizer_json), indent=1))
    assert SubwordTokenizer.from_file(tmp_path / "tokenizer.json") == gpt2
    assert SubwordTokenizer.from_file(tmp_path) == gpt2
    (tmp_path / "tokenizer.json").unlink()
    vocabulary, merges = tokenizer_files._gpt2_files()
    (tmp_path / "vocab.json").write_bytes(vocabulary.read_bytes())
    (tmp_path / "merges.txt").write_bytes(merges.read_bytes())
    assert SubwordTokenizer.from_file(tmp_path) == gpt2
    content = {"data_sha256": "0", **tokenizer_content(gpt2)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert SubwordTokenizer.from_file(tmp_path) == tokenizer_from_content(content) == gpt2


def changed(gpt2, **changes):
    return json.dumps(json.loads(gpt2.tokenizer_json) | changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "must be a JSON object"),
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("{}", "has no subword tokenizer"),
        ('{"alphabet": "ab", "data_sha256": "0"}', "has no subword tokenizer"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}}', "is no tokenizer of"),
        ('{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "largest id -1"),
        ('{"model": {"type": "BPE", "vocab": {"a": 4294967295}, "merges": []}}', "4294967295"),
    ],
)
def test_what_is_no_tokenizer_is_refused(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        SubwordTokenizer.from_file(path)
    assert str(path) in str(error.value)


def test_files_that_are_missing_or_damaged_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer='gpt3' .* must be char, byte, gpt2, bpe"):
        build_tokenizer("gpt3", "")
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
    with pytest.raises(ValueError, match=r"merges\.txt' cannot be read"):
        SubwordTokenizer.from_file(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\na b c\n")
    with pytest.raises(ValueError, match="has the line 'a b c'"):
        SubwordTokenizer.from_file(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": "0"}')
    with pytest.raises(ValueError, match="must be integers"):
        SubwordTokenizer.from_file(tmp_path)


def test_a_tokenizer_that_changes_the_text_is_refused(tmp_path, gpt2):
    library = tokenizers.Tokenizer.from_str(gpt2.tokenizer_json)
    library.normalizer = normalizers.Lowercase()
    tokenizer = SubwordTokenizer.from_text(library.to_str())
    assert not tokenizer.cuts_safely
    assert tokenizer.decode(tokenizer.encode("to be")) == "to be"
    with pytest.raises(ValueError, match=r"text has 'B' at position 13, where .* spell 'b'"):
        tokenizer.encode("to Be", offset=10)


def test_what_a_tokenizer_json_adds_has_no_effect(gpt2):
    """Truncation, padding and BPE's dropout are for other uses."""
    library = tokenizers.Tokenizer.from_str(gpt2.tokenizer_json)
    library.enable_truncation(3)
    library.enable_padding(length=64)
    library.model.dropout = 0.9
    tokenizer = SubwordTokenizer.from_text(library.to_str())
    text = "To be, or not to be, that is the question"
    np.testing.assert_array_equal(tokenizer.encode(text), gpt2.encode(text))


@pytest.mark.parametrize(
    "change",
    [
        lambda library: library.add_tokens([tokenizers.AddedToken("be ,")]),
        lambda library: setattr(library, "normalizer", normalizers.Replace("x ", "x ")),
        lambda library: setattr(
            library,
            "pre_tokenizer",
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(tokenizers.Regex("e [bn]"), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            ),
        ),
    ],
)
def test_a_text_is_not_cut_for_other_patterns(gpt2, change, monkeypatch):
    monkeypatch.setattr(subword, "PIECE_CHARACTERS", 1)
    library = tokenizers.Tokenizer.from_str(gpt2.tokenizer_json)
    change(library)
    tokenizer = SubwordTokenizer.from_text(library.to_str())
    text = "to be , or not to be not to be"
    assert not tokenizer.cuts_safely
    (ids,) = tokenizer.encode_pieces([text[:7], text[7:]])
    assert ids.tolist() == library.encode(text).ids


def test_other_kinds_of_tokenizers_give_texts_back():
    library = tokenizers.Tokenizer(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    library.decoder = decoders.Metaspace(prepend_scheme="never")
    text = "to be or not to be\n" * 50
    trainer = trainers.UnigramTrainer(
        vocab_size=30, show_progress=False, unk_token="?", special_tokens=["?"]
    )
    library.train_from_iterator([text], trainer)
    tokenizer = SubwordTokenizer.from_text(library.to_str())
    ids = tokenizer.encode(text)
    assert (tokenizer.decode(ids), ids.tolist()) == (text, library.encode(text).ids)
    decode = tokenizer.make_decoder()
    parts = [decode([i], n == len(ids) - 1) for n, i in enumerate(ids.tolist())]
    assert "".join(parts) == text
    assert tokenizer.token_ends(text)[-1] == len(text)
    with pytest.raises(ValueError, match="text has 'z' at position 3"):
        tokenizer.encode("to z")
    assert len(tokenizer.encode(default_prompt(tokenizer))) > 0


def test_a_tokenizer_without_a_newline_has_a_default_prompt(gpt2):
    library = tokenizers.Tokenizer(models.WordLevel({"?": 0, "be": 1}, unk_token="?"))
    tokenizer = SubwordTokenizer.from_text(library.to_str())
    assert (default_prompt(tokenizer), default_prompt(gpt2)) == ("?", "\n")


# Large texts.


@pytest.fixture
def large(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subword, "PIECE_CHARACTERS", 40)
    path = tmp_path / "text.txt"
    path.write_text("To be,\n\n\nor  not \xe9\u4f60 to be " * 300)
    return path


@pytest.mark.parametrize("kind", ["gpt2", "bpe"])
@pytest.mark.slow
def test_a_large_text_has_the_ids_of_a_small_one(large, kind, monkeypatch, tmp_path):
    small = load_dataset(large, kind, vocab_size=270)
    monkeypatch.setattr(datasets, "MAX_IN_MEMORY_BYTES", -1)
    text = load_text(large)
    for _ in range(2):
        dataset = load_dataset(large, kind, vocab_size=270)
        assert isinstance(dataset.train, np.memmap)
        np.testing.assert_array_equal(dataset.train, small.train)
        np.testing.assert_array_equal(dataset.validation, small.validation)
        assert dataset[2:] == small[2:]
        assert dataset.tokenizer.decode(dataset.train) == text.train
        assert dataset.validation_characters == len(text.validation)
        monkeypatch.setattr(datasets, "_tokenize", None)  # the second time from the cache
        monkeypatch.setattr(datasets, "train_bpe", None)
    names = [path.name for path in (tmp_path / "cache").glob("*.ids")]
    assert len(names) == 1
    assert isinstance(small.tokenizer, SubwordTokenizer)
    assert small.tokenizer.sha256 in names[0]


def test_a_damaged_tokenizer_in_the_cache_is_learned_again(large, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "MAX_IN_MEMORY_BYTES", -1)
    first = load_dataset(large, "bpe", vocab_size=270).tokenizer
    (path,) = (tmp_path / "cache").glob("*-bpe-270-*.json")
    path.write_text(path.read_text()[:-9])
    assert load_dataset(large, "bpe", vocab_size=270).tokenizer == first


def test_where_nothing_is_cached_the_tokenizer_is_learned_too(large, monkeypatch, tmp_path, capsys):
    small = load_dataset(large, "bpe", vocab_size=270)
    monkeypatch.setattr(datasets, "MAX_IN_MEMORY_BYTES", -1)
    (tmp_path / "a file").touch()
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "a file" / "cache"))
    dataset = load_dataset(large, "bpe", vocab_size=270)
    np.testing.assert_array_equal(dataset.train, small.train)
    assert "MINIGPT_CACHE" in capsys.readouterr().err


def test_ids_beyond_65536_have_32_bits(large, monkeypatch, gpt2, tmp_path):
    content = json.loads(gpt2.tokenizer_json)
    content["model"]["vocab"]["\u0120be"] = 70_000
    tokenizer = SubwordTokenizer(json.dumps(content))
    monkeypatch.setattr(datasets, "MAX_IN_MEMORY_BYTES", -1)
    dataset: Any = load_dataset(large, "gpt2", tokenizer)
    assert (dataset.train.dtype, int(dataset.train.max())) == (np.uint32, 70_000)
    assert tokenizer.decode(dataset.train) == load_text(large).train


@pytest.mark.slow
def test_nanogpts_ids_of_a_large_text(gpt2, tmp_path):
    text = "To be, or not to be, caf\xe9 \U0001f600 " * 20
    for name in ("train.bin", "val.bin"):
        gpt2.encode(text).tofile(tmp_path / name)
    dataset = load_dataset(tmp_path, "gpt2")
    assert gpt2.decode(dataset.train) == gpt2.decode(dataset.validation) == text
    assert (dataset.tokenizer, dataset.validation_characters) == (gpt2, len(text))
    for kind in ("char", "byte", "bpe"):
        with pytest.raises(ValueError, match=r"Name the tokenizer .* --tokenizer gpt2"):
            load_dataset(tmp_path, kind)
    np.array([50_257], np.uint16).tofile(tmp_path / "val.bin")
    with pytest.raises(ValueError, match="must be below 50257"):
        load_dataset(tmp_path, "gpt2")
