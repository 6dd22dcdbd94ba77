"""The claims on uncertainty: the approximations they write, and verdicts that can change."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments import load, run_smallest

pytestmark = pytest.mark.claims

claim, measures = load("common.claim"), load("common.measures")
methods, texts = load("common.methods"), load("common.texts")
uncertainty, out_of_distribution = load("uncertainty"), load("out_of_distribution")
active_learning, genre_uncertainty = load("active_learning"), load("genre_uncertainty")
gpt_uncertainty, gpt_other_texts = load("gpt_uncertainty"), load("gpt_other_texts")


def last_layer():
    """A layer of 4 inputs and 3 classes, and 30 rows of what it is given."""
    rng = np.random.default_rng(0)
    layer = {"weights": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)}
    return jax.tree.map(jnp.float32, (layer, rng.normal(size=(30, 4)), np.arange(30) % 3))


def test_laplace_is_the_inverse_of_the_losss_hessian():
    layer, features, labels = last_layer()
    inputs = jnp.concatenate([features, jnp.ones((30, 1))], axis=1)

    def loss(flat):  # the negative log posterior; its Hessian does not depend on the labels
        logits = jax.nn.log_softmax(inputs @ flat.reshape(3, 5).T)
        chosen_logits = jnp.take_along_axis(logits, labels.astype(int)[:, None], 1)
        return -chosen_logits.sum() + 0.7 * jnp.square(flat).sum() / 2

    flat = jnp.concatenate([layer["weights"], layer["bias"][None]]).T.ravel()
    ours = measures.laplace_covariance(layer, features, 0.7)
    np.testing.assert_allclose(ours @ jax.hessian(loss)(flat), np.eye(15), rtol=0, atol=1e-4)


def test_laplaces_logits_have_the_covariance_of_its_weights():
    """Of 20,000 draws: mean within 4.9 sd / sqrt(n), covariances within 4.9 sd of theirs."""
    layer, features, _ = last_layer()
    covariance = measures.laplace_covariance(layer, features, 0.7)
    rows, count = features[:2], 20_000
    drawn = np.asarray(
        measures.laplace_logits(layer, covariance, rows, jax.random.key(0), count), np.float64
    )
    for i, row in enumerate(np.asarray(rows)):
        jacobian = np.kron(np.eye(3), np.append(row, 1.0))
        wanted = jacobian @ np.asarray(covariance) @ jacobian.T
        mean = np.asarray(row @ layer["weights"] + layer["bias"])
        assert (abs(drawn[:, i].mean(0) - mean) < 4.9 * np.sqrt(wanted.diagonal() / count)).all()
        variances = np.outer(wanted.diagonal(), wanted.diagonal()) + wanted**2
        error = abs(np.cov(drawn[:, i].T) - wanted)
        assert (error < 4.9 * np.sqrt(variances / count) + 2e-5).all()  # 1e-5 is its jitter


def test_selective_accuracy_is_that_of_the_most_confident():
    p = jnp.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [0.45, 0.55]])
    labels = jnp.array([0, 0, 1, 1, 0])  # right, right, wrong, right, wrong
    quality = measures.quality(p, labels, coverage=0.4)
    assert float(quality["accuracy"]) == pytest.approx(0.6)
    assert float(quality["selective"]) == 1
    assert float(measures.quality(p, labels, coverage=0.6)["selective"]) == pytest.approx(2 / 3)


def test_right_probabilities_have_an_ece_above_zero_that_shrinks_with_rows():
    """Errors fall as 1 / sqrt(rows): 100 times the rows, a tenth of the ECE, within a half."""
    p = jax.random.dirichlet(jax.random.key(0), jnp.ones(3), (20_000,))
    few, many = (float(measures.calibrated_ece(p[:n], jax.random.key(1))) for n in (200, 20_000))
    assert 5 < few / many < 20
    sure = jnp.eye(3)[jnp.arange(200) % 3]
    assert float(measures.calibrated_ece(sure, jax.random.key(1))) == 0


def test_the_splits_share_no_image_and_the_unknown_are_eights_and_nines():
    """An image is known by its bytes."""
    everything = load("common.data").load_mnist(5000, 0)
    label_of = {
        np.asarray(x, np.float32).tobytes(): int(y)
        for x, y in zip(everything.x_train, np.asarray(everything.y_train), strict=True)
    }
    (x, y), (validation, _), labels, sets = methods.split(0, 200, 100)
    names = [{image.tobytes() for image in part} for part in (x, validation, sets[methods.IN])]
    assert [len(part) for part in names] == [200, 50, 100]
    assert len(set.union(*names)) == 350
    assert max(*y, *labels) < 8
    assert {label_of[image.tobytes()] for image in sets["digits 8 and 9"]} == {8, 9}
    shuffled = sets["shuffled pixels"]
    np.testing.assert_array_equal(np.sort(shuffled), np.sort(sets[methods.IN]))


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    return run_smallest("uncertainty", tmp_path_factory.mktemp("claims"))


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    return run_smallest("out_of_distribution", tmp_path_factory.mktemp("claims"))


def test_every_method_is_in_the_table_with_its_cost_and_what_it_detects(classifiers, detectors):
    table, last = classifiers["numbers"]["table"], list(methods.COST)[-1]
    assert [row["method"] for row in table] == list(methods.COST)
    assert {row["training runs"] for row in table} == {1, 5}
    assert table[-1]["passes"] == "4"
    for unknown in methods.UNKNOWN:
        runs = [run[last] for run in detectors["numbers"]["runs"]]
        means = [
            f"{np.mean([run[score][unknown] for run in runs]):.3f}"
            for score in out_of_distribution.SCORES.values()
        ]
        assert table[-1][f"AUROC, {unknown}: confidence, information"] == ", ".join(means)


def test_identities_between_the_methods(classifiers, detectors):
    """A temperature changes no answer, and where one pass is all, there is no disagreement."""
    for run in classifiers["numbers"]["runs"]:
        for where in (methods.IN, methods.SHIFTED):
            for net in ("", ", dropout net"):
                warm, plain = run[f"temperature{net}"][where], run[f"softmax{net}"][where]
                assert warm["accuracy"] == plain["accuracy"]
        assert run["MC dropout"][methods.IN] != run["softmax, dropout net"][methods.IN]
    for run in detectors["numbers"]["runs"]:
        assert set(run["softmax"]["by mutual information"].values()) == {0.5}
        assert set(run["MC dropout"]["by mutual information"].values()) != {0.5}


def test_the_verdict_on_detection_follows_the_numbers():
    def verdict(gain):
        runs = []
        for seed in range(3):
            scores = {by: dict.fromkeys(methods.UNKNOWN, 0.7 + seed / 1000) for by in by_names}
            better = {name: value + gain[name] for name, value in scores[by_names[1]].items()}
            of_mc = {by_names[0]: dict.fromkeys(methods.UNKNOWN, 0.99), by_names[1]: better}
            runs.append({"MC dropout": of_mc, "softmax, dropout net": scores})
        return out_of_distribution.findings(runs)[0].verdict

    by_names = list(out_of_distribution.SCORES.values())
    one, *others = methods.UNKNOWN
    assert verdict(dict.fromkeys(methods.UNKNOWN, 0.1)) == claim.HOLDS
    assert verdict(dict.fromkeys(methods.UNKNOWN, -0.1)) == claim.FAILS
    assert verdict({one: 0.1, **dict.fromkeys(others, -0.1)}) == (
        "holds only when the unknown are digits 8 and 9 (not digits rotated by 90°, shuffled "
        "pixels)"
    )


def test_the_verdict_on_calibration_follows_the_numbers(classifiers):
    runs = copy.deepcopy(classifiers["numbers"]["runs"])

    def change(factor, sets):
        for run in runs:
            run["MC dropout"] = copy.deepcopy(run["softmax, dropout net"])
            for where in sets:
                for name in ("ECE", "NLL"):
                    run["MC dropout"][where][name] -= factor
        return uncertainty.findings(runs)[0].verdict

    both = (methods.IN, methods.SHIFTED)
    assert change(0.01, both) == claim.HOLDS
    assert change(0.0, both) == claim.FAILS
    assert change(-0.01, both) == claim.FAILS
    assert change(0.01, both[1:]) == (
        "holds only when measured by ECE on digits rotated by 30° or NLL on digits rotated by 30° "
        "(not ECE on test digits, NLL on test digits)"
    )


def test_active_learning_acquires_the_best_without_a_label():
    score = jnp.arange(100, dtype=jnp.float32)
    labelled = jnp.array([99, 98, 5, 0, 0, 0])
    more = active_learning.acquired(score, labelled, 3)
    assert more.tolist() == list(range(97, 87, -1))
    again = active_learning.acquired(score, labelled, 2)
    assert again.tolist() == list(range(97, 87, -1))


def test_active_learning_labels_no_image_twice_and_begins_with_two_of_each():
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.random((80, 12)), jnp.float32), jnp.arange(80) % 10
    first = active_learning.pick_first_labels(np.asarray(y), 0)
    assert np.bincount(np.asarray(y)[first]).tolist() == [2] * 10
    settings = {"rounds": 3, "steps": 2, "passes": 2}
    firsts = []
    for strategy in range(3):
        with jax.numpy_dtype_promotion("standard"):  # optax
            accuracies, labelled = active_learning.run_strategy(
                (x, y), (x, y), jnp.asarray(first), jax.random.key(0), strategy, **settings
            )
        assert len(set(labelled.tolist())) == 50
        firsts.append(float(accuracies[0]))
    assert len(set(firsts)) == 1  # all begin with the same network


def test_bald_needs_dropout_in_its_passes(monkeypatch):
    layers = load("common.nets").mlp_init(jax.random.key(0), (12, 8, 8, 10))
    x = jnp.asarray(np.random.default_rng(0).random((5, 12)), jnp.float32)
    assert (active_learning.acquisition_scores(layers, x, jax.random.key(1), 20)[1] > 1e-4).all()
    monkeypatch.setattr(active_learning, "RATE", 0.0)
    # Rounding: 20 entropies of at most log 10, 20 * 2^-23 * 2.3 = 5.5e-6.
    assert (active_learning.acquisition_scores(layers, x, jax.random.key(1), 20)[1] < 6e-6).all()


def test_active_learnings_verdict_follows_the_curves():
    noise = np.random.default_rng(0).normal(0, 1e-3, (5, 3, 7))
    labels = 20 + 10 * np.arange(7)

    def verdict(gain):
        accuracies = 0.5 + noise
        accuracies[:, 1] += gain
        return active_learning.findings(accuracies, labels)[0].verdict

    assert verdict(0.1) == claim.HOLDS
    assert verdict(-0.1) == claim.FAILS
    late = np.where(labels > 60, 0.1, -0.1)
    assert verdict(late) == (
        "holds only when there are 70 to 80 labels (not 30 to 40 labels, 50 to 60 labels)"
    )


def test_active_learning_runs(tmp_path):
    result = run_smallest("active_learning", tmp_path)
    accuracy = np.array(result["numbers"]["accuracy"])
    assert accuracy.shape == (3, 3, 3)
    assert (accuracy[:, :, 0] == accuracy[:, :1, 0]).all()


def test_the_gpts_texts_match_their_names():
    text = load("common.data").load_one_play()
    sets = texts.make_windows(text, 6, 32)
    assert tuple(sets) == (texts.KNOWN, *texts.UNKNOWN)
    assert all(batch.inputs.shape == (6, 32) for batch in sets.values())

    def read(name):
        return text.tokenizer.decode(sets[name].inputs.ravel())

    assert "Every kind of dropout" in read("Python")
    assert "Gallia" in read("Latin")
    known, letters = (
        np.sort(np.concatenate([sets[name].inputs, sets[name].targets[:, -1:]], axis=1))
        for name in (texts.KNOWN, texts.SHUFFLED)
    )
    np.testing.assert_array_equal(known, letters)


def test_the_gpts_run(tmp_path):
    for run in run_smallest("gpt_uncertainty", tmp_path)["numbers"]["runs"]:
        assert run["quality"]["softmax"] != run["quality"]["MC dropout"]


def test_the_gpts_and_other_texts_run(tmp_path):
    for run in run_smallest("gpt_other_texts", tmp_path)["numbers"]["runs"]:
        assert tuple(run["AUROC"]) == texts.UNKNOWN
        assert all(0 <= score <= 1 for each in run["AUROC"].values() for score in each.values())
        assert len({each["information"] for each in run["AUROC"].values()}) > 1


def test_the_gpts_verdicts_follow_the_numbers():
    def calibration(loss):
        softmax = {"NLL": 2.0, "ECE": 0.01}
        runs = [
            {"softmax": softmax, "MC dropout": {"NLL": loss + seed / 1000, "ECE": 0.02}}
            for seed in range(3)
        ]
        findings = gpt_uncertainty.findings([{"quality": run} for run in runs])
        return [finding.verdict for finding in findings]

    def detection(information):
        runs = []
        for seed in range(3):
            scores = dict.fromkeys(gpt_other_texts.SCORES.values(), 0.5 + seed / 1000)
            aurocs = {name: scores | {"information": information[name]} for name in information}
            runs.append({"AUROC": aurocs})
        return gpt_other_texts.findings(runs)[0].verdict

    better, worse = dict.fromkeys(texts.UNKNOWN, 0.9), {"Python": 0.4, "Latin": 0.4}
    assert calibration(1.9) == [claim.HOLDS, claim.FAILS]
    assert calibration(2.1) == [claim.FAILS, claim.FAILS]
    assert detection(better) == claim.HOLDS
    assert detection(better | worse) == (
        "holds only when the text is shuffled words or shuffled letters (not Python, Latin)"
    )


def test_control_texts_are_as_long_as_speeches_and_shuffled_letters_are_theirs():
    alphabet = load("common.data").load_one_play().tokenizer.alphabet
    speeches = ["O, that this too too solid flesh would melt", "To be", "Ay, my lord; ay."]
    others = texts.control_texts(speeches, alphabet)
    assert set(others) == {"Python", "Latin", texts.SHUFFLED}
    for pieces in others.values():
        assert [len(piece) for piece in pieces] == [len(speech) for speech in speeches]
        assert set("".join(pieces)) <= set(alphabet)
    assert others["Latin"][0].startswith("Gallia est omnis")
    for piece, speech in zip(others[texts.SHUFFLED], speeches, strict=True):
        assert sorted(piece) == sorted(speech)
    assert others[texts.SHUFFLED] != speeches


def test_summaries_have_the_quality_of_the_first_set_and_the_auroc_of_the_others():
    """Confident and right on the known set; unsure on one unknown set, confident on the other."""
    sure, unsure = jnp.tile(jnp.array([0.9, 0.1]), (20, 1)), jnp.full((20, 2), 0.5)
    one = {"known": sure[None], "doubted": unsure[None], "taken for known": sure[None]}
    split = jnp.stack([jnp.roll(sure, 1, axis=1), sure])  # its samples disagree
    two = {"known": jnp.stack([sure, sure]), "doubted": split, "taken for known": split[:, ::-1]}
    stacks = {name: {"one pass": one[name], "two passes": two[name]} for name in one}
    summaries = measures.summarize(stacks, jnp.zeros(20, jnp.int32))
    assert summaries["one pass"]["quality"]["accuracy"] == 1
    assert summaries["one pass"]["AUROC"] == {
        score: {"doubted": 1, "taken for known": 0.5} for score in ("confidence", "entropy")
    }
    assert summaries["two passes"]["AUROC"]["information"]["doubted"] == 1


@pytest.fixture(scope="module")
def genre(tmp_path_factory):
    return run_smallest("genre_uncertainty", tmp_path_factory.mktemp("claims"))["numbers"]


def test_the_genres_methods_keep_the_identities_between_them(genre):
    """A temperature changes no answer; dropout and other members do change probabilities."""
    assert [row["method"] for row in genre["table"]] == list(genre_uncertainty.METHODS)
    for run in genre["runs"]:
        quality = {method: each["quality"] for method, each in run.items()}
        assert quality["temperature"]["accuracy"] == quality["softmax"]["accuracy"]
        assert quality["temperature"]["NLL"] != quality["softmax"]["NLL"]
        losses = [quality[method]["NLL"] for method in ("softmax", "MC dropout", "ensemble")]
        assert min(np.diff(sorted(losses))) > 1e-5  # more than rounding
        assert "information" not in run["softmax"]["AUROC"]
        assert set(run["MC dropout"]["AUROC"]["information"].values()) != {0.5}


def test_the_genres_verdicts_follow_the_numbers(genre):
    def change(method, amount, names=("ECE", "NLL", "Brier")):
        runs = copy.deepcopy(genre["runs"])
        for run in runs:
            for other in ("temperature", "MC dropout", "ensemble"):
                run[other] = copy.deepcopy(run["softmax"])
                run[other]["AUROC"]["information"] = run["softmax"]["AUROC"]["confidence"]
            for name in names:
                run[method]["quality"][name] -= amount
        return [finding.verdict for finding in genre_uncertainty.findings(runs)[:4]]

    fails = [claim.FAILS] * 4
    assert change("temperature", 0.1) == [claim.FAILS, claim.HOLDS, claim.FAILS, claim.FAILS]
    assert change("ensemble", 0.1) == [claim.FAILS, claim.FAILS, claim.HOLDS, claim.FAILS]
    assert change("MC dropout", 0.1)[0] == claim.HOLDS
    assert change("MC dropout", 0.1, ["ECE"])[0] == (
        "holds only when measured by ECE (not NLL, Brier)"
    )
    assert change("MC dropout", -0.1, ["selective"])[3] == claim.HOLDS
    assert change("MC dropout", 0.0) == fails
