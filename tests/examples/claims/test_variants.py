"""The claims about variants of dropout: identities of their nets, and verdicts that can fail."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments import load, run_smallest

from dropout_jax import dropout, fold

pytestmark = pytest.mark.claims

SCRIPTS = (
    *("convolution", "feature_maps", "selu", "recurrent", "zoneout", "drop_connect", "drop_path"),
    *("removed_blocks", "learned_rates", "learned_against_fixed", "r_drop"),
)


@pytest.fixture
def promotion():
    """Of optax, which relies on implicit promotion."""
    return "standard"


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_smallest_form(name, tmp_path):
    """Accuracies, their losses, correlations and rates are within 1; a finding has its interval."""
    result = run_smallest(name, tmp_path)
    for finding in result["findings"]:
        assert re.search(r"\(-?\+?[\d.]+ to [-+]?[\d.]+%?\)", finding["measured"])
    numbers = result["numbers"]
    if name == "r_drop":  # whose divergences have no such bound
        assert all(0 <= x < np.inf for x in jax.tree.leaves(numbers.pop("inconsistency")))
    shares = np.array([x for x in jax.tree.leaves(numbers) if isinstance(x, float)])
    assert shares.size > 10
    assert (abs(shares) <= 1).all()


def test_selu_keeps_its_moments_with_alpha_dropout_only(tmp_path):
    """At initialisation, which is the same in the smallest form; plain dropout leaves at 0.2."""
    verdicts = [
        finding["verdict"] for finding in run_smallest("selu_moments", tmp_path)["findings"]
    ]
    assert verdicts[:2] == ["holds", "holds"]
    assert verdicts[2] in ("holds", "holds only when the rate is 0.1 or 0.2 (not 0.05)")


def test_selu_leaves_when_alpha_dropout_is_not_corrected():
    selu = load("selu_moments")

    def uncorrected(x, rate, *, key):
        return jnp.where(dropout(jnp.ones_like(x), rate, key=key) > 0, x, -1.7580993)

    wrong, right = (
        selu.measure_moments(drop, (0.2,), 3, 128, 64)[0]
        for drop in (uncorrected, selu.alpha_dropout)
    )
    assert not selu.within_domain(wrong)
    assert selu.within_domain(right)


def test_convolution_is_xlas(key):
    convolution = load("convolution")
    x = jax.random.normal(key, (2, 8, 8, 3))
    layer = load("common.nets").dense_init(key, 27, 5)
    kernel = layer["weights"].reshape(3, 3, 3, 5)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(convolution.convolve(layer, x), expected, atol=1e-5)


def test_neighbours_correlation_is_numpys(key):
    """Channel 0 is constant, and not counted."""
    maps = jax.random.normal(key, (50, 8, 8, 16)).at[..., 0].set(0).cumsum(2)
    pairs = [(maps[:, :, :-1, i].ravel(), maps[:, :, 1:, i].ravel()) for i in range(1, 16)]
    expected = np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs])
    np.testing.assert_allclose(
        load("feature_maps").neighbour_correlation(maps), expected, atol=1e-5
    )


def test_sequences_ask_for_the_marked_symbol(key):
    memory = load("common.memory")
    x, y, ago = memory.sample_sequences(key, 100)
    marked = memory.LENGTH - ago
    np.testing.assert_array_equal(x[..., -1].argmax(1), marked)
    np.testing.assert_array_equal(x[np.arange(100), marked, :-1].argmax(-1), y)


def test_a_locked_unit_is_out_for_the_whole_sequence(key):
    """Weights that leave unit 0 matter to half of 400 sequences (sd 10), or with naive to all."""
    memory, recurrent = load("common.memory"), load("recurrent")
    params = memory.init(key)
    x = memory.sample_sequences(key, 400)[0]
    cell = params["cell"]
    moved = cell | {"weights": cell["weights"].at[memory.SYMBOLS + 1].add(1.0)}

    def touched(kind):
        out = [
            memory.predict_symbol(
                params | {"cell": cell}, x, recurrent.KINDS[kind], key=fold(key, "masks")
            )
            for cell in (cell, moved)
        ]
        return int((out[0] != out[1]).any(-1).sum())

    assert abs(touched("locked") - 200) < 49
    assert touched("naive, h") == 400


def test_the_naive_masks_are_of_a_step(key):
    """On h: half of its units are seen, doubled; the cell is dropped by "h and c" only."""
    recurrent, memory = load("recurrent"), load("common.memory")
    cell = memory.init(key)["cell"]
    x, h, c = jnp.zeros((300, 9)), jnp.ones((300, 32)), jnp.full((300, 32), 1e3)
    kinds = {kind: step(cell, x, h, c, key=key, now=key) for kind, step in recurrent.KINDS.items()}
    off = {kind: step(cell, x, h, c, key=None, now=None) for kind, step in recurrent.KINDS.items()}
    assert all((off[kind][0] == off["none"][0]).all() for kind in kinds)
    assert all((kinds[kind][0] != off[kind][0]).any() for kind in kinds if kind != "none")
    lost = {kind: float((states[1] < 10).mean()) for kind, states in kinds.items()}
    # 9,600 draws at 0.5: a standard deviation of 0.005
    assert lost.pop("naive, h and c") == pytest.approx(0.5, abs=0.025)
    assert set(lost.values()) == {0.0}


def test_zoneout_keeps_half_of_the_units(key):
    zoneout, memory = load("zoneout"), load("common.memory")
    cell = memory.init(key)["cell"]
    x, h, c = (jax.random.normal(fold(key, i), (300, n)) for i, n in enumerate((9, 32, 32)))
    new = memory.lstm(cell, x, h, c)
    masks = []
    on, off = (zoneout.zoneout_lstm(cell, x, h, c, now=now) for now in (key, None))
    for old, next_, kept, mean in zip((h, c), new, on, off, strict=True):
        masks.append(kept == old)
        np.testing.assert_array_equal(kept, jnp.where(masks[-1], old, next_))
        assert float(masks[-1].mean()) == pytest.approx(0.5, abs=0.025)
        np.testing.assert_allclose(mean, (old + next_) / 2, atol=1e-5)
    assert (masks[0] != masks[1]).any()


def test_drop_connect_has_a_mask_for_each_row(key):
    drop_connect, nets = load("drop_connect"), load("common.nets")
    layer, x = nets.dense_init(key, 16, 4), jnp.ones((3, 16))
    each, one = (
        drop_connect.apply_layer(kind, layer, x, 0.5, key=key) for kind in drop_connect.KINDS[1:]
    )
    assert (each[0] != each[1]).any()
    np.testing.assert_array_equal(one[0], one[1])
    off = drop_connect.apply_layer(drop_connect.KINDS[1], layer, x, 0.5, key=None)
    np.testing.assert_array_equal(off, nets.dense(layer, x))


def test_a_block_of_rate_one_is_removed(key):
    """Zero weights of the branch, rate 1 and rate 0 with a key are what they say."""
    drop_path = load("drop_path")
    params, x = drop_path.init(key), jax.random.normal(key, (5, 64))
    first = jnp.arange(drop_path.DEPTH) < 3
    removed = drop_path.net(params, x, first.astype(jnp.float32), key=key)
    silent = jax.tree.map(lambda w: w.at[:3].set(0), params["blocks"])
    zeros = jnp.zeros(drop_path.DEPTH)
    expected = drop_path.net(params | {"blocks": silent}, x, zeros, key=key)
    np.testing.assert_allclose(removed, expected, atol=1e-5)
    whole = drop_path.net(params, x, zeros, key=None)
    np.testing.assert_array_equal(drop_path.net(params, x, zeros, key=key), whole)
    assert (removed != whole).any()


def test_removing_silent_blocks_costs_nothing(key):
    """Blocks of weights 0 add nothing; those of others do, and without any the loss is largest."""
    drop_path, removed = load("drop_path"), load("removed_blocks")
    split = load("common.data").load_digits(100)
    params = drop_path.init(key)
    silent = params | {"blocks": jax.tree.map(jnp.zeros_like, params["blocks"])}
    costs = removed.accuracy_without_blocks(silent, split, key)
    assert costs.shape == (len(removed.REMOVED),)
    assert (costs == drop_path.accuracy(silent, split, key)).all()
    whole = removed.accuracy_without_blocks(params, split, key)
    np.testing.assert_allclose(whole[0], drop_path.accuracy(params, split, key), atol=1e-6)
    assert (whole[1:] != whole[0]).all()


def test_the_learned_rate_falls_or_the_claim_fails():
    learned_rates, claim = load("learned_rates"), load("common.claim")
    noise = np.random.default_rng(0).normal(0, 0.001, (2, 5, 4, 3))
    falling = np.array([0.4, 0.3, 0.2, 0.1])[:, None] + noise
    assert learned_rates.judge_fall(falling[0]).verdict == claim.HOLDS
    assert learned_rates.judge_fall(falling[0, :, ::-1]).verdict == claim.FAILS
    assert learned_rates.judge_independence(falling).verdict == claim.HOLDS
    falling[0] += 0.1
    assert learned_rates.judge_independence(falling).verdict == claim.FAILS


def test_the_penalty_is_of_one_example_in_size(key):
    """A hundred times the data has a hundredth of it, and little data raises a small rate."""
    learned_rates = load("learned_rates")
    layers = load("common.nets").mlp_init(key, (64, 64, 64, 10))

    def total(logit, size):
        return learned_rates.penalty(layers, [logit] * 3, size)

    few, many = (jax.grad(total)(-2.0, size) for size in (10.0, 1000.0))
    np.testing.assert_allclose(few, 100 * many, rtol=1e-5)
    assert few < 0


def test_a_fixed_rate_is_in_every_layer():
    """The higher it is, the less is learned in 150 steps; 0.999 lets next to nothing through."""
    script, data = load("learned_against_fixed"), load("common.data")
    splits = jax.tree.map(lambda leaf: leaf[None], data.load_digits(max(script.SIZES)))
    with jax.numpy_dtype_promotion("standard"):
        none, half, all_ = script.train([0.0, 0.5, 0.999], splits, 150)[:, 0, -1]
    assert none > 0.8
    assert none > half > all_


def test_selu_says_what_was_fitted():
    """Alpha behind plain by 20 points where it fits a half of the training set."""
    selu, claim = load("selu"), load("common.claim")
    noise = np.random.default_rng(0).normal(0, 0.001, 6)
    noise -= noise.mean()
    one = dict.fromkeys(selu.RATES, 0.9 + noise)
    alpha = one | {0.2: 0.5 + noise[::-1]}
    scores = {part: {"alpha": alpha, "plain": one} for part in ("train", "test")}
    [finding] = selu.findings(scores, {"train": noise, "test": noise})
    assert finding.verdict == claim.FAILS
    assert "0.2: 50.0% (50.0 to 50.0%); plain" in finding.measured
    scores["test"] = {"alpha": dict.fromkeys(selu.RATES, 0.95 + noise[::-1]), "plain": one}
    assert selu.findings(scores, {"train": noise, "test": noise})[0].verdict == claim.HOLDS


def test_r_drop_is_two_passes_and_their_divergence(key):
    r_drop, nets, data = load("r_drop"), load("common.nets"), load("common.data")
    split, rows = data.load_digits(100), jnp.arange(8)
    layers = nets.mlp_init(key, (64, 64, 64, 10))
    plain, one, five = (
        r_drop.r_drop_loss(layers, split, rows, rows, weight, key=key) for weight in (0, 1, 5)
    )
    passes = [
        nets.mlp(layers, split.x_train[rows], r_drop.RATE, key=fold(key, name))
        for name in ("first", "second")
    ]
    entropy = np.mean([nets.cross_entropy(logits, split.y_train[rows]) for logits in passes])
    np.testing.assert_allclose(plain, entropy, rtol=1e-5)
    np.testing.assert_allclose(five - plain, 5 * (one - plain), rtol=1e-4)
    assert one > plain


def test_a_verdict_of_cells():
    claim = load("common.claim")
    rng = np.random.default_rng(0)
    low = {rate: rng.normal(0.5, 0.01, 5) for rate in (0.1, 0.5)}
    high = {0.1: low[0.1] + rng.normal(0.1, 0.01, 5), 0.5: low[0.5] - 0.1}

    def verdict(ours, theirs):
        return claim.compare("a", "b", ours, theirs, "c", "the rate is").verdict

    assert verdict(high, low) == "holds only when the rate is 0.1 (not 0.5)"
    assert verdict(low, low) == claim.FAILS
    assert verdict({0.1: high[0.1]}, {0.1: low[0.1]}) == claim.HOLDS
    assert verdict({0.1: low[0.1]}, {0.1: high[0.1]}) == claim.FAILS
