"""Configs: every file loads and is traced, every key is read, wrong values are named, a workdir gives its own back."""

import contextlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT, configure, load_config
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from squeeze_jax import config as config_lib
from squeeze_jax import models
from squeeze_jax.config import base_config, duration_in_steps
from squeeze_jax.data.fake import Fake
from squeeze_jax.data.sources import Dataset, open_dataset
from squeeze_jax.errors import ConfigError, SqueezeJaxError, TrainingError
from squeeze_jax.experiment import build, find_split, make_crop, make_model, make_task
from squeeze_jax.training import trainer
from squeeze_jax.training.fine_tuning import clustered
from squeeze_jax.training.optimizers import make_optimizer
from squeeze_jax.training.schedules import make_schedule
from squeeze_jax.workdir.records import read_metrics

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("[!_]*.py"))
ARGUMENTS = {
    "adrenal_mnist3d": ("augmented",),
    "cifar10": ("study", "long", "compact"),
    "digits": ("compact",),
    "fake_benchmark": ("32x32x3",),
    "finetune_cifar10": ("resnet18",),
    "finetune_nodules": ("lidc", "3d"),
    "finetune_pneumonia": ("early", "early,resnet18"),
    "imagenet_bypass": ("complex",),
    "imagenet_torchvision": ("v1_0", "resnet18", "mobilenet_v2"),
    "luna_scans": ("generated",),
    "medmnist": ("chestmnist", "organmnist3d_64"),
    "nodules_3d": ("rating",),
    "pneumonia_mnist": ("early",),
    "prune_imagenet": ("shared",),
}
VARIANTS = [(name,) for name in CONFIGS] + [(name, argument) for name in ARGUMENTS for argument in ARGUMENTS[name]]
# Images as they leave the host, and classes, of the datasets that the configs name.
DATASETS = {
    "digits": ((8, 8, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "photographs": ((64, 64, 3), 3),
    "cifar100": ((32, 32, 3), 100),
    "imagenet2012": (None, 1000),
    "medmnist/pneumoniamnist": ((28, 28, 1), 2),
    "medmnist/pneumoniamnist_early": ((28, 28, 1), 2),
    "medmnist/adrenalmnist3d": ((28, 28, 28, 1), 2),
    "medmnist/nodulemnist3d": ((28, 28, 28, 1), 2),
    "medmnist/chestmnist": ((28, 28, 1), 14),
    "medmnist/retinamnist": ((28, 28, 3), 5),
    "medmnist/organmnist3d_64": ((64, 64, 64, 1), 11),
    "pulmonary_nodules/malignancy": ((51, 51, 51, 1), 2),
    "pulmonary_nodules/malignancy_rating": ((51, 51, 51, 1), 5),
    "scans/luna": ((32, 32, 32, 1), 2),
    "scans/generated": ((32, 32, 32, 1), 2),
    "luna16_candidates_50x50": ((50, 50, 1), 2),
    "lidc_malignancy_slices_64x64": ((64, 64, 1), 2),
    "fake/224x224x3/1000": ((224, 224, 3), 1000),
    "fake/32x32x3/1000": ((32, 32, 3), 1000),
}


@pytest.mark.parametrize("variant", VARIANTS, ids=":".join)
def test_config_file_loads_locks_and_is_traced(variant):
    config = load_config(*variant)
    assert config.is_locked
    if config.model.name is None:  # that of the weights
        config.model.name = "squeezenet_v1_1"
    image_shape, num_classes = DATASETS[config.dataset.name]
    if config.dataset.channels and image_shape:
        image_shape = (*image_shape[:-1], config.dataset.channels)
    crop = make_crop(config)
    if crop is not None:
        image_shape = (*crop.size, config.dataset.channels)
    # Random images in the place of the dataset: what is tested needs shapes alone.
    config.dataset.update({"folds": 0, "held_out": 0, "train_split": "train", "validation_split": "", "test_split": ""})
    source = Fake(f"fake/{'x'.join(map(str, image_shape))}/{num_classes}")
    label = jax.ShapeDtypeStruct((config.train.batch_size,), jnp.int32)
    if config.task.labels == "multilabel":
        label = jax.ShapeDtypeStruct((config.train.batch_size, num_classes), jnp.uint8)
        example = {"image": np.zeros(image_shape, np.uint8), "label": np.zeros(num_classes, np.uint8)}
        source.split_sizes = {"train": 1000}
        source.examples = lambda split: [example] * 1000
    experiment = build(config, Dataset(config.dataset.name, source, image_shape))
    state = jax.eval_shape(experiment.initial_state, 0)
    size = config.train.batch_size
    images = jax.ShapeDtypeStruct((size, *image_shape), jnp.uint8)
    batch = {"image": images, "label": label}
    assert jax.eval_shape(experiment.train_step(), state, batch, 0) == state


PUBLISHED = {
    "finetune_cifar10": "squeezenet_v1_0",
    "finetune_nodules": "squeezenet_v1_1",
    "finetune_pneumonia": "squeezenet_v1_0",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_fine_tuning_configs_have_the_network_of_the_published_weights(name):
    config = load_config(name)
    size = config.dataset.image_size

    def shapes(model):
        params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))["params"]
        return {key: leaf.shape for key, leaf in flatten_dict(params, sep="/").items() if "conv10" not in key}

    classes = tuple("abcdefghij")
    assert shapes(make_model(config, make_task(config, classes))) == shapes(models.create(PUBLISHED[name]))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_unknown_argument_of_a_config_file_is_named(name):
    with pytest.raises(ValueError, match="nonsense"):
        config = load_config(name, "nonsense")
        open_dataset(config.dataset.name)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_file_says_how_to_run_it(name):
    text = (ROOT / "configs" / f"{name}.py").read_text()
    assert f"python -m squeeze_jax.main --config configs/{name}.py" in text
    for argument in ARGUMENTS.get(name, ()):
        assert f"--config configs/{name}.py:{argument} " in text


def test_every_key_is_read(data_dir, tmp_path, monkeypatch):
    """A short run of all that other tests leave out, over a config that records each key it is asked for."""
    keys = set(config_lib.flatten(base_config()))
    sections, read = {}, set()
    read_item, to_dict = ConfigDict.__getitem__, ConfigDict.to_dict

    saving = []  # to save a config is not to use it

    def record_item(self, key):
        value = read_item(self, key)
        if id(self) in sections and not isinstance(value, ConfigDict) and not saving:
            read.add(sections[id(self)] + key)
        return value

    def to_dict_unrecorded(self, *arguments, **options):
        saving.append(True)
        try:
            return to_dict(self, *arguments, **options)
        finally:
            saving.pop()

    def record_attribute(self, key):
        try:
            return self[key]
        except KeyError as error:
            raise AttributeError(str(error)) from error

    monkeypatch.setattr(ConfigDict, "__getitem__", record_item)
    monkeypatch.setattr(ConfigDict, "to_dict", to_dict_unrecorded)
    monkeypatch.setattr(ConfigDict, "__getattr__", record_attribute)
    # Validation reads every key; that is not using it.
    monkeypatch.setattr("squeeze_jax.experiment.validate", lambda config: None)
    config = configure(
        data_dir,
        **{
            "model.dtype": "bfloat16",
            "dataset.image_size": (),
            "crop.size": 20,
            "crop.resize": 22,
            "train.duration": "6 steps",
            "train.micro_batches": 2,
            "train.ema_decay": 0.0,
            "optimizer.name": "adamw",
            "optimizer.gradient_clip": 1.0,
            "schedule.name": "polynomial",
            "schedule.warmup": "1 step",
            "pruning.density": 0.5,
            "pruning.end": "4 steps",
            "evaluation.best_metric": "loss",
            "run.log_every": "2 steps",
            "run.evaluate_every": "3 steps",
            "run.profile_steps": (2, 3),
        },
    )
    # A copy would be read unseen, and to fill in what is left out is not to use it.
    config = config_lib.complete(config)
    for place in ("squeeze_jax.experiment.complete", "squeeze_jax.training.trainer.with_weights"):
        monkeypatch.setattr(place, lambda config, *_: config)
    sections[id(config)] = ""
    sections.update({id(value): f"{key}." for key, value in config.items() if isinstance(value, ConfigDict)})
    result = trainer.train_and_evaluate(config, tmp_path)
    config.optimizer.name = "rmsprop"
    make_optimizer(config.optimizer, optax.constant_schedule(0.1))
    for name in ("step", "one_cycle"):
        config.schedule.name = name
        make_schedule(config.schedule, 0.1, 100, 0)
    config.sharing.bits = 2
    clustered({"params": {"conv1": {"kernel": np.arange(9, dtype=np.float32).reshape(3, 3)}}}, config.sharing)
    config.dataset.folds = 3
    find_split(open_dataset("digits", data_dir), config, "test")
    # The keys of the model are the attributes of the networks, which `make_model` passes on as they are.
    assert sorted(key for key in keys - read if not key.startswith("model.")) == []
    assert np.isfinite(result.metrics["test"]["loss"])
    losses = {r["step"]: r["values"]["loss"] for r in read_metrics(tmp_path) if r["split"] == "validation"}
    # Before the last pruning step, at step 4, no checkpoint competes for the best one.
    assert sorted(losses) == [3, 6] and result.best_step == 6
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimizer.name": "sdg"}, "the optimizer 'sdg' is unknown; did you mean 'sgd'"),
        ({"schedule.name": "linear"}, "the schedule 'linear' is unknown. Known: constant, polynomial"),
        ({"run.backend": "xmap"}, "Did you mean 'pmap'"),
        ({"seed": 2**31}, "config.seed=2147483648; expected 0 <= value"),
        ({"evaluation.best_metric": "roc"}, "'roc' is not a metric of this task; expected one of top1, loss"),
        (
            {"evaluation.best_metric": "auc"},
            "'auc' is not a metric of this task.*This metric needs config.task.auc=True",
        ),
        ({"crop.size": (20,)}, r"config.crop.size=\(20,\); expected a number of pixels, or \(height, width\)"),
        ({"crop.train": "randm"}, "Did you mean 'random'"),
        ({"crop.interpolation": "nearest"}, "expected one of bilinear, bicubic"),
        (
            {"model.squeeze_ratio": "half"},
            "config.model.squeeze_ratio='half'; expected one number, or a tuple of eight",
        ),
        ({"crop.size": 300}, "config.crop.size=300 is larger than config.crop.resize=256"),
        ({"dataset.channels": 2}, "config.dataset.channels=2; expected 1 or 3"),
        ({"dataset.max_unreadable": 1.5}, "config.dataset.max_unreadable=1.5; expected 0 <= value <= 1"),
        ({"dataset.held_out": 1.5}, "config.dataset.held_out=1.5; expected a number of examples, or a share of them"),
        ({"dataset.test_share": 0.9}, "validation_share=0.15 and test_share=0.9 leave nothing to train on"),
        ({"train.duration": "5 %"}, "config.train.duration: '5 %' is a share of the run itself; expected epochs"),
        ({"task.mirror": ("widht",)}, r"config.task.mirror=\('widht',\); expected some of depth, height, width"),
        ({"optimizer.learning_rate_multipliers": (("conv1",),)}, "expected .*pattern, multiplier"),
        ({"optimizer.learning_rate_multipliers": (("(", 1.0),)}, "expected .*pattern, multiplier"),
        ({"crop.size": (300, 20)}, r"config.crop.size=\(300, 20\) is larger than config.crop.resize=256"),
        ({"crop.size": (80, 300), "crop.resize": (100, 280)}, "is larger than config.crop.resize"),
        ({"crop.size": True}, "config.crop.size=True; expected"),
        ({"task.mixup": -0.2}, "config.task.mixup=-0.2; expected zero or more"),
        ({"task.name": "clasification"}, "the task 'clasification' is unknown; did you mean 'classification'"),
        ({"augment.intensity": (1.0, 0.5)}, r"\(low, high\)"),
        ({"task.class_weights": "1, -2"}, "expected 'none', 'balanced', or positive factors"),
        ({"train.patience": "5"}, "config.train.patience: '5' is not a duration"),
        ({"train.duration": "20"}, "config.train.duration: '20' is not a duration"),
        ({"run.log_every": "3 days"}, "config.run.log_every"),
        ({"train.batch_size": 0}, "config.train.batch_size=0; expected at least 1"),
        ({"train.micro_batches": 3}, "micro_batches=3 does not divide config.train.batch_size=32"),
        ({"task.label_smoothing": 1.0}, "config.task.label_smoothing=1.0; expected 0 <= value < 1"),
        ({"optimizer.weight_decay": -1.0}, "expected zero or more"),
        ({"schedule.milestones": (0.8, 0.5)}, "increasing fractions"),
        ({"dataset.std": (0.0,)}, "positive numbers"),
        ({"run.profile_steps": (5,)}, r"\(first, last\)"),
        ({"dataset.mean": (1.0, 2.0, 3.0)}, r"config.dataset.mean=\(1.0, 2.0, 3.0\) has 3 values, but .* 1 channel"),
        ({"dataset.std": (1.0, 2.0)}, r"config.dataset.std=\(1.0, 2.0\) has 2 values, but the images have 1 channel"),
        ({"dataset.mean": ()}, r"config.dataset.mean=\(\); expected a tuple of numbers"),
        ({"dataset.mean": ("0.5*255",)}, "config.dataset.mean=.*expected a tuple of numbers"),
        ({"dataset.std": ("0.2*255",)}, "config.dataset.std=.*expected a tuple of numbers"),
        ({"dataset.mean": (float("nan"),)}, "config.dataset.mean has the value .nan,.; expected text, a finite number"),
        ({"dataset.image_size": (32.5, 32)}, r"config.dataset.image_size=\(32.5, 32\); expected \(height, width\)"),
        ({"dataset.image_size": (-3, 3)}, r"config.dataset.image_size=\(-3, 3\); expected"),
        ({"dataset.image_size": (32,)}, r"config.dataset.image_size=\(32,\); expected"),
        ({"dataset.image_size": (20, 20, 20)}, "has 3 sizes, but the images have 2 spatial axes"),
        ({"dataset.image_size": (50_000, 50_000)}, "of at most 4096 pixels"),
        ({"crop.resize": 30_000}, "config.crop.resize=30000; expected .* at most 4096"),
        ({"augment.scale": ("a", "b")}, "config.augment.scale=.*above 0"),
        ({"augment.intensity": ("a", "b")}, r"config.augment.intensity=.*\(low, high\)"),
        ({"schedule.milestones": ("a",)}, "config.schedule.milestones=.*increasing fractions"),
        ({"augment.flip": (1,)}, r"config.augment.flip=\(1,\); expected names of axes"),
        ({"run.num_workers": 5000}, "config.run.num_workers=5000; expected 0 to 1024"),
        ({"run.data_dir": "None"}, "config.run.data_dir='None'; expected a folder; leave the key out"),
        ({"model.dtype": "float16"}, "config.model.dtype='float16' is unknown; expected one of float32"),
        ({"optimizer.learning_rate": float("inf")}, "config.optimizer.learning_rate has the value inf"),
    ],
)
def test_wrong_value_is_named(data_dir, overrides, message):
    with pytest.raises(ConfigError, match=message):
        build(configure(data_dir, **overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.num_classes": 7}, "config.model.num_classes=7, but the dataset requires 10"),
        ({"model.dtype": "float64"}, "jax_enable_x64"),
        ({"schedule.warmup": "50 steps"}, "warmup is 50 steps, but the run has only 40"),
        ({"run.num_devices": 64}, "num_devices=64, but JAX has 1 cpu device"),
        ({"model.squeeze_ratio": 2.0}, "expected a squeeze ratio with 0"),
        ({"model.squeeze_ratio": (0.5, 0.5)}, "squeeze_ratio has 2 entries"),
        ({"dataset.image_size": (4, 4)}, "4 pixels along height"),
        ({"dataset.train_split": "trian"}, "no split 'trian'.*it has test, train, validation"),
        ({"dataset.name": "dgits"}, "the dataset 'dgits' is unknown"),
        ({"dataset.name": "mnist"}, "python -m squeeze_jax.data.prepare mnist --data_dir"),
        ({"dataset.held_out": 5000, "dataset.validation_split": ""}, "cannot hold out 5000 of the 1197 examples"),
        ({"dataset.channels": 3, "dataset.name": "fake/20x20x1/10"}, "config.dataset.channels=3 is for photographs"),
        ({"task.class_weights": "1, 2"}, "class_weights has 2 factors; expected 10"),
        ({"task.mixup": 0.2, "train.batch_size": 33}, "mixup pairs examples, but a batch has 33"),
        ({"optimizer.learning_rate_multipliers": (("convl", 0.0),)}, "'convl' matches no parameter"),
    ],
)
def test_wrong_experiment_writes_no_checkpoint(data_dir, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        trainer.train_and_evaluate(configure(data_dir, **overrides), tmp_path / "w")
    assert not list((tmp_path / "w").glob("checkpoints/*"))


def test_a_run_that_diverges_is_named_before_its_metrics_are_computed(data_dir, tmp_path):
    diverging = {"optimizer.learning_rate": 1e30, "run.log_every": "40 steps", "run.evaluate_every": "5 steps"}
    with pytest.raises(TrainingError, match="not finite between steps 1 and 5 .learning rate 1e.30."):
        trainer.train_and_evaluate(configure(data_dir, **diverging, **{"task.auc": True}), tmp_path / "w")


def test_a_file_of_a_newer_version_is_named(tmp_path, data_dir):
    config_lib.save(tmp_path, configure(data_dir), {})
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**stored, "version": 99}))
    with pytest.raises(ConfigError, match="has version 99 and was written by a newer squeeze_jax"):
        config_lib.read(tmp_path)


def test_misspelled_key_suggests_the_right_one(start, tmp_path):
    (line,) = start(tmp_path / "w", optimizer__learning_rat=0.1).fail().splitlines()
    assert line.startswith("ConfigError: ") and 'Did you mean "learning_rate" instead of "learning_rat"' in line
    with pytest.raises(AttributeError, match="learning_rate"):
        base_config().optimizer.learning_rat = 0.1


def test_durations():
    assert duration_in_steps("20 epochs", 128, 50_000) == 7812
    assert duration_in_steps("1 epoch", 128, 1197) == 9
    assert duration_in_steps("500 steps", 7, 3) == 500
    assert duration_in_steps(" 51200 examples", 512, 3) == 100
    assert duration_in_steps("0.5 epochs", 10, 100) == 5
    for wrong in ("", "epochs", "-1 steps", "5 stepss", "1e3 steps"):
        with pytest.raises(ConfigError, match="is not a duration"):
            duration_in_steps(wrong, 1, 1)


def test_workdir_gives_the_config_back(tmp_path, data_dir):
    ratios = (0.125,) * 4 + (0.25,) * 4
    values = {"model.pool_after": (1, 3), "model.squeeze_ratio": ratios, "run.stop_after_steps": 7}
    config = configure(data_dir, **values)
    config_lib.save(tmp_path, config, {"class_names": ("a", "b"), "image_shape": (8, 8, 1)})
    stored, resolved = config_lib.read(tmp_path)
    assert stored.to_dict() == config.to_dict()
    assert stored.is_locked and resolved == {"class_names": ["a", "b"], "image_shape": [8, 8, 1]}


NAMES = '"class_names": ["a", "b"]'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; is .* the workdir of a run"),
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        (b"\xff\xfe", "it is not text in UTF-8"),
        ("[" * 10_000, "it is nested too deeply"),
        ('{"config": {"sed": 1}, "resolved": {}}', "was written by another version"),
        ('{"config": %s, "resolved": {}, "version": "2"}', "has the version '2'; expected a number"),
        ('{"config": %s, "resolved": []}', "cannot be read"),
        ('{"config": [], "resolved": {}, "version": 2}', "was written by another version"),
        ('{"config": %s, "resolved": {}, "version": 2}', "class_names is not a list of names"),
        ('{"config": %s, "resolved": {"class_names": ["a", 1]}, "version": 2}', "class_names is not a list of names"),
        ('{"config": %s, "resolved": {' + NAMES + ', "image_shape": [8, 8]}, "version": 2}', "images of shape"),
        (
            '{"config": %s, "resolved": {' + NAMES + ', "image_shape": [9999, 99999, 3]}, "version": 2}',
            "images of shape",
        ),
        ('{"config": {"task": {"name": "evil"}}, "resolved": {}, "version": 2}', "the task 'evil' is unknown"),
        (
            '{"config": {"task": {"name": "evil"}}, "resolved": {}, "version": 2, "imports": {"this": "\\u0000"}}',
            "needs the module this: pass --import=this, or in Python import this first",
        ),
        ('{"config": {"task": {"name": "evil"}}, "resolved": {}, "version": 2, "imports": [1]}', "'evil' is unknown"),
    ],
)
def test_damaged_config_json_is_named(tmp_path: pathlib.Path, content, message):
    if content is not None:
        text = content if isinstance(content, bytes) else content.replace("%s", VALUES).encode()
        (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ConfigError, match=f"{tmp_path}.config.json.*{message}"):
        config_lib.read(tmp_path)


VALUES = json.dumps(base_config().to_dict())
HOSTILE = (None, True, -1, 7, 2**40, 2**70, 1e308, float("nan"), "", "x", "\0", "9" * 400 + " epochs", [], [1], ["a"])
NESTED = ([[1]], [["(", 1.0]], [{"a": 1}], {}, {"a": 1}, {"name": 1}, [[[[1]]]], [0.1] * 5000)


def test_any_json_in_the_place_of_a_value_is_a_config_or_an_error_of_ours():
    """A config may be in a file from anybody; 5 % of all pairs of a key and a value."""
    keys = [*config_lib.flatten(base_config()), *base_config()]
    pairs = [(key, value) for key in keys for value in HOSTILE + NESTED]
    accepted = 0
    for i in np.random.default_rng(0).permutation(len(pairs))[: len(pairs) // 20]:
        key, value = pairs[i]
        values = json.loads(VALUES)
        node = values
        *sections, last = key.split(".")
        for section in sections:
            node = node[section]
        node[last] = value
        with contextlib.suppress(SqueezeJaxError):
            config = config_lib.from_values(values, pathlib.Path("a.sqz"), config_lib.VERSION)
            task = make_task(config, tuple("abcdefghij"))
            make_model(config, task)
            make_crop(config)
            accepted += 1
    assert 5 < accepted < len(pairs) // 40
