"""Learning-rate schedules and optimizers, made from a config."""

import re
from typing import Any

import jax
import optax
import optax.contrib
from ml_collections import ConfigDict

from squeeze_jax.config import ConfigError


def make_schedule(config: ConfigDict, learning_rate: float, total_steps: int, warmup_steps: int) -> optax.Schedule:
    """The learning rate at each step.

    Args:
      config: the `schedule` section.
      learning_rate: its largest value.
      total_steps: of the run.
      warmup_steps: of them, those that rise linearly from zero to `learning_rate`.
    """
    if warmup_steps >= total_steps:
        raise ConfigError(f"config.schedule.warmup is {warmup_steps} steps, but the run has only {total_steps}.")
    steps = total_steps - warmup_steps
    if config.name == "constant":
        schedule = optax.constant_schedule(learning_rate)
    elif config.name == "polynomial":
        schedule = optax.polynomial_schedule(learning_rate, 0.0, config.power, steps)
    elif config.name == "cosine":
        schedule = optax.cosine_decay_schedule(learning_rate, steps)
    elif config.name == "one_cycle":
        if warmup_steps:
            raise ConfigError("config.schedule.warmup must be '0 steps' with 'one_cycle', which has its own rise.")
        schedule = optax.cosine_onecycle_schedule(steps, learning_rate, pct_start=config.peak_at)
    elif config.name == "step":
        # The milestones are shares of the whole duration, the warm-up included.
        boundaries = {round(share * total_steps) - warmup_steps: config.factor for share in config.milestones}
        schedule = optax.piecewise_constant_schedule(learning_rate, boundaries)
    else:
        raise ConfigError(f"config.schedule.name={config.name!r} is unknown.")
    if warmup_steps:
        warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        schedule = optax.join_schedules([warmup, schedule], [warmup_steps])
    return schedule


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer of the `optimizer` section.

    "sgd" keeps the momentum of gradients and scales it by the learning rate (PyTorch's form); "caffe_sgd" keeps the
    momentum of scaled gradients, v <- m v + lr (g + wd w), w <- w - v (Caffe's). They differ when the rate changes.
    "muon" makes the momentum of each kernel, a matrix of inputs by outputs, nearly orthogonal (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon), at the scale of AdamW's steps (Liu et al. 2025, arXiv:2502.16982);
    biases and batch norm learn by Adam.
    """
    mask = None if config.decay_biases else _kernels
    decay = optax.add_decayed_weights(config.weight_decay, mask)
    if config.name == "sgd":
        rule = [decay, optax.trace(config.momentum, config.nesterov), optax.scale_by_learning_rate(schedule)]
    elif config.name == "caffe_sgd":
        rule = [decay, optax.scale_by_learning_rate(schedule), optax.trace(config.momentum, config.nesterov)]
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
    if config.rate_factors:
        rule.append(_scale_by_path(config.rate_factors))
    return optax.chain(*rule)


def _scale_by_path(rate_factors: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
    """Multiplies the update of each parameter by the factor of the first pattern found in its path.

    Raises:
      ConfigError: at initialisation, a pattern that fits no parameter.
    """

    def factors(params: Any) -> Any:
        def factor(path: tuple, _: Any) -> float:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return next((factor for pattern, factor in rate_factors if re.search(pattern, name)), 1.0)

        return jax.tree_util.tree_map_with_path(factor, params)

    def init(params: Any) -> optax.EmptyState:
        names = [
            jax.tree_util.keystr(path, simple=True, separator="/")
            for path, _ in jax.tree_util.tree_leaves_with_path(params)
        ]
        for pattern, _ in rate_factors:
            if not any(re.search(pattern, name) for name in names):
                known = ", ".join(names)
                raise ConfigError(
                    f"config.optimizer.rate_factors: {pattern!r} is in no parameter's path; known: {known}."
                )
        return optax.EmptyState()

    def update(updates: Any, state: optax.EmptyState, params: Any) -> tuple[Any, optax.EmptyState]:
        del params
        return jax.tree.map(lambda update, factor: update * factor, updates, factors(updates)), state

    return optax.GradientTransformation(init, update)


def _kernels(params: Any) -> Any:
    """True for convolution kernels, False for biases and batch-norm parameters."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _matrices(params: Any) -> Any:
    """For Muon: the axes of each kernel's inputs, the last of its outputs, and None for biases and batch norm."""
    return jax.tree.map(
        lambda leaf: optax.contrib.MuonDimensionNumbers(range(leaf.ndim - 1), leaf.ndim - 1) if leaf.ndim > 1 else None,
        params,
    )
