"""Masks given to a PyTorch model, and the record of its sites."""

import copy
import pathlib

import numpy as np
import pytest

from dropout_jax import keep_mask
from dropout_jax.parity.torch import CPUGenerator

torch = pytest.importorskip("torch")
hooks = pytest.importorskip("dropout_jax.parity.hooks")
nn = torch.nn


class Model(nn.Module):
    def __init__(self, rate=0.25):
        super().__init__()
        self.first = nn.Dropout(rate)
        self.inner = nn.ModuleList([nn.Dropout(rate)])

    def forward(self, x):
        x = self.first(x)
        return self.inner[0](x + 1)  # the second site


X = torch.arange(1.0, 41.0, requires_grad=True).reshape(4, 10)


def masks(key):
    return {name: np.array(keep_mask(key, 0.25, (4, 10))) for name in ("first", "inner/0")}


def test_given_masks_decide_and_gradients_follow(key):
    model, given = Model(), masks(key)
    hooks.give_masks(model, given)
    keep = torch.from_numpy(given["first"])
    y = model(X)
    torch.testing.assert_close(y, torch.where(keep, (X * keep * (4 / 3) + 1) * (4 / 3), 0.0))
    (gradient,) = torch.autograd.grad(y.sum(), X)
    torch.testing.assert_close(gradient, keep * (16 / 9))


def test_the_scale_given_is_used(key):
    model, ones = Model(), {name: np.ones((4, 10), bool) for name in ("first", "inner/0")}
    hooks.give_masks(model, ones, scale=2.0)
    torch.testing.assert_close(model(X), (2 * X + 1) * 2)


def test_a_dropped_nan_is_zero(key):
    model, ones = Model(), {name: np.ones((2,), bool) for name in ("first", "inner/0")}
    hooks.give_masks(model, ones | {"inner/0": np.array([False, True])})
    assert model(torch.tensor([torch.nan, 2.0]))[0] == 0


def test_evaluation_and_rate_zero_are_left_alone(key):
    model = Model()
    hooks.give_masks(model, {})
    torch.testing.assert_close(model.eval()(X), X + 1)
    still = Model(0.0)
    hooks.give_masks(still, {})
    torch.testing.assert_close(still(X), X + 1)


def test_masks_are_read_at_each_call_and_hooks_come_off(key):
    model, given = Model(), masks(key)
    handles = hooks.give_masks(model, given)
    first = model(X)
    given["first"] = ~given["first"]
    assert not torch.equal(model(X), first)
    handles.remove()
    torch.manual_seed(3)
    drawn = model(X)
    torch.manual_seed(3)
    torch.testing.assert_close(drawn, Model()(X))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"one for 'first', of shape \(4, 10\)"),
        ({"first": np.ones((4, 10))}, "of torch.float64"),
        ({"first": np.ones((10,), bool)}, r"shape \(10,\) is not allowed"),
    ],
)
def test_wrong_masks_are_named(given, message):
    model = Model()
    hooks.give_masks(model, given)
    with pytest.raises(ValueError, match=message):
        model(X)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("rate", [0.1, 1 / 3, 0.9, 1.0])
@pytest.mark.parametrize("inplace", [False, True])
def test_torchs_own_masks_give_torchs_own_output(dtype, rate, inplace):
    model, tape = nn.Sequential(nn.Identity(), nn.Dropout(rate, inplace)), {}
    x = torch.randn(200, generator=torch.Generator().manual_seed(0)).to(dtype)
    handles = hooks.record(model, tape)
    torch.manual_seed(1)
    expected = model(x.clone())
    handles.remove()
    torch.manual_seed(1)
    torch.testing.assert_close(expected, model(x.clone()), rtol=0, atol=0)
    hooks.give_masks(model, {"1": tape["1"]["mask"]})
    state, copy = torch.get_rng_state(), x.clone()
    y = model(copy)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert (y is copy) == inplace


def test_in_place_is_scaled_once_and_fails_where_torch_fails():
    model = nn.Sequential(nn.Dropout(0.5, inplace=True))
    hooks.give_masks(model, {"0": np.array([True, False, True])})
    x = torch.tensor([1.0, 1.0, 0.0])
    assert model(x).tolist() == x.tolist() == [2.0, 0.0, 0.0]
    leaf = torch.ones(3, requires_grad=True)
    model(leaf * 3).sum().backward()
    assert leaf.grad.tolist() == [6.0, 0.0, 6.0]
    with pytest.raises(RuntimeError, match="leaf Variable"):
        model(torch.ones(3, requires_grad=True))


@pytest.mark.parametrize("call", ["keyword", "no_grad", "0-d", "empty", "transposed", "complex"])
def test_every_way_of_calling_a_site(call, key):
    model, tape = nn.Sequential(nn.Dropout(0.5)), {}
    dtype = torch.complex64 if call == "complex" else torch.float32
    shape = {"0-d": (), "empty": (0, 3)}.get(call, (5, 4))
    x = torch.ones(shape, dtype=dtype)
    x = x.reshape(4, 5).t() if call == "transposed" else x
    keep = np.array(keep_mask(key, 0.5, shape))
    hooks.record(model, tape)  # before or after: the record is of what is given
    hooks.give_masks(model, {"0": keep})
    with torch.set_grad_enabled(call != "no_grad"):
        y = model(input=x) if call == "keyword" else model(x)
    np.testing.assert_array_equal(y.numpy(), np.where(keep, 2, 0))
    np.testing.assert_array_equal(tape["0"]["mask"], keep)
    assert y.stride() == x.stride()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("kind", "shape", "own"),
    [
        (nn.Dropout1d, (3, 4, 5), (3, 4, 1)),
        (nn.Dropout1d, (4, 5), (4, 1)),
        (nn.Dropout2d, (3, 4, 5, 6), (3, 4, 1, 1)),
        (nn.Dropout3d, (3, 4, 2, 3, 2), (3, 4, 1, 1, 1)),
        (nn.Dropout3d, (4, 2, 3, 2), (4, 1, 1, 1)),
    ],
)
def test_channels_have_one_decision(kind, shape, own, inplace, key):
    model, tape = nn.Sequential(kind(0.4, inplace)), {}
    handles = hooks.record(model, tape)
    torch.manual_seed(9)
    model(torch.ones(shape))
    np.testing.assert_array_equal(tape["0"]["mask"], CPUGenerator(9).mask(own, 0.4))
    handles.remove()
    keep = np.array(keep_mask(key, 0.4, own))
    hooks.give_masks(model, {"0": keep})
    y = model(torch.ones(shape)).numpy()
    np.testing.assert_allclose(y, np.broadcast_to(keep / np.float32(0.6), shape), rtol=1e-6)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = self.again = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(x) + 10 * self.again(x)


def test_each_call_of_a_shared_site_has_its_own_mask_and_record():
    model, tape = Twice(), {}
    first, second = np.array([True, False]), np.array([True, True])
    hooks.give_masks(model, {"drop": first, "drop#2": second})
    hooks.record(model, tape)
    for _ in range(2):
        assert model(torch.ones(2)).tolist() == [22.0, 20.0]
        assert list(tape) == ["drop", "drop#2"]
    np.testing.assert_array_equal(tape["drop"]["mask"], first)
    with pytest.raises(ValueError, match=r"site='drop' is not allowed.*more than once"):
        model.drop(torch.ones(2))
    model.eval()(torch.ones(2))
    assert not tape, "what an earlier pass recorded is gone"


def test_checkpointing_calls_a_site_again_with_its_mask():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    weights = torch.eye(3)
    with torch.no_grad():
        model[0].weight.copy_(weights)
        model[0].bias.zero_()
    hooks.give_masks(model, {"1": np.array([True, False, True])})
    x = torch.ones(3, requires_grad=True)
    torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0, 0.0, 2.0]


def test_the_mask_is_known_where_the_input_does_not_show_it():
    model, tape = nn.Sequential(nn.Dropout(0.5)), {}
    hooks.record(model, tape)
    torch.manual_seed(5)
    model(torch.tensor([0.0, torch.nan, torch.inf, -0.0] * 10))
    np.testing.assert_array_equal(tape["0"]["mask"], CPUGenerator(5).mask((40,), 0.5))


def test_a_copy_of_the_model_reads_the_same_masks():
    given = {"0": np.array([True, False])}
    model = nn.Sequential(nn.Dropout(0.5))
    hooks.give_masks(model, given)
    twin = copy.deepcopy(model)
    given["0"] = ~given["0"]
    assert twin(torch.ones(2)).tolist() == model(torch.ones(2)).tolist() == [0.0, 2.0]


class Functional(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.drop, self.function = nn.Dropout(0.0), function

    def forward(self, x):
        return self.function(self.drop(x), self.training)


def attention(x, training):
    query = x[None, None]
    rate = 0.5 if training else 0.0
    return nn.functional.scaled_dot_product_attention(query, query, query, dropout_p=rate)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x, training: nn.functional.alpha_dropout(x, 0.5, training), "alpha_dropout"),
        (lambda x, training: torch.dropout(x, 0.5, training), "dropout"),
        (lambda x, training: torch.native_dropout(x, 0.5, training)[0], "native_dropout"),
        (lambda x, training: torch.feature_dropout_(x, 0.5, training), "feature_dropout_"),
        (attention, "scaled_dot_product_attention"),
    ],
)
@pytest.mark.parametrize("hook", [hooks.give_masks, hooks.record])
def test_other_functions_that_drop_are_refused_in_training(hook, function, name):
    model = Functional(function)
    handles = hook(model, {})
    message = rf"^{name}, called at test_hooks.py:\d+, is not allowed: in training"
    with pytest.raises(ValueError, match=message):
        model(torch.ones(2, 2))
    model.eval()(torch.ones(2, 2))
    handles.remove()
    model.train()(torch.ones(2, 2))


class Calls(nn.Module):
    """Functions that drop, in the model itself and in a module of it."""

    def __init__(self):
        super().__init__()
        self.inner = Functional(lambda x, training: nn.functional.dropout(x, training=training))

    def forward(self, x):
        x = nn.functional.dropout(self.inner(x), 0.25, self.training, True)  # in place
        return nn.Dropout(0.5).train(self.training)(x) + self.inner(x)  # a module made in a call


def test_functions_are_sites_of_the_module_that_calls_them():
    model, tape = Calls(), {}
    keep = {
        name: np.arange(12).reshape(3, 4) % (i + 2) > 0
        for i, name in enumerate(
            ("inner/F.dropout", "F.dropout", "F.dropout#2", "inner/F.dropout#2")
        )
    }
    handles = hooks.give_masks(model, keep)
    hooks.record(model, tape)
    x = torch.ones(3, 4)
    first, second, third, fourth = (torch.from_numpy(mask) for mask in keep.values())
    for _ in range(2):
        y = first * second * (2 * 4 / 3)
        torch.testing.assert_close(model(x), y * third * 2 + y * fourth * 2)
        assert list(tape) == list(keep)
    torch.testing.assert_close(model.eval()(x), x + x)
    handles.remove()
    model.train()
    torch.manual_seed(5)
    model(x)
    generator = CPUGenerator(5)
    for record, rate in zip(tape.values(), (0.5, 0.25, 0.5, 0.5), strict=True):
        np.testing.assert_array_equal(record["mask"], generator.mask((3, 4), rate))


def test_checkpointing_calls_a_function_again_with_its_mask():
    model = Calls()
    hooks.give_masks(model, {"inner/F.dropout": np.array([True, False])})
    x = torch.ones(2, requires_grad=True)
    torch.utils.checkpoint.checkpoint(model.inner, x, use_reentrant=False).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0, 0.0]


class Own(nn.Dropout):
    def forward(self, input):
        return input + super().forward(input)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.AlphaDropout(0.2), r"'1' \(AlphaDropout, p=0.2\)"),
        (lambda: nn.FeatureAlphaDropout(0.2), "FeatureAlphaDropout, p=0.2"),
        (lambda: nn.MultiheadAttention(4, 2, dropout=0.1), "MultiheadAttention, dropout=0.1"),
        (lambda: nn.LSTM(4, 4, 2, dropout=0.3), "LSTM, dropout=0.3"),
        (lambda: nn.GRU(4, 4, 2, dropout=0.3), "GRU, dropout=0.3"),
        (lambda: nn.RNN(4, 4, 2, dropout=0.3), "RNN, dropout=0.3"),
        (lambda: nn.TransformerEncoderLayer(8, 2), r"'1.self_attn' \(MultiheadAttention"),
    ],
)
@pytest.mark.parametrize("hook", [hooks.give_masks, hooks.record])
def test_modules_that_no_hook_reaches_are_refused_while_they_drop(hook, make, message):
    module = make()
    model = nn.Sequential(nn.Dropout(0.5), module)
    with pytest.raises(ValueError, match=message):
        hook(model, {})
    handles = hook(model.eval(), {})
    model.train()
    with pytest.raises(ValueError, match=message):
        module(torch.ones(3, 4))
    handles.remove()
    for each in module.modules():
        for rate in ("p", "dropout"):
            if isinstance(getattr(each, rate, None), float):
                setattr(each, rate, 0.0)  # the remedy
    hook(model, {})


@pytest.mark.filterwarnings("ignore")  # torch's own
@pytest.mark.slow
def test_other_modules_that_no_hook_reaches_are_refused():
    plain = nn.Sequential(nn.Dropout(0.5))
    for model, message in (
        (nn.Sequential(Own(0.5)), r"model with '0' \(Own\).*Use nn.Dropout itself"),
        (torch.jit.script(plain), "before torch.jit.script"),
        (torch.compile(plain, backend="eager"), "torch.compile it after"),
    ):
        with pytest.raises(ValueError, match=message):
            hooks.give_masks(model, {})
    slashes = nn.ModuleDict({"a/b": nn.Dropout(0.5), "a": nn.ModuleDict({"b": nn.Dropout(0.5)})})
    with pytest.raises(ValueError, match="two called 'a/b'"):
        hooks.record(slashes, {})


def test_a_pass_that_was_interrupted_leaves_nothing_behind():
    class Interrupted(Twice):
        def forward(self, x):
            self.drop(x)
            raise KeyboardInterrupt

    model, tape = Interrupted(), {}
    hooks.record(model, tape)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            model(torch.ones(2))
        assert list(tape) == ["drop"]
    model.forward = lambda x: 0 * x
    model(torch.ones(2))
    nn.functional.dropout(torch.ones(2))


@pytest.mark.usefixtures("without_type_checker")
def test_wrong_arguments_are_named():
    model = nn.Sequential(nn.Dropout(0.5))
    for call, error, message in (
        (lambda: hooks.give_masks(3, {}), TypeError, "model=3 is not allowed"),
        (lambda: hooks.record(model, []), TypeError, r"tape=\[\] is not allowed"),
        (lambda: hooks.give_masks(model, None), TypeError, "masks=None is not allowed"),
        (lambda: hooks.give_masks(model, {}, scale=0.0), ValueError, "scale=0.0"),
        (lambda: hooks.give_masks(model, {}, scale=True), TypeError, "scale=True"),
        (lambda: hooks.give_masks(model, {}, scale=float("nan")), ValueError, "scale=nan"),
    ):
        with pytest.raises(error, match=message):
            call()
    hooks.give_masks(model, {"0": np.array(["x"])})
    with pytest.raises(ValueError, match="Pass mask != 0"):
        model(torch.ones(1))
    with pytest.raises(ValueError, match=r"'itself' has some.*remove"):
        hooks.give_masks(model, {})


def test_a_rate_of_one_needs_a_scale_to_keep_anything():
    model = nn.Sequential(nn.Dropout(1.0))
    given = {"0": np.array([False, False])}
    handles = hooks.give_masks(model, given)
    x = torch.tensor([1.0, torch.inf], requires_grad=True)
    y = model(x)
    y.sum().backward()
    assert y.tolist() == x.grad.tolist() == [0.0, 0.0]
    given["0"] = np.array([True, False])
    with pytest.raises(ValueError, match=r"scale=1\.0"):
        model(x)
    handles.remove()
    hooks.give_masks(model, given, scale=1.0)
    assert model(x).tolist() == [1.0, 0.0]


def test_a_model_without_sites_is_refused():
    for hook in (hooks.give_masks, hooks.record):
        with pytest.raises(ValueError, match=r"model=Linear is not allowed.*Add an nn\.Dropout"):
            hook(nn.Linear(2, 2), {})


def test_the_record_holds_torchs_own_masks_in_order_with_their_lines():
    model, tape = Model(), {}
    hooks.record(model, tape)
    torch.manual_seed(5)
    y = model(X)
    generator = CPUGenerator(5)
    assert list(tape) == ["first", "inner/0"]
    for record in tape.values():
        np.testing.assert_array_equal(record["mask"], generator.mask((4, 10), 0.25))
    np.testing.assert_array_equal(tape["inner/0"]["output"], y.detach())
    lines = pathlib.Path(__file__).read_text().splitlines()
    file, line = tape["inner/0"]["where"].split(":")
    assert file == pathlib.Path(__file__).name
    assert "the second site" in lines[int(line) - 1]


def test_bfloat16_is_recorded_exactly():
    model, tape = Model(), {}
    hooks.record(model, tape)
    model(X.to(torch.bfloat16))
    assert tape["first"]["input"].dtype == np.float32
    np.testing.assert_array_equal(tape["first"]["input"], X.detach().bfloat16().float())
