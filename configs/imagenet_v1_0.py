"""SqueezeNet 1.0 on ImageNet by the authors' published solver (forresti/SqueezeNet, SqueezeNet_v1.0/solver.prototxt).

    python -m squeeze_jax.main --config configs/imagenet_v1_0.py --workdir runs/imagenet_v1_0

170,000 steps of 512 images (68 epochs), learning rate 0.04 falling linearly to zero, momentum 0.9, weight decay 2e-4 on
weights and biases; images resized to 256 x 256 regardless of their shape, random 227 x 227 crops, no flip, mean colour
subtracted and nothing divided. It is not the solver that trained the released weights (rate 0.08, batches of 1024,
85,000 steps, square-root decay), which its authors replaced because this one does no worse.

Expected: 57.5 % top-1, 80.3 % top-5 (the paper, Table 2). Not run here: it needs ImageNet and an accelerator.
ImageNet's validation images serve as the test split, as everywhere; 10,000 training images are held out to choose on.
"""

from ml_collections import ConfigDict

from squeeze_jax.config import base_config


def get_config() -> ConfigDict:
    config = base_config()
    config.dataset.name = "imagenet2012"
    config.dataset.validation_split = ""
    config.dataset.held_out = 10_000
    config.dataset.test_split = "validation"
    config.dataset.channels = 3
    config.dataset.mean = (123.0, 117.0, 104.0)  # Caffe's BGR 104, 117, 123
    config.dataset.std = (1.0,)
    config.crop.size = 227
    config.crop.train = "random"
    config.crop.resize = 256
    config.crop.keep_aspect = False

    config.model.name = "squeezenet_v1_0"
    config.model.head_padding = True  # the pad 1 of the authors' conv10

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
