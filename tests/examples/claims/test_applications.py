"""The applications: their data, searches and masks, and each script in its smallest form."""

import datetime

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments import load, run_smallest
from flax import nnx


@pytest.fixture(scope="module")
def seq2seq():
    return load("seq2seq")


@pytest.fixture(scope="module")
def masked_lm():
    return load("encoder_masked_lm")


def decode(seq2seq, ids):
    return ["".join(seq2seq.CHARACTERS[i] for i in row).rstrip("\0") for row in ids]


def test_a_date_is_written_in_48_ways_and_none_is_another_date(seq2seq):
    assert len(set(seq2seq.FORMS)) == len(seq2seq.FORMS) == 48
    texts = {seq2seq.write(datetime.date(1998, 3, 3), form) for form in seq2seq.FORMS}
    assert {"3 March 1998", "the 3rd of March, 1998", "3.III.1998", "Mar 3rd, 98"} <= texts
    assert {"1998/3/3", "19980303", "03-MAR-98", "Tue, Mar 3, 1998"} <= texts
    dates = {}
    for i in range(400):
        date = datetime.date(2001, 1, 1) + datetime.timedelta(i)
        for form in seq2seq.FORMS:
            text = seq2seq.write(date, form)
            assert dates.setdefault(text, date) == date
            assert len(text) <= seq2seq.SOURCE
    assert len(dates) > 400 * 36


def test_new_dates_and_new_combinations_are_not_in_training(seq2seq):
    sets = seq2seq.make_sets(0, 3000, 300)
    texts = {name: [decode(seq2seq, side) for side in pair] for name, pair in sets.items()}
    assert not set(texts["train"][1]) & set(texts["new dates"][1])

    def combinations(name):
        """Form and month of each text that only one form gives."""
        for text, target in zip(*texts[name], strict=True):
            date = datetime.date.fromisoformat(target)
            forms = [form for form in seq2seq.FORMS if seq2seq.write(date, form) == text]
            assert forms
            if len(forms) == 1:
                yield forms[0], date.month

    trained, new = set(combinations("train")), set(combinations("new combinations"))
    assert len(trained) > 300
    assert len(new) > 60
    assert not trained & new


def make_model(seq2seq):
    model = seq2seq.Seq2Seq(1, 8, 0.5, nnx.Rngs(params=0))
    model.out.kernel[...] *= 3.0  # less uniform
    model.out.bias[...] = model.out.bias[...].at[seq2seq.END].set(5.0)  # some targets end early
    return model


def log_probabilities(model, source, target):
    """Of each character of the targets, by the whole model without caches."""
    return jax.nn.log_softmax(model(source, target))


@pytest.mark.slow
def test_a_beam_of_one_is_greedy_and_scores_are_the_models(seq2seq):
    """The search has caches that follow their beams; the model sees each target as a whole."""
    model, source = make_model(seq2seq), jnp.asarray(seq2seq.make_sets(1, 3, 0)["train"][0])
    for width in (1, 4):
        ids, scores = seq2seq.beam_search(model, source, width)
        flat = ids.reshape(-1, seq2seq.TARGET)
        log_p = log_probabilities(model, jnp.repeat(source, width, 0), flat)
        is_end = np.asarray(flat == seq2seq.END)
        assert is_end[:, :-1].any()
        before_end = np.cumsum(is_end, axis=1) == is_end  # and the end itself
        of_ids = jnp.take_along_axis(log_p, flat[..., None], 2)[..., 0]
        expected = jnp.where(before_end, of_ids, 0.0).sum(1)
        np.testing.assert_allclose(scores.ravel(), expected, rtol=1e-4)
        if width == 1:
            greedy = jnp.where(before_end, log_p.argmax(-1), seq2seq.END)
            np.testing.assert_array_equal(flat, greedy)


@pytest.mark.slow
def test_a_wider_beam_is_never_worse_on_two_characters_and_the_widest_finds_the_best(
    seq2seq, monkeypatch
):
    """On two characters the beams are nested; in general a wider beam may lose a prefix."""
    monkeypatch.setattr(seq2seq, "TARGET", 2)
    model, size = make_model(seq2seq), seq2seq.SIZE
    source = jnp.asarray(seq2seq.make_sets(1, 4, 0)["train"][0])
    scores = [seq2seq.beam_search(model, source, width)[1][:, 0] for width in (1, 3, size)]
    assert (scores[1] >= scores[0] - 1e-5).all()
    assert (scores[1] > scores[0] + 1e-5).any()
    first = jnp.repeat(jnp.arange(size)[:, None], 2, 1)
    for row, best in zip(source, scores[-1], strict=True):
        log_p = log_probabilities(model, jnp.tile(row, (size, 1)), first)
        both = log_p[0, 0][:, None] + log_p[:, 1]
        both = both.at[seq2seq.END].set(log_p[0, 0, seq2seq.END])
        np.testing.assert_allclose(best, both.max(), rtol=1e-4)


@pytest.mark.claims
def test_seq2seq(tmp_path):
    numbers = run_smallest("seq2seq", tmp_path)["numbers"]
    for cells in numbers.values():
        assert len(cells) == 2 * len(load("seq2seq").SETTINGS)


@pytest.mark.slow
def test_bert_masks_15_percent_80_10_10(masked_lm, key):
    """4,000 words: standard deviations of 25 and 19, bounds at 4.9 of them."""
    ids = jnp.asarray(np.random.default_rng(0).integers(2, masked_lm.WORDS, (400, 64)))
    masked, positions = masked_lm.mask_words(ids, key)
    assert positions.shape == (400, 10)
    assert all(len(set(row.tolist())) == 10 for row in positions)
    is_chosen = (positions[:, :, None] == jnp.arange(64)).any(1)
    assert (masked == ids)[~is_chosen].all()
    new, old = masked[is_chosen], ids[is_chosen]
    assert abs(int((new == masked_lm.MASK).sum()) - 3200) < 124
    assert abs(int((new == old).sum()) - 400) < 93
    others = new[(new != masked_lm.MASK) & (new != old)]
    assert others.min() > masked_lm.UNKNOWN
    assert len(set(others.tolist())) > 300


@pytest.mark.slow
def test_the_loss_is_of_the_chosen_words_only(masked_lm, key):
    """Another word at a position that is not chosen is another input, but not another label."""
    model = masked_lm.MaskedLM(1, 8, 0.0, 0.0, nnx.Rngs(params=0))
    model.encoder.blocks = nnx.List([])  # positions do not see each other
    ids = jnp.full((1, 64), 5)
    _, positions = masked_lm.mask_words(ids, key)
    chosen = int(positions[0, 0])
    other = next(i for i in range(64) if i not in positions[0].tolist())
    losses = [float(model.loss(ids.at[0, i].set(7), key)) for i in (chosen, other)]
    assert losses[1] == float(model.loss(ids, key)) != losses[0]


def test_passages_of_the_test_are_of_other_plays(masked_lm):
    passages = {name: np.full((3, 64), i) for i, name in enumerate(masked_lm.play_folders())}
    (train, labels), (test, truth) = (
        masked_lm.label_passages(passages, is_test, 2) for is_test in (False, True)
    )
    assert not set(train[:, 0]) & set(test[:, 0])
    assert len(test) == len(truth) == 2 * len(masked_lm.TEST)
    assert set(labels) == set(truth) == {"comedy", "history", "tragedy"}


@pytest.mark.claims
def test_encoder_masked_lm(tmp_path):
    numbers = run_smallest("encoder_masked_lm", tmp_path)["numbers"]
    assert set(numbers["loss"]) == {"untrained", *load("encoder_masked_lm").SETTINGS}
