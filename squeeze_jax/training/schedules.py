"""Learning-rate schedules, by name. Add your own with `register`."""

import collections
from collections.abc import Callable
from typing import Any

import optax
from ml_collections import ConfigDict

from squeeze_jax.errors import ConfigError
from squeeze_jax.extensions import Options, Registry, function_name

Make = Callable[[ConfigDict, float, int, int], optax.Schedule]
SCHEDULES: Registry[Options[Make]] = Registry("schedule")


def register(name: str, make: Make, **options: Any) -> None:
    """Registers a schedule under a name for `config.schedule.name`.

    Args:
      name: the new name.
      make: called with the `schedule` section of the config, the peak learning rate, the number of steps after the
        warm-up and the number of steps of the warm-up; returns the learning rate of each step after the warm-up.
      **options: new keys of `config.schedule` and their defaults.

    Raises:
      ConfigError: another schedule has this name.
    """
    SCHEDULES.add(name, Options(make, options), (function_name(make), options))


def make_schedule(config: ConfigDict, learning_rate: float, total_steps: int, warmup_steps: int) -> optax.Schedule:
    """Makes the learning-rate schedule.

    Args:
      config: the `schedule` section of the config.
      learning_rate: the peak learning rate.
      total_steps: the number of steps of the run, including the warm-up.
      warmup_steps: the number of steps in which the rate rises linearly from zero to `learning_rate`.

    Raises:
      ConfigError: the name is unknown, the warm-up is as long as the run or longer, or is used with "one_cycle".
    """
    if warmup_steps >= total_steps:
        raise ConfigError(
            f"config.schedule.warmup is {warmup_steps} steps, but the run has only {total_steps}; shorten it."
        )
    schedule = SCHEDULES[config.name].make(config, learning_rate, total_steps - warmup_steps, warmup_steps)
    if warmup_steps:
        warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        schedule = optax.join_schedules([warmup, schedule], [warmup_steps])
    return schedule


def _constant(config: ConfigDict, learning_rate: float, steps: int, warmup: int) -> optax.Schedule:
    del config, steps, warmup
    return optax.constant_schedule(learning_rate)


def _polynomial(config: ConfigDict, learning_rate: float, steps: int, warmup: int) -> optax.Schedule:
    del warmup
    return optax.polynomial_schedule(learning_rate, 0.0, config.power, steps)


def _cosine(config: ConfigDict, learning_rate: float, steps: int, warmup: int) -> optax.Schedule:
    del config, warmup
    return optax.cosine_decay_schedule(learning_rate, steps)


def _one_cycle(config: ConfigDict, learning_rate: float, steps: int, warmup: int) -> optax.Schedule:
    if warmup:
        raise ConfigError("config.schedule.warmup must be '0 steps' with 'one_cycle', which has its own warm-up.")
    return optax.cosine_onecycle_schedule(steps, learning_rate, pct_start=config.peak_at)


def _step(config: ConfigDict, learning_rate: float, steps: int, warmup: int) -> optax.Schedule:
    # The milestones are fractions of the whole duration, including the warm-up.
    counts = collections.Counter(round(share * (steps + warmup)) - warmup for share in config.milestones)
    boundaries = {step: config.factor**count for step, count in counts.items()}  # in a short run they coincide
    return optax.piecewise_constant_schedule(learning_rate, boundaries)


register("constant", _constant)
register("polynomial", _polynomial)
register("cosine", _cosine)
register("one_cycle", _one_cycle)
register("step", _step)
