"""What a stack of blocks does not change: the shape, and the features before a changed token.

GPTs of width 48 with random weights, 1 to 12 layers (48 in the long form) in both orders of layer
norm, read 4 windows of 64 random tokens, with dropout 0.2 at all seven sites and one key. Then all
tokens from one position on are exchanged, and features before it are compared, bit for bit.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim, sweep
from common.claim import Finding, Result, verdict_by
from minigpt.config import ModelConfig
from minigpt.model import GPT

BATCH, TIME, DIM = 4, 64, 48
VASWANI = "Vaswani et al., Attention is all you need, NeurIPS 2017"
RASCHKA = "Raschka, Build a large language model (from scratch), 2024"


def experiment(scale: claim.Scale) -> Result:
    rng = np.random.default_rng(0)
    first, other = jnp.asarray(rng.integers(0, 65, (2, BATCH, TIME)), jnp.int32)
    depths = scale.pick((2,), (1, 3, 6, 12), (1, 12, 48))
    norms: tuple[Literal["pre", "post"], ...] = ("pre", "post")
    cells = [(norm, depth) for norm in norms for depth in depths]
    shapes, changes = {}, {}
    for norm, depth in scale.track(cells, "stacks"):
        features = build_stack(norm, depth)
        name = f"{depth} {norm}-norm layers"
        shapes[name] = features(first).shape
        changes[name] = largest_change(features, first, other, position=TIME // 2)
    numbers = {"shape": shapes, "largest change by position": changes}
    return Result(findings(shapes, changes), picture(changes), numbers)


def build_stack(norm: Literal["pre", "post"], depth: int):
    """A function from ids to features, with dropout on."""
    rates = sweep.one_rate(sweep.SITES, 0.2)
    sizes = ModelConfig(n_layer=depth, n_head=2, n_embd=DIM, block_size=TIME)
    config = dataclasses.replace(sizes, norm=norm, scan_layers=True, dropout=rates)
    gpt = GPT(config, 65, rngs=nnx.Rngs(0))
    features = nnx.jit(lambda gpt, ids: gpt.features(ids, key=jax.random.key(1)))
    return functools.partial(features, gpt)


def largest_change(features, first, other, position: int) -> np.ndarray:
    """The largest change of features, by position, when tokens from `position` on are exchanged."""
    mixed = jnp.where(jnp.arange(first.shape[1]) < position, first, other)
    return np.asarray(jnp.abs(features(mixed) - features(first)).max((0, 2)))


def findings(shapes: dict[str, tuple], changes: dict[str, np.ndarray]) -> list[Finding]:
    """The claims about shapes and about the mask, by stack."""
    kept = {name: shape == (BATCH, TIME, DIM) for name, shape in shapes.items()}
    before, after = ({n: change[part] for n, change in changes.items()} for part in HALVES)
    exact = {name: not change.any() for name, change in before.items()}
    largest = max(change.max() for change in before.values())
    least = min(change.min() for change in after.values())
    return [
        Finding(
            "A stack of blocks keeps (batch, time, dim) at any depth",
            f"{VASWANI}, 3.1; {RASCHKA}",
            f"Shape kept, dropout 0.2 at every site: {', '.join(n for n in kept if kept[n])}",
            verdict_by("it is", kept),
        ),
        Finding(
            "Under the causal mask later tokens change no earlier feature, also with dropout on",
            f"{VASWANI}, 3.2.3",
            f"Largest change of a feature before the exchanged tokens: {largest:g}; the smallest "
            f"at or after the first of them, by position: {least:.2g}",
            verdict_by("it is", exact),
        ),
    ]


HALVES = slice(TIME // 2), slice(TIME // 2, None)


def picture(changes: dict[str, np.ndarray]) -> Figure:
    """The change by position: 0 before the first exchanged token."""
    figure, (axes,) = charts.panels(8)
    for name, change_by_position in changes.items():
        axes.plot(change_by_position, "o-" if "pre" in name else "x--", markersize=3, label=name)
    axes.axvline(TIME // 2 - 0.5, color="gray", label="from here on exchanged")
    axes.set(xlabel="position", ylabel="largest change of a feature")
    axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
