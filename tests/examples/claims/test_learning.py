"""The claims about learning: each script in its smallest form, and the functions that decide."""

import json
import math

import jax
import numpy as np
import pytest
from experiments import load, run_smallest

from dropout_jax import dropout_unscaled

pytestmark = pytest.mark.claims


def test_data_size_verdicts_follow_the_gains():
    """Gains by seed, size and rate, with a spread of 0.001 over seeds."""
    script, claim = load("data_size"), load("common.claim")
    sizes, rates = (100, 1000, 100_000), (0.0, 0.1, 0.5)
    spread = np.array([-1, 0, 1])[:, None, None] * 0.001
    gains = spread + np.array([[0, 0.01, 0.01], [0, 0.05, 0.03], [0, 0.01, -0.02]])

    def verdicts(falls, wide, narrow):
        gains = {"wide": wide, "narrow": narrow}
        return [it.verdict for it in script.findings(falls, gains, sizes, rates)]

    costs = claim.ONLY_WHEN + "the rate is {} (not {})"
    falls = np.full_like(gains, -0.1)
    assert verdicts(falls, gains, -gains) == [*[claim.HOLDS] * 4, costs.format(0.5, 0.1)]
    assert verdicts(-falls, -gains, gains) == [*[claim.FAILS] * 4, costs.format(0.1, 0.5)]
    # From 3 points at 1,000 examples to -2 at 100,000: three fifths of the way, on a log scale.
    ends = script.break_even_sizes(gains, sizes, rates)
    assert ends == {0.1: None, 0.5: pytest.approx(1000 * 100**0.6)}
    gains[:, 0] *= -1
    only = verdicts(gains, gains, gains)
    among = claim.ONLY_WHEN + "the examples, and the rate, are "
    small, large = "100 at 0.1 {} 100 at 0.5", "1000 at 0.1 {} 1000 at 0.5"
    assert only[0] == f"{among}{small.format('or')} (not {large.format(',')})".replace(" ,", ",")
    assert only[1] == f"{among}{large.format('or')} (not {small.format(',')})".replace(" ,", ",")


def test_shifted_digits_are_25_shifts_of_each_image():
    """Those with shift 0 are MNIST's, and no two of an image have the same shift."""
    data = load("common.data")
    train, test = data.shifted_mnist(jax.random.key(0))
    images, labels = data.load_all_mnist()
    i = 7 + 4000 * np.arange(25)
    x, y = train(i)
    assert len(np.unique(x, axis=0)) == 25
    assert len(set(y.tolist())) == 1
    matches = (data.downsample(images).reshape(5000, -1)[:, None] == x).all(-1)
    assert matches.any(1).sum() == 1  # the image at its centre, once
    assert labels[matches.any(1)] == y[0]
    np.testing.assert_array_equal(test(np.arange(2000))[1][:1000], test(np.arange(1000, 2000))[1])


def test_data_size(tmp_path):
    numbers = run_smallest("data_size", tmp_path)["numbers"]
    for name in ("wide", "narrow"):
        for by_rate in numbers["test accuracy gained"][name]:
            assert by_rate[0] == {"mean": 0, "95 %": [0, 0]}  # rate 0 against itself
    # Of 50 examples and no dropout, the wide network misses less in training than with masks on.
    without, dropped = numbers["training accuracy"]["wide"][0]
    assert dropped < without
    # Learned something: 6,000 guesses at one of ten would be right with 0.1 and sd 0.004.
    assert numbers["test accuracy"]["wide"][1][0] > 0.2


def test_schedules_follow_their_names():
    schedules = load("schedules").make_schedules
    with jax.numpy_dtype_promotion("standard"):
        tables = {name: np.asarray(table) for name, table in schedules(0.5, 100).items()}
        none = schedules(0.0, 100)
    assert all(table.shape == (100, 4) for table in tables.values())
    assert not any(np.any(table) for table in none.values())
    assert (tables["constant"] == 0.5).all()
    np.testing.assert_array_equal(tables["early"] + tables["late"], tables["constant"])
    assert tables["early"][0, 0] == 0.5
    np.testing.assert_allclose(
        tables["decaying"][:, 0], 0.5 * (1 - np.arange(100) / 100), atol=1e-6
    )
    growing = 0.5 * (1 - np.exp(-np.arange(100) / 10))
    np.testing.assert_allclose(tables["curriculum"][:, 3], growing, atol=1e-6)
    np.testing.assert_allclose(tables["deeper"], [[0, 0.5 / 3, 1 / 3, 0.5]] * 100, atol=1e-6)


def test_schedules_at_rate_0_are_one(tmp_path):
    by_name = run_smallest("schedules", tmp_path)["numbers"]["test accuracy by rate"]
    assert len({accuracies[0] for accuracies in by_name.values()}) == 1
    assert len({accuracies[1] for accuracies in by_name.values()}) > 2


def test_the_interaction_is_a_difference_of_differences():
    table = load("interactions").gain_table
    without = np.array([[0.80, 0.82], [0.81, 0.84], [0.79, 0.80]])
    adding = table(without, without + 0.05)
    assert adding["interaction"] == pytest.approx((0, 0, 0), abs=1e-12)
    instead = table(without, np.full((3, 2), 0.85))
    assert instead["interaction"].mean == pytest.approx(-0.02)
    assert instead["dropout's gain beside"] == (0, 0, 0)


def test_the_verdict_with_a_partner_follows_the_gain_with_it():
    script, claim = load("interactions"), load("common.claim")
    alone = np.array([[0.80, 0.85], [0.81, 0.86], [0.79, 0.85]])
    for partner, helps in (("weight decay", claim.HOLDS), ("batch norm", claim.FAILS)):
        other = claim.FAILS if helps == claim.HOLDS else claim.HOLDS
        for beside, verdict in ((alone, helps), (alone[:, ::-1], other)):
            (finding,) = script.findings({partner: script.gain_table(alone, beside)})
            assert finding.verdict == verdict


@pytest.mark.parametrize("norm", range(3))
def test_a_net_evaluates_by_the_statistics_it_is_given(norm):
    norm, nets = load("interactions").NORMS[norm], load("common.nets")
    layers = nets.mlp_init(jax.random.key(0), (5, 7, 7, 3))
    x = jax.random.normal(jax.random.key(1), (11, 5))

    def net(x, *statistics, key=None):
        return nets.normed_mlp(layers, x, (0.5, 0.5), *statistics, key=key, norm=norm)

    logits, moments = net(x)
    again, _ = net(x, moments)
    np.testing.assert_allclose(again, logits, rtol=1e-6)
    alone, _ = net(x[:2], moments)
    np.testing.assert_allclose(alone, logits[:2], rtol=1e-4, atol=1e-5)  # not of its own two rows
    other, _ = net(x, key=jax.random.key(2))
    assert not np.allclose(other, logits)


def test_interactions(tmp_path):
    for cells in run_smallest("interactions", tmp_path)["numbers"]["accuracy"].values():
        mean = {name: cell["mean"] for name, cell in cells.items()}
        both = mean["both"] - mean["partner"] - mean["dropout"] + mean["neither"]
        assert mean["interaction"] == pytest.approx(both, abs=1e-5)
        assert mean["neither"] > 0.3  # 6,000 guesses at one of ten: 0.1, sd 0.004


def test_the_shift_of_variance_needs_the_scale():
    """40,000 draws; the op without its scale has a ratio below 1 instead of 2."""
    script, claim = load("variance_shift"), load("common.claim")
    shift = {0.5: script.variance_ratios(0.5, 40_000)}
    broken = {0.5: script.variance_ratios(0.5, 40_000, drop=dropout_unscaled)}
    more, less = (claim.Interval(1.2, low, 1.4) for low in (1.1, 0.9))
    for of_one, of_net, verdict in ((shift, more, claim.HOLDS), (broken, less, claim.FAILS)):
        results = script.findings(of_one, 40_000, {0.5: of_net})
        assert [it.verdict for it in results] == [verdict] * 2


def test_batch_norms_get_more_variance_only_after_dropout(tmp_path):
    numbers = run_smallest("variance_shift", tmp_path)["numbers"]
    (before, after) = numbers["in the network, by place, rate and batch norm"]
    without, dropped = before
    np.testing.assert_allclose(without, 1, atol=1e-3)
    np.testing.assert_allclose(after, 1, atol=1e-3)  # no batch norm comes after it
    assert dropped[0] == pytest.approx(1, abs=1e-3)
    assert min(dropped[1:]) > 1.2


def test_batch_norm(tmp_path):
    """Recomputed statistics matter only for a batch norm after dropout."""
    numbers = run_smallest("batch_norm", tmp_path)["numbers"]
    running, again = (
        np.array(numbers[f"accuracy by place and rate, {statistics}"])
        for statistics in ("running statistics", "statistics taken again")
    )
    (before, dropped), after = running
    assert before == after[0]  # at rate 0 the placement has no effect
    assert before > 0.3  # 6,000 guesses at one of ten: 0.1, sd 0.004
    np.testing.assert_array_equal(again[1], after)
    assert again[0, 0] == before
    assert again[0, 1] != dropped


def test_placements_are_compared_by_their_differences():
    script, claim = load("batch_norm"), load("common.claim")
    up, down, unclear = (claim.Interval(m, m - 0.1, m + 0.1) for m in (0.2, -0.2, 0.0))
    names = ("before, over none", "after, over before", "again, over running")
    for changes, verdicts in (
        ((down, up, up), [claim.HOLDS] * 3),
        ((up, down, down), [claim.FAILS] * 3),
        ((unclear,) * 3, [claim.FAILS] * 3),
    ):
        differences = {name: {0.5: it} for name, it in zip(names, changes, strict=True)}
        assert [it.verdict for it in script.findings(differences)] == verdicts


def test_steps_to_a_loss_are_read_off_the_curve():
    script = load("cost")
    losses = 2.0 ** -np.arange(1, 9)  # halves from evaluation to evaluation
    assert script.first_step_below(losses, 2.0**-3.5) == pytest.approx(3.5 * script.EVERY)
    assert script.first_step_below(losses, 1.0) == script.EVERY
    assert math.isnan(script.first_step_below(losses, 0.001))
    slow = 2.0 ** -np.arange(0.5, 4.5, 0.5)
    curves = np.array([[losses, slow]] * 3)
    assert script.step_ratios(curves, 2.0**-3, (0.0, 0.5))[0.5] == pytest.approx((2, 2, 2))
    assert script.step_ratios(curves, 2.0**-7, (0.0, 0.5))[0.5] is None


def test_a_ratio_of_steps_holds_within_its_bounds_alone():
    """The claims' bounds are 1.5 to 2.5, and 2 to 3."""
    script, claim = load("cost"), load("common.claim")
    ratios = {0.3: {0.5: claim.Interval(1.9, 1.8, 2.1)}, 0.1: {0.5: None}}
    doubles, takes_longer = script.findings(ratios)
    assert doubles.verdict.startswith(claim.ONLY_WHEN + "the training loss to be reached is 0.3")
    assert "0.1: not reached" in doubles.measured
    assert takes_longer.verdict == claim.FAILS
    ratios = {0.3: {0.5: claim.Interval(2.5, 2.4, 2.6)}}
    assert [it.verdict for it in script.findings(ratios)] == [claim.FAILS, claim.HOLDS]


def test_the_time_of_a_step_is_the_benchmarks():
    script, claim = load("step_time"), load("common.claim")
    rows = json.loads(script.BENCHMARK.read_text())["rows"]
    times = script.step_times({"rows": rows})
    by = {(r["framework"], r["model"], r["dropout"]): r for r in rows}
    for name, ratio in times.items():
        with_it, without = (by[(*name.split(" on "), rate)] for rate in (0.2, 0.0))
        values = (row["to_minigpt_without_dropout"][1] for row in (with_it, without))
        assert ratio.mean == pytest.approx(next(values) / next(values))
        assert ratio.low < ratio.mean < ratio.high
    assert len(times) == 4
    for high, verdict in ((1.09, claim.HOLDS), (1.11, claim.FAILS)):
        (finding,) = script.findings({"a": claim.Interval(1.05, 1.0, high)})
        assert finding.verdict == verdict


def test_step_time(tmp_path):
    times = run_smallest("step_time", tmp_path)["numbers"]["time of a step, as a ratio"]
    assert all(it["95 %"][0] < it["mean"] < it["95 %"][1] for it in times.values())


def test_cost(tmp_path):
    numbers = run_smallest("cost", tmp_path)["numbers"]
    without, dropped = (np.array(curve) for curve in numbers["training loss by rate and look"])
    assert (dropped > without).all()
    assert without[-1] < without[0] < math.log(10)


def test_overfitting_is_measured_by_the_validation_text():
    """Losses by rate, seed, text and evaluation: without dropout the validation loss turns up."""
    script, claim = load("gpt_overfitting"), load("common.claim")
    turning, falling = [[2, 1, 0.5], [2.5, 2.0, 2.6]], [[2, 1.2, 0.8], [2.5, 2.0, 1.9]]
    losses = np.array([[turning] * 3, [falling] * 3])
    losses += 0.01 * np.arange(3)[:, None, None]
    measured = script.measure(losses)
    assert measured["rise without dropout"].mean == pytest.approx(0.6)
    assert measured["best, change"].mean == pytest.approx(-0.1)
    assert measured["last, change"].mean == pytest.approx(-0.7)
    assert [it.verdict for it in script.findings(measured)] == [claim.HOLDS] * 2
    assert [it.verdict for it in script.findings(script.measure(losses[::-1]))] == [claim.FAILS] * 2


def test_gpt_overfitting(tmp_path):
    result = run_smallest("gpt_overfitting", tmp_path)
    losses = np.array(result["numbers"]["losses by rate, seed, text and step"])
    assert losses.shape == (2, 3, 2, 2)
    assert (losses[..., -1] < losses[..., 0]).all()  # both texts still fall in 20 steps
    assert (losses[0] != losses[1]).all()


def test_a_change_holds_by_its_sign():
    script, claim = load("underfitting"), load("common.claim")
    changes = {0.1: claim.Interval(0.2, 0.1, 0.3), 0.2: claim.Interval(0.1, -0.1, 0.3)}
    names = ("early, training loss", "early, test accuracy", "constant, training loss")
    only = claim.ONLY_WHEN + "the rate is 0.1 (not 0.2)"
    verdicts = [it.verdict for it in script.findings(dict.fromkeys(names, changes))]
    assert verdicts == [claim.FAILS, only, only]
    falls = {rate: -change for rate, change in changes.items()}
    verdicts = [it.verdict for it in script.findings(dict.fromkeys(names, falls))]
    assert verdicts == [only, claim.FAILS, claim.FAILS]


def test_underfitting(tmp_path):
    """In 24 steps early dropout is on in four of them alone, so it costs less than constant."""
    over_none = run_smallest("underfitting", tmp_path)["numbers"]["over no dropout"]
    early, constant = (
        over_none[f"{when}, training loss"]["0.2"]["mean"] for when in ("early", "constant")
    )
    assert early < constant
    assert constant > 0


def rising(*means):
    """Runs by rate (rows) whose five seeds differ by 0.01 at most."""
    return np.array(means)[:, None] + np.linspace(0, 0.01, 5) * np.arange(len(means))[:, None]


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
