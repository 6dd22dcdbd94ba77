"""Baselines for a text classifier: the most frequent class, and logistic regression on tf-idf."""

from __future__ import annotations

from collections import Counter

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from minigpt.tasks.classification.data import LabelledSplit
from minigpt.tasks.classification.metrics import macro_f1

REGULARIZATION = (0.1, 1.0, 10.0)  # scikit-learn's C: a larger value regularizes less
VOCABULARY = 20_000  # the most frequent words and word pairs


def majority(data: LabelledSplit) -> list[str]:
    """Predict the most frequent label of the training part for every text of the test part."""
    return [Counter(data.train.labels).most_common(1)[0][0]] * len(data.test.texts)


def tfidf(data: LabelledSplit, class_weights: str = "none") -> list[str]:
    """Predict the labels of the test part by logistic regression on tf-idf of words and word pairs.

    The strength of the regularization is the one with the best macro-F1 on the validation part.
    """
    # A word or one punctuation mark; scikit-learn's default pattern ignores single letters.
    pattern, words_and_pairs = r"\w+|[^\w\s]", (1, 2)
    vectorizer = TfidfVectorizer(
        ngram_range=words_and_pairs,
        sublinear_tf=True,
        token_pattern=pattern,
        max_features=VOCABULARY,
    )
    train = vectorizer.fit_transform(data.train.texts)
    validation = vectorizer.transform(data.validation.texts)
    test = vectorizer.transform(data.test.texts)
    class_weight = "balanced" if class_weights == "balanced" else None
    models = [
        LogisticRegression(C=strength, max_iter=1000, class_weight=class_weight)
        for strength in REGULARIZATION
    ]
    fitted = [model.fit(train, data.train.labels) for model in models]
    labels = data.validation.labels
    best = max(fitted, key=lambda model: macro_f1(labels, model.predict(validation)))
    return best.predict(test).tolist()
