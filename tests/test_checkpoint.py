"""Arrays to disk and back."""

import jax
import numpy as np
import pytest
from tiny import CONFIG

from minigpt import checkpoint
from minigpt.train_step import start


def test_a_state_comes_back_bit_for_bit(tmp_path):
    state = start(CONFIG, 11).state
    checkpoint.save(tmp_path, state)
    again = checkpoint.restore(tmp_path, jax.eval_shape(lambda: state))
    assert jax.tree.structure(again) == jax.tree.structure(state)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE]


def test_what_does_not_fit_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        checkpoint.restore(tmp_path, {})
    checkpoint.save(tmp_path, {"a": np.ones(3, np.float32)})
    with pytest.raises(ValueError, match=r"checkpoint.safetensors' lacks the array 'b'"):
        checkpoint.restore(tmp_path, {"b": np.ones(3)})
    with pytest.raises(ValueError, match=r"'a' is float32\(3,\), and the model needs float32\(4,"):
        checkpoint.restore(tmp_path, {"a": np.ones(4, np.float32)})
    (tmp_path / checkpoint.FILE).write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.restore(tmp_path, {"a": np.ones(3)})
