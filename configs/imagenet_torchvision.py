"""SqueezeNet on ImageNet, with the recipe of torchvision's weights (pytorch/vision pull request 49).

    python -m squeeze_jax.main --config configs/imagenet_torchvision.py --workdir runs/imagenet_torchvision
    python -m squeeze_jax.main --config configs/imagenet_torchvision.py:v1_0 --workdir runs/imagenet_torchvision_v1_0

The recipe: 100 epochs of the PyTorch ImageNet example with `--lr 0.01 --weight-decay 0.0002 --batch-size 128`. The
learning rate is divided by 10 every 30 epochs; images are augmented by random resized crops to 224 pixels and flips.

Expected: 58.18 % top-1 and 80.62 % top-5 for version 1.1, 58.09 % and 80.42 % for 1.0 (pytorch/vision,
torchvision/models/squeezenet.py). Not run here, because it needs ImageNet and an accelerator. The initial weights
differ: torchvision uses kaiming_uniform.
"""

from ml_collections import ConfigDict

from squeeze_jax.config import base_config, use_images
from squeeze_jax.errors import ConfigError
from squeeze_jax.models.registry import TORCHVISION_IMAGENET


def get_config(version: str = "v1_1") -> ConfigDict:
    if version not in ("v1_0", "v1_1"):
        raise ConfigError(f"configs/imagenet_torchvision.py has no version {version!r}; expected v1_0 or v1_1.")
    config = base_config()
    config.dataset.name = "imagenet2012"
    config.dataset.validation_split = ""
    config.dataset.held_out = 10_000
    config.dataset.test_split = "validation"
    use_images(config, TORCHVISION_IMAGENET)
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
