"""`to_html`: an audit as one page, each site with its mask as a picture."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from dropout_jax.audit._describe import (
    describe_callers,
    describe_counts,
    describe_interval,
    findings_of,
    list_records,
    short_location,
)
from dropout_jax.audit._findings import Finding
from dropout_jax.audit._png import png_uri
from dropout_jax.audit._record import Record, Site
from dropout_jax.audit._values import EXACT

PIXELS = 4  # of the page, for an element of a mask
TIMES = 2  # whose masks have pictures


def to_html(findings: Sequence[Finding], title: str = "Audit of dropout") -> str:
    """Return one page that needs no other file and no script, for light and dark mode.

    It has the findings, and each site with the beginning of its mask, its numbers and its findings.

    Args:
      findings: of `check`.
      title: of the page.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import audit, dropout
      >>> def step(x, key):
      ...     return dropout(x, 0.1, key=key).sum()
      >>> findings = audit.check(step, args_at=lambda n: (jnp.ones((8, 32)), jax.random.key(n)))
      >>> page = audit.to_html(findings)
      >>> page.count("<img"), "http" in page
      (1, False)
    """
    records = list_records(findings)
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{describe_counts(findings)}. jax {jax.__version__} on {jax.default_backend()}.</p>",
        *(_finding_part(finding) for finding in findings),
        *(part for run, record in records.items() for part in _record_parts(run, record, findings)),
    ]
    head = _HEAD.replace("TITLE", html.escape(title)).replace("STYLE", _STYLE)
    return "\n".join([head, *parts, "</main>", "</html>", ""])


def _finding_part(finding: Finding) -> str:
    """Return a finding with all that is known of it."""
    callers = ", ".join(_code(caller) for caller in describe_callers(finding))
    called = f"<p>Called from {callers}.</p>" if callers else ""
    return (
        f'<section class="finding {finding.severity}">'
        f"<h2>{finding.code} {finding.severity}: {html.escape(finding.title)}</h2>"
        f"<p>{_code(short_location(finding.location))}</p><p>{html.escape(finding.message)}</p>"
        f"<p>{html.escape(finding.remedy)}</p>{called}</section>"
    )


def _code(text: str) -> str:
    return f"<code>{html.escape(text)}</code>"


def _record_parts(run: str, record: Record, findings: Sequence[Finding]) -> Iterator[str]:
    """Iterate over the parts of a run: its sites, and what else is random in it."""
    count = len(record.sites)
    yield f"<h2>The {run} step: {count} {'site' if count == 1 else 'sites'}</h2>"
    if any(_has_picture(site) for site in record.sites):
        yield (
            "<p>The pictures are the beginning of the masks that meet the data: "
            '<span class="kept"></span> is kept, <span class="dropped"></span> is dropped.</p>'
        )
    yield '<div class="sites">'
    for site in record.sites:
        yield _site_part(site, findings_of(site, run, findings))
    yield "</div>"
    others = (*record.strays, *record.noise, *record.opaque)
    if others:
        lines = "".join(f"<li>{html.escape(str(other))}</li>" for other in others)
        yield f"<h3>What else is random</h3><ul>{lines}</ul>"


def _has_picture(site: Site) -> bool:
    return site.corner is not None and site.corner.size > 0


def _site_part(site: Site, findings: Sequence[Finding]) -> str:
    numbers = "".join(
        f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in _numbers(site).items()
    )
    about = "".join(
        f'<li class="{one.severity}">{one.code} {html.escape(one.title)}</li>' for one in findings
    )
    return (
        f'<section class="site"><h3>{_code(short_location(site.location))}</h3>{_pictures(site)}'
        f'<ul class="about">{about or "<li>no findings</li>"}</ul><dl>{numbers}</dl>'
        f"{_way(site)}</section>"
    )


def _way(site: Site) -> str:
    """Return the functions that lead to a decision, the innermost first, to be opened."""
    library = [name for name in site.library if not name.startswith(("jax:", "python:"))]
    lines = [*library, *map(short_location, site.callers)]
    items = "".join(f"<li>{_code(line)}</li>" for line in lines)
    return f"<details><summary>The calls that lead there</summary><ol>{items}</ol></details>"


def _numbers(site: Site) -> dict[str, str]:
    """Return what the page says of a site, by name."""
    factors = ", ".join(f"{factor:.6g}" for factor in site.factors)
    values = {
        "called from": "".join(describe_callers(site)[:1]),
        "module": site.module,
        "mask": f"{site.shape}, {site.generator}",
        "data": f"{site.applied_shape}, {site.use}",
        "times": f"{site.times}, applied {site.applications}, recomputed {site.recomputations}",
        "loops": ", ".join(site.loops),
        "kept": describe_interval(site),
        "exactly": "" if site.probability is None else f"{site.probability:.6g}",
        "random bits": str(site.resolution) if site.resolution < EXACT else "",
        "scale": "none" if site.scale is None else f"{site.scale:.6g}",
        "factors": factors,
        "shared axes": ", ".join(map(str, site.shared_axes)) or "none",
        "key": ", ".join(site.key_arguments) or "depends on no argument",
    }
    return {name: value for name, value in values.items() if value}


def _pictures(site: Site) -> str:
    """Return the pictures of a mask: at two times, and at two indices of two axes."""
    if not _has_picture(site):
        return ""
    corner = site.corner
    assert corner is not None
    tiles = [
        _picture(
            site, corner[time, row, column], (time, row, column), is_one_of_many=len(corner) > 1
        )
        for time in range(min(len(corner), TIMES))
        for row in range(corner.shape[1])
        for column in range(corner.shape[2])
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _picture(
    site: Site, tile: np.ndarray, index: tuple[int, int, int], *, is_one_of_many: bool
) -> str:
    """Return a picture with its index in the mask, such as "time 0 [0, 1, :32, :32]"."""
    height, width = tile.shape
    time, row, column = index
    dims = len(site.applied_shape)
    slices = [*(["0"] * (dims - 4)), str(row), str(column), f":{height}", f":{width}"]
    text = f"[{', '.join(slices[-dims:] if dims else [])}]"
    text = f"time {time} {text}" if is_one_of_many else text
    size = f'width="{PIXELS * width}" height="{PIXELS * height}"'
    alt = f"mask {text}, a share of {tile.mean():.3f} is kept"
    return (
        f'<figure><img src="{png_uri(tile)}" {size} alt="{alt}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>TITLE</title>
<style>STYLE</style>
</head>
<main>"""

_STYLE = """
:root { color-scheme: light dark; --line: #ccc; --note: #666; --warning: #8a5a00; --error: #b00020;
  --mask: #eee }
@media (prefers-color-scheme: dark) {
  :root { --line: #555; --note: #aaa; --warning: #e8b04a; --error: #ff7b85; --mask: #262626 }
}
main { max-width: 80rem; margin: 1rem auto; padding: 0 1rem; font: 1rem/1.5 sans-serif }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem } h3 { font-size: 1rem }
main, code { overflow-wrap: anywhere }
.finding { border-left: 0.3rem solid var(--note); padding: 0.1rem 0.8rem; margin: 1rem 0 }
.finding h2, .finding p { margin: 0.3rem 0 }
.finding.error { border-color: var(--error) } .finding.warning { border-color: var(--warning) }
.error > h2, li.error { color: var(--error) } .warning > h2, li.warning { color: var(--warning) }
.sites { display: grid; gap: 1rem }
.sites { grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)) }
.site { border: 1px solid var(--line); border-radius: 0.4rem; padding: 0.6rem 0.8rem; min-width: 0 }
.site h3 { margin: 0 0 0.5rem }
.about { padding-left: 1.2rem; margin: 0.5rem 0 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 0.8rem; margin: 0 }
details { margin-top: 0.5rem } ol { padding-left: 1.5rem }
dt { color: var(--note) } dd { margin: 0; min-width: 0 }
.tiles { display: flex; flex-wrap: wrap; gap: 0.5rem }
figure { margin: 0 } figcaption { margin-top: 0.2rem; font: 0.75rem monospace; color: var(--note) }
img { image-rendering: pixelated; display: block }
img, .dropped { background: var(--mask); outline: 1px solid var(--line) }
.kept, .dropped { display: inline-block; width: 0.8rem; height: 0.8rem }
.kept { background: #3b7dc4 }
"""
