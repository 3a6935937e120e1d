"""SqueezeNext on ImageNet, with the authors' solver (amirgholami/SqueezeNext, 1.0-SqNxt-23v5/solver.prototxt).

    python -m squeeze_jax.main --config configs/imagenet_squeezenext.py --workdir runs/imagenet_squeezenext
    python -m squeeze_jax.main --config configs/imagenet_squeezenext.py --workdir runs/imagenet_squeezenext_23 \
        --config.model.name=squeezenext_1_0_23

The recipe: 150,136 steps of 1024 images (120 epochs); the learning rate falls from 0.4 to zero with power 2, after a
warm-up of 780 steps (here from zero, there from 0.1). Images are resized to 256 x 256, randomly cropped to 227 x 227,
without flips. ImageNet's validation images are the test split; 10,000 training images are held out for validation.

Expected (Gholami et al. 2018, Table 2, as quoted by others): 59.24 % top-1 and 82.41 % top-5 for 1.0-SqNxt-23v5, the
default; 59.05 % and 82.60 % for 1.0-SqNxt-23, 67.44 % and 88.20 % for 2.0-SqNxt-23v5. Not run here, because it needs
ImageNet and an accelerator.
"""

from ml_collections import ConfigDict

from configs import imagenet_v1_0


def get_config() -> ConfigDict:
    config = imagenet_v1_0.get_config()
    config.model.name = "squeezenext_1_0_23v5"
    config.model.head_padding = None

    config.train.duration = "150136 steps"
    config.train.batch_size = 1024
    config.optimizer.learning_rate = 0.4
    config.optimizer.weight_decay = 1e-4
    config.schedule.power = 2.0
    config.schedule.warmup = "780 steps"
    return config
