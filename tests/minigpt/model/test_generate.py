"""Sampling: what each option lets through."""

import jax.numpy as jnp
import numpy as np
import pytest

from minigpt.model.generate import generate_ids

PROBABILITIES = np.array([0.5, 0.25, 0.15, 0.1])


def by_position(params, window):
    """Always the same distribution, so options can be counted."""
    return jnp.broadcast_to(jnp.log(jnp.asarray(PROBABILITIES)), (1, window.shape[1], 4))


def draw(**options):
    settings = {"tokens": 400, "block_size": 4, "vocab_size": 4} | options
    return list(generate_ids(by_position, None, np.array([0]), **settings))


def test_draws_follow_the_distribution():
    counts = np.bincount(draw(tokens=2000), minlength=4)
    sd = np.sqrt(2000 * PROBABILITIES * (1 - PROBABILITIES))
    assert (abs(counts - 2000 * PROBABILITIES) < 4.9 * sd).all()


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"temperature": 0}, {0}),
        ({"top_k": 1}, {0}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 9}, {0, 1, 2, 3}),
        ({"top_p": 0.4}, {0}),
        ({"top_p": 0.6}, {0, 1}),
        ({"top_p": 0.8}, {0, 1, 2}),
        ({"top_p": 1.0}, {0, 1, 2, 3}),
        ({"vocab_size": 3}, {0, 1, 2}),
    ],
    ids=str,
)
def test_options_keep_the_likeliest(options, allowed):
    assert set(draw(**options)) == allowed


def test_low_temperature_sharpens():
    assert draw(temperature=0.2).count(0) > draw().count(0) + 50


def test_the_seed_decides():
    assert draw(seed=1) == draw(seed=1) != draw(seed=2)


def test_the_window_slides():
    lengths = []

    def echo(params, window):  # the likeliest next id is the last id plus one
        ids = np.asarray(window)[0]
        lengths.append(len(ids))
        return jnp.asarray(np.eye(50)[(ids + 1) % 50])[None]

    prompt = np.arange(10)
    ids = generate_ids(echo, None, prompt, tokens=20, block_size=4, vocab_size=50, temperature=0)
    assert list(ids) == list(range(10, 30))
    assert set(lengths) == {4}


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
        {"seed": 2**32},
        {"seed": np.int64(2**32 + 1)},
        {"seed": 0.5},
    ],
    ids=str,
)
@pytest.mark.usefixtures("without_type_checker")
def test_bad_options_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}="):
        draw(**options)


def test_an_empty_prompt_is_an_error():
    with pytest.raises(ValueError, match="prompt"):
        list(generate_ids(by_position, None, np.array([]), tokens=1, block_size=4, vocab_size=4))
