"""minigpt plan, as people type it."""

import importlib.util
import json

import jax
import pytest

import minigpt.distributed
from minigpt.cli.main import main
from minigpt.distributed import Topology
from minigpt.training import throughput

TINY = ("--model.n-layer", "1", "--model.n-embd", "8", "--model.block-size", "16")
TINY = (*TINY, "--model.vocab-size", "11", "--mesh", "data=4,fsdp=2")


@pytest.fixture
def on_cpu(monkeypatch):
    topology = Topology("v5e:2x4", jax.devices(), 2**30)
    monkeypatch.setattr(minigpt.distributed, "describe_topology", lambda text: topology)
    monkeypatch.setitem(throughput.PEAKS, "cpu", 1e12)


def test_json_has_every_field_and_the_batch_is_rounded_up(on_cpu, capsys):
    main(["plan", "--topology", "v5e:2x4", "--json", *TINY])
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] is True
    assert plan["batch_size"] == 16  # the preset's is 12
    assert plan["mesh"] == {"data": 4, "fsdp": 2, "tensor": 1}
    assert plan["assumed_utilization"] == 0.4


def test_a_batch_size_that_is_set_is_not_rounded(on_cpu, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["plan", "--topology", "v5e:2x4", "--batch-size", "12", *TINY])
    assert exit.value.code == 2
    assert "batch_size=12 is not allowed" in capsys.readouterr().err


@pytest.mark.slow
def test_the_table_says_what_is_assumed(on_cpu, capsys):
    main(["plan", "--topology", "v5e:2x4", "--dropout", "0.1", *TINY])
    printed = " ".join(capsys.readouterr().out.split())
    for part in ("fits yes", "all-reduce", "at 40% of the peak", "not a measurement", "not run"):
        assert part in printed


def test_a_step_that_does_not_fit_is_told_in_plain_words(monkeypatch, on_cpu, capsys):
    topology = Topology("v5e:2x4", jax.devices(), 1000)
    monkeypatch.setattr(minigpt.distributed, "describe_topology", lambda text: topology)
    main(["plan", "--topology", "v5e:2x4", *TINY])
    printed = capsys.readouterr().out
    assert "It does not fit." in printed
    assert "--batch-size" in printed


@pytest.mark.parametrize(
    ("topology", "message"),
    [("v5e:9", "topology='v5e:9' is not allowed"), ("v5e:4x4", "pip install 'jax[tpu]==")],
)
def test_a_bad_topology_and_a_missing_compiler_are_one_line(topology, message, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as exit:
        main(["plan", "--topology", topology, *TINY])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
