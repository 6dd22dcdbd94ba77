"""Runs that train LoRA layers, or not the first blocks: small checkpoints, and all else as ever."""

import dataclasses
import json
import random
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
import transformers
from flax import nnx
from gpt2_folders import make_model, save_model
from marks import slow
from run_helpers import (
    KILL_AND_RESTART,
    assert_one_line_error,
    child_environment,
    count_kills,
    flip_bit,
    read_files,
    run_command,
    stop_after_step,
)
from tiny import CONFIG, SITES, outcome, with_dropout

import minigpt
from minigpt.checkpoint import manager as checkpoint
from minigpt.cli.commands import parse
from minigpt.cli.finetune import finetune_settings
from minigpt.cli.main import main
from minigpt.config import ClassifyConfig, Config, DropoutConfig, LoraConfig, ModelConfig
from minigpt.data.batches import make_batch
from minigpt.interop.safetensors import plain_parameters
from minigpt.model import split_trained
from minigpt.run import RunSpec, metrics
from minigpt.tasks.classification import PretrainedModel, fit
from minigpt.tasks.classification.data import LabelledSplit, LabelledTexts
from minigpt.tasks.uncertainty import text_uncertainty
from minigpt.training import build_optimizer
from minigpt.training.train_step import build_train_functions, initial_state

TEXT = "".join(random.Random(0).choices(["ABCD EF, ", "GH IJK "], k=300))
LAST = 12
COMMAND = [
    *("finetune", "gpt2", "--data", "text.txt", "--run-dir", "out", "--steps", LAST),
    *("--batch-size", 3, "--log-every", 2, "--eval-every", 4, "--eval-batches", 2),
    *(
        "--sample-tokens",
        2,
        "--patience",
        9,
        "--keep-checkpoints",
        2,
        "--optim.learning-rate",
        0.05,
    ),
]
LORA = ["--lora-rank", 2, "--lora-dropout", 0.25, "--lora-targets", "out,qkv,mlp_in"]
FREEZE = ["--freeze", 1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a GPT-2, a text, and a LoRA run."""
    folder = tmp_path_factory.mktemp("made")
    save_model(folder / "gpt2", make_model())
    (folder / "text.txt").write_text(TEXT)
    with jax.numpy_dtype_promotion("standard"), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main([str(word) for word in [*COMMAND, *LORA]])
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """A folder with a copy of the model, its import, the text and the run, which has no parent."""
    for name in ("gpt2", "out", "runs"):
        shutil.copytree(made / name, tmp_path / name)
    shutil.copy(made / "text.txt", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def start(folder):
    """The same, without the run."""
    shutil.rmtree(folder / "out")
    return folder


def arrays_of(run_dir):
    """The arrays of the newest checkpoint."""
    return checkpoint.read(run_dir, checkpoint.list_steps(run_dir)[-1])[0]


def losses(run_dir):
    return [record["val_loss"] for record in metrics.read_metrics(run_dir) if "val_loss" in record]


def parameters(run_dir):
    return plain_parameters(minigpt.load(run_dir, "last").params)


@pytest.mark.slow
def test_the_loss_goes_down_and_the_checkpoints_are_small(made):
    values = losses(made / "out")
    assert values == sorted(values, reverse=True)
    parent = minigpt.load(made / "runs" / "gpt2-imported").loss(TEXT[int(0.9 * len(TEXT)) :])
    assert values[-1] < parent.loss - 0.3
    arrays = arrays_of(made / "out")
    of_model = {name for name in arrays if name.startswith("params/")}
    assert of_model == {
        f"params/blocks/{i}/{layer}/lora_{letter}/value"
        for i in range(2)
        for layer in ("attn/qkv", "attn/out", "mlp/wide")
        for letter in "ab"
    }
    moments = {name for name in arrays if "/mu/" in name or "/nu/" in name}
    assert {name.split("/blocks/")[1] for name in moments} == {
        name.split("/blocks/")[1] for name in of_model
    }
    assert len(moments) == 2 * len(of_model)


@pytest.mark.slow
def test_the_frozen_weights_are_stored_once_and_are_the_parents(made):
    copy = arrays_of(made / "out" / "parent")
    assert not any(name.startswith("opt_state") for name in copy)
    imported = arrays_of(made / "runs" / "gpt2-imported")
    assert copy.keys() == imported.keys()
    for name, array in imported.items():
        np.testing.assert_array_equal(copy[name], array)
    ours, theirs = parameters(made / "out"), parameters(made / "runs" / "gpt2-imported")
    assert len(ours) == len(theirs) + 12
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)


@pytest.mark.slow
def test_the_screen_tells_how_many_are_trained(start, capsys):
    out = run_command(capsys, *COMMAND, *LORA, *FREEZE)[1]
    lora = 2 * (8 + 24) + 2 * (8 + 8) + 2 * (8 + 32)  # of one block
    reason = "LoRA of rank 2 in qkv,out,mlp_in; the embeddings and the first 1 layers are frozen"
    assert f" parameters, {lora} of them trained ({reason}): 2 layers" in out
    assert "'lora': 0.25" in out
    before, after = (parameters(path) for path in ("runs/gpt2-imported", "out"))
    changed = [name for name in after if name in before and (before[name] != after[name]).any()]
    assert not changed
    assert not after["blocks.0.attn.qkv.lora_b"].any()
    assert after["blocks.1.attn.qkv.lora_b"].any()


@pytest.mark.slow
def test_a_run_is_self_contained(folder, capsys):
    """Without the parent it is evaluated, sampled, replayed, labelled and exported."""
    shutil.rmtree(folder / "runs")
    (folder / "out").rename(folder / "moved")
    result = json.loads(run_command(capsys, "eval", "moved", "--json")[1])
    model = minigpt.load("moved", "last")
    assert result["loss"] == pytest.approx(model.loss(TEXT[int(0.9 * len(TEXT)) :]).loss, rel=0.05)
    code, out, _ = run_command(capsys, "sample", "moved", "--prompt", "AB", "--tokens", 4)
    assert code == 0
    assert out.startswith("AB")
    for step, restored_step in ((2, 0), (LAST, 8)):
        result = json.loads(run_command(capsys, "replay", "moved", "--step", step, "--json")[1])
        assert result["restored_step"] == restored_step
        assert result["measured"]["train_loss"] == result["recorded"]
        assert result["sites"]["block/0/lora/qkv"]["rate"] == 0.25
    words = ["uncertainty", "moved", "--text", "ABCD EF", "--passes", 4, "--json"]
    for more in ((), ("--dropout", 0.5)):
        information = json.loads(run_command(capsys, *words, *more)[1])["information"]
        assert max(information[1:]) > 0


@pytest.mark.slow
def test_monte_carlo_passes_drop_the_input_of_lora_too(made):
    model = minigpt.load(made / "out", "last")
    rates = DropoutConfig(lora=0.5)
    config = dataclasses.replace(model.config.model, dropout=rates)
    run = model.run._replace(config=dataclasses.replace(model.config, model=config))
    measures = text_uncertainty(run, model.params, "ABCD EF", dropout=None, passes=4, seed=0)
    assert measures.information[1:].max() > 0


# Exports are merged.


@pytest.mark.slow
def test_the_exported_gpt2_computes_the_same(made, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["export", made / "out", "--format", "huggingface", "--out", "merged"]
    code, out, err = run_command(capsys, *words)
    assert (code, err) == (0, "")
    assert "lora" not in out
    theirs = transformers.GPT2LMHeadModel.from_pretrained("merged").eval()
    model, ids = minigpt.load(made / "out", "last"), np.arange(16)[None] * 3 % 50
    logits = theirs(torch.tensor(ids)).logits.detach().numpy()
    np.testing.assert_allclose(model.logits(ids), logits, 0, 2e-5)
    base = minigpt.load(made / "runs" / "gpt2-imported", "last")
    assert abs(np.asarray(base.logits(ids)) - logits).max() > 0.05
    np.testing.assert_allclose(minigpt.load("merged").logits(ids), logits, 0, 2e-5)


def test_the_exported_file_is_of_a_model_without_lora(made, tmp_path, capsys):
    assert run_command(capsys, "export", made / "out", "--out", tmp_path / "x")[0] == 0
    with safetensors.safe_open(tmp_path / "x", "np") as file:
        names, metadata = set(file.keys()), file.metadata()
    assert names == set(parameters(made / "runs" / "gpt2-imported"))
    config = json.loads(metadata["config"])
    model = ModelConfig.from_table(config["model"])
    assert model == RunSpec.load(made / "out").config.model.without_lora()
    assert config["freeze"] is None


@pytest.mark.slow
def test_a_classifier_begins_with_the_merged_model(made):
    model = minigpt.load(made / "out", "last")
    texts = LabelledTexts(["AB", "CD", "AB", "CD"], ["one", "two"] * 2)
    settings = ClassifyConfig(steps=1, batch_size=2)
    body = PretrainedModel(model.config.model, model.run.vocab_size, model.tokenizer, model.params)
    classifier = fit(body, LabelledSplit(texts, texts, texts), settings)
    assert classifier.config.lora == LoraConfig()
    merged = body.without_lora()
    np.testing.assert_allclose(
        nnx.to_pure_dict(classifier.params)["body"]["blocks"][0]["attn"]["qkv"]["kernel"],
        nnx.to_pure_dict(merged.params)["blocks"][0]["attn"]["qkv"]["kernel"],
        0,
        2e-4,  # a step of the warm-up
    )


# A run goes on exactly.


@pytest.mark.parametrize("options", [LORA, slow(FREEZE), slow([*LORA, *FREEZE])])
@pytest.mark.slow
def test_sigterm_is_the_run_that_goes_on(start, capsys, monkeypatch, options):
    command = [*COMMAND, *options]
    assert run_command(capsys, *command)[0] == 0
    (start / "out").rename(start / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(metrics.MetricsLog, "add", stop_after_step(6, metrics.MetricsLog.add))
        assert run_command(capsys, *command)[0] == 0
    assert checkpoint.list_steps(start / "out") == [4, 6]
    shutil.rmtree(start / "runs" / "gpt2-imported" / "checkpoints")  # the run needs it no more
    words = ["finetune", "runs/gpt2-imported", *command[2:]]
    code, out, _ = run_command(capsys, *words)
    assert (code, "resuming from step 6" in out) == (0, True)
    (start / "out").rename(start / "resumed")
    ends = []
    for name in ("whole", "resumed"):
        (start / name).rename(start / "out")
        ends.append(outcome(start))
        (start / "out").rename(start / name)
    assert ends[0][:2] == ends[1][:2]


@pytest.mark.slow
@pytest.mark.parametrize("options", [FREEZE, [*LORA, *FREEZE]])
def test_a_run_with_stacked_layers_goes_on(start, capsys, monkeypatch, options):
    """Its checkpoints have a part of the frozen arrays: the layers from --freeze on."""
    train = ["train", *COMMAND[2:], "--run-dir", "trained", "--model.scan-layers", "True"]
    train += ["--model.n-layer", 3, "--model.n-embd", 8, "--model.n-head", 2]
    assert run_command(capsys, *train, "--model.block-size", 16)[0] == 0
    command = ["finetune", "trained", *COMMAND[2:], *options]
    assert run_command(capsys, *command)[0] == 0
    shapes = {
        array.shape[0] for name, array in arrays_of(start / "out").items() if "/blocks/" in name
    }
    assert shapes == {2}
    whole = outcome(start)
    shutil.rmtree("out")
    with monkeypatch.context() as patch:
        patch.setattr(metrics.MetricsLog, "add", stop_after_step(6, metrics.MetricsLog.add))
        assert run_command(capsys, *command)[0] == 0
    assert run_command(capsys, *command)[0] == 0
    assert outcome(start)[:2] == whole[:2]
    before, after = parameters("trained"), parameters("out")
    changed = {name for name in before if (before[name] != after[name]).any()}
    expected = set() if LORA[0] in options else {n for n in before if n[:8] in ALL_BUT_FIRST}
    assert changed == expected


ALL_BUT_FIRST = ("blocks.1", "blocks.2", "norm.sca", "norm.bia")


def disturbed(folder, options, plans, cache):
    command = [str(word) for word in [*COMMAND, *options]]
    words = [sys.executable, "-W", "error", str(KILL_AND_RESTART), json.dumps(plans), *command]
    done = subprocess.run(
        words, cwd=folder, env=child_environment(cache), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


KILL = ["SIGKILL"]
PLANS = [
    *(["replace", 2], ["replace after", 2], ["rename", 1], ["rename after", 1], ["replace", 3]),
    *(["batch", 2], ["copy after", 2], ["evaluation", 3], ["rename", 1], ["record after", 2]),
]


@pytest.mark.parametrize(
    "options",
    [
        slow(LORA),
        pytest.param([*FREEZE, "--dropout-schedule", "curriculum"], marks=pytest.mark.torture),
    ],
)
def test_kills_change_nothing(start, tmp_path_factory, options):
    cache = tmp_path_factory.mktemp("compiled")
    undisturbed = shutil.copytree(start, tmp_path_factory.mktemp("undisturbed") / "x")
    disturbed(undisturbed, options, [], cache)
    ends = disturbed(start, options, [[*plan, KILL] for plan in PLANS], cache)
    assert count_kills(ends) >= len(PLANS) - 1
    assert outcome(start) == outcome(undisturbed)
    for name, array in arrays_of(start / "out" / "parent").items():
        np.testing.assert_array_equal(array, arrays_of(undisturbed / "out" / "parent")[name])


# The frozen weights must be those of the run.


def remove(copy):
    shutil.rmtree(copy)


def damage(copy):
    flip_bit(copy / "checkpoints" / "00000000" / "arrays.safetensors")


def replace(copy):
    arrays, meta = checkpoint.read(copy, 0)
    shutil.rmtree(copy / "checkpoints")
    arrays = {name: array if name == "step" else array * 2 for name, array in arrays.items()}
    with checkpoint.CheckpointWriter(copy) as writer:
        writer.save(0, arrays, meta)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove, "is missing, or has no config.toml: it has the frozen weights of the run"),
        (damage, "arrays.safetensors' is damaged"),
        (replace, "it must have the frozen weights of the run, with SHA-256"),
    ],
)
def test_other_frozen_weights_are_refused(folder, capsys, change, message):
    change(folder / "out" / "parent")
    before = read_files(folder / "out")
    assert_one_line_error(run_command(capsys, "sample", "out"), message, "out/parent")
    assert_one_line_error(run_command(capsys, "export", "out"), message, "out/parent")
    words = ["finetune", RunSpec.load("out").config.parent, *COMMAND[2:], *LORA]
    words[words.index("--steps") + 1] = 20
    assert_one_line_error(run_command(capsys, *words, "--extend"), message, "out/parent")
    after = read_files(folder / "out")
    assert {path for path in after if after[path] != before.get(path)} <= {
        folder / "out" / "config.toml"  # --extend writes it before the checkpoint is read
    }


# From one to the next.


@pytest.mark.parametrize(("more", "is_small"), [([], False), slow(LORA, True)])
@pytest.mark.slow
def test_a_child_of_a_lora_run_begins_with_its_merged_weights(folder, capsys, more, is_small):
    base = RunSpec.load("out").config
    words = ["finetune", "out", "--data", "text.txt", "--run-dir", "child", "--steps", 1, *more]
    code, _, err = run_command(capsys, *words, "--optim.learning-rate", 1e-12)
    assert (code, err) == (0, "")
    config = RunSpec.load("child").config
    assert (config.model.lora.rank, config.freeze) == (2 if is_small else None, None)
    assert config.model.n_layer == base.model.n_layer
    ids = np.arange(16)
    one, other = (minigpt.load(name, "last").logits(ids) for name in ("out", "child"))
    np.testing.assert_allclose(other, one, 0, 2e-5)
    copy = RunSpec.load("child/parent").config
    assert (copy.model.lora.rank, copy.parent) == (None, None)
    assert run_command(capsys, "sample", "child/parent", "--tokens", 2)[0] == 0
    assert run_command(capsys, *words, "--optim.learning-rate", 1e-12)[0] == 0  # finished


@pytest.mark.slow
def test_a_parent_with_an_optimizer_state(start, capsys):
    """Of `minigpt train`: its own is not copied."""
    train = ["train", *COMMAND[2:], "--run-dir", "trained", "--model.n-layer", 2]
    train += ["--model.n-embd", 8, "--model.n-head", 2, "--model.block-size", 16]
    assert run_command(capsys, *train)[0] == 0
    for options in (LORA, FREEZE):
        words = ["finetune", "trained", *COMMAND[2:], *options]
        code, _, err = run_command(capsys, *words)
        assert (code, err) == (0, "")
        names = set(arrays_of(start / "out" / "parent"))
        assert names == {n for n in arrays_of(start / "trained") if not n.startswith("opt_state")}
        assert RunSpec.load("out").config.parent == start / "trained"
        shutil.rmtree("out")


@pytest.mark.slow
def test_defaults_with_lora(made, monkeypatch):
    monkeypatch.chdir(made)

    def settings(*words):
        words = ["finetune", "runs/gpt2-imported", "--data", "text.txt", *map(str, words)]
        return finetune_settings(parse(words))

    assert settings().optim.learning_rate == pytest.approx(6e-5)
    assert settings("--lora-rank", 4).optim.learning_rate == pytest.approx(6e-4)
    (made / "lora.toml").write_text(
        "[model.lora]\nrank = 4\nalpha = 8\n[model.dropout]\nlora = 0.1\n"
    )
    read = settings("--config", "lora.toml", "--lora-targets", "mlp_out,mlp_in")
    assert read.model.lora == LoraConfig(4, 8.0, "mlp_in,mlp_out")
    assert read.model.dropout.lora == 0.1
    assert read.optim.learning_rate == pytest.approx(6e-4)
    again = settings("--config", "out/config.toml")
    assert again.model == RunSpec.load(made / "out").config.model


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lora-rank", 0], "lora.rank=0 is not allowed"),
        (["--lora-rank", 9], "lora.rank=9 is not allowed: it must be at most 8"),
        (["--lora-rank", 2, "--lora-targets", "q_proj"], "lora.targets='q_proj' is not allowed"),
        (["--lora-rank", 2, "--lora-dropout", 1.5], "dropout.lora=1.5 is not allowed"),
        (["--lora-dropout", 0.5], "Set --lora-rank too"),
        (["--lora-rank", 2, "--lora-alpha", 0], "lora.alpha=0.0 is not allowed"),
        (["--freeze", 3], "freeze=3 is not allowed: it must be from 0 to 2"),
        (["--freeze", 2, "--lora-rank", 2], "freeze=2 is not allowed: it must be from 0 to 1"),
        (["--model.lora.rank", 2], "did you mean --lora-rank?"),
    ],
    ids=str,
)
def test_refusals_write_nothing(start, capsys, words, message):
    assert_one_line_error(run_command(capsys, *COMMAND, *words), message)
    assert not (start / "out").exists()


@pytest.mark.parametrize(("words", "name"), [(["--lora-rank", 2], "lora.rank"), (FREEZE, "freeze")])
def test_training_from_random_weights_is_refused(start, capsys, words, name):
    ended = run_command(capsys, "train", "--data", "text.txt", "--run-dir", "out", *words)
    assert_one_line_error(ended, f"{name}=", "without a parent", "minigpt finetune")
    assert not (start / "out").exists()


def test_another_rank_does_not_resume(folder, capsys):
    words = ["finetune", RunSpec.load("out").config.parent, *COMMAND[2:], *LORA]
    for option, value in (
        *(("--lora-rank", 3), ("--lora-dropout", 0.5), ("--lora-targets", "qkv")),
        *(("--lora-alpha", 3), ("--freeze", 1)),
    ):
        ended = run_command(capsys, *words, option, value)
        assert_one_line_error(ended, "was started with", option.split("-")[-1])


# The step.

TOKENS = np.random.default_rng(0).integers(0, 11, 500).astype(np.uint16)
ADAPTED = dataclasses.replace(
    CONFIG.model, n_head=8, n_embd=32, lora=LoraConfig(2, targets="qkv,out,mlp_in,mlp_out")
)
BASE = Config(
    steps=6,
    batch_size=8,
    mesh="data=1",
    model=with_dropout(ADAPTED, **dict.fromkeys((*SITES, "lora"), 0.25)),
    optim=dataclasses.replace(CONFIG.optim, learning_rate=0.01, warmup_steps=0),
)


def steps(config, count=4):
    """The metrics of some steps, and the parameters before and after."""
    training = build_train_functions(config, 11)
    state, key = training.state, jax.random.key(1)
    before, measured = plain_parameters(state.params), []
    for step in range(count):
        rows = training.put_batch(make_batch(TOKENS, 0, step, 8, 32))
        state, numbers = training.train_step(state, rows, key)
        measured.append({name: float(value) for name, value in numbers.items()})
    return measured, before, plain_parameters(state.params), training


@pytest.fixture(scope="module")
def alone():
    with jax.numpy_dtype_promotion("standard"):
        return steps(BASE)


WAYS = [
    {"mesh": "data=2,fsdp=2,tensor=2"},
    slow({"mesh": "data=2,fsdp=2,tensor=2", "accumulate": 2}),
    slow({"accumulate": 4}),
    slow({"model": dataclasses.replace(BASE.model, remat=True)}),
    slow({"model": dataclasses.replace(BASE.model, scan_layers=True, remat=True)}),
]


@pytest.mark.parametrize("changes", WAYS, ids=lambda changes: ",".join(map(str, changes)))
@pytest.mark.slow
def test_meshes_parts_remat_and_scan_are_the_same_run(changes, alone):
    measured, _, after, _ = steps(dataclasses.replace(BASE, **changes))
    losses, expected = ([m["train_loss"] for m in each] for each in (measured, alone[0]))
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    if not BASE.model.scan_layers and "scan" not in str(changes):
        for name in ("blocks.1.attn.qkv.lora_a", "blocks.0.mlp.out.lora_b"):
            np.testing.assert_allclose(after[name], alone[2][name], 0, 2e-3)


def test_only_lora_changes(alone):
    _, before, after, _ = alone
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == {name for name in before if "lora" in name}


@pytest.mark.parametrize("scan", [False, slow(True)])
@pytest.mark.slow
def test_frozen_blocks_get_no_update_no_decay_and_no_moments(scan):
    strong = dataclasses.replace(BASE.optim, weight_decay=5.0)
    model = dataclasses.replace(BASE.model.without_lora(), scan_layers=scan)
    config = dataclasses.replace(BASE, model=model, freeze=1, optim=strong)
    _, before, after, training = steps(config, 2)
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == {name for name in before if name.startswith(("blocks.1", "norm"))}
    trained, _ = split_trained(config, training.state.params)
    moments = jax.tree.leaves(training.state.opt_state[1][0].mu)
    assert sum(m.size for m in moments) == sum(p.size for p in jax.tree.leaves(trained))
    plain = dataclasses.replace(config, freeze=None)
    gradient, whole = (steps(each, 1)[0][0]["grad_norm"] for each in (config, plain))
    assert gradient < whole


@pytest.mark.slow
def test_a_and_b_decay_like_other_matrices():
    training = build_train_functions(BASE, 11)
    trained = jax.tree.map(np.ones_like, split_trained(BASE, training.state.params)[0])
    updates, _ = build_optimizer(BASE.optim, BASE.steps).update(
        jax.tree.map(np.zeros_like, trained), training.state.opt_state, trained
    )
    assert all((np.asarray(leaf) < 0).all() for leaf in jax.tree.leaves(updates))


@pytest.mark.slow
def test_a_schedule_changes_the_rate_of_lora():
    late = dataclasses.replace(BASE, dropout_schedule="linear")
    rates = [numbers["dropout/lora"] for numbers in steps(late, 3)[0]]
    np.testing.assert_allclose(rates, [0.25 * (1 - i / 6) for i in range(3)], rtol=1e-6)


@pytest.mark.parametrize("name", ["alpha", "targets", "rank", "dropout"])
@pytest.mark.slow
def test_every_setting_changes_the_step(name, alone):
    lora, rate = BASE.model.lora, BASE.model.dropout
    model = {
        "alpha": {"lora": dataclasses.replace(lora, alpha=9.0)},
        "targets": {"lora": dataclasses.replace(lora, targets="qkv")},
        "rank": {"lora": dataclasses.replace(lora, rank=3)},
        "dropout": {"dropout": dataclasses.replace(rate, lora=0.5)},
    }[name]
    config = dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, **model))
    assert steps(config, 2)[0][1]["train_loss"] != alone[0][1]["train_loss"]


def test_the_initial_state_has_the_parents_weights_and_new_lora_layers():
    config = dataclasses.replace(BASE, freeze=1)
    training = build_train_functions(config, 11)
    new = plain_parameters(training.state.params)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), training.state.params)
    parent = jax.device_get(training.state)._replace(params=zeros)
    state = initial_state(training, config, None, parent)
    for name, array in plain_parameters(state.params).items():
        expected = new[name] if "lora" in name and "blocks.1" in name else np.zeros(array.shape)
        np.testing.assert_array_equal(array, expected)
