"""A run that goes on to more steps: the old state, the new schedules, and the same bits always."""

import dataclasses
import json
import shutil

import jax
import pytest
from run_helpers import assert_one_line_error, flip_bit, read_files, run_command, stop_after_step
from tiny import TEXT, outcome

from minigpt.cli.main import main
from minigpt.config import OptimConfig
from minigpt.run import RunSpec, metrics
from minigpt.tasks.replay import replay
from minigpt.training.optimizer import learning_rate_schedule

RUN = [
    *("train", "--data", "text.txt", "--run-dir", "out", "--dropout", "0.25"),
    *("--dropout-schedule", "linear", "--batch-size", "3", "--log-every", "2"),
    *("--eval-every", "4", "--eval-batches", "2", "--keep-checkpoints", "9"),
    *("--sample-tokens", "2", "--optim.warmup-steps", "2"),
    *("--model.n-layer", "1", "--model.n-embd", "8", "--model.block-size", "16"),
]
EXTEND = ["train", "--run-dir", "out", "--steps", "18", "--extend"]
OPTIM = OptimConfig(warmup_steps=2)


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A run of 10 steps, and the same run after its extension to 18."""
    folder = tmp_path_factory.mktemp("extended")
    (folder / "text.txt").write_text(TEXT)
    with jax.numpy_dtype_promotion("standard"), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main([*RUN, "--steps", "10"])
        shutil.copytree(folder / "out", folder / "before")
        main(EXTEND)
    return folder


@pytest.fixture
def folder(extended, tmp_path, monkeypatch):
    """A folder with the run of 10 steps."""
    (tmp_path / "text.txt").write_text(TEXT)
    shutil.copytree(extended / "before", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_it_has_the_new_schedules_from_there_and_says_so(extended):
    config = RunSpec.load(extended / "out").config
    assert (config.steps, config.extended_from) == (18, ((10, 10),))
    records = metrics.read_metrics(extended / "out")
    before = metrics.read_metrics(extended / "before")
    assert records[: len(before)] == before
    assert [record["step"] for record in records] == list(range(2, 19, 2))
    for record in records:
        length = 10 if record["step"] <= 10 else 18
        rate = learning_rate_schedule(OPTIM, length)(record["step"] - 1)
        assert record["learning_rate"] == pytest.approx(float(rate), rel=1e-6)  # pyright: ignore[reportArgumentType]
        share = 1 - (record["step"] - 1) / length
        assert record["dropout/embed"] == pytest.approx(0.25 * share, rel=1e-5)
        assert record.get("extended_from") == (10 if record["step"] > 10 else None)


@pytest.mark.slow
def test_the_same_command_again_goes_on_and_does_not_extend_again(extended, folder, capsys):
    code, out, error = run_command(capsys, *EXTEND)
    assert (code, error) == (0, "")
    assert "extended at step 10 from 10 steps to 18" in " ".join(out.split())
    assert outcome(folder) == outcome(extended)
    before = read_files(folder / "out" / "checkpoints")
    assert run_command(capsys, *EXTEND)[0] == 0
    assert run_command(capsys, *RUN, "--steps", 18)[0] == 0  # the run's settings
    assert read_files(folder / "out" / "checkpoints") == before
    assert outcome(folder) == outcome(extended)


@pytest.mark.slow
def test_a_stop_while_extending_changes_nothing(extended, folder, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(metrics.MetricsLog, "add", stop_after_step(14, metrics.MetricsLog.add))
        assert run_command(capsys, *EXTEND)[0] == 0
    assert RunSpec.load(folder / "out").config.extended_from == ((10, 10),)
    assert run_command(capsys, "train", "--config", "out/config.toml", "--run-dir", "out")[0] == 0
    assert outcome(folder)[:2] == outcome(extended)[:2]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_made_again_with_the_old_schedules(extended, folder, capsys):
    flip_bit(folder / "out/checkpoints/00000010/arrays.safetensors")
    code, out, _ = run_command(capsys, *EXTEND)
    assert code == 0
    assert "skipping the checkpoint of step 10" in out
    assert outcome(folder) == outcome(extended)


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 10, 12])
def test_steps_before_and_after_are_replayed_bit_for_bit(extended, step, monkeypatch):
    monkeypatch.chdir(extended)
    result = replay(extended / "out", step, pytest.fail)
    (record,) = [r for r in metrics.read_metrics(extended / "out") if r["step"] == step]
    assert {name: record[name] for name in result.measured} == result.measured
    assert result.sites["embed"].rate == record["dropout/embed"]


@pytest.mark.slow
def test_a_replay_across_the_extension(extended, tmp_path, monkeypatch):
    monkeypatch.chdir(extended)
    copy = shutil.copytree(extended / "out", tmp_path / "out")
    for step in (8, 10, 12):
        shutil.rmtree(copy / f"checkpoints/{step:08d}")
    result = replay(copy, 12, pytest.fail)
    assert result.restored_step == 4
    (record,) = [r for r in metrics.read_metrics(copy) if r["step"] == 12]
    assert {name: record[name] for name in result.measured} == result.measured


@pytest.mark.slow
def test_an_unfinished_run_has_the_new_schedules_from_its_checkpoint(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    with monkeypatch.context() as patch:
        patch.setattr(metrics.MetricsLog, "add", stop_after_step(6, metrics.MetricsLog.add))
        assert run_command(capsys, *RUN, "--steps", 10)[0] == 0
    assert run_command(capsys, *EXTEND)[0] == 0
    assert RunSpec.load(tmp_path / "out").config.extended_from == ((6, 10),)
    records = metrics.read_metrics(tmp_path / "out")
    assert [record.get("extended_from") for record in records] == [None] * 3 + [6] * 6
    assert [r["step"] for r in records if "val_loss" in r] == [4, 8, 12, 16, 18]
    # And again, further.
    assert run_command(capsys, *EXTEND, "--steps", 20)[0] == 0
    assert RunSpec.load(tmp_path / "out").config.extended_from == ((6, 10), (18, 18))


@pytest.mark.slow
def test_a_run_out_of_patience_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    still = ("--optim.learning-rate", "1e-30", "--optim.min-learning-rate", "0")
    assert run_command(capsys, *RUN, "--steps", 40, "--patience", 1, *still)[0] == 0
    stopped = metrics.read_metrics(tmp_path / "out")[-1]["step"]
    assert stopped < 40
    assert run_command(capsys, *EXTEND, "--steps", 60)[0] == 0
    config = RunSpec.load(tmp_path / "out").config
    assert config.extended_from == ((stopped, 40),)
    assert stopped < metrics.read_metrics(tmp_path / "out")[-1]["step"] < 60


def test_what_is_refused_names_the_remedy_and_changes_nothing(folder, capsys):
    before = read_files(folder)
    for words, parts in (
        ([*RUN, "--steps", 18], ["steps=18 is not allowed", "Add --extend"]),
        ([*EXTEND, "--steps", 8], ["steps=8 is not allowed", "takes more"]),
        ([*EXTEND, "--seed", 3], ["seed=3 is not allowed"]),
        ([*EXTEND, "--resume", "never"], ["resume='never' is not allowed"]),
        (["train", "--extend"], ["run_dir=None is not allowed", "Set --run-dir"]),
        ([*EXTEND, "--run-dir", "no"], ["'no' is not a run directory"]),
    ):
        assert_one_line_error(run_command(capsys, *words), *parts)
        assert read_files(folder) == before


@pytest.mark.slow
def test_the_remedy_works(extended, folder, capsys):
    assert run_command(capsys, *RUN, "--steps", 18, "--extend")[0] == 0
    assert outcome(folder) == outcome(extended)


@pytest.mark.slow
def test_from_python(extended, folder):
    import minigpt

    config = RunSpec.load(folder / "out").config
    config = dataclasses.replace(config, steps=18, run_dir=folder / "out", data="text.txt")  # pyright: ignore[reportArgumentType]
    trained = minigpt.train(config, extend=True, quiet=True)
    assert (trained.run_dir, trained.is_finished) == (folder / "out", True)
    assert trained.records[-1]["step"] == 18
    assert outcome(folder)[:3] == outcome(extended)[:3]
    with pytest.raises(ValueError, match="there is none"):
        minigpt.train(dataclasses.replace(config, run_dir=folder / "no"), extend=True, quiet=True)


@pytest.mark.slow
def test_a_fine_tuned_run_is_extended(folder, capsys):
    tune = ["finetune", "out", "--data", "text.txt", "--run-dir", "tuned", "--steps", "4"]
    assert run_command(capsys, *tune)[0] == 0
    assert run_command(capsys, *tune[:-1], "6", "--extend")[0] == 0
    assert RunSpec.load(folder / "tuned").config.extended_from == ((4, 4),)
    assert json.loads((folder / "tuned/metrics.jsonl").read_text().splitlines()[-1])["step"] == 6
