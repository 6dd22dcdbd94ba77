"""The command `minigpt`: run what the arguments say, convert errors to exit codes.

This module imports little, so that Ctrl-C while the others are imported ends the command quietly.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading

INTERRUPTED = 130  # the exit code after Ctrl-C
SECONDS_TO_END = 2.0


def run_as_process() -> None:
    """Run the command of sys.argv; Ctrl-C ends the process, whatever it compiles."""
    signal.signal(signal.SIGINT, _interrupt)
    try:
        main()
    except SystemExit as ended:
        if ended.code != INTERRUPTED:
            raise
        sys.stdout.flush()
        os._exit(INTERRUPTED)  # XLA's threads may still compile, and crash in an orderly exit


def _interrupt(*_: object) -> None:
    """Raise KeyboardInterrupt; should a callback swallow it, the process ends all the same."""
    timer = threading.Timer(SECONDS_TO_END, os._exit, (INTERRUPTED,))
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


def main(args: list[str] | None = None) -> None:
    """Run a command; a bad value prints one line and exits with code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal cannot show is replaced
            stream.reconfigure(errors="replace")
    try:
        commands = _import_commands()
        commands.run(sys.argv[1:] if args is None else args)
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (ValueError, OSError) as error:
        print(f"minigpt: {_describe(error)}", file=sys.stderr, flush=True)
        _exit(2)
    except KeyboardInterrupt:
        print("minigpt: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _import_commands():
    """Import the commands; until then Ctrl-C ends the process as it ends any other."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    except ValueError:  # not in the main thread
        handler = None
    try:
        from minigpt.cli import commands
    except ModuleNotFoundError as missing:
        sys.exit(f"minigpt needs {missing.name}: pip install 'dropout-jax[train]'")
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
    return commands


def _describe(error: Exception) -> str:
    """One line; of the operating system's errors the reason and the file."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {os.fspath(error.filename)!r}"
    return " ".join(str(error).splitlines())


def _exit(code: int) -> None:
    """Exit; with several processes immediately, because the others wait for this one in a step."""
    distributed = sys.modules.get("minigpt.distributed")  # not imported if the arguments are bad
    if distributed is not None and not distributed.is_single_process():
        os._exit(code)
    sys.exit(code)
