"""Checks the values of a config: kinds, ranges, and what does not go together.

A config may come from a file of somebody else, so its values may be anything that JSON has.
"""

import difflib
import functools
import math
import operator
import re
from collections.abc import Callable, Iterable
from typing import Any

from ml_collections import ConfigDict

from squeeze_jax.compression import BITS, INITIALIZATIONS
from squeeze_jax.errors import ConfigError
from squeeze_jax.extensions import Registry

SIZE = "a number of pixels, or (height, width)"
LARGEST_SIDE = 4096  # pixels of an image that a network or a crop takes
LARGEST_IMAGE = 2**27  # pixels of it, or voxels
LARGEST_STORED_SIDE = 2**16  # pixels of an image before it is resized on the device
MOST_CHANNELS = 2**12
LARGEST_BATCH = 2**20  # examples
LARGEST_POOL = 1024  # threads or processes
LARGEST_NUMBER = 1e100  # products of such numbers are finite
LONGEST_TEXT = 2**17  # characters; the factors of the classes of a large dataset
LONGEST_SHOWN = 4096

BACKENDS = ("jit", "pmap")
DTYPES = ("float32", "bfloat16", "float64")
CROPS = ("random_resized", "random")
INTERPOLATIONS = ("bilinear", "bicubic")
SAMPLINGS = ("uniform", "balanced")
PRUNING_SCOPES = ("layer", "global")
PRUNING_SCHEDULES = ("cubic", "geometric")

CHOICES = {
    "model.dtype": DTYPES,
    "run.backend": BACKENDS,
    "crop.train": CROPS,
    "crop.interpolation": INTERPOLATIONS,
    "train.sampling": SAMPLINGS,
    "pruning.scope": PRUNING_SCOPES,
    "pruning.schedule": PRUNING_SCHEDULES,
    "sharing.initialisation": INITIALIZATIONS,
}
# What None stands for in the keys that may be left to the weights of `init_from`.
UNSET = {
    "dataset.channels": None,
    "dataset.exif_orientation": True,
    "dataset.mean": (0.0,),
    "dataset.std": (255.0,),
    "crop.size": 0,
    "crop.resize": 256,
    "crop.keep_aspect": True,
    "crop.interpolation": "bilinear",
}
DURATIONS = (
    "train.duration",
    "train.patience",
    "schedule.warmup",
    "pruning.start",
    "pruning.end",
    "pruning.every",
    "pruning.release",
    "run.log_every",
    "run.evaluate_every",
    "run.checkpoint_every",
)
_DURATION = re.compile(r"\s*(\d{1,15}(?:\.\d{1,30})?)\s*(steps?|epochs?|examples?|%)\s*")


def duration_in_steps(duration: str, batch_size: int, num_examples: int, total: int | None = None) -> int:
    """Converts a duration to a number of steps, rounded to the nearest integer.

    Args:
      duration: such as "20 epochs", "500 steps", "51200 examples" or "5 %" of the run.
      batch_size: examples per step.
      num_examples: examples per epoch.
      total: steps of the run; None for the duration of the run itself, which cannot be a percentage.

    Raises:
      ConfigError: `duration` is not a number with a unit, or a percentage without `total`.
    """
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise ConfigError(
            f"{duration!r} is not a duration; expected a number and a unit, such as '20 epochs', '500 steps' or '5 %'."
        )
    amount, unit = float(match[1]), match[2].rstrip("s")
    if unit == "%":
        if total is None:
            raise ConfigError(f"{duration!r} is a share of the run itself; expected epochs, steps or examples.")
        return round(amount / 100 * total)
    examples = {"step": amount * batch_size, "epoch": amount * num_examples, "example": amount}[unit]
    return round(examples / batch_size)


@functools.cache
def registries() -> dict[str, Registry[Any]]:
    """Returns the registries of what the values of these keys name, one name or several."""
    # Here and not at the top, because importing JAX and Flax takes longer than a command without a config.
    from squeeze_jax.data.augmentation import AUGMENTATIONS
    from squeeze_jax.models.registry import MODELS
    from squeeze_jax.tasks import TASKS
    from squeeze_jax.training.optimizers import OPTIMIZERS
    from squeeze_jax.training.schedules import SCHEDULES

    return {
        "model.name": MODELS,
        "task.name": TASKS,
        "optimizer.name": OPTIMIZERS,
        "schedule.name": SCHEDULES,
        "augment.own": AUGMENTATIONS,
    }


def registered(config: ConfigDict, keys: Iterable[str] | None = None) -> list[tuple[Registry[Any], str]]:
    """Returns the names in a config that other modules may register, each with its registry.

    Args:
      config: the config.
      keys: keys of `registries`; None for all.
    """
    found = []
    for key in registries() if keys is None else keys:
        value = lookup(config, key)
        found += [(registries()[key], name) for name in (value if isinstance(value, tuple) else (value,))]
    return found


def validate(config: ConfigDict) -> None:
    """Checks the values of a config, before anything is computed or written.

    Raises:
      ConfigError: a value is invalid; the message names the key. Nothing else is raised, whatever the values are.
    """
    for key, value in flatten(config).items():
        if not _is_plain(value):
            raise ConfigError(
                f"config.{key} has the value {_shown(value)}; expected text, a finite number or a tuple of those."
            )
    for registry, name in registered(config, ("optimizer.name", "schedule.name", "augment.own")):
        registry[name]  # raises if the name is unknown
    for key, choices in CHOICES.items():
        value = lookup(config, key)
        if value not in choices and not (value is None and key in UNSET):
            close = difflib.get_close_matches(str(value), choices, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"config.{key}={value!r} is unknown; expected one of {', '.join(choices)}.{hint}")
    if config.model.name is None and not config.init_from:
        raise ConfigError("config.model.name is None, which takes the network of config.init_from; set one of the two.")
    _check_numbers(config)
    _check_images(config)
    _check_tuples(config)
    for key in DURATIONS:
        try:
            duration_in_steps(lookup(config, key), config.train.batch_size, 1, None if key == "train.duration" else 1)
        except ConfigError as error:
            raise ConfigError(f"config.{key}: {error}") from None
    _check_combinations(config)


def _check_numbers(config: ConfigDict) -> None:
    for key in ("train.batch_size", "train.micro_batches", "evaluation.batch_size"):
        _require(config, key, lambda value: 1 <= value <= LARGEST_BATCH, f"at least 1, at most {LARGEST_BATCH}")
    for key, least in (("run.num_threads", 1), ("run.num_workers", 0)):
        _require(config, key, lambda value, least=least: least <= value <= LARGEST_POOL, f"{least} to {LARGEST_POOL}")
    _require(config, "run.keep_checkpoints", lambda value: value >= 1, "at least 1, so that the run can resume")
    for key in ("run.num_devices", "run.stop_after_steps"):
        _require(config, key, lambda value: value is None or value >= 1, "at least 1")
    for key in (
        "augment.rotate",
        "augment.intensity_shift",
        "optimizer.weight_decay",
        "optimizer.epsilon",
        "optimizer.gradient_clip",
        "optimizer.learning_rate",
    ):
        _require(config, key, lambda value: value >= 0, "zero or more")
    for key in ("augment.pad_and_crop", "augment.cutout"):
        _require(config, key, lambda value: 0 <= value <= LARGEST_SIDE, f"zero or more, at most {LARGEST_SIDE} pixels")
    for key in ("train.ema_decay", "optimizer.momentum", "optimizer.rms_decay"):
        _require(config, key, lambda value: 0 <= value < 1, "0 <= value < 1")
    for key in ("crop.smallest_area", "pruning.density"):
        _require(config, key, lambda value: 0 < value <= 1, "0 < value <= 1")
    _require(config, "schedule.peak_at", lambda value: 0 < value < 1, "0 < value < 1")
    _require(config, "dataset.max_unreadable", lambda value: 0 <= value <= 1, "0 <= value <= 1")
    for key in ("dataset.validation_share", "dataset.test_share"):
        _require(config, key, lambda value: 0 <= value < 1, "0 <= value < 1")
    if config.dataset.validation_share + config.dataset.test_share >= 1:
        raise ConfigError(
            f"config.dataset.validation_share={config.dataset.validation_share} and test_share="
            f"{config.dataset.test_share} leave nothing to train on; expected a sum below 1."
        )
    _require(config, "dataset.held_out", _is_count_or_share, "a number of examples, or a share of them below 1")
    _require(config, "seed", lambda value: 0 <= value < 2**31, "0 <= value < 2**31")
    _require(config, "sharing.bits", lambda value: value == 0 or value in BITS, f"0, or {BITS[0]} to {BITS[-1]}")
    _require(config, "dataset.folds", _is_folds, "0, at least 3 folds, or the names of at least 3 stored splits")
    if config.dataset.folds:
        count = number_of_folds(config.dataset.folds)
        _require(config, "dataset.fold", lambda value: 0 <= value < count, f"0 to {count - 1}")
    # The word on a command line is text; that folder would be made.
    _require(config, "run.data_dir", lambda value: value != "None", "a folder; leave the key out for the default one")


def _check_images(config: ConfigDict) -> None:
    _require(config, "dataset.channels", lambda value: value in (None, 1, 3), "1 or 3")
    limits = f"of at most {LARGEST_SIDE} pixels, {LARGEST_IMAGE} in all"
    _require(
        config,
        "dataset.image_size",
        lambda value: value == () or (len(value) in (2, 3) and _is_side(*value) and math.prod(value) <= LARGEST_IMAGE),
        f"(height, width) or (depth, height, width), whole numbers {limits}; () keeps the size",
    )
    numbers = "a tuple of numbers: one per channel, or one for all"
    for key in ("dataset.mean", "dataset.std"):
        _require(config, key, lambda value: value is None or (len(value) > 0 and _is_number(*value)), numbers)
    _require(config, "dataset.std", lambda value: value is None or min(value) > 0, "positive numbers")
    at_most = f"{SIZE}, at most {LARGEST_SIDE}"
    _require(config, "crop.size", lambda value: value in (None, 0) or _is_size(value), f"{at_most}; 0 for no crop")
    _require(config, "crop.resize", lambda value: value in (None, 0) or _is_size(value), f"{at_most}; 0 for crop.size")
    size, resize = config.crop.size, config.crop.resize
    if resize is None and not config.init_from:
        resize = UNSET["crop.resize"]
    if size and resize and any(map(operator.gt, size_of(size), size_of(resize))):
        raise ConfigError(f"config.crop.size={size} is larger than config.crop.resize={resize}.")


def _check_tuples(config: ConfigDict) -> None:
    def is_range(value: Any) -> bool:
        return value == () or (len(value) == 2 and _is_number(*value) and value[0] <= value[1])

    for key in ("augment.flip", "task.mirror"):
        names = lookup(config, key) if key != "task.mirror" else config.task.get("mirror", ())
        if not all(isinstance(name, str) for name in names):
            raise ConfigError(f"config.{key}={names!r}; expected names of axes, such as ('width',).")
    _require(config, "augment.intensity", is_range, "(low, high)")
    _require(
        config, "augment.scale", lambda value: is_range(value) and (not value or value[0] > 0), "(low, high), above 0"
    )
    _require(
        config,
        "run.profile_steps",
        lambda value: is_range(value) and all(type(step) is int for step in value),
        "(first, last)",
    )
    _require(
        config,
        "schedule.milestones",
        lambda value: _is_number(*value) and list(value) == sorted(value) and all(0 < share < 1 for share in value),
        "increasing fractions of the duration, each between 0 and 1",
    )
    _require(config, "model.squeeze_ratio", _is_squeeze_ratio, "one number, or a tuple of eight: one per Fire module")
    _require(
        config,
        "optimizer.learning_rate_multipliers",
        lambda value: _is_by_pattern(value, lambda multiplier: multiplier >= 0),
        "((pattern, multiplier), ...), with regular expressions and numbers of zero or more",
    )
    _require(
        config,
        "pruning.layer_densities",
        lambda value: _is_by_pattern(value, lambda density: 0 < density <= 1),
        "((pattern, density), ...), with regular expressions and numbers above 0, at most 1",
    )


def _check_combinations(config: ConfigDict) -> None:
    if config.train.sampling == "balanced" and config.task.get("mixup"):
        raise ConfigError(
            "config.train.sampling='balanced' takes the classes in turns, so config.task.mixup would mix the "
            "same pairs of classes; use config.task.class_weights instead."
        )
    if config.dataset.folds and config.dataset.held_out:
        raise ConfigError(
            f"config.dataset.folds={config.dataset.folds} already gives a validation split; leave "
            f"config.dataset.held_out at 0."
        )
    if config.sharing.bits and is_pruned(config):
        raise ConfigError(
            "config.pruning and config.sharing cannot be used in one run: prune first, then share the weights of that "
            "run (config.init_from). Weight sharing keeps zeros by itself."
        )
    if config.train.batch_size % config.train.micro_batches:
        raise ConfigError(
            f"config.train.micro_batches={config.train.micro_batches} does not divide "
            f"config.train.batch_size={config.train.batch_size}."
        )


def is_image_shape(value: Any) -> bool:
    """Returns whether a JSON value is (*spatial, channels) of images or volumes, of a bearable size."""
    if not isinstance(value, (list, tuple)) or len(value) not in (3, 4):
        return False
    *spatial, channels = value
    is_bearable = all(_is_whole(side, LARGEST_STORED_SIDE) for side in spatial) and math.prod(spatial) <= LARGEST_IMAGE
    return is_bearable and _is_whole(channels, MOST_CHANNELS)


def is_pruned(config: ConfigDict) -> bool:
    """Returns whether the run prunes weights or keeps zeros."""
    pruning = config.pruning
    return pruning.density < 1 or bool(pruning.layer_densities) or pruning.keep_zeros


def lookup(config: ConfigDict, key: str) -> Any:
    """Returns the value at a dotted key, such as "optimizer.name"."""
    for part in key.split("."):
        config = config[part]
    return config


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Returns the values of a config by their dotted keys."""

    def walk(tree: dict[str, Any], prefix: str) -> dict[str, Any]:
        flat = {}
        for key, value in tree.items():
            flat |= walk(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return flat

    return walk(config.to_dict(), "")


def number_of_folds(folds: int | tuple[str, ...]) -> int:
    """Returns the number of folds of `config.dataset.folds`."""
    return len(folds) if isinstance(folds, tuple) else folds


def size_of(value: int | tuple[int, int]) -> tuple[int, int]:
    """Returns (height, width) of a size that is given as one number or as both."""
    return value if isinstance(value, tuple) else (value, value)


def _require(config: ConfigDict, key: str, accept: Callable[[Any], bool], expected: str) -> None:
    value = lookup(config, key)
    try:
        accepted = accept(value)
    except (TypeError, ValueError):  # a value of another kind has no length or no order
        accepted = False
    if not accepted:
        raise ConfigError(f"config.{key}={_shown(value)}; expected {expected}.")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:100]} ..."


def _is_plain(value: Any, depth: int = 2) -> bool:
    """Returns whether a value is text, a finite number, None or a tuple of those, at most `depth` deep."""
    if isinstance(value, (tuple, list)):
        return depth > 0 and len(value) <= LONGEST_TEXT and all(_is_plain(item, depth - 1) for item in value)
    if isinstance(value, str):
        return len(value) <= LONGEST_TEXT and "\0" not in value
    if isinstance(value, int):
        return abs(value) < 2**63
    return value is None or (isinstance(value, float) and abs(value) <= LARGEST_NUMBER)  # not NaN


def _is_number(*values: Any) -> bool:
    return all(isinstance(value, (int, float)) for value in values)


def _is_whole(value: Any, most: int) -> bool:
    return type(value) is int and 1 <= value <= most


def _is_side(*values: Any) -> bool:
    return all(_is_whole(value, LARGEST_SIDE) for value in values)


def _is_size(value: Any) -> bool:
    return _is_side(*value) if isinstance(value, tuple) and len(value) == 2 else _is_side(value)


def _is_by_pattern(value: Any, accept: Callable[[float], bool]) -> bool:
    """Returns whether the value is ((pattern, number), ...), with numbers that are accepted."""
    try:
        return all(re.compile(pattern) and _is_number(number) and accept(number) for pattern, number in value)
    except (TypeError, ValueError, re.error, OverflowError, RecursionError):  # of the regular expression, too
        return False


def _is_count_or_share(value: Any) -> bool:
    return type(value) in (int, float) and value >= 0 and (value < 1 or type(value) is int)


def _is_folds(value: Any) -> bool:
    if isinstance(value, tuple):
        return len(set(value)) == len(value) >= 3 and all(isinstance(name, str) for name in value)
    return type(value) is int and (value == 0 or value >= 3)


def _is_squeeze_ratio(value: Any) -> bool:
    ratios = value if isinstance(value, tuple) else (value,)
    return value is None or _is_number(*ratios)
