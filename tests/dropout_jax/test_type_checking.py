"""The annotations are checked in these tests: a wrong shape or type is an error."""

import importlib
import inspect
import pkgutil
import typing

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

import dropout_jax
from dropout_jax import ops, random
from dropout_jax.attention import _naive
from dropout_jax.ops import _apply

MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(dropout_jax.__path__, "dropout_jax.")
]
FUNCTIONS = [
    pytest.param(function, id=f"{module.__name__}.{name}")
    for module in MODULES
    for name, function in vars(module).items()
    if inspect.isfunction(inspect.unwrap(function) if callable(function) else function)
    and function.__module__ == module.__name__
]


@pytest.mark.parametrize(
    "call",
    [
        lambda: random.threshold(jnp.zeros(3)),
        lambda: random.unpack_tile(jnp.zeros((2, 3)), (4, 4), 2, 3),
        lambda: _naive.softmax([1.0, 2.0]),  # pyright: ignore[reportArgumentType]
        lambda: ops.select_unscaled(jnp.ones((4, 6)), jnp.ones(5, bool), jnp.float32(0.5)),
    ],
    ids=["scalar", "dtype", "type", "broadcast"],
)
def test_a_wrong_argument_is_an_error(call):
    with pytest.raises(jaxtyping.TypeCheckError, match="checking the parameters"):
        call()


def test_a_wrong_result_is_an_error(key, monkeypatch):
    monkeypatch.setattr(_apply, "drop", lambda x, *_: x > 0)
    with pytest.raises(jaxtyping.TypeCheckError, match="return value of dropout_jax"):
        dropout_jax.dropout(jnp.ones(3), 0.5, key=key)


def test_shapes_are_checked_when_traced():
    with pytest.raises(jaxtyping.TypeCheckError, match="checking the parameters"):
        jax.eval_shape(random.threshold, jnp.zeros(3))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_is_annotated_and_its_annotations_resolve(function):
    """jaxtyping treats an annotation that it cannot resolve as Any."""
    plain = inspect.unwrap(function)
    hints = typing.get_type_hints(plain, vars(importlib.import_module(plain.__module__)))
    parameters = inspect.signature(plain).parameters
    assert set(hints) == {*parameters, "return"}
    assert plain is not function, "the type checker wraps it"
