"""TensorBoard's files and the profile, and that neither is written unasked."""

import dataclasses
import io

import pytest
from rich.console import Console
from tiny import CONFIG, TEXT

from minigpt.run import metrics
from minigpt.training import trainer
from minigpt.training.observers import Observers


@pytest.fixture
def config(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return dataclasses.replace(CONFIG, data=tmp_path / "text.txt", mesh="data=1", steps=6)


def scalars(folder):
    """Every (step, name) of the event files, by TensorBoard's own format."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]  (generated; no stub)

    values = {}
    for path in sorted(folder.iterdir()):
        data, position = path.read_bytes(), 0
        while position < len(data):
            length = int.from_bytes(data[position : position + 8], "little")
            event = Event.FromString(data[position + 12 : position + 12 + length])
            position += 12 + length + 4
            for value in event.summary.value:
                values[event.step, value.tag] = value.simple_value
    return values


@pytest.mark.slow
def test_tensorboard_has_the_metrics_and_the_profile_some_steps(config, tmp_path):
    run_dir = tmp_path / "run"
    observed = dataclasses.replace(config, tensorboard=True, profile_steps=2)
    trainer.train(observed, run_dir, Console(file=io.StringIO()))
    records = metrics.read_metrics(run_dir)
    expected = {(r["step"], name): r[name] for r in records for name in r.keys() - {"step"}}
    assert scalars(run_dir / "tensorboard") == pytest.approx(expected, rel=1e-6)
    assert list((run_dir / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_neither_is_written_unasked(config, tmp_path):
    trainer.train(config, tmp_path / "run", Console(file=io.StringIO()))
    assert not {"tensorboard", "profile"} & {path.name for path in (tmp_path / "run").iterdir()}


@pytest.mark.slow
def test_a_profile_cut_short_is_closed(tmp_path):
    with Observers(tmp_path, 0, tensorboard=False, profile_steps=9) as observers:
        observers.before_step(2)
    with Observers(tmp_path, 0, tensorboard=False, profile_steps=1) as observers:
        observers.before_step(2)  # would fail if the one before were still open
        observers.before_step(3)
