"""SqueezeNet with batch norm on CIFAR-100, with the recipe of weiaicunzai/pytorch-cifar100.

    python -m squeeze_jax.main --config configs/cifar100.py --workdir runs/cifar100

Expected: 69.4 % top-1, 91.6 % top-5 (weiaicunzai/pytorch-cifar100 README, squeezenet: errors 30.59 and 8.36). Not run
here, because 200 epochs need an accelerator. Known differences: that network also has batch norm after conv10, no
bypass around fire9 and a 2x2 first pooling with stride 2, and its checkpoint was selected on the test images; here
a tenth of the training images is held out for this.
"""

from ml_collections import ConfigDict

from squeeze_jax.config import base_config


def get_config() -> ConfigDict:
    config = base_config()
    config.dataset.name = "cifar100"
    config.dataset.validation_split = ""
    config.dataset.held_out = 0.1
    config.dataset.mean = (129.3, 124.1, 112.4)
    config.dataset.std = (68.2, 65.4, 70.4)
    config.augment.flip = ("width",)
    config.augment.pad_and_crop = 4
    config.augment.rotate = 15.0

    config.model.name = "squeezenet_v1_0"
    config.model.stem = "3x3/1"
    config.model.bypass = "simple"
    config.model.use_batch_norm = True
    config.model.head_relu = False
    config.model.dropout_rate = 0.0

    config.train.duration = "200 epochs"
    config.train.batch_size = 128
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 5e-4
    config.optimizer.decay_biases = True
    config.schedule.name = "step"
    config.schedule.milestones = (0.3, 0.6, 0.8)  # epochs 60, 120 and 160
    config.schedule.factor = 0.2
    config.schedule.warmup = "1 epoch"
    return config
