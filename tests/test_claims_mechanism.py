"""The mechanism's claims: every script in its smallest form, and broken ops that must show."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments import found, load

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
    result = found("scaling", tmp_path)
    factor, hand, _ = verdicts(result)
    assert factor.startswith("holds only when the rate is 0.25, 0.5 or 0.75 (not 0.1, 0.2")
    assert hand == HOLDS
    # 6 digits of JSON beside the exact fraction
    assert abs(result["numbers"]["1 becomes"]["0.2"] - Fraction(65536, 52429)) < 5e-6
    # 3 seeds of 100 masks: the sum's standard error is below 0.0023 at rate 0.8, see mean_sum
    for rate, left in result["numbers"]["sum scaled"].items():
        assert abs(left["mean"] - 1) < 4.9 * 0.0023, rate


def test_one_becomes_the_float32_of_the_exact_fraction():
    became, _ = load("scaling").factor_finding()
    for rate, one in became.items():
        threshold = round(float((1 - np.float32(rate)) * 2**16))
        assert one == np.float32(float(Fraction(2**16, threshold)))


def test_a_wrong_scale_fails():
    """A scale of 1, or one in bfloat16, is neither 1 / (1 - rate) nor the five lines."""
    scaling = load("scaling")
    for wrong in (dropout_unscaled, _rounded):
        assert scaling.factor_finding(wrong)[1].verdict != scaling.factor_finding()[1].verdict
        assert scaling.hand_finding(2, wrong).verdict != HOLDS
    kept, lost = (scaling.left(3, 1000, drop) for drop in (dropout, dropout_unscaled))
    assert scaling.sum_finding(lost, lost).verdict == FAILS
    assert scaling.sum_finding(kept, kept).verdict == FAILS


def _rounded(x, rate, *, key):
    return dropout(x.astype(jnp.bfloat16), rate, key=key).astype(x.dtype)


def test_randomness(tmp_path):
    result = found("randomness", tmp_path)
    assert verdicts(result)[:2] == [HOLDS, HOLDS]
    draws = np.array(result["numbers"]["draws"])
    for rate, chains in result["numbers"]["dropped"].items():
        p = float(rate)
        z = (np.array(chains)[:, -1] - draws[-1] * p) / np.sqrt(draws[-1] * p * (1 - p))
        assert np.abs(z).max() < 4.9


def test_a_mask_of_another_rate_leaves_the_envelope():
    """0.51 instead of 0.5 at 1e5 draws is 6.3 standard deviations off."""
    randomness, ends = load("randomness"), load("randomness").looks(10**5)

    def wrong(key, rate, shape):
        return keep_mask(key, rate + 0.01, shape)

    for mask, verdict in ((keep_mask, HOLDS), (wrong, FAILS)):
        chains = [randomness.dropped(jax.random.key(i), 0.5, ends, mask) for i in range(3)]
        counts = {rate: np.stack(chains) for rate in (0.5,)}
        assert randomness.envelope_finding(counts, ends).verdict == verdict


def test_masks_that_repeat_are_noticed():
    fixed = jax.random.key(0)
    finding = load("randomness").calls_finding(9, lambda x, rate, key: dropout(x, rate, key=fixed))
    assert finding.verdict == FAILS


def test_deviations_of_a_square_root_law_have_slope_minus_one_half():
    randomness, ends = load("randomness"), 100 * 10 ** np.arange(7)
    found = {0.5: ends * 0.5 + np.array([[1.0], [-2.0]]) * np.sqrt(ends)}
    np.testing.assert_allclose(randomness.slopes(found, ends), -0.5, atol=1e-12)


def test_missing_scale(tmp_path):
    """In a net without biases the factor passes through: same answers but for ties by rounding."""
    softmax = found("missing_scale", tmp_path)["numbers"]["softmax"]
    for name, (scaled, bare, same) in softmax.items():
        assert (np.array(bare) > np.array(scaled)).all()
        if "without biases" in name:
            assert min(same) > 0.999
    assert min(softmax["3 hidden layers with biases"][2]) < 0.999


def test_evaluation_mode(tmp_path):
    result = found("evaluation_mode", tmp_path)
    assert verdicts(result)[:2] == [HOLDS, HOLDS]
    off, on = np.array(result["numbers"]["perplexity, off and on"]["0.1"])
    assert (on > off).all()


def test_modes_that_are_mixed_up_are_noticed():
    mode = load("evaluation_mode")
    always = jax.random.key(1)
    on_at_evaluation = iter(jax.random.split(always, 99))
    x = jnp.ones((4, 64))
    for predict, verdict in (
        (lambda key: dropout(x, 0.5, key=key), HOLDS),
        (lambda key: x, FAILS),
        (lambda key: dropout(x, 0.5, key=always), FAILS),
        (lambda key: dropout(x, 0.5, key=next(on_at_evaluation) if key is None else key), FAILS),
    ):
        assert mode.modes_finding(predict).verdict == verdict


def test_a_mode_with_a_default_is_not_a_refusal():
    refuses = load("evaluation_mode").refuses
    assert refuses(dropout, {"x": X, "rate": 0.5})
    assert not refuses(lambda x, rate, key=None: dropout(x, rate, key=key), {"x": X, "rate": 0.5})


def test_sub_networks(tmp_path):
    result = found("sub_networks", tmp_path)
    assert verdicts(result)[0] == HOLDS
    for each in result["numbers"]["deep"].values():
        distance = np.array(each["distance"])  # of 1, 2, 5, ... samples: less and less
        assert (np.diff(distance[:, 1:].mean(0)) < 0).all()


def test_weight_scaling_is_the_geometric_mean_with_the_right_scale_only():
    sub = load("sub_networks")
    assert sub.one_layer(0, 0.2)[0] < 1e-14
    wrong = {0.2: np.array([sub.one_layer(0, 0.2, apply=_nominal)]).T}
    assert wrong[0.2][0] > 1e-8  # the nominal 1.25 is 3.8e-6 off, and this sees it
    assert sub.exact_finding(wrong).verdict == FAILS


def _nominal(x, keep, rate):
    return apply_mask(x, keep, scale=1 / (1 - rate))


def test_co_adaptation(tmp_path):
    result = found("co_adaptation", tmp_path)
    curves = np.array(result["numbers"]["accuracy by rate, seed and share removed"])
    assert curves.shape == (3, 3, 10)
    # 90 % of the units removed leaves less than a net that is whole, at every rate
    assert (curves[..., -1].mean(1) < curves[..., 0].mean(1)).all()


def test_correlation_is_that_of_numpy_without_dead_units():
    features = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
    features[:, 1] += features[:, 0]
    features[:, 4] = 3
    live = np.delete(features, 4, axis=1)
    expected = np.abs(np.corrcoef(live.T))[~np.eye(5, dtype=bool)].mean()
    measured = load("co_adaptation").correlation(jnp.asarray(features))
    np.testing.assert_allclose(measured, expected, rtol=1e-5)


def test_the_mask_takes_units_out():
    """All of them gone, the last layer's bias is all that is left."""
    co, nets = load("co_adaptation"), load("common.nets")
    params = nets.mlp_init(jax.random.key(0), (4, 128, 128, 3))
    params[-1]["bias"] = jnp.arange(3.0)
    logits, _ = co.with_units(params, jnp.ones((2, 4)), jnp.zeros((2, 128)))
    assert (logits == jnp.arange(3.0)).all()
    whole, _ = co.with_units(params, jnp.ones((2, 4)), jnp.ones((2, 128)))
    np.testing.assert_allclose(whole, nets.mlp(params, jnp.ones((2, 4)), 0.5, key=None), rtol=1e-6)


@pytest.mark.parametrize(("low", "high", "near"), [(-0.009, 0.009, True), (-0.003, 0.027, False)])
def test_as_good_asks_for_a_whole_interval_within_a_point(low, high, near):
    """An interval that is merely wide, and holds 0, is not yet "as good"."""
    interval = load("common.claim").Interval((low + high) / 2, low, high)
    assert load("sub_networks").near(interval) == near
