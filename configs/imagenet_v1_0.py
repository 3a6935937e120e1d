"""SqueezeNet 1.0 on ImageNet, with the authors' solver (forresti/SqueezeNet, SqueezeNet_v1.0/solver.prototxt).

    python -m squeeze_jax.main --config configs/imagenet_v1_0.py --workdir runs/imagenet_v1_0

The recipe: 170,000 steps of 512 images (68 epochs) with a learning rate that falls linearly from 0.04 to zero. Images
are resized to 256 x 256 whatever their aspect ratio, then randomly cropped to 227 x 227, without flips. The released
weights were trained with an older solver (rate 0.08, batches of 1024, square-root decay). ImageNet's validation images
are the test split; 10,000 training images are held out for validation.

Expected: 57.5 % top-1, 80.3 % top-5 (the paper, Table 2). Not run here, because it needs ImageNet and an accelerator.
"""

from ml_collections import ConfigDict

from squeeze_jax import models
from squeeze_jax.config import base_config, use_images


def get_config() -> ConfigDict:
    config = base_config()
    config.dataset.name = "imagenet2012"
    config.dataset.validation_split = ""
    config.dataset.held_out = 10_000
    config.dataset.test_split = "validation"
    use_images(config, models.registered("squeezenet_v1_0").input)
    config.crop.train = "random"

    config.model.name = "squeezenet_v1_0"
    config.model.head_padding = True  # the authors' conv10 has padding 1

    config.train.duration = "170000 steps"
    config.train.batch_size = 512
    config.optimizer.name = "caffe_sgd"
    config.optimizer.learning_rate = 0.04
    config.optimizer.weight_decay = 2e-4
    config.optimizer.decay_biases = True
    config.schedule.name = "polynomial"
    config.run.num_threads = 16
    config.run.log_every = "100 steps"
    config.run.evaluate_every = "5000 steps"
    config.run.checkpoint_every = "1000 steps"
    return config
