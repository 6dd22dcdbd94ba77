"""One framework in a process of its own, told by lines of JSON what to build and when to run.

{"build": CASE}   builds, runs twice, and answers {"compile_s": ...} or {"missing": true}
{"calls": N}      runs N times and answers {"seconds": [...]}
"""

import json
import sys
import time

import peers


def main():
    framework, fn = sys.argv[1], None
    print(json.dumps(versions(framework)), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "build" in request:
            fn = peers.build(framework, request["build"])
            answer = {"missing": True} if fn is None else {"compile_s": timed(fn) - timed(fn)}
        else:
            answer = {"seconds": [timed(fn) for _ in range(request["calls"])]}
        print(json.dumps(answer), flush=True)


def timed(fn):
    begin = time.perf_counter()
    fn()
    return time.perf_counter() - begin


def versions(framework):
    """The framework's version, and the device JAX runs on."""
    from importlib.metadata import version

    names = {"floor": "jax", "dropout_jax": "dropout-jax", "haiku": "dm-haiku"}
    found = {"version": version(names.get(framework, framework))}
    if framework != "torch":
        import jax

        found |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    return found


if __name__ == "__main__":
    main()
