"""SqueezeNet 1.0 on PneumoniaMNIST from ImageNet weights: grey X-rays as colour images, enlarged on the device.

    python -m squeeze_jax.main --config configs/finetune_pneumonia.py --workdir runs/finetune_pneumonia \
        --config.init_from=compressed_SqueezeNet.net
    python -m squeeze_jax.main --config configs/finetune_pneumonia.py:early --workdir runs/finetune_pneumonia_early \
        --config.init_from=compressed_SqueezeNet.net

The weights are any file that squeeze_jax.pretrained reads, here the paper's compressed network
(songhan/SqueezeNet-Deep-Compression); the last layer starts anew. Without `init_from` the same steps train from
scratch. `early` is the earlier release of the dataset, see configs/pneumonia_mnist.py. With
`--config.optimizer.rate_factors="(('conv10', 1.0), ('', 0.1))"` the trunk learns at a tenth of the rate, and a factor
of 0.0 freezes it.

Run here (`early`, 3 seeds, 303 steps each, 2 CPU cores, 2026-11-22): test AUC 0.962 +- 0.006 and accuracy 0.811 +-
0.021 from the compressed ImageNet weights, AUC 0.942 +- 0.005 and accuracy 0.812 +- 0.009 from scratch
(experiments/results/finetune_pneumonia.csv and finetune_pneumonia_scratch.csv; README, "Results"). Beside it:
MedMNIST's ResNet-18 at 28 pixels after 100 epochs, AUC 0.944 and accuracy 0.854.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

BASE = pathlib.Path(__file__).with_name("pneumonia_mnist.py")


def get_config(release: str = "official") -> ConfigDict:
    config = runpy.run_path(str(BASE))["get_config"](release)
    config.init_new_head = True
    config.dataset.channels = 3
    config.dataset.image_size = (64, 64)
    config.dataset.mean = (123.0, 117.0, 104.0)
    config.dataset.std = (1.0,)

    config.augment.pad_and_crop = 0
    config.model.name = "squeezenet_v1_0"
    config.model.stem = None  # the weights' own
    config.model.use_batch_norm = False

    config.train.duration = "5 epochs"
    config.train.class_weights = "none"
    config.train.batch_size = 64
    config.optimizer.learning_rate = 2e-4
    config.schedule.name = "cosine"
    config.schedule.warmup = "0.1 epochs"
    config.run.log_every = "10 steps"
    config.run.evaluate_every = "1 epoch"
    return config
