"""The genre's scripts: no play in training and test, and verdicts that follow from the numbers."""

import jax
import numpy as np
import pytest
from experiments import load, run_smallest

from minigpt.data import shakespeare
from minigpt.tasks.classification import shakespeare_genres as speeches
from minigpt.tasks.classification.data import LabelledSplit, LabelledTexts

pytestmark = pytest.mark.claims


@pytest.fixture(scope="module")
def genre():
    return load("genre")


@pytest.fixture(scope="module")
def rates():
    return load("genre_head_rates")


def make_scores(names, **gains):
    """Five seeds of macro-F1 about 0.4, with noise that all share; `gains` raise a name's."""
    seeds = np.random.default_rng(0).normal(0, 0.1, 5)
    noise = 0.002 * np.array([-2, -1, 0, 1, 2])
    each = [0.4 + seeds + noise * (i % 3) + gains.get(str(name), 0) for i, name in enumerate(names)]
    return {
        name: {"macro-F1": f1, "accuracy": 1 - f1} for name, f1 in zip(names, each, strict=True)
    }


def test_verdicts_follow_from_the_differences_seed_by_seed(genre):
    """The differences are far smaller than those between seeds."""
    names = [genre.PRETRAINED, genre.SCRATCH, genre.TFIDF, genre.MAJORITY, genre.DROPPING]

    def verdicts(**gains):
        values = make_scores(names, **gains)
        gained = {what: genre.gains(values, what) for what in ("macro-F1", "accuracy")}
        return [finding.verdict for finding in genre.findings(gained)]

    no, yes = "does not hold", "holds"
    assert verdicts() == [no] * 3
    assert verdicts(**{genre.SCRATCH: -0.1, genre.TFIDF: 0.1}) == [yes, no, no]
    assert verdicts(**{genre.SCRATCH: 0.1, genre.TFIDF: -0.1}) == [no, yes, no]
    assert verdicts(**{genre.DROPPING: 0.1}) == [no, no, yes]
    assert verdicts(**{genre.DROPPING: -0.1}) == [no] * 3


def test_a_rate_is_compared_with_no_dropout_of_the_same_seed(rates):
    def finding(**gains):
        gained = rates.gains(make_scores([rates.NONE, "0.1", "0.3"], **gains), "macro-F1")
        return rates.findings("head", gained)[0]

    assert finding().verdict == "does not hold"
    one = finding(**{"0.3": 0.1, "0.1": -0.1})
    assert one.verdict == "holds only when the rate is 0.3 (not 0.1)"
    assert "0.3: +0.1" in one.measured
    assert "0.1: -0.1" in one.measured
    assert finding(**{rates.NONE: -0.1}).verdict == "holds"


def test_the_body_is_pretrained_without_the_test(monkeypatch):
    """The text of the pretraining contains no speech of the test plays."""
    speech, passed = load("common.speech"), {}

    def train(training, config, text, **_):
        passed["text"] = text
        raise InterruptedError

    monkeypatch.setattr(speech, "train", train)
    monkeypatch.setattr(speech, "compile_steps", lambda *_: None)
    with pytest.raises(InterruptedError), jax.numpy_dtype_promotion("standard"):
        speech.pretrain(1)
    read = passed["text"].tokenizer.decode(passed["text"].train)
    plays = shakespeare.load_plays()
    assert len(read) == sum(len(text) for name, text in plays.items() if name not in speech.TEST)
    test = speeches.load_genres(test=speech.TEST).test.texts
    assert len(test) > 1500
    assert not any(text in read for text in test[::20] if len(text) > 100)


def test_a_seed_draws_its_own_training_speeches_and_the_same_others():
    speech = load("common.speech")
    data = speeches.load_genres(test=speech.TEST)
    one, two = (speech.sample(data, seed, (100, 50, 50)) for seed in (0, 1))
    assert one.train != two.train
    assert one[1:] == two[1:]
    assert max(map(len, one.train.texts)) <= speech.LENGTH


def test_labels_are_measured_against_the_test():
    speech, three = load("common.speech"), LabelledTexts(["x"] * 3, ["a", "b", "c"])
    data = LabelledSplit(three, three, LabelledTexts(["x"] * 4, ["a", "a", "b", "c"]))
    measured = speech.score_labels(data, ["a", "b", "b", "b"])
    # F1: a 2 * 1 * 1/2 / (3/2) = 2/3; b 2 * 1/3 * 1 / (4/3) = 1/2; c 0.
    assert measured == pytest.approx({"macro-F1": (2 / 3 + 1 / 2) / 3, "accuracy": 1 / 2})


def test_the_smallest_form(genre, tmp_path):
    table = run_smallest("genre", tmp_path)["numbers"]["table"]
    numbers = {row["classifier"]: row for row in table}
    assert len(numbers) == 5
    # Three classes and always the same one: its recall is 1, and its precision its share p, so that
    # the macro-F1 is 2p / (1 + p) / 3.
    majority = numbers[genre.MAJORITY]
    share, f1 = (float(majority[name].split()[0]) for name in ("accuracy", "macro-F1"))
    assert f1 == pytest.approx(2 * share / (1 + share) / 3, abs=2e-3)


def test_the_smallest_form_of_the_rates_in_the_body(rates, tmp_path, monkeypatch):
    """Training uses the cell's rates, and all cells of a seed use the same speeches."""
    passed, fit = [], rates.fit

    def record_and_fit(body, data, settings):
        passed.append((settings.head_dropout, settings.dropout, settings.seed, data))
        return fit(body, data, settings)

    monkeypatch.setattr(rates, "fit", record_and_fit)
    cells = [(0.0, 0.0), *((0.0, rate) for rate in rates.RATES)]
    table = run_smallest("genre_body_rates", tmp_path)["numbers"]["table"]
    assert len(table) == len(cells)
    assert [(head, body) for head, body, *_ in passed] == cells * 2
    for seed in range(2):
        speeches_of = [data for *_, of, data in passed if of == seed]
        assert len(speeches_of) == len(cells)
        assert all(data == speeches_of[0] for data in speeches_of)


def test_the_smallest_form_of_the_rates_in_the_head(rates, tmp_path):
    table = run_smallest("genre_head_rates", tmp_path)["numbers"]["table"]
    assert [row["classifier"] for row in table] == [rates.NONE, *map(str, rates.RATES)]
