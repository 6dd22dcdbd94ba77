"""What tests of runs share: commands in child processes, errors of one line, damage and limits."""

import contextlib
import dataclasses
import os
import pathlib
import resource
import signal
import subprocess
import sys

from minigpt.cli.main import main

TESTS = pathlib.Path(__file__).parent
KILL_AND_RESTART = TESTS / "kill_and_restart.py"
ONE_OF_MANY_PROCESSES = TESTS / "one_of_many_processes.py"


def child_environment(cache):
    """One device, and compiled programs kept from the first process for the others."""
    return os.environ | {
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def count_kills(ends):
    """How many processes were killed; the last ones of a list may have come to the end before."""
    assert {code for code, _ in ends} <= {0, -9}, ends
    assert ends[-1] == [0, None]
    return sum(code == -9 for code, _ in ends)


HOLD_LOCKS = """
import sys, filelock
locks = [filelock.FileLock(name + "/.lock") for name in sys.argv[1:]]
for lock in locks: lock.acquire()
print(flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def locked_by_another_process(*run_dirs):
    """Another process trains in these directories, as far as the lock tells."""
    command = [sys.executable, "-c", HOLD_LOCKS, *map(str, run_dirs)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield
        process.communicate()


def run_command(capsys, *words):
    """A command in this process: its exit code, standard output and standard error."""
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as error:
        code = error.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def read_files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_one_line_error(result, *parts):
    """Exit code 2, and a line that says what it is about."""
    code, _, error_text = result
    assert code == 2, error_text
    (line,) = error_text.splitlines()
    for part in ("minigpt: ", *parts):
        assert part in line, line


@contextlib.contextmanager
def limit_file_size(size):
    """No file may grow beyond `size`: the write that would gets EFBIG, in the midst of it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def largest_file(run_dir, name):
    return max(path.stat().st_size for path in run_dir.rglob(name))


def stop_after_step(step, add):
    def added(self, record):
        add(self, record)
        if record["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return added


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flatten_config(config, prefix=""):
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from flatten_config(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def replace_field(config, name, value):
    head, _, rest = name.partition(".")
    return dataclasses.replace(
        config, **{head: replace_field(getattr(config, head), rest, value) if rest else value}
    )


# A value of each setting that differs from the tiny run's.
OTHER_VALUES = {
    "seed": 1,
    "steps": 6,
    "batch_size": 4,
    "tokenizer": "byte",
    "log_every": 1,
    "eval_every": 3,
    "eval_batches": 3,
    "sample_tokens": 5,
    "sample_every": 2,
    "dropout_schedule": "late",
    "dropout_schedule_steps": 1,
    "keep_checkpoints": 1,
    "accumulate": 3,
    "label_smoothing": 0.1,
    "mesh": "data=3",
    "model.n_layer": 1,
    "model.n_head": 4,
    "model.n_embd": 16,
    "model.block_size": 16,
    "model.bias": True,
    "model.activation": "relu",
    "model.norm": "post",
    "model.dtype": "bfloat16",
    "model.scan_layers": True,
    "model.vocab_size": 300,
    "model.norm_type": "rmsnorm",
    "model.norm_epsilon": 1e-2,
    "model.positions": "rotary",
    "model.rope_theta": 100.0,
    "model.n_kv_head": 1,
    "model.n_inner": 8,
    "model.tied_head": False,
    "model.dropout.embed": 0.5,
    "model.dropout.attn_weights": 0.5,
    "model.dropout.attn_context": 0.5,
    "model.dropout.attn_out": 0.5,
    "model.dropout.mlp_hidden": 0.5,
    "model.dropout.mlp_out": 0.5,
    "model.dropout.drop_path": 0.5,
    "model.dropout.over_depth": "linear",
    "optim.learning_rate": 1e-2,
    "optim.min_learning_rate": 1e-5,
    "optim.warmup_steps": 1,
    "optim.beta1": 0.5,
    "optim.beta2": 0.5,
    "optim.weight_decay": 5.0,
    "optim.grad_clip": 1e-3,
}
