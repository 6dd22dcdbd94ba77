"""A loaded model gives the numbers of its parts, and its texts are those of the ids."""

import math
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
import uncached
from rich.console import Console
from run_helpers import replace_field
from tiny import CONFIG, TEXT

import minigpt
from minigpt import checkpoint
from minigpt.data import Tokenizer
from minigpt.tasks.text_stream import TextStream
from minigpt.training import train


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text(TEXT)
    config = replace_field(replace_field(CONFIG, "data", folder / "text.txt"), "sample_tokens", 0)
    train(config, folder / "out", Console(quiet=True))
    return folder / "out"


@pytest.fixture(scope="module")
def model(run_dir):
    return minigpt.load(str(run_dir))


def test_import_is_light():
    code = "import minigpt, sys; assert not {'jax', 'numpy', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("name", "step"), [(2, 2), ("last", 4), (None, 4), ("best", None)])
def test_checkpoints_are_chosen_by_name_or_step(run_dir, name, step):
    loaded = minigpt.load(run_dir, name)
    assert loaded.step == (step or checkpoint.best_step(run_dir))
    arrays, meta = checkpoint.read(run_dir, loaded.step)
    assert loaded.val_loss == meta["val_loss"]
    leaves = jax.tree.leaves(loaded.params)
    assert sum(leaf.size for leaf in leaves) == sum(
        array.size for name, array in arrays.items() if name.startswith("params/")
    )


@pytest.mark.parametrize("name", ["newest", 3, True])
def test_other_checkpoints_are_refused(run_dir, name):
    with pytest.raises(ValueError, match=r"checkpoint=|no checkpoint for step 3"):
        minigpt.load(run_dir, name)


def test_text_and_ids(model):
    assert model.decode(model.encode("To be")) == "To be"
    assert model.tokenizer.vocab_size == len(set(TEXT))


def test_logits_are_of_a_row_or_rows(model):
    ids = model.encode("To be, or")
    one = model.logits(ids)
    assert one.shape == (9, model.tokenizer.vocab_size)
    np.testing.assert_allclose(model.logits([ids.tolist(), ids.tolist()])[1], one, atol=1e-6)


@pytest.mark.parametrize("tokens", [[], [99], [-1], [0.5], "To", [[[0]]]], ids=str)
def test_other_tokens_are_refused(model, tokens):
    with pytest.raises(ValueError, match="tokens="):
        model.logits(tokens)


@pytest.mark.parametrize("length", [2, 20, 33, 34, 200])
def test_loss_is_the_mean_over_the_text(model, length):
    """Shorter than the block, as long, and longer."""
    text = TEXT[:length]
    result = model.loss(text)
    assert result.tokens == length - 1
    assert result.bits_per_character == pytest.approx(result.loss / math.log(2), rel=1e-6)
    if length <= 33:
        ids = model.encode(text)
        chances = np.asarray(jax.nn.log_softmax(model.logits(ids[:-1])))
        assert result.loss == pytest.approx(-chances[np.arange(length - 1), ids[1:]].mean(), 1e-5)


def test_a_text_of_one_token_has_no_loss(model):
    with pytest.raises(ValueError, match="two tokens"):
        model.loss("T")


def test_generate_gives_the_text_of_the_ids(model):
    text = model.generate("To be", tokens=50, seed=7, top_k=5)
    ids = uncached.generate(
        model.compiled.logits,
        model.params,
        model.encode("To be"),
        tokens=50,
        block_size=model.config.model.block_size,
        vocab_size=model.tokenizer.vocab_size,
        seed=7,
        top_k=5,
    )
    assert text == model.decode(ids)


def test_prompts_and_samples_make_a_list(model):
    one, other = (model.generate(prompt, tokens=9, seed=1) for prompt in ("To", "be, or"))
    second = model.generate("To", tokens=9, seed=2)
    assert model.generate(["To", "be, or"], tokens=9, seed=1) == [one, other]
    assert model.generate("To", num_samples=2, tokens=9, seed=1) == [one, second]
    many = model.generate(["To", "be, or"], num_samples=17, tokens=9, seed=1)
    assert len(many) == 34
    assert (many[0], many[1], many[17]) == (one, second, other)
    assert model.generate([], tokens=9) == []
    assert model.generate("To", tokens=0) == ""


BYTES = "cost: 5 €, or é\U0001f600 END x".encode()


@pytest.mark.parametrize("size", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("stop", [None, "€, or", "END", "EN", "E", "absent"])
def test_pieces_are_whole_characters_up_to_the_stop_text(size, stop):
    text, stream = BYTES.decode(), TextStream(Tokenizer(None), stop)
    pieces = [
        stream.add(list(BYTES[i : i + size]), is_last=i + size >= len(BYTES))
        for i in range(0, len(BYTES), size)
    ]
    assert "".join(pieces) == (text if stop is None else text.partition(stop)[0])
    assert stream.is_stopped == (stop is not None and stop in text)


def test_a_partial_character_at_the_end_is_replaced():
    stream = TextStream(Tokenizer(None))
    assert stream.add(list("é".encode())[:1]) == ""
    assert stream.add([], is_last=True) == "�"
    assert stream.add([300]) == ""


@pytest.mark.usefixtures("without_type_checker")
def test_wrong_arguments_are_named(model):
    untyped: Any = model
    for call, message in (
        (
            lambda: untyped.generate("a", max_new_tokens=3),
            "'max_new_tokens' is not allowed: .*tokens",
        ),
        (lambda: untyped.generate("a", tokens=5.5), "tokens=5.5 is not allowed"),
        (lambda: untyped.generate(5), "prompt=5 is not allowed"),
        (lambda: untyped.generate([5]), r"prompt=\[5\] is not allowed"),
        (lambda: untyped.loss([1, 2]), r"text=\[1, 2\] is not allowed"),
        (lambda: untyped.encode(3), "text=3 is not allowed"),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_a_model_is_shown_in_a_line(model):
    assert repr(model).startswith(f"LoadedModel({CONFIG.model.n_layer} layers, ")
    assert len(repr(model)) < 200
    assert "\n" not in repr(model)
