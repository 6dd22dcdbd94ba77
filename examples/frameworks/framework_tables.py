"""The tables of compare_frameworks.py: how each framework is measured."""

import itertools
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import stats

RATE = 0.1
RATES = (0.01, 0.1, 0.5, 0.9)
LEVEL = 0.9999  # of the intervals of the kept share
LIMIT = 4.9  # of a z: a right figure is beyond it once in a million
ALPHA = -1.7580993408473766  # SELU's saturation
OURS = ("dropout_jax", "NumPy oracle")
JAX_FAMILY = ("flax.nnx", "flax.linen", "equinox", "haiku", "keras on jax")


@dataclass(frozen=True)
class Table:
    """A section of the page."""

    title: str
    says: str
    headers: tuple[str, ...]
    rows: list[list]
    data: Any = None  # the numbers of the rows


def make_rows(peers, row):
    """A row for each framework: row(name, peer), or the reason why the framework is missing."""
    return [
        [name, peer] if isinstance(peer, str) else [name, *row(name, peer)]
        for name, peer in peers.items()
    ]


def compare_bits(peers, small):
    shapes = ((4, 8, 40),) if small else ((7,), (3, 33), (4, 8, 40), (2, 3, 4, 5))
    rates = (0.1, 0.5) if small else (0.0, 0.1, 1 / 3, 0.5, 0.9)
    dtypes = ("float32", "bfloat16") if small else ("float32", "bfloat16", "float16")
    grid = list(itertools.product(rates, shapes, map(jnp.dtype, dtypes)))

    def count(compare):
        """The numbers of elements, of those that differ, and of those that differ by the seed."""
        counts = np.zeros(3, int)
        for seed, case in enumerate(grid):
            expected, actual = compare(seed, *case)
            wrong, _ = compare(seed, *case, wrong=1)
            counts += (
                actual.size,
                _count_differing_bits(expected, actual),
                _count_differing_bits(wrong, actual),
            )
        return tuple(map(int, counts))

    data = [
        (name, what, promised, *count(compare))
        for promised in ("yes", "no")
        for name, peer in peers.items()
        if not isinstance(peer, str)
        for what, compare in (peer.same if promised == "yes" else peer.other).items()
    ]
    return Table(
        "Bit equality",
        "dropout_jax against its NumPy oracle, and each framework against what "
        "`dropout_jax.parity` predicts from the seed, over "
        f"{len(grid)} sets of rate, shape and dtype ({', '.join(dtypes)}). The last "
        "column is the control: the same comparison with the prediction of another seed, "
        "which must differ. The last rows need not agree.",
        ("framework", "what", "promised", "elements", "differ", "differ, wrong seed"),
        [[*row[:3], *(f"{n:,}" for n in row[3:])] for row in data] + _missing_rows(peers),
        data,
    )


def _missing_rows(peers):
    return [[name, peer] for name, peer in peers.items() if isinstance(peer, str)]


def _installed(peers):
    return {name: peer for name, peer in peers.items() if not isinstance(peer, str)}


def _count_differing_bits(a, b):
    """The number of elements that differ in their bits."""
    return int((_bits(a) != _bits(b)).sum())


def _bits(x):
    x = np.ascontiguousarray(x)
    return x.view(f"uint{8 * x.dtype.itemsize}")


def _choose_shape(peer, small):
    """2^22 elements for the statistics, or 2^16; fewer for the oracle, which is slow.

    One shape for all tables, as every framework compiles for it.
    """
    rows = 2**4 if small else 2**10
    return (rows if peer.backward else min(rows, 2**4) // (4 if small else 1), 8, 512)


def measure_kept_fraction(peers, small):
    def kept(peer, rate):
        mask = peer.ops["dropout"](np.ones(_choose_shape(peer, small), np.float32), rate, 7) > 0
        count, n = int(mask.sum()), mask.size
        low, high = stats.binomtest(count, n).proportion_ci(LEVEL, "wilson")
        return float(low), count / n, float(high)

    def cells(name, peer):
        for rate, (low, share, high) in zip(RATES, data[name], strict=True):
            yield f"{share:.5f} ({low:.5f}, {high:.5f})" + _mark_wrong(not low <= 1 - rate <= high)
        yield f"{max(abs(peer.used(rate) - (1 - rate)) for rate in RATES):.1e}"

    data = {name: [kept(peer, rate) for rate in RATES] for name, peer in _installed(peers).items()}
    return Table(
        "Kept fraction",
        f"The kept share of {2**16 if small else 2**22:,} elements ({2**14 if small else 2**16:,} "
        f"for the oracle), with its {LEVEL:.2%} interval (Wilson). **!** would mark an interval "
        "that misses the promised 1 - rate. The last column is exact: ours keeps with probability "
        "T / 2^32, 1 - rate in float32, JAX's bernoulli with a multiple of 2^-23, PyTorch's with a "
        "multiple of 2^-53.",
        ("framework", *(f"rate {rate}" for rate in RATES), "used - promised, at most"),
        make_rows(peers, cells),
        data,
    )


def _mark_wrong(wrong):
    return " **!**" if wrong else ""


def closed_form(op, x, q, rounded_to=None):
    """Mean, variance and variance of the squared deviation of an op's output for x.

    With `rounded_to`, those of the exact output rounded once to that dtype. For the spatial op
    they are those of the channels' sums.
    """
    if op == "gaussian":
        variance = x**2 * (1 - q) / q
        return x, variance, 2 * variance**2
    kept, dropped = x / q, np.zeros(())
    if op == "alpha":
        a = (q + ALPHA**2 * q * (1 - q)) ** -0.5
        kept, dropped = a * (x - ALPHA * (1 - q)), np.array(a * ALPHA * q)
    if rounded_to is not None:
        kept, dropped = (value.astype(rounded_to).astype(float) for value in (kept, dropped))
    if op == "spatial":
        kept = kept.sum(1)
    apart, p = kept - dropped, 1 - q
    mean, variance = q * kept + p * dropped, p * q * apart**2
    return mean, variance, apart**4 * (q * p**4 + p * q**4 - (p * q) ** 2)


def compute_z_scores(peer, op, dtype, rate, shape):
    """Deviations of sum and sum of squared deviations from the closed form, in standard errors.

    The last value says whether one rounding of the exact output to the dtype explains a deviation
    beyond LIMIT.
    """
    x = np.random.default_rng(1).uniform(0.5, 1.5, shape).astype(dtype)
    y = np.asarray(peer.ops[op](x, rate, 11), np.float64)
    y = y.sum(1) if op == "spatial" else y  # one decision for a channel

    def z(rounded_to=None):
        form = closed_form(op, x.astype(np.float64), peer.used(rate), rounded_to)
        mean, variance, fourth = form
        deviation = y - mean
        return (
            float(deviation.sum() / np.sqrt(variance.sum())),
            float((deviation**2 - variance).sum() / np.sqrt(fourth.sum())),
        )

    exact = z()
    return *exact, max(map(abs, exact)) > LIMIT and max(map(abs, z(dtype))) < LIMIT


DIVIDES, MULTIPLIES, NARROW, NOISE, OUTPUT = "abcde"
KNOWN = {
    DIVIDES: "it divides by 1 - rate rounded to bfloat16 (table 4)",
    MULTIPLIES: "it multiplies by 1 / (1 - rate) rounded to bfloat16 (table 4)",
    NARROW: "it computes a x + b in bfloat16",
    NOISE: "it draws its normal numbers in bfloat16, where they have 128 values of mean -0.01",
    OUTPUT: "no deviation of the framework: the exact output rounded once to bfloat16 is as far "
    "off, because all dropped elements have one value that bfloat16 cannot represent",
}


def name_deviation(name, op, dtype, only_rounded):
    """The letter of a framework's known deviation; "" if it has none."""
    if only_rounded:
        return OUTPUT
    if dtype == "float32" or name in OURS:
        return ""
    special = {("torch", "alpha"): NARROW, ("keras on jax", "alpha"): NARROW}
    special["keras on jax", "gaussian"] = NOISE
    return special.get((name, op)) or (MULTIPLIES if name == "torch" else DIVIDES)


def mark_deviation(name, op, dtype, z, only_rounded):
    """The text after a z in its cell: nothing, a letter, or a mark."""
    if abs(z) < LIMIT:
        return ""
    letter = name_deviation(name, op, dtype, only_rounded)
    return f" ({letter})" if letter else " **!**"


def measure_moments(peers, small):
    dtypes, rates = ("float32", "bfloat16"), (0.1, 0.3)
    data = [
        (
            name,
            op,
            dtype,
            rate,
            *compute_z_scores(peer, op, jnp.dtype(dtype), rate, _choose_shape(peer, small)),
        )
        for op in ("dropout", "spatial", "alpha", "gaussian")
        for name, peer in _installed(peers).items()
        if op in peer.ops
        for dtype in dtypes
        for rate in rates
    ]
    rows = []
    for (name, op), group in itertools.groupby(data, key=lambda row: row[:2]):
        group = list(group)
        rows.append([name, op])
        for dtype in dtypes:
            for column in (4, 5):
                row = max(
                    (row for row in group if row[2] == dtype), key=lambda r: abs(float(r[column]))
                )
                z = row[column]
                rows[-1].append(f"{z:+.1f}" + mark_deviation(name, op, dtype, z, row[6]))
    reasons = "\n".join(f"- ({letter}) {why}." for letter, why in KNOWN.items())
    return Table(
        "Mean and variance against the closed form",
        "z of the sum of the outputs and of their squared deviations, the larger of rates "
        f"{rates[0]} and {rates[1]}: a correct one is beyond {LIMIT} once in a million. A letter "
        "names the cause of a larger one; **!** would mark one without a known cause. Not every "
        "framework has every op."
        f"\n\n{reasons}",
        ("framework", "op", *(f"{m}, {dtype}" for dtype in dtypes for m in ("mean", "variance"))),
        rows + _missing_rows(peers),
        data,
    )


def measure_scale_bias(peers, small):
    dtypes = ("float32", "float16", "bfloat16")

    def bias(peer, dtype):
        x = np.random.default_rng(2).uniform(0.5, 1.5, _choose_shape(peer, small)).astype(dtype)
        y = np.asarray(peer.ops["dropout"](x, RATE, 13), np.float64)
        return float(y.sum() / x[y > 0].astype(np.float64).sum() * peer.used(RATE) - 1)

    def predicted(name):
        q, cast = 1 - RATE, jnp.bfloat16
        if name in JAX_FAMILY:
            return q / float(cast(q)) - 1
        return q * float(cast(1 / q)) - 1 if name == "torch" else 0.0

    def cells(name, peer):
        for share in (*data[name].values(), predicted(name)):
            yield f"{round(100 * share, 3) + 0.0:+.3f} %"  # + 0.0: no -0

    data = {
        name: {dtype: bias(peer, jnp.dtype(dtype)) for dtype in dtypes}
        for name, peer in _installed(peers).items()
    }
    return Table(
        "Bias of the scale",
        f"Kept outputs times the probability of keeping, relative to the input, at rate {RATE}: "
        "0 if there is no bias, for every mask. The JAX family divides bfloat16 by bfloat16(0.9) = "
        "0.8984, PyTorch multiplies by bfloat16(1 / 0.9) = 1.1094; the last column is that "
        "arithmetic. (In float16 XLA on this CPU multiplies by the rounded reciprocal.) These "
        "are the peers' deviations. That of ours in 16 bits is the rounding of the product.",
        ("framework", *dtypes, "bfloat16, from the arithmetic"),
        make_rows(peers, cells),
        data,
    )


def describe_outcome(call, x):
    """Describe a call's result, or its error, in a word or two."""
    try:
        y = call()
    except Exception as error:  # whatever a framework raises is the finding
        return type(error).__name__.removesuffix("ConversionError")
    if _count_differing_bits(x, y) == 0:
        return "identity"
    if np.isnan(y).all():
        return "NaN"
    if (y == 0).all():
        return "zeros"
    share = (y != 0).mean()
    return f"all * {(y / x).mean():.7g}" if share == 1 else f"{share:.0%} kept"


def value_after_dropout(peer, value, dropped):
    """The output for a value where it is dropped, or where it is kept."""
    x = np.ones((64, 64), np.float32)
    mask = peer.ops["dropout"](x, 0.5, 3) > 0
    index = tuple(np.argwhere(mask != dropped)[0])
    x[index] = value
    return f"{peer.ops['dropout'](x, 0.5, 3)[index]:g}".replace("nan", "NaN")


def try_edge_rates(peers, small):
    x = np.linspace(0.5, 1.5, 4096, dtype=np.float32).reshape(64, 64)

    def row(name, peer):
        for rate in (0.0, 1.0, -0.1, 1.5, float("nan"), 1e-6):
            yield describe_outcome(lambda rate=rate: peer.ops["dropout"](x, rate, 0), x)
        for rate in (1.5, -0.1):
            yield (
                describe_outcome(lambda rate=rate: peer.traced(x, rate, 0), x)
                if peer.traced
                else "-"
            )

    return Table(
        "Rates at the edges",
        "Each cell is an error's name or describes the output. `zeros` at 1.5 or NaN, and "
        "`all * 0.909` at -0.1, are wrong rates that pass silently; the oracle checks nothing. "
        "`TracerBool` is JAX's error for a branch on a traced value: that rate cannot be traced. "
        "At 1e-6 these 4,096 elements are scaled, and none is dropped.",
        ("framework", "0", "1", "-0.1", "1.5", "NaN", "1e-6", "traced 1.5", "traced -0.1"),
        make_rows(peers, row),
    )


def try_edge_values(peers, small):
    ones = np.ones((64, 64), np.float32)

    def row(name, peer):
        yield from (
            value_after_dropout(peer, value, dropped=True) for value in (np.nan, np.inf, -1.0)
        )
        yield value_after_dropout(peer, -0.0, dropped=False)
        yield describe_outcome(lambda: peer.backward(ones, 1.0)[0], ones) if peer.backward else "-"

    return Table(
        "Values at the edges",
        "The output for a value where it is dropped or kept, at rate 0.5 in float32; and the "
        "gradient at rate 1, where the output is 0 for every x.",
        (
            "framework",
            *("dropped NaN", "dropped Inf", "dropped -1", "kept -0.0"),
            "gradient at rate 1",
        ),
        make_rows(peers, row),
    )


def compare_switches(peers, small):
    x = np.array([[1.0, -0.0, np.nan, np.inf, -np.inf, 1e-40, -2.5, 3.0] * 8], np.float32)
    ones = np.ones((64, 64), np.float32)

    def row(name, peer):
        mode = describe_outcome(lambda: peer.default_mode(ones), ones)
        mode = {"identity": "evaluates"}.get(mode, mode)
        mode = "trains" if "kept" in mode else mode
        same = _count_differing_bits(x, peer.evaluate(x)) == 0
        return [peer.switch, mode, "yes" if same else "no"]

    return Table(
        "Training and evaluation",
        "How each framework switches between the modes, what it does when the caller names none "
        "(with a key or generator available), and whether evaluation returns the input bit for "
        "bit, including -0, NaN and Inf.",
        ("framework", "switch", "default mode", "evaluation is the input"),
        make_rows(peers, row),
    )


def measure_memory(peers, small):
    dtypes = ("float32", "bfloat16")

    def kept(peer, dtype):
        x = np.ones(_choose_shape(peer, small=True), jnp.dtype(dtype))
        return peer.backward(x, RATE)[1] / x.size if peer.backward else None

    def row(name, peer):
        return ["-" if n is None else f"{n:.3f}" for n in data[name]]

    data = {
        name: [kept(peer, dtype) for dtype in dtypes] for name, peer in _installed(peers).items()
    }
    return Table(
        "Memory kept for the backward pass",
        f"Bytes an element at rate {RATE}: the arrays that `jax.vjp` of a call keeps, and what "
        "PyTorch saves for its graph.",
        ("framework", *dtypes),
        make_rows(peers, row),
        data,
    )


def quote_sources(peers, small):
    def flash(rate):
        keep = np.float32(1) - np.float32(rate)
        share = (np.floor(float(keep) * 255) + 1) / 256
        return f"{rate}: keeps {share:.4f}, mean {100 * (share / float(keep) - 1):+.2f} %"

    return Table(
        "Known from the source, not run",
        "What the sources say, and what follows by arithmetic; a GPU ran only the last.",
        ("what", "source", "consequence"),
        [
            [
                "FlashAttention 2 keeps a weight where a random byte is at most "
                "floor(255 (1 - rate)), and scales by 1 / (1 - rate)",
                "Dao-AILab/flash-attention: csrc/flash_attn/flash_api.cpp and "
                "csrc/flash_attn/src/dropout.h; the same in pytorch/pytorch: "
                "aten/src/ATen/native/transformers/cuda/flash_attn",
                "; ".join(flash(rate) for rate in (0.1, 0.2, 0.3, 0.5)),
            ],
            [
                "PyTorch's dropout on CUDA takes Philox4x32-10 by thread, the number of threads "
                "from the device, and keeps where a float32 uniform is below 1 - rate",
                "pytorch/pytorch: aten/src/ATen/native/cuda/Dropout.cu",
                "another mask than on a CPU, and than on a GPU of another size; "
                "`parity.torch.cuda_mask` draws the same, on an H100 compared by "
                "examples/check_torch_cuda.py",
            ],
        ],
    )


TABLES = (
    compare_bits,
    measure_kept_fraction,
    measure_moments,
    measure_scale_bias,
    try_edge_rates,
    try_edge_values,
    compare_switches,
    measure_memory,
    quote_sources,
)
