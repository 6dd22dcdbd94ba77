"""examples/vision.py: its augmentations, its rates, and verdicts that can fail."""

import json
import pathlib
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dropout_jax import fold

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture
def promotion():
    """Of Flax's layer norm and of optax, which rely on implicit promotion."""
    return "standard"


@pytest.fixture
def vision(monkeypatch):
    folders = [str(ROOT / "examples"), str(ROOT / "examples" / "claims")]
    monkeypatch.setattr(sys, "path", [*folders, *sys.path])
    import vision

    return vision


@pytest.fixture
def images(vision):
    return vision.data.load_all_mnist()[0][::800]


@pytest.mark.slow
def test_strength_zero_changes_nothing(vision, images, key):
    np.testing.assert_array_equal(vision.rand_augment(images, 0.0, key=key), images)


def test_a_key_gives_the_same_images_and_another_key_others(vision, images, key):
    first, again, other = (
        vision.rand_augment(images, 1.0, key=each) for each in (key, key, fold(key, "other"))
    )
    np.testing.assert_array_equal(first, again)
    assert (first != images).any((1, 2)).all()
    assert (first != other).any((1, 2)).all()
    assert first.min() >= 0
    assert first.max() <= 1


def test_each_operation_is_what_its_limit_says(vision, images):
    """Shifts go down and right; a rotation by a right angle is numpy's; contrast only stretches."""
    image = np.asarray(images[0])
    down, right, angle, shear, scale, contrast = np.eye(6, dtype=np.float32)
    np.testing.assert_array_equal(vision.transform(image, 3 * down)[3:], image[:-3])
    np.testing.assert_array_equal(vision.transform(image, 2 * right)[:, 2:], image[:, :-2])
    turned = vision.transform(image, np.pi / 2 * angle)
    np.testing.assert_allclose(turned, np.rot90(image, -1), atol=1e-4)
    sheared = vision.transform(image, 0.3 * shear)
    np.testing.assert_allclose(sheared.sum(1), image.sum(1), atol=1e-3)
    assert (sheared != image).any()
    assert vision.transform(image, -0.2 * scale).sum() > 1.2 * image.sum()
    sharp = np.asarray(vision.transform(image, contrast / 2))
    assert (sharp[image == 1] == 1).all()
    assert (sharp[image < image.mean()] <= image[image < image.mean()]).all()


@pytest.mark.slow
def test_mixups_labels_sum_to_one(vision, images, key):
    targets = jnp.eye(len(images))
    mixed, labels = vision.mixup(images, targets, 0.2, key=key)
    np.testing.assert_allclose(labels.sum(-1), 1, rtol=1e-6)
    share = np.diag(labels)
    assert ((share > 0) & (share < 1)).any()
    expected = share[:, None, None] * images + (1 - share[:, None, None]) * images[::-1]
    middle = len(images) // 2  # which is mixed with itself, if there is one
    rows = [i for i in range(len(images)) if i != middle or len(images) % 2 == 0]
    np.testing.assert_allclose(mixed[np.array(rows)], expected[np.array(rows)], atol=1e-6)
    for unmixed, original in zip(
        vision.mixup(images, targets, 0.0, key=key), (images, targets), strict=True
    ):
        np.testing.assert_array_equal(unmixed, original)


def test_patches_are_squares_row_by_row(vision, images):
    patches = vision.split_patches(images).reshape(-1, 4, 4, 7, 7)
    np.testing.assert_array_equal(patches[2, 1, 3], images[2, 7:14, 21:28])


@pytest.mark.slow
def test_the_rate_is_dropouts_and_drop_paths_grows_over_depth(vision, images, key):
    model = vision.ViT(2, 0.5, rngs=nnx.Rngs(params=key))
    blocks = model.encoder.blocks
    assert [block.drop_path.rate for block in blocks] == [0, 0.5]
    assert {block.drop_mlp_out.rate for block in blocks} == {0.5}
    evaluated = model(images, key=None)
    first, again, other = (model(images, key=each) for each in (key, key, fold(key, 1)))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
    assert (first != evaluated).all()
    np.testing.assert_array_equal(
        vision.ViT(2, 0.0, rngs=nnx.Rngs(params=key))(images, key=key), evaluated
    )


def test_verdicts(vision):
    """Two points gained without augmentation and none with it; then two with each."""
    noise = np.random.default_rng(0).normal(0, 0.05, (3, 3, 4))
    table = {name: 90 + of for name, of in zip(vision.AUGMENTATIONS, noise, strict=True)}
    best = dict.fromkeys(table, 1)
    for gained, expected in (
        ((2, 0, 0), ["does not hold", "holds only when augmentation is none", "holds", "holds"]),
        ((2, 2, 2), ["does not hold", "holds", "does not hold", "does not hold"]),
    ):
        gains = {
            name: of[1] - of[0] + gain
            for (name, of), gain in zip(table.items(), gained, strict=True)
        }
        verdicts = [
            finding.verdict.partition(" (")[0] for finding in vision.findings(table, best, gains)
        ]
        assert verdicts == expected


@pytest.mark.claims
def test_the_smallest_form(vision, tmp_path):
    arguments = ["--smallest", "--out", str(tmp_path)]
    path = vision.claim.main(vision.experiment, vision.__doc__, vision.__file__, arguments)
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    result = json.loads(path.read_text())
    assert len(result["findings"]) == 4
    means = [cell["mean"] for of in result["numbers"]["test accuracy, %"].values() for cell in of]
    assert len(means) == 9
    assert all(5 < mean < 100 for mean in means)
