"""Rates over steps and over depth: the values of each step, one program, the masks that it says."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest
from marks import slow
from tiny import CONFIG, MODEL, SITES, TEXT, with_dropout

from dropout_jax import curriculum_dropout, fold, keep_mask
from minigpt.cli.main import main
from minigpt.config import DropoutConfig
from minigpt.data import make_batch
from minigpt.model import GPT, site_specs
from minigpt.run import differences, read_metrics
from minigpt.tasks.replay import replay
from minigpt.training import build_train_functions
from minigpt.training.dropout_schedule import scheduled_rates

RATES = {site: 0.05 * (i + 2) for i, site in enumerate(SITES)}
LAYERS = dataclasses.replace(with_dropout(**RATES), n_layer=3)


def with_schedule(schedule, length=None, **changes):
    return dataclasses.replace(
        CONFIG,
        steps=100,
        mesh="data=1",
        dropout_schedule=schedule,
        dropout_schedule_steps=length,
        model=LAYERS,
        **changes,
    )


@pytest.mark.parametrize(
    ("schedule", "length", "shares"),
    [
        ("linear", None, {0: 1, 50: 0.5, 99: 0.01}),
        ("linear", 40, {0: 1, 10: 0.75, 40: 0, 99: 0}),
        ("early", None, {0: 1, 49: 1, 50: 0, 99: 0}),
        ("early", 7, {6: 1, 7: 0}),
        ("late", None, {0: 0, 49: 0, 50: 1, 99: 1}),
        ("late", 7, {6: 0, 7: 1}),
        ("curriculum", None, {0: 0, 10: 1 - np.exp(-1), 99: 1 - np.exp(-9.9)}),
        ("curriculum", 10, {0: 0, 1: 1 - np.exp(-1)}),
    ],
)
def test_the_rates_of_each_step(schedule, length, shares):
    config = with_schedule(schedule, length)
    for step, share in shares.items():
        rates = scheduled_rates(config, step)
        assert set(rates) == set(SITES)
        for site, rate in rates.items():
            assert float(rate) == pytest.approx(share * RATES[site], abs=1e-6)


def test_a_curriculum_is_the_librarys():
    config = with_schedule("curriculum", 50)
    rates = scheduled_rates(config, 20)
    assert float(rates["embed"]) == float(curriculum_dropout(RATES["embed"], 10 / 50)(20))


def test_constant_rates_and_sites_without_dropout_stay_static():
    assert scheduled_rates(with_schedule("constant"), 3) == {}
    config = dataclasses.replace(with_schedule("early"), model=with_dropout(mlp_out=0.5))
    assert set(scheduled_rates(config, 3)) == {"mlp_out"}


def test_another_length_is_another_run():
    saved = with_schedule("late", 7)
    (difference,) = differences(saved, with_schedule("late", 8))
    assert difference == ("dropout_schedule_steps", 7, 8)


@pytest.mark.parametrize("options", [{}, slow({"scan_layers": True}), slow({"remat": True})])
@pytest.mark.slow
def test_one_compiled_step_serves_all_rates(options):
    model = dataclasses.replace(LAYERS, **options)
    model = dataclasses.replace(
        model, dropout=dataclasses.replace(model.dropout, over_depth="linear")
    )
    config = dataclasses.replace(with_schedule("linear", 4), model=model)
    compilations = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if "backend_compile" in event:
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    steps, state, rates = build_train_functions(config, 11), None, []
    tokens = np.random.default_rng(0).integers(0, 11, 500).astype(np.uint16)
    counts = []
    for step in range(5):
        batch = steps.put_batch(make_batch(tokens, 0, step, config.batch_size, MODEL.block_size))
        state, metrics = steps.train_step(state or steps.state, batch, jax.random.key(0))
        rates.append(float(metrics["dropout/embed"]))
        counts.append(len(compilations))
    jax.monitoring.unregister_event_duration_listener(listen)
    assert len(set(rates)) == 5
    assert counts[0] > 0
    assert counts[-1] == counts[0]


def test_the_rates_over_depth():
    config = dataclasses.replace(LAYERS, dropout=DropoutConfig(**RATES, over_depth="linear"))
    specs = site_specs(config, 2, 32)
    assert specs["embed"].rate == RATES["embed"]
    for site in ("attn_weights", "attn_out", "mlp_hidden", "mlp_out", "drop_path/mlp"):
        rate = RATES[site.split("/")[0]]
        assert f"block/0/{site}" not in specs
        assert specs[f"block/1/{site}"].rate == pytest.approx(rate / 2, rel=1e-6)
        assert specs[f"block/2/{site}"].rate == rate


TOKENS = np.arange(64).reshape(2, 32) % 11


@pytest.mark.parametrize("options", [{"scan_layers": True}, slow({"remat": True})])
@pytest.mark.parametrize("over_depth", ["linear", slow("constant")])
@pytest.mark.slow
def test_scan_and_remat_have_the_same_rates(options, over_depth, key):
    """The same weights and key; another rate of one site would change the logits by far more."""
    rates = DropoutConfig(**RATES, over_depth=over_depth)
    plain = dataclasses.replace(LAYERS, dropout=rates)
    expected = gpt(plain)(TOKENS, key=key)
    np.testing.assert_allclose(
        gpt(dataclasses.replace(plain, **options))(TOKENS, key=key), expected, rtol=1e-5, atol=1e-7
    )


def gpt(config):
    from flax import nnx

    return GPT(config, 11, rngs=nnx.Rngs(0))


TRAIN = [
    *("train", "--data", "text.txt", "--run-dir", "out", "--dropout", "0.3", "--steps", "8"),
    *("--model.dropout.drop-path", "0.4", "--model.dropout.over-depth", "linear"),
    *("--batch-size", "3", "--log-every", "1", "--sample-tokens", "2"),
    *("--eval-every", "3", "--eval-batches", "2", "--dropout-schedule", "linear"),
    *("--model.n-layer", "3", "--model.n-embd", "8", "--model.block-size", "16"),
]


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, slow(True)])
def test_a_replayed_step_has_the_rates_and_the_masks_of_the_run(scan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    main([*TRAIN, "--model.scan-layers", str(scan)])
    record = read_metrics(tmp_path / "out")[4]
    assert record["dropout/embed"] == pytest.approx(0.3 * (1 - 4 / 8), rel=1e-6)
    assert record["learning_rate"] > 0
    result = replay(tmp_path / "out", 5, pytest.fail)
    assert result.restored_step == 3
    assert {name: record[name] for name in result.measured} == result.measured
    key = fold(jax.random.key(1337), "dropout", 4)
    for name, numbers in result.sites.items():
        site = "drop_path" if "drop_path" in name else name.split("/")[-1]
        depth = int(name.split("/")[1]) / 2 if name.startswith("block") else 1
        expected = record.get(f"dropout/{site}", 0.0) * depth
        assert numbers.rate == pytest.approx(expected, rel=1e-6), name
        path = [int(part) if part.isdigit() else part for part in name.split("/")]
        sizes = {"embed": (3, 16, 8), "attn_weights": (3, 4, 16, 16), "drop_path": (3, 1, 1)}
        if expected:
            mask = keep_mask(fold(key, *path), numbers.rate, sizes.get(site, (3, 16, 8)))
            assert numbers.dropped == pytest.approx(1 - np.mean(np.asarray(mask)), abs=1e-6)
    assert main(["replay", "out", "--step", "5", "--json"]) is None


@pytest.mark.slow
def test_the_summary_says_the_schedule(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    main([*TRAIN, "--steps", "2"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "growing from 0 over the blocks, falling to 0 at step 2" in printed
    assert json.loads((tmp_path / "out/metrics.jsonl").read_text().splitlines()[0])["dropout/embed"]
