"""Fine-tunes a network with ImageNet weights on CIFAR-10, with images enlarged to 96 x 96 on the device.

    python -m squeeze_jax.main --config configs/finetune_cifar10.py --workdir runs/finetune_cifar10 \
        --config.init_from=compressed_SqueezeNet.net
    python -m squeeze_jax.main --config configs/finetune_cifar10.py:resnet18 --workdir runs/finetune_resnet18 \
        --config.init_from=torchvision/resnet18

The argument is the network, by default SqueezeNet 1.0, and images are normalized as its published weights need. The
weights can be any file that squeeze_jax.pretrained supports; the last layer is reinitialized. Not run here, because
it needs an accelerator. khoroshe/squeezenet reports 81 % for the network trained from scratch on images enlarged to
224 x 224.
"""

from ml_collections import ConfigDict

from configs import cifar10
from configs.finetune_pneumonia import fine_tune


def get_config(network: str = "squeezenet_v1_0") -> ConfigDict:
    config = cifar10.get_config("long")  # the recipe with the widths of the published network
    config.dataset.image_size = (96, 96)
    config.augment.pad_and_crop = 8
    config.augment.cutout = 0
    config.task.mixup = 0.0

    fine_tune(config, network)
    config.model.dropout_rate = None  # that of the weights

    config.train.batch_size = 128
    config.train.duration = "10 epochs"
    config.train.ema_decay = 0.0
    config.optimizer.name = "adamw"
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 1e-4
    config.schedule.warmup = "200 steps"
    return config
