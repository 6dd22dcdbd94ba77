"""Claims 8 to 10: what decides their verdicts, and each script in its smallest form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments import found, load

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
    text = data.one_play()
    with jax.numpy_dtype_promotion("standard"):
        run = sweep.Runner(config, text.tokenizer.vocab_size, range(2), looks=1, sites=sweep.SITES)
        ours = run(text.train, {"loss": text.validation}, rates).params
        config = dataclasses.replace(config, model=dataclasses.replace(model, dropout=rates))
        theirs = gpt.train(gpt.compiled(config, text), config, text, seed=1, evals=1).params
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one[1], other, rtol=1e-4, atol=3e-6)


def test_a_sweep_refuses_a_rate_at_a_site_it_was_not_compiled_for():
    sweep = load("common.sweep")
    config = Config(steps=4, batch_size=4, model=ModelConfig(n_embd=32))
    with pytest.raises(ValueError, match="add \\['mlp_hidden'\\] to the sites"):
        sweep.Runner(config, 65, range(2), looks=1)._rates(DropoutConfig(mlp_hidden=0.1))


def test_what_is_chosen_on_one_text_is_measured_on_the_other():
    rates = load("gpt_rates")
    losses = {0: np.array([[3.0, 1.0, 2.0]]), 1: np.array([[0.1, 0.5, 0.2]])}
    assert [each.tolist() for each in rates.stopped(losses)] == [[1.0], [0.5]]
    assert [each.tolist() for each in rates.last(losses)] == [[2.0], [0.2]]


def test_the_best_rate_verdict_follows_the_losses():
    """The best rates are chosen on the first text; the gain is that of the second."""
    rates, claim = load("gpt_rates"), load("common.claim")
    low, high = rising(*range(7)), rising(*range(7))[::-1]
    dip = rising(3, 1, 1, 1, 3, 3, 3)
    within = rates.best_within
    assert within((0.02, 0.1), {"a": np.stack([dip, dip])}).verdict == claim.HOLDS
    assert within((0.02, 0.1), {"a": np.stack([low, low])}).verdict == claim.FAILS
    both = {"a": np.stack([dip, dip]), "b": np.stack([high, high])}
    assert within((0.02, 0.1), both).verdict == claim.ONLY_WHEN + "it is a"
    fooled = np.stack([dip, low])  # best on the first text, not on the second
    assert within((0.02, 0.1), {"a": fooled}).verdict == claim.FAILS


def test_zero_is_best_only_where_every_rate_is_worse():
    rates, claim = load("gpt_rates"), load("common.claim")

    def verdict(*means):
        return rates.zero_is_best(rates.by_rate(None, rising(*means))).verdict

    assert verdict(1, 2, 3, 4, 5, 6, 7) == claim.HOLDS
    assert verdict(9, 2, 3, 4, 5, 6, 7) == claim.FAILS
    only = verdict(4.5, 2, 3, 4, 5, 6, 7)
    assert only == claim.ONLY_WHEN + "the rate it is compared with is 0.2, 0.3 or 0.5"


def test_a_leak_is_seen():
    """Sums over the past leak nothing; sums over the whole text do."""
    leak = load("features").leak
    first, other = jnp.arange(8.0).reshape(1, 8, 1), jnp.ones((1, 8, 1))
    first, other = first[..., 0], other[..., 0]
    assert leak(lambda x: jnp.cumsum(x, axis=1), first, other) == 0
    assert leak(lambda x: x + x.sum(axis=1, keepdims=True), first, other) > 1


def test_a_shuffled_window_keeps_its_words_lengths_and_letters():
    """Every word's letters are there, in another order; the first word and spaces are as before."""
    examples = load("features").examples
    text = np.frombuffer(b"Now is the winter of our discontent made glorious summer " * 9, np.uint8)
    rows, labels = examples(text, np.array([32]), 40, seed=0)
    words = {bytes(sorted(word)) for word in bytes(text).split()}
    for row, label in zip(rows.astype(np.uint8), labels, strict=True):
        found = bytes(row).split(b" ")
        assert all(bytes(sorted(word)) in words for word in found[1:-1] if word)
        assert found[0] in bytes(text)
        assert all(word in bytes(text) for word in found) == (label == 0)


def test_gpt_rates(tmp_path):
    numbers = found("gpt_rates", tmp_path)["numbers"]
    cells = numbers["loss, difference to rate 0"]
    assert {len(each) for each in cells.values()} == {6}
    # Twenty steps cannot overfit: half of everything dropped is worse at fine-tuning.
    assert cells["500 characters, to the end"]["0.5"]["95 %"][0] > 0


def test_placement(tmp_path):
    numbers = found("placement", tmp_path)["numbers"]
    sites = load("common.sweep").SITES
    assert numbers["best single"] in sites
    # Each site is switched on: no two of them train alike.
    means = {numbers["training loss"][site]["mean"] for site in (*sites, "none")}
    assert len(means) == len(sites) + 1


def test_norm_order(tmp_path):
    losses = found("norm_order", tmp_path)["numbers"]["loss"]
    assert len({each["mean"] for each in losses.values()}) == 4  # order and warm-up both matter


def test_features(tmp_path):
    shape, causal, tokens, _ = found("features", tmp_path)["findings"]
    assert shape["verdict"] == causal["verdict"] == "holds"
    words = tokens["measured"].split()
    seen, characters = int(words[words.index("have") + 1]), int(words[words.index("for") + 1])
    assert seen == characters > 10
