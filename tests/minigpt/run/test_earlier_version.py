"""Runs that an earlier version wrote still resume, and end as they did there.

The folder was written by the version before the packages got their wings: a run and a fine-tuned
run whose checkpoint of step 8 was deleted, as a kill between the two steps leaves them, and a
classifier.
"""

import json
import pathlib
import shutil

import jax
import pytest

from minigpt.cli.main import main
from minigpt.tasks import classification

EARLIER = pathlib.Path(__file__).parent / "earlier_version"
# Of XLA on other processors, and at other optimisation levels.
RTOL = 2e-5


def copy_to(folder, name):
    shutil.copytree(EARLIER / name, folder / name)
    shutil.copy(EARLIER / "text.txt", folder)
    config = folder / name / "config.toml"
    config.write_text(config.read_text().replace("FOLDER", str(folder)))


def read_metrics(name):
    return [
        json.loads(line)
        for line in pathlib.Path(name, "metrics.jsonl").read_text().split("\n")[:-1]
    ]


@pytest.mark.parametrize(
    ("name", "command"), [("run", ["train"]), ("finetuned", ["finetune", "run"])]
)
@pytest.mark.slow
def test_an_earlier_run_resumes_and_ends_as_it_did(name, command, tmp_path, monkeypatch, capsys):
    copy_to(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    expected = read_metrics(name)
    options = ["--config", f"{name}/config.toml", "--data", "text.txt", "--run-dir", name]
    with jax.numpy_dtype_promotion("standard"):
        main([*command, *options])
    assert "resuming from step 4" in capsys.readouterr().out.replace("\n", " ")
    records = read_metrics(name)
    assert records[:2] == expected[:2]
    assert [record["step"] for record in records] == [2, 4, 6, 8]
    for record, before in zip(records[2:], expected[2:], strict=True):
        for measure in ("train_loss", "grad_norm", "param_norm"):
            assert record[measure] == pytest.approx(before[measure], rel=RTOL)
    assert records[-1]["val_loss"] == pytest.approx(expected[-1]["val_loss"], rel=RTOL)


def test_an_earlier_classifier_loads():
    trained = classification.load(EARLIER / "classifier")
    assert trained.labels == ("a", "b", "c")
    report = json.loads((EARLIER / "classifier/report.json").read_text())
    assert trained.step == report["step"]
    assert set(trained.predict(["to be", "or not to be"])) <= set(trained.labels)
