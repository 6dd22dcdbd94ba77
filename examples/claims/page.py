"""Run every experiment of this folder's chapters, and write docs/claims.md from the results.

    python examples/claims/page.py [--full | --smallest] [--only NAME ...] [--out docs/claims]

`--only` runs the named scripts; without names it runs none. The page has the results of all.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from tabulate import tabulate

from common import rates

HERE = Path(__file__).parent

# The chapters of the page: a folder beside this file, and its scripts in the order of the page.
CHAPTERS: dict[str, list[str]] = {
    "mechanism": [
        *("scaling", "randomness", "missing_scale", "unscaled_softmax", "evaluation_mode"),
        *("forgotten_evaluation", "geometric_mean", "sub_networks", "monte_carlo_samples"),
        *("co_adaptation", "feature_correlation"),
    ],
    "learning": [
        *("data_size", "gpt_overfitting", "underfitting", "gpt_rates", "image_rates", "placement"),
        *("interactions", "variance_shift", "batch_norm", "schedules", "cost", "step_time"),
    ],
    "blocks": ["block_shapes", "norm_order", "features"],
    "variants": [
        *("convolution", "feature_maps", "selu_moments", "selu", "recurrent", "zoneout"),
        *("drop_connect", "drop_path", "removed_blocks", "learned_rates", "learned_against_fixed"),
        "r_drop",
    ],
    "finetuning": ["genre", "genre_head_rates", "genre_body_rates"],
    "uncertainty": [
        *("uncertainty", "out_of_distribution", "active_learning", "genre_uncertainty"),
        *("gpt_uncertainty", "gpt_other_texts"),
    ],
}

TITLES = {
    "mechanism": "The mechanism",
    "learning": "Effects on learning",
    "blocks": "In a stack of blocks",
    "variants": "Variants in their architectures",
    "finetuning": "Fine-tuning",
    "uncertainty": "Uncertainty",
}

INTRODUCTION = """\
# What is said about dropout, run and measured

`make claims` runs every experiment below on two cores and writes this page, its figures and its
verdicts; it downloads nothing. Numbers are means over independent seeds with 95 % intervals of
Student's t. A claim *holds* if the whole interval of its difference has the claimed sign. It *does
not hold* otherwise, which includes an interval that contains 0. *Holds only when* lists the
settings where it holds and those where it does not. A claim that two methods are equally good holds
if the whole interval lies within a named margin. All verdicts are about the data used here. Each
experiment is a script of `examples/claims/`; `--full` runs its long form.
"""


RATES = """\
## Rates to start a search from

For each setting the rate with the largest gain among those whose whole interval is above 0; 0 if
there is none. The models are small and the data is little: search around these rates.
"""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true")
    size.add_argument("--smallest", action="store_true")
    parser.add_argument("--only", nargs="*", help="run only these scripts; without names, none")
    parser.add_argument("--out", type=Path, default=Path("docs/claims"))
    options = parser.parse_args(arguments)
    names = [name for chapter in CHAPTERS.values() for name in chapter]
    console = Console(highlight=False)
    for i, name in enumerate(names if options.only is None else options.only):
        console.rule(f"{name} ({i + 1} of {len(names)})")
        words = [sys.executable, str(HERE / script_path(name)), "--out", str(options.out)]
        words += [f"--{word}" for word in ("full", "smallest") if getattr(options, word)]
        subprocess.run(words, check=True)
    results = {name: json.loads((options.out / f"{name}.json").read_text()) for name in names}
    path = options.out.with_suffix(".md")
    path.write_text(render_page(results, options.out.name))
    console.print(f"wrote {path}")


def script_path(name: str) -> str:
    """A script's path in this folder."""
    return next(f"{chapter}/{name}.py" for chapter, names in CHAPTERS.items() if name in names)


def render_page(results: dict[str, dict], folder: str) -> str:
    """The page: one table of all claims, then a section for each script."""
    parts = [
        INTRODUCTION,
        claims_table(results),
        RATES,
        format_table(rates.recommended_rates(results), "keys"),
    ]
    for chapter, names in CHAPTERS.items():
        sections = (render_section(name, results[name], folder) for name in names)
        parts += [f"## {TITLES[chapter]}", *sections]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def claims_table(results: dict[str, dict]) -> str:
    """Claim, verdict and script."""
    rows = [
        [finding["claim"], finding["verdict"], f"[{name}](#{heading_anchor(record['title'])})"]
        for name, record in results.items()
        for finding in record["findings"]
    ]
    return format_table(rows, ["claim", "verdict", "experiment"])


def format_table(rows, headers) -> str:
    """A table without the spaces that line up its source."""
    padded = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    return re.sub("-{3,}", "---", re.sub(" {2,}", " ", padded))


def heading_anchor(title: str) -> str:
    """GitHub's name for a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def render_section(name: str, record: dict, folder: str) -> str:
    """A script's title, picture and findings."""
    rows = [
        [finding["claim"], finding["source"], finding["measured"], finding["verdict"]]
        for finding in record["findings"]
    ]
    scale = "" if record["scale"] == "default" else f" --{record['scale']}"
    more = record["numbers"].get("table", [])  # some scripts have a table: rows as dictionaries
    return "\n\n".join(
        [
            f"### {record['title']}",
            f"`python examples/claims/{script_path(name)}{scale}` "
            f"([script](../examples/claims/{script_path(name)}), [numbers]({folder}/{name}.json))",
            f"![{record['title']}]({folder}/{name}.png)",
            format_table(rows, ["claim", "made in", "measured", "verdict"]),
            *([format_table(more, "keys")] if more else []),
        ]
    )


if __name__ == "__main__":
    main()
