"""Continuing a run beyond its duration: what changes in its config, and the step that it continues from."""

import logging
import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from squeeze_jax.config import lookup
from squeeze_jax.errors import ConfigError
from squeeze_jax.experiment import Experiment, Plan
from squeeze_jax.validation import DURATIONS, duration_in_steps
from squeeze_jax.workdir.checkpoints import Checkpoints
from squeeze_jax.workdir.records import RESULT_FILE

logger = logging.getLogger(__name__)

# Durations that keep their steps if they are shares of the run.
KEPT = [key for key in DURATIONS if key != "train.duration" and not key.startswith("run.")]


def extended(config: ConfigDict, duration: str, num_examples: int) -> ConfigDict:
    """Returns the config of a run with a longer duration; the same config if the run has this duration already.

    Args:
      config: the config of the run.
      duration: of the whole run, such as "6 epochs".
      num_examples: of the training split.

    Raises:
      ConfigError: the duration is invalid, or shorter than that of the run.
    """
    if duration == config.train.duration:
        return config
    before = Plan.of(config, num_examples).total
    longer = config.copy_and_resolve_references()
    longer.train.duration = duration
    for key in KEPT:
        if "%" in (share := lookup(config, key)):
            section, _, name = key.partition(".")
            longer[section][name] = f"{duration_in_steps(share, config.train.batch_size, num_examples, before)} steps"
    try:
        after = Plan.of(longer, num_examples).total
    except ConfigError as error:
        raise ConfigError(f"--extend={duration}: {error}") from error
    if after <= before:
        raise ConfigError(
            f"--extend={duration} is {after} steps, but the run has {before} (config.train.duration="
            f"{config.train.duration!r}); expected a longer duration of the whole run."
        )
    return longer


def rewind(before: Experiment, after: Experiment, checkpoints: Checkpoints, folder: pathlib.Path) -> None:
    """Makes a workdir that of a stopped run of the longer duration, and logs how it continues.

    The last step of a run is measured even if it is between two measurements. Then a longer run would not have measured
    it, so the checkpoint of that step is deleted if there is an earlier one to continue from.

    Args:
      before: the experiment with the former duration.
      after: the experiment with the new one.
      checkpoints: of the run.
      folder: its workdir.
    """
    plan, steps = before.plan, checkpoints.steps()
    between = plan.total % plan.log_every or (plan.total % plan.evaluate_every and "validation" in before.splits)
    extra = plan.total in steps and bool(between)  # a measurement that the longer run would not have made
    if extra and len(steps) > 1:
        checkpoints.delete(plan.total)
        steps.remove(plan.total)
        extra = False
    (folder / RESULT_FILE).unlink(missing_ok=True)  # only a finished run has it
    step = steps[-1] if steps else 0
    logger.info(
        "extended from %s (%d steps) to %s (%d steps), continuing from step %d; the test split is measured again "
        "at the end",
        before.config.train.duration,
        plan.total,
        after.config.train.duration,
        after.plan.total,
        step,
    )
    for key in KEPT:
        if (now := lookup(after.config, key)) != (then := lookup(before.config, key)):
            logger.info("config.%s=%r remains %s", key, then, now)
    if step:
        old, new = (jax.jit(jax.vmap(one.schedule))(np.arange(step)) for one in (before, after))
        if np.array_equal(old, new):
            logger.info(
                "the learning rate up to this step is that of a run of the new duration, and so are the weights%s",
                "; the measurement at this step is an extra one" if extra else " and metrics",
            )
        else:
            rate = float(after.schedule(step))
            logger.warning(
                "the schedule %r depends on the duration: the learning rate was %g, and continues at %g as in a run of "
                "the new duration; the steps before keep what they learned at the former rates",
                after.config.schedule.name,
                float(old[-1]),
                rate,
            )
