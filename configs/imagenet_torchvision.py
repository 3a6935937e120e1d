"""SqueezeNet, ResNet-18 and MobileNetV2 on ImageNet, with the recipes of torchvision's weights.

    python -m squeeze_jax.main --config configs/imagenet_torchvision.py --workdir runs/imagenet_torchvision
    python -m squeeze_jax.main --config configs/imagenet_torchvision.py:v1_0 --workdir runs/imagenet_torchvision_v1_0
    python -m squeeze_jax.main --config configs/imagenet_torchvision.py:resnet18 --workdir runs/resnet18
    python -m squeeze_jax.main --config configs/imagenet_torchvision.py:mobilenet_v2 --workdir runs/mobilenet_v2

SqueezeNet (pytorch/vision pull request 49): 100 epochs of the PyTorch ImageNet example with `--lr 0.01 --weight-decay
0.0002 --batch-size 128`, and the learning rate is divided by 10 every 30 epochs. The others (pytorch/vision,
references/classification/README.md) use batches of 256: ResNet-18 90 epochs with a rate of 0.1, divided by 10 every 30
epochs, and a weight decay of 1e-4; MobileNetV2 300 epochs with a rate of 0.045, multiplied by 0.98 every epoch, and a
weight decay of 4e-5. Images are augmented by random resized crops to 224 pixels and flips.

Expected top-1 and top-5 (pytorch/vision, torchvision/models): version 1.1 58.18 % and 80.62 %, 1.0 58.09 % and 80.42 %,
resnet18 69.76 % and 89.08 %, mobilenet_v2 71.88 % and 90.29 %. Not run here, because it needs ImageNet and an
accelerator. 10,000 training images are held out to select the checkpoint, and the initial weights differ: torchvision
uses kaiming_uniform and kaiming_normal.
"""

from ml_collections import ConfigDict

from squeeze_jax.config import base_config, use_images
from squeeze_jax.errors import ConfigError
from squeeze_jax.models.registry import TORCHVISION_IMAGENET


def get_config(network: str = "v1_1") -> ConfigDict:
    if network not in ("v1_0", "v1_1", "resnet18", "mobilenet_v2"):
        raise ConfigError(
            f"configs/imagenet_torchvision.py has no network {network!r}; expected v1_0, v1_1, resnet18, mobilenet_v2."
        )
    config = base_config()
    config.dataset.name = "imagenet2012"
    config.dataset.validation_split = ""
    config.dataset.held_out = 10_000
    config.dataset.test_split = "validation"
    use_images(config, TORCHVISION_IMAGENET)
    config.augment.flip = ("width",)

    config.model.name = f"squeezenet_{network}" if network.startswith("v1") else network

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
    if network in ("resnet18", "mobilenet_v2"):
        config.train.batch_size = 256
        config.train.duration = "90 epochs"
        config.optimizer.learning_rate = 0.1
        config.optimizer.weight_decay = 1e-4
        config.schedule.milestones = (1 / 3, 2 / 3)
    if network == "mobilenet_v2":
        config.train.duration = "300 epochs"
        config.optimizer.learning_rate = 0.045
        config.optimizer.weight_decay = 4e-5
        config.schedule.milestones = tuple(epoch / 300 for epoch in range(1, 300))
        config.schedule.factor = 0.98
    return config
