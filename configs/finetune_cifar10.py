"""SqueezeNet 1.0 on CIFAR-10 from ImageNet weights, the images enlarged to 96 x 96 on the device.

    python -m squeeze_jax.main --config configs/finetune_cifar10.py --workdir runs/finetune_cifar10 \
        --config.init_from=compressed_SqueezeNet.net

The weights are any file that squeeze_jax.pretrained reads; the last layer starts anew. Not run here: it is for an
accelerator. khoroshe/squeezenet reports 81 % for the network trained from scratch on images enlarged to 224 x 224.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

BASE = pathlib.Path(__file__).with_name("cifar10.py")


def get_config() -> ConfigDict:
    config = runpy.run_path(str(BASE))["get_config"]("long")  # the recipe that keeps the published network's widths
    config.init_new_head = True
    config.dataset.image_size = (96, 96)
    config.dataset.mean = (123.0, 117.0, 104.0)
    config.dataset.std = (1.0,)
    config.augment.pad_and_crop = 8
    config.augment.cutout = 0
    config.augment.mixup = 0.0

    config.model.name = "squeezenet_v1_0"
    config.model.stem = "7x7/2"
    config.model.bypass = "none"
    config.model.use_batch_norm = False
    config.model.dropout_rate = 0.5

    config.train.duration = "10 epochs"
    config.train.ema_decay = 0.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 1e-4
    config.schedule.name = "cosine"
    config.schedule.warmup = "200 steps"
    return config
