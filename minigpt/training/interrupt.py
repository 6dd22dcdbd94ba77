"""SIGTERM and Ctrl-C: the first stops a run where it loses nothing, the second at once."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818 (nothing went wrong)
    """Raised where a run can stop without loss, after a signal has asked for it."""


class InterruptHandler:
    """Inside its `with` block the first signal sets `asked`, and the second ends the process."""

    def __init__(self):
        self.asked = False
        self._before: dict[int, Any] = {}

    def check(self) -> None:
        """Raise Interrupted if a signal has arrived."""
        if self.asked:
            raise Interrupted

    def __enter__(self) -> InterruptHandler:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: Any) -> None:
        self.asked = True
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        os.write(2, b"\nminigpt: stopping after this step; once more leaves at once\n")
