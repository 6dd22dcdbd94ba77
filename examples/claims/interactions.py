"""Interactions: dropout beside weight decay, early stopping, label smoothing, norms, augmentation.

An MLP of two hidden layers of 128 units learns 500 MNIST digits of 14 x 14 pixels by 2,000 steps of
AdamW (at 1e-3, batches of 32). Dropout is on both hidden layers at rate 0.5. Each partner has one
strength that was not tuned: decoupled weight decay of 0.5 (over the run e^-1), label smoothing of
0.1, layer or batch norm before each ReLU, augmentation by shifts of up to one pixel, and early
stopping at that of ten looks whose accuracy on 500 digits for validation was the best. Batch norm
evaluates with the statistics of the training set in training mode, the limit of running averages.
Accuracy is that of 2,000 other digits. The interaction is the difference of differences, (both -
partner) - (dropout - neither), seed by seed: 0 if gains add up, below 0 if one does for the other.
That dropout can be left out holds where its gain's interval is below half a point. A seed decides
the split, initial weights and batches. (A first trial took 1,000 steps, too few for dropout with
augmentation, and eight seeds.)
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from common import claim, data
from common.claim import Finding, Result, interval, verdict
from common.nets import accuracy, dense, fit_looking, grid, mlp_init
from dropout_jax import dropout, fold

RATE, LOOKS = 0.5, 10
NONE, LAYER, BATCH = range(3)  # norms
# Partners: weight decay, label smoothing, norm, pixels of shift.
SETTINGS = {
    "nothing": (0.0, 0.0, NONE, 0),
    "weight decay": (0.5, 0.0, NONE, 0),
    "label smoothing": (0.0, 0.1, NONE, 0),
    "layer norm": (0.0, 0.0, LAYER, 0),
    "batch norm": (0.0, 0.0, BATCH, 0),
    "augmentation": (0.0, 0.0, NONE, 1),
}
SRIVASTAVA = "Srivastava et al., JMLR 2014, table 9"
STILL, NEEDLESS = "Dropout still helps beside {}", "Beside {} dropout can be left out"
CLAIMS = {  # what is said, and where
    "weight decay": (STILL, SRIVASTAVA),
    "early stopping": (STILL, "Goodfellow et al., Deep Learning, 2016, section 7.8"),
    "label smoothing": (STILL, "Szegedy et al., CVPR 2016, who use both"),
    "layer norm": (STILL, "Vaswani et al., NeurIPS 2017, who use both"),
    "batch norm": (NEEDLESS, 'Ioffe and Szegedy, "Batch normalization", ICML 2015'),
    "augmentation": (
        NEEDLESS,
        'Hernández-García and König, "Data augmentation instead of explicit regularization", 2018',
    ),
}


def experiment(scale: claim.Scale) -> Result:
    steps, seeds = scale.pick(60, 2000, 2000), range(scale.pick(3, 12, 20))
    bar = scale.track(seeds, "seeds")
    validation, test = grid(run_of(steps), bar, range(len(SETTINGS)), (0.0, RATE))
    last = dict(zip(SETTINGS, test[..., -1].swapaxes(0, 1), strict=True))  # (seed, dropout)
    best = validation[:, 0].argmax(-1)[..., None]
    last["early stopping"] = np.take_along_axis(test[:, 0], best, -1)[..., 0]
    tables = {partner: table(last["nothing"], last[partner]) for partner in CLAIMS}
    findings = [finding(partner, cells) for partner, cells in tables.items()]
    return Result(findings, picture(tables), {"steps": steps, "accuracy": tables})


def table(without, beside) -> dict[str, claim.Interval]:
    """The four cells, what dropout gains in either row, and the interaction."""
    gain, gain_beside = without[:, 1] - without[:, 0], beside[:, 1] - beside[:, 0]
    return {
        "neither": interval(without[:, 0]),
        "dropout": interval(without[:, 1]),
        "partner": interval(beside[:, 0]),
        "both": interval(beside[:, 1]),
        "dropout's gain alone": interval(gain),
        "dropout's gain beside": interval(gain_beside),
        "interaction": interval(gain_beside - gain),
    }


def finding(partner: str, cells) -> Finding:
    text, source = CLAIMS[partner]
    gain = cells["dropout's gain beside"]
    four = ", ".join(
        f"{name} {cells[name]:.1%}" for name in ("neither", "dropout", "partner", "both")
    )
    return Finding(
        text.format(partner),
        source,
        f"test accuracy: {four}; dropout's gain beside it {gain:+.2%}, "
        f"interaction {cells['interaction']:+.2%}",
        verdict(gain.positive if text is STILL else gain.high < claim.NEGLIGIBLE),
    )


def net(layers, x, rate, norm, statistics=None, *, key):
    """Logits, and the mean and variance of each hidden layer's input to batch norm.

    With `statistics`, as it returns them, batch norm takes those instead.
    """
    seen = []
    for i, layer in enumerate(layers[:-1]):
        x = dense(layer, x)
        seen.append((x.mean(0), x.var(0)))
        mean, variance = (statistics or seen)[i]
        norms = [
            lambda x: x,
            lambda x: jax.nn.standardize(x, axis=-1),
            lambda x, mean=mean, variance=variance: (x - mean) / jnp.sqrt(variance + 1e-5),
        ]
        x = jax.nn.relu(jax.lax.switch(norm, norms, x))
        x = dropout(x, rate, key=fold(key, "hidden", i))
    return dense(layers[-1], x), seen


def run_of(steps: int):
    """The run of a seed, a partner and a rate: validation and test accuracy at every look."""
    images, labels = data.all_mnist()
    images = data.halved(images)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1)))
    images = images.reshape(len(images), -1)
    settings = [jnp.array(column) for column in zip(*SETTINGS.values(), strict=True)]

    def shifted(rows, pixels, key):
        starts = 1 + jax.random.randint(key, (len(rows), 2), -pixels, pixels + 1)
        crop = jax.vmap(lambda row, start: jax.lax.dynamic_slice(padded[row], start, (14, 14)))
        return crop(rows, starts).reshape(len(rows), -1)

    def run(seed, partner, rate):
        key = jax.random.key(seed)
        decay, smoothing, norm, pixels = (column[partner] for column in settings)
        order = jax.random.permutation(fold(key, "images"), len(images))
        train, validation, test = jnp.split(order[:3000], (500, 1000))
        params = mlp_init(fold(key, "weights"), (196, 128, 128, 10))

        def loss(params, rows, key):
            rows = train[rows]
            x = shifted(rows, pixels, fold(key, "shift"))
            logits, _ = net(params, x, rate, norm, key=fold(key, "net"))
            targets = optax.smooth_labels(jax.nn.one_hot(labels[rows], 10), smoothing)
            return optax.softmax_cross_entropy(logits, targets).mean()

        def look(params):
            statistics = net(params, images[train], rate, norm, key=fold(key, "look"))[1]

            def right(rows):
                logits, _ = net(params, images[rows], rate, norm, statistics, key=None)
                return accuracy(logits, labels[rows])

            return right(validation), right(test)

        tx = optax.adamw(1e-3, weight_decay=decay)
        more = {"looks": LOOKS, "steps": steps, "batch_size": 32, "tx": tx}
        return fit_looking(loss, params, len(train), fold(key, "fit"), look, **more)[1]

    return run


def picture(tables) -> Figure:
    """Dropout's gain alone and beside each partner, and the interaction."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for i, cells in enumerate(tables.values()):
        for axes, name in ((left, "dropout's gain beside"), (right, "interaction")):
            mean, low, high = (100 * value for value in cells[name])
            color = "C0" if low > 0 else "C3" if high < 0 else "gray"
            axes.errorbar(mean, i, xerr=[[mean - low], [high - mean]], fmt="o", color=color)
    _, low, high = (100 * value for value in cells["dropout's gain alone"])
    left.axvspan(low, high, color="C0", alpha=0.2, label="dropout alone, 95 %")
    left.legend(loc="lower right")
    for axes in (left, right):
        axes.axvline(0, color="black", linewidth=0.8)
    left.set_yticks(range(len(tables)), tables)
    left.invert_yaxis()
    left.set(xlabel="test accuracy, points", title="what dropout gains beside ...")
    right.set(xlabel="test accuracy, points", title="interaction (0: gains add up)")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
