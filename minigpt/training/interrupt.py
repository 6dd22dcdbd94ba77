"""SIGTERM and Ctrl-C: the first signal stops a run without loss, the second one immediately."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818 (not an error)
    """Raised after a signal, at a point where a run can stop without loss."""


class InterruptHandler:
    """In its `with` block, the first signal sets `requested`; the second one ends the process."""

    def __init__(self) -> None:
        self.requested = False
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def check(self) -> None:
        """Raise Interrupted if a signal has arrived."""
        if self.requested:
            raise Interrupted

    def __enter__(self) -> InterruptHandler:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous_handlers[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _request(self, *_: object) -> None:
        self.requested = True
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.write(2, b"\nminigpt: stopping after this step; repeat to exit immediately\n")
