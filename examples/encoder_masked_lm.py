"""BERT's objective on Shakespeare's plays, and a classifier on the encoder's frozen features.

An encoder reads 64 words (the 2,000 most frequent, without the speakers' names) and predicts 15 %
of them, of which 80 % are masked, 10 % replaced by random words and 10 % kept. As in BERT, `hidden`
is the rate after the embeddings and both branches of a block, `attention` that of the weights. Then
logistic regression classifies passages as comedy, history or tragedy by the mean of their features.
Six plays are for the test of both; a seed decides weights, batches and masks.
"""

import functools
import re
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).parent / "claims"))  # common

from common import charts, nets
from common.claim import Finding, Result, Scale, by_cell, interval, main
from common.speech import TEST
from dropout_jax import fold
from dropout_jax.nn import Dropout, Encoder
from minigpt.data import load_plays, play_folders
from minigpt.tasks.classification.shakespeare_genres import GENRES

WORDS, LENGTH, MASK, UNKNOWN = 2000, 64, 0, 1
NONE, UNTRAINED = "none", "untrained"
SETTINGS = {  # the rates: hidden, attention
    NONE: (0.0, 0.0),
    "hidden 0.1": (0.1, 0.0),
    "attention 0.1": (0.0, 0.1),
    "both 0.1": (0.1, 0.1),
    "both 0.3": (0.3, 0.3),
}
DEVLIN = "Devlin et al., BERT, NAACL 2019"


def split_words(play: str) -> list[str]:
    """The words and punctuation marks of a play, without the speakers' names."""
    speeches = (speech.partition("\n")[2] for speech in play.split("\n\n"))
    return re.findall(r"[\w']+|[^\w\s]", " ".join(speeches).lower())


def load_passages() -> dict[str, np.ndarray]:
    """The passages of each play, as ids of words; only plays outside the test give the words."""
    plays = {name: split_words(text) for name, text in load_plays().items()}
    counts = Counter(word for name in plays if name not in TEST for word in plays[name])
    ids = {word: i + 2 for i, (word, _) in enumerate(counts.most_common(WORDS - 2))}
    rows = {name: [ids.get(word, UNKNOWN) for word in words] for name, words in plays.items()}
    return {
        name: np.reshape(row[: len(row) // LENGTH * LENGTH], (-1, LENGTH))
        for name, row in rows.items()
    }


def mask_words(ids: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return ids of which 15 % in each row are masked, replaced or kept, and their positions."""
    count = round(0.15 * ids.shape[1])
    positions = jax.random.uniform(fold(key, "positions"), ids.shape).argsort(1)[:, :count]
    kept = jnp.take_along_axis(ids, positions, 1)
    other = jax.random.randint(fold(key, "words"), kept.shape, UNKNOWN + 1, WORDS)
    draw = jax.random.uniform(fold(key, "kind"), kept.shape)
    new = jnp.where(draw < 0.8, MASK, jnp.where(draw < 0.9, other, kept))
    return ids.at[jnp.arange(len(ids))[:, None], positions].set(new), positions


class MaskedLM(nnx.Module):
    """BERT's encoder of words; a key means training, None evaluation."""

    def __init__(self, layers: int, features: int, hidden, attention, rngs: nnx.Rngs):
        rates = {"attn_weights": attention, "attn_out": hidden, "mlp_out": hidden}
        self.word = nnx.Embed(WORDS, features, rngs=rngs)
        self.position = nnx.Embed(LENGTH, features, rngs=rngs)
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.drop = Dropout(hidden)
        self.encoder = Encoder(layers, features, 4, rates=rates, norm="post", rngs=rngs)
        self.transform = nnx.Linear(features, features, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(WORDS))

    def __call__(self, ids, key=None):
        """The features of every position."""
        x = self.norm(self.word(ids) + self.position(jnp.arange(ids.shape[1])))
        x = self.drop(x, rngs=fold(key, "embed"), deterministic=key is None)
        return self.encoder(x, rngs=fold(key, "encoder"), deterministic=key is None)

    def loss(self, ids, masking_key, key=None):
        """The cross-entropy of the words that are masked, replaced or kept."""
        masked, positions = mask_words(ids, masking_key)
        x = jnp.take_along_axis(self(masked, key), positions[..., None], 1)
        logits = self.word.attend(nnx.gelu(self.transform(x))) + self.bias[...]
        labels = jnp.take_along_axis(ids, positions, 1)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@functools.partial(jax.jit, static_argnames="sizes")
def train(passages, key, rates: tuple[float, float], sizes: tuple[int, ...]) -> nnx.State:
    """Train on the passages with Adam; one program for all rates and seeds."""
    layers, features, steps, batch = sizes
    graph, params = nnx.split(MaskedLM(layers, features, *rates, nnx.Rngs(params=key)))

    def loss(params, rows, key):
        model = nnx.merge(graph, params)
        return model.loss(passages[rows], fold(key, "masking"), fold(key, "dropout"))

    tx = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 2e-3, steps // 10, steps))
    size = {"steps": steps, "batch_size": batch, "tx": tx}
    return nets.fit(loss, params, len(passages), key, **size)


@nnx.jit
def evaluate(model, passages) -> tuple[jax.Array, jax.Array]:
    """The loss of each passage, with masks that all models share, and its mean features."""
    keys = jax.random.split(jax.random.key(0), len(passages))

    def one(row):
        ids, key = row
        return model.loss(ids[None], key), model(ids[None])[0].mean(0)

    return jax.lax.map(one, (passages, keys), batch_size=128)


def label_passages(passages: dict, is_test: bool, limit: int | None):
    """The passages of comedies, histories and tragedies, and their genres."""
    genres = {name: GENRES.get(folder) for name, folder in play_folders().items()}
    names = [name for name in passages if genres[name] and (name in TEST) == is_test]
    labels = [genres[name] for name in names for _ in passages[name][:limit]]
    return np.concatenate([passages[name][:limit] for name in names]), labels


def score(train, labels, test, truth) -> float:
    """Macro-F1 of logistic regression on standardized features."""
    scale = StandardScaler().fit(train).transform
    model = LogisticRegression(class_weight="balanced", max_iter=2000).fit(scale(train), labels)
    return float(f1_score(truth, model.predict(scale(test)), average="macro"))


def experiment(scale: Scale) -> Result:
    """Train with every setting and seed; then the loss and the genres of the test's plays."""
    sizes = scale.pick((1, 8, 3, 4), (2, 64, 1000, 32), (4, 128, 6000, 64))
    passages, limit = load_passages(), scale.pick(4, None, None)
    unlabelled = jnp.concatenate([passages[name] for name in passages if name not in TEST])
    (ids, labels), (test, truth) = (label_passages(passages, each, limit) for each in (False, True))
    losses, scores = ({name: np.zeros(0) for name in (UNTRAINED, *SETTINGS)} for _ in range(2))
    for seed in scale.track(range(scale.pick(2, 3, 5)), "seeds"):
        key = jax.random.key(seed)
        for name in losses:
            model = MaskedLM(sizes[0], sizes[1], 0.0, 0.0, nnx.Rngs(params=key))
            if name != UNTRAINED:
                nnx.update(model, train(unlabelled, key, SETTINGS[name], sizes))
            (_, features), (loss, others) = (evaluate(model, each) for each in (ids, test))
            losses[name] = np.append(losses[name], loss.mean())
            scores[name] = np.append(scores[name], score(features, labels, others, truth))
    counts = [[np.bincount(row, minlength=WORDS) for row in each] for each in (ids, test)]
    baseline = score(counts[0], labels, counts[1], truth)
    levels = jax.tree.map(interval, {"loss": losses, "macro-F1": scores})
    numbers = levels | {"macro-F1 of word counts": baseline}
    return Result(findings(losses, scores, baseline), picture(levels, baseline), numbers)


def findings(losses: dict, scores: dict, baseline: float) -> list[Finding]:
    """The features against an untrained encoder's and word counts; dropout on both measures."""

    def compare(text, what, values, names, base, sign=1):
        cells = {name: interval(values[name] - base) for name in names}
        return by_cell(text, DEVLIN, what, cells, "dropout is", sign=sign)

    names, better = list(SETTINGS), "Frozen features classify better than"
    lower = "Dropout lowers the loss of masked words in unseen plays"
    return [
        compare(f"{better} an untrained encoder's", "F1", scores, names, scores[UNTRAINED]),
        compare(f"{better} counts of the words", "F1", scores, names, baseline),
        compare(lower, "nats", losses, names[1:], losses[NONE], sign=-1),
        compare("Dropout makes better features", "F1", scores, names[1:], scores[NONE]),
    ]


def picture(levels: dict, baseline: float):
    figure, panels = charts.panels(5, 5)
    for axes, (what, cells) in zip(panels, levels.items(), strict=True):
        cells = {name: cell for name, cell in cells.items() if what != "loss" or name != UNTRAINED}
        charts.points(axes, range(len(cells)), cells.values(), "frozen features")
        axes.set_xticks(range(len(cells)), [name.replace(" ", "\n") for name in cells])
        axes.set(xlabel="dropout", ylabel=f"{what}, plays of the test")
    panels[1].axhline(baseline, color="C1", linestyle="--", label="counts of the words")
    panels[1].legend()
    return figure


if __name__ == "__main__":
    main(experiment, __doc__, __file__)
