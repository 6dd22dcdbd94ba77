"""An LSTM language model on a part of Hamlet: locked, embedding and naive dropout, and zoneout.

A character-level LSTM of 128 units over embeddings of 64, in plain Flax, with the layers of
dropout_jax.nn. Naive dropout draws a fresh mask at each step for the inputs, the recurrent state
that the gates see, and the outputs; locked dropout drops at the same sites with one mask for all
steps of a window. Zoneout lets units of h and c keep their old values. Embedding dropout drops a
character everywhere in the batch. Training reads the first 30,000 characters, in windows of 64 that
begin with a state of zeros: 1,000 steps of Adam at 4e-3 on 16 windows, about 34 passes, with ten
evaluations. The rate of each kind, and the evaluation to stop at (seed by seed), are chosen by the
loss on the next 15,000 characters and measured on the 30,000 after those. A seed decides weights,
batches and masks; differences are taken seed by seed.
"""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent / "claims"))  # common

from common import charts, claim, nets
from common.claim import Finding, Result, by_cell, interval
from dropout_jax import fold
from dropout_jax.nn import Dropout, EmbeddingDropout, LockedDropout, Zoneout
from minigpt.data import build_tokenizer, load_plays

EMBEDDING, TIME, BATCH = 64, 64, 16
RATES = (0.1, 0.25)
PARTS = (30_000, 45_000, 75_000)  # ends of the characters to train on, to choose by, to measure
KINDS = {  # what drops inputs, state and outputs, and the sites with a rate above 0
    "none": (Dropout, ()),
    "naive": (Dropout, ("dense",)),
    "locked": (LockedDropout, ("dense",)),
    "zoneout": (Dropout, ("zoneout",)),
    "embedding": (Dropout, ("embedding",)),
    "locked, embedding": (LockedDropout, ("dense", "embedding")),
}
STYLES = ("o-", "s-", "^-", "v-", "D-", "x--")
COLORS = ("black", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9")  # Okabe and Ito
ZAREMBA = "Zaremba, Sutskever and Vinyals, Recurrent neural network regularization, 2014"
GAL = "Gal and Ghahramani, Dropout in recurrent neural networks, NeurIPS 2016"
KRUEGER = "Krueger et al., Zoneout, ICLR 2017"
MERITY = "Merity, Keskar and Socher, Regularizing and optimizing LSTM language models, ICLR 2018"


class LanguageModel(nnx.Module):
    """Embeddings, an LSTM, and logits of the next character."""

    def __init__(self, characters: int, units: int, kind: str, rate, *, rngs: nnx.Rngs):
        drop, sites = KINDS[kind]
        dense, zoneout, embedding = (
            rate if site in sites else 0.0 for site in ("dense", "zoneout", "embedding")
        )
        self.units = units
        self.embed = nnx.Embed(characters, EMBEDDING, rngs=rngs)
        self.cell = nnx.OptimizedLSTMCell(EMBEDDING, units, rngs=rngs)
        self.readout = nnx.Linear(units, characters, rngs=rngs)
        self.drop_characters = EmbeddingDropout(embedding)
        self.drop_inputs, self.drop_state, self.drop_outputs = drop(dense), drop(dense), drop(dense)
        self.zoneout = Zoneout(zoneout)

    def __call__(self, ids: jax.Array, *, key: jax.Array | None) -> jax.Array:
        """Logits after each character of (batch, time); without a key nothing drops."""

        def site(*path):
            return {"deterministic": key is None, "rngs": fold(key, *path)}

        table = self.drop_characters(self.embed.embedding[...], **site("characters"))
        inputs = self.drop_inputs(table[ids], **site("inputs"))
        ones = jnp.ones((*ids.shape, self.units))
        masks = self.drop_state(ones, **site("state"))  # with their scale

        def step(carry, now):
            i, x, mask = now
            c, h = carry
            (new_c, new_h), _ = self.cell((c, h * mask), x)
            c = self.zoneout(new_c, c, **site("zoneout", "c", i))
            h = self.zoneout(new_h, h, **site("zoneout", "h", i))
            return (c, h), h

        steps = jnp.arange(ids.shape[1], dtype=jnp.uint32)
        zeros = jnp.zeros((len(ids), self.units))
        by_step = (steps, inputs.swapaxes(0, 1), masks.swapaxes(0, 1))
        _, outputs = jax.lax.scan(step, (zeros, zeros), by_step)
        return self.readout(self.drop_outputs(outputs.swapaxes(0, 1), **site("outputs")))


def train(kind: str, units: int, steps: int, evaluations: int, texts, characters: int, rate, seed):
    """Bits per character on the texts to choose by and to measure, (evaluations, 2)."""
    text, *watched = texts
    key = jax.random.key(seed)
    model = LanguageModel(characters, units, kind, rate, rngs=nnx.Rngs(params=fold(key, "weights")))
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def bits(params, windows, key=None):
        logits = nnx.merge(graph, params, rest)(windows[:, :-1], key=key)
        return nets.cross_entropy(logits, windows[:, 1:]) / jnp.log(2.0)

    def loss(params, offsets, key):
        return bits(params, text[offsets[:, None] + jnp.arange(TIME + 1)], key)

    def evaluate(params):
        return jnp.stack([bits(params, windows) for windows in watched])

    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(4e-3))
    sizes = {"evaluations": evaluations, "steps": steps, "batch_size": BATCH, "tx": tx}
    count = len(text) - TIME
    _, curve = nets.fit_and_evaluate(loss, params, count, fold(key, "fit"), evaluate, **sizes)
    return curve


def load_texts() -> tuple[list[jax.Array], int]:
    """Ids to train on, windows of the two texts to evaluate, and the number of characters."""
    plays = load_plays()
    tokenizer = build_tokenizer("char", "".join(plays.values()))
    ids = jnp.asarray(tokenizer.encode(plays["hamlet"]), jnp.int32)
    text, *others = jnp.split(ids[: PARTS[-1]], PARTS[:-1])
    windows = [
        each[: len(each) // (TIME + 1) * (TIME + 1)].reshape(-1, TIME + 1) for each in others
    ]
    return [text, *windows], tokenizer.vocab_size


def experiment(scale: claim.Scale) -> Result:
    units, steps, evaluations = scale.pick((8, 4, 2), (128, 1000, 10), (256, 10_000, 40))
    texts, characters = load_texts()
    seeds, curves = range(scale.pick(3, 3, 10)), {}
    for kind in scale.track(KINDS, "kinds of dropout"):
        sizes = (units, steps, evaluations, texts, characters)
        program = jax.jit(functools.partial(train, kind, *sizes))
        rates = RATES if KINDS[kind][1] else (0.0,)
        runs = [[jax.device_get(program(rate, seed)) for seed in seeds] for rate in rates]
        curves[kind] = np.array(runs, np.float64)  # (rate, seed, evaluation, text)
    best = {kind: stop_early(each) for kind, each in curves.items()}
    bits = {kind: measured for kind, (_, measured) in best.items()}
    chosen = {kind: curves[kind][i, ..., 1] for kind, (i, _) in best.items()}
    numbers = {
        "rate": {kind: RATES[i] for kind, (i, _) in best.items() if kind != "none"},
        "bits per character, stopped early": {kind: interval(of) for kind, of in bits.items()},
        "at the end": {kind: interval(of[:, -1]) for kind, of in chosen.items()},
        "every run (rate, seed, evaluation): to choose by, measured": curves,
    }
    every = steps // evaluations
    return Result(findings(bits), picture(range(every, steps + 1, every), chosen, bits), numbers)


def stop_early(curves: np.ndarray) -> tuple[int, np.ndarray]:
    """The index of the best rate, and its bits by seed at the best evaluation of each."""
    choosing, measured = np.moveaxis(curves, -1, 0)  # (rate, seed, evaluation)
    step = choosing.argmin(-1, keepdims=True)
    best = int(choosing.min(-1).mean(-1).argmin())
    return best, np.take_along_axis(measured, step, -1)[best, :, 0]


def findings(bits: dict[str, np.ndarray]) -> list[Finding]:
    """Every kind against none, and the kinds that should be better against naive or locked."""

    def compare(text: str, source: str, ours: str, theirs: str) -> Finding:
        cells = {f"{ours} minus {theirs}": interval(bits[ours] - bits[theirs])}
        return by_cell(text, source, "Bits per character", cells, "it is", "+.3f", sign=-1)

    _, *kinds = bits
    cells = {kind: interval(bits[kind] - bits["none"]) for kind in kinds}
    what, text = "Bits per character minus those without dropout", "lowers an LSTM's bits"
    return [
        by_cell(
            f"Dropout {text} per character", ZAREMBA, what, cells, "the kind is", "+.3f", sign=-1
        ),
        compare("Locked dropout is better than naive dropout in an LSTM", GAL, "locked", "naive"),
        compare("Zoneout is better than naive dropout in an LSTM", KRUEGER, "zoneout", "naive"),
        compare(
            *("Embedding dropout beside locked dropout lowers the bits further", MERITY),
            *("locked, embedding", "locked"),
        ),
    ]


def picture(steps: range, chosen: dict[str, np.ndarray], bits: dict[str, np.ndarray]) -> Figure:
    """Bits per character during training, and what each kind saves when stopped early."""
    figure, (left, right) = charts.panels(5.5, 4)
    for i, (kind, curves) in enumerate(chosen.items()):
        intervals = list(map(interval, curves.T))
        charts.points(left, steps, intervals, kind, STYLES[i], color=COLORS[i], markersize=4)
    left.set(xlabel="step", ylabel="bits per character, other part of the play")
    left.legend(fontsize=8)
    _, *kinds = bits
    saved = {kind: interval(bits["none"] - bits[kind]) for kind in kinds}
    charts.forest(right, saved, xlabel="bits per character saved against none,\nstopped early")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, "recurrent_lm")  # recurrent is another claim
