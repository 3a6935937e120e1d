"""SqueezeNet on ImageNet by the recipe of torchvision's weights (pytorch/vision pull request 49).

    python -m squeeze_jax.main --config configs/imagenet_torchvision.py --workdir runs/imagenet_torchvision
    python -m squeeze_jax.main --config configs/imagenet_torchvision.py:v1_0 --workdir runs/imagenet_torchvision_v1_0

100 epochs of the PyTorch ImageNet example with `--lr 0.01 --weight-decay 0.0002 --batch-size 128`: the rate falls to a
tenth every 30 epochs, random resized crops to 224 pixels and flips.

Expected: 58.18 % top-1 and 80.62 % top-5 for version 1.1, 58.09 % and 80.42 % for 1.0 (pytorch/vision,
torchvision/models/squeezenet.py). Not run here: it needs ImageNet and an accelerator. The initial weights differ:
torchvision's are kaiming_uniform.
"""

from ml_collections import ConfigDict

from squeeze_jax.config import ConfigError, base_config


def get_config(version: str = "v1_1") -> ConfigDict:
    if version not in ("v1_0", "v1_1"):
        raise ConfigError(f"configs/imagenet_torchvision.py has the versions v1_0 and v1_1, not {version!r}.")
    config = base_config()
    config.dataset.name = "imagenet2012"
    config.dataset.validation_split = ""
    config.dataset.held_out = 10_000
    config.dataset.test_split = "validation"
    config.dataset.channels = 3
    config.dataset.mean = (123.675, 116.28, 103.53)
    config.dataset.std = (58.395, 57.12, 57.375)
    config.crop.size = 224
    config.augment.flip = ("width",)

    config.model.name = f"squeezenet_{version}"

    config.train.duration = "100 epochs"
    config.train.batch_size = 128
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 2e-4
    config.optimizer.decay_biases = True
    config.schedule.name = "step"
    config.schedule.milestones = (0.3, 0.6, 0.9)
    config.run.num_threads = 16
    config.run.log_every = "100 steps"
    return config
