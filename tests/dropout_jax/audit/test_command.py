"""`python -m dropout_jax.audit`: what it prints and writes, its exit codes and its refusals."""

import json
import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest
from audit_cases import WEIGHTS, X, at_steps, drop

from dropout_jax import audit
from dropout_jax.audit.__main__ import main

STEPS = """
    import jax, jax.numpy as jnp
    from dropout_jax import audit

    KEY = jax.random.key(3)
    X = jnp.ones((16, 64))

    def drop(key, x):
        kept = jax.random.bernoulli(key, 0.75, x.shape)
        return jnp.where(kept, x / 0.75, 0)

    def correct(x, key):
        return drop(key, x).sum()

    def one_mask(x, key):
        return drop(KEY, x).sum()

    def coarse(x, key):
        kept = jax.random.bits(key, x.shape, "uint8") < 230
        return jnp.where(kept, x / (230 / 256), 0).sum()

    def args_at(step):
        print("a line of the audited code")
        return X, jax.random.fold_in(KEY, step)

    def healthy():
        return {"train_step": correct, "args_at": args_at}

    def faulty():
        return {"train_step": one_mask, "args_at": args_at}

    def warned():
        return {"train_step": coarse, "args_at": args_at}

    def checked():
        return audit.check(one_mask, args_at=args_at)

    def listed():
        return [correct, args_at]

    def misspelt():
        return {"train_steps": correct}

    def without_steps():
        return {"args_at": args_at}

    def without_arguments():
        return {"train_step": correct}

    def failing():
        raise ValueError("of the audited code")

    def quitting():
        raise SystemExit(0)

    number = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory, with a file of steps."""
    (tmp_path / "steps_to_audit.py").write_text(textwrap.dedent(STEPS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("steps_to_audit", None)


def run(capsys, function, *options):
    """The exit code, the standard output and the standard error of the command."""
    code = main([f"steps_to_audit.py:{function}", *options])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_healthy_step_ends_with_0(capsys):
    code, out, _ = run(capsys, "healthy")
    assert code == 0
    assert out.endswith("\nno findings\n")


def test_a_fault_is_in_the_table_and_below_it(capsys):
    code, out, _ = run(capsys, "faulty")
    assert code == 1
    (row,) = [line for line in out.splitlines() if line.startswith("steps_to_audit.py:9 (drop)")]
    for part in ("steps_to_audit.py:16 (one_mask)", "16 x 64", "1.3333", "D04"):
        assert part in row
    assert re.search(r"0\.7\d{3} \[0\.\d{4}, 0\.\d{4}\]", row)
    assert "D04 error: steps_to_audit.py:9 (drop): same mask at every step\n" in out
    assert "fold_in(key, step)" in out
    assert out.endswith("\n1 error\n")


@pytest.mark.parametrize(
    ("function", "severity", "expected"),
    [
        ("faulty", "error", 1),
        ("faulty", "never", 0),
        ("warned", "warning", 1),
        ("warned", "error", 0),
        ("warned", "never", 0),
    ],
)
def test_the_exit_code_follows_the_severity(capsys, function, severity, expected):
    code, out, _ = run(capsys, function, "--fail-on", severity)
    assert code == expected
    assert "D04" in out or "D11" in out


def test_warnings_end_with_1_by_default(capsys):
    assert run(capsys, "warned")[0] == 1


def test_json_on_standard_output_is_nothing_but_json(capsys):
    code, out, error = run(capsys, "faulty", "--json", "-")
    assert code == 1
    result = json.loads(out)
    assert "a line of the audited code" in error
    assert result["counts"] == {"error": 1, "warning": 0, "note": 0}
    (finding,) = result["findings"]
    assert (finding["code"], finding["location"]["line"]) == ("D04", 9)
    (site,) = result["training"]["sites"]
    assert site["findings"] == ["D04"]
    assert result["evaluation"] is None


def test_json_has_every_number_of_a_site():
    findings = audit.check(lambda x, key: drop(key, x).sum(), args_at=at_steps(X))
    assert findings.training is not None
    (site,) = findings.training.sites
    result = json.loads(json.dumps(audit.to_json(findings), allow_nan=False))
    (written,) = result["training"]["sites"]
    fields = {field for field in vars(site) if field not in ("masks", "corner")}
    assert fields <= set(written)
    assert written["kept"] == site.kept
    assert written["interval"] == list(site.interval)
    assert written["scale"] == site.scale
    assert written["hashes"] == site.hashes.tolist()
    assert written["keys"] == [[[*key] for key in keys] for keys in site.keys]


def test_json_and_html_are_files_beside_the_table(capsys, folder):
    code, out, _ = run(capsys, "faulty", "--json", "audit.json", "--html", "audit.html")
    assert code == 1
    assert "D04 error" in out
    assert json.loads((folder / "audit.json").read_text())["counts"]["error"] == 1
    assert "D04 error" in (folder / "audit.html").read_text()


def test_a_training_step_and_its_arguments(capsys):
    code, out, _ = run(capsys, "one_mask", "--args", "steps_to_audit.py:args_at")
    assert code == 1
    assert "D04 error" in out


def test_a_module_and_findings_that_a_function_returns(capsys, monkeypatch, folder):
    monkeypatch.syspath_prepend(folder)
    assert main(["steps_to_audit:checked"]) == 1
    assert "D04 error" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("steps_to_audit.py", "must be FILE.py:function"),
        ("missing.py:steps", "There is no file 'missing.py'"),
        ("missing.module:steps", "There is no module 'missing.module'"),
        ("steps_to_audit.py:absent", "steps_to_audit.py has drop, correct, one_mask"),
        ("steps_to_audit.py:number", "steps_to_audit.py has drop, correct, one_mask"),
        ("steps_to_audit.py:correct", "it takes x, key"),
        ("steps_to_audit.py:listed", "it must return a dict, or findings, not list"),
        ("steps_to_audit.py:misspelt", "it returns 'train_steps'"),
        ("steps_to_audit.py:without_steps", "it must return a train_step"),
        ("steps_to_audit.py:without_arguments", "args_at=() is not allowed"),
    ],
)
def test_wrong_use_is_one_line_and_2(capsys, target, message):
    assert main([target]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m dropout_jax.audit: ")
    assert message in line


@pytest.mark.parametrize(
    ("option", "path"), [("--json", "missing/a.json"), ("--html", "missing/a"), ("--html", ".")]
)
def test_a_path_that_cannot_be_written_is_refused_before_the_audit(capsys, option, path):
    code, _, error = run(capsys, "failing", option, path)
    assert code == 2
    assert f"{option[2:]}={path!r} is not allowed" in error


def test_an_unknown_option_ends_with_2(capsys):
    with pytest.raises(SystemExit) as ended:
        run(capsys, "healthy", "--fail-on", "notes")
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("function", "last_line"),
    [("failing", "ValueError: of the audited code"), ("quitting", "SystemExit: 0")],
)
def test_a_fault_of_the_audited_code_is_its_traceback_and_2(capsys, function, last_line):
    code, _, error = run(capsys, function)
    assert code == 2
    assert error.splitlines()[-1] == last_line
    assert "steps_to_audit.py" in error


@pytest.mark.slow
def test_the_installed_command(folder):
    command = [sys.executable, "-W", "error", "-m", "dropout_jax.audit", "steps_to_audit.py:faulty"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == ""
    assert "D04 error" in result.stdout


def test_findings_carry_the_records():
    def step(x, key):
        return drop(key, x @ WEIGHTS).sum()

    findings = audit.check(step, step, args_at=at_steps(X))
    assert findings.training is not None
    assert findings.evaluation is not None
    assert len(findings.training.sites) == len(findings.evaluation.sites) == 1
    assert [finding.code for finding in findings] == ["D03"]
    assert audit.to_json(findings)["training"]["sites"][0]["findings"] == []
    assert audit.to_json(findings)["evaluation"]["sites"][0]["findings"] == ["D03"]
    assert findings.at_least("error") == (*findings,)
    assert audit.Findings().at_least("note") == ()


def test_layers_with_rate_0_do_not_have_each_others_masks():
    """Two sites of a layer in a scan; in the first layer, nothing is dropped at either."""

    def step(x, keys):
        def layer(x, inputs):
            rate, key = inputs
            first, second = jax.random.split(key)
            return drop(second, drop(first, x, rate) @ WEIGHTS, rate), None

        return jax.lax.scan(layer, x, (jnp.linspace(0, 0.5, 3), keys))[0]

    def args_at(step):
        return X, jax.random.split(jax.random.key(step), 3)

    assert [str(finding) for finding in audit.check(step, args_at=args_at)] == []
