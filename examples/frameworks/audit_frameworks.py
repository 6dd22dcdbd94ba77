"""Run the auditor over the frameworks' own modules, and write what each of them does.

    python examples/frameworks/audit_frameworks.py [--out docs/audit_frameworks.md]

Every number of the page is from the run: the modules are called in training, in float32 and in
bfloat16, as they are installed. The JSON beside the page has the same rows.
"""

import argparse
import json
import math
import os
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import torch
from flax import nnx
from rich.progress import track
from tabulate import tabulate

import dropout_jax.nn
from dropout_jax import audit

RATE = 0.1
KEY = jax.random.key(0)
PACKAGES = ("jax", "flax", "equinox", "dm-haiku", "keras", "torch", "dropout-jax")
INTRODUCTION = """\
# What the dropout of each framework does

`python examples/frameworks/audit_frameworks.py` writes this page: the auditor (docs/audit.md)
watches each module at rate {rate} on data of (batch 4, time 16, features 64), in float32 and in
bfloat16, on a CPU, with {versions}.

- *drawn for*: the shape of the random decisions, and of the data that they are applied to.
- *shared along*: axes of the data along which everything has one decision.
- *keeps*: the probability, exactly where the program says it, else the share of this run (~).
- *scale*: what the kept data is multiplied with; {scale:.6g} is exact. bfloat16's is rounded.
- *bits*: random bits that decide, in bfloat16.
- *finding*: what `audit.check` says of it, where nothing is declared.

"""


class Module(NamedTuple):
    """A module of a framework, in a training step of a dtype: the step, and its arguments."""

    framework: str
    name: str
    build: Callable[[Any], tuple[Callable, tuple]]


def in_nnx(make: Callable) -> Callable:
    """A layer of flax.nnx, which keeps its keys."""

    def build(dtype):
        graph, state = nnx.split(make(dtype))
        return lambda state, x: nnx.merge(graph, state)(x), (state, data(dtype))

    return build


def in_linen(make: Callable) -> Callable:
    """A layer of flax.linen, which takes its key from `rngs`."""

    def build(dtype):
        layer, x = make(dtype), data(dtype)
        params = layer.init({"params": KEY, "dropout": KEY}, x)
        return lambda params, x, key: layer.apply(params, x, rngs={"dropout": key}), (
            params,
            x,
            KEY,
        )

    return build


def in_equinox(call: Callable) -> Callable:
    """A layer of Equinox, for one row of the batch: each has its own key."""

    def build(dtype):
        def step(x, key):
            return jax.vmap(call(dtype))(x, jax.random.split(key, len(x)))

        return step, (data(dtype), KEY)

    return build


def in_haiku(call: Callable) -> Callable:
    """A function of Haiku."""

    def build(dtype):
        apply = hk.transform(call).apply
        return lambda x, key: apply({}, key, x), (data(dtype), KEY)

    return build


def in_keras(make: Callable, inputs: int) -> Callable:
    """A layer of Keras, in its stateless form."""

    def build(dtype):
        layer, x = make(jnp.dtype(dtype).name), data(dtype)
        layer(*[x] * inputs)
        parts = layer.trainable_variables, layer.non_trainable_variables
        state = [[variable.value for variable in part] for part in parts]

        def step(trainable, others, x):
            return layer.stateless_call(trainable, others, *[x] * inputs, training=True)[0]

        return step, (*state, x)

    return build


def data(dtype: Any) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (4, 16, 64), dtype)


def linen_scan(*, split: bool) -> Callable:
    """Two layers of nn.scan."""

    class Layer(nn.Module):
        """Dropout as one turn of a scan."""

        @nn.compact
        def __call__(self, x, _):
            return jnp.tanh(nn.Dropout(RATE, deterministic=False)(x)), None

    class Scan(nn.Module):
        """The scan."""

        @nn.compact
        def __call__(self, x):
            rngs: Any = {"dropout": split}
            return nn.scan(Layer, split_rngs=rngs, length=2)()(x, None)[0]

    return lambda dtype: Scan()


def linen_attention(**options) -> Callable:
    def make(dtype):
        return nn.MultiHeadDotProductAttention(
            4, dropout_rate=RATE, deterministic=False, dtype=dtype, **options
        )

    return make


def nnx_attention(**options) -> Callable:
    def make(dtype):
        layer = nnx.MultiHeadAttention(
            4, 64, dropout_rate=RATE, decode=False, dtype=dtype, rngs=nnx.Rngs(0), **options
        )
        layer.train()
        return layer

    return make


def equinox_attention(dtype) -> Callable:
    layer = eqx.nn.MultiheadAttention(4, 64, dropout_p=RATE, dtype=dtype, key=KEY)
    return lambda x, key: layer(x, x, x, key=key)


def haiku_dropout(**options) -> Callable:
    return lambda x: hk.dropout(hk.next_rng_key(), RATE, x, **options)


def own(name: str, **options) -> Module:
    """A layer of this package."""
    layer = getattr(dropout_jax.nn, name)
    make = in_nnx(lambda dtype: layer(RATE, rngs=nnx.Rngs(0), **options))
    return Module("dropout_jax.nn", name, make)


def from_keras(name: str, *args, inputs: int = 1, **kwargs) -> Module:
    """A layer of Keras."""

    def make(dtype):
        return getattr(keras.layers, name)(*args, dtype=dtype, **kwargs)

    options = [option for option in kwargs if "dropout" in option]
    label = f"{name}({', '.join(options)})" if options else name
    return Module("keras", label, in_keras(make, inputs))


# The default of this initializer needs LAPACK, which has no bfloat16.
RECURRENT: dict[str, Any] = {"recurrent_initializer": "glorot_uniform"}

MODULES = [
    Module("flax.nnx", "Dropout", in_nnx(lambda dtype: nnx.Dropout(RATE, rngs=nnx.Rngs(0)))),
    Module(
        "flax.nnx",
        "Dropout(broadcast_dims=(1,))",
        in_nnx(lambda dtype: nnx.Dropout(RATE, broadcast_dims=(1,), rngs=nnx.Rngs(0))),
    ),
    Module("flax.nnx", "MultiHeadAttention", in_nnx(nnx_attention())),
    Module(
        "flax.nnx",
        "MultiHeadAttention(broadcast_dropout=False)",
        in_nnx(nnx_attention(broadcast_dropout=False)),
    ),
    Module("flax.linen", "Dropout", in_linen(lambda dtype: nn.Dropout(RATE, deterministic=False))),
    Module("flax.linen", "MultiHeadDotProductAttention", in_linen(linen_attention())),
    Module(
        "flax.linen",
        "MultiHeadDotProductAttention(broadcast_dropout=False)",
        in_linen(linen_attention(broadcast_dropout=False)),
    ),
    Module("flax.linen", "scan, dropout split", in_linen(linen_scan(split=True))),
    Module("flax.linen", "scan, dropout not split", in_linen(linen_scan(split=False))),
    Module(
        "equinox",
        "Dropout",
        in_equinox(lambda dtype: lambda x, key: eqx.nn.Dropout(RATE)(x, key=key)),
    ),
    Module("equinox", "MultiheadAttention", in_equinox(equinox_attention)),
    Module("haiku", "dropout", in_haiku(haiku_dropout())),
    Module("haiku", "dropout(broadcast_dims=(1,))", in_haiku(haiku_dropout(broadcast_dims=(1,)))),
    from_keras("Dropout", RATE),
    from_keras("SpatialDropout1D", RATE),
    from_keras("GaussianDropout", RATE),
    from_keras("AlphaDropout", RATE),
    from_keras("MultiHeadAttention", 4, 16, dropout=RATE, inputs=2),
    from_keras("LSTM", 64, dropout=RATE, **RECURRENT),
    from_keras("LSTM", 64, recurrent_dropout=RATE, **RECURRENT),
    own("Dropout"),
    own("DropoutUnscaled"),
    own("AlphaDropout"),
    own("GaussianDropout"),
    own("SpatialDropout"),
    own("LockedDropout"),
    own("TokenDropout"),
    own("DropPath"),
]

# PyTorch's modules, which take data of (batch 4, time 16, features 64).
TORCH_MODULES = {
    "Dropout": lambda: torch.nn.Dropout(RATE),
    "Dropout1d": lambda: torch.nn.Dropout1d(RATE),
    "AlphaDropout": lambda: torch.nn.AlphaDropout(RATE),
    "LSTM(num_layers=2)": lambda: torch.nn.LSTM(64, 64, 2, dropout=RATE, batch_first=True),
    "TransformerEncoderLayer": lambda: torch.nn.TransformerEncoderLayer(
        64, 4, 256, dropout=RATE, batch_first=True
    ),
}

HEADERS = ("framework", "module", "decides", "drawn for", "shared along", "keeps", "scale")
HEADERS += ("bf16 keeps", "bf16 scale", "bits", "finding")


def make_rows(module: Module) -> Iterator[dict[str, Any]]:
    """A row for each site of a module; one for its noise, if it has nothing else."""
    step, args = module.build(jnp.float32)
    record = audit.trace(step, *args)
    low = audit.trace(*flatten(module.build(jnp.bfloat16)))
    findings = audit.check(step, args_at=[args])
    said = ", ".join(f"{f.code} ({f.severity})" for f in findings if f.code not in ("D04", "D02"))
    first = {"framework": module.framework, "module": module.name, "finding": said}
    if not record.sites:
        for noise in record.noise:
            yield first | {"decides": f"numbers, {noise.use}", "drawn for": noise.shape}
    for number, site in enumerate(unique_sites(record.sites)):
        yield first | describe_site(site) | describe_low(unique_sites(low.sites)[number])


def make_torch_rows(name: str) -> Iterator[dict[str, Any]]:
    """A row for each site of a module of PyTorch."""
    records = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = TORCH_MODULES[name]().to(dtype).train()
        records[dtype] = audit.trace_torch(model, torch.ones(4, 16, 64, dtype=dtype))
    model = TORCH_MODULES[name]().train()
    findings = audit.torch(model, torch.ones(4, 16, 64))
    said = ", ".join(dict.fromkeys(f"{f.code} ({f.severity})" for f in findings))
    first = {"framework": "torch", "module": name, "finding": said}
    low = unique_sites(records[torch.bfloat16].sites)
    for number, site in enumerate(unique_sites(records[torch.float32].sites)):
        yield first | describe_site(site) | describe_low(low[number])


def flatten(built: tuple[Callable, tuple]) -> tuple:
    return built[0], *built[1]


def unique_sites(sites) -> list[audit.Site]:
    """Sites that differ in shape: the gates of an LSTM draw alike."""
    return list({(site.shape, site.applied_shape, site.use): site for site in sites}.values())


def describe_site(site: audit.Site) -> dict[str, Any]:
    return {
        "decides": f"{site.use}, {site.times * max(site.applications // site.times, 1)}x"
        if site.applications > 1
        else site.use,
        "drawn for": f"{site.shape} for {site.applied_shape}",
        "shared along": list(site.shared_axes),
        "keeps": describe_probability(site),
        "scale": site.scale,
    }


def describe_low(site: audit.Site) -> dict[str, Any]:
    """What bfloat16 changes."""
    keeps, scale = describe_probability(site), site.scale
    bits = None if site.probability is None else site.resolution
    return {"bf16 keeps": keeps, "bf16 scale": scale, "bits": bits}


def describe_probability(site: audit.Site) -> str:
    return f"~{site.kept:.3f}" if site.probability is None else f"{site.probability:.6g}"


def render_page(rows: list[dict[str, Any]]) -> str:
    """The page: one table."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    cells = [[show(row.get(name)) for name in HEADERS] for row in rows]
    table = tabulate(cells, HEADERS, tablefmt="github", disable_numparse=True)
    introduction = INTRODUCTION.format(rate=RATE, versions=versions, scale=1 / (1 - RATE))
    return f"{introduction}{table}\n"


def show(value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.5f}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/audit_frameworks.md"))
    options = parser.parse_args(arguments)
    rows = [row for module in track(MODULES, "auditing") for row in make_rows(module)]
    rows += [row for name in TORCH_MODULES for row in make_torch_rows(name)]
    options.out.write_text(render_page(rows))
    versions = {name: metadata.version(name) for name in PACKAGES}
    path = options.out.with_suffix(".json")
    path.write_text(json.dumps({"versions": versions, "rate": RATE, "rows": rows}, indent=1) + "\n")
    print(f"wrote {options.out} and {path}")
    return rows


if __name__ == "__main__":
    main()
