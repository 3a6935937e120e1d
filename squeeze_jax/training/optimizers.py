"""Learning-rate schedules and optimizers, made from a config."""

import collections
import re
from typing import Any

import jax
import optax
import optax.contrib
from ml_collections import ConfigDict

from squeeze_jax.errors import ConfigError


def make_schedule(config: ConfigDict, learning_rate: float, total_steps: int, warmup_steps: int) -> optax.Schedule:
    """Makes the learning-rate schedule.

    Args:
      config: the `schedule` section of the config.
      learning_rate: the peak learning rate.
      total_steps: the number of steps of the run, including the warm-up.
      warmup_steps: the number of steps in which the rate rises linearly from zero to `learning_rate`.

    Raises:
      ConfigError: the warm-up is as long as the run or longer, or is used with "one_cycle".
    """
    if warmup_steps >= total_steps:
        raise ConfigError(
            f"config.schedule.warmup is {warmup_steps} steps, but the run has only {total_steps}; shorten it."
        )
    steps = total_steps - warmup_steps
    if config.name == "constant":
        schedule = optax.constant_schedule(learning_rate)
    elif config.name == "polynomial":
        schedule = optax.polynomial_schedule(learning_rate, 0.0, config.power, steps)
    elif config.name == "cosine":
        schedule = optax.cosine_decay_schedule(learning_rate, steps)
    elif config.name == "one_cycle":
        if warmup_steps:
            raise ConfigError("config.schedule.warmup must be '0 steps' with 'one_cycle', which has its own warm-up.")
        schedule = optax.cosine_onecycle_schedule(steps, learning_rate, pct_start=config.peak_at)
    elif config.name == "step":
        # The milestones are fractions of the whole duration, including the warm-up.
        steps = collections.Counter(round(share * total_steps) - warmup_steps for share in config.milestones)
        boundaries = {step: config.factor**count for step, count in steps.items()}  # in a short run they coincide
        schedule = optax.piecewise_constant_schedule(learning_rate, boundaries)
    else:
        raise ConfigError(f"config.schedule.name={config.name!r} is unknown.")
    if warmup_steps:
        warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        schedule = optax.join_schedules([warmup, schedule], [warmup_steps])
    return schedule


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Makes the optimizer.

    "sgd" accumulates the momentum of the gradients and scales it by the learning rate (as PyTorch does); "caffe_sgd"
    accumulates the momentum of scaled gradients, v <- m v + lr (g + wd w), w <- w - v (as Caffe does). They differ when
    the learning rate changes. "rmsprop" is TensorFlow's: with the same momentum, it divides gradients by the root of
    their mean square, which starts at 1 and has epsilon added inside the root (Tieleman and Hinton 2012;
    tf.compat.v1.train.RMSPropOptimizer). "muon" orthogonalises the momentum of each kernel, reshaped to a matrix
    (inputs, outputs), approximately (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), and scales it like
    AdamW's updates (Liu et al. 2025, arXiv:2502.16982); biases and batch-norm parameters use Adam.

    Args:
      config: the `optimizer` section of the config.
      schedule: the learning rate at each step.

    Raises:
      ConfigError: the name is unknown; or, when the optimizer is initialized, a pattern in
        `learning_rate_multipliers` matches no parameter.
    """
    mask = None if config.decay_biases else _kernels
    decay = optax.add_decayed_weights(config.weight_decay, mask)
    if config.name == "sgd":
        rule = [decay, optax.trace(config.momentum, config.nesterov), optax.scale_by_learning_rate(schedule)]
    elif config.name == "caffe_sgd":
        rule = [decay, optax.scale_by_learning_rate(schedule), optax.trace(config.momentum, config.nesterov)]
    elif config.name == "rmsprop":
        rule = [
            decay,
            optax.scale_by_rms(config.rms_decay, config.epsilon, initial_scale=1.0, eps_in_sqrt=True),
            optax.scale_by_learning_rate(schedule),
            optax.trace(config.momentum, config.nesterov),
        ]
    elif config.name == "adamw":
        rule = [
            optax.scale_by_adam(b1=config.momentum, nesterov=config.nesterov),
            decay,
            optax.scale_by_learning_rate(schedule),
        ]
    elif config.name == "muon":
        rule = [
            optax.contrib.muon(
                schedule,
                beta=config.momentum,
                nesterov=config.nesterov,
                weight_decay=config.weight_decay,
                adam_b1=config.momentum,
                adam_weight_decay=config.weight_decay if config.decay_biases else 0.0,
                muon_weight_dimension_numbers=_matrices,
                consistent_rms=0.2,
            )
        ]
    else:
        raise ConfigError(f"config.optimizer.name={config.name!r} is unknown.")
    if config.gradient_clip:
        rule.insert(0, optax.clip_by_global_norm(config.gradient_clip))
    if config.learning_rate_multipliers:
        rule.append(_scale_by_path(config.learning_rate_multipliers))
    return optax.chain(*rule)


def _scale_by_path(learning_rate_multipliers: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
    """Multiplies the update of each parameter by the multiplier of the first pattern found in its path.

    Raises:
      ConfigError: at initialisation, if a pattern matches no parameter.
    """

    def multipliers(params: Any) -> Any:
        def multiplier(path: tuple, _: Any) -> float:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return next(
                (multiplier for pattern, multiplier in learning_rate_multipliers if re.search(pattern, name)), 1.0
            )

        return jax.tree_util.tree_map_with_path(multiplier, params)

    def init(params: Any) -> optax.EmptyState:
        names = [
            jax.tree_util.keystr(path, simple=True, separator="/")
            for path, _ in jax.tree_util.tree_leaves_with_path(params)
        ]
        for pattern, _ in learning_rate_multipliers:
            if not any(re.search(pattern, name) for name in names):
                raise ConfigError(
                    f"config.optimizer.learning_rate_multipliers: {pattern!r} matches no parameter; expected part of "
                    f"one of {', '.join(names)}."
                )
        return optax.EmptyState()

    def update(updates: Any, state: optax.EmptyState, params: Any) -> tuple[Any, optax.EmptyState]:
        del params
        return jax.tree.map(lambda update, multiplier: update * multiplier, updates, multipliers(updates)), state

    return optax.GradientTransformation(init, update)


def _kernels(params: Any) -> Any:
    """Returns True for convolution kernels and False for biases and batch-norm parameters."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _matrices(params: Any) -> Any:
    """Returns the axes of inputs and outputs (the last axis) of each kernel, for Muon; None for other parameters."""
    return jax.tree.map(
        lambda leaf: optax.contrib.MuonDimensionNumbers(range(leaf.ndim - 1), leaf.ndim - 1) if leaf.ndim > 1 else None,
        params,
    )
