"""Walk through a program and find its draws, its decisions and where they meet data."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from dropout_jax.audit._flags import are_flags
from dropout_jax.audit._graph import Graph, Walk, record_application
from dropout_jax.audit._jaxprs import (
    Body,
    bodies_of,
    form_of,
    is_own_threefry,
    manual_axes,
    names_in,
    shape_of,
    split_scan,
    split_while,
)
from dropout_jax.audit._opaque import is_opaque, record_opaque
from dropout_jax.audit._rules import apply_rule, draw_own_words, is_key
from dropout_jax.audit._values import Kind, Value, join, merge, varying_axes

_REAL = (jnp.floating, jnp.integer, jnp.bool_)  # bfloat16 too
MOST_PASSES = 8  # of a loop, until what is known of its carry no longer changes


def analyze(program: Any, arrays: Sequence[Any]) -> Graph:
    """Analyze a ClosedJaxpr whose inputs are the leaves of the step's arguments: `arrays`."""
    graph = Graph()
    inputs = [
        dataclasses.replace(_input_value(var.aval, 1 << number), is_flag=are_flags(array))
        for number, (var, array) in enumerate(zip(program.jaxpr.invars, arrays, strict=True))
    ]
    _walk_body(Walk(graph), Body(program.jaxpr, program.consts), inputs)
    return graph


def _input_value(aval: Any, arguments: int) -> Value:
    kind = Kind.KEY if is_key(aval) else Kind.DATA
    return Value(kind, arguments, varying_axes(getattr(aval, "shape", ())))


def _walk_body(walk: Walk, body: Body, inputs: Sequence[Value]) -> list[Value]:
    jaxpr = body.jaxpr
    known = {var: _input_value(var.aval, 0) for var in jaxpr.constvars}
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Value:
        return _literal_value(atom) if isinstance(atom, core.Literal) else known[atom]

    walk = dataclasses.replace(walk, readers=_count_readers(jaxpr))
    for number, equation in enumerate(jaxpr.eqns):
        values = [read(atom) for atom in equation.invars]
        results = _walk_equation(walk.at(number, equation), equation, values)
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _count_readers(jaxpr: Any) -> Counter:
    """Count how often each variable is read."""
    atoms = [atom for equation in jaxpr.eqns for atom in equation.invars] + list(jaxpr.outvars)
    return Counter(atom for atom in atoms if not isinstance(atom, core.Literal))


def _literal_value(literal: core.Literal) -> Value:
    number = np.asarray(literal.val)
    axes = varying_axes(number.shape)
    is_real = any(jnp.issubdtype(number.dtype, kind) for kind in _REAL)
    constant = float(number.reshape(-1)[0]) if is_real and not axes else None
    return Value(axes=axes, constant=constant)


def _walk_equation(walk: Walk, equation: core.JaxprEqn, values: list[Value]) -> list[Value]:
    form = form_of(equation)
    if form is not None:
        return _FORMS[form](walk, equation, values)
    if is_own_threefry(equation):
        return draw_own_words(walk, equation, values)
    if is_opaque(equation) and walk.is_recording:
        record_opaque(walk, equation, values)
    return apply_rule(walk, equation, values)


def _walk_call(walk: Walk, equation: core.JaxprEqn, values: list[Value]) -> list[Value]:
    (body,) = bodies_of(equation)
    return _walk_body(walk.enter(0), body, values)


def _walk_shard_map(walk: Walk, equation: core.JaxprEqn, values: list[Value]) -> list[Value]:
    """Devices have different parts of what is split along an axis of the mesh."""
    manual = frozenset(manual_axes(equation))
    inputs = [
        dataclasses.replace(value, varies_along=value.varies_along | names_in(spec) & manual)
        for value, spec in zip(values, equation.params["in_specs"], strict=True)
    ]
    results = _walk_call(walk, equation, inputs)
    return [
        dataclasses.replace(result, varies_along=result.varies_along - manual) for result in results
    ]


def _walk_scan(walk: Walk, equation: core.JaxprEqn, values: list[Value]) -> list[Value]:
    (body,) = bodies_of(equation)
    consts, carry, xs = split_scan(equation, values)
    parts = [_one_of_many(x) for x in xs]

    def step(walk: Walk, carry: list[Value]) -> list[Value]:
        return _walk_body(walk, body, [*consts, *carry, *parts])

    results = _walk_until_stable(walk, 0, step, carry)
    stacked = [
        dataclasses.replace(value, axes=varying_axes(shape_of(var)), factors=(), constant=None)
        for var, value in zip(equation.outvars[len(carry) :], results[len(carry) :], strict=True)
    ]
    return [*results[: len(carry)], *stacked]


def _one_of_many(value: Value) -> Value:
    """Return what is known of a slice along the first axis."""
    return dataclasses.replace(value, axes=value.axes >> 1)


def _walk_until_stable(walk: Walk, program: int, step: Any, carry: list[Value]) -> list[Value]:
    """Walk through a loop's body until its carry is known, and once more to record."""
    for _ in range(MOST_PASSES):
        results = step(walk.enter(program, is_recording=False), carry)
        pairs = zip(carry, results[: len(carry)], strict=True)
        joined = [join([before, after]) for before, after in pairs]
        if joined == carry:
            break
        carry = joined
    return step(walk.enter(program), carry)


def _walk_while(walk: Walk, equation: core.JaxprEqn, values: list[Value]) -> list[Value]:
    condition, body = bodies_of(equation)
    of_condition, of_body, carry = split_while(equation, values)

    def step(walk: Walk, carry: list[Value]) -> list[Value]:
        return _walk_body(walk, body, [*of_body, *carry])

    results = _walk_until_stable(walk, 1, step, carry)
    _walk_body(walk.enter(0, is_recording=False), condition, [*of_condition, *results])
    return [join([before, after]) for before, after in zip(carry, results, strict=True)]


def _walk_cond(walk: Walk, equation: core.JaxprEqn, values: list[Value]) -> list[Value]:
    chooser, *operands = values
    outs = [
        _walk_body(walk.enter(number), body, operands)
        for number, body in enumerate(bodies_of(equation))
    ]
    results = [join(branches) for branches in zip(*outs, strict=True)]
    if chooser.kind >= Kind.MASK:
        atom = equation.invars[0]
        record_application(walk, "branch", chooser, atom, atom, None, None, 0, operands)
    if chooser.is_random:
        results = [merge([chooser, value], Kind.DATA, value.axes) for value in results]
    return results


_FORMS = {
    "call": _walk_call,
    "shard_map": _walk_shard_map,
    "scan": _walk_scan,
    "while": _walk_while,
    "cond": _walk_cond,
}
