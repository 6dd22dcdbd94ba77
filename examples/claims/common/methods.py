"""Methods of uncertainty: train the networks of a seed, and measure each method's predictions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from common import data, measures, nets
from common.claim import Scale
from dropout_jax import fold, mc_dropout, mutual_information
from dropout_jax.calibration import fit_temperature

RATE, MEMBERS, PRIORS = 0.5, 5, (1.0, 10.0, 100.0, 1000.0)
# For each method: training runs and forward passes.
COST = {
    "softmax": (1, "1"),
    "temperature": (1, "1"),
    "Laplace": (1, "1, and {} draws of logits"),
    "ensemble": (MEMBERS, str(MEMBERS)),
    "softmax, dropout net": (1, "1"),
    "temperature, dropout net": (1, "1"),
    "ensemble, dropout nets": (MEMBERS, str(MEMBERS)),
    "MC dropout": (1, "{}"),
}
IN, SHIFTED = "test digits", "digits rotated by 30°"
UNKNOWN = ("digits 8 and 9", "digits rotated by 90°", "shuffled pixels")


def split(seed: int, size: int, rows: int):
    """Images and labels for training and validation, the test labels, and the sets to predict."""
    everything = data.load_mnist(5000, seed)
    x, y = np.asarray(everything.x_train), np.asarray(everything.y_train)
    known, unknown = np.flatnonzero(y < 8), np.flatnonzero(y >= 8)
    train, validation, test, _ = np.split(known, np.cumsum([size, size // 4, rows]))
    sets = {
        IN: x[test],
        SHIFTED: rotate(x[test], 30),
        "digits 8 and 9": x[unknown[:rows]],
        "digits rotated by 90°": rotate(x[test], 90),
        "shuffled pixels": np.random.default_rng(seed).permuted(x[test], axis=1),
    }
    return (x[train], y[train]), (x[validation], y[validation]), y[test], sets


def rotate(images, degrees: float):
    """Rotate about the centre; the corners are black."""
    square = images.reshape(-1, 28, 28)
    turned = scipy.ndimage.rotate(square, degrees, axes=(1, 2), reshape=False, order=1)
    return np.clip(turned, 0, 1).reshape(len(images), -1)


def train_network(x, y, key, rate, steps: int, width: int):
    """Train one network."""

    def loss(layers, rows, key):
        return nets.cross_entropy(nets.mlp(layers, x[rows], rate, key=key), y[rows])

    layers = nets.mlp_init(fold(key, "init"), (784, width, width, 8))
    return nets.fit(loss, layers, len(y), fold(key, "fit"), steps=steps, batch_size=32)


def compute_logits(layers, x):
    """Logits, dropout off."""
    return nets.mlp(layers, x, 0.0, key=None)


def compute_features(layers, x):
    """The inputs of the last layer."""
    return jax.nn.relu(compute_logits(layers[:-1], x))


def run_digit_classifiers(
    scale: Scale, *names: str
) -> tuple[list[dict], list[dict], list[dict], int]:
    """For each seed: the named measures by method, reliability and fitted values; and MC passes."""
    seeds, size, rows = scale.pick((3, 200, 200), (5, 2400, 1000), (20, 2400, 1000))
    passes = scale.pick(4, 50, 100)
    runs, curves, fitted = [], [], []
    for seed in scale.track(range(seeds), "seeds"):
        *parts, sets = split(seed, size, rows)
        settings = {"steps": scale.pick(40, 1200, 1200), "passes": passes}
        settings["width"] = scale.pick(8, 128, 128)
        measures_by_name, p, hyperparameters = run_seed(
            *parts, sets, jax.random.key(seed), **settings
        )
        measures_by_name = jax.tree.map(
            np.asarray, {name: measures_by_name[name] for name in names}
        )
        runs.append(
            {
                m: jax.tree.map(lambda leaf, i=i: float(leaf[i]), measures_by_name)
                for i, m in enumerate(COST)
            }
        )
        curves.append({m: measures.reliability(p[i], parts[2]) for i, m in enumerate(COST)})
        fitted.append({name: float(value) for name, value in hyperparameters.items()})
    return runs, curves, fitted, passes


@functools.partial(jax.jit, static_argnames=("steps", "passes", "width"))
def run_seed(training, validation, labels, sets, key, steps: int, passes: int, width: int):
    """Train, fit and predict: measures by method, and the probabilities of the test digits."""
    keys, rates = jax.random.split(key, 2 * MEMBERS), jnp.array([0.0, RATE]).repeat(MEMBERS)
    x, y = training
    train = jax.vmap(lambda key, rate: train_network(x, y, key, rate, steps, width))
    fitted = train(keys, rates)
    members, others = (
        jax.tree.map(lambda leaf, i=i: leaf[i : i + MEMBERS], fitted) for i in (0, MEMBERS)
    )
    plain, dropping = (jax.tree.map(lambda leaf: leaf[0], each) for each in (members, others))
    warm, warm_dropping = (
        fit_temperature(compute_logits(n, validation[0]), validation[1]) for n in (plain, dropping)
    )
    draws = fold(key, "draws")

    def laplace(covariance, x):
        inputs = compute_features(plain, x)
        return jax.nn.softmax(measures.laplace_logits(plain[-1], covariance, inputs, draws, passes))

    def laplace_loss(precision):
        covariance = measures.laplace_covariance(plain[-1], compute_features(plain, x), precision)
        return measures.quality(laplace(covariance, validation[0]).mean(0), validation[1])["NLL"]

    prior = jnp.array(PRIORS)[jnp.argmin(jax.lax.map(laplace_loss, jnp.array(PRIORS)))]
    covariance = measures.laplace_covariance(plain[-1], compute_features(plain, x), prior)

    def predict(x):
        """Probabilities and mutual information of every method, in the order of COST."""
        one, other = compute_logits(plain, x), compute_logits(dropping, x)
        stacks = [
            jax.nn.softmax(one)[None],
            jax.nn.softmax(one / warm)[None],
            laplace(covariance, x),
            jax.nn.softmax(jax.vmap(compute_logits, (0, None))(members, x)),
            jax.nn.softmax(other)[None],
            jax.nn.softmax(other / warm_dropping)[None],
            jax.nn.softmax(jax.vmap(compute_logits, (0, None))(others, x)),
            mc_dropout(lambda k: jax.nn.softmax(nets.mlp(dropping, x, RATE, key=k)), draws, passes),
        ]
        means, doubts = [stack.mean(0) for stack in stacks], map(mutual_information, stacks)
        return jnp.stack(means), jnp.stack(list(doubts))

    means, doubts = zip(*(predict(x) for x in sets.values()), strict=True)
    means, doubts = (
        dict(zip(sets, measures_by_method, strict=True)) for measures_by_method in (means, doubts)
    )
    measures_by_method = jax.vmap(lambda p, i: measure_method(p, i, labels, draws))(means, doubts)
    return measures_by_method, means[IN], {"temperature": warm, "prior": prior}


def measure_method(p, information, labels, key):
    """A method's quality on both labelled sets, and each score's AUROC for the unknown sets."""
    measured_by_name = {name: measures.quality(p[name], labels) for name in (IN, SHIFTED)}
    for name in (IN, SHIFTED):
        measured_by_name[name]["ECE if right"] = measures.calibrated_ece(p[name], key)
    doubt = {name: 1 - each.max(-1) for name, each in p.items()}
    for by, score in (("by confidence", doubt), ("by mutual information", information)):
        measured_by_name[by] = {
            name: measures.ood_auroc(score[IN], score[name]) for name in UNKNOWN
        }
    return measured_by_name
