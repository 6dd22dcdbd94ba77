"""GGUF files of Llama: the weights, the settings, the tokenizer, and damaged files."""

import json
import os
import struct
import sys
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from llama_folders import (
    TEXT,
    gguf_arrays,
    gguf_metadata,
    learn_tokenizer,
    make_llama,
    write_gguf,
)
from marks import slow
from run_helpers import assert_one_line_error, run_command

import minigpt
from minigpt.data import ChatTemplate, SubwordTokenizer
from minigpt.interop import is_huggingface_model, read_huggingface

VOCABULARY = 300
IDS = np.random.default_rng(0).integers(0, VOCABULARY, (2, 16))
# Rows of 32 numbers, which is a block of the kinds of a few bits.
WIDE = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96}


@pytest.fixture(scope="module")
def model():
    return make_llama(**WIDE)


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    return write_gguf(path, gguf_metadata(model), gguf_arrays(model))


def logits_of(model):
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def test_a_file_computes_what_its_model_does(file, model):
    loaded = minigpt.load(file)
    np.testing.assert_allclose(loaded.logits(IDS), logits_of(model), 0, 1e-4)
    assert (loaded.config.model.norm_epsilon, loaded.config.model.rope_theta) == (1e-5, 500.0)
    assert loaded.config.imported_from == str(file)


def test_the_output_layer_of_an_untied_model(tmp_path):
    model = make_llama(**WIDE, tie_word_embeddings=False)
    path = write_gguf(tmp_path / "untied.gguf", gguf_metadata(model), gguf_arrays(model))
    np.testing.assert_allclose(minigpt.load(path).logits(IDS), logits_of(model), 0, 1e-4)


@pytest.mark.parametrize(
    "kind", ["F16", "Q8_0", "Q4_1", slow("BF16"), slow("Q4_0"), slow("Q5_0"), slow("Q5_1")]
)
def test_kinds_of_numbers(kind, model, tmp_path):
    """transformers with the numbers that the gguf library gives back."""
    arrays = gguf_arrays(model)
    path = write_gguf(tmp_path / f"{kind}.gguf", gguf_metadata(model), arrays, kind)
    rounded = make_llama(**WIDE)
    dtype = gguf.GGMLQuantizationType[kind]
    with torch.no_grad():
        for parameter in rounded.parameters():
            if parameter.ndim == 2:
                numbers = gguf.quantize(parameter.numpy(), dtype)
                parameter.copy_(torch.tensor(gguf.dequantize(numbers, dtype)))
    got = minigpt.load(path).logits(IDS)
    np.testing.assert_allclose(got, logits_of(rounded), 0, 1e-4)
    assert abs(got - logits_of(model)).max() > 1e-3


@pytest.mark.slow
def test_transformers_reads_the_same_from_the_file(file):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    np.testing.assert_allclose(minigpt.load(file).logits(IDS), logits_of(theirs.eval()), 0, 1e-5)


def test_import_and_export(file, model, tmp_path, capsys):
    """As a folder with one file; and the folder that export writes computes the same."""
    assert is_huggingface_model(file.parent)
    code, out, err = run_command(capsys, "import", file.parent, "--run-dir", tmp_path / "run")
    assert (code, err) == (0, "")
    assert f"tokenizer: subwords, {VOCABULARY} tokens" in out
    words = "--format", "huggingface", "--out", tmp_path / "out"
    assert run_command(capsys, "export", tmp_path / "run", *words)[0] == 0
    exported = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    for name, array in exported.state_dict().items():
        assert torch.equal(array, model.state_dict()[name]), name
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer(TEXT)["input_ids"] == minigpt.load(file).encode(TEXT).tolist()


def split_digits(text):
    """SmolLM's first step: every digit by itself."""
    part = ""
    for character in text:
        if character.isdecimal():
            yield from filter(None, (part, character))
            part = ""
        else:
            part += character
    yield part


def test_the_tokenizer_of_smollm(file):
    """Every digit by itself, and the parts by GPT-2's pattern."""
    loaded, learned = minigpt.load(file), learn_tokenizer(VOCABULARY)
    text = TEXT[:200] + "x=12 345,  67\n\n8"
    expected = [i for part in split_digits(text) for i in learned.encode(part)]
    assert loaded.encode(text).tolist() == expected
    assert loaded.decode(loaded.encode(text)) == text


def test_other_tokenizers(model, tmp_path):
    metadata, arrays = gguf_metadata(model, "gpt-2"), gguf_arrays(model)
    path = write_gguf(tmp_path / "gpt2.gguf", metadata, arrays)
    expected = learn_tokenizer(VOCABULARY).encode(TEXT)
    np.testing.assert_array_equal(minigpt.load(path).encode(TEXT), expected)
    # Three digits, and "\n\n" after a point, are one part each in Llama 3's pattern.
    learned = metadata["tokenizer.ggml.tokens"]
    learned[-4:] = ["12", "123", ".Ċ", ".ĊĊ"]
    merges = ["1 2", "12 3", ". Ċ", ".Ċ Ċ"]
    known = [m for m in metadata["tokenizer.ggml.merges"] if m.replace(" ", "") in learned]
    metadata |= {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.merges": known + merges}
    metadata["tokenizer.ggml.token_type"][5] = 3
    path = write_gguf(tmp_path / "llama3.gguf", metadata, arrays)
    loaded = minigpt.load(path)
    ids = loaded.encode("1234.\n\n")
    assert [loaded.decode([i]) for i in ids] == ["123", "4", ".\n\n"]
    assert isinstance(loaded.tokenizer, SubwordTokenizer)
    assert '"special": true' in loaded.tokenizer.tokenizer_json


def test_the_chat_template_of_the_metadata(model, tmp_path):
    source = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    metadata: dict[str, Any] = gguf_metadata(model) | {"tokenizer.ggml.bos_token_id": 7}
    path = write_gguf(
        tmp_path / "chat.gguf",
        metadata | {"tokenizer.chat_template": source},
        gguf_arrays(model),
    )
    template = read_huggingface(path)[0].chat_template
    assert template == ChatTemplate(source, {"bos_token": metadata["tokenizer.ggml.tokens"][7]})
    metadata["tokenizer.chat_template"] = "{% for"
    path = write_gguf(tmp_path / "damaged.gguf", metadata, gguf_arrays(model))
    with pytest.raises(ValueError, match=r"damaged\.gguf"):
        read_huggingface(path)


def with_bytes(change):
    return lambda path: path.write_bytes(change(path.read_bytes()))


def header(**counts):
    """The first 24 bytes: magic, version, arrays, keys."""
    values = {"magic": b"GGUF", "version": 3, "arrays": 0, "keys": 0} | counts
    return struct.pack("<4sIQQ", *values.values())


def text(value):
    return struct.pack("<Q", len(value)) + value


def array_of(kind, count):
    return header(keys=1) + text(b"a") + struct.pack("<IIQ", 9, kind, count)


def entry(name=b"a", shape=(32,), kind=0, offset=0):
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + axes + struct.pack("<IQ", kind, offset)


def content(data):
    return lambda path: path.write_bytes(data)


DAMAGES = {
    "empty": (content(b""), ["empty"]),
    "short": (content(b"GGUF"), ["ends"]),
    "another format": (content(b"PK\3\4" * 9), ["GGUF"]),
    "version 1": (content(header(version=1)), ["version"]),
    "big-endian": (content(struct.pack(">4sIQQ", b"GGUF", 3, 0, 0)), ["version", "little-endian"]),
    "cut off": (with_bytes(lambda b: b[:-100]), ["ends"]),
    "cut off in the header": (with_bytes(lambda b: b[:3000]), ["ends"]),
    "2^60 keys": (content(header(keys=1 << 60)), ["ends"]),
    "2^60 arrays": (content(header(arrays=1 << 60)), ["ends"]),
    "text of 2^60 bytes": (content(header(keys=1) + struct.pack("<Q", 1 << 60)), ["ends"]),
    "2^60 bytes": (content(array_of(0, 1 << 60)), ["ends"]),
    "2^60 texts": (content(array_of(8, 1 << 60)), ["ends"]),
    "lists of lists": (content(array_of(9, 1)), ["type 9"]),
    "unknown value": (content(header(keys=1) + text(b"a") + struct.pack("<I", 77)), ["type 77"]),
    "no text": (content(header(keys=1) + text(b"\xff")), ["utf-8"]),
    "key twice": (
        content(header(keys=2) + (text(b"a") + struct.pack("<II", 4, 1)) * 2),
        ["'a'", "twice"],
    ),
    "array twice": (content(header(arrays=2) + entry() * 2 + bytes(300)), ["'a'", "twice"]),
    "overlap": (
        content(header(arrays=2) + entry() + entry(b"b", offset=32) + bytes(300)),
        ["'b'", "overlaps"],
    ),
    "five axes": (content(header(arrays=1) + entry(shape=(1,) * 5)), ["5 axes"]),
    "2^63 numbers": (content(header(arrays=1) + entry(shape=(1 << 63, 2))), ["ends"]),
    "no numbers": (content(header(arrays=1) + entry(shape=(0,))), ["(0,)"]),
    "unknown kind": (content(header(arrays=1) + entry(kind=99)), ["type 99"]),
    "half a block": (content(header(arrays=1) + entry(shape=(33,), kind=8)), ["Q8_0", "(33,)"]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file(name, file, tmp_path, capsys):
    damage, parts = DAMAGES[name]
    copy = tmp_path / "model.gguf"
    copy.write_bytes(file.read_bytes())
    damage(copy)
    ended = run_command(capsys, "import", copy, "--run-dir", tmp_path / "out")
    assert_one_line_error(ended, str(copy), "GGUF", *parts)
    assert {path.name for path in tmp_path.iterdir()} == {"model.gguf"}


def without(name):
    return lambda metadata, arrays: (metadata.pop(name, None), arrays.pop(name, None))


def with_key(name, value):
    return lambda metadata, arrays: metadata.update({name: value})


def with_array(name, array):
    return lambda metadata, arrays: arrays.update({name: array})


Q = "blk.0.attn_q.weight"
CHANGES = {
    "no block count": (without("llama.block_count"), ["llama.block_count=None"]),
    "no epsilon": (without("llama.attention.layer_norm_rms_epsilon"), ["rms_epsilon=None"]),
    "another type": (with_key("general.type", "adapter"), ["general.type='adapter'"]),
    "parts": (with_key("split.count", 2), ["split.count=2"]),
    "experts": (with_key("llama.expert_count", 8), ["llama.expert_count=8"]),
    "scaled positions": (with_key("llama.rope.scaling.type", "linear"), ["rope.scaling.type"]),
    "factor": (with_key("llama.rope.scaling.factor", 2.0), ["llama.rope.scaling.factor"]),
    "part of a head": (with_key("llama.rope.dimension_count", 8), ["dimension_count=8"]),
    "wide heads": (with_key("llama.attention.key_length", 32), ["key_length=32"]),
    "heads": (with_key("llama.attention.head_count_kv", 3), ["head_count_kv=3"]),
    "rows": (with_key("llama.vocab_size", 301), ["llama.vocab_size=301"]),
    "blocks": (with_key("llama.block_count", 10**9), ["1000000000 blocks", "2 blocks"]),
    "kind of tokenizer": (with_key("tokenizer.ggml.model", "llama"), ["tokenizer.ggml.model"]),
    "pattern": (with_key("tokenizer.ggml.pre", "qwen2"), ["tokenizer.ggml.pre='qwen2'", "smollm"]),
    "no tokens": (without("tokenizer.ggml.tokens"), ["tokenizer.ggml.tokens=None"]),
    "merges": (with_key("tokenizer.ggml.merges", ["no such"]), ["tokenizer.ggml.merges"]),
    "few types": (with_key("tokenizer.ggml.token_type", [1, 2]), ["token_type"]),
    "missing array": (without(Q), [Q, "missing"]),
    "extra array": (with_array("rope_freqs.weight", np.ones(8, np.float32)), ["rope_freqs"]),
    "extra bias": (with_array("blk.0.attn_q.bias", np.ones(64, np.float32)), ["attn_q.bias"]),
    "shape": (with_array(Q, np.ones((64, 32), np.float32)), [Q, "(64, 32)", "(64, 64)"]),
    "not finite": (with_array(Q, np.full((64, 64), np.nan, np.float32)), [Q, "NaN"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_the_result_is_refused_by_name(name, model, tmp_path, capsys):
    change, parts = CHANGES[name]
    metadata, arrays = gguf_metadata(model), gguf_arrays(model)
    change(metadata, arrays)
    path = write_gguf(tmp_path / "model.gguf", metadata, arrays)
    ended = run_command(capsys, "import", path, "--run-dir", tmp_path / "out")
    assert_one_line_error(ended, str(path), *parts)
    assert {path.name for path in tmp_path.iterdir()} == {"model.gguf"}


def test_another_architecture(model, tmp_path, capsys):
    path = write_gguf(tmp_path / "a.gguf", gguf_metadata(model), gguf_arrays(model), "F32", "qwen2")
    ended = run_command(capsys, "import", path, "--run-dir", tmp_path / "out")
    assert_one_line_error(ended, "general.architecture='qwen2'", "'llama'")


def test_several_files_and_a_missing_library(file, model, tmp_path, capsys, monkeypatch):
    for name in ("a.gguf", "b.gguf"):
        os.link(file, tmp_path / name)
    ended = run_command(capsys, "import", tmp_path, "--run-dir", tmp_path / "out")
    assert_one_line_error(ended, "2 GGUF files", "a.gguf")
    path = write_gguf(tmp_path / "q.gguf", gguf_metadata(model), gguf_arrays(model), "Q8_0")
    monkeypatch.setitem(sys.modules, "gguf", None)
    ended = run_command(capsys, "import", path, "--run-dir", tmp_path / "out")
    assert_one_line_error(ended, str(path), "pip install 'dropout-jax[gguf]'")
    assert minigpt.load(file).step == 0  # F32 needs no library


def test_the_reader_agrees_with_the_library(file):
    """Every key and every array of the file, as the gguf library reads them."""
    from minigpt.interop.gguf_file import read_gguf

    ours, theirs = read_gguf(file), gguf.GGUFReader(file)
    fields = {n: f.contents() for n, f in theirs.fields.items() if not n.startswith("GGUF.")}
    assert json.dumps(ours.metadata, sort_keys=True) == json.dumps(fields, sort_keys=True)
    assert list(ours.arrays) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        np.testing.assert_array_equal(ours.arrays[tensor.name].read_float32(), tensor.data)
