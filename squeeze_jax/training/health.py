"""Detects runs that do not learn: values that are not finite, and a loss that stays at chance level."""

import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from squeeze_jax.errors import TrainingError

logger = logging.getLogger(__name__)

# A run whose loss stays this close (relatively) to chance level for this many log lines is not learning.
STUCK_TOLERANCE = 0.01
STUCK_LOG_LINES = 3


class Health:
    """Monitors the health of a run between log lines.

    Args:
      first_step: the step that the run starts from.
      chance_loss: the loss of a network that has learned nothing; None if unknown.
    """

    def __init__(self, first_step: int, chance_loss: float | None):
        self._checked_step = first_step
        self._chance_loss = chance_loss
        self._stuck_lines = 0

    def check_finite(self, tree: Any, step: int, learning_rate: float) -> None:
        """Checks that all values are finite.

        Args:
          tree: a pytree of arrays.
          step: the current step, which the error names.
          learning_rate: the current learning rate, which the error names.

        Raises:
          TrainingError: a value is NaN or infinite; the message gives the steps since the last check that passed.
        """
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
        if not all(np.isfinite(leaf).all() for leaf in leaves):
            raise TrainingError(
                f"the state is not finite between steps {self._checked_step + 1} and {step} (learning rate "
                f"{learning_rate:g}). The last checkpoint is intact. Try a lower config.optimizer.learning_rate, "
                f"config.schedule.warmup, config.optimizer.gradient_clip, or config.model.use_batch_norm=True."
            )
        self._checked_step = step

    def warn_if_stuck(self, loss: float) -> None:
        """Logs a warning, once, if the loss stays at chance level."""
        chance = self._chance_loss
        if chance is None:
            return
        self._stuck_lines = self._stuck_lines + 1 if abs(loss - chance) < STUCK_TOLERANCE * chance else 0
        if self._stuck_lines == STUCK_LOG_LINES:
            logger.warning(
                "the loss has stayed at chance level (%.3f) for %d log lines: the network may be dead. SqueezeNet "
                "without batch norm can be dead from the start. See 'A run that does not learn' in "
                "docs/troubleshooting.md.",
                chance,
                STUCK_LOG_LINES,
            )

    def warn_at_end(self, last_values: Mapping[str, Mapping[str, float]]) -> None:
        """Logs a warning if a run ends at chance level, however few lines its log has.

        Args:
          last_values: the last metrics of "train" and, if they were measured, of "validation" and "test".
        """
        chance = self._chance_loss
        measured = [values["loss"] for values in last_values.values() if "loss" in values]
        # A loss above chance level counts too, unless the network has at least memorized its training images.
        if chance is not None and "train" in last_values and min(measured) > (1 - STUCK_TOLERANCE) * chance:
            logger.warning(
                "this run ended at chance level: its loss is not below %.3f, the loss of random guessing. See 'A run "
                "that does not learn' in docs/troubleshooting.md.",
                chance,
            )
