"""The checks of `make accelerators`, without the compilers: each fails where it must."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import checks
import evidence
import large
import report
import run_report
from dropout_jax import keep_mask

ROW = {
    "device": "v5e",
    "kind": "step",
    "program": "tiny, bfloat16",
    "cpu_s": 1.0,
    "peak_mib": 10.0,
    "bound_mib": 20.0,
    "collectives": {"all-reduce": 2},
    "mask_collectives": 0,
    "cycles": 1234,
    "group": "tiny data=8",
    "command": "python compile.py",
}


def test_a_row_as_it_should_be_passes():
    assert checks.failures([ROW, ROW]) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"error": "INTERNAL: no"}, "does not compile: INTERNAL: no"),
        ({"peak_mib": 21.0}, "peak memory of 21.0 MiB, bound 20.0"),
        ({"mask_collectives": 1}, "1 collectives carry a mask"),
        ({"rematerializations": 2}, "2 involuntary full rematerializations"),
        ({"spill_bytes": 8}, "8 bytes of spills in bfloat16"),
        ({"program": "tiny, float32", "spill_bytes": 129}, "129 bytes of spills in float32"),
        ({"has_collectives": False}, "collectives where each device has its part"),
        ({"expected_kernels": 3, "kernels": 2}, "2 kernels are compiled, and 3 were expected"),
        ({"collectives": {"all-reduce": 3}}, "dropout changes the collectives"),
    ],
)
def test_each_check_fails_and_says_which(change, reason):
    (failure,) = checks.failures([ROW, ROW | change])
    assert failure.startswith("v5e ")
    assert reason in failure


def gathered(gather):
    """A program that gathers a mask that each device makes its part of, or keeps it where it is."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

    def program(key, x):
        mask = jax.lax.with_sharding_constraint(keep_mask(key, 0.1, x.shape), rows)
        mask = jax.lax.with_sharding_constraint(mask, whole) if gather else mask
        return jnp.where(mask, x, 0)

    x = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=whole if gather else rows)
    key = jax.eval_shape(lambda: jax.random.key(0))
    out = whole if gather else rows
    return jax.jit(program, out_shardings=out).lower(key, x)


def test_a_mask_that_is_gathered_is_noticed():
    assert evidence.measure(lambda: gathered(True))["mask_collectives"]
    assert evidence.measure(lambda: gathered(False))["mask_collectives"] == 0


def start_of(command):
    return checks.COMPILING + json.dumps(ROW | {"command": command})


def test_a_warning_belongs_to_the_program_that_is_compiled():
    warning = "W1 spmd_partitioner.cc:1] [SPMD] Involuntary full rematerialization. The compiler"
    log = "\n".join(["I0 start", start_of("a"), warning, warning, start_of("b"), ""])
    assert checks.count_rematerializations(log)["a"] == 2
    assert not checks.count_rematerializations(log).get("b")


def test_a_program_that_ends_the_process_fails():
    program = checks.last_program(f"{start_of('a')}\n{start_of('b')}\nerror")
    assert program is not None
    assert program["command"] == "b"
    assert checks.last_program("error") is None
    assert "does not finish in 40 s" in checks.explain_end(-signal.SIGXCPU, "op")
    assert "ends its process with -11" in checks.explain_end(-signal.SIGSEGV, "op")


@pytest.mark.slow
def test_a_compiler_that_does_not_finish_is_stopped():
    code = "import evidence\nevidence.limit_cpu_seconds(1)\nwhile True: pass"
    path = os.pathsep.join(sys.path)
    result = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path})
    assert result.returncode == -signal.SIGXCPU


def test_an_error_of_the_compiler_is_a_row():
    def fail():
        raise ValueError("no")

    assert evidence.measure(fail)["error"] == "ValueError: no"


def test_cycles_are_summed():
    text = 'a {"estimated_cycles":"12"} \n b {"estimated_cycles":"30"}'
    assert evidence.sum_cycles(text) == 42
    assert evidence.sum_cycles("") is None


def test_only_what_a_device_did_is_under_run(tmp_path):
    page = report.render([ROW], [], tmp_path)
    assert "Nothing has run on a device yet." in page
    assert "| step tiny, bfloat16 | 1.0 | 10 | 20 | 2 AR | 1,234 |" in page
    page = report.render([ROW], [ROW | {"commit": "abc"}], pathlib.Path("benchmarks/results"))
    run, compiled, large = page.split("## Run")[1].split("## Compiled")
    assert "`abc`" in large
    assert "NVIDIA H100" in run
    assert "step tiny" not in run
    assert "NVIDIA H100" not in compiled


def test_large_programs_are_saved_one_by_one_and_not_compiled_again(tmp_path, monkeypatch):
    """The compiler is a script that prints one row, and the second program has none."""
    monkeypatch.setattr(large, "LARGE", tmp_path / "large.json")
    names = [ROW | {"program": name} for name in ("short", "first", "second")]
    compiled = []

    def list_jobs(*_):
        for name in names:
            begin = f"import sys; print({checks.COMPILING + json.dumps(name)!r}, file=sys.stderr)"
            end = f"print({json.dumps(name)!r})" if name["program"] == "first" else "sys.exit(3)"
            script = f"{begin}; {end}"
            yield [sys.executable, "-c", script], name

    compile_one = large._compile
    monkeypatch.setattr(large, "_list_jobs", list_jobs)
    monkeypatch.setattr(
        large, "_compile", lambda *job: compiled.append(job[1]) or compile_one(*job)
    )
    for _ in range(2):
        large.compile_large({"venv": ("v5e",)}, "", names[:1])
    first, second = large.read_large()
    assert compiled == names[1:]
    assert first["program"] == "first"
    assert "ends its process with 3" in second["error"]
    assert len(first["commit"]) == 7


def test_every_table_of_what_ran_has_figures():
    section = run_report.run_section(pathlib.Path("benchmarks/results"))
    attention = "Attention, T 1024", "Attention, T 4096"
    for title in ("Masks", "Dropout, bfloat16", *attention, "Training", "A whole run", "Errors"):
        table = section.split(f"**{title}")[1].split("\n**")[0]
        assert len([line for line in table.splitlines() if line.startswith("|")]) > 3
        assert table.count("|  |") < table.count("\n") * 2


def test_a_program_that_takes_more_cycles_than_its_rival_fails():
    rival = ROW | {"program": "bernoulli, bfloat16", "cycles": 1000}
    ours = ROW | {"program": "dropout, bfloat16", "rival": rival["program"], "cycles": 1001}
    assert "1001 cycles" in checks.failures([rival, ours])[0]
    assert checks.failures([rival, ours | {"cycles": 1000}]) == []


def test_an_array_that_is_written_twice_fails():
    text = """
    fused { %a = f32[8,4] multiply(%p, %p) }
    ENTRY %main (x: f32[8,4]) -> f32[8,4] {
      %x = f32[8,4]{1,0} parameter(0)
      %copy = f32[8,4]{1,0} copy(%x)
      %small = u32[8]{0} fusion(%x), kind=kLoop
      ROOT %y = f32[8,4]{1,0} fusion(%copy, %small), kind=kLoop
    }"""
    assert evidence.count_arrays_written(text, 32) == 2
    row = ROW | {"whole_arrays": 1, "arrays_written": 2}
    assert "2 arrays" in checks.failures([row])[0]
    assert checks.failures([row | {"arrays_written": 1}]) == []
