"""Claims 8 to 10: what decides their verdicts, and each script in its smallest form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments import load, run_smallest

from minigpt.config import Config, DropoutConfig, ModelConfig, OptimConfig

pytestmark = pytest.mark.claims


def rising(*means):
    """Runs by rate (rows) whose five seeds differ by 0.01 at most."""
    return np.array(means)[:, None] + np.linspace(0, 0.01, 5) * np.arange(len(means))[:, None]


def test_a_sweep_is_the_trainers_run():
    """Masks, batches, optimizer and schedule: every parameter as after minigpt's own steps."""
    sweep, gpt, data = load("common.sweep"), load("common.gpt"), load("common.data")
    rates = DropoutConfig(0.1, 0.2, 0.3, 0.4, 0.1, 0.2, 0.5)
    model = ModelConfig(n_layer=1, n_head=2, n_embd=32, block_size=8)
    optim = OptimConfig(learning_rate=3e-3, warmup_steps=2)
    config = Config(steps=4, batch_size=4, mesh="data=1", model=model, optim=optim)
    text = data.load_one_play()
    with jax.numpy_dtype_promotion("standard"):
        run = sweep.Runner(
            config, text.tokenizer.vocab_size, range(2), evaluations=1, sites=sweep.SITES
        )
        ours = run(text.train, {"loss": text.validation}, rates).params
        config = dataclasses.replace(config, model=dataclasses.replace(model, dropout=rates))
        theirs = gpt.train(gpt.compile_steps(config, text), config, text, seed=1, evals=1).params
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one[1], other, rtol=1e-4, atol=3e-6)


def test_a_sweep_refuses_a_rate_at_a_site_it_was_not_compiled_for():
    sweep = load("common.sweep")
    config = Config(steps=4, batch_size=4, model=ModelConfig(n_embd=32))
    with pytest.raises(ValueError, match="add \\['mlp_hidden'\\] to the sites"):
        sweep.Runner(config, 65, range(2), evaluations=1)._rates(DropoutConfig(mlp_hidden=0.1))


def test_what_is_chosen_on_one_text_is_measured_on_the_other():
    rates = load("gpt_rates")
    losses = {0: np.array([[3.0, 1.0, 2.0]]), 1: np.array([[0.1, 0.5, 0.2]])}
    assert [each.tolist() for each in rates.early_stopped_losses(losses)] == [[1.0], [0.5]]
    assert [each.tolist() for each in rates.final_losses(losses)] == [[2.0], [0.2]]


def test_the_best_rate_verdict_follows_the_losses():
    """The best rates are chosen on the first text; the gain is that of the second."""
    rates, claim = load("gpt_rates"), load("common.claim")
    low, high = rising(*range(7)), rising(*range(7))[::-1]
    dip = rising(3, 1, 1, 1, 3, 3, 3)

    def verdict(**settings):
        runs = {name: np.stack(both) for name, both in settings.items()}
        return rates.judge_best_rate(0.02, 0.1, runs, "a field", "a source").verdict

    assert verdict(a=[dip, dip]) == claim.HOLDS
    assert verdict(a=[low, low]) == claim.FAILS
    only = "it is a (0.02 against 0) (not b (0.1 against 0.5))"
    assert verdict(a=[dip, dip], b=[high, high]) == claim.ONLY_WHEN + only
    assert verdict(a=[dip, low]) == claim.FAILS  # best on the first text, not on the second


def test_zero_is_best_only_where_every_rate_is_worse():
    rates, claim = load("gpt_rates"), load("common.claim")

    def verdict(*means):
        cells = {rates.PRETRAINED: rates.differences_to_rate_0(rising(*means))}
        return rates.findings(cells)[0].verdict

    assert verdict(1, 2, 3, 4, 5, 6, 7) == claim.HOLDS
    assert verdict(9, 2, 3, 4, 5, 6, 7) == claim.FAILS
    only = "the rate it is compared with is 0.2, 0.3 or 0.5 (not 0.02, 0.05, 0.1)"
    assert verdict(4.5, 2, 3, 4, 5, 6, 7) == claim.ONLY_WHEN + only


def test_a_leak_is_seen():
    """Sums over the past leak nothing; sums over the whole text do, at every position."""
    change = load("block_shapes").largest_change
    first, other = jnp.arange(8.0).reshape(1, 8), jnp.ones((1, 8))
    past = change(lambda x: jnp.cumsum(x, axis=1)[..., None], first, other, position=4)
    assert (past == 0).tolist() == [True] * 4 + [False] * 4
    whole = change(
        lambda x: (x + x.sum(axis=1, keepdims=True))[..., None], first, other, position=4
    )
    assert (whole > 1).all()


def test_every_second_window_ends_a_word():
    text = np.frombuffer(b"Now is the winter of our discontent made glorious summer " * 9, np.uint8)
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)
    rows, labels = load("features").sample_windows(text, letters, 40, seed=0)
    words = bytes(text).split()
    assert labels.tolist() == [0, 1] * 20
    for row, label in zip(rows.astype(np.uint8), labels, strict=True):
        assert bytes(row) in bytes(text)
        assert (bytes(row).split()[-1] in words) == label


def test_the_token_verdict_wants_the_first_at_chance_and_the_last_above():
    """Not merely an interval that contains chance: one within two points of it."""
    features, claim = load("features"), load("common.claim")
    seeds = np.linspace(-0.01, 0.01, 5)

    def verdict(first, last, spread=1):
        runs = [{9: mean + spread * seeds} for mean in (first, last)]
        return features.findings(*runs, {9: seeds}, many=9)[0].verdict

    assert verdict(0.505, 0.7) == claim.HOLDS
    assert verdict(0.505, 0.7, spread=9) == claim.FAILS
    assert verdict(0.53, 0.7) == claim.FAILS
    assert verdict(0.505, 0.49) == claim.FAILS


def test_the_norm_verdicts_follow_the_losses():
    """Losses at two rates; the second is the best for pre-norm, the first for post-norm."""
    norm_order, claim = load("norm_order"), load("common.claim")
    seeds, (pre, post, pre_cold, post_cold) = np.linspace(0, 0.01, 3), norm_order.ORDERS

    def verdicts(cold, at_pres_rate=3.3):
        losses = {pre: (9, 2.6), post: (2.7, at_pres_rate), pre_cold: (9, cold), post_cold: (3, 9)}
        chosen_rates = {(8, *cell): int(cell[0] == "pre") for cell in losses}
        measured = {(8, *cell): np.array(each)[:, None] + seeds for cell, each in losses.items()}
        results = norm_order.findings(measured, chosen_rates, (8,))
        return [finding.verdict == claim.HOLDS for finding in results]

    assert verdicts(2.62) == [True, True, True, True]
    assert verdicts(2.66) == [True, True, True, False]
    assert verdicts(3.1) == [False, True, True, False]
    assert verdicts(2.62, at_pres_rate=2.5) == [True, True, False, True]


def test_gpt_rates(tmp_path):
    numbers = run_smallest("gpt_rates", tmp_path)["numbers"]
    cells = numbers["loss, difference to rate 0"]
    assert {len(each) for each in cells.values()} == {6}
    # Twenty steps cannot overfit: half of everything dropped is worse at fine-tuning.
    assert cells["500 characters, to the end"]["0.5"]["95 %"][0] > 0


def test_placement(tmp_path):
    numbers = run_smallest("placement", tmp_path)["numbers"]
    sites = load("common.sweep").SITES
    assert numbers["best single"] in sites
    # Each site is switched on: no two of them train alike.
    means = {numbers["training loss"][site]["mean"] for site in (*sites, "none")}
    assert len(means) == len(sites) + 1


def test_image_rates(tmp_path):
    numbers = run_smallest("image_rates", tmp_path)["numbers"]
    # Five steps learn, and cannot overfit: half of everything dropped is worse.
    assert numbers["accuracy"][0]["mean"] > 0.2
    assert numbers["loss, difference to rate 0"]["0.5"]["95 %"][0] > 0


def test_norm_order(tmp_path):
    cells = run_smallest("norm_order", tmp_path)["numbers"]
    rates = {str(rate) for rate in load("norm_order").RATES}
    assert {rate for cell in cells.values() for rate in cell["loss by learning rate"]} == rates
    # Order, warm-up and learning rate all matter.
    losses = [
        each["mean"] for cell in cells.values() for each in cell["loss by learning rate"].values()
    ]
    assert len(losses) == len(set(losses)) == 8


def test_block_shapes(tmp_path):
    result = run_smallest("block_shapes", tmp_path)
    assert [finding["verdict"] for finding in result["findings"]] == ["holds", "holds"]
    for change in result["numbers"]["largest change by position"].values():
        assert max(change[:32]) == 0 < min(change[32:])


def test_features(tmp_path):
    numbers = run_smallest("features", tmp_path)["numbers"]
    # A first token's features are those of its character, whatever follows.
    for features, characters in numbers["different first features and characters"]:
        assert features == characters > 10
