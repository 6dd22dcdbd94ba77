"""`minigpt uncertainty`: the numbers of every character, and how they are shown."""

import dataclasses
import io
import json
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console
from tiny import CONFIG, MODEL, TEXT, with_dropout

from dropout_jax import fold, mc_dropout, mutual_information, predictive_entropy
from minigpt.cli.main import main
from minigpt.config import DropoutConfig, OptimConfig
from minigpt.data.tokenizer import Tokenizer
from minigpt.model.gpt import GPT
from minigpt.tasks.uncertainty import render
from minigpt.tasks.uncertainty.estimate import (
    Uncertainty,
    by_character,
    rates_for_passes,
    stochastic_logits,
    token_uncertainty,
)
from minigpt.training.trainer import train

RATES = DropoutConfig.uniform(0.25)
STRANGE = "<b>&amp; \"quoted\" 'single'\n\n  two spaces\ttab\r\nüber\n"


def model_and_params(model=MODEL, rows=20):
    gpt = GPT(model, rows, rngs=nnx.Rngs(1))
    return gpt, nnx.split(gpt)[1]


@pytest.fixture(scope="module")
def numbers():
    """Of 75 tokens, more than the 32 of the context, by 6 passes."""
    params = model_and_params()[1]
    tokens = np.random.default_rng(0).integers(0, 20, 75)
    logits = stochastic_logits(MODEL, RATES, 20, 20)

    def measure(tokens=tokens, logits=logits, passes=6, seed=5):
        return token_uncertainty(
            logits, params, tokens, block_size=MODEL.block_size, passes=passes, seed=seed
        )

    return tokens, measure


@pytest.mark.slow
def test_the_numbers_are_those_of_mc_dropout_by_hand(numbers):
    """Windows begin at 0, 16, 32 and 48; the last 16 targets of each but the first are new."""
    tokens, measure = numbers
    uncertainty = measure()
    gpt = nnx.merge(
        nnx.split(GPT(with_dropout(**dataclasses.asdict(RATES)), 20, rngs=nnx.Rngs(0)))[0],
        model_and_params()[1],
    )
    key = fold(jax.random.key(5), "uncertainty")
    for i, targets in enumerate([range(1, 33), range(33, 49), range(49, 65), range(65, 75)]):
        start = 16 * i
        window = np.zeros((1, 32), np.int32)
        part = tokens[start : start + 32]
        window[0, : len(part)] = part
        given = jnp.asarray(window)
        of_window = fold(key, "window", i)
        drawn = mc_dropout(
            lambda key, given=given: jax.nn.softmax(gpt(given, key=key)), of_window, 6
        )
        information, entropy = mutual_information(drawn)[0], predictive_entropy(drawn)[0]
        for target in targets:
            position, right = (
                target - 1 - start,
                drawn.mean(0)[0, target - 1 - start, tokens[target]],
            )
            assert uncertainty.information[target] == pytest.approx(
                float(information[position]), abs=2e-6
            )
            assert uncertainty.entropy[target] == pytest.approx(float(entropy[position]), rel=1e-5)
            assert uncertainty.surprise[target] == pytest.approx(-float(jnp.log(right)), rel=1e-5)


@pytest.mark.slow
def test_only_the_first_token_has_no_number(numbers):
    _, measure = numbers
    for each in measure():
        assert np.isnan(each[0])
        assert np.isfinite(each[1:]).all()


def test_the_passes_disagree(numbers):
    information = numbers[1]().information[1:]
    assert (information > 1e-5).mean() > 0.9


def test_the_seed_decides(numbers):
    _, measure = numbers
    one, same, other = (measure(seed=seed).information[1:] for seed in (5, 5, 6))
    assert (one == same).all()
    assert (one != other).any()


def test_a_token_does_not_see_what_follows(numbers):
    tokens, measure = numbers
    changed = tokens.copy()
    changed[40:] = (tokens[40:] + 1) % 20
    before, after = measure(), measure(changed)
    assert (before.information[1:41] == after.information[1:41]).all()
    assert (before.information[41:] != after.information[41:]).any()


@pytest.mark.parametrize("length", [0, 1, 2, 32, 33, 34, 49])
def test_texts_of_any_length(numbers, length):
    tokens, measure = numbers
    uncertainty, whole = measure(tokens[:length]), measure()
    assert len(uncertainty.entropy) == length
    np.testing.assert_array_equal(uncertainty.entropy, whole.entropy[:length])


def test_every_character_has_context():
    """A model that answers by how much it sees: at least half a window, where there is as much."""

    def logits(params, tokens, key):
        context_lengths = jnp.arange(1, tokens.shape[1] + 1, dtype=jnp.float32)
        return jnp.stack([context_lengths, jnp.zeros_like(context_lengths)], -1)[None]

    settings = {"block_size": 8, "passes": 2}
    uncertainty = token_uncertainty(logits, None, np.zeros(30, int), **settings)
    context_lengths = np.log(
        1 / np.expm1(uncertainty.surprise[1:])
    )  # of -log(1 / (1 + exp(-seen)))
    assert context_lengths[:8] == pytest.approx(np.arange(1, 9), rel=1e-2)
    assert (context_lengths[8:] > 4.9).all()


def test_what_has_no_chance_at_all_is_a_finite_surprise():
    """The model is so sure of 0 that the probability of 1 is no float32."""

    def logits(params, tokens, key):
        return jnp.broadcast_to(jnp.array([500.0, 0.0]), (*tokens.shape, 2))

    uncertainty = token_uncertainty(logits, None, np.array([0, 1, 0]), block_size=8, passes=2)
    assert uncertainty.surprise[1:] == pytest.approx([126 * np.log(2), 0])


@pytest.mark.parametrize("scan_layers", [False, True])
def test_unused_rows_of_the_table_have_no_part(scan_layers):
    config = dataclasses.replace(MODEL, scan_layers=scan_layers)
    params = model_and_params(config, rows=40)[1]
    tokens = np.arange(20)
    uncertainty = token_uncertainty(
        stochastic_logits(config, RATES, 40, 20), params, tokens, block_size=32, passes=3
    )
    assert np.nanmax(uncertainty.entropy) <= np.log(20) + 1e-5


@pytest.mark.parametrize(
    ("trained", "given", "wanted"),
    [
        (RATES, None, RATES),
        (RATES, 0.1, DropoutConfig.uniform(0.1)),
        (DropoutConfig(), 0.1, DropoutConfig.uniform(0.1)),
        (DropoutConfig(drop_path=0.2), None, DropoutConfig(drop_path=0.2)),
    ],
)
def test_the_rates_of_the_passes(trained, given, wanted):
    assert rates_for_passes(trained, given) == wanted


@pytest.mark.parametrize(("trained", "given"), [(DropoutConfig(), None), (RATES, 0.0)])
def test_a_rate_of_zero_is_refused_with_the_remedy(trained, given):
    with pytest.raises(ValueError, match=f"dropout={given} is not allowed.*--dropout 0.1"):
        rates_for_passes(trained, given)


def test_a_single_pass_is_refused(numbers):
    with pytest.raises(ValueError, match="passes=1"):
        numbers[1](passes=1)


def test_a_character_of_several_bytes_has_their_sum():
    """ü is two bytes and € three; the first byte has no number."""
    each = np.array([np.nan, 1.0, 2.0, 3.0, 4.0, 5.0])
    uncertainty = by_character("aü€", Tokenizer(None), Uncertainty(each, each, each))
    np.testing.assert_array_equal(uncertainty.entropy, [np.nan, 3, 12])
    same = by_character("abcdef", Tokenizer("abcdef"), Uncertainty(each, each, each))
    assert same.entropy is each


def test_levels_are_tenths_of_the_top():
    values = np.array([np.nan, 0, 0.19, 0.21, 1.99, 2, 5])
    assert render.color_levels(values, 2.0).tolist() == [-1, 0, 0, 1, 9, 9, 9]
    assert render.color_scale_max(values, None) == 5
    assert render.color_scale_max(values, 3.0) == 3
    assert render.color_scale_max(np.array([np.nan]), None) == 1
    with pytest.raises(ValueError, match="top=0"):
        render.color_scale_max(values, 0.0)


class Page(HTMLParser):
    """What a browser would show in the element "text", and the titles there."""

    def __init__(self, page):
        super().__init__()
        self.open, self.content, self.titles, self.classes, self.links = [], "", [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.links += [value for name, value in attrs.items() if name in ("href", "src")]
        if tag != "meta":
            self.open.append((tag, attrs.get("id")))
        if ("pre", "text") in self.open and tag == "span":
            self.titles.append(attrs["title"])
            self.classes.append(attrs.get("class"))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if ("pre", "text") in self.open:
            self.content += data


def test_the_pages_text_is_the_text_and_its_titles_have_the_numbers():
    values = np.linspace(0, 2, len(STRANGE))
    values[0] = np.nan
    about = {"information": values, "entropy": values * 2, "surprise": values * 3}
    written = render.to_html(STRANGE, about, "entropy", 4.0)
    for escaped in ("&lt;", "&gt;", "&amp;", "&quot;", "&#13;"):
        assert f">{escaped}</span>" in written
    page = Page(written)
    assert page.content == STRANGE
    assert page.open == []
    assert page.links == []  # nothing else is needed
    assert len(page.titles) == len(STRANGE)
    assert page.titles[0].startswith('"<": ')
    assert "no text before it" in page.titles[0]
    assert page.titles[-1] == '"\\n": information 2.000, entropy 4.000, surprise 6.000'
    assert page.classes[0] is None
    assert page.classes[-1] == "l9"


def printed(text, values, **options):
    out = io.StringIO()
    console = Console(file=out, width=20, highlight=False, **options)
    render.print_colored(console, text, values, "entropy", 1.0)
    return out.getvalue()


def test_without_colors_every_line_has_its_levels_below_it():
    values = np.array([np.nan, 0.15, 0.95, 0.35, 0.45])
    lines = printed("ab\ncd", values).splitlines()
    assert lines[-4:] == ["ab↵", ".19", "cd", "34"]


def test_without_colors_long_lines_are_cut_to_the_width():
    values = np.tile(np.arange(10) / 10 + 0.05, 5)
    lines = printed("x" * 50, values).splitlines()[2:]
    assert lines == ["x" * 20, "01234567890123456789"] * 2 + ["x" * 10, "0123456789"]


def test_with_colors_the_text_is_there_and_levels_are_its_ground():
    values = np.array([np.nan, 0.05, 0.95, 0.95, 0.05])
    output = printed("ab\nc[", values, force_terminal=True, color_system="truecolor")
    red = "\x1b[38;2;0;0;0;48;2;242;80;58m"
    assert output.endswith(f"ab{red}↵\x1b[0m\n{red}c\x1b[0m[\n")


def test_commands_to_the_terminal_are_not_passed_on():
    output = printed("a\x1b[31mb", np.full(7, 0.5), force_terminal=True, color_system="truecolor")
    assert "\x1b[31m" not in output
    assert "\N{REPLACEMENT CHARACTER}" in output


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that has learned its text, and one that was trained without dropout."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text(TEXT)
    for name, rates, steps in (("out", DropoutConfig.uniform(0.1), 200), ("zero", None, 2)):
        model = dataclasses.replace(MODEL, n_embd=32, dropout=rates or DropoutConfig())
        config = dataclasses.replace(
            CONFIG,
            data=folder / "text.txt",
            run_dir=folder / name,
            **{"steps": steps, "batch_size": 8, "mesh": "data=1", "eval_every": 1000},
            model=model,
            optim=OptimConfig(learning_rate=1e-2, warmup_steps=min(10, steps)),
        )
        with jax.numpy_dtype_promotion("standard"):
            train(config, folder / name, Console(file=io.StringIO()))
    return folder


def command(capsys, folder, *words):
    main(["uncertainty", str(folder), *words])
    return capsys.readouterr().out


@pytest.mark.slow
def test_gibberish_is_less_certain_than_the_text_of_the_training(trained, capsys):
    known = "or not to be, that is the question"
    letters = "".join(np.random.default_rng(0).permutation(list(known)))
    one, other = (
        json.loads(command(capsys, trained / "out", "--text", text, "--json"))
        for text in (known, letters)
    )
    for name, times in (("information", 1.2), ("entropy", 1.1), ("surprise", 5)):
        assert np.mean(other[name][8:]) > times * np.mean(one[name][8:]), name


@pytest.mark.slow
def test_the_command_shows_the_text_and_writes_the_page(trained, capsys, tmp_path):
    file, page = tmp_path / "some.txt", tmp_path / "page.html"
    file.write_text("To be\nthe mind")
    words = ("--file", str(file), "--html", str(page), "--measure", "surprise", "--passes", "4")
    one = command(capsys, trained / "out", *words)
    assert "surprise" in one.splitlines()[0]
    assert "To be↵" in one.splitlines()
    assert "the mind" in one.splitlines()
    assert Page(page.read_text(encoding="utf-8")).content == "To be\nthe mind"
    assert command(capsys, trained / "out", *words) == one
    assert command(capsys, trained / "out", *words, "--seed", "1") != one


def assert_mistake(capsys, message, run, *words):
    with pytest.raises(SystemExit) as stopped:
        command(capsys, run, *words)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--text", "To be", "--top", "0"), "top=0"),
        (("--text", "To be", "--html", "."), "html='.' is not allowed: it must be a file"),
        (("--text", "To be", "--html", "no/u.html"), "mkdir -p no."),
    ],
)
def test_a_mistake_is_one_line_before_a_run_is_read(tmp_path, capsys, words, message):
    assert_mistake(capsys, message, tmp_path / "nowhere", *words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("zero", "--text", "To be"), "dropout=None is not allowed"),
        (("out", "--text", "To be", "--dropout", "0"), "--dropout 0.1"),
        (("out", "--text", "To be", "--dropout", "1.5"), "dropout=1.5"),
        (("out", "--text", ""), "text=''"),
        (("out", "--text", "Zürich"), "does not know"),
        (("out", "--text", "To be", "--top", "-1"), "top=-1"),
        (("out",), "--text or --file"),
        (("out", "--text", "To be", "--file", "text.txt"), "--text or --file"),
        (("out", "--file", "missing.txt"), "No such file"),
    ],
)
def test_a_mistake_with_a_run_is_one_line(trained, capsys, words, message):
    assert_mistake(capsys, message, trained / words[0], *words[1:])


@pytest.mark.slow
def test_files_and_arguments_are_decoded_as_training_texts_are(trained, capsys, tmp_path):
    (tmp_path / "some.txt").write_bytes("\ufeffTo be\r\nor".encode())
    (tmp_path / "wide.txt").write_text("To be", encoding="utf-16")
    words = ("--passes", "2", "--json")
    for source in (("--file", str(tmp_path / "some.txt")), ("--text", "\ufeffTo be\r\nor")):
        result = json.loads(command(capsys, trained / "out", *source, *words))
        assert result["text"] == "To be\nor"
    for source, message in (
        (("--file", str(tmp_path / "wide.txt")), "it is UTF-16 text"),
        (("--text", "caf\udce9"), "text='caf\\udce9' is not allowed: it must be UTF-8 text"),
    ):
        with pytest.raises(SystemExit):
            command(capsys, trained / "out", *source, *words)
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1


@pytest.mark.slow
def test_a_run_without_dropout_can_be_given_a_rate(trained, capsys):
    numbers = json.loads(
        command(capsys, trained / "zero", "--text", "To be", "--dropout", "0.5", "--json")
    )
    assert numbers["information"][0] is None
    assert max(numbers["information"][1:]) > 0
