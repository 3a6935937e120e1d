"""Traces some steps of a run, for TensorBoard or Perfetto."""

import logging
import pathlib

import jax

logger = logging.getLogger(__name__)


class Profiler:
    """Traces the steps from `first` up to, but not including, `last`.

    Args:
      steps: (first, last), counted from 0; empty for no trace.
      folder: the folder of the trace.
    """

    def __init__(self, steps: tuple[int, ...], folder: pathlib.Path):
        self._steps = steps
        self._folder = folder
        self._is_tracing = False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_) -> None:
        if self._is_tracing:
            jax.profiler.stop_trace()

    def before(self, step: int) -> None:
        """Starts or ends the trace if needed; call it before each step."""
        if not self._steps:
            return
        first, last = self._steps
        if first <= step < last and not self._is_tracing:
            jax.profiler.start_trace(str(self._folder))
            self._is_tracing = True
        elif step >= last and self._is_tracing:
            jax.profiler.stop_trace()
            self._is_tracing = False
            logger.info("the profile of steps %d to %d is in %s", first, last, self._folder)
