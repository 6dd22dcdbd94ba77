"""Run by `make wheel` where only the wheel, jax and NumPy are installed: import it, drop once."""

import importlib.util
import sys

import jax
import jax.numpy as jnp

import dropout_jax
from dropout_jax import audit


def main():
    for name in ("flax", "optax", "jaxtyping", "beartype"):
        assert importlib.util.find_spec(name) is None, f"{name} is installed: this tests nothing"
    assert "site-packages" in dropout_jax.__file__, dropout_jax.__file__

    y = dropout_jax.dropout(jnp.ones((2, 4)), 0.5, key=jax.random.key(0))
    assert y.tolist() == [[2.0, 2.0, 0.0, 0.0], [2.0, 2.0, 2.0, 0.0]], y
    assert dropout_jax.dot_product_attention(*jnp.ones((3, 1, 2, 1, 4))).shape == (1, 2, 1, 4)

    def step(x, key):
        return dropout_jax.dropout(x, 0.5, key=key).sum()

    findings = audit.check(step, args_at=lambda n: (jnp.ones((8, 32)), jax.random.key(n)))
    assert findings == ()
    assert "<img" in audit.to_html(findings)
    print(
        f"dropout_jax {dropout_jax.__version__} works with jax {jax.__version__} on {sys.version}"
    )


if __name__ == "__main__":
    main()
