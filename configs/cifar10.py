"""SqueezeNet on CIFAR-10."""

from ml_collections import ConfigDict

from squeeze_jax.config import base_config


def get_config(recipe: str = "cpu") -> ConfigDict:
    config = base_config()
    config.dataset.name = "cifar10"
    config.dataset.validation_split = ""
    config.dataset.held_out = 5000
    config.dataset.mean = (125.3, 123.0, 113.9)
    config.dataset.std = (63.0, 62.1, 66.7)
    config.augment.flip = ("width",)
    config.augment.pad_and_crop = 2

    config.model.name = "squeezenet_v1_1"
    config.model.stem = "3x3/1"
    config.model.bypass = "simple"
    config.model.use_batch_norm = True
    config.model.head_relu = False
    config.model.dropout_rate = 0.0

    config.train.duration = "15 epochs"
    config.train.batch_size = 128
    config.optimizer.learning_rate = 0.15
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "polynomial"
    config.schedule.warmup = "2 epochs"
    config.run.log_every = "0.25 epochs"
    config.run.evaluate_every = "2 epochs"
    config.run.checkpoint_every = "1 epoch"
    return config
