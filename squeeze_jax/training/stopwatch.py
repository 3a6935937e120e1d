"""Measures the speed of training steps alone, without compilation, evaluation, checkpoints and pictures."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax


class Stopwatch:
    """Times the steps of a lap.

    Args:
      first_step: the step that the run starts from.
    """

    def __init__(self, first_step: int):
        self._begin = self._start = time.perf_counter()
        self._first_step = first_step

    @property
    def seconds(self) -> float:
        """Seconds since the stopwatch was created, including pauses."""
        return time.perf_counter() - self._begin

    def restart(self, step: int) -> None:
        """Starts a new lap after this step."""
        self._start, self._first_step = time.perf_counter(), step

    def seconds_per_step(self, step: int) -> float | None:
        """Returns the mean time per step of the current lap; None if it has no step yet."""
        steps = step - self._first_step
        return (time.perf_counter() - self._start) / steps if steps > 0 else None

    @contextlib.contextmanager
    def paused(self, state: Any) -> Iterator[None]:
        """A context whose time does not count as training.

        Args:
          state: the output of the last step; pending steps are waited for first, and count as training.
        """
        jax.block_until_ready(state)
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start


def clock(seconds: float) -> str:
    """Formats seconds as hours, minutes and seconds: "1:02:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
