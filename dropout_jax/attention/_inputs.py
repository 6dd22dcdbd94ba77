"""What every implementation of attention is given, and which keys a query may see."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


class Reach(NamedTuple):
    """What is known of visibility when a program is traced; None is unlimited."""

    is_causal: bool
    window: tuple[int, int] | None  # keys to the left and to the right

    def keys_of(self, first_row: int, last_row: int, keys: int) -> tuple[int, int]:
        """The range of keys, within 0 to `keys`, that any of first_row to last_row may see."""
        left, right = self.window or (last_row, keys)
        if self.is_causal:
            right = min(right, 0)
        high = min(keys, last_row + right + 1)
        return min(high, max(0, first_row - left)), high


class Hidden(NamedTuple):
    """Arrays that hide keys, each of which broadcasts to (batch, heads, queries, keys)."""

    mask: Bool[Array, "#batch #heads #queries #keys"] | None  # True is seen
    query_lengths: Int[Array, "batch 1 1 1"] | None
    key_lengths: Int[Array, "batch 1 1 1"] | None


class Inputs(NamedTuple):
    """The arrays of attention; there may be no bias."""

    query: Float[Array, "batch queries heads dim"]
    key: Float[Array, "batch keys key_heads dim"]
    value: Float[Array, "batch keys key_heads dim"]
    bias: Float[Array, "#batch #heads #queries #keys"] | None
    hidden: Hidden


def visible(reach: Reach, hidden: Hidden, rows, keys) -> Bool[Array, "..."] | None:
    """Which of the keys each row sees; broadcasts to (batch, heads, rows, keys). None: all of them.

    `rows` and `keys` are positions, and the mask in `hidden` is cut to them. There may be more axes
    before the last two than (batch, heads), as long as the arrays in `hidden` have them too.
    """
    rows, keys = rows[:, None], keys[None, :]
    seen = []
    if reach.is_causal:
        seen.append(keys <= rows)
    if reach.window is not None:
        left, right = reach.window
        seen += [keys + left >= rows, keys <= rows + right]
    if hidden.query_lengths is not None:
        seen.append(rows < hidden.query_lengths)
    if hidden.key_lengths is not None:
        seen.append(keys < hidden.key_lengths)
    if hidden.mask is not None:
        seen.append(hidden.mask)
    together = None
    for each in seen:
        together = each if together is None else together & each
    return together
