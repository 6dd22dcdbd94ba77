"""Interactions of dropout with weight decay, early stopping, label smoothing, norms, augmentation.

An MLP of two hidden layers of 128 units, dropout on both at rate 0.5, learns 500 MNIST digits of 14
x 14 pixels by 2,000 steps of AdamW (at 1e-3, batches of 32). No partner's strength was tuned. Norms
come before each ReLU; batch norm evaluates with the statistics of the training set in training
mode, the limit of running averages. Early stopping takes the best of ten evaluations by the
accuracy on 500 validation digits; the test accuracy is that of 2,000 others. The interaction is
(both - partner) - (dropout - neither), seed by seed: 0 if gains add up. That dropout can be left
out holds if the interval of its gain is below half a point. A seed decides the split, initial
weights and batches. (A first trial took 1,000 steps and eight seeds, too few.)
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim, data
from common.claim import Finding, Interval, Result, describe, intervals, verdict
from common.nets import accuracy, batch_norm, fit_and_evaluate, mlp_init, normed_mlp, run_grid
from dropout_jax import fold

NORMS = (lambda x, *_: x, lambda x, *_: jax.nn.standardize(x, axis=-1), batch_norm)
NONE, LAYER, BATCH = range(3)
STILL, NEEDLESS = "Dropout still helps beside {}", "Beside {} dropout can be left out"
HERNANDEZ = '"Data augmentation instead of explicit regularization", 2018'
PARTNERS = {  # decoupled weight decay (e^-1 over the run), label smoothing, norm, pixels of shift
    "early stopping": (0, 0, NONE, 0, STILL, "Goodfellow et al., Deep Learning, 2016, section 7.8"),
    "weight decay": (0.5, 0, NONE, 0, STILL, "Srivastava et al., JMLR 2014, table 9"),
    "label smoothing": (0, 0.1, NONE, 0, STILL, "Szegedy et al., CVPR 2016, who use both"),
    "layer norm": (0, 0, LAYER, 0, STILL, "Vaswani et al., NeurIPS 2017, who use both"),
    "batch norm": (0, 0, BATCH, 0, NEEDLESS, 'Ioffe and Szegedy, "Batch normalization", ICML 2015'),
    "augmentation": (0, 0, NONE, 1, NEEDLESS, f"Hernández-García and König, {HERNANDEZ}"),
}
GAINS = ("dropout's gain alone", "dropout's gain beside", "interaction")
CELLS = ("neither", "dropout", "partner", "both", *GAINS)


def experiment(scale: claim.Scale) -> Result:
    steps, bar = scale.pick(60, 2000, 2000), scale.track(range(scale.pick(3, 12, 20)), "seeds")
    validation, test = run_grid(make_run(steps), bar, range(len(PARTNERS)), (0.0, 0.5))
    last = dict(zip(PARTNERS, test[..., -1].swapaxes(0, 1), strict=True))  # (seed, dropout)
    without, best = last["early stopping"], validation[:, 0].argmax(-1)[..., None]
    last["early stopping"] = np.take_along_axis(test[:, 0], best, -1)[..., 0]
    tables = {partner: gain_table(without, last[partner]) for partner in PARTNERS}
    return Result(findings(tables), picture(tables), {"steps": steps, "accuracy": tables})


def make_run(steps: int):
    """The run of a seed, a partner and a rate: validation and test accuracy at every look."""
    images, labels = data.load_all_mnist()
    images = data.downsample(images)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1)))
    images = images.reshape(len(images), -1)
    columns = list(zip(*PARTNERS.values(), strict=True))[:4]

    def run(seed, partner, rate):
        key, rates = jax.random.key(seed), (rate, rate)
        decay, smoothing, norm, pixels = (jnp.array(each)[partner] for each in columns)
        options = {"norm": jax.tree_util.Partial(jax.lax.switch, norm, NORMS)}
        order = jax.random.permutation(fold(key, "images"), len(images))
        train, validation, test = jnp.split(order[:3000], (500, 1000))
        params = mlp_init(fold(key, "weights"), (196, 128, 128, 10))

        def loss(params, rows, key):
            rows, shift = train[rows], fold(key, "shift")
            corners = 1 + jax.random.randint(shift, (len(rows), 2), -pixels, pixels + 1)
            x = data.crops(padded, rows, corners, 14).reshape(len(rows), -1)
            logits, _ = normed_mlp(params, x, rates, key=fold(key, "net"), **options)
            targets = optax.smooth_labels(jax.nn.one_hot(labels[rows], 10), smoothing)
            return optax.softmax_cross_entropy(logits, targets).mean()

        def evaluate(params):
            statistics = normed_mlp(params, images[train], rates, key=fold(key, "look"), **options)[
                1
            ]

            def right(rows):
                logits, _ = normed_mlp(params, images[rows], rates, statistics, key=None, **options)
                return accuracy(logits, labels[rows])

            return right(validation), right(test)

        fitting = {"steps": steps, "batch_size": 32, "tx": optax.adamw(1e-3, weight_decay=decay)}
        return fit_and_evaluate(
            loss, params, len(train), fold(key, "fit"), evaluate, evaluations=10, **fitting
        )[1]

    return run


def gain_table(without, beside) -> dict[str, Interval]:
    """Of accuracies by seed, dropout off and on: the cells, what dropout gains, the interaction."""
    gain, gain_beside = without[:, 1] - without[:, 0], beside[:, 1] - beside[:, 0]
    columns = [*without.T, *beside.T, gain, gain_beside, gain_beside - gain]
    return intervals(np.stack(columns, 1), CELLS)


def findings(tables) -> list[Finding]:
    """Of every partner, with the claim and the source of PARTNERS."""
    results = []
    for partner, cells in tables.items():
        (*_, text, source), gain = PARTNERS[partner], cells["dropout's gain beside"]
        holds = gain.positive if text is STILL else gain.high < claim.NEGLIGIBLE
        measured = f"test accuracy, {describe(cells, '.2%')}"
        results.append(Finding(text.format(partner), source, measured, verdict(holds)))
    return results


def picture(tables) -> Figure:
    """Dropout's gain beside each partner, and the interaction."""
    figure, panels = charts.panels(6.5, 5.5)
    titles = ("what dropout gains beside ... (band: alone)", "interaction (0: gains add up)")
    for axes, name, title in zip(panels, GAINS[1:], titles, strict=True):
        cells = {partner: cells[name].percent() for partner, cells in tables.items()}
        charts.forest(axes, cells, xlabel="test accuracy, points", title=title)
    _, low, high = next(iter(tables.values()))["dropout's gain alone"].percent()
    panels[0].axvspan(low, high, color="C0", alpha=0.2)
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
