"""Devices that are not there: their names, and the compilers that are not installed."""

import importlib.util

import pytest

from minigpt.distributed import count_collectives
from minigpt.distributed.topology import MissingCompilerError, describe_topology, parse_topology


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v5e:4x4", ("v5e", (4, 4))),
        ("v6e:2x4", ("v6e", (2, 4))),
        ("v4:2x2x1", ("v4", (2, 2, 1))),
        ("v5p:2x2x2", ("v5p", (2, 2, 2))),
        ("h100:8", ("h100", (8,))),
        ("h100", ("h100", (1,))),
        ("v5e", ("v5e", (1,))),
    ],
)
def test_a_topology_is_a_chip_and_a_shape(text, expected):
    assert parse_topology(text) == expected


@pytest.mark.parametrize(
    "text",
    ["v5e:4", "v5e:4x4x1", "v4:2x2", "h100:2x4", "h100:0", "v3:2x2", "", "v5e:4x", "v5e:axb"],
)
def test_another_topology_is_named(text):
    with pytest.raises(ValueError, match="is not allowed: it must be one chip") as raised:
        parse_topology(text)
    assert f"topology={text!r}" in str(raised.value)
    assert "h100:8" in str(raised.value)


@pytest.mark.parametrize(
    ("text", "install"),
    [
        ("v5e:4x4", r"pip install 'jax\[tpu\]=="),
        ("h100:8", "pip install --no-deps jax-cuda12-plugin==.* jax-cuda12-pjrt=="),
    ],
)
def test_a_missing_compiler_is_the_line_that_installs_it(text, install, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingCompilerError, match=install) as raised:
        describe_topology(text)
    assert f"topology={text!r} needs the compiler" in str(raised.value)


def test_a_channel_is_counted_once_and_a_call_without_one_by_itself():
    text = """
      %a = f32[8]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1}}
      %b = (f32[8]{0}, f32[8]{0}) all-gather-start(%x), channel_id=2
      %c = f32[8]{0} all-gather-done(%b)
      %d = f32[4]{0} all-reduce(%y), channel_id=1
      %e = f32[4]{0} all-reduce(%y), channel_id=3
      %f = f32[4]{0} collective-permute(%y)
      %g = f32[4]{0} collective-permute(%z)
      %h = f32[4]{0} fusion(%e), calls=%all-reduce.2
    """
    assert count_collectives(text) == {"all-gather": 1, "all-reduce": 2, "collective-permute": 2}
