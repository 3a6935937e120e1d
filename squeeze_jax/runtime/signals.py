"""Stops a run on a signal: the first SIGTERM or SIGINT requests it, the second ends the process immediately."""

import os
import signal
import threading

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A context manager that handles SIGTERM and SIGINT.

    Attributes:
      requested: set to True by the first signal. Signals cannot be handled outside the main thread, where it stays
        False.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._request) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, _frame) -> None:
        self.requested = True
        # The default action ends the process even inside a long computation, where no Python handler runs.
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        # Does not use logging, because the interrupted code may hold its lock.
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: saving, then stopping; a second signal stops immediately.\n".encode())
