"""Active learning: which digits to label next, by BALD, by entropy, or at random.

An MLP of 784, 128, 128 and 10 with dropout 0.5 on both hidden layers starts from 20 labels, two of
each digit, acquires 10 more in each round, and is trained from scratch each time: 500 steps of 32,
Adam at 1e-3 (with random labels, three times 200 steps gained nothing at 20 labels and 2 points at
300). The pool has 2,000 of MNIST's digits, the test set 1,000 others. BALD takes the largest mutual
information of 10 MC dropout passes; entropy, the largest entropy of the softmax without dropout.
The strategies of a seed share split, first labels, initial weights and masks.
"""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim, data, nets
from common.claim import by_cell, interval
from dropout_jax import fold, mc_dropout, mutual_information, predictive_entropy

RATE, FIRST, MORE = 0.5, 20, 10
STRATEGIES: tuple[str, ...] = ("random", "BALD", "entropy")


def experiment(scale: claim.Scale) -> claim.Result:
    """Run every strategy from every seed."""
    seeds, rounds, steps, passes = scale.pick((3, 3, 20, 3), (7, 20, 500, 10), (10, 99, 1000, 50))
    one = functools.partial(run_strategy, rounds=rounds, steps=steps, passes=passes)
    every, accuracies_by_seed = jax.vmap(one, (None, None, None, None, 0)), []
    for seed in scale.track(range(seeds), "seeds"):
        part, key = data.load_mnist(2000, seed), jax.random.key(seed)
        pool, test = (part.x_train, part.y_train), (part.x_test[:1000], part.y_test[:1000])
        first = jnp.asarray(pick_first_labels(np.asarray(part.y_train), seed), jnp.int32)
        accuracies_by_seed.append(
            np.asarray(every(pool, test, first, key, jnp.arange(len(STRATEGIES)))[0])
        )
    accuracies, labels = np.array(accuracies_by_seed), FIRST + MORE * np.arange(rounds)
    numbers = {"labels": labels, "strategies": STRATEGIES, "accuracy": accuracies}
    return claim.Result(findings(accuracies, labels), picture(accuracies, labels), numbers)


def pick_first_labels(y, seed: int):
    """Rows of the pool: two of each digit."""
    order = np.random.default_rng(seed).permutation(len(y))
    return np.concatenate([order[y[order] == digit][: FIRST // 10] for digit in range(10)])


def acquisition_scores(layers, x, key, passes: int):
    """Each strategy's score of each image; the highest are labelled next."""
    samples = mc_dropout(lambda k: jax.nn.softmax(nets.mlp(layers, x, RATE, key=k)), key, passes)
    softmax = jax.nn.softmax(nets.mlp(layers, x, RATE, key=None))
    random = jax.random.uniform(fold(key, "random"), (len(x),))
    return jnp.stack([random, mutual_information(samples), predictive_entropy(softmax[None])])


def acquired(score, labelled, count):
    """The `MORE` rows with the highest score that are not among the first `count` labelled ones."""
    known = jnp.where(jnp.arange(len(labelled)) < count, labelled, len(score))
    return jax.lax.top_k(score.at[known].set(-jnp.inf, mode="drop"), MORE)[1]


@functools.partial(jax.jit, static_argnames=("rounds", "steps", "passes"))
def run_strategy(pool, test, first, key, strategy, rounds: int, steps: int, passes: int):
    """Test accuracy of every round, and the rows that were labelled, in order."""
    (x, y), (x_test, y_test) = pool, test
    labelled = jnp.zeros(FIRST + MORE * rounds, jnp.int32).at[:FIRST].set(first)

    def one_round(labelled, i):
        key_of, count = fold(key, "round", i), FIRST + MORE * i.astype(jnp.int32)

        def loss(layers, rows, key):
            rows = labelled[rows]
            return nets.cross_entropy(nets.mlp(layers, x[rows], RATE, key=key), y[rows])

        layers = nets.mlp_init(fold(key_of, "init"), (x.shape[1], 128, 128, 10))
        layers = nets.fit(loss, layers, count, fold(key_of, "fit"), steps=steps, batch_size=32)
        more = acquired(
            acquisition_scores(layers, x, fold(key_of, "ask"), passes)[strategy], labelled, count
        )
        labelled = jax.lax.dynamic_update_slice(labelled, more, (count,))
        return labelled, nets.accuracy(nets.mlp(layers, x_test, RATE, key=None), y_test)

    labelled, accuracies = jax.lax.scan(one_round, labelled, jnp.arange(rounds, dtype=jnp.uint32))
    return accuracies, labelled


def findings(accuracies, labels) -> list[claim.Finding]:
    """Differences of the mean accuracy over the first, middle and last third of the rounds."""
    of = dict(zip(STRATEGIES, np.moveaxis(accuracies, 1, 0), strict=True))
    thirds = np.array_split(np.arange(1, len(labels)), min(3, len(labels) - 1))
    parts = {f"{labels[rows[0]]} to {labels[rows[-1]]} labels": rows for rows in thirds}
    source = "Gal, Islam and Ghahramani, Deep Bayesian active learning with image data, ICML 2017"

    def against(other: str, text: str) -> claim.Finding:
        gain = of["BALD"] - of[other]
        gains = {name: interval(gain[:, rows].mean(1)) for name, rows in parts.items()}
        return by_cell(text, source, f"Accuracy of BALD minus {other}", gains, "there are", ".1%")

    mutual = "Labels chosen by BALD, the mutual information of MC dropout, are worth more than"
    return [
        against("random", f"{mutual} labels chosen at random"),
        against("entropy", "BALD chooses better than the entropy of a softmax without MC dropout"),
    ]


def picture(accuracies, labels) -> Figure:
    """Accuracy, (seeds, strategies, rounds), against labels."""
    figure, (axes,) = charts.panels(7.5)
    columns = zip(STRATEGIES, np.moveaxis(accuracies, 1, 0), strict=True)
    curves = {name: [interval(column) for column in each.T] for name, each in columns}
    charts.lines(
        axes, labels, curves, spacing=1.5, xlabel="labelled images", ylabel="test accuracy"
    )
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
