"""One frozen config: nanoGPT's numbers, refused values, and no knob that nothing reads."""

import dataclasses
import functools
import io
import json
import pathlib
import re
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console
from run_helpers import OTHER_VALUES, flatten_config, replace_field
from tiny import CONFIG, TEXT

import minigpt
from minigpt.config import (
    PRESETS,
    ClassifyConfig,
    Config,
    DropoutConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
)
from minigpt.training import build_train_functions, make_train_batch, trainer

# Typed in from nanoGPT's README (the command for a CPU), config/train_shakespeare_char.py and
# config/train_gpt2.py, with train.py's defaults; its nn.GELU() is the form with erf. GPT-2's model
# is that of its config.json: "gelu_new" is the form with tanh.
PUBLISHED = {
    "shakespeare-char-cpu": {
        "n_layer": 4,
        "n_head": 4,
        "n_embd": 128,
        "block_size": 64,
        "bias": False,
        "activation": "gelu",
        "dropout": 0.0,
        "batch_size": 12,
        "steps": 2000,
        "eval_every": 250,
        "optim": (1e-3, 1e-4, 100, 0.9, 0.99, 0.1, 1.0),
    },
    "shakespeare-char": {
        "n_layer": 6,
        "n_head": 6,
        "n_embd": 384,
        "block_size": 256,
        "bias": False,
        "activation": "gelu",
        "dropout": 0.2,
        "batch_size": 64,
        "steps": 5000,
        "eval_every": 250,
        "optim": (1e-3, 1e-4, 100, 0.9, 0.99, 0.1, 1.0),
    },
    "gpt2": {
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "block_size": 1024,
        "bias": True,
        "activation": "gelu_tanh",
        "dropout": 0.1,
        "batch_size": 12,
        "steps": 600_000,
        "eval_every": 1000,
        "optim": (6e-4, 6e-5, 2000, 0.9, 0.95, 0.1, 1.0),
    },
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_published_one(name):
    config, published = PRESETS[name], PUBLISHED[name]
    flat = vars(config) | vars(config.model)
    optim = dict(vars(config.optim), min_learning_rate=config.optim.final_learning_rate)
    assert tuple(optim.values()) == pytest.approx(published["optim"], rel=1e-12)
    assert config.model.dropout == DropoutConfig.uniform(published["dropout"])
    for field in published.keys() - {"optim", "dropout"}:
        assert flat[field] == published[field], field


def test_the_final_learning_rate_follows_the_peak_unless_it_is_set():
    assert OptimConfig(1e-5).final_learning_rate == pytest.approx(1e-6)
    assert OptimConfig(1e-5, 0.0).final_learning_rate == 0


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: DropoutConfig(embed=1.0), "dropout.embed=1.0"),
        (lambda: DropoutConfig(mlp_out=float("nan")), "dropout.mlp_out=nan"),
        (lambda: DropoutConfig.uniform(-0.1), "dropout=-0.1"),
        (lambda: ModelConfig(n_embd=10, n_head=4), "n_embd=10"),
        (lambda: ModelConfig(n_layer=0), "n_layer=0"),
        (lambda: ModelConfig(n_kv_head=3), "n_kv_head=3"),
        (lambda: ModelConfig(n_kv_head=0), "n_kv_head=0"),
        (lambda: ModelConfig(n_inner=0), "n_inner=0"),
        (lambda: ModelConfig(norm_epsilon=0.0), "norm_epsilon=0.0"),
        (lambda: ModelConfig(rope_theta=1.0), "rope_theta=1.0"),
        (lambda: ModelConfig(rope_theta=-1.0, positions="rotary"), "rope_theta=-1.0"),
        (lambda: ModelConfig(n_embd=12, positions="rotary"), "positions='rotary'"),
        (lambda: ModelConfig(positions="alibi"), "positions='alibi'"),  # pyright: ignore[reportArgumentType]
        (lambda: ModelConfig(norm_type="batch"), "norm_type='batch'"),  # pyright: ignore[reportArgumentType]
        (lambda: ModelConfig(activation="silu"), "activation='silu'"),  # pyright: ignore[reportArgumentType]
        (lambda: OptimConfig(learning_rate=0.0), "learning_rate=0.0"),
        (lambda: OptimConfig(min_learning_rate=1.0), "min_learning_rate=1.0"),
        (lambda: OptimConfig(beta2=1.0), "beta2=1.0"),
        (lambda: OptimConfig(grad_clip=0.0), "grad_clip=0.0"),
        (lambda: Config(steps=0), "steps=0"),
        (lambda: Config(seed=-1), "seed=-1"),
        (lambda: Config(seed=2**32), "seed=4294967296"),
        (lambda: Config(seed=True), "seed=True"),
        (lambda: Config(patience=0), "patience=0"),
        (lambda: Config(profile_steps=-1), "profile_steps=-1"),
        (lambda: Config(accumulate=5), "batch_size=12"),
        (lambda: Config(label_smoothing=1.0), "label_smoothing=1.0"),
        (lambda: Config(vocab_size=300), "vocab_size=300"),
        (lambda: Config(tokenizer="bpe", vocab_size=255), "vocab_size=255"),
        (lambda: Config(tokenizer=""), "tokenizer=''"),
        (lambda: Config(keep_checkpoints=0), "keep_checkpoints=0"),
        (lambda: Config(sample_every=0), "sample_every=0"),
        (lambda: Config(dropout_schedule="cosine"), "dropout_schedule='cosine'"),  # pyright: ignore[reportArgumentType]
        (lambda: Config(dropout_schedule_steps=5), "dropout_schedule_steps=5"),
        (
            lambda: Config(dropout_schedule="early", dropout_schedule_steps=0),
            "dropout_schedule_steps=0",
        ),
        (lambda: Config(steps=5, extended_from=((9, 9),)), r"extended_from=\(\(9, 9\),\)"),
        (lambda: Config(extended_from=((9, 5),)), r"extended_from=\(\(9, 5\),\)"),
        (lambda: DropoutConfig(over_depth="cosine"), "dropout.over_depth='cosine'"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_bad_values_are_named(make, name):
    with pytest.raises(ValueError, match=f"{name} is not allowed"):
        make()


def outcome(config, folder):
    """All that a run shows and leaves, but for times and places."""
    folder.mkdir()
    text = folder / "text.txt"
    text.write_text(TEXT)
    console = Console(record=True, width=120, file=io.StringIO())
    trainer.train(dataclasses.replace(config, data=config.data or text), folder / "run", console)
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    timed = ("tokens_per_s", "elapsed_s")
    records = [{k: v for k, v in json.loads(li).items() if k not in timed} for li in lines]
    printed = console.export_text()
    sample = printed[printed.index(" sample ") :].replace(str(folder), "")
    saved = sorted((folder / "run" / "checkpoints").iterdir())
    arrays = (saved[-1] / "arrays.safetensors").read_bytes()
    return records, sample, arrays, [path.name for path in saved]


# These have an effect on runs with dropout only, and are refused in others.
DROPPING = replace_field(CONFIG, "model.dropout", DropoutConfig.uniform(0.25))
BASES = {
    "dropout_schedule": DROPPING,
    "dropout_schedule_steps": dataclasses.replace(DROPPING, dropout_schedule="late"),
    "model.dropout.over_depth": DROPPING,
    "model.rope_theta": replace_field(CONFIG, "model.positions", "rotary"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return outcome(CONFIG, tmp_path_factory.mktemp("base") / "x")


def test_every_field_is_tried():
    elsewhere = {"data", "run_dir", "patience", "model.remat", "tensorboard", "profile_steps"}
    elsewhere |= {"parent", "parent_checkpoint"}  # test_finetune.py
    elsewhere |= {"val_data", "text_field"}  # test_sources.py
    elsewhere |= {"vocab_size", "imported_from"}  # test_subword_runs.py, test_huggingface_import.py
    elsewhere |= {"freeze", "model.dropout.lora"}  # test_lora.py, as the next
    elsewhere |= {f"model.lora.{field.name}" for field in dataclasses.fields(LoraConfig)}
    elsewhere |= {"wandb", "extended_from"}  # test_wandb_log.py, test_extend.py
    assert set(OTHER_VALUES) | elsewhere == {name for name, _ in flatten_config(Config())}


@pytest.mark.slow
def test_the_same_config_gives_the_same_run(base, tmp_path):
    assert outcome(CONFIG, tmp_path / "x") == base


# What these change is seen in what a run writes, and not in its step: a slow test has them.
OF_THE_RUN = (
    *("steps", "log_every", "eval_every", "eval_batches"),
    *("sample_tokens", "sample_every", "keep_checkpoints", "tokenizer"),
)


TOKENS = np.random.default_rng(0).integers(0, 28, 500).astype(np.uint16)


# One layer, for a short program.
SHALLOW = replace_field(CONFIG, "model.n_layer", 1)


@functools.cache
def step_of(config):
    """The program of a step, and the state and the batch that it is given."""
    compiled = build_train_functions(config, config.model.vocab_size or 28)
    batch = make_train_batch(compiled.mesh, TOKENS, config, 0)
    program = compiled.train_step.lower(compiled.state, batch, jax.random.key(config.seed))
    leaves = jax.tree.leaves((compiled.state, batch))
    return program.as_text(), [np.asarray(leaf).tobytes() for leaf in leaves], compiled.mesh.size


@pytest.mark.parametrize("name", [name for name in OTHER_VALUES if name not in OF_THE_RUN])
def test_a_field_of_the_step_changes_the_step(name):
    value, config = 2 if name == "model.n_layer" else OTHER_VALUES[name], BASES.get(name, SHALLOW)
    assert step_of(replace_field(config, name, value)) != step_of(config)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_VALUES)
def test_every_field_changes_what_a_run_leaves(name, base, tmp_path):
    config = BASES.get(name, CONFIG)
    before = base if config == CONFIG else outcome(config, tmp_path / "before")
    assert outcome(replace_field(config, name, OTHER_VALUES[name]), tmp_path / "x") != before


@pytest.mark.parametrize("name", ["dropout_schedule", "model.dropout.over_depth"])
def test_a_schedule_of_no_dropout_is_refused(name):
    config = replace_field(CONFIG, name, OTHER_VALUES[name])
    with pytest.raises(ValueError, match=f"{name}=.* is not allowed: .* --dropout 0.2"):
        build_train_functions(config, 28)


@pytest.mark.slow
def test_patience_ends_a_run_that_gets_no_better(tmp_path):
    still = OptimConfig(learning_rate=1e-30, min_learning_rate=0.0)
    config = dataclasses.replace(CONFIG, steps=20, optim=still, patience=3)
    records, _, _, saved = outcome(config, tmp_path / "x")
    assert [record["step"] for record in records] == [2, 4, 6, 8]
    assert saved[0] == "00000002"  # the best: the first of equals
    learning = dataclasses.replace(config, optim=CONFIG.optim)
    assert outcome(learning, tmp_path / "y")[0][-1]["step"] == 20


def test_the_text_changes_what_happens(base, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(TEXT.swapcase())
    assert outcome(dataclasses.replace(CONFIG, data=other), tmp_path / "x") != base


def test_paths_may_be_strings():
    path = pathlib.Path("text.txt")
    several: list[Any] = ["text.txt", path, ["text.txt"], (path,)]
    for data in several:
        names: dict[str, Any] = {"run_dir": "out", "parent": "parent"}
        config = Config(data=data, val_data=data, **names)
        assert config.data == config.val_data == (path,)
        assert (config.run_dir, config.parent) == (pathlib.Path("out"), pathlib.Path("parent"))
    with pytest.raises(ValueError, match=r"data=\(\) is not allowed: it must be at least one"):
        Config(data=())


WRONG_TYPES: tuple[tuple[Any, str, Any, str], ...] = (
    (Config, "steps", "20", "an integer"),
    (Config, "steps", 2.5, "an integer"),
    (Config, "batch_size", True, "an integer"),
    (Config, "mesh", 3, "text or None"),
    (Config, "model", {"n_layer": 2}, "a ModelConfig"),
    (Config, "data", 3, "a path, several paths in a list, or None"),
    (Config, "run_dir", 3, "a path or None"),
    (ModelConfig, "n_layer", [2], "an integer"),
    (ModelConfig, "bias", 1, "True or False"),
    (DropoutConfig, "embed", "0.1", "a number"),
    (OptimConfig, "learning_rate", "1e-3", "a number"),
    (ClassifyConfig, "batch_size", "8", "an integer"),
)


@pytest.mark.parametrize(("settings", "name", "value", "allowed"), WRONG_TYPES)
def test_a_value_of_another_type_is_refused_by_name(settings, name, value, allowed):
    message = f"{name}={value!r} is not allowed: it must be {allowed}."
    with pytest.raises(ValueError, match=re.escape(message)):
        settings(**{name: value})


def test_numbers_of_numpy_and_whole_numbers_for_floats_are_values():
    values: Any = {"steps": np.int64(20), "learning_rate": 1, "embed": np.float32(0.5)}
    assert Config(steps=values["steps"]).steps == 20
    assert OptimConfig(learning_rate=values["learning_rate"]).learning_rate == 1
    assert DropoutConfig(embed=values["embed"]).embed == 0.5


def test_only_settings_train():
    settings: Any = {"steps": 3}
    with pytest.raises(TypeError, match=r"it must be a minigpt\.config\.Config"):
        minigpt.train(settings)
