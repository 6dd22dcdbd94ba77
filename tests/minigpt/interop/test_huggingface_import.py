"""A GPT-2 of transformers and its import compute the same: logits, loss, gradients, generation."""

import dataclasses
import json
import pathlib
import shlex
import shutil
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
import safetensors.numpy
import torch
import transformers
from flax import nnx
from gpt2_folders import ALPHABET, edit_config, make_model, save_model
from marks import slow
from run_helpers import assert_one_line_error, read_files, run_command

import minigpt
from minigpt.interop import import_huggingface, read_huggingface
from minigpt.interop.gpt2_config import (
    ALIASES,
    DEFAULTS,
    HARMLESS,
    ONE_VALUE,
    read_gpt2_config,
)
from minigpt.interop.gpt2_weights import gpt2_names
from minigpt.interop.huggingface import conversion_command
from minigpt.interop.safetensors import plain_parameters
from minigpt.model import GPT

IDS = np.random.default_rng(0).integers(0, 50, (3, 16))


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "gpt2-tiny", model)


@pytest.fixture(scope="module")
def imported(folder, tmp_path_factory):
    with jax.numpy_dtype_promotion("standard"):
        run_dir = tmp_path_factory.mktemp("runs") / "imported"
        import_huggingface(folder, run_dir)
    return run_dir


def loss_and_gradients(folder, dtype):
    """Of minigpt: logits, loss, and the gradient of every parameter by its plain name."""
    run, params = read_huggingface(folder)
    graph = nnx.graphdef(
        nnx.eval_shape(lambda: GPT(run.config.model, run.vocab_size, rngs=nnx.Rngs(0)))
    )
    params = jax.tree.map(lambda array: jax.numpy.asarray(array, dtype), params)

    def loss(params):
        logits = nnx.merge(graph, params)(IDS, key=None)
        targets = IDS[:, 1:]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], targets)
        return losses.mean(), logits

    (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return np.asarray(logits), float(value), gradients


def flat(tree):
    named = jax.tree.leaves_with_path(tree)
    return {
        ".".join(str(key.key) for key in path if hasattr(key, "key")): np.asarray(leaf)
        for path, leaf in named
    }


@pytest.mark.parametrize(
    ("activation", "dtype"),
    [
        ("gelu_new", "float32"),
        slow("gelu_new", "float64"),
        slow("gelu", "float64"),
        slow("relu", "float64"),
    ],
)
def test_logits_loss_and_gradients(tmp_path, dtype, activation):
    model = make_model(activation_function=activation)
    folder = save_model(tmp_path / "model", model)
    tolerance = 2e-6 if dtype == "float32" else 1e-12
    model = model.to(getattr(torch, dtype))
    result = model(torch.tensor(IDS), labels=torch.tensor(IDS))
    their_loss = result.loss
    if dtype == "float64":  # transformers computes the loss in float32
        flat_logits, targets = result.logits[:, :-1].reshape(-1, 50), torch.tensor(IDS[:, 1:])
        their_loss = torch.nn.functional.cross_entropy(flat_logits, targets.reshape(-1))
    their_loss.backward()
    with jax.enable_x64(dtype == "float64"):
        logits, loss, gradients = loss_and_gradients(folder, dtype)
        gradients = flat(gradients)
    assert logits.dtype == dtype
    np.testing.assert_allclose(logits, result.logits.detach().numpy(), 0, tolerance * 3)
    np.testing.assert_allclose(loss, their_loss.item(), tolerance)
    theirs = {name: np.asarray(p.grad) for name, p in model.named_parameters()}
    names = gpt2_names(2)
    assert set(gradients) == set(names.values())
    assert len(theirs) == len(names)
    for name, ours in names.items():
        theirs_of_name = theirs[f"transformer.{name}"]
        np.testing.assert_allclose(gradients[ours], theirs_of_name, 0, tolerance, err_msg=name)


def test_greedy_generation(folder, model):
    loaded = minigpt.load(folder)
    prompt = "HELLO"
    ids = torch.tensor(np.asarray(loaded.encode(prompt))[None].astype(np.int64))
    tokens = model.generate(
        ids, max_new_tokens=11, do_sample=False, attention_mask=torch.ones_like(ids), pad_token_id=0
    )[0, 5:]
    text = loaded.generate(prompt, tokens=11, temperature=0.0)
    np.testing.assert_array_equal(loaded.encode(text), tokens.numpy())


def test_import_tells_what_it_reads(folder, tmp_path, capsys):
    edited = edit_config(shutil.copytree(folder, tmp_path / "m"), attn_pdrop=0.0, embd_pdrop=0.25)
    code, out, _ = run_command(capsys, "import", edited, "--run-dir", tmp_path / "out")
    assert code == 0
    assert out.splitlines() == [
        "GPT-2: 2 blocks, 2 heads, width 8, context 16, 50 rows in the token table, gelu_tanh",
        "tokenizer: char, 50 tokens",
        "attn_pdrop 0.0: dropout at attn_weights",
        "embd_pdrop 0.25: dropout at embed",
        "resid_pdrop 0.1: dropout at attn_out and mlp_out",
        f"run directory: {tmp_path / 'out'}",
    ]
    rates = minigpt.load(tmp_path / "out").config.model.dropout
    assert {name: rate for name, rate in rates.rates.items() if rate} == {
        **{"embed": 0.25, "attn_out": 0.1, "mlp_out": 0.1}
    }
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_shards_halves_and_names_without_prefix(model, folder, tmp_path):
    expected = minigpt.load(folder).logits(IDS)
    sharded = save_model(tmp_path / "shards", model, max_shard_size="2KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    np.testing.assert_array_equal(minigpt.load(sharded).logits(IDS), expected)
    # As in openai-community/gpt2: GPT2Model's names, and the causal masks.
    bare = shutil.copytree(folder, tmp_path / "bare")
    arrays = safetensors.numpy.load_file(bare / "model.safetensors")
    arrays = {name.removeprefix("transformer."): array for name, array in arrays.items()}
    arrays["h.0.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), np.float32))
    arrays["h.1.attn.masked_bias"] = np.array(-1e4, np.float32)
    arrays["lm_head.weight"] = arrays["wte.weight"]
    safetensors.numpy.save_file(arrays, bare / "model.safetensors")
    np.testing.assert_array_equal(minigpt.load(bare).logits(IDS), expected)
    for dtype in (torch.float16, torch.bfloat16):
        half = make_model().to(dtype)
        path = save_model(tmp_path / str(dtype), half)
        params = plain_parameters(minigpt.load(path).params)
        assert {array.dtype for array in params.values()} == {np.dtype("float32")}
        table = half.transformer.wte.weight.detach().float().numpy()
        np.testing.assert_array_equal(params["tokens.embedding"], table)


@pytest.mark.slow
def test_commands_on_an_imported_run(imported, tmp_path, capsys):
    before = read_files(imported)
    text = tmp_path / "text.txt"
    text.write_text("A BEE, A CALF, NO HOME? " * 30)
    assert run_command(capsys, "sample", imported, "--tokens", 3)[0] == 0
    assert run_command(capsys, "eval", imported, "--data", text)[0] == 0
    assert run_command(capsys, "uncertainty", imported, "--text", "A BEE", "--passes", 2)[0] == 0
    assert_one_line_error(run_command(capsys, "eval", imported), "imported model", "--data")
    replayed = run_command(capsys, "replay", imported, "--step", 1)
    assert_one_line_error(replayed, "imported model", "no training steps")
    trained = run_command(capsys, "train", "--data", text, "--run-dir", imported)
    assert_one_line_error(trained, "minigpt finetune", str(imported))
    assert read_files(imported) == before


OPTIONS = (
    *("--steps", 2, "--batch-size", 2, "--eval-every", 1, "--sample-tokens", 2),
    *("--eval-batches", 1),
)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["run", "folder"])
def test_finetune(what, imported, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("A BEE, A CALF, NO HOME? " * 30)
    parent = imported if what == "run" else folder
    words = "finetune", parent, "--data", "text.txt", *OPTIONS
    code, out, err = run_command(
        capsys, *words, "--run-dir", "tuned", "--optim.learning-rate", 1e-9
    )
    assert code == 0, err
    tuned = minigpt.load("tuned")
    assert (tuned.step, tuned.config.imported_from) == (2, None)
    assert tuned.config.model.dropout.attn_weights == 0.1
    np.testing.assert_allclose(tuned.logits(IDS), minigpt.load(folder).logits(IDS), atol=1e-5)
    if what == "run":
        assert run_command(capsys, "replay", "tuned", "--step", 1)[0] == 0
        return
    assert "imported" in out
    assert tuned.config.parent == tmp_path / "runs" / "gpt2-tiny-imported"
    again = run_command(capsys, *words, "--run-dir", "tuned", "--optim.learning-rate", 1e-9)
    assert (again[0], "is imported already" in again[1]) == (0, True), again
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["gpt2-tiny-imported"]
    edit_config(shutil.copytree(folder, tmp_path / "gpt2-tiny"), resid_pdrop=0.2)
    code, out, err = run_command(capsys, "finetune", "gpt2-tiny", "--data", "text.txt", *OPTIONS)
    assert (code, "gpt2-tiny-imported-2" in out) == (0, True), err
    names = {"gpt2-tiny-imported", "gpt2-tiny-imported-2", "gpt2-tiny-finetuned"}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == names


@pytest.mark.slow
def test_classify(imported, tmp_path, capsys):
    rows = [f"{'AB'[i % 2] * 5},{'ab'[i % 2]}" for i in range(40)]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *rows]))
    words = "--data", tmp_path / "data.csv", "--out", tmp_path / "c", "--steps", 2
    code, _, err = run_command(capsys, "classify", imported, *words)
    assert code == 0, err


def test_every_key_of_transformers_is_in_the_table():
    keys = set(transformers.GPT2Config().to_dict()) | set(transformers.GPT2Config.attribute_map)
    assert keys <= {*DEFAULTS, *ONE_VALUE, *HARMLESS, *ALIASES}
    defaults = transformers.GPT2Config().to_dict()
    for name, value in DEFAULTS.items():
        assert defaults[name] == value, name
    for name, (allowed, _) in ONE_VALUE.items():
        if name in defaults:
            assert defaults[name] in allowed, name


CHANGES = {
    "model_type": "llama",
    "architectures": ["GPT2ForSequenceClassification"],
    "activation_function": "silu",
    "layer_norm_epsilon": 1e-6,
    "scale_attn_weights": False,
    "scale_attn_by_inverse_layer_idx": True,
    "reorder_and_upcast_attn": True,
    "add_cross_attention": True,
    "is_encoder_decoder": True,
    "tie_word_embeddings": False,
    "n_inner": 16,
    "pruned_heads": {"0": [1]},
    "quantization_config": {"bits": 4},
    "rope_scaling": 2,
    "n_layer": -1,
    "n_head": 3,
    "n_embd": "8",
    "n_positions": 0,
    "n_ctx": 8,
    "vocab_size": True,
    "attn_pdrop": 1.0,
    "resid_pdrop": -0.1,
    "embd_pdrop": float("nan"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_key_that_changes_the_result_is_refused_by_name(name, folder, tmp_path, capsys):
    edited = edit_config(shutil.copytree(folder, tmp_path / "m"), **{name: CHANGES[name]})
    ended = run_command(capsys, "import", edited, "--run-dir", tmp_path / "out")
    is_multiple = name == "n_head"  # the width must be a multiple of it
    assert_one_line_error(ended, "config.json", f"{name}=", "must be" if not is_multiple else "")
    assert {path.name for path in tmp_path.iterdir()} == {"m"}


def test_other_names_of_the_same_keys(folder, tmp_path):
    values = json.loads((folder / "config.json").read_text())
    for alias, name in ALIASES.items():
        if name in values:
            values[alias] = values.pop(name)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    assert read_gpt2_config(path) == read_gpt2_config(folder / "config.json")


def test_a_model_of_the_hub(folder, tmp_path, capsys, monkeypatch):
    import huggingface_hub

    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        if name != "some/gpt2":
            raise OSError("no network")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    assert run_command(capsys, "import", "some/gpt2", "--run-dir", "out")[0] == 0
    assert minigpt.load("out").config.imported_from == "some/gpt2"
    assert asked[0][0] == "some/gpt2"
    assert not any("bin" in pattern for pattern in asked[0][1])
    np.testing.assert_array_equal(
        minigpt.load("some/gpt2").logits(IDS), minigpt.load("out").logits(IDS)
    )
    failed = run_command(capsys, "import", "other/gpt2", "--run-dir", "out2")
    assert_one_line_error(failed, "'other/gpt2'", "no network", "Name a folder")
    (tmp_path / "runs").mkdir()
    before = len(asked)
    assert_one_line_error(run_command(capsys, "sample", "runs/typo"), "not a run directory")
    assert_one_line_error(
        run_command(capsys, "import", "runs/typo", "--run-dir", "o"), "'runs/typo'"
    )
    assert len(asked) == before  # `runs` is a folder here
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    missing = run_command(capsys, "import", "some/gpt2", "--run-dir", "out2")
    assert_one_line_error(missing, "pip install huggingface_hub")


def test_a_pickle_is_refused_with_the_line_that_converts_it(folder, model, tmp_path, capsys):
    pickled = shutil.copytree(folder, tmp_path / "it's a folder")
    (pickled / "model.safetensors").unlink()
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    ended = run_command(capsys, "import", pickled, "--run-dir", tmp_path / "out")
    assert_one_line_error(ended, "pytorch_model.bin", "pickle", conversion_command(pickled))
    program, flag, code, argument = shlex.split(conversion_command(pickled))
    assert (program, flag, argument) == ("python", "-c", str(pickled))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["-c", argument])
        exec(code, {})
    np.testing.assert_array_equal(
        minigpt.load(pickled).logits(IDS), minigpt.load(folder).logits(IDS)
    )


@pytest.mark.slow
def test_the_line_works_in_a_shell(folder, model, tmp_path):
    folder_copy = shutil.copytree(folder, tmp_path / "m")
    (folder_copy / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder_copy / "pytorch_model.bin")
    line = conversion_command(folder_copy).replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(line, shell=True, check=True, capture_output=True)
    assert (folder_copy / "model.safetensors").is_file()


def test_settings_of_an_imported_run(imported, folder):
    config = minigpt.load(imported).config
    assert config.imported_from == str(folder)
    assert dataclasses.replace(config, imported_from=None).data is None
    assert "".join(minigpt.load(imported).tokenizer.decode(range(50))) == ALPHABET


def test_every_key_is_in_the_documentation():
    page = pathlib.Path(minigpt.__file__).parent.parent / "docs" / "huggingface.md"
    text = page.read_text()
    for name in {*DEFAULTS, *ONE_VALUE, *HARMLESS, *ALIASES}:
        assert f"`{name}`" in text, name
