"""BertModel of transformers, loaded into Encoder: the same hidden states, and the same training."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def bert(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples"), *sys.path])
    import bert

    return bert


def arrays_of(model):
    return {name: x.detach().numpy().copy() for name, x in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_hidden_states_are_those_of_bertmodel(bert, activation):
    import torch

    theirs = bert.random_model(hidden_act=activation).eval()
    rng = np.random.default_rng(0)
    for x in theirs.parameters():  # weights that matter, and biases that are not 0
        x.data += torch.from_numpy(rng.normal(0, 0.2, x.shape).astype("float32"))
    ours = bert.load(theirs.config, arrays_of(theirs))
    tokens, types = rng.integers(0, 100, (3, 12)), rng.integers(0, 2, (3, 12))
    is_token = np.arange(12) < np.array([[12], [7], [1]])
    arguments = [torch.from_numpy(x) for x in (tokens, is_token.astype(int), types)]
    with torch.no_grad():
        expected = theirs(*arguments).last_hidden_state.numpy()
    actual = ours(jnp.asarray(tokens), jnp.asarray(types), jnp.asarray(is_token), key=None)
    np.testing.assert_allclose(np.asarray(actual)[is_token], expected[is_token], atol=1e-5)


@pytest.mark.slow
def test_training_is_in_lockstep_with_the_same_masks(bert):
    theirs = bert.random_model(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3)
    ours = bert.load(theirs.config, arrays_of(theirs))
    losses = np.array(bert.train_in_lockstep(theirs, ours, 20))
    np.testing.assert_allclose(losses[:, 1], losses[:, 0], rtol=1e-5)
    assert losses[-1, 0] < losses[0, 0]


@pytest.mark.slow
def test_each_rate_is_at_its_sites(bert):
    config = bert.random_model(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3).config
    masks = bert.draw_masks(config, jax.random.key(0), 8, 30)
    for name, mask in masks.items():
        rate = 0.3 if name.endswith("F.dropout") else 0.2
        assert abs(1 - mask.mean() - rate) < 4.9 * (rate * (1 - rate) / mask.size) ** 0.5


def test_a_missing_array_is_an_error(bert):
    theirs = bert.random_model()
    with pytest.raises(KeyError):
        bert.load(theirs.config, {"embeddings.word_embeddings.weight": np.zeros((100, 32))})
