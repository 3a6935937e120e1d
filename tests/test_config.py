"""Configs: every file loads and is traced, every key is read, wrong values are named, a workdir gives its own back."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, configure, load_config
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from squeeze_jax import config as config_lib
from squeeze_jax import models, run, trainer
from squeeze_jax.config import ConfigError, base_config, duration_in_steps
from squeeze_jax.data.sources import open_dataset
from squeeze_jax.optimizers import make_optimizer, make_schedule
from squeeze_jax.state import create_state
from squeeze_jax.steps import make_train_step
from squeeze_jax.writers import read_metrics

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
ARGUMENTS = {
    "cifar10": ("study", "long"),
    "fake_benchmark": ("32x32x3",),
    "finetune_pneumonia": ("early",),
    "imagenet_bypass": ("complex",),
    "imagenet_torchvision": ("v1_0",),
    "pneumonia_mnist": ("early",),
}
VARIANTS = [(name,) for name in CONFIGS] + [(name, argument) for name in ARGUMENTS for argument in ARGUMENTS[name]]
# Images as they leave the host, and classes, of the datasets that the configs name.
DATASETS = {
    "digits": ((8, 8, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "cifar100": ((32, 32, 3), 100),
    "imagenet2012": (None, 1000),
    "medmnist/pneumoniamnist": ((28, 28, 1), 2),
    "medmnist/pneumoniamnist_early": ((28, 28, 1), 2),
    "medmnist/adrenalmnist3d": ((28, 28, 28, 1), 2),
    "medmnist/nodulemnist3d": ((28, 28, 28, 1), 2),
    "fake/224x224x3/1000": ((224, 224, 3), 1000),
    "fake/32x32x3/1000": ((32, 32, 3), 1000),
}


@pytest.mark.parametrize("variant", VARIANTS, ids=":".join)
def test_config_file_loads_locks_and_is_traced(variant):
    config = load_config(*variant)
    assert config.is_locked
    config_lib.validate(config)
    image_shape, num_classes = DATASETS[config.dataset.name]
    if config.dataset.channels and image_shape:
        image_shape = (*image_shape[:-1], config.dataset.channels)
    crop = run.crop_of(config)
    if crop is not None:
        image_shape = (crop.size, crop.size, config.dataset.channels)
    model, preprocessing = run.model_of(config, num_classes), run.preprocessing_of(config)
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, 1000, 10)
    optimizer = make_optimizer(config.optimizer, schedule)
    input_shape = preprocessing.input_shape(image_shape)
    use_ema = config.train.ema_decay > 0
    state = jax.eval_shape(lambda: create_state(model, optimizer, input_shape, 0, use_ema=use_ema))
    step = make_train_step(
        model,
        optimizer,
        preprocessing.train,
        mixup_alpha=config.augment.mixup,
        ema_decay=config.train.ema_decay,
    )
    size = config.train.batch_size
    images = jax.ShapeDtypeStruct((size, *image_shape), jnp.uint8)
    batch = {"image": images, "label": jax.ShapeDtypeStruct((size,), jnp.int32)}
    assert jax.eval_shape(step, state, batch, 0) == state


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("finetune_")])
def test_fine_tuning_configs_have_the_network_of_the_published_weights(name):
    config = load_config(name)
    size = config.dataset.image_size

    def shapes(model):
        params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))["params"]
        return {key: leaf.shape for key, leaf in flatten_dict(params, sep="/").items() if "conv10" not in key}

    assert shapes(run.model_of(config, 10)) == shapes(models.create("squeezenet_v1_0"))


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
    read_item = ConfigDict.__getitem__

    def record_item(self, key):
        value = read_item(self, key)
        if id(self) in sections and not isinstance(value, ConfigDict):
            read.add(sections[id(self)] + key)
        return value

    def record_attribute(self, key):
        try:
            return self[key]
        except KeyError as error:
            raise AttributeError(str(error)) from error

    monkeypatch.setattr(ConfigDict, "__getitem__", record_item)
    monkeypatch.setattr(ConfigDict, "__getattr__", record_attribute)
    # Validation reads every key; that is not using it.
    monkeypatch.setattr(config_lib, "validate", lambda config: None)
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
            "evaluation.best_metric": "loss",
            "run.log_every": "2 steps",
            "run.evaluate_every": "3 steps",
            "run.profile_steps": (2, 3),
        },
    )
    sections[id(config)] = ""
    sections.update({id(value): f"{key}." for key, value in config.items() if isinstance(value, ConfigDict)})
    result = trainer.train_and_evaluate(config, tmp_path)
    for name in ("step", "one_cycle"):
        config.schedule.name = name
        make_schedule(config.schedule, 0.1, 100, 0)
    assert sorted(keys - read) == []
    assert np.isfinite(result.metrics["test"]["loss"])
    losses = {r["step"]: r["values"]["loss"] for r in read_metrics(tmp_path) if r["split"] == "validation"}
    assert sorted(losses) == [3, 6] and result.best_step == min(losses, key=losses.get)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimizer.name": "sdg"}, "config.optimizer.name='sdg' .* Did you mean 'sgd'"),
        ({"schedule.name": "linear"}, "config.schedule.name='linear' is unknown; expected one of constant, polynomial"),
        ({"run.backend": "xmap"}, "Did you mean 'pmap'"),
        ({"seed": 2**31}, "config.seed=2147483648; expected 0 <= value"),
        ({"evaluation.best_metric": "roc"}, "expected one of top1, loss, auc"),
        ({"evaluation.best_metric": "auc"}, "best_metric='auc' needs config.evaluation.auc=True"),
        ({"crop.train": "randm"}, "Did you mean 'random'"),
        ({"model.squeeze_ratio": "half"}, "config.model.squeeze_ratio='half'; expected a number, or eight"),
        ({"crop.size": 300}, "config.crop.size=300 is more than config.crop.resize=256"),
        ({"dataset.channels": 2}, "config.dataset.channels=2; expected 1 or 3"),
        ({"dataset.held_out": 100}, "set config.dataset.validation_split=''"),
        ({"augment.mixup": 0.2, "train.batch_size": 33}, "mixup pairs examples; batch_size=33 is odd"),
        ({"augment.intensity": (1.0, 0.5)}, r"\(low, high\)"),
        ({"train.class_weights": "1, -2"}, "expected 'none', 'balanced', or positive factors"),
        ({"train.patience": "5"}, "config.train.patience: '5' is no duration"),
        ({"train.duration": "20"}, "config.train.duration: '20' is no duration"),
        ({"run.log_every": "3 days"}, "config.run.log_every"),
        ({"train.batch_size": 0}, "config.train.batch_size=0; expected at least 1"),
        ({"train.micro_batches": 3}, "micro_batches=3 does not divide config.train.batch_size=32"),
        ({"train.label_smoothing": 1.0}, "config.train.label_smoothing=1.0; expected 0 <= value < 1"),
        ({"optimizer.weight_decay": -1.0}, "expected zero or more"),
        ({"schedule.milestones": (0.8, 0.5)}, "rising shares"),
        ({"dataset.std": (0.0,)}, "positive numbers"),
        ({"run.profile_steps": (5,)}, r"\(first, last\)"),
    ],
)
def test_wrong_value_is_named(data_dir, overrides, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.validate(configure(data_dir, **overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.num_classes": 7}, "config.model.num_classes=7, but the dataset has 10 classes"),
        ({"model.dtype": "float64"}, "jax_enable_x64"),
        ({"schedule.warmup": "50 steps"}, "warmup is 50 steps, but the run has only 40"),
        ({"run.num_devices": 64}, "num_devices=64, but JAX sees 1 cpu device"),
        ({"model.squeeze_ratio": 2.0}, "squeeze ratio lies between 0"),
        ({"model.squeeze_ratio": (0.5, 0.5)}, "squeeze_ratio has 2 entries"),
        ({"dataset.image_size": (4, 4)}, "4 pixels along height"),
        ({"dataset.train_split": "trian"}, "no split 'trian'.*it has test, train, validation"),
        ({"dataset.name": "dgits"}, "no dataset is called 'dgits'"),
        ({"dataset.name": "mnist"}, "python -m squeeze_jax.data.prepare mnist --data_dir"),
        ({"dataset.held_out": 5000, "dataset.validation_split": ""}, "5000 examples cannot be held out of the 1197"),
        ({"dataset.channels": 3, "dataset.name": "fake/20x20x1/10"}, "config.dataset.channels=3 is for photographs"),
        ({"train.class_weights": "1, 2"}, "class_weights has 2 factors, but the dataset has 10 classes"),
        ({"optimizer.rate_factors": (("convl", 0.0),)}, "'convl' is in no parameter's path"),
    ],
)
def test_wrong_experiment_writes_no_checkpoint(data_dir, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        trainer.train_and_evaluate(configure(data_dir, **overrides), tmp_path / "w")
    assert not list((tmp_path / "w").glob("checkpoints/*"))


def test_misspelt_key_suggests_the_right_one(start, tmp_path):
    child = start(tmp_path / "w", optimizer__learning_rat=0.1)
    assert child.wait() != 0
    assert 'Did you mean "learning_rate" instead of "learning_rat"' in child.text()
    with pytest.raises(AttributeError, match="learning_rate"):
        base_config().optimizer.learning_rat = 0.1


def test_durations():
    assert duration_in_steps("20 epochs", 128, 50_000) == 7812
    assert duration_in_steps("1 epoch", 128, 1197) == 9
    assert duration_in_steps("500 steps", 7, 3) == 500
    assert duration_in_steps(" 51200 examples", 512, 3) == 100
    assert duration_in_steps("0.5 epochs", 10, 100) == 5
    for wrong in ("", "epochs", "-1 steps", "5 stepss", "1e3 steps"):
        with pytest.raises(ConfigError, match="is no duration"):
            duration_in_steps(wrong, 1, 1)


def test_workdir_gives_the_config_back(tmp_path, data_dir):
    ratios = (0.125,) * 4 + (0.25,) * 4
    values = {"model.pool_after": (1, 3), "model.squeeze_ratio": ratios, "run.stop_after_steps": 7}
    config = configure(data_dir, **values)
    config_lib.save(tmp_path, config, {"class_names": ("a", "b")})
    stored, resolved = config_lib.read(tmp_path)
    assert stored.to_dict() == config.to_dict()
    assert stored.is_locked and resolved == {"class_names": ["a", "b"]}


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"config": {"sed": 1}, "resolved": {}}'])
def test_damaged_config_json_is_named(tmp_path: pathlib.Path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="config.json"):
        config_lib.read(tmp_path)
