"""SqueezeNet 1.1 on CIFAR-10, with a stride-1 stem, batch norm and complex bypass.

    python -m squeeze_jax.main --config configs/cifar10.py --workdir runs/cifar10            # 31 minutes on 2 CPU cores
    python -m squeeze_jax.main --config configs/cifar10.py:long --workdir runs/cifar10_long      # for an accelerator
    python -m squeeze_jax.main --config configs/cifar10.py:study --workdir runs/cifar10_study    # used in experiments/
    python -m squeeze_jax.main --config configs/cifar10.py:compact --workdir runs/cifar10_compact     # any network

The dataset is TFDS's cifar10, or a folder of images: `--config.dataset.name=FOLDER`. A tenth of the training images
is held out to select the checkpoint.

Result: 0.884 +- 0.001 test top-1, 0.895 +- 0.001 averaged over mirror images (3 seeds, docs/results.md). The long
recipe has not been run. The unchanged network reaches about 61 % on 32 x 32 images (khoroshe/squeezenet).
"""

from ml_collections import ConfigDict

from squeeze_jax.config import base_config
from squeeze_jax.errors import ConfigError


def get_config(recipe: str = "cpu") -> ConfigDict:
    config = base_config()
    config.dataset.name = "cifar10"
    config.dataset.validation_split = ""
    config.dataset.held_out = 0.1
    config.dataset.mean = (125.3, 123.0, 113.9)
    config.dataset.std = (63.0, 62.1, 66.7)
    config.augment.flip = ("width",)

    config.model.name = "squeezenet_v1_1"
    config.model.stem = "3x3/1"
    config.model.bypass = "simple"
    config.model.use_batch_norm = True
    config.model.head_relu = False
    config.model.dropout_rate = 0.0

    config.train.batch_size = 128
    config.optimizer.name = "sgd"
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.run.log_every = "0.25 epochs"
    config.run.evaluate_every = "2 epochs"
    config.run.checkpoint_every = "1 epoch"
    if recipe == "cpu":
        config.model.stem_filters = 32
        config.model.pool_after = (1, 3, 6)
        config.model.squeeze_ratio = (0.125,) * 5 + (0.25,) * 3
        config.model.bypass = "complex"
        config.train.duration = "18 epochs"
        config.optimizer.name = "muon"
        config.optimizer.learning_rate = 0.02
        config.optimizer.weight_decay = 0.1
        config.schedule.name = "polynomial"
        config.schedule.warmup = "1 epoch"
        config.augment.pad_and_crop = 4
        config.augment.cutout = 8
        config.run.evaluate_every = "3 epochs"
    elif recipe == "study":
        # The paper's design space (section 5.1) at a quarter of the width, and at a resolution that is fast on a CPU.
        config.model.name = "squeezenet_v1_0"
        config.model.bypass = "none"
        config.model.stem = "3x3/2"
        config.model.stem_filters = 24
        config.model.base_filters = 32
        config.model.filter_increment = 32
        config.model.pool_after = (3, 5)
        config.train.duration = "10 epochs"
        config.optimizer.learning_rate = 0.1
        config.schedule.name = "polynomial"
        config.schedule.warmup = "1 epoch"
        config.augment.pad_and_crop = 2
    elif recipe == "compact":
        # For any network, with the published stem; experiments/compact_networks.py. SqueezeNet, without batch norm and
        # with its last ReLU, loses classes in so few epochs.
        config.model.strict = False
        config.model.stem = config.model.bypass = None
        config.model.stochastic_depth = 0.0
        config.train.duration = "2 epochs"
        config.optimizer.name = "adamw"
        config.optimizer.learning_rate = 1e-3
        config.optimizer.nesterov = False
        config.optimizer.weight_decay = 0.05
        config.optimizer.gradient_clip = 1.0
        config.schedule.name = "polynomial"
        config.schedule.warmup = "0.2 epochs"
        config.augment.pad_and_crop = 4
    elif recipe == "long":
        config.train.duration = "200 epochs"
        config.train.ema_decay = 0.999
        config.optimizer.learning_rate = 0.1
        config.schedule.name = "cosine"
        config.schedule.warmup = "5 epochs"
        config.augment.pad_and_crop = 4
        config.augment.cutout = 8
        config.task.mixup = 0.2
    else:
        raise ConfigError(f"configs/cifar10.py has no recipe {recipe!r}; expected cpu, study, compact or long.")
    return config
