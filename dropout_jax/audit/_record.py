"""What `trace` returns: a record of the random decisions of a run."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dropout_jax.audit._graph import NoiseUse, Use
from dropout_jax.audit._locations import Location


@dataclasses.dataclass(frozen=True)
class Site:
    """A point of a program where random decisions are made, and all that is known of it.

    Args:
      location: the line of the user's code.
      callers: the lines of the user's code that lead there, that line first.
      module: the names that the model's scopes give it, or "".
      library: the functions of libraries between that line and the decision, inside first.
      generator: the primitive that draws the bits, or "dropout_jax".
      shape: of the decision as it is drawn.
      applied_shape: of the data that it is applied to.
      use: "zero", "replace", "mix", "bias", "branch" or "product".
      times: how often a run makes it.
      loops: the loops around it, outside first, such as "scan 12".
      kept: the share that is kept.
      interval: where the probability of keeping is, from that share (4.9 standard deviations).
      probability: of keeping, exactly, where the program says it; else None.
      factors: what the data is multiplied with next to it, the scale among them.
      shared_axes: of the data, along which all have one decision.
      is_drawn_shared: whether the decision is drawn with size 1 on those axes.
      applications: how often the forward pass applies it.
      recomputations: how many equations of the backward pass make it again, with the same mask.
      pass_location: the line that differentiates the pass it belongs to, or None.
      key_arguments: the arguments of the step that the key depends on.
      is_seeded_inside: whether the key is made of a number that the program contains.
      resolution: the random bits that decide.
      is_independent: whether its elements do not depend on each other.
      scale_tolerance: how far the scale may be from 1 / kept: twice the precision of the data.
      decided: how many independent decisions it has made.
      each: the share that is kept, for each time.
      hashes: of the mask, for each time: (times, 2).
      keys: the words of the keys, for each draw and time: ((generator, word, ...), ...).
      dtype: of the data.
      mask_arguments: the arguments that the mask depends on where it is applied, the key's among
        them.
      drops_loss_terms: whether it drops terms of a sum that a padding mask has been applied to.
      mesh_axes: the axes of the mesh whose devices decide for themselves.
      devices: of each time, its device's indices along those axes: (times, axes).
      data_varies_along: those of them along which the devices have different data.
      has_repeated_keys: whether a draw that takes several keys takes one of them twice.
      masks: the masks, (times, shape...), if they were asked for.
      corner: the beginning of what is kept of the data, for each time: (times, 2, 2, 32, 32) at
        most, of its last four axes.
    """

    location: Location
    callers: tuple[Location, ...] = dataclasses.field(repr=False)
    module: str
    library: tuple[str, ...]
    generator: str
    shape: tuple[int, ...]
    applied_shape: tuple[int, ...]
    use: Use
    times: int
    loops: tuple[str, ...]
    kept: float
    interval: tuple[float, float]
    probability: float | None
    factors: tuple[float, ...]
    shared_axes: tuple[int, ...]
    is_drawn_shared: bool
    applications: int
    recomputations: int
    pass_location: Location | None
    key_arguments: tuple[str, ...]
    is_seeded_inside: bool
    resolution: int
    is_independent: bool
    scale_tolerance: float
    decided: int
    each: np.ndarray = dataclasses.field(repr=False)
    hashes: np.ndarray = dataclasses.field(repr=False)
    keys: tuple[frozenset, ...] = dataclasses.field(repr=False)
    dtype: Any
    mask_arguments: tuple[str, ...]
    drops_loss_terms: bool
    mesh_axes: tuple[str, ...]
    devices: np.ndarray = dataclasses.field(repr=False)
    data_varies_along: frozenset[str]
    has_repeated_keys: bool
    masks: np.ndarray | None = dataclasses.field(repr=False, default=None)
    corner: np.ndarray | None = dataclasses.field(repr=False, default=None)

    @property
    def is_key_constant(self) -> bool:
        """Whether the key depends on no argument of the step."""
        return not self.key_arguments

    @property
    def is_active(self) -> bool:
        """Whether some elements are dropped."""
        return self.times > 0 and self.kept < 1

    @property
    def scale(self) -> float | None:
        """The factor among `factors` that is nearest to 1 / kept; None if there is none."""
        if self.use != "zero" or not self.factors or not self.kept:
            return None
        return min(self.factors, key=lambda factor: abs(factor * self.kept - 1))

    def __str__(self) -> str:
        """Return a line of text."""
        low, high = self.interval
        text = f"{self.location}: {self.use} {self.shape} x{self.times}, kept {self.kept:.4f}"
        text += f" [{low:.4f}, {high:.4f}]"
        text += "" if self.scale is None else f", scale {self.scale:.4f}"
        text += f", shared along axes {self.shared_axes}" if self.shared_axes else ""
        text += ", constant key" if self.is_key_constant else ""
        return f"{text}, {self.generator}"


@dataclasses.dataclass(frozen=True)
class OpaqueCall:
    """A call that may be random, where nobody can see it: a kernel, a callback, cuDNN.

    Args:
      location: the line of the user's code.
      callers: the lines of the user's code that lead there, that line first.
      primitive: of the call.
      params: what it says of itself, such as its seed and its rate.
      seed_arguments: the arguments of the step that its keys and small integer inputs depend on.
      seeds: those inputs, for each time: (times, words); None if there are none.
      is_random: whether it surely draws random numbers: it has a rate, or a generator inside.
      is_backward: whether it belongs to the backward pass.
    """

    location: Location
    callers: tuple[Location, ...] = dataclasses.field(repr=False)
    primitive: str
    params: dict[str, Any]
    seed_arguments: tuple[str, ...]
    seeds: np.ndarray | None = dataclasses.field(repr=False)
    is_random: bool
    is_backward: bool

    @property
    def description(self) -> str:
        """The call, what it says of itself, and where its seed comes from."""
        known = ", ".join(f"{name}={value!r}" for name, value in self.params.items())
        seed = f", seed of argument {', '.join(self.seed_arguments)}" if self.seed_arguments else ""
        return f"{self.primitive}({known}){seed}"

    def __str__(self) -> str:
        """Return a line of text."""
        return f"{self.location}: opaque: {self.description}"


@dataclasses.dataclass(frozen=True)
class Noise:
    """Random numbers that no decision uses: noise, initial weights, sampled tokens.

    Args:
      location: the line of the user's code.
      generator: the primitive that draws the bits.
      shape: of the numbers.
      use: whether data is "multiplied" with them, as in Gaussian dropout, or they are "added" to
        it, or "other".
      keys: the words of its keys: (generator, word, ...).
    """

    location: Location
    generator: str
    shape: tuple[int, ...]
    use: NoiseUse
    keys: frozenset = dataclasses.field(repr=False, default=frozenset())

    def __str__(self) -> str:
        """Return a line of text."""
        return f"{self.location}: numbers {self.shape}, {self.use}, {self.generator}"


@dataclasses.dataclass(frozen=True)
class Record:
    """The random decisions of one run of a step.

    Args:
      sites: the decisions, in the order of the program.
      strays: decisions of the backward pass that the forward pass did not make.
      noise: random numbers that no decision uses.
      opaque: calls that may be random.
    """

    sites: tuple[Site, ...]
    strays: tuple[Site, ...]
    noise: tuple[Noise, ...]
    opaque: tuple[OpaqueCall, ...]

    def __str__(self) -> str:
        """Return a line of text for each."""
        parts = [*self.sites, *self.strays, *self.noise, *self.opaque]
        return "\n".join(str(part) for part in parts) or "nothing is random"
