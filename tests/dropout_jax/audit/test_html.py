"""The page of an audit: it needs nothing else, and its pictures are the masks."""

import base64
import html.parser
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audit_cases import X, at_steps, drop
from matplotlib import image

from dropout_jax import audit

HEADS = jnp.ones((3, 4, 40, 48))


def selected(x, key):
    return drop(key, x, 0.4).sum()


def multiplied(x, key):
    return (x * jax.random.bernoulli(key, 0.6, x.shape) / 0.6).sum()


def chosen_to_drop(x, key):
    return jnp.where(jax.random.uniform(key, x.shape) < 0.4, 0, x / 0.6).sum()


def added(x, key):
    return (x + jnp.where(jax.random.bernoulli(key, 0.4, x.shape), -1e9, 0.0)).sum()


KEPT_WHERE_TRUE = {selected: True, multiplied: True, chosen_to_drop: False, added: False}


def pictures(page):
    """The masks of the pictures: True where a pixel is not transparent."""
    files = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    arrays = [image.imread(io.BytesIO(base64.b64decode(file)), format="png") for file in files]
    return [array[..., 3] > 0 for array in arrays]


@pytest.mark.parametrize("step", KEPT_WHERE_TRUE, ids=lambda step: step.__name__)
def test_pictures_are_the_beginning_of_what_is_kept(step):
    args_at = at_steps(HEADS)
    (site,) = audit.trace(step, *args_at(0), masks=True).sites
    assert site.masks is not None
    kept = site.masks[0] == KEPT_WHERE_TRUE[step]
    page = audit.to_html(audit.check(step, args_at=args_at))
    expected = [kept[row, head, :32, :32] for row in range(2) for head in range(2)]
    for picture, mask in zip(pictures(page), expected, strict=True):
        np.testing.assert_array_equal(picture, mask)
    assert "[1, 0, :32, :32]" in page


def test_pictures_of_a_scan_show_two_times():
    def step(x, keys):
        return jax.lax.scan(lambda x, key: (drop(key, x), None), x, keys)[0].sum()

    def args_at(step):
        return X, jax.random.split(jax.random.key(step), 5)

    (site,) = audit.trace(step, *args_at(0), masks=True).sites
    page = audit.to_html(audit.check(step, args_at=args_at))
    assert site.masks is not None
    assert len(pictures(page)) == 2
    for picture, mask in zip(pictures(page), site.masks, strict=False):
        np.testing.assert_array_equal(picture, mask[:16, :32])
    assert "time 1 [:16, :32]" in page


class Tags(html.parser.HTMLParser):
    """Collects the tags and their attributes, and requires that they are closed in order."""

    EMPTY = ("meta", "img")

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        self.open += [] if tag in self.EMPTY else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_no_other_host():
    def step(x, key):
        return drop(jax.random.key(0), x).sum()

    findings = audit.check(step, step, at_steps(X))
    page = audit.to_html(findings, "<a & b>")
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    names = {name for name, _ in tags.seen}
    assert not names & {"script", "link", "iframe", "object"}
    for _, attributes in tags.seen:
        assert str(attributes.get("src", "data:")).startswith("data:")
        assert "href" not in attributes
    assert "url(" not in page
    assert "//" not in re.sub(r'src="[^"]*"', "", page)
    assert "&lt;a &amp; b&gt;" in page
    assert "prefers-color-scheme: dark" in page
    for code in ("D03", "D04", "D15"):
        assert f"{code} error" in page
    assert page.count("<img") == 2


def test_a_page_without_sites_says_so():
    findings = audit.check(lambda x, key: x.sum(), args_at=at_steps(X))
    page = audit.to_html(findings)
    assert "0 sites" in page
    assert "D02 error" in page
    assert "<img" not in page


@pytest.mark.parametrize("shape", [(), (5,), (1, 2, 3, 4, 5)])
def test_masks_of_every_number_of_axes_have_a_picture(shape):
    page = audit.to_html(audit.check(selected, args_at=at_steps(jnp.ones(shape))))
    assert "<main>" in page
