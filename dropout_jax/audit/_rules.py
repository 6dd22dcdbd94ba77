"""What each primitive makes of random values: the rules of the analysis."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from dropout_jax.audit._flags import is_flag_result, with_flags
from dropout_jax.audit._graph import (
    NoiseUse,
    Walk,
    record_application,
    record_decision,
    record_draw,
    record_later_factor,
)
from dropout_jax.audit._jaxprs import names_in, shape_of
from dropout_jax.audit._values import Factor, Kind, Value, merge, varying_axes, with_factor

COMPARISONS = {"lt", "le", "gt", "ge", "eq", "ne"}
BITWISE = {"and", "or", "xor", "not", "shift_left", "shift_right_logical"}
BITWISE |= {"shift_right_arithmetic", "population_count"}
ROUNDINGS = {"floor", "ceil"}
# One operand whose elements only move, are copied or are converted.
MOVES = {
    "broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "slice", "dynamic_slice",
    "rev", "copy", "copy_p", "convert_element_type", "reduce_precision", "stop_gradient", "pvary",
    "pcast", "name", "sharding_constraint", "gather", "concatenate", "stack", "pad", "split",
    "device_put", "reshard", "bitcast_convert_type", "optimization_barrier", "mesh_cast",
    "dynamic_update_slice", "unstack", "tile",
}  # fmt: skip
ELEMENTWISE = COMPARISONS | BITWISE | ROUNDINGS | {
    "add", "sub", "mul", "div", "rem", "max", "min", "neg", "abs", "exp", "exp2", "log", "log1p",
    "expm1", "sqrt", "rsqrt", "cbrt", "pow", "integer_pow", "square", "tanh", "tan", "sin", "cos",
    "asin", "acos", "atan", "atan2", "sinh", "cosh", "asinh", "acosh", "atanh", "erf", "erfc",
    "erf_inv", "logistic", "is_finite", "select_n", "clamp", "round", "sign", "nextafter", "real",
    "imag", "complex", "conj", "lgamma", "digamma", "add_any",
}  # fmt: skip
PRODUCTS = {"dot_general", "conv_general_dilated"}
# Sums in which a factor of the whole array comes through.
LINEAR = PRODUCTS | {"reduce_sum", "cumsum", "psum", "reduce_window_sum"}
# Collectives after which devices have one value, and all of them.
AGREEING = {"psum", "psum_invariant", "pmax", "pmin", "all_gather", "all_gather_invariant"}
COLLECTIVES = AGREEING | {"axis_index", "all_to_all", "reduce_scatter", "ppermute", "pshuffle"}
KEY_PRIMITIVES = {"random_wrap", "random_unwrap", "random_fold_in", "random_split", "random_clone"}
DRAWS = {"random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform", "random_gamma"}


def apply_rule(walk: Walk, equation: core.JaxprEqn, values: list[Value]) -> list[Value]:
    """Return what is known of the results of an equation that has no program in it."""
    results = _apply_rule(walk, equation, values)
    if equation.primitive.name not in COLLECTIVES:
        return results
    return [_across_devices(equation, result) for result in results]


def _across_devices(equation: core.JaxprEqn, result: Value) -> Value:
    """Devices have one value along the axes of a sum, and different ones after an exchange."""
    params = equation.params
    names = names_in(params.get("axes", params.get("axis_name")))
    if equation.primitive.name in AGREEING and params.get("axis_index_groups") is None:
        return dataclasses.replace(result, varies_along=result.varies_along - names)
    return dataclasses.replace(result, varies_along=result.varies_along | names)


def _apply_rule(walk: Walk, equation: core.JaxprEqn, values: list[Value]) -> list[Value]:
    name = equation.primitive.name
    if name in KEY_PRIMITIVES or name == "random_seed":
        return [_key_result(walk, equation, values)]
    if name in DRAWS:
        return _draw(walk, equation, values)
    if not any(value.kind for value in values):
        return _data_result(walk, equation, values)
    rule = _RULES.get(name)
    result = rule(walk, equation, values) if rule else None
    return _general_result(walk, equation, values) if result is None else result


def draw_own_words(walk: Walk, equation: core.JaxprEqn, values: list[Value]) -> list[Value]:
    """The generator of this package: of an array of counters it draws, of one it folds a key."""
    axes = [varying_axes(shape_of(out)) for out in equation.outvars]
    counters = [shape_of(atom) for atom in equation.invars[2:4]]
    key = merge(values, Kind.KEY, axes[0])
    if not any(counters):
        return [key, key]
    draw = (walk.path, equation.invars[0], equation.invars[1])
    if draw not in walk.graph.draws and walk.is_recording:
        record_draw(walk, "dropout_jax", key, tuple(equation.invars), shape_of(equation.outvars[0]))
        walk.graph.draws[draw] = walk.graph.draws.pop(walk.id)
    return [
        dataclasses.replace(key, kind=Kind.NUMBER, axes=n, draws=frozenset({draw})) for n in axes
    ]


def is_key(aval: Any) -> bool:
    """Whether an array is of typed keys."""
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jax.dtypes.prng_key)


def _key_result(walk: Walk, equation: core.JaxprEqn, values: list[Value]) -> Value:
    key = merge(values, Kind.KEY, varying_axes(shape_of(equation.outvars[0])))
    if equation.primitive.name == "random_seed" and not key.arguments and not key.seeds:
        key = dataclasses.replace(key, seeds=frozenset({walk.id}))
    return dataclasses.replace(key, bits=64)


def _draw(walk: Walk, equation: core.JaxprEqn, values: list[Value]) -> list[Value]:
    """Draw random bits: results are numbers; that of a new key is a key."""
    outs = equation.outvars
    key = merge(values, Kind.KEY, 0)
    if all(0 in shape_of(out) for out in outs):
        return [Value() for _ in outs]
    name = equation.primitive.name
    atoms = tuple(equation.invars if name == "threefry2x32" else equation.invars[:1])
    record_draw(walk, name, key, atoms, shape_of(outs[-1]))
    number = dataclasses.replace(
        key,
        kind=Kind.NUMBER,
        draws=frozenset({walk.id}),
        bits=equation.params.get("bit_width", 32),
    )
    results = [dataclasses.replace(number, axes=varying_axes(shape_of(out))) for out in outs]
    if name == "rng_bit_generator":
        results[0] = key
    return results


def _data_result(walk: Walk, equation: core.JaxprEqn, values: list[Value]) -> list[Value]:
    """Results without randomness: follow one number for a whole array, factors and constants."""
    results = _general_result(walk, equation, values)
    name = equation.primitive.name
    if is_flag_result(equation, values):
        results = [dataclasses.replace(result, is_flag=True) for result in results]
    if name in ("mul", "div"):
        results[0] = _with_factor_of(walk, equation, values, results[0])
        results[0] = with_flags(equation, values, results[0])
    elif name == "select_n":
        results[0] = with_flags(equation, values, results[0])
    elif name in ("add", "sub", "add_any"):
        _join_choice(walk, values)
    elif name == "neg" or (name in MOVES and len(values) == 1):
        source = values[0]
        results = [
            dataclasses.replace(
                result,
                constant=source.constant,
                factors=source.factors,
                applied=source.applied,
                is_masked=source.is_masked,
            )
            for result in results
        ]
    elif name in LINEAR:
        indirect = frozenset((app, False) for value in values for app, _ in value.applied)
        is_masked = any(value.is_masked for value in values)
        if not shape_of(equation.outvars[0]) and walk.is_recording:
            for application, _ in indirect:
                walk.graph.summed[application] = is_masked
        results = [
            dataclasses.replace(
                result, applied=indirect, is_masked=is_masked and name not in PRODUCTS
            )
            for result in results
        ]
    elif name == "optimization_barrier":
        results = list(values)
    return results


def _with_factor_of(
    walk: Walk, equation: core.JaxprEqn, values: Sequence[Value], result: Value
) -> Value:
    """Return the product of an array of data and one number, which is remembered."""
    first, second = values
    is_divisor = equation.primitive.name == "div"
    if first.is_array_of_data and second.axes == 0:
        data, source, atom = first, *equation.invars
    elif second.is_array_of_data and first.axes == 0 and not is_divisor:
        data, atom, source = second, *equation.invars
    else:
        return result
    factor = Factor(walk.path, atom, is_divisor)
    if data.applied:
        record_later_factor(walk, data, source, factor)
    result = dataclasses.replace(
        result, factors=data.factors, applied=data.applied, is_masked=data.is_masked
    )
    return with_factor(result, factor)


def _general_result(walk: Walk, equation: core.JaxprEqn, values: list[Value]) -> list[Value]:
    """Results of any primitive: random if the operands are, and no data comes in."""
    name = equation.primitive.name
    kind = max((value.kind for value in values), default=Kind.DATA)
    kind = min(kind, Kind.NUMBER)
    has_data = any(value.is_array_of_data for value in values)
    if kind == Kind.KEY and has_data and name not in MOVES:
        kind = Kind.NUMBER if name in ELEMENTWISE and name not in COMPARISONS else Kind.DATA
    elif kind == Kind.NUMBER and has_data and name not in BITWISE and name not in MOVES:
        kind = Kind.DATA
    is_local = name in ELEMENTWISE or name in MOVES
    results = []
    for out in equation.outvars:
        result = merge(values, kind, _result_axes(equation, values, shape_of(out)))
        if kind != Kind.DATA and not is_local:
            result = dataclasses.replace(result, is_independent=False)
        results.append(_with_bits(result, out) if kind == Kind.NUMBER else result)
    return results


def _with_bits(value: Value, out: Any) -> Value:
    dtype = getattr(out.aval, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        return value
    return dataclasses.replace(value, bits=min(value.bits, jnp.finfo(dtype).nmant))


def _result_axes(equation: core.JaxprEqn, values: Sequence[Value], shape: tuple[int, ...]) -> int:
    """Return the axes along which a result may vary."""
    name = equation.primitive.name
    if name == "broadcast_in_dim":
        dims = equation.params["broadcast_dimensions"]
        return sum(1 << int(dim) for n, dim in enumerate(dims) if values[0].axes >> n & 1)
    if name == "transpose":
        order = enumerate(equation.params["permutation"])
        return sum(1 << n for n, axis in order if values[0].axes >> int(axis) & 1)
    uniform = all(value.axes == 0 for value in values)
    if name in ELEMENTWISE:
        axes = 0
        for value in values:
            axes |= value.axes
        return axes & varying_axes(shape)
    if uniform and ((name in MOVES and len(values) == 1) or name.startswith("reduce_")):
        return 0
    return varying_axes(shape)


def _move(walk: Walk, equation: core.JaxprEqn, values: list[Value]) -> list[Value] | None:
    """Decisions and masks stay what they are where elements only move."""
    moved = values[0]
    if equation.primitive.name == "optimization_barrier":
        return list(values)
    if moved.kind < Kind.MASK:
        return None
    results = []
    for out in equation.outvars:
        axes = _result_axes(equation, values[:1], shape_of(out))
        kind = Kind.DECISION if _is_bool(out) else Kind.MASK
        results.append(dataclasses.replace(moved, kind=kind, axes=axes, constant=None))
    return results


def _is_bool(atom: Any) -> bool:
    return getattr(atom.aval, "dtype", None) == jnp.bool_


def _compare(walk: Walk, equation: core.JaxprEqn, values: list[Value]) -> list[Value] | None:
    """Random numbers against a threshold are a decision; keys and data are not."""
    random = [value for value in values if value.is_random]
    if not random:
        return [
            merge(values, Kind.DATA, _result_axes(equation, values, shape_of(equation.outvars[0])))
        ]
    drawn = random[0]
    other = values[1] if drawn is values[0] else values[0]
    if other.is_array_of_data and other.axes & ~drawn.axes:
        return None
    if _is_equality_of_reals(equation, drawn):
        return None
    if drawn.kind >= Kind.MASK and other.axes == 0:
        flips = equation.primitive.name in ("eq", "lt", "le")
        return [_as_decision(drawn, values, equation, flips=flips)]
    axes = _result_axes(equation, values, shape_of(equation.outvars[0]))
    is_first = drawn is values[0]
    threshold = None
    if other.kind == Kind.DATA and other.axes == 0:
        atom = equation.invars[1 if is_first else 0]
        dtype = equation.invars[0].aval.dtype  # pyright: ignore[reportAttributeAccessIssue]
        threshold = (atom, equation.primitive.name, is_first, dtype)
    return [_new_decision(walk, equation, values, axes, threshold)]


def _is_equality_of_reals(equation: core.JaxprEqn, drawn: Value) -> bool:
    """Whether a test is one for a number that has no probability, such as noise == 0."""
    if equation.primitive.name not in ("eq", "ne") or drawn.kind != Kind.NUMBER:
        return False
    dtype = equation.invars[0].aval.dtype  # pyright: ignore[reportAttributeAccessIssue]
    return drawn.is_independent and bool(jnp.issubdtype(dtype, jnp.floating))


def _new_decision(
    walk: Walk, equation: core.JaxprEqn, values: list[Value], axes: int, threshold: Any = None
) -> Value:
    out = equation.outvars[0]
    kind = Kind.DECISION if _is_bool(out) else Kind.MASK
    value = dataclasses.replace(
        merge(values, kind, axes), decisions=frozenset({(walk.id, True)}), constant=None
    )
    record_decision(walk, value, out, threshold)
    return value


def _as_decision(
    drawn: Value, values: list[Value], equation: core.JaxprEqn, *, flips: bool
) -> Value:
    value = merge(
        values, Kind.DECISION, _result_axes(equation, values, shape_of(equation.outvars[0]))
    )
    decisions = frozenset((name, is_true != flips) for name, is_true in drawn.decisions)
    return dataclasses.replace(value, decisions=decisions)


def _combine_bools(walk: Walk, equation: core.JaxprEqn, values: list[Value]) -> list[Value] | None:
    """A decision and a condition of data stay the decision; two decisions are a new one."""
    decided = [value for value in values if value.kind == Kind.DECISION]
    if not decided or not _is_bool(equation.outvars[0]):
        return None
    flips = equation.primitive.name == "not"
    if len(decided) == 1 or decided[0].decisions == decided[1].decisions:
        return [_as_decision(decided[0], values, equation, flips=flips)]
    axes = _result_axes(equation, values, shape_of(equation.outvars[0]))
    return [_new_decision(walk, equation, values, axes)]


def _round(walk: Walk, equation: core.JaxprEqn, values: list[Value]) -> list[Value] | None:
    """floor(uniform + 1 - rate) is a decision in the form of numbers."""
    if values[0].kind != Kind.NUMBER:
        return None
    return [_new_decision(walk, equation, values, values[0].axes)]


def _select(walk: Walk, equation: core.JaxprEqn, values: list[Value]) -> list[Value] | None:
    """A decision that chooses between data and something is applied to the data."""
    chooser, cases = values[0], values[1:]
    out = equation.outvars[0]
    axes = _result_axes(equation, values, shape_of(out))
    if chooser.kind != Kind.DECISION:
        return _select_by_data(equation, values, axes)
    data = [case for case in cases if case.is_array_of_data]
    if not data and any(case.kind in (Kind.KEY, Kind.NUMBER) for case in cases):
        return None
    if not data:
        kind = Kind.DECISION if _is_bool(out) else Kind.MASK
        return [dataclasses.replace(merge(values, kind, axes), constant=None)]
    other = next((case for case in cases if not case.is_array_of_data), None)
    use = "mix" if other is None else "zero" if other.constant == 0 else "replace"
    kept = None if other is None else cases.index(data[0]) == 1
    source = data[0] if other is not None else None
    result = merge(values, Kind.DATA, axes)
    bit = record_application(
        walk, use, chooser, equation.invars[0], out, source, kept, result.history, cases
    )
    return [_applied(walk, result, bit, is_flag=all(case.is_flag for case in data))]


def _applied(walk: Walk, result: Value, bit: int, *, is_flag: bool) -> Value:
    """Return the result of an application; flags of which some are dropped are flags."""
    applied = frozenset({(walk.id, True)})
    history = result.history | bit
    return dataclasses.replace(result, applied=applied, history=history, is_flag=is_flag)


def _select_by_data(equation: core.JaxprEqn, values: list[Value], axes: int) -> list[Value] | None:
    cases = values[1:]
    random = [case for case in cases if case.is_random]
    if not random or any(case.is_array_of_data for case in cases):
        return None
    decided = [case for case in random if case.kind >= Kind.MASK]
    if len(decided) < len(random):
        return None
    kind = Kind.DECISION if _is_bool(equation.outvars[0]) else Kind.MASK
    return [dataclasses.replace(merge(values, kind, axes), constant=None)]


def _multiply(walk: Walk, equation: core.JaxprEqn, values: list[Value]) -> list[Value] | None:
    """A mask times data is applied; times a number it is a mask; noise times data is noise."""
    first, second = values
    out, axes = equation.outvars[0], _result_axes(equation, values, shape_of(equation.outvars[0]))
    mask = _only(values, lambda value: value.kind == Kind.MASK)
    data = _only(values, lambda value: value.is_array_of_data)
    if mask is not None and data is not None:
        if equation.primitive.name == "div" and mask == 1:
            return None
        atom, result = equation.invars[mask], merge(values, Kind.DATA, axes)
        bit = record_application(
            walk, "zero", values[mask], atom, out, values[data], None, result.history, values
        )
        return [_applied(walk, result, bit, is_flag=values[data].is_flag)]
    if data is not None:
        return _multiply_by_noise(walk, equation, values, axes)
    kinds = {first.kind, second.kind}
    if mask is not None or kinds == {Kind.MASK}:
        rest = kinds - {Kind.MASK}
        if not rest or rest == {Kind.DATA}:
            return [dataclasses.replace(merge(values, Kind.MASK, axes), constant=None)]
    return None


def _multiply_by_noise(
    walk: Walk, equation: core.JaxprEqn, values: list[Value], axes: int
) -> list[Value] | None:
    random = next((value for value in values if value.is_random), None)
    if random is None:
        return None
    result = merge(values, Kind.DATA, axes)
    if random.axes == 0:  # such as a count of what is kept
        return [_with_factor_of(walk, equation, values, result)]
    _record_noise(walk, random, "multiplied")
    return [result]


def _record_noise(walk: Walk, random: Value, use: NoiseUse) -> None:
    if walk.is_recording:
        for draw in random.draws:
            if walk.graph.noise.get(draw) != "multiplied":
                walk.graph.noise[draw] = use


def _only(values: Sequence[Value], condition: Any) -> int | None:
    """Return the number of the only value that meets the condition."""
    numbers = [number for number, value in enumerate(values) if condition(value)]
    return numbers[0] if len(numbers) == 1 else None


def _add(walk: Walk, equation: core.JaxprEqn, values: list[Value]) -> list[Value] | None:
    """A mask added to data is a bias (of -inf: DropKey); 1 - mask is a mask; noise is noise."""
    out, axes = equation.outvars[0], _result_axes(equation, values, shape_of(equation.outvars[0]))
    mask = _only(values, lambda value: value.kind == Kind.MASK)
    data = _only(values, lambda value: value.is_array_of_data)
    if _join_choice(walk, values):
        return None
    if mask is not None and data is not None:
        atom, result = equation.invars[mask], merge(values, Kind.DATA, axes)
        bit = record_application(
            walk, "bias", values[mask], atom, out, None, None, result.history, values
        )
        return [dataclasses.replace(result, history=result.history | bit)]
    if mask is not None and values[1 - mask].kind == Kind.DATA:
        flips = equation.primitive.name == "sub" and mask == 1
        result = merge(values, Kind.MASK, axes)
        decisions = frozenset((name, is_true != flips) for name, is_true in result.decisions)
        return [dataclasses.replace(result, decisions=decisions)]
    random = next((value for value in values if value.kind == Kind.NUMBER), None)
    if data is not None and random is not None:
        _record_noise(walk, random, "added")
        return [merge(values, Kind.DATA, axes)]
    return None


def _join_choice(walk: Walk, values: Sequence[Value]) -> bool:
    """Join x * mask + y * (1 - mask) to one choice; return whether a sum is that."""
    applications = walk.graph.applications
    first, second = ([app for app, _ in value.applied if app in applications] for value in values)
    for name, other in itertools.product(first, second):
        if _are_opposite(applications[name].mask, applications[other].mask):
            applications[name] = dataclasses.replace(applications[name], use="mix")
            del applications[other]
            return True
    for name, value in [(name, values[1]) for name in first] + [(n, values[0]) for n in second]:
        if value.kind == Kind.MASK and _are_opposite(applications[name].mask, value):
            applications[name] = dataclasses.replace(applications[name], use="replace")
            return True
    return False


def _are_opposite(mask: Value, other: Value) -> bool:
    """Whether what one keeps the other drops."""
    flipped = frozenset((name, not is_true) for name, is_true in other.decisions)
    return bool(mask.decisions) and mask.decisions == flipped


def _product(walk: Walk, equation: core.JaxprEqn, values: list[Value]) -> list[Value] | None:
    """A mask in a matrix product with data is applied."""
    mask = _only(values, lambda value: value.kind == Kind.MASK)
    if mask is not None and values[1 - mask].is_array_of_data:
        atom = equation.invars[mask]
        record_application(walk, "product", values[mask], atom, atom, None, None, 0, values)
    return None


_RULES = {
    **dict.fromkeys(COMPARISONS, _compare),
    **dict.fromkeys(("and", "or", "xor", "not"), _combine_bools),
    **dict.fromkeys(ROUNDINGS, _round),
    **dict.fromkeys(MOVES, _move),
    "select_n": _select,
    "mul": _multiply,
    "div": _multiply,
    "add": _add,
    "sub": _add,
    "add_any": _add,
    "dot_general": _product,
}
