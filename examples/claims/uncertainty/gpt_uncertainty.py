"""Calibration of a GPT's next character: MC dropout and the softmax.

A GPT of two layers of 64 learns Shakespeare's plays at rate 0.1 on nanoGPT's four sites, 600 steps
of 16 windows, and predicts every character of 64 windows of 64 characters from unseen plays. MC
dropout is the mean of 20 passes; the softmax has dropout off. A seed decides weights, batches and
masks.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim, measures
from common.claim import interval
from common.gpt_methods import evaluate_gpts
from common.texts import KNOWN

METHODS = ("softmax", "MC dropout")


def experiment(scale: claim.Scale) -> claim.Result:
    """Train a GPT for each seed and measure it."""
    runs, curves = [], []
    for outputs_by_text in evaluate_gpts(scale, (KNOWN,)):
        outputs = outputs_by_text[KNOWN]
        labels, probabilities = outputs.targets.ravel(), outputs.probabilities
        flat = {method: probabilities[method].reshape(len(labels), -1) for method in METHODS}
        quality = {
            method: jax.tree.map(float, measures.quality(p, jnp.asarray(labels)))
            for method, p in flat.items()
        }
        runs.append({"quality": quality})
        curves.append({method: measures.reliability(p, labels) for method, p in flat.items()})
    return claim.Result(findings(runs), picture(curves), {"seeds": len(runs), "runs": runs})


def findings(runs: list[dict]) -> list[claim.Finding]:
    """The claims, each decided by differences seed by seed."""
    softmax, mc = ([run["quality"][method] for run in runs] for method in METHODS)
    lower = measures.differences(softmax, mc)
    ece = [interval([each["ECE"] for each in qualities]) for qualities in (softmax, mc)]
    loss = interval([each["NLL"] for each in softmax])
    return [
        claim.Finding(
            "The mean of many passes with dropout predicts the next token better than one pass "
            "without",
            "Gal and Ghahramani, A theoretically grounded application of dropout in recurrent "
            "neural networks, NeurIPS 2016",
            f"Loss without dropout {loss:.3f} nats a character; with MC dropout it is lower by "
            f"{lower['NLL']:.4f}.",
            claim.verdict(lower["NLL"].positive),
        ),
        claim.Finding(
            "MC dropout is better calibrated than the softmax, for a GPT's next character",
            "Gal and Ghahramani, Dropout as a Bayesian approximation, ICML 2016",
            f"ECE of the softmax {ece[0]:.3f}, of MC dropout {ece[1]:.3f}; lower by "
            f"{lower['ECE']:.4f}.",
            claim.verdict(lower["ECE"].positive),
        ),
    ]


def picture(curves: list[dict]) -> Figure:
    """Reliability on unseen plays."""
    figure, (axes,) = charts.panels(6)
    of_methods = {method: [each[method] for each in curves] for method in METHODS}
    measures.draw_reliability(axes, of_methods, "Reliability of the next character")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
