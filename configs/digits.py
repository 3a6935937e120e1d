"""SqueezeNet 1.1 on scikit-learn's digits, which need no download; and a recipe for every network.

    python -m squeeze_jax.main --config configs/digits.py --workdir runs/digits
    python -m squeeze_jax.main --config configs/digits.py:compact --workdir runs/resnet18 --config.model.name=resnet18

Result: test top-1 0.986 +- 0.002 (3 seeds, 26 s per run on 2 CPU cores, docs/results.md). No paper reports SqueezeNet
on this dataset; the recipe was tuned on the validation split.
"""

from ml_collections import ConfigDict

from squeeze_jax.config import base_config
from squeeze_jax.errors import ConfigError


def get_config(recipe: str = "squeezenet") -> ConfigDict:
    if recipe not in ("squeezenet", "compact"):
        raise ConfigError(f"configs/digits.py has no recipe {recipe!r}; expected squeezenet or compact.")
    config = base_config()
    config.dataset.name = "digits"
    config.dataset.image_size = (32, 32)
    # Statistics of the training split's pixels in 0..255.
    config.dataset.mean = (77.8,)
    config.dataset.std = (95.8,)
    config.augment.pad_and_crop = 4

    config.model.name = "squeezenet_v1_1"
    config.model.use_batch_norm = True
    config.model.dropout_rate = 0.2
    config.model.head_relu = False  # with the ReLU, some classes die in such a small network

    config.train.duration = "40 epochs"
    config.train.batch_size = 64
    config.task.label_smoothing = 0.1
    config.train.ema_decay = 0.98
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.05
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "cosine"
    config.schedule.warmup = "1 epoch"
    config.run.log_every = "1 epoch"
    config.run.evaluate_every = "5 epochs"
    config.run.checkpoint_every = "5 epochs"
    if recipe == "compact":
        # Any name may be given. SqueezeNet, without batch norm and with its last ReLU, loses classes.
        config.model.strict = False
        config.dataset.image_size = (16, 16)
        config.augment.pad_and_crop = 1
        config.model.stem = "3x3/1"
        config.model.dropout_rate = None
        config.train.duration = "30 epochs"
        config.train.ema_decay = 0.0
        config.task.label_smoothing = 0.0
        config.optimizer.name = "adamw"
        config.optimizer.learning_rate = 3e-3  # at lower rates, ShuffleNetV2 0.5x and SqueezeNext need more epochs
        config.optimizer.nesterov = False
        config.optimizer.weight_decay = 0.05
        config.optimizer.gradient_clip = 1.0
        config.run.evaluate_every = "30 epochs"
        config.run.checkpoint_every = "30 epochs"
    return config
