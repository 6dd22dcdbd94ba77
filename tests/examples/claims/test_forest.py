"""The charts: well-formed SVG on white, with every label and number, inside the picture."""

from xml.etree import ElementTree

import pytest
from experiments import load

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def forest():
    return load("pages.forest")


def make_charts(labels, region=(0, None)):
    regions, claim = load("pages.regions"), load("common.claim")
    make_chart = load("pages.highlights").make_chart
    cells = {label: claim.Interval(i - 1.0, i - 1.5, i - 0.5) for i, label in enumerate(labels)}
    return [make_chart("gain <in points>", cells, regions.Region(*region), "+.1f")]


@pytest.mark.parametrize(
    "labels", [["a", "b", "c"], ["a label of two lines", "b", "c"], ["c" * 60]]
)
def test_a_picture_has_every_label_and_number_on_white(forest, labels):
    root = ElementTree.fromstring(forest.draw(make_charts(labels), "A & B"))
    assert root.findtext(f"{SVG}title") == "A & B"
    background = root.find(f"{SVG}rect")
    assert background is not None
    assert background.get("fill") == "#ffffff"
    assert background.get("width") == str(forest.WIDTH)
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"Gain <in points>", *labels, "-1.0 (-1.5 to -0.5)"} <= set(texts)
    for circle in root.iter(f"{SVG}circle"):
        assert 0 < float(circle.get("cx", "nan")) < forest.WIDTH
        assert 0 < float(circle.get("cy", "nan")) < float(root.get("viewBox", "").split()[-1])


def test_a_full_blue_dot_is_where_the_claim_holds(forest):
    root = ElementTree.fromstring(forest.draw(make_charts(["a", "b", "c"]), "A"))
    dots = [(dot.get("stroke"), dot.get("fill")) for dot in root.iter(f"{SVG}circle")]
    ring, full = (forest.FAILS, "#ffffff"), (forest.HOLDS, forest.HOLDS)
    assert dots == [ring, ring, full]


def test_the_shaded_part_is_the_region(forest):
    """Rows at -1, 0 and 1: the dot at -1 is left of the region above 0, that at 1 is in it."""
    root = ElementTree.fromstring(forest.draw(make_charts(["a", "b", "c"]), "A"))
    [shade] = [rect for rect in root.iter(f"{SVG}rect") if rect.get("fill") == forest.REGION]
    left, width = (float(shade.get(name, "nan")) for name in ("x", "width"))
    x = [float(dot.get("cx", "nan")) for dot in root.iter(f"{SVG}circle")]
    assert x[0] < left == pytest.approx(x[1], abs=0.1)
    assert left < x[2] < left + width
    assert len(list(root.iter(f"{SVG}line"))) > 4  # the dashed end, the axis and three intervals
