"""The common parts of the claims: intervals, verdicts, data, fits, and sweeps over rates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments import load

from minigpt.config import Config, DropoutConfig, ModelConfig, OptimConfig


@pytest.mark.slow
def test_an_interval_covers_the_mean_at_95_percent():
    """95 % of 4,000 intervals of five normal draws contain the mean: sd 14, bounds at 4.9 sd."""
    interval = load("common.claim").interval
    draws = np.random.default_rng(0).normal(3, 2, (4000, 5))
    covered = sum(cell.low < 3 < cell.high for cell in map(interval, draws))
    assert abs(covered - 3800) < 68


def test_an_interval_is_written_once_with_its_unit():
    cell = load("common.claim").Interval(0.912, 0.905, 0.919)
    assert f"{cell:.2f}" == "0.91 (0.91 to 0.92)"
    assert f"{cell:.1%}" == "91.2% (90.5 to 91.9%)"
    assert cell.positive
    assert not cell.negative


def test_a_verdict_is_one_of_three():
    claim = load("common.claim")
    claim.Finding("a", "b", "c", claim.ONLY_WHEN + "data is scarce")
    with pytest.raises(ValueError, match="verdict='perhaps'"):
        claim.Finding("a", "b", "c", "perhaps")


def test_a_verdict_by_cells_names_those_where_it_holds():
    by = load("common.claim").verdict_by
    assert by("the rate is", {0.1: True, 0.5: True}) == "holds"
    assert by("the rate is", {0.1: False, 0.5: False}) == "does not hold"
    above, across = load("common.claim").Interval(2, 1, 3), load("common.claim").Interval(1, -1, 3)
    assert by("measured by", {"a": above, "b": across}) == "holds only when measured by a (not b)"
    some = by("the rate is", {0.1: True, 0.2: False, 0.5: True, 0.7: True})
    assert some == "holds only when the rate is 0.1, 0.5 or 0.7 (not 0.2)"


def test_a_fall_is_the_negation_of_a_rise():
    claim = load("common.claim")
    fall, rise = claim.Interval(-2, -3, -1), claim.Interval(2, 1, 3)
    assert -fall == rise
    assert rise.percent() == claim.Interval(200, 100, 300)
    up = claim.by_cell("it rises", "a book", "points", {0.1: fall, 0.5: rise}, "the rate is", ".0f")
    assert up.measured == "points: 0.1: -2 (-3 to -1), 0.5: 2 (1 to 3)"
    assert up.verdict == "holds only when the rate is 0.5 (not 0.1)"
    down = claim.by_cell("it falls", "a book", "points", {0.1: fall}, "the rate is", sign=-1)
    assert down.verdict == claim.HOLDS


def test_intervals_are_of_columns_and_over_seeds():
    claim = load("common.claim")
    values = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    cells = claim.intervals(values, ["one", "ten"])
    assert cells == {"one": claim.interval([1, 2, 3]), "ten": claim.interval([10, 20, 30])}


def test_the_crossing_is_where_the_gain_stays_below_zero():
    zero_crossing = load("common.claim").zero_crossing
    assert zero_crossing((100, 1000, 10_000), [2, 1, -1]) == pytest.approx(10**3.5)
    assert zero_crossing((100, 1000, 10_000), [-1, 3, -1]) == pytest.approx(1000 * 10**0.75)
    assert zero_crossing((100, 1000, 10_000), [-1, 1, 2]) is None
    assert zero_crossing((100, 1000, 10_000), [-1, -1, -2]) is None


def test_stacked_splits_are_those_of_their_seeds():
    data = load("common.data")
    both = data.stack_splits(data.load_digits, [3, 4])
    assert (both.y_test[1] == data.load_digits(seed=4).y_test).all()
    assert both.x_train.shape == (2, 900, 64)


def test_a_recommended_rate_gains_with_its_whole_interval_and_is_0_otherwise():
    interval, best = load("common.claim").Interval, load("common.rates").best_rate
    unsure, low, high = interval(3, -1, 7), interval(1, 0.5, 1.5), interval(2, 0.1, 3.9)
    assert best({0.1: low, 0.2: high, 0.5: unsure}) == (0.2, high)
    assert best({0.1: unsure, 0.5: unsure}) == (0.0, unsure)


@pytest.mark.claims
def test_fits_with_evaluations_end_like_fits_without():
    nets = load("common.nets")
    with jax.numpy_dtype_promotion("standard"):
        params, key = {"x": jnp.ones(3)}, jax.random.key(0)

        def loss(params, rows, key, *values):
            return ((params["x"] - rows[:3]) ** 2).sum() * (values[0] if values else 1)

        plain = nets.fit(loss, params, 10, key, steps=6)
        evaluated, values = nets.fit_and_evaluate(
            loss, params, 10, key, lambda p: p["x"], evaluations=3, steps=6
        )
        still, _ = nets.fit_and_evaluate(
            *(loss, params, 10, key, lambda _: None),
            **{"evaluations": 1, "steps": 6, "per_step": (jnp.zeros(6),)},
        )
    np.testing.assert_array_equal(evaluated["x"], plain["x"])
    assert values.shape == (3, 3)
    np.testing.assert_array_equal(values[-1], plain["x"])
    np.testing.assert_array_equal(still["x"], params["x"])  # every step got its 0


@pytest.mark.claims
def test_a_grid_runs_every_combination():
    run_grid = load("common.nets").run_grid
    axes = ([1.0, 2.0], [10.0, 20.0, 30.0], (0.5, 0.0))
    sums, products = run_grid(lambda a, b, c: (a + b + c, a * b * c), *axes)
    a, b, c = np.meshgrid(*axes, indexing="ij")
    np.testing.assert_array_equal(sums, a + b + c)
    np.testing.assert_array_equal(products, a * b * c)


@pytest.mark.claims
def test_a_sweep_equals_the_trainers_run():
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


@pytest.mark.claims
def test_a_sweep_refuses_a_rate_at_a_site_it_was_not_compiled_for():
    sweep = load("common.sweep")
    config = Config(steps=4, batch_size=4, model=ModelConfig(n_embd=32))
    with pytest.raises(ValueError, match="add \\['mlp_hidden'\\] to the sites"):
        sweep.Runner(config, 65, range(2), evaluations=1)._rates(DropoutConfig(mlp_hidden=0.1))
