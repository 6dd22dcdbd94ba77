"""The mechanism's claims: every script in its smallest form, and broken ops that must fail."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments import load, run_smallest

from dropout_jax import apply_mask, dropout, dropout_unscaled, keep_mask

pytestmark = pytest.mark.claims

HOLDS, FAILS = "holds", "does not hold"
X = np.ones(3, np.float32)


@pytest.fixture(autouse=True)
def standard_promotion():
    """The scripts use optax and plain numbers."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def verdicts(result):
    return [finding["verdict"] for finding in result["findings"]]


def test_scaling(tmp_path):
    result = run_smallest("scaling", tmp_path)
    factor, hand, _ = verdicts(result)
    assert (factor, hand) == (HOLDS, HOLDS)
    assert result["numbers"]["1 becomes"]["0.2"] == 1.25
    # 3 seeds of 100 masks: the sum's standard error is below 0.0023 at rate 0.8, see mean_sum
    for rate, left in result["numbers"]["sum scaled"].items():
        assert abs(left["mean"] - 1) < 4.9 * 0.0023, rate


def test_one_becomes_the_float32_of_the_exact_fraction():
    for rate, one in load("scaling").scale_factors(dropout).items():
        share = Fraction(float(np.float32(1) - np.float32(rate)))
        assert one == np.float32(float(1 / share))


def test_a_wrong_scale_fails():
    """A scale of 1, or one in bfloat16, is neither 1 / (1 - rate) nor the five lines."""
    scaling = load("scaling")
    kept, lost = (scaling.mean_sums(3, 1000, drop) for drop in (dropout, dropout_unscaled))

    def verdicts_of(drop, kept, lost):
        hand = scaling.are_equal(scaling.by_hand, 2, drop)
        results = scaling.findings(scaling.scale_factors(drop), hand, hand, kept, lost)
        return [finding.verdict for finding in results]

    factor, hand, total = verdicts_of(dropout, kept, lost)
    assert (hand, total) == (HOLDS, HOLDS)
    for wrong, sums in ((dropout_unscaled, lost), (_rounded, kept)):
        wrong_factor, wrong_hand, wrong_total = verdicts_of(wrong, sums, sums)
        assert wrong_factor != factor
        assert wrong_hand != HOLDS
        assert wrong_total == FAILS


def _rounded(x, rate, *, key):
    return dropout(x.astype(jnp.bfloat16), rate, key=key).astype(x.dtype)


def test_randomness(tmp_path):
    result = run_smallest("randomness", tmp_path)
    assert verdicts(result)[0] == HOLDS
    draws = np.array(result["numbers"]["draws"])
    for rate, chains in result["numbers"]["dropped"].items():
        p = float(rate)
        z = (np.array(chains)[:, -1] - draws[-1] * p) / np.sqrt(draws[-1] * p * (1 - p))
        assert np.abs(z).max() < 4.9


def test_a_mask_of_another_rate_leaves_the_envelope():
    """0.51 instead of 0.5 at 1e5 draws is 6.3 standard deviations off."""
    randomness, ends = load("randomness"), 100 * 10 ** np.arange(4)

    def wrong(key, rate, shape):
        return keep_mask(key, rate + 0.01, shape)

    for mask, verdict in ((keep_mask, HOLDS), (wrong, FAILS)):
        chains = [randomness.count_dropped(jax.random.key(i), 0.5, ends, mask) for i in range(3)]
        counts = {rate: np.stack(chains) for rate in (0.5,)}
        assert randomness.findings(counts, ends)[0].verdict == verdict


def test_draws_are_counted_in_parts_of_any_size(monkeypatch):
    """A part that is drawn by several calls has a key for each of them."""
    randomness, ends = load("randomness"), np.array([100, 1000])
    monkeypatch.setattr(randomness, "CHUNK", 300)
    key = jax.random.key(0)
    parts = [randomness.fold(key, "part", i) for i in (0, 1, 1, 1)]
    keys = [randomness.fold(part, j) for part, j in zip(parts, (0, 0, 1, 2), strict=True)]
    sizes = (100, 300, 300, 300)
    masks = [keep_mask(each, 0.2, (size,)) for each, size in zip(keys, sizes, strict=True)]
    counts = np.cumsum([(~np.asarray(mask)).sum() for mask in masks])
    assert (randomness.count_dropped(key, 0.2, ends) == counts[[0, 3]]).all()


def test_deviations_of_a_square_root_law_have_slope_minus_one_half():
    randomness, ends = load("randomness"), 100 * 10 ** np.arange(7)
    counts = {0.5: ends * 0.5 + np.array([[1.0], [-2.0]]) * np.sqrt(ends)}
    np.testing.assert_allclose(randomness.fit_slopes(counts, ends), -0.5, atol=1e-12)


def test_missing_scale(tmp_path):
    """Evaluation with the kept share is the network that was trained, the other is not."""
    evaluations = run_smallest("missing_scale", tmp_path)["numbers"]["evaluation"]
    for right, loss, wrong, other in evaluations.values():
        assert 0.1 < np.mean(right) < 1
        assert 0 < np.mean(wrong) < 1
        assert (np.array(loss) != np.array(other)).all()


def test_the_missing_scale_is_missing_in_training_only():
    unscaled = load("missing_scale").without_scale
    x, key = jnp.ones((4, 64)), jax.random.key(0)
    assert (unscaled(x, 0.5, key=key) == keep_mask(key, 0.5, x.shape)).all()
    assert (unscaled(x, 0.5, key=None) == x).all()


def test_unscaled_softmax(tmp_path):
    """In a net without biases the factor passes through: same answers but for ties by rounding."""
    softmax = run_smallest("unscaled_softmax", tmp_path)["numbers"]["softmax"]
    for name, (scaled, unscaled, same) in softmax.items():
        assert (np.array(unscaled) > np.array(scaled)).all()
        if "without biases" in name:
            assert min(same) > 0.999
    assert min(softmax["3 hidden layers with biases"][2]) < 0.999


def test_evaluation_mode(tmp_path):
    result = run_smallest("evaluation_mode", tmp_path)
    assert verdicts(result) == [HOLDS, HOLDS, HOLDS]
    refused = result["numbers"]["refused"]
    assert {"dropout", "zoneout", "dot_product_attention", "minigpt's GPT"} <= set(refused)


def test_forgotten_evaluation(tmp_path):
    result = run_smallest("forgotten_evaluation", tmp_path)
    off, on = np.array(result["numbers"]["perplexity, off and on"]["0.1"])
    assert (on > off).all()


def test_confused_modes_are_detected():
    mode = load("evaluation_mode")
    x, always = jnp.ones((4, 64)), jax.random.key(1)
    on_at_evaluation = iter(jax.random.split(always, 2000))
    for predict, verdict in (
        (lambda key: dropout(x, 0.5, key=key), HOLDS),
        (lambda key: x, FAILS),
        (lambda key: dropout(x, 0.5, key=always), FAILS),
        (lambda key: dropout(x, 0.5, key=next(on_at_evaluation) if key is None else key), FAILS),
    ):
        outputs, masks = mode.predict_by_mode(predict), mode.predict_by_mode(predict, 1000)
        results = mode.findings(outputs, masks, {"dropout": True}, silent=True)
        assert [finding.verdict for finding in results[:2]] == [verdict, verdict]


def test_one_function_that_runs_without_its_mode_fails_the_claim():
    mode, outputs = load("evaluation_mode"), {name: np.ones((10, 3)) for name in "abc"}
    api = {"dropout": True, "zoneout": False}
    assert mode.findings(outputs, outputs, api, silent=True)[2].verdict == FAILS


def test_a_mode_with_a_default_is_not_a_refusal():
    requires_key = load("evaluation_mode").requires_key
    arguments = {"x": X, "rate": 0.5}
    assert requires_key(dropout, arguments)
    assert not requires_key(lambda x, rate, key=None: dropout(x, rate, key=key), arguments)


def test_sub_networks(tmp_path):
    """Hardly trained, one hidden layer is nearly linear, and four are not."""
    deep = run_smallest("sub_networks", tmp_path)["numbers"]["deep"]
    distance = {depth: np.mean(each["distance"]) for depth, each in deep.items()}
    assert 0 < distance["1"] < distance["4"] < 0.5


def test_weight_scaling_that_is_a_mean_of_the_samples_is_at_no_distance_from_it():
    sub, rng = load("sub_networks"), np.random.default_rng(0)
    sampled = np.log(rng.dirichlet(np.ones(4), (9, 50)))  # 9 sub-networks, 50 rows, 4 classes
    labels = np.exp(sampled).mean(0).argmax(-1)
    arithmetic = sub.measure_scaling(np.log(np.exp(sampled).mean(0)), None, sampled, labels)
    assert arithmetic["distance"] < 1e-12 < 0.01 < arithmetic["to the geometric mean"]
    assert arithmetic["error"] == arithmetic["error of the average"] == 0
    mean = sampled.mean(0)
    mean -= np.log(np.exp(mean).sum(-1, keepdims=True))
    geometric = sub.measure_scaling(mean, None, sampled, labels)
    assert geometric["to the geometric mean"] < 1e-12 < 0.01 < geometric["distance"]


def test_monte_carlo_samples(tmp_path):
    for each in run_smallest("monte_carlo_samples", tmp_path)["numbers"]["deep"].values():
        distance = np.array(each["distance"])  # of 1, 2, 5, ... samples: less and less
        assert (np.diff(distance[:, 1:].mean(0)) < 0).all()


def test_geometric_mean(tmp_path):
    result = run_smallest("geometric_mean", tmp_path)
    assert verdicts(result) == [HOLDS]
    for _, arithmetic in result["numbers"]["one layer"].values():
        assert min(arithmetic) > 0.01  # the other mean is another prediction


def test_weight_scaling_is_the_geometric_mean_with_the_right_scale_only():
    mean = load("geometric_mean")
    assert mean.distances(*mean.enumerate_sub_networks(0, 0.2))[0] < 1e-14
    wrong = np.array([mean.distances(*mean.enumerate_sub_networks(0, 0.2, apply=_slightly_off))]).T
    assert wrong[0] > 1e-8  # this sees a scale that is 3.8e-6 off
    assert mean.findings({0.2: wrong})[0].verdict == FAILS


def _slightly_off(x, keep, rate):
    return apply_mask(x, keep, scale=(1 + 3.8e-6) / (1 - rate))


def test_co_adaptation(tmp_path):
    result = run_smallest("co_adaptation", tmp_path)
    curves = np.array(result["numbers"]["accuracy by rate, seed and share removed"])
    assert curves.shape == (3, 3, 10)
    # 90 % of the units removed leaves less than a net that is whole, at every rate
    assert (curves[..., -1].mean(1) < curves[..., 0].mean(1)).all()


def test_feature_correlation(tmp_path):
    """The same networks as co_adaptation's, and correlations that a mean of |r| can have."""
    correlations = np.array(run_smallest("feature_correlation", tmp_path)["numbers"]["correlation"])
    assert correlations.shape == (3, 3, 2)  # rate, seed, layer
    assert ((correlations > 0.05) & (correlations < 0.9)).all()
    assert (correlations[0] != correlations[1]).all()


def test_correlation_is_that_of_numpy_without_dead_units():
    features = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
    features[:, 1] += features[:, 0]
    features[:, 4] = 3
    live = np.delete(features, 4, axis=1)
    expected = np.abs(np.corrcoef(live.T))[~np.eye(5, dtype=bool)].mean()
    measured = load("feature_correlation").correlation(jnp.asarray(features))
    np.testing.assert_allclose(measured, expected, rtol=1e-5)


def test_the_mask_removes_units():
    """Without any unit the logits are the last layer's bias."""
    co, nets = load("co_adaptation"), load("common.nets")
    params = nets.mlp_init(jax.random.key(0), (4, 128, 128, 3))
    params[-1]["bias"] = jnp.arange(3.0)
    logits = co.with_units(params, jnp.ones((2, 4)), jnp.zeros((2, 128)))
    assert (logits == jnp.arange(3.0)).all()
    whole = co.with_units(params, jnp.ones((2, 4)), jnp.ones((2, 128)))
    np.testing.assert_allclose(whole, nets.mlp(params, jnp.ones((2, 4)), 0.5, key=None), rtol=1e-6)


@pytest.mark.parametrize(("low", "high", "near"), [(-0.009, 0.009, True), (-0.003, 0.027, False)])
def test_as_good_asks_for_a_whole_interval_within_a_point(low, high, near):
    """A wide interval that contains 0 is not enough for "as good"."""
    claim = load("common.claim")
    interval = claim.Interval((low + high) / 2, low, high)
    assert claim.is_between(interval, load("sub_networks").ONE_POINT) == near
