"""The auditor finds nothing in the trainer's own steps, whatever the settings of the run."""

import dataclasses
import io
import json
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from marks import slow
from rich.console import Console
from run_helpers import assert_one_line_error, run_command

from minigpt.config import ClassifyConfig, Config, DropoutConfig, LoraConfig
from minigpt.tasks.audit import audit_run, audit_steps, first_step, rate_setters
from minigpt.tasks.classification import PretrainedModel, fit
from minigpt.training import trainer

BENCHMARK = pathlib.Path(__file__).parents[3] / "benchmarks" / "bench_audit.py"
VOCAB_SIZE = 11
TOKENS = np.random.default_rng(0).integers(0, VOCAB_SIZE, 2000, dtype=np.int32)
RATES = tiny.with_dropout(**dict.fromkeys(tiny.SITES, 0.2)).dropout
WITH_LORA = dataclasses.replace(RATES, lora=0.3)
OVER_DEPTH = dataclasses.replace(RATES, over_depth="linear")


def config_with(model: dict[str, Any], **settings: Any) -> Config:
    small = {"n_embd": 32, "dropout": RATES} | model
    others = {"batch_size": 8, "mesh": "data=1"} | settings
    return dataclasses.replace(
        tiny.CONFIG, **others, model=dataclasses.replace(tiny.MODEL, **small)
    )


CONFIGS = {
    "accumulate": config_with({}, accumulate=4),
    "scan, remat, accumulate": config_with({"scan_layers": True, "remat": True}, accumulate=2),
    "remat": config_with({"remat": True}),
    "one mesh axis": config_with({}, mesh=None),
    "three mesh axes": config_with({}, mesh="data=2,fsdp=2,tensor=2"),
    "lora": config_with({"lora": LoraConfig(rank=4), "dropout": WITH_LORA}, freeze=1),
    "freeze": config_with({}, freeze=1),
    "rates over depth in a scan": config_with(
        {"scan_layers": True, "n_layer": 3, "dropout": OVER_DEPTH}
    ),
    "rates over depth": config_with({"dropout": OVER_DEPTH}),
    "early": config_with({}, dropout_schedule="early", steps=20),
    "late": config_with({}, dropout_schedule="late", steps=20),
    "curriculum": config_with({}, dropout_schedule="curriculum", steps=20),
    "linear": config_with({}, dropout_schedule="linear", steps=20),
    "bfloat16": config_with({"dtype": "bfloat16"}),
    "llama": config_with(
        {
            **{"activation": "swiglu", "norm_type": "rmsnorm", "positions": "rotary"},
            **{"n_kv_head": 1, "tied_head": False},
        }
    ),
    "post-norm, smoothed labels": config_with({"norm": "post"}, label_smoothing=0.1),
    "extended": config_with({}, steps=8, extended_from=((4, 4),)),
}

FEW = ("scan, remat, accumulate", "three mesh axes", "lora", "rates over depth in a scan", "late")


def accused(findings):
    return [str(finding) for finding in findings.at_least("warning")]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in FEW else pytest.mark.torture)
        for name in CONFIGS
    ],
)
def test_trainer_is_not_accused(name):
    findings = audit_steps(CONFIGS[name], VOCAB_SIZE, TOKENS)
    assert accused(findings) == []
    assert findings.training is not None
    assert any(site.is_active for site in findings.training.sites)


@pytest.mark.slow
def test_every_rate_of_the_trainer_is_alive():
    rates = DropoutConfig(attn_weights=0.2, mlp_out=0.2)
    config = config_with({"n_layer": 1, "dropout": rates})
    setters = rate_setters(config, VOCAB_SIZE)
    assert [*setters] == ["attn_weights", "mlp_out"]
    assert accused(audit_steps(config, VOCAB_SIZE, TOKENS, rates=setters, steps=1)) == []
    dead = {"mlp_out": lambda rate: setters["mlp_out"](0.2)}
    findings = audit_steps(config, VOCAB_SIZE, TOKENS, rates=dead, steps=1)
    assert {finding.code for finding in findings.at_least("warning")} == {"D01"}


@pytest.mark.slow
def test_a_run_without_dropout_is_not_accused():
    findings = audit_steps(config_with({"dropout": DropoutConfig()}), VOCAB_SIZE, TOKENS)
    assert findings == ()
    assert findings.training is not None
    assert findings.training.sites == ()


@pytest.mark.parametrize(
    ("schedule", "step"),
    [("constant", 0), ("early", 0), ("linear", 0), ("late", 17), ("curriculum", 17)],
)
def test_a_schedule_is_audited_where_it_drops(schedule, step):
    assert first_step(config_with({}, dropout_schedule=schedule, steps=20)) == step


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of two steps, with dropout at one site."""
    folder = tmp_path_factory.mktemp("audit")
    (folder / "text.txt").write_text(tiny.TEXT)
    model = tiny.with_dropout(dataclasses.replace(tiny.MODEL, n_layer=1), mlp_out=0.25)
    config = dataclasses.replace(
        tiny.CONFIG, data=(folder / "text.txt",), steps=2, mesh="data=1", model=model
    )
    trainer.train(config, folder / "run", Console(file=io.StringIO()))
    return folder / "run"


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_files(run_dir, tmp_path, capsys):
    page, numbers = tmp_path / "audit.html", tmp_path / "audit.json"
    code, out, error = run_command(capsys, "audit", run_dir, "--html", page, "--json", numbers)
    assert (code, error) == (0, "")
    assert "dropout_sites.py" in out
    assert out.endswith("\nno findings\n")
    assert page.read_text().count("<img") == 2
    (site,) = json.loads(numbers.read_text())["training"]["sites"]
    assert abs(site["kept"] - 0.75) < 0.1
    assert site["shape"] == [3, 32, 8]


def test_the_command_prints_json(run_dir, capsys):
    code, out, _ = run_command(capsys, "audit", run_dir, "--json", "-")
    assert code == 0
    assert json.loads(out)["counts"] == {"error": 0, "warning": 0, "note": 0}


@pytest.mark.parametrize(
    ("severity", "expected"), [("error", 1), slow("warning", 1), slow("never", 0)]
)
def test_the_exit_code_follows_the_severity(run_dir, capsys, monkeypatch, severity, expected):
    fold = jax.random.fold_in
    monkeypatch.setattr("minigpt.training.train_step.fold", lambda key, name, step: fold(key, 7))
    code, out, _ = run_command(capsys, "audit", run_dir, "--fail-on", severity)
    assert code == expected
    assert "D04 error" in out


def test_what_cannot_be_audited_is_refused(run_dir, tmp_path, capsys):
    assert_one_line_error(run_command(capsys, "audit", tmp_path), "is not a run directory")
    path = tmp_path / "missing" / "audit.html"
    refused = run_command(capsys, "audit", run_dir, "--html", path)
    assert_one_line_error(refused, f"html={str(path)!r} is not allowed")
    imported = tmp_path / "imported"
    imported.mkdir()
    for name in ("config.toml", "tokenizer.json"):
        (imported / name).write_bytes((run_dir / name).read_bytes())
    config = imported / "config.toml"
    config.write_text('imported_from = "gpt2"\n' + config.read_text())
    refused = run_command(capsys, "audit", imported)
    assert_one_line_error(refused, "it is an imported model, which has no training steps")


def test_a_mesh_that_does_not_fit_is_replaced_and_said(run_dir, tmp_path):
    folder, warnings = tmp_path / "run", []
    folder.mkdir()
    for name in ("config.toml", "tokenizer.json"):
        (folder / name).write_bytes((run_dir / name).read_bytes())
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("data=1", "data=512"))
    assert accused(audit_run(folder, warnings.append)) == []
    (warning,) = warnings
    assert "data=512" in warning
    assert "The audit runs on one device." in warning


@pytest.mark.slow
def test_a_classifier_is_not_accused(run_dir, tmp_path, capsys):
    config = tiny.MODEL
    body = PretrainedModel(config, VOCAB_SIZE, tokenizer_of(tiny.DATA), None)
    settings = ClassifyConfig(steps=1, batch_size=4, eval_every=1)
    fit(body, tiny.DATA, settings).save(tmp_path)
    code, out, _ = run_command(capsys, "audit", tmp_path)
    assert code == 0, out
    assert "Head.__call__" in out
    refused = run_command(capsys, "audit", tmp_path, "--rates", "true")
    assert_one_line_error(refused, "rates=True is not allowed", "Leave out --rates.")


def tokenizer_of(data):
    from minigpt.data import build_tokenizer

    return build_tokenizer("char", "".join(sorted(set("".join(data.train.texts)))))


def cost(work, case, batch_size):
    """Seconds of the processors and megabytes in a process of its own, with all compilation."""
    command = [sys.executable, str(BENCHMARK), work, case, str(batch_size)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(BENCHMARK.parents[1])}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_an_audit_of_the_default_trainer_is_cheap():
    """Processor seconds, as others use the machine: two cores need at most as many seconds."""
    audited, stepped = (cost(work, "shakespeare-char-cpu", 12) for work in ("audit", "step"))
    assert audited["processor_seconds"] <= 20
    assert audited["peak_mb"] <= 4 * stepped["peak_mb"]


@pytest.mark.torture
def test_an_audit_of_124m_parameters_takes_five_minutes_at_most():
    assert cost("audit", "gpt2", 1)["processor_seconds"] <= 300
