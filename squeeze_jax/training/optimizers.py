"""Optimizers, by name. Add your own with `register`."""

import re
from collections.abc import Callable
from typing import Any

import jax
import optax
import optax.contrib
from ml_collections import ConfigDict

from squeeze_jax.errors import ConfigError
from squeeze_jax.extensions import Options, Registry, function_name
from squeeze_jax.training.schedules import make_schedule  # noqa: F401, its former place

Rules = list[optax.GradientTransformation]
Make = Callable[[ConfigDict, optax.Schedule], Rules]
OPTIMIZERS: Registry[Options[Make]] = Registry("optimizer")


def register(name: str, make: Make, **options: Any) -> None:
    """Registers an optimizer under a name for `config.optimizer.name`.

    Args:
      name: the new name.
      make: called with the `optimizer` section of the config and the learning rate at each step; returns the
        transformations of gradients to updates, to be chained, with the learning rate and the weight decay.
      **options: new keys of `config.optimizer` and their defaults.

    Raises:
      ConfigError: another optimizer has this name.
    """
    OPTIMIZERS.add(name, Options(make, options), (function_name(make), options))


def weight_decay(config: ConfigDict) -> optax.GradientTransformation:
    """Adds the weight decay of the config's `optimizer` section to the gradients."""
    return optax.add_decayed_weights(config.weight_decay, None if config.decay_biases else _kernels)


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Makes the optimizer.

    "sgd" accumulates the momentum of the gradients and scales it by the learning rate (as PyTorch does); "caffe_sgd"
    accumulates the momentum of scaled gradients, v <- m v + lr (g + wd w), w <- w - v (as Caffe does). They differ when
    the learning rate changes. "rmsprop" is TensorFlow's: with the same momentum, it divides gradients by the root of
    their mean square, which starts at 1 and has epsilon added inside the root (Tieleman and Hinton 2012;
    tf.compat.v1.train.RMSPropOptimizer). "muon" orthogonalizes the momentum of each kernel, reshaped to a matrix
    (inputs, outputs), approximately (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), and scales it like
    AdamW's updates (Liu et al. 2025, arXiv:2502.16982); biases and batch-norm parameters use Adam.

    Args:
      config: the `optimizer` section of the config.
      schedule: the learning rate at each step.

    Raises:
      ConfigError: the name is unknown; or, when the optimizer is initialized, a pattern in
        `learning_rate_multipliers` matches no parameter.
    """
    rule = list(OPTIMIZERS[config.name].make(config, schedule))
    if config.gradient_clip:
        rule.insert(0, optax.clip_by_global_norm(config.gradient_clip))
    if config.learning_rate_multipliers:
        rule.append(_scale_by_path(config.learning_rate_multipliers))
    return optax.chain(*rule)


def _sgd(config: ConfigDict, schedule: optax.Schedule) -> Rules:
    trace = optax.trace(config.momentum, config.nesterov)
    return [weight_decay(config), trace, optax.scale_by_learning_rate(schedule)]


def _caffe_sgd(config: ConfigDict, schedule: optax.Schedule) -> Rules:
    trace = optax.trace(config.momentum, config.nesterov)
    return [weight_decay(config), optax.scale_by_learning_rate(schedule), trace]


def _rmsprop(config: ConfigDict, schedule: optax.Schedule) -> Rules:
    return [
        weight_decay(config),
        optax.scale_by_rms(config.rms_decay, config.epsilon, initial_scale=1.0, eps_in_sqrt=True),
        optax.scale_by_learning_rate(schedule),
        optax.trace(config.momentum, config.nesterov),
    ]


def _adamw(config: ConfigDict, schedule: optax.Schedule) -> Rules:
    adam = optax.scale_by_adam(b1=config.momentum, nesterov=config.nesterov)
    return [adam, weight_decay(config), optax.scale_by_learning_rate(schedule)]


def _muon(config: ConfigDict, schedule: optax.Schedule) -> Rules:
    return [
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


def _scale_by_path(learning_rate_multipliers: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
    """Multiplies the update of each parameter by the multiplier of the first pattern found in its path.

    Raises:
      ConfigError: at initialization, if a pattern matches no parameter.
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


register("sgd", _sgd)
register("caffe_sgd", _caffe_sgd)
register("rmsprop", _rmsprop)
register("adamw", _adamw)
register("muon", _muon)
