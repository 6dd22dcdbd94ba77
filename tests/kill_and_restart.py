"""Runs a command of minigpt, disturbs it again and again, and starts it again until it is done.

    python kill_and_restart.py PLANS COMMAND...

PLANS is JSON: a list of [what, where, signals]. ["time", s, ...] sends the signals s seconds after
the steps begin, from outside, and each step takes at least SECONDS_A_STEP, so that the fastest
machine is still at work by then; [function, k, ...] has the process send them to itself at the k-th
call of a function of its own, before or after it. Each start is a fork of this process, which has
imported everything and started nothing. Prints a list: for each plan how the process ended (its
exit code, or minus the signal) and the seconds from the signal to the end, and null if it was never
sent; and what the last process, which nothing disturbs, printed.
"""

import json
import os
import pathlib
import signal
import struct
import sys
import time
import traceback

from matplotlib.figure import Figure

from minigpt import checkpoint
from minigpt.checkpoint import manager
from minigpt.cli.main import main as minigpt
from minigpt.model import generate
from minigpt.run import metrics
from minigpt.training import evaluate, train_step
from minigpt.training.trainer import Trainer

HOLDERS = {
    "fsync": (os, "fsync"),
    "rename": (pathlib.Path, "rename"),  # a checkpoint gets its name
    "replace": (pathlib.Path, "replace"),  # config.toml, metrics.jsonl, loss.png
    "prune": (manager, "_remove"),
    "copy": (checkpoint, "host_arrays"),
    "evaluation": (evaluate, "take_windows"),
    "record": (metrics.MetricsLog, "add"),
    "plot": (Figure, "savefig"),
    "batch": (train_step, "shard_batch"),
    "sampling": (generate, "_draw_chunk"),
}


SECONDS_A_STEP = 0.06


def slowed(function):
    def paused(*args, **kwargs):
        time.sleep(SECONDS_A_STEP)
        return function(*args, **kwargs)

    return paused


def disturbed(function, call, after, signals, sent):
    """The function, at whose `call`-th call the process gets the signals."""
    count = 0

    def send():
        os.write(sent, struct.pack("d", time.monotonic()))
        for name in signals:
            os.kill(os.getpid(), getattr(signal, name))

    def counted(*args, **kwargs):
        nonlocal count
        count += 1
        if count == call and not after:
            send()
        result = function(*args, **kwargs)
        if count == call and after:
            send()
        return result

    return counted


def child(command, ready, sent, plan):
    train_steps = Trainer.train_steps

    def announced(trainer):
        os.write(ready, b"x")
        return train_steps(trainer)

    setattr(Trainer, "train_steps", announced)  # noqa: B010 (pyright refuses to assign)
    if plan and plan[0] == "time":
        train_step.shard_batch = slowed(train_step.shard_batch)
    elif plan:
        name, _, when = plan[0].partition(" ")
        holder, attribute = HOLDERS[name]
        aimed = disturbed(getattr(holder, attribute), plan[1], when == "after", plan[2], sent)
        setattr(holder, attribute, aimed)
    minigpt(command)
    sys.stdout.flush()


def run(command, plan):
    """One process: how it ended, and the seconds since the signal."""
    (ready_read, ready), (sent_read, sent) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child(command, ready, sent, plan)
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(ready)
    os.close(sent)
    os.read(ready_read, 1)
    os.close(ready_read)
    if plan and plan[0] == "time":
        time.sleep(plan[1])
        begin = struct.pack("d", time.monotonic())
        for name in plan[2]:
            os.kill(pid, getattr(signal, name))
    else:
        begin = os.read(sent_read, 8)
    os.close(sent_read)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return [code, time.monotonic() - struct.unpack("d", begin)[0]] if begin else [code, None]


def main():
    plans, command = json.loads(sys.argv[1]), sys.argv[2:]
    ends = [run(command, plan) for plan in plans]
    ends.append(run(command, None))
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
