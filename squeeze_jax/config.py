"""The base config of all experiments: its defaults, and reading and writing it in a workdir.

A config file imports `base_config`, changes the values its experiment needs and returns the config from `get_config`.
The base config defines every key and is locked, so a misspelled key is an error that suggests the right one.
"""

import pathlib
import re
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict, config_dict

from squeeze_jax.errors import ConfigError, SqueezeJaxError, shown
from squeeze_jax.extensions import Origin, own_options
from squeeze_jax.files import CONFIG_FILE, read_json, write_json
from squeeze_jax.validation import (
    UNSET,
    duration_in_steps,
    flatten,
    is_image_shape,
    lookup,
    registered,
    registries,
    size_of,
    validate,
)

if TYPE_CHECKING:
    from squeeze_jax.models.registry import ImageInput

__all__ = [
    "as_stored",
    "base_config",
    "check_same_experiment",
    "complete",
    "duration_in_steps",
    "flatten",
    "from_values",
    "lookup",
    "read",
    "save",
    "use_images",
    "validate",
]

LIST_OF_KEYS = re.compile(r" and cannot be added.*")  # of ml_collections
VERSION = 2  # of the file format; see `_from_version_1`


def base_config(task: str = "classification") -> ConfigDict:
    """Returns the default config, locked.

    A duration is a number with a unit: "500 steps", "20 epochs", "51200 examples" or, except that of the run itself,
    "5 %" of the run.

    Args:
      task: the name of a registered task; its options become the keys of `config.task`.

    Raises:
      ConfigError: the task is not registered.
    """
    from squeeze_jax import models, tasks

    config = ConfigDict()
    config.seed = 0
    config.init_from = ""  # weight file or workdir to initialize the weights from; "" for random weights
    config.init_new_head = False  # reinitialize the last layer, e.g. for a different number of classes

    # None means the named network's own value, or with `name` None that of `init_from`. The keys are the attributes of
    # all registered networks.
    config.model = ConfigDict()
    config.model.name = config_dict.FieldReference("squeezenet_v1_1", field_type=str)  # None: that of `init_from`
    for name, kind in models.override_types().items():
        config.model[name] = config_dict.placeholder(kind)
    config.model.dtype = "float32"
    config.model.strict = True  # False skips options that the named network lacks, for recipes of several networks

    # What is learned and how it is measured. The other keys are the options of the task.
    config.task = ConfigDict({"name": task, **tasks.named(task).OPTIONS})

    config.dataset = ConfigDict()
    # A dataset of this project, any TFDS name, "fake/32x32x3/10", the folder of a prepared dataset, or a folder of
    # images in split/class/ or class/.
    config.dataset.name = "digits"
    config.dataset.train_split = "train"
    config.dataset.validation_split = "validation"  # selects the best checkpoint; "" for none
    config.dataset.test_split = "test"  # evaluated once, at the end of the run; "" for none
    # A folder of images that lacks the split "validation" or "test" gets it from its training images: this share of
    # each class, always the same images, all or none of a patient and of identical files.
    config.dataset.validation_share = 0.15
    config.dataset.test_share = 0.15
    # Training examples (always the same ones) to use as the validation split instead: a number, or a share below 1.
    config.dataset.held_out = config_dict.FieldReference(0, field_type=object)
    # Cross-validation: a number of folds that `train_split` is divided into, by patient if the dataset names patients,
    # or the names of stored splits, such as ("subset0", "subset1", "subset2"). 0 for none.
    config.dataset.folds = config_dict.FieldReference(0, field_type=object)
    config.dataset.fold = 0  # the fold that is the test split; the next one is the validation split
    # What None stands for, here and in `crop`: as the weights of `init_from` need it; without them UNSET.
    config.dataset.channels = config_dict.placeholder(int)  # 3 converts gray images to RGB; UNSET: as stored
    config.dataset.mean = config_dict.placeholder(tuple)  # of the pixels in 0..255; one value per channel, or one
    config.dataset.std = config_dict.placeholder(tuple)  # for all channels. UNSET: 0 and 255
    # Turn photographs as their EXIF data say (UNSET); False takes them as stored.
    config.dataset.exif_orientation = config_dict.placeholder(bool)
    config.dataset.skip_unreadable = False  # replace an image that cannot be decoded by the next one and count it
    config.dataset.max_unreadable = 0.1  # largest share of such images in a split; above it, the run ends
    config.dataset.image_size = ()  # size that images are resized to on the device; () keeps their size

    # Crops photographs of any size to one size on the host. Not needed if all images have the same size.
    config.crop = ConfigDict()
    # Side, or (height, width); 0: no crop, which is UNSET, and what None stands for if `dataset.image_size` is set.
    config.crop.size = config_dict.placeholder(object)
    config.crop.train = "random_resized"  # or "random": a random crop of that size from the resized image
    # The size before the central crop of evaluation, and before "random": one number, or (height, width); 0: that of
    # the crop, which then keeps the margins. UNSET: 256; that of `init_from` grows and shrinks with `size`.
    config.crop.resize = config_dict.placeholder(object)
    # One number is the shorter side (UNSET); False: both sides, as in Caffe's LMDBs.
    config.crop.keep_aspect = config_dict.placeholder(bool)
    config.crop.interpolation = config_dict.placeholder(str)  # of that resizing: "bilinear" (UNSET) or "bicubic"
    config.crop.smallest_area = 0.08  # smallest fraction of the image area covered by a random resized crop

    # Augmentation on the device; in training only, except `intensity`.
    config.augment = ConfigDict()
    config.augment.flip = ()  # axes, each mirrored with probability 1/2: ("width",), ("depth", "height", "width")
    config.augment.quarter_turns = False  # rotate by a multiple of 90 degrees; volumes: the cube's 24 rotations
    config.augment.rotate = 0.0  # largest rotation angle in degrees, in either direction; 2-D images only
    config.augment.pad_and_crop = 0  # width in pixels of the black border added before a random crop
    config.augment.scale = ()  # (low, high) of a random factor on the size of what is shown
    config.augment.intensity_shift = 0.0  # largest value added to all pixels, in either direction
    config.augment.cutout = 0  # side in pixels of the square that is set to the mean
    config.augment.intensity = ()  # (low, high) of a random factor on the pixels; evaluation uses the midpoint

    config.augment.own = ()  # names of registered augmentations, applied in this order after all others

    config.train = ConfigDict()
    config.train.duration = "20 epochs"
    config.train.batch_size = 128  # examples per update, over all hosts and devices
    config.train.sampling = "uniform"  # every example once an epoch; or "balanced": every class equally often
    config.train.micro_batches = 1  # number of parts that the batch of an update is split into
    config.train.ema_decay = 0.0  # decay of the averaged weights used in evaluation; 0 disables averaging
    config.train.patience = "0 epochs"  # stop if the best metric has not improved for this long; 0 never stops
    # Simulate the int8 rounding of kernels and of the inputs of convolutions in training, not in evaluation.
    config.train.quantization_aware = False

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.04
    config.optimizer.momentum = 0.9  # beta_1 of AdamW, beta of Muon
    config.optimizer.nesterov = False
    config.optimizer.rms_decay = 0.9  # "rmsprop": decay of the mean square of the gradients
    config.optimizer.epsilon = 1e-3  # "rmsprop": added to it, inside the square root
    config.optimizer.weight_decay = 2e-4
    config.optimizer.decay_biases = False  # also apply weight decay to biases and batch-norm parameters, like Caffe
    config.optimizer.gradient_clip = 0.0  # maximum global norm of the gradients; 0 for no limit
    # ((pattern, multiplier), ...): scales the learning rate of the parameters whose path ("fire2/squeeze1x1/kernel")
    # contains the regular expression; 0 freezes them. The first matching pattern applies.
    config.optimizer.learning_rate_multipliers = ()

    config.schedule = ConfigDict()
    config.schedule.name = "polynomial"
    config.schedule.warmup = "0 steps"  # linear warm-up from zero
    config.schedule.power = 1.0  # "polynomial": exponent; 1 is the paper's linear decay to zero
    config.schedule.peak_at = 0.3  # "one_cycle": fraction of the duration before the peak
    config.schedule.milestones = (0.5, 0.75)  # "step": fractions of the duration
    config.schedule.factor = 0.1  # "step": the learning rate is multiplied by this at each milestone

    # The options of optimizers and schedules that other modules registered.
    for section in ("optimizer", "schedule"):
        for name, default in own_options(registries()[f"{section}.name"]).items():
            if name in config[section]:
                raise ConfigError(
                    f"config.{section}.{name} already exists, so a registered {section} cannot have the option "
                    f"{name!r}; use another name."
                )
            config[section][name] = default

    # Magnitude pruning of the kernels. Checkpoints compete for the best one after the last pruning step, or after the
    # release.
    config.pruning = ConfigDict()
    config.pruning.density = 1.0  # fraction of the weights that are left in the end; 1 prunes nothing
    config.pruning.scope = "layer"  # of `density` and of the ranking by magnitude: each layer, or "global"
    # ((pattern, density), ...): other densities for the kernels whose path contains the regular expression; the first
    # matching pattern applies. Each of these kernels is ranked alone.
    config.pruning.layer_densities = ()
    config.pruning.schedule = "cubic"  # gradual; "geometric": every round removes the same fraction of what is left
    config.pruning.start = "0 steps"
    config.pruning.end = "0 steps"  # when the density is reached
    config.pruning.every = "100 steps"  # interval between pruning steps, from `start` to `end`
    config.pruning.release = "0 steps"  # when zeros may train again (Dense-Sparse-Dense); 0 never
    config.pruning.keep_zeros = False  # the zeros of the initial weights stay zero

    # Weight sharing: only the centroids that the weights of `init_from` are clustered to are trained.
    config.sharing = ConfigDict()
    config.sharing.bits = 0  # per weight, 2 to 8; 0 for no sharing
    config.sharing.initialisation = "density"  # of k-means; or "linear"

    config.evaluation = ConfigDict()
    config.evaluation.batch_size = 500
    config.evaluation.best_metric = "top1"  # selects the best checkpoint; a key of the task's `higher_is_better`

    # These keys may change when a run is resumed.
    config.run = ConfigDict()
    config.run.data_dir = config_dict.placeholder(str)  # None: $TFDS_DATA_DIR, else ~/tensorflow_datasets
    config.run.num_threads = 2  # threads that decode and assemble batches, per worker process
    config.run.num_workers = 0  # worker processes for the input pipeline; 0 uses the main process
    config.run.num_devices = config_dict.placeholder(int)  # None: all accelerators, or one CPU device
    config.run.backend = "jit"  # or "pmap"
    config.run.log_every = "50 steps"
    config.run.evaluate_every = "1 epoch"
    config.run.checkpoint_every = "1 epoch"
    config.run.keep_checkpoints = 2  # number of latest checkpoints to keep; the best one is always kept too
    config.run.stop_after_steps = config_dict.placeholder(int)  # stop early, with the schedule unchanged
    config.run.profile_steps = ()  # (first, last): steps to trace for TensorBoard or Perfetto
    return config.lock()


def complete(config: ConfigDict, weights: ConfigDict | None = None) -> ConfigDict:
    """Returns a copy of a config with a value for everything that it leaves to the weights it starts from.

    Args:
      config: the config.
      weights: the config of the weights; None if the run starts from random ones.
    """
    filled = config.copy_and_resolve_references()
    if weights is not None:
        if config.model.name is None:
            for key, value in weights.model.items():
                if key != "num_classes" and key in filled.model and filled.model[key] is None:
                    filled.model[key] = value
        crop, theirs = filled.crop, weights.crop
        if crop.size is None and config.dataset.image_size:
            crop.size = 0
        if crop.size and crop.resize is None and theirs.size:
            crop.resize = _scaled(crop.size, theirs)
        for key in UNSET:
            section, name = key.split(".")
            if filled[section][name] is None:
                filled[section][name] = weights[section][name]
    for key, value in UNSET.items():
        section, name = key.split(".")
        if filled[section][name] is None:
            filled[section][name] = value
    if filled.crop.size and filled.crop.resize == 0:
        filled.crop.resize = filled.crop.size
    return filled.lock()


def as_stored(given: ConfigDict, stored: ConfigDict) -> ConfigDict:
    """Returns a copy of a config with everything that it leaves open as in the workdir of a run, see `complete`.

    Args:
      given: the config of this call.
      stored: the config in the workdir.
    """
    filled = complete(given, stored if given.init_from else None)
    if given.dataset.exif_orientation is None:  # False in runs that began before there was this key
        filled.dataset.exif_orientation = complete(stored).dataset.exif_orientation
    return filled


def _scaled(size: int | tuple[int, int], theirs: ConfigDict) -> int | tuple[int, int]:
    """Returns the size before a crop of `size` that is to it as in the preprocessing `theirs`."""
    pairs = zip(size_of(size), size_of(theirs.size), size_of(theirs.resize or UNSET["crop.resize"]), strict=True)
    scaled = tuple(max(ours, round(resize * ours / crop)) for ours, crop, resize in pairs)
    return scaled if isinstance(size, tuple) else scaled[0]


def use_images(config: ConfigDict, images: "ImageInput") -> None:
    """Sets the crop, channels and normalization in `config` to those of published weights."""
    config.dataset.channels = 3
    config.dataset.mean = images.mean
    config.dataset.std = images.std
    config.crop.size = images.size
    config.crop.resize = images.resize
    config.crop.keep_aspect = images.keep_aspect
    config.crop.interpolation = images.interpolation


def check_same_experiment(
    stored: ConfigDict, given: ConfigDict, workdir: pathlib.Path | str, *, free: tuple[str, ...] = ("run",)
) -> None:
    """Checks that two configs describe the same experiment.

    Args:
      stored: the config in the workdir.
      given: the config of this call.
      workdir: for the message.
      free: top-level sections that may differ.

    Raises:
      ConfigError: the configs differ outside the sections `free`; the message lists the keys. Values that `given`
        leaves to the weights of `init_from`, and defaults that have changed since, are not differences.
    """
    old, new = flatten(complete(stored)), flatten(as_stored(given, stored))
    differing = [
        key
        for key in sorted(old | new)
        if old.get(key) != new.get(key) and (key.partition(".")[0] not in free or key == "task.name")
    ]
    if differing:
        lines = [f"  {key}: {old.get(key)!r} in the workdir, {new.get(key)!r} now" for key in differing]
        hint = " Without --config, the config in the workdir is used." if len(differing) > 1 else ""
        if "train.duration" in differing and free == ("run",):
            hint = f' A longer duration: --extend "{new["train.duration"]}" and no --config.'
        raise ConfigError(
            f"{workdir} holds a run of another config:\n" + "\n".join(lines) + "\nUse another --workdir, or the old "
            f"values; only {' and '.join(f'config.{section}.*' for section in free)} may change.{hint}"
        )


def save(workdir: pathlib.Path, config: ConfigDict, resolved: dict[str, Any]) -> None:
    """Writes `config.json`.

    Args:
      workdir: the folder.
      config: the config.
      resolved: JSON values that were read from the dataset, such as the class names; `load` needs them without the
        dataset.
    """
    origins = [registry.origin(name) for registry, name in registered(config)]
    imports = {origin.module: origin.file for origin in origins if not origin.is_ours}
    content = {"version": VERSION, "config": config.to_dict(), "resolved": resolved, "imports": imports}
    write_json(workdir / CONFIG_FILE, content)


def read(workdir: pathlib.Path | str) -> tuple[ConfigDict, dict[str, Any]]:
    """Reads `config.json` and returns the config and the values that were read from the dataset, see `save`.

    Raises:
      ConfigError: `config.json` is missing, cannot be read, has a value that is not valid, or is from an incompatible
        version of this project.
    """
    path = pathlib.Path(workdir) / CONFIG_FILE
    if not path.exists():
        raise ConfigError(f"{path} does not exist; is {workdir} the workdir of a run? A new run needs --config.")
    try:
        stored = read_json(path)
        if not isinstance(stored, dict) or not isinstance(stored.get("resolved"), dict):
            raise ValueError('expected {"version": ..., "config": {...}, "resolved": {...}}')
        config = from_values(stored.get("config"), path, stored.get("version", 1))
        _check_resolved(stored["resolved"])
        for registry, name in registered(config):
            registry[name]  # raises if the name is unknown
    except SqueezeJaxError as error:
        # The workdir may be a stranger's: it names the modules that it needs, but they are not imported for it.
        missing = _missing_modules(stored.get("imports", {}))
        if not missing:
            raise error if isinstance(error, ConfigError) else ConfigError(f"{path}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read ({error}); restore it, or start a new workdir.") from error
    else:
        return config, stored["resolved"]
    raise ConfigError(f"{path} needs {'; and '.join(origin.advice for origin in missing)}.")


def _missing_modules(imports: Any) -> list[Origin]:
    """Returns those modules of "imports", see `save`, that have registered nothing."""
    if not isinstance(imports, dict) or not all(isinstance(file, str) for file in imports.values()):
        return []
    known = {registry.origin(name).module for registry in registries().values() for name in registry}
    return [Origin(module, file) for module, file in imports.items() if module not in known]


def _check_resolved(resolved: dict[str, Any]) -> None:
    """Raises ValueError unless the values that `save` got from a dataset are those of one."""
    names, shape = resolved.get("class_names"), resolved.get("image_shape")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("class_names is not a list of names")
    if not is_image_shape(shape):
        raise ValueError(f"images of shape {shape}; expected two or three sides and a number of channels")
    if resolved.get("num_classes", len(names)) != len(names):
        raise ValueError(f"{len(names)} names of {resolved['num_classes']} classes")
    if not isinstance(resolved.get("preparation", {}), dict):
        raise ValueError(f"a preparation {resolved['preparation']!r}; expected named values")


def from_values(values: Any, path: pathlib.Path, version: Any) -> ConfigDict:
    """Rebuilds a config from its JSON values, and validates it.

    Args:
      values: the sections of the config.
      path: the file they were read from, for messages.
      version: the format version of the file.

    Raises:
      ConfigError: the task is not registered, the keys are of another version of this project, or a value is not valid;
        the message names the file. Nothing else is raised, whatever JSON the values are.
    """
    if type(version) is not int or version < 1:
        raise ConfigError(f"{path} has the version {version!r}; expected a number. Restore the file.")
    if version > VERSION:
        raise ConfigError(f"{path} has version {version} and was written by a newer squeeze_jax; update this one.")
    try:
        values = _from_version_1(values) if version == 1 else values
        config = base_config(values["task"]["name"])
        if isinstance(values.get("dataset"), dict) and "exif_orientation" not in values["dataset"]:
            config.dataset.exif_orientation = False  # written before there was this key
        config.update(_tuples(values))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (KeyError, AttributeError, TypeError, ValueError, RecursionError) as error:
        reason = shown(LIST_OF_KEYS.sub("", " ".join(str(error).strip("'\"").split())), most=200)
        raise ConfigError(
            f"{path} was written by another version of squeeze_jax, or with a module of your own, which "
            f"--import takes: {reason}."
        ) from error
    try:
        validate(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config


# Keys that were in another place in version 1.
MOVED = {
    "train.label_smoothing": "task.label_smoothing",
    "train.class_weights": "task.class_weights",
    "augment.mixup": "task.mixup",
    "evaluation.auc": "task.auc",
    "evaluation.mirror": "task.mirror",
    "optimizer.rate_factors": "optimizer.learning_rate_multipliers",
}


def _from_version_1(values: dict[str, Any]) -> dict[str, Any]:
    """Converts the values of version 1, which had no tasks: every network was a classifier."""
    values = {section: dict(value) if isinstance(value, dict) else value for section, value in values.items()}
    values["task"] = {"name": "classification"}
    for old, new in MOVED.items():
        (section, key), (new_section, new_key) = old.split("."), new.split(".")
        if key in values.get(section, ()):
            values[new_section][new_key] = values[section].pop(key)
    return values


def _tuples(value: Any) -> Any:
    """Converts lists to tuples, because JSON has no tuples and a config has no lists."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items() if item is not None}
    return value
