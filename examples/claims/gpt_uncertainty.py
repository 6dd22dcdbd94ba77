"""Uncertainty of a GPT's next character: MC dropout beside the softmax, and unknown texts.

A GPT of two layers of 64 learns Shakespeare's plays at rate 0.1 on nanoGPT's four sites, 600 steps
of 16 windows. Windows of 64 characters of plays it has not seen are compared with windows of this
repository's Python, of Latin, and of the same plays with words or letters shuffled, by the mean
over the window of each score; characters that the plays do not have are left out. All sets are of
equally many windows. MC dropout is the mean of 20 passes; the softmax has dropout off.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from common import claim, data, gpt, measures
from dropout_jax import fold, mc_dropout, mutual_information, predictive_entropy
from minigpt.batches import Batch, windows
from minigpt.model import GPT

HERE = Path(__file__).parent
KNOWN = "unseen plays"
UNKNOWN = ("Python", "Latin", "shuffled words", "shuffled letters")
SCORES = {
    "softmax, surprise": "surprise",
    "softmax, entropy": "entropy",
    "MC, surprise": "MC surprise",
    "MC, entropy": "MC entropy",
    "MC, mutual information": "information",
}


def sets(text: data.Text, rows: int, size: int) -> dict[str, Batch]:
    """Windows of the unseen plays and of the unknown texts, spread evenly."""
    rng, alphabet = np.random.default_rng(0), set(text.tokenizer.alphabet)
    unseen = evenly(text.validation, rows, size)
    whole = np.concatenate([unseen.inputs, unseen.targets[:, -1:]], axis=1)
    spoken = text.tokenizer.decode(text.validation[:200_000]).split(" ")
    package = sorted((HERE.parent.parent / "dropout_jax").glob("*.py"))
    code = "".join(path.read_text(encoding="utf-8") for path in package)
    texts = {
        "Python": code,
        "Latin": (HERE / "latin.txt").read_text(encoding="utf-8"),
        "shuffled words": " ".join(rng.permutation(spoken)),
    }
    found = {KNOWN: unseen}
    for name, characters in texts.items():
        ids = text.tokenizer.encode("".join(c for c in characters if c in alphabet))
        found[name] = evenly(ids, rows, size)
    letters = rng.permuted(whole, axis=1)
    return found | {"shuffled letters": Batch(letters[:, :-1], letters[:, 1:])}


def evenly(ids, rows: int, size: int) -> Batch:
    """Windows spread evenly over a text."""
    return windows(ids, np.linspace(0, len(ids) - size - 1, rows), size)


@functools.partial(jax.jit, static_argnames=("graph", "passes"))
def scored(graph, params, batch: Batch, key, passes: int):
    """Every score at every position, and the probabilities of the softmax and of MC dropout."""
    model = nnx.merge(graph, params)
    softmax = jax.nn.softmax(model(batch.inputs, key=None))
    drawn = mc_dropout(
        lambda key: jax.nn.softmax(model(batch.inputs, key=key)), key, passes, batch_size=5
    )
    mean = drawn.mean(0)

    def surprise(p):
        return -jnp.log(jnp.take_along_axis(p, batch.targets[..., None], -1)[..., 0])

    found = {
        "surprise": surprise(softmax),
        "entropy": predictive_entropy(softmax[None]),
        "MC surprise": surprise(mean),
        "MC entropy": predictive_entropy(drawn),
        "information": mutual_information(drawn),
    }
    return found, {"softmax": softmax, "MC dropout": mean}


def one_seed(graph, params, texts: dict[str, Batch], key, passes: int):
    """Calibration on the unseen plays, detection of the unknown texts, and reliability curves."""
    scores, quality, curves = {}, {}, {}
    for name, batch in texts.items():
        found, p = scored(graph, params, batch, fold(key, name), passes)
        scores[name] = {score: each.mean(1) for score, each in found.items()}  # a window's mean
        if name == KNOWN:
            labels = batch.targets.ravel()
            for method, each in p.items():
                flat = each.reshape(len(labels), -1)
                quality[method] = jax.tree.map(float, measures.quality(flat, jnp.asarray(labels)))
                curves[method] = measures.reliability(flat, labels)
    told = {
        name: {s: float(measures.told_apart(scores[KNOWN][s], scores[name][s])) for s in found}
        for name in UNKNOWN
    }
    return {"quality": quality, "AUROC": told}, curves


def experiment(scale: claim.Scale) -> claim.Result:
    """Train a GPT a seed and measure it."""
    seeds, steps = scale.pick(3, 3, 5), scale.pick(4, 600, 5000)
    rows, passes = scale.pick(4, 64, 200), scale.pick(3, 20, 50)
    model = scale.pick(gpt.ModelConfig(1, 2, 16, 32), gpt.SMALL, gpt.SMALL)
    text = data.one_play() if scale.name == "smallest" else data.all_plays()
    config = gpt.config_of(steps, model, rate=0.1)
    training, texts = gpt.compiled(config, text), sets(text, rows, model.block_size)
    graph = nnx.split(GPT(config.model, text.tokenizer.vocab_size, rngs=nnx.Rngs(0)))[0]
    runs, curves = [], []
    for seed in scale.track(range(seeds), "seeds"):
        params = gpt.train(training, config, text, seed, evals=1).params
        found, curve = one_seed(graph, params, texts, jax.random.key(seed), passes)
        runs.append(found)
        curves.append(curve)
    return claim.Result(findings(runs), draw(runs, curves), {"seeds": seeds, "runs": runs})


def findings(runs: list[dict]) -> list[claim.Finding]:
    """The claims, each decided by differences seed by seed."""

    def of(method):
        return [run["quality"][method] for run in runs]

    def by(score):
        return [{name: run["AUROC"][name][score] for name in UNKNOWN} for run in runs]

    def told(cells, form=".3f"):
        return "; ".join(f"{name} {cell:{form}}" for name, cell in cells.items())

    lower = measures.differences(of("softmax"), of("MC dropout"))
    ends = {m: claim.interval([q["ECE"] for q in of(m)]) for m in ("softmax", "MC dropout")}
    loss = claim.interval([q["NLL"] for q in of("softmax")])
    others = {"likelihood": "surprise", "entropy": "entropy"}
    against = {
        name: measures.differences(by("information"), by(score)) for name, score in others.items()
    }
    best = {  # the unknown texts on which mutual information is above both
        name: min((cells[name] for cells in against.values()), key=lambda cell: cell.low)
        for name in UNKNOWN
    }
    return [
        claim.Finding(
            "The mean of many passes with dropout predicts the next token better than one pass "
            "without.",
            "Gal and Ghahramani, A theoretically grounded application of dropout in recurrent "
            "neural networks, NeurIPS 2016",
            f"Loss without dropout {loss:.3f} nats a character; with MC dropout it is lower by "
            f"{lower['NLL']:.4f}.",
            claim.verdict(lower["NLL"].positive),
        ),
        claim.Finding(
            "MC dropout is better calibrated than the softmax, for a GPT's next character.",
            "Gal and Ghahramani, Dropout as a Bayesian approximation, ICML 2016",
            f"ECE of the softmax {ends['softmax']:.3f}, of MC dropout {ends['MC dropout']:.3f}; "
            f"lower by {lower['ECE']:.4f}.",
            claim.verdict(lower["ECE"].positive),
        ),
        claim.Finding(
            "Mutual information finds texts of another kind better than likelihood and entropy.",
            "Malinin and Gales, Uncertainty estimation in autoregressive structured prediction, "
            "ICLR 2021 (of ensembles)",
            "AUROC per window of MC dropout's mutual information less that of the softmax's "
            + ", and ".join(f"{name}: {told(cells)}" for name, cells in against.items())
            + ".",
            claim.verdict_by("the text is", best),
        ),
    ]


def draw(runs: list[dict], curves: list[dict]) -> Figure:
    """Detection of the unknown texts, and reliability on unseen plays."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    place = np.arange(len(UNKNOWN))
    for i, (label, score) in enumerate(SCORES.items()):
        found = np.array(
            [claim.interval([run["AUROC"][name][score] for run in runs]) for name in UNKNOWN]
        )
        error = np.abs(found[:, 1:].T - found[:, 0])
        at = place + 0.16 * (i - 2)
        left.bar(at, found[:, 0], 0.15, yerr=error, label=label, error_kw={"lw": 0.8})
    left.axhline(0.5, color="0.4", lw=0.8, ls="--")
    left.set(xticks=place, xticklabels=UNKNOWN, ylabel="AUROC per window", ylim=(0, 1.02))
    left.set_title("Telling other texts from unseen plays (0.5: by chance)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    right.plot([0, 1], [0, 1], color="0.7", lw=1, label="exactly right")
    for method in curves[0]:
        confidence, accuracy = np.mean([curve[method] for curve in curves], axis=0)
        right.plot(confidence, accuracy, "o-", ms=3.5, label=method)
    right.set(xlabel="confidence", ylabel="accuracy", title="Reliability of the next character")
    right.legend(frameon=False)
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
