"""The known answers of docs/specification.md are the oracle's, and those of keep_mask."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import specification_page
from marks import slow

from dropout_jax import keep_mask, reference
from dropout_jax.random._packing import packed_axis

PAGE = pathlib.Path(__file__).parents[3] / "docs/specification.md"


def test_the_table_is_the_generated_one():
    page = PAGE.read_text()
    assert page == specification_page.replace_table(page), f"run {specification_page.__doc__}"


@pytest.mark.parametrize(
    "case",
    [case if i % 4 == 0 else slow(case) for i, case in enumerate(specification_page.CASES)],
    ids=str,
)
def test_a_known_answer_is_that_of_keep_mask(case):
    key = jax.random.wrap_key_data(jnp.array(case.key, jnp.uint32), impl="threefry2x32")
    mask = keep_mask(key, case.rate, case.shape, broadcast_dims=case.broadcast_dims)
    words = np.array(case.key, np.uint32)
    expected = reference.keep_mask(words, case.rate, case.shape, broadcast_dims=case.broadcast_dims)
    np.testing.assert_array_equal(mask, expected)
    assert case.axis == packed_axis(mask.shape)
