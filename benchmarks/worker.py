"""Run one framework in its own process, controlled by lines of JSON on stdin.

{"build": CASE}   builds the case and its floor, if it has one, runs both, and answers
                  {"temporary_bytes": N} or {"missing": true}
{"calls": N}      runs each N times and answers {"seconds": [...], "floor": [...]}
{"memory": true}  answers {"peak_bytes": N}, the most memory that the process has had
"""

import json
import resource
import sys
import time

import peers


def main():
    framework, fns = sys.argv[1], {}
    print(json.dumps(find_versions(framework)), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "build" in request:
            fns = {"seconds": peers.build(framework, request["build"])}
            if fns["seconds"] is None:
                print(json.dumps({"missing": True}), flush=True)
                continue
            if request["build"]["op"] not in peers.WHOLE:
                fns["floor"] = peers.build("floor", request["build"])
            time_functions(fns, 2)
            temporary = getattr(fns["seconds"], "temporary_bytes", None)
            print(json.dumps({"temporary_bytes": temporary}), flush=True)
        elif "memory" in request:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(json.dumps({"peak_bytes": peak}), flush=True)
        else:
            print(json.dumps(time_functions(fns, request["calls"])), flush=True)


def time_functions(fns, calls):
    """Seconds of each call, the functions in turn, so that each starts with the other's caches."""
    seconds = {name: [] for name in fns}
    for _ in range(calls):
        for name, fn in fns.items():
            seconds[name].append(time_call(fn))
    return seconds


def time_call(fn):
    start_time = time.perf_counter()
    fn()
    return time.perf_counter() - start_time


def find_versions(framework: str):
    """The framework's version, and the device JAX runs on."""
    from importlib.metadata import version

    ours = dict.fromkeys(("dropout_jax", "minigpt", "naive", "blockwise", "kernel"), "dropout-jax")
    names = ours | {"haiku": "dm-haiku"}
    import jax

    info = {"version": version(names.get(framework, framework))}
    return info | {"device": jax.devices()[0].device_kind, "jax": jax.__version__}


if __name__ == "__main__":
    main()
