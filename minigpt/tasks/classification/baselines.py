"""What a classifier must beat: the commonest class, and logistic regression on tf-idf."""

from __future__ import annotations

from collections import Counter

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from minigpt.tasks.classification.data import LabelledSplit
from minigpt.tasks.classification.metrics import macro_f1

REGULARIZATION = (0.1, 1.0, 10.0)  # scikit-learn's C: the larger, the weaker
VOCABULARY = 20_000  # the commonest words and pairs


def majority(data: LabelledSplit) -> list[str]:
    """The training part's commonest label, for every text of the test."""
    return [Counter(data.train.labels).most_common(1)[0][0]] * len(data.test.texts)


def tfidf(data: LabelledSplit, class_weights: str = "none") -> list[str]:
    """Labels of the test by logistic regression on tf-idf of words and pairs of words.

    The strength of its regularization is the best by the validation part's macro-F1.
    """
    # A word, or one mark: scikit-learn's own pattern finds nothing in a text of single letters.
    pattern, pairs = r"\w+|[^\w\s]", (1, 2)
    words = TfidfVectorizer(
        ngram_range=pairs, sublinear_tf=True, token_pattern=pattern, max_features=VOCABULARY
    )
    train = words.fit_transform(data.train.texts)
    validation, test = (words.transform(p.texts) for p in (data.validation, data.test))
    balanced = "balanced" if class_weights == "balanced" else None
    models = [
        LogisticRegression(C=strength, max_iter=1000, class_weight=balanced)
        for strength in REGULARIZATION
    ]
    fitted = [model.fit(train, data.train.labels) for model in models]
    truth = data.validation.labels
    best = max(fitted, key=lambda model: macro_f1(truth, model.predict(validation)))
    return best.predict(test).tolist()
