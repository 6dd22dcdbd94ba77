"""The classifier: padding, frozen parameters, exact repeats, its folder, its command."""

import contextlib
import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import DATA, MODEL, TEXT, with_dropout

from dropout_jax import fold
from minigpt.cli.main import main
from minigpt.config import ClassifyConfig, DropoutConfig, OptimConfig
from minigpt.data.tokenizer import Tokenizer
from minigpt.model.gpt import GPT, set_rates
from minigpt.tasks import classification
from minigpt.tasks.classification.classifier import load
from minigpt.tasks.classification.data import LabelledSplit, LabelledTexts, pad_texts
from minigpt.tasks.classification.model import Classifier, pool_features
from minigpt.tasks.classification.predict import predict_texts
from minigpt.tasks.classification.train import PretrainedModel, example_indices, fit

TOKENIZER = Tokenizer("abc ")
BODY = PretrainedModel(MODEL, 4, TOKENIZER, None)
SETTINGS = ClassifyConfig(
    steps=40, batch_size=6, eval_every=10, optim=OptimConfig(2e-2, 2e-3, warmup_steps=5)
)


@pytest.fixture(scope="module")
def trained():
    with jax.numpy_dtype_promotion("standard"):
        return fit(BODY, DATA, SETTINGS)


def same(one, other):
    """Whether every array is the same, bit for bit."""
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


# The model.


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["mean", "last", "first"])
@pytest.mark.parametrize("training", [True, False])
def test_what_padding_holds_changes_nothing_bit_for_bit(pool, training, key):
    config = with_dropout(embed=0.25, attn_weights=0.25, attn_out=0.25, mlp_out=0.25)
    graph, params = nnx.split(Classifier(config, 4, 2, pool, key=key))
    zeros = pad_texts(TOKENIZER, DATA.test.texts[:4], MODEL.block_size)
    padding = np.arange(MODEL.block_size) >= zeros.lengths[:, None]
    filled = zeros._replace(tokens=np.where(padding, 3, zeros.tokens))
    assert (zeros.tokens != filled.tokens).any()

    @jax.jit
    def loss(params, rows):
        model = nnx.merge(graph, params)
        logits = model(rows.tokens, rows.lengths, key=key if training else None, rate=0.3)
        return jax.nn.log_softmax(logits)[:, 0].sum(), logits

    results = [jax.value_and_grad(loss, has_aux=True)(params, rows) for rows in (zeros, filled)]
    assert same(*results)
    assert np.abs(results[0][1]["body"]["blocks"][0]["attn"]["qkv"]["kernel"]).max() > 0 or (
        pool == "first"  # it sees nothing but itself, and its weights of attention are all 1
    )


def test_pooling_equals_a_loop(key):
    features = np.asarray(jax.random.normal(key, (3, 5, 2)))
    lengths = np.array([1, 3, 5])
    poisoned = np.where((np.arange(5) < lengths[:, None])[..., None], features, np.nan)
    poolings = {"last": lambda x: x[-1], "first": lambda x: x[0], "mean": lambda x: x.mean(axis=0)}
    for pool, reduce in poolings.items():
        by_loop = [reduce(x[:n]) for x, n in zip(features, lengths, strict=True)]
        np.testing.assert_allclose(
            pool_features(jnp.asarray(poisoned), jnp.asarray(lengths), pool), by_loop, rtol=1e-6
        )


@pytest.mark.slow
def test_rates_that_are_set_are_those_of_the_config(key):
    """Traced rates too, which is how one compiled step serves every rate."""
    rates, tokens = DropoutConfig.uniform(0.25), jnp.ones((2, MODEL.block_size), int)
    given = dataclasses.replace(MODEL, dropout=rates)
    graph, params = nnx.split(GPT(MODEL, 4, rngs=nnx.Rngs(0)))

    @jax.jit
    def traced(rate):
        model = nnx.merge(graph, params)
        set_rates(model, DropoutConfig.uniform(rate))
        return model(tokens, key=key)

    wanted = GPT(given, 4, rngs=nnx.Rngs(0))(tokens, key=key)
    np.testing.assert_allclose(traced(jnp.float32(0.25)), wanted, atol=1e-6)
    off = GPT(MODEL, 4, rngs=nnx.Rngs(0))(tokens, key=None)
    np.testing.assert_allclose(traced(jnp.float32(0)), off, atol=1e-6)
    assert np.abs(wanted - off).max() > 1e-2


# Training.


@pytest.mark.slow
def test_it_learns_what_can_be_learned_and_keeps_the_best(trained):
    losses = [look["val_loss"] for look in trained.evaluations]
    scores = [look["val_macro_f1"] for look in trained.evaluations]
    assert min(losses) < 0.75 * losses[0]
    best = trained.evaluations[int(np.argmax(scores))]
    assert trained.step == best["step"]
    rows, truth = trained.rows(DATA.validation.texts), DATA.validation.labels
    chances = jax.nn.softmax(jnp.asarray(trained.logits(rows)))
    own = chances[np.arange(len(truth)), [trained.labels.index(label) for label in truth]]
    assert -np.log(own).mean() == pytest.approx(best["val_loss"], rel=1e-5)
    right = [a == b for a, b in zip(trained.predict(DATA.validation.texts), truth, strict=True)]
    assert np.mean(right) == pytest.approx(best["val_accuracy"])


@pytest.mark.slow
def test_the_same_settings_give_the_same_bits_and_every_setting_others(trained):
    again = fit(BODY, DATA, SETTINGS)
    assert again.evaluations == trained.evaluations
    assert same(again.params, trained.params)
    short = dataclasses.replace(SETTINGS, steps=10)
    params = fit(BODY, DATA, short).params
    for other in ({"seed": 1}, {"head_dropout": 0.3}, {"dropout": 0.3}, {"pool": "last"}):
        assert not same(fit(BODY, DATA, dataclasses.replace(short, **other)).params, params), other


@pytest.mark.slow
def test_frozen_parameters_stay_and_the_others_move(key):
    body = BODY._replace(params=nnx.state(GPT(MODEL, 4, rngs=nnx.Rngs(5))))
    settings = dataclasses.replace(SETTINGS, freeze=1, steps=10)
    body_params = nnx.to_pure_dict(fit(body, DATA, settings).params)["body"]
    before = nnx.to_pure_dict(body.params)
    for name in ("tokens", "positions"):
        assert same(body_params[name], before[name])
    assert same(body_params["blocks"][0], before["blocks"][0])
    assert not same(body_params["blocks"][1], before["blocks"][1])
    with pytest.raises(ValueError, match="freeze=3 is not allowed: the model has 2 blocks"):
        fit(body, DATA, dataclasses.replace(SETTINGS, freeze=3))


@pytest.mark.slow
def test_a_body_that_scans_over_its_layers_is_the_same_body():
    scanned = dataclasses.replace(MODEL, scan_layers=True)
    bodies = [
        PretrainedModel(config, 4, TOKENIZER, nnx.state(GPT(config, 4, rngs=nnx.Rngs(5))))
        for config in (MODEL, scanned)
    ]
    settings = dataclasses.replace(SETTINGS, steps=10)
    assert same(*(fit(body, DATA, settings).params for body in bodies))


@pytest.mark.parametrize("part", LabelledSplit._fields)
def test_a_text_that_cannot_be_read_is_told_before_the_training(part):
    """Of the test too, which is read at the end: or its training would be lost."""
    strange = LabelledTexts(["ab", "axc"], ["with a", "with b"])
    looks = []
    with pytest.raises(ValueError, match=f"^the {part} part's example 2, 'axc': text has 'x'"):
        fit(BODY, DATA._replace(**{part: strange}), SETTINGS, looks.append)
    assert looks == []


@pytest.mark.slow
def test_training_stops_when_the_validation_loss_no_longer_falls():
    settings = dataclasses.replace(SETTINGS, steps=200, eval_every=1, patience=3)
    classifier = fit(BODY, DATA, dataclasses.replace(settings, optim=OptimConfig(0.5, 0.5)))
    assert len(classifier.evaluations) == classifier.step + 3 < 200


def test_every_example_comes_once_an_epoch():
    indices = np.concatenate([example_indices(3, step, 10, 4) for step in range(5)])
    assert sorted(indices[:10]) == sorted(indices[10:]) == list(range(10))
    assert list(indices[:10]) != list(indices[10:])
    assert not np.array_equal(example_indices(4, 0, 10, 4), indices[:4])


@pytest.mark.slow
def test_balanced_weights_weigh_every_class_the_same():
    uneven = DATA._replace(
        train=LabelledTexts(DATA.train.texts[:9], ["with a"] * 3 + ["with b"] * 6)
    )
    settings = dataclasses.replace(SETTINGS, steps=1, head_dropout=0.0, dropout=0.0, batch_size=9)
    plain, balanced = (
        fit(BODY, uneven, dataclasses.replace(settings, class_weights=each)).evaluations[0][
            "train_loss"
        ]
        for each in ("none", "balanced")
    )
    unchanged = dataclasses.replace(settings, optim=OptimConfig(1e-12, 1e-12, warmup_steps=0))
    model = fit(BODY, uneven, unchanged)
    chances = jax.nn.log_softmax(jnp.asarray(model.logits(model.rows(uneven.train.texts))))
    losses = -np.concatenate([chances[:3, 0], chances[3:, 1]])
    assert plain == pytest.approx(losses.mean(), rel=1e-5)
    assert balanced == pytest.approx((losses[:3].mean() + losses[3:].mean()) / 2, rel=1e-5)


# Its folder.


@pytest.mark.slow
def test_a_saved_classifier_is_the_same_classifier(trained, tmp_path):
    trained.save(tmp_path)
    loaded = load(tmp_path)
    assert same(loaded.params, trained.params)
    assert loaded._replace(params=None) == trained._replace(params=None)
    assert loaded.predict(DATA.test.texts) == trained.predict(DATA.test.texts)
    rows = loaded.rows(DATA.test.texts)
    assert same(loaded.model(*rows, key=None), trained.model(*rows, key=None))
    [arrays] = tmp_path.rglob("*.safetensors")
    arrays.write_bytes(arrays.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match="damaged"):
        load(tmp_path)
    with pytest.raises(ValueError, match="has no classifier"):
        load(tmp_path / "empty")


def test_a_key_gives_the_model_dropout_at_its_rates(trained, key):
    """What Monte Carlo dropout needs: passes differ by key, and not without."""
    rows = trained.rows(DATA.test.texts)
    assert trained.model.rate == SETTINGS.head_dropout
    assert trained.model.body.config.dropout.embed == SETTINGS.dropout
    assert not same(trained.model(*rows, key=key), trained.model(*rows, key=None))


# Its command.


@pytest.mark.slow
def test_the_command_writes_a_classifier_that_loads(tmp_path, capsys, monkeypatch):
    run, data = tmp_path / "run", tmp_path / "x.csv"
    (tmp_path / "text.txt").write_text(TEXT)
    tiny = ["--steps", "2", "--batch-size", "2", "--sample-tokens", "0", "--model.n-layer", "1"]
    tiny += ["--model.n-embd", "8", "--model.block-size", "16", "--eval-batches", "1"]
    text = ["--data", str(tmp_path / "text.txt"), "--run-dir", str(run), "--mesh", "data=1"]
    main(["train", *text, *tiny])
    lines = [f'"{word} that is the {i}",{word}' for word in ("be", "not") for i in "questions!"]
    data.write_text("text,label\n" + "\n".join(lines))
    command = ["classify", str(run), "--data", str(data), "--steps", "6", "--eval-every", "3"]
    with pytest.raises(SystemExit):
        main(command)
    assert "a character that the tokenizer" in capsys.readouterr().err
    with data.open("a") as file:
        file.write("\n" + "\n".join(["be,be"] * 30))
    with pytest.raises(SystemExit):
        main(command)
    assert "3 texts of the test part are also in another part" in capsys.readouterr().out
    data.write_text("text,label\n" + "\n".join(lines))
    command += ["--unknown", "drop", "--batch-size", "4"]
    for _ in range(2):
        main(command)
    brackets = tmp_path / "[bold] and [" / "x]"  # rich's markup, if it were taken for that
    main([*command, "--out", str(brackets)])
    printed = capsys.readouterr().out
    assert f"confusion.png: {brackets}\n" in printed
    assert "also in another part" not in printed
    for part in ("majority class", "tf-idf", "GPT", "macro-F1", "precision", "as not"):
        assert part in printed
    reports = [run / folder / "report.json" for folder in ("classify", "classify-2")]
    assert reports[0].read_text() == reports[1].read_text()
    report = json.loads(reports[0].read_text())
    assert np.sum(report["test"]["GPT"]["confusion"]) == report["texts"]["test"] == 2
    assert (run / "classify" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    one, two = (load(path.parent) for path in reports)
    assert same(one.params, two.params)
    assert one.labels == ("be", "not")
    _labels_new_texts(run, tmp_path, one, capsys)
    with pytest.raises(SystemExit):
        main([*command, "--out", str(run / "classify")])
    assert "it must be a new or an empty folder" in capsys.readouterr().err

    def fails(*_):
        raise ValueError("no words")

    monkeypatch.setattr(classification, "tfidf", fails)
    with pytest.raises(SystemExit):
        main([*command, "--out", str(tmp_path / "kept")])
    assert same(load(tmp_path / "kept").params, one.params)  # what comes after loses no training


@contextlib.contextmanager
def replace_stdin(file):
    before = os.dup(0)
    os.dup2(file.fileno(), 0)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


def _labels_new_texts(run, folder, classifier, capsys):
    """By the newest classifier of the run; as many lines as texts, from a file or stdin."""
    texts = ["not that is", "be or be or be or be or be or be or be or be", "nnn"]
    (folder / "new.txt").write_text("\n".join(texts) + "\n")
    command = ["classify", str(run), "--predict"]
    main([*command, str(folder / "new.txt")])
    out, error = capsys.readouterr()
    rows = [line.split("\t") for line in out.splitlines()]
    assert [row[0] for row in rows] == classifier.predict(texts)
    assert all(0.5 <= float(row[1]) <= 1 and len(row) == 3 for row in rows)
    assert error.startswith("1 of 3 texts are longer than the model's context")
    with (folder / "new.txt").open() as file, replace_stdin(file):
        main([*command, "-", "--passes", "3", "--json"])
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["text"] for record in records] == texts
    for record in records:
        assert sum(record["probabilities"].values()) == pytest.approx(1)
        assert record["probability"] == record["probabilities"][record["label"]]
        assert 0 <= record["information"] < 0.7  # log 2
    for words, message in (
        (["--predict", str(folder / "new.txt"), "--passes", "1"], "passes=1 is not allowed"),
        (["--passes", "3"], "passes=3 is not allowed without --predict"),
    ):
        with pytest.raises(SystemExit):
            main(["classify", str(run), *words])
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_passes_of_a_prediction_are_the_models_own(trained):
    """The mean and the mutual information of softmax(model(rows, key)) by a loop."""
    texts = ["abc", "cab a", "b"]
    (first, *_), size = predict_texts(trained, texts, passes=4, seed=2), SETTINGS.batch_size
    rows = trained.rows([texts[i % 3] for i in range(size)])
    key = fold(jax.random.key(2), "predict", 0)
    each = [
        jax.nn.softmax(trained.model(rows.tokens, rows.lengths, key=fold(key, i)))[0]
        for i in range(4)
    ]
    mean = np.mean(each, 0)
    entropy = [-np.sum(p * np.log(p)) for p in (*each, mean)]
    assert list(first.probabilities.values()) == pytest.approx(mean, rel=1e-5)
    assert first.information == pytest.approx(entropy[4] - np.mean(entropy[:4]), abs=1e-5)
    assert len({tuple(np.asarray(p)) for p in each}) == 4


@pytest.mark.slow
def test_every_batch_of_a_prediction_has_its_own_masks(trained):
    size = SETTINGS.batch_size
    predictions = predict_texts(trained, ["abc"] * (2 * size), passes=2)
    assert predictions[0].probabilities != predictions[size].probabilities


def test_passes_need_dropout(trained):
    still = trained._replace(config=MODEL, settings=dataclasses.replace(SETTINGS, head_dropout=0.0))
    with pytest.raises(ValueError, match="trained without dropout"):
        predict_texts(still, ["abc"], passes=2)
