"""Runs a command of minigpt, kills it again and again, and starts it again until it is done.

    python killing.py PLANS COMMAND...

PLANS is JSON: a list of [what, where]. ["time", s] kills s seconds after the steps begin (from
outside, SIGKILL); [function, k] has the process kill itself at the k-th call of a function of its
own, before or after it. Each kill is a fork of this process, which has imported everything and
started nothing. Prints how many of the plans ended in a kill.
"""

import json
import os
import pathlib
import signal
import sys
import time
import traceback

import minigpt.loop
import minigpt.sample
from minigpt import checkpoint, cli, evaluate, metrics, plots

HOLDERS = {
    "fsync": (os, "fsync"),
    "rename": (pathlib.Path, "rename"),  # a checkpoint gets its name
    "replace": (pathlib.Path, "replace"),  # config.toml, metrics.jsonl, loss.png
    "prune": (checkpoint, "_remove"),
    "copy": (checkpoint, "host_arrays"),
    "evaluation": (evaluate, "windows"),
    "record": (metrics.Metrics, "add"),
    "plot": (plots.Figure, "savefig"),
}


def dies(function, call, after):
    """The function, which kills the process at its `call`-th call."""
    count = 0

    def counted(*args, **kwargs):
        nonlocal count
        count += 1
        if count == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if count == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return counted


def child(command, ready, plan):
    steps = minigpt.loop._steps

    def announced(*args):
        os.write(ready, b"x")
        return steps(*args)

    minigpt.loop._steps = announced
    if plan and plan[0] != "time":
        name, _, when = plan[0].partition(" ")
        holder, attribute = HOLDERS[name]
        setattr(holder, attribute, dies(getattr(holder, attribute), plan[1], when == "after"))
    cli.main(command)
    sys.stdout.flush()


def run(command, plan):
    """One process; the signal that ended it, or None."""
    seen, ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child(command, ready, plan)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(ready)
    os.read(seen, 1)
    os.close(seen)
    if plan and plan[0] == "time":
        time.sleep(plan[1])
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    assert os.WEXITSTATUS(status) == 0, f"the run failed by itself at {plan}"
    return None


def main():
    plans, command = json.loads(sys.argv[1]), sys.argv[2:]
    killed = [run(command, plan) == signal.SIGKILL for plan in plans]
    assert run(command, None) is None
    alive = [plan for plan, dead in zip(plans, killed, strict=True) if not dead]
    print(json.dumps({"killed": sum(killed), "not": alive}))


if __name__ == "__main__":
    main()
