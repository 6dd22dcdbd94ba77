"""Masks given to a PyTorch model, and the record of its sites."""

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


def test_a_model_without_sites_is_refused():
    for hook in (hooks.give_masks, hooks.record):
        with pytest.raises(ValueError, match=r"model=Linear is not allowed.*nn\.Dropout\(p\)"):
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
