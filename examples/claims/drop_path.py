"""Stochastic depth: rates over the depth of a residual net, and blocks removed.

300 of sklearn's digits to train on, all others to test; a linear layer to 64 units, sixteen
residual blocks (layer norm, 64 units with ReLU, linear), layer norm and a readout. DropPath drops a
block's branch row by row. Adam at 1e-3, 400 steps of 32. The seed decides split, weights and masks;
differences are taken seed by seed. Blocks removed at the test are drawn at random, others for each
of ten tries.
"""

import functools

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from common import charts, claim, data, nets
from dropout_jax import drop_path, fold, linear_over_depth

DEPTH, WIDTH = 16, 64
PATTERNS = {
    "none": (0.0,) * DEPTH,
    "uniform 0.25": (0.25,) * DEPTH,
    "uniform 0.5": (0.5,) * DEPTH,
    "linear to 0.5": linear_over_depth(0.5, DEPTH),
}
REMOVED = (0, 1, 2, 4, 8)
HUANG = "Huang et al., Deep networks with stochastic depth, ECCV 2016"
FAN = "Fan, Grave and Joulin, Reducing transformer depth on demand, ICLR 2020"


def init(key):
    """Both layers of every block stacked, and the layers before and after."""
    blocks = jax.vmap(lambda key: nets.mlp_init(key, (WIDTH, WIDTH, WIDTH)))
    return {
        "in": nets.dense_init(fold(key, "in"), 64, WIDTH),
        "blocks": blocks(jax.random.split(fold(key, "blocks"), DEPTH)),
        "out": nets.dense_init(fold(key, "out"), WIDTH, 10),
    }


def net(params, x, rates, *, key):
    """Logits, with a rate for each block."""

    def block(x, inputs):
        i, rate, layers = inputs
        branch = nets.mlp(layers, jax.nn.standardize(x), 0.0, key=None)
        return x + drop_path(branch, rate, key=fold(key, "block", i)), None

    places = jnp.arange(DEPTH, dtype=jnp.uint32)
    x = nets.dense(params["in"], x)
    x, _ = jax.lax.scan(block, x, (places, rates, params["blocks"]))
    return nets.dense(params["out"], jax.nn.standardize(x))


def train(splits, steps: int):
    """Test accuracy with blocks removed, for (pattern, seed, how many)."""

    def one(rates, seed, split):
        key = jax.random.key(seed)

        def loss(params, rows, key):
            logits = net(params, split.x_train[rows], rates, key=key)
            return nets.cross_entropy(logits, split.y_train[rows])

        def without(count, i):
            """Rate 1 removes a block, rate 0 leaves it; the tries are the same in all patterns."""
            order = jax.random.permutation(fold(key, "removed", i), DEPTH)
            logits = net(params, split.x_test, jnp.float32(order < count), key=key)
            return nets.accuracy(logits, split.y_test)

        params = nets.fit(loss, init(key), len(split.x_train), key, steps=steps, batch_size=32)
        tries = jnp.arange(10, dtype=jnp.uint32)
        of_count = jax.vmap(without, (None, 0))
        return jax.lax.map(lambda count: of_count(count, tries).mean(), jnp.array(REMOVED))

    return nets.over_rates_and_seeds(one, list(PATTERNS.values()), splits)


def experiment(scale: claim.Scale) -> claim.Result:
    """Train with each pattern of rates."""
    seeds, steps = scale.pick(3, 6, 20), scale.pick(3, 400, 2000)
    found = train(data.stacked(functools.partial(data.digits, 300), range(seeds)), steps)
    scores = dict(zip(PATTERNS, found, strict=True))
    whole = {name: x[:, 0] for name, x in scores.items()}
    findings = [deep(whole), linear(whole), shorter(scores)]
    return claim.Result(findings, picture(scores), {"removed": REMOVED, "accuracy": scores})


def deep(whole) -> claim.Finding:
    """Each pattern against none."""
    dropped = {name: x for name, x in whole.items() if name != "none"}
    return claim.compare(
        "Stochastic depth makes a deep residual net generalise better.",
        HUANG,
        dropped,
        dict.fromkeys(dropped, whole["none"]),
        f"Test accuracy without it {claim.interval(whole['none']):.1%}. Points above that",
        "the rates are",
    )


def linear(whole) -> claim.Finding:
    """Linear rates against uniform ones of the same last rate, and of the same mean."""
    others = {"uniform 0.5": whole["uniform 0.5"], "uniform 0.25": whole["uniform 0.25"]}
    return claim.compare(
        "Rates that grow linearly with depth generalise better than uniform ones.",
        HUANG,
        dict.fromkeys(others, whole["linear to 0.5"]),
        others,
        "Points of test accuracy, linear to 0.5 (mean 0.25) minus uniform",
        "compared with",
    )


def shorter(scores) -> claim.Finding:
    """What removing blocks costs a net trained with uniform 0.5, and one trained without."""
    ours, theirs = scores["uniform 0.5"], scores["none"]
    cells = dict(enumerate(REMOVED))
    return claim.compare(
        "A net trained with layers dropped can lose layers at evaluation.",
        FAN,
        {count: ours[:, i] - ours[:, 0] for i, count in cells.items() if count},
        {count: theirs[:, i] - theirs[:, 0] for i, count in cells.items() if count},
        f"Points of accuracy saved by training with uniform 0.5, by blocks removed of {DEPTH}",
        "the blocks removed are",
    )


def picture(scores) -> Figure:
    """Accuracy by pattern, and as blocks are removed."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (name, found) in enumerate(scores.items()):
        gain = claim.interval(100 * (found - scores["none"])[:, 0])
        points = map(claim.interval, 100 * found.T)
        charts.points(right, REMOVED, points, name, color=f"C{i}")
        if i:
            charts.points(left, [name], [gain], name, color=f"C{i}")
    left.axhline(0, color="0.6", linestyle=":")
    left.set(ylabel="points of test accuracy above none", xlabel="rates in training")
    left.set(xlim=(-0.5, 2.5))
    right.set(xlabel=f"blocks removed, of {DEPTH}", ylabel="test accuracy, %")
    right.legend()
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
