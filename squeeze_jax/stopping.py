"""Stopping a run from outside: the first SIGTERM or SIGINT asks for it, the second ends the process at once."""

import os
import signal
import threading

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """While open, a first signal sets `requested`. Outside the main thread signals cannot be caught; it stays unset."""

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
        # Not through logging, whose lock the interrupted code may hold.
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: saving a checkpoint, then stopping; a second signal ends at once.\n".encode())
