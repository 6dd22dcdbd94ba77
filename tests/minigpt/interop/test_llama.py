"""A Llama of transformers and its import compute the same: logits, loss, gradients, generation."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import optax
import pytest
import safetensors.numpy
import torch
import transformers
from flax import nnx
from gpt2_folders import edit_config
from gpt2_folders import save_model as save_gpt2
from llama_folders import make_llama, save_llama
from marks import slow
from run_helpers import assert_one_line_error, run_command
from transformers.models.llama import modeling_llama

import minigpt
from minigpt.interop import export_huggingface, import_huggingface, read_huggingface
from minigpt.interop.llama_config import DEFAULTS, HARMLESS, ONE_VALUE, read_llama_config
from minigpt.interop.llama_weights import llama_names, llama_weights
from minigpt.interop.safetensors import plain_parameters
from minigpt.model import GPT, draw_masks

IDS = np.random.default_rng(0).integers(0, 50, (3, 16))


@pytest.fixture(scope="module")
def model():
    return make_llama()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("models") / "llama-tiny", model)


def loss_and_gradients(folder, dtype, masks=None):
    """Of minigpt: logits, loss, and the gradients by the names of transformers."""
    run, params = read_huggingface(folder)
    graph = nnx.graphdef(
        nnx.eval_shape(lambda: GPT(run.config.model, run.vocab_size, rngs=nnx.Rngs(0)))
    )
    params = jax.tree.map(lambda array: jax.numpy.asarray(array, dtype), params)

    def loss(params):
        logits = nnx.merge(graph, params)(IDS, key=None, masks=masks)
        targets = IDS[:, 1:]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], targets)
        return losses.mean(), logits

    (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    named = {
        ".".join(str(key.key) for key in path if hasattr(key, "key")): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(gradients)
    }
    return np.asarray(logits), float(value), llama_weights(named, run.config.model)


def compute_in_float64(monkeypatch):
    """transformers computes norms and angles in float32, also for models in float64."""

    def norm(self, x):
        mean_square = x.square().mean(-1, keepdim=True)
        return self.weight * x * torch.rsqrt(mean_square + self.variance_epsilon)

    def angles(self, x, position_ids):
        dim, base = self.config.head_dim, self.config.rope_parameters["rope_theta"]
        frequencies = 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        half = position_ids[..., None].double() * frequencies
        whole = torch.cat([half, half], dim=-1)
        return whole.cos(), whole.sin()

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", angles)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("float32", {}),
        slow("float64", {}),
        slow("float64", {"tie_word_embeddings": False, "num_key_value_heads": 1}),
        slow("float64", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
        slow("float32", {"head_dim": 4, "rope_theta": 1e6, "rms_norm_eps": 1e-2}),
    ],
)
def test_logits_loss_and_gradients(tmp_path, monkeypatch, dtype, options):
    model = make_llama(**options)
    folder = save_llama(tmp_path / "model", model)
    tolerance = 2e-6 if dtype == "float32" else 1e-12
    if dtype == "float64":
        compute_in_float64(monkeypatch)
    model = model.to(getattr(torch, dtype))
    result = model(torch.tensor(IDS))
    flat_logits, targets = result.logits[:, :-1].reshape(-1, 50), torch.tensor(IDS[:, 1:])
    their_loss = torch.nn.functional.cross_entropy(flat_logits, targets.reshape(-1))
    their_loss.backward()
    with jax.enable_x64(dtype == "float64"):
        logits, loss, gradients = loss_and_gradients(folder, dtype)
    assert logits.dtype == dtype
    np.testing.assert_allclose(logits, result.logits.detach().numpy(), 0, tolerance * 3)
    np.testing.assert_allclose(loss, their_loss.item(), tolerance)
    theirs = {name: np.asarray(p.grad) for name, p in model.named_parameters()}
    assert set(gradients) == set(theirs)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, theirs[name], 0, tolerance, err_msg=name)


@pytest.mark.slow
def test_attention_dropout_with_the_same_masks(tmp_path, key):
    """Our masks in transformers: the same loss, which is another one than without dropout."""
    theirs = make_llama(attention_dropout=0.25, attn_implementation="eager")
    folder = save_llama(tmp_path / "model", theirs)
    run, _ = read_huggingface(folder)
    model = run.config.model
    assert {n: r for n, r in model.dropout.rates.items() if r} == {"attn_weights": 0.25}
    masks = {name: np.array(m) for name, m in draw_masks(model, key, *IDS.shape).items()}
    logits, loss, _ = loss_and_gradients(folder, "float32", masks)
    drawn = iter([masks[f"block/{i}/attn_weights"] for i in range(2)])

    def apply_next(x, p=0.5, training=True, inplace=False):
        assert (p, training) == (0.25, True)
        return torch.where(torch.from_numpy(next(drawn)), x / (1 - p), 0)

    theirs.train()
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "dropout", apply_next)
        result = theirs(torch.tensor(IDS), labels=torch.tensor(IDS))
    assert next(drawn, None) is None
    np.testing.assert_allclose(logits, result.logits.numpy(), 0, 1e-5)
    np.testing.assert_allclose(loss, result.loss.item(), 2e-6)
    assert abs(loss - loss_and_gradients(folder, "float32")[1]) > 1e-3


@pytest.mark.parametrize("tokens", [11, slow(40)])
def test_greedy_generation(tokens, folder, model, tmp_path):
    """With the cache of keys and values, and past the context, where the positions change."""
    loaded, ids = minigpt.load(folder), np.array([[7, 20, 3, 41, 5]])
    theirs = ids
    while theirs.shape[1] < 5 + tokens:
        with torch.no_grad():
            logits = model(torch.tensor(theirs[:, -16:])).logits[:, -1]
        theirs = np.append(theirs, logits.argmax(-1, keepdim=True).numpy(), axis=1)
    prompt = loaded.decode(ids[0])
    text = loaded.generate(prompt, tokens=tokens, temperature=0.0)
    np.testing.assert_array_equal(loaded.encode(text), theirs[0, 5:])
    if tokens == 11:
        given = torch.tensor(ids)
        options = {"attention_mask": torch.ones_like(given), "pad_token_id": 0}
        generated = model.generate(given, max_new_tokens=11, do_sample=False, **options)
        np.testing.assert_array_equal(generated[0, 5:].numpy(), theirs[0, 5:])


def test_import_tells_what_it_reads(folder, tmp_path, capsys):
    edited = edit_config(shutil.copytree(folder, tmp_path / "m"), attention_dropout=0.125)
    code, out, _ = run_command(capsys, "import", edited, "--run-dir", tmp_path / "out")
    assert code == 0
    assert out.splitlines() == [
        "Llama: 2 blocks, 4 heads (2 of keys and values), width 16, context 16, 50 rows in the "
        "token table, swiglu",
        "tokenizer: char, 50 tokens",
        "attention_dropout 0.125: dropout at attn_weights",
        f"run directory: {tmp_path / 'out'}",
    ]
    rates = minigpt.load(tmp_path / "out").config.model.dropout
    assert {name: rate for name, rate in rates.rates.items() if rate} == {"attn_weights": 0.125}


def test_shards_halves_and_names_without_prefix(model, folder, tmp_path):
    expected = minigpt.load(folder).logits(IDS)
    sharded = save_llama(tmp_path / "shards", model, max_shard_size="4KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    np.testing.assert_array_equal(minigpt.load(sharded).logits(IDS), expected)
    # LlamaModel's names, a head that is the table, and what earlier versions stored.
    bare = shutil.copytree(folder, tmp_path / "bare")
    arrays = safetensors.numpy.load_file(bare / "model.safetensors")
    arrays = {name.removeprefix("model."): array for name, array in arrays.items()}
    arrays["layers.1.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    arrays["lm_head.weight"] = arrays["embed_tokens.weight"]
    safetensors.numpy.save_file(arrays, bare / "model.safetensors")
    np.testing.assert_array_equal(minigpt.load(bare).logits(IDS), expected)
    half = make_llama().to(torch.bfloat16)
    params = plain_parameters(minigpt.load(save_llama(tmp_path / "half", half)).params)
    assert {array.dtype for array in params.values()} == {np.dtype("float32")}
    gate = half.model.layers[1].mlp.gate_proj.weight.detach().float().numpy()
    np.testing.assert_array_equal(params["blocks.1.mlp.gate.kernel"], gate.T)


ROUND_TRIPS = {
    "tied": {},
    "untied": {"tie_word_embeddings": False, "attention_dropout": 0.25},
    "biases": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_import_export_import_is_exact(name, tmp_path):
    model = make_llama(**ROUND_TRIPS[name])
    save_llama(tmp_path / "theirs", model)
    import_huggingface(tmp_path / "theirs", tmp_path / "one")
    assert export_huggingface(tmp_path / "one", tmp_path / "ours") == (0, [])
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("theirs", "ours")]
    assert weights[0] == weights[1]
    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    again, loading = load(tmp_path / "ours", output_loading_info=True)
    assert type(again) is transformers.LlamaForCausalLM
    assert not any(loading.values()), loading
    for key, value in model.config.to_dict().items():
        # dtype: transformers does not write that of a new model; the third names the folder
        if key not in ("dtype", "architectures", "_name_or_path"):
            assert again.config.to_dict()[key] == value, key
    with torch.no_grad():
        expected, got = (m(torch.tensor(IDS)).logits.numpy() for m in (model, again.eval()))
    np.testing.assert_array_equal(got, expected)
    import_huggingface(tmp_path / "ours", tmp_path / "two")
    one, two = minigpt.load(tmp_path / "one"), minigpt.load(tmp_path / "two")
    names = {"run_dir": None, "imported_from": None}
    assert dataclasses.replace(one.config, **names) == dataclasses.replace(two.config, **names)
    for key, array in plain_parameters(one.params).items():
        assert array.tobytes() == plain_parameters(two.params)[key].tobytes(), key


def test_what_the_architectures_lack_is_refused(folder, tmp_path, capsys):
    def change(name, old, new):
        run_dir = shutil.copytree(tmp_path / "run", tmp_path / name)
        text = (run_dir / "config.toml").read_text()
        assert old in text
        (run_dir / "config.toml").write_text(text.replace(old, new))
        return run_dir

    import_huggingface(folder, tmp_path / "run")
    for old, new, named in (
        ('norm_type = "rmsnorm"', 'norm_type = "layernorm"', "model.norm_type='layernorm'"),
        ('activation = "swiglu"', 'activation = "relu"', "model.activation='relu'"),
        ('norm = "pre"', 'norm = "post"', "model.norm='post'"),
        ('positions = "rotary"\nrope_theta = 500.0', "", "model.norm_type='rmsnorm'"),
    ):
        run_dir = change(named, old, new)
        ended = run_command(
            capsys, "export", run_dir, "--format", "huggingface", "--out", tmp_path / "out"
        )
        assert_one_line_error(ended, named, "--format safetensors")
    assert not (tmp_path / "out").exists()


def test_every_key_of_transformers_is_in_the_table():
    keys = set(transformers.LlamaConfig().to_dict())
    assert keys <= {*DEFAULTS, *ONE_VALUE, *HARMLESS}
    defaults = transformers.LlamaConfig().to_dict()
    computed = {"num_key_value_heads": 32, "head_dim": 128, "rope_parameters": None}
    for name, value in (DEFAULTS | computed).items():
        if name in defaults and name != "rope_parameters":
            assert defaults[name] == value, name
    for name, (allowed, _) in ONE_VALUE.items():
        if name in defaults:
            assert defaults[name] in allowed, name


def test_every_key_is_in_the_documentation():
    page = pathlib.Path(minigpt.__file__).parent.parent / "docs" / "huggingface.md"
    text = page.read_text()
    for name in {*DEFAULTS, *ONE_VALUE, *HARMLESS}:
        assert f"`{name}`" in text, name


CHANGES = {
    "model_type": "mistral",
    "architectures": ["LlamaForSequenceClassification"],
    "hidden_act": "gelu",
    "rms_norm_eps": 0,
    "rope_theta": -1.0,
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "rope_parameters": {"rope_theta": 500.0, "rope_type": "yarn", "factor": 2.0},
    "rope_interleaved": True,
    "partial_rotary_factor": 0.5,
    "head_dim": 8,
    "mlp_bias": True,
    "attention_bias": 1,
    "tie_word_embeddings": None,
    "pretraining_tp": 2,
    "sliding_window": 4,
    "quantization_config": {"bits": 4},
    "num_hidden_layers": -1,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "hidden_size": "16",
    "intermediate_size": 0,
    "max_position_embeddings": 1.5,
    "vocab_size": True,
    "attention_dropout": 1.0,
    "attn_pdrop": 0.1,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_key_that_changes_the_result_is_refused_by_name(name, folder, tmp_path, capsys):
    edited = edit_config(shutil.copytree(folder, tmp_path / "m"), **{name: CHANGES[name]})
    ended = run_command(capsys, "import", edited, "--run-dir", tmp_path / "out")
    named = {"num_attention_heads": "hidden_size=16"}.get(name, name)
    assert_one_line_error(ended, "config.json", named, "must be")
    assert {path.name for path in tmp_path.iterdir()} == {"m"}


def test_earlier_spellings_of_the_same_keys(folder, tmp_path):
    """The config.json of transformers 4, such as that of SmolLM2."""
    values = json.loads((folder / "config.json").read_text())
    values["rope_theta"] = values.pop("rope_parameters")["rope_theta"]
    values |= {"rope_scaling": None, "rope_interleaved": False, "is_llama_config": True}
    del values["head_dim"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    assert read_llama_config(path) == read_llama_config(folder / "config.json")
    assert read_llama_config(path).rope_theta == 500
    del values["rope_theta"], values["num_key_value_heads"]
    path.write_text(json.dumps(values))
    assert (read_llama_config(path).rope_theta, read_llama_config(path).kv_heads) == (10_000, 4)


Q, GATE = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.gate_proj.weight"
ARRAYS = {
    "missing array": (lambda arrays: arrays.pop(GATE), [GATE, "missing"]),
    "missing last norm": (lambda arrays: arrays.pop("model.norm.weight"), ["model.norm.weight"]),
    "extra array": (lambda arrays: arrays.update(x=np.ones(3, np.float32)), ["'x'", "(3,)"]),
    "extra bias": (
        lambda arrays: arrays.update({Q.replace("weight", "bias"): np.ones(16, np.float32)}),
        ["q_proj.bias"],
    ),
    "extra block": (
        lambda arrays: arrays.update({Q.replace("0", "2"): arrays[Q]}),
        ["3 blocks"],
    ),
    "wrong shape": (lambda arrays: arrays.update({Q: arrays[Q][:, :8].copy()}), [Q, "(16, 8)"]),
    "transposed": (lambda arrays: arrays.update({GATE: arrays[GATE].T.copy()}), [GATE, "(16, 24)"]),
    "integers": (lambda arrays: arrays.update({Q: arrays[Q].astype(np.int8)}), [Q, "I8"]),
    "not finite": (lambda arrays: arrays[GATE].__setitem__((3, 4), np.inf), [GATE, "infinite"]),
    "another head": (
        lambda arrays: arrays.update({"lm_head.weight": np.ones((50, 16), np.float32)}),
        ["lm_head.weight", "tie_word_embeddings"],
    ),
    "both names": (
        lambda arrays: arrays.update({"norm.weight": arrays["model.norm.weight"]}),
        ["'norm.weight'", "'model.norm.weight'"],
    ),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_damaged_arrays(name, folder, tmp_path, capsys):
    change, parts = ARRAYS[name]
    damaged = shutil.copytree(folder, tmp_path / "m")
    arrays = safetensors.numpy.load_file(damaged / "model.safetensors")
    arrays = {key: array.copy() for key, array in arrays.items()}
    change(arrays)
    safetensors.numpy.save_file(arrays, damaged / "model.safetensors")
    ended = run_command(capsys, "import", damaged, "--run-dir", tmp_path / "out")
    assert_one_line_error(ended, str(damaged), *parts)
    assert {path.name for path in tmp_path.iterdir()} == {"m"}


def test_an_untied_head_must_be_there(folder, tmp_path, capsys):
    folder = edit_config(shutil.copytree(folder, tmp_path / "m"), tie_word_embeddings=False)
    ended = run_command(capsys, "import", folder, "--run-dir", tmp_path / "out")
    assert_one_line_error(ended, "lm_head.weight", "missing")
    edit_config(folder, tie_word_embeddings=True, num_hidden_layers=10**9)
    ended = run_command(capsys, "import", folder, "--run-dir", tmp_path / "out")
    assert_one_line_error(ended, "num_hidden_layers", "2 blocks")


def test_names_cover_every_parameter(folder):
    run, params = read_huggingface(folder)
    assert set(llama_names(run.config.model)) == set(plain_parameters(params))


@pytest.mark.slow
def test_a_shorter_context(folder, tmp_path, capsys):
    """No weight has the size of the context, and the first positions compute the same."""
    words = "import", folder, "--run-dir", tmp_path / "short", "--block-size", 8
    assert run_command(capsys, *words)[0] == 0
    short = minigpt.load(tmp_path / "short")
    assert (short.config.model.block_size, short.config.batch_size) == (8, 12)
    expected = minigpt.load(folder).logits(IDS)[:, :8]
    np.testing.assert_allclose(short.logits(IDS[:, :8]), expected, 0, 1e-5)
    for size in (17, 0):
        words = "import", folder, "--run-dir", tmp_path / "out", "--block-size", size
        assert_one_line_error(run_command(capsys, *words), f"block_size={size}", "from 1 to 16")
    learned = save_gpt2(tmp_path / "gpt2")
    capsys.readouterr()
    words = "import", learned, "--run-dir", tmp_path / "out", "--block-size", 8
    assert_one_line_error(run_command(capsys, *words), "block_size=8", "learned positions")


OPTIONS = (
    *("--steps", 2, "--batch-size", 2, "--eval-every", 1, "--sample-tokens", 2),
    *("--eval-batches", 1, "--optim.learning-rate", 1e-9),
)


@pytest.mark.slow
def test_commands_on_a_llama(folder, tmp_path, capsys, monkeypatch):
    """Sample, eval, uncertainty, classify, export, and finetune with another context."""
    monkeypatch.chdir(tmp_path)
    run_dir, text = tmp_path / "run", tmp_path / "text.txt"
    import_huggingface(folder, run_dir)
    text.write_text("A BEE, A CALF, NO HOME? " * 30)
    rows = [f"{'AB'[i % 2] * 5},{'ab'[i % 2]}" for i in range(40)]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *rows]))
    tune = "--data", text, *OPTIONS, "--run-dir"
    for words in (
        ("sample", run_dir, "--tokens", 3),
        ("eval", run_dir, "--data", text),
        ("uncertainty", run_dir, "--text", "A BEE", "--passes", 2, "--dropout", 0.1),
        ("classify", run_dir, "--data", "data.csv", "--out", "c", "--steps", 2),
        ("export", run_dir, "--out", "run.safetensors"),
        ("finetune", folder, *tune, "tuned", "--model.block-size", 32, "--dropout", 0.1),
        ("finetune", "tuned", *tune, "again", "--model.dropout.attn-weights", 0.2),
    ):
        code, _, err = run_command(capsys, *words)
        assert code == 0, (words, err)
    tuned, again = minigpt.load("tuned"), minigpt.load("again")
    assert (tuned.config.model.block_size, again.config.model.block_size) == (32, 32)
    np.testing.assert_allclose(again.logits(IDS), minigpt.load(folder).logits(IDS), atol=1e-4)
    arrays = safetensors.numpy.load_file("run.safetensors")
    assert {"head.kernel", "positions.embedding"}.isdisjoint(arrays)
    assert arrays["blocks.1.mlp.gate.kernel"].shape == (16, 24)
    assert run_command(capsys, "replay", "again", "--step", 1)[0] == 0
    words = "finetune", "tuned", *tune, "other", "--model.n-kv-head", 1
    assert_one_line_error(run_command(capsys, *words), "model.n_kv_head=1", "--model.n-kv-head")
