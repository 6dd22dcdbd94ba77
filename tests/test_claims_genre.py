"""The genre's script: no play on both sides, and verdicts that follow from the numbers."""

import jax
import numpy as np
import pytest
from experiments import found, load

from minigpt import corpus, speeches

pytestmark = pytest.mark.claims


@pytest.fixture(scope="module")
def genre():
    return load("genre")


def table(genre, **gains):
    """Five seeds of macro-F1 about 0.4; `gains` raise a cell's."""
    noise = np.random.default_rng(0).normal(0, 0.002, (5, 2))
    names = [*genre.CELLS, genre.SCRATCH, genre.TFIDF, genre.MAJORITY]
    return {name: 0.4 + noise * (i % 3) + gains.get(str(name), 0) for i, name in enumerate(names)}


def test_verdicts_follow_from_the_differences_seed_by_seed(genre):
    for gain, verdict in ((0.1, "holds"), (0.0, "does not hold"), (-0.1, "does not hold")):
        findings = genre.findings(table(genre, **{"(0.1, 0.0)": gain}))
        assert findings[0].verdict == verdict
        assert f"{gain:+.3f}"[:4] in findings[0].measured or gain == 0
    worse = genre.findings(table(genre, **{genre.SCRATCH: -0.1, genre.TFIDF: 0.1}))
    assert [finding.verdict for finding in worse[3:]] == ["holds", "does not hold"]


def test_the_body_has_not_read_the_test(monkeypatch):
    """What the pretraining is given holds no speech of the test's plays."""
    speech, given = load("common.speech"), {}

    def train(training, config, text, **_):
        given["text"] = text
        raise InterruptedError

    monkeypatch.setattr(speech, "train", train)
    monkeypatch.setattr(speech, "compiled", lambda *_: None)
    with pytest.raises(InterruptedError), jax.numpy_dtype_promotion("standard"):
        speech.pretrained(1)
    read = given["text"].tokenizer.decode(given["text"].train)
    plays = corpus.plays()
    assert len(read) == sum(len(text) for name, text in plays.items() if name not in speech.TEST)
    test = speeches.genres(test=speech.TEST).test.texts
    assert len(test) > 1500
    assert not any(text in read for text in test[::20] if len(text) > 100)


def test_a_seed_draws_its_own_training_speeches_and_the_same_others():
    speech = load("common.speech")
    data = speeches.genres(test=speech.TEST)
    one, two = (speech.sample(data, seed, (100, 50, 50)) for seed in (0, 1))
    assert one.train != two.train
    assert one[1:] == two[1:]
    assert max(map(len, one.train.texts)) <= speech.LENGTH


def test_the_smallest_form(genre, tmp_path):
    table = found("genre", tmp_path)["numbers"]["table"]
    numbers = {row["classifier"]: row for row in table}
    assert len(numbers) == len(genre.CELLS) + 3
    # Three classes and always the same one: its recall is 1, and its precision its share p, so that
    # the macro-F1 is 2p / (1 + p) / 3.
    majority = numbers[genre.MAJORITY]
    share, f1 = (float(majority[name].split()[0]) for name in ("accuracy", "macro-F1"))
    assert f1 == pytest.approx(2 * share / (1 + share) / 3, abs=2e-3)
