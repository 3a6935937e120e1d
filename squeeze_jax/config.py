"""The base config of every experiment, its validation, and its reading back from a workdir.

A config file imports `base_config`, changes what its experiment needs and returns it from `get_config`. Every key is
here, so a misspelt one is an error that names the right one. A value of None means "the named model's own".
"""

import difflib
import json
import pathlib
import re
from typing import Any

from ml_collections import ConfigDict, config_dict

CONFIG_FILE = "config.json"

BACKENDS = ("jit", "pmap")
OPTIMIZERS = ("sgd", "caffe_sgd", "adamw", "muon")
SCHEDULES = ("constant", "polynomial", "cosine", "one_cycle", "step")
SPLITS = ("train", "validation", "test")
# A metric that may choose the best checkpoint, and whether more of it is better.
BEST_METRICS = {"top1": True, "loss": False, "auc": True}
CROPS = ("random_resized", "random")

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|examples?)\s*")


class ConfigError(ValueError):
    """A config that cannot be run; the message names the key, what was expected and how to mend it."""


def base_config() -> ConfigDict:
    """The defaults, locked. A duration is a number and a unit: "500 steps", "20 epochs" or "51200 examples"."""
    config = ConfigDict()
    config.seed = 0
    config.init_from = ""  # a weight file or a workdir to start from; "" for random weights
    config.init_new_head = False  # conv10 starts anew, for another number of classes than those weights have

    config.model = ConfigDict()
    config.model.name = "squeezenet_v1_1"
    config.model.num_classes = config_dict.placeholder(int)  # the dataset's; another value is an error
    config.model.dropout_rate = config_dict.placeholder(float)
    config.model.bypass = config_dict.placeholder(str)
    config.model.base_filters = config_dict.placeholder(int)
    config.model.filter_increment = config_dict.placeholder(int)
    config.model.increment_every = config_dict.placeholder(int)
    config.model.squeeze_ratio = config_dict.placeholder(object)  # a number, or eight: one a Fire module
    config.model.fraction_3x3 = config_dict.placeholder(float)
    config.model.stem = config_dict.placeholder(str)
    config.model.stem_filters = config_dict.placeholder(int)
    config.model.pool_after = config_dict.placeholder(tuple)
    config.model.pooling = config_dict.placeholder(str)
    config.model.head_padding = config_dict.placeholder(bool)
    config.model.head_relu = config_dict.placeholder(bool)
    config.model.use_batch_norm = config_dict.placeholder(bool)
    config.model.dtype = "float32"

    config.dataset = ConfigDict()
    # A builder of this project, any TFDS name, "fake/32x32x3/10", the folder of a prepared dataset, or a folder of
    # images in split/class/.
    config.dataset.name = "digits"
    config.dataset.train_split = "train"
    config.dataset.validation_split = "validation"  # chooses the best checkpoint; "" for none
    config.dataset.test_split = "test"  # read once, at the end; "" for none
    config.dataset.held_out = 0  # examples taken out of train_split, always the same, to be the validation split
    config.dataset.channels = config_dict.placeholder(int)  # 3 makes colour of grey images; None: the dataset's own
    config.dataset.skip_unreadable = False  # replace an image that cannot be used by the next one, and count it
    config.dataset.image_size = ()  # the device enlarges or shrinks to this; () leaves the images as they are
    config.dataset.mean = (0.0,)  # of the pixels in 0..255, a channel or one for all
    config.dataset.std = (255.0,)

    # Photographs of any size are cut to squares on the host. Images of one size need none of it.
    config.crop = ConfigDict()
    config.crop.size = 0  # pixels of the square; 0 for no cropping
    config.crop.train = "random_resized"  # or "random": a random square out of the resized image
    config.crop.resize = 256  # before the central square of evaluation, and before "random"
    config.crop.keep_aspect = True  # `resize` is the shorter side; False: both sides, as Caffe's LMDBs were made
    config.crop.smallest_area = 0.08  # share of the image that a random resized crop covers at least

    # On the device, in training only but for `intensity`.
    config.augment = ConfigDict()
    config.augment.flip = ()  # axes, each mirrored in one image of two: ("width",), ("depth", "height", "width")
    config.augment.quarter_turns = False  # multiples of 90 degrees; a volume in a random plane
    config.augment.rotate = 0.0  # largest angle in degrees, either way; 2-D images
    config.augment.pad_and_crop = 0  # pixels of black border that a random crop moves in
    config.augment.cutout = 0  # side in pixels of the square that is set to the mean
    config.augment.intensity = ()  # (low, high) of a random factor on the pixels; evaluation uses the middle
    config.augment.mixup = 0.0  # alpha of the Beta distribution that neighbours are mixed by; 0 for none

    config.train = ConfigDict()
    config.train.duration = "20 epochs"
    config.train.batch_size = 128  # examples that one update sees, over all hosts and devices
    config.train.micro_batches = 1  # an update's batch is computed in this many parts
    config.train.label_smoothing = 0.0
    config.train.class_weights = "none"  # "balanced" (inverse to the class's share), or factors: "1, 2.5"
    config.train.ema_decay = 0.0  # of the averaged weights that evaluation uses; 0 evaluates the raw ones
    config.train.patience = "0 epochs"  # ends the run when the best metric has not risen for so long; 0 never does

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.04
    config.optimizer.momentum = 0.9  # beta 1 of AdamW, beta of Muon
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 2e-4
    config.optimizer.decay_biases = False  # weight decay on biases and batch-norm parameters too, as Caffe does
    config.optimizer.gradient_clip = 0.0  # largest global norm of the gradients; 0 for no limit
    # ((pattern, factor), ...): parameters whose path ("fire2/squeeze1x1/kernel") the pattern is found in learn at this
    # multiple of the rate; 0 freezes them. The first pattern that fits counts.
    config.optimizer.rate_factors = ()

    config.schedule = ConfigDict()
    config.schedule.name = "polynomial"
    config.schedule.warmup = "0 steps"  # linear, from zero
    config.schedule.power = 1.0  # of "polynomial"; 1 is the paper's linear decay to zero
    config.schedule.peak_at = 0.3  # of "one_cycle": the share of the duration before the peak
    config.schedule.milestones = (0.5, 0.75)  # of "step": shares of the duration
    config.schedule.factor = 0.1  # of "step": multiplies the learning rate at each milestone

    config.evaluation = ConfigDict()
    config.evaluation.batch_size = 500
    config.evaluation.best_metric = "top1"
    config.evaluation.auc = False  # also AUC, and with two classes sensitivity and specificity
    config.evaluation.mirror = ()  # axes: the logits are the mean over an image and its mirror images along them

    # What may change between two starts of one run.
    config.run = ConfigDict()
    config.run.data_dir = config_dict.placeholder(str)  # None: $TFDS_DATA_DIR, else ~/tensorflow_datasets
    config.run.num_threads = 2  # that decode and assemble batches, in each worker
    config.run.num_workers = 0  # processes that do so instead of this one
    config.run.num_devices = config_dict.placeholder(int)  # None: every accelerator, or one CPU device
    config.run.backend = "jit"  # or "pmap"
    config.run.log_every = "50 steps"
    config.run.evaluate_every = "1 epoch"
    config.run.checkpoint_every = "1 epoch"
    config.run.keep_checkpoints = 2  # latest ones; the best is kept besides
    config.run.stop_after_steps = config_dict.placeholder(int)  # ends early without touching the schedule
    config.run.profile_steps = ()  # (first, last): a trace for TensorBoard or Perfetto
    return config.lock()


def duration_in_steps(duration: str, batch_size: int, num_examples: int) -> int:
    """Converts "20 epochs", "500 steps" or "51200 examples" to whole steps, rounded to the nearest."""
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise ConfigError(
            f"{duration!r} is no duration; expected a number and a unit, such as '20 epochs', '500 steps'."
        )
    amount, unit = float(match[1]), match[2].rstrip("s")
    examples = {"step": amount * batch_size, "epoch": amount * num_examples, "example": amount}[unit]
    return round(examples / batch_size)


def validate(config: ConfigDict) -> None:
    """Raises ConfigError for a value that no run could use, before anything is computed or written."""
    for key, choices in (
        ("optimizer.name", OPTIMIZERS),
        ("schedule.name", SCHEDULES),
        ("run.backend", BACKENDS),
        ("evaluation.best_metric", tuple(BEST_METRICS)),
        ("crop.train", CROPS),
    ):
        value = lookup(config, key)
        if value not in choices:
            close = difflib.get_close_matches(str(value), choices, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"config.{key}={value!r} is unknown; expected one of {', '.join(choices)}.{hint}")
    for key in ("train.batch_size", "train.micro_batches", "evaluation.batch_size", "run.num_threads"):
        _require(config, key, lambda value: value >= 1, "at least 1")
    _require(
        config, "run.keep_checkpoints", lambda value: value >= 1, "at least 1, for a run could not resume otherwise"
    )
    for key in ("run.num_devices", "run.stop_after_steps"):
        _require(config, key, lambda value: value is None or value >= 1, "at least 1")
    for key in (
        "augment.pad_and_crop",
        "augment.cutout",
        "augment.rotate",
        "augment.mixup",
        "crop.size",
        "dataset.held_out",
        "optimizer.weight_decay",
        "optimizer.gradient_clip",
        "optimizer.learning_rate",
        "run.num_workers",
    ):
        _require(config, key, lambda value: value >= 0, "zero or more")
    _require(config, "seed", lambda value: 0 <= value < 2**31, "0 <= value < 2**31")
    _require(config, "model.squeeze_ratio", _is_squeeze_ratio, "a number, or eight: one a Fire module")
    _require(config, "crop.smallest_area", lambda value: 0 < value <= 1, "0 < value <= 1")
    _require(config, "dataset.channels", lambda value: value in (None, 1, 3), "1 or 3")
    _require(
        config,
        "augment.intensity",
        lambda value: len(value) in (0, 2) and tuple(sorted(value)) == tuple(value),
        "(low, high)",
    )
    if config.crop.size > config.crop.resize:
        raise ConfigError(f"config.crop.size={config.crop.size} is more than config.crop.resize={config.crop.resize}.")
    if config.evaluation.best_metric == "auc" and not config.evaluation.auc:
        raise ConfigError("config.evaluation.best_metric='auc' needs config.evaluation.auc=True.")
    if config.augment.mixup and config.train.batch_size % 2:
        raise ConfigError(f"config.augment.mixup pairs examples; batch_size={config.train.batch_size} is odd.")
    if config.dataset.held_out and config.dataset.validation_split:
        raise ConfigError(
            f"config.dataset.held_out={config.dataset.held_out} makes a validation split; set "
            f"config.dataset.validation_split='' or leave held_out at 0."
        )
    parse_class_weights(config.train.class_weights)
    for key in ("train.label_smoothing", "train.ema_decay", "optimizer.momentum"):
        _require(config, key, lambda value: 0 <= value < 1, "0 <= value < 1")
    _require(config, "schedule.peak_at", lambda value: 0 < value < 1, "0 < value < 1")
    _require(
        config,
        "schedule.milestones",
        lambda value: list(value) == sorted(value) and all(0 < share < 1 for share in value),
        "rising shares of the duration, each between 0 and 1",
    )
    _require(config, "dataset.std", lambda value: all(std > 0 for std in value), "positive numbers")
    _require(
        config,
        "run.profile_steps",
        lambda value: len(value) in (0, 2) and tuple(sorted(value)) == tuple(value),
        "(first, last)",
    )
    if config.train.batch_size % config.train.micro_batches:
        raise ConfigError(
            f"config.train.micro_batches={config.train.micro_batches} does not divide "
            f"config.train.batch_size={config.train.batch_size}."
        )
    for key in (
        "train.duration",
        "train.patience",
        "schedule.warmup",
        "run.log_every",
        "run.evaluate_every",
        "run.checkpoint_every",
    ):
        try:
            duration_in_steps(lookup(config, key), config.train.batch_size, 1)
        except ConfigError as error:
            raise ConfigError(f"config.{key}: {error}") from None


def parse_class_weights(text: str) -> str | tuple[float, ...]:
    """ "none", "balanced", or the factors of a comma-separated list.

    Raises:
      ConfigError: anything else.
    """
    if text in ("none", "balanced"):
        return text
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        weights = ()
    if not weights or min(weights) <= 0:
        raise ConfigError(
            f"config.train.class_weights={text!r}; expected 'none', 'balanced', or positive factors such as '1, 2.5'."
        )
    return weights


def lookup(config: ConfigDict, key: str) -> Any:
    """The value at a dotted key."""
    for part in key.split("."):
        config = config[part]
    return config


def _require(config: ConfigDict, key: str, accept, expected: str) -> None:
    value = lookup(config, key)
    if not accept(value):
        raise ConfigError(f"config.{key}={value!r}; expected {expected}.")


def _is_squeeze_ratio(value: Any) -> bool:
    ratios = value if isinstance(value, tuple) else (value,)
    return value is None or all(isinstance(ratio, (int, float)) for ratio in ratios)


def check_same_experiment(
    stored: ConfigDict, given: ConfigDict, workdir: pathlib.Path | str, *, free: tuple[str, ...] = ("run",)
) -> None:
    """Raises ConfigError, with the keys, where two configs differ outside their sections `free`."""
    old, new = flatten(stored), flatten(given)
    lines = [
        f"  {key}: {old.get(key)!r} in the workdir, {new.get(key)!r} now"
        for key in sorted(old | new)
        if old.get(key) != new.get(key) and key.partition(".")[0] not in free
    ]
    if lines:
        raise ConfigError(
            f"{workdir} holds a run of another config:\n" + "\n".join(lines) + "\nUse another --workdir, or the old "
            f"values; only {' and '.join(f'config.{section}.*' for section in free)} may change."
        )


def flatten(config: ConfigDict) -> dict[str, Any]:
    """The values by their dotted keys."""

    def walk(tree: dict[str, Any], prefix: str) -> dict[str, Any]:
        flat = {}
        for key, value in tree.items():
            flat |= walk(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return flat

    return walk(config.to_dict(), "")


def save(workdir: pathlib.Path, config: ConfigDict, resolved: dict[str, Any]) -> None:
    """Writes `config.json`: the config, and what the dataset settled (`resolved`), which `load` needs without it."""
    text = json.dumps({"config": config.to_dict(), "resolved": resolved}, indent=2)
    temporary = workdir / f"{CONFIG_FILE}.tmp"
    temporary.write_text(text + "\n")
    temporary.replace(workdir / CONFIG_FILE)


def read(workdir: pathlib.Path) -> tuple[ConfigDict, dict[str, Any]]:
    """Reads a workdir's config and what its dataset settled.

    Raises:
      ConfigError: no readable `config.json` there, or one of another version of this project.
    """
    path = pathlib.Path(workdir) / CONFIG_FILE
    try:
        stored = json.loads(path.read_text())
        values, resolved = stored["config"], stored["resolved"]
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist; is {workdir} the workdir of a run? A new run needs --config."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); restore it, or start a new workdir.") from error
    return from_values(values, path), resolved


def from_values(values: dict[str, Any], path: pathlib.Path) -> ConfigDict:
    """A config from what JSON kept of it; raises ConfigError where another version of this project wrote it."""
    config = base_config()
    try:
        config.update(_tuples(values))
    except (KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path} was written by another version of squeeze_jax: {error}") from error
    return config


def _tuples(value: Any) -> Any:
    """JSON has no tuples, a config has no lists."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items() if item is not None}
    return value
