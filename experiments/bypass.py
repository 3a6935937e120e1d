"""Bypass connections (SqueezeNet paper, section 6, Table 3), without batch norm as there, and with it.

    python -m experiments.bypass --workdir runs/bypass --output experiments/results
    python -m experiments.bypass --setting imagenet --workdir runs/bypass_imagenet --list

`cifar10` is for a CPU (configs/cifar10.py:study): a network of a quarter of the width on 32 x 32 images, 10 epochs, 3
seeds, 18 trials. `imagenet` is the paper's setting, by the published solver; its batch norm is not the paper's.

Shortened against the paper: a quarter of the width, 32 x 32 images, 10 epochs of CIFAR-10 instead of 68 of ImageNet.
AdamW instead of SGD, for with SGD the network without bypass and batch norm had not left the loss of chance after two
epochs at learning rates of 0.02, 0.05 and the config's 0.1. Of AdamW's 0.001 and 0.003 the latter was better on
held-out images (0.366, 0.416). Both by `python -m experiments.sweep --config configs/cifar10.py:study --seeds 0
--workdir runs/pilot --config.train.duration='2 epochs' --config.model.use_batch_norm=False
--config.optimizer.learning_rate=0.02,0.05,0.1`, and the second with `--config.optimizer.name=adamw
--config.optimizer.learning_rate=0.001,0.003`.

Run here: two trials at a time, 68 minutes on 2 CPU cores that other work shared for 35 of them, 2.3 core-hours
(2026-11-22; experiments/results/bypass.csv, .md, .png), with `--jobs 2 --config.dataset.name=FOLDER`, CIFAR-10 as
JPEGs.

Against the paper, complex bypass is the best: 0.647 without and 0.727 with batch norm, simple bypass 0.596 and 0.639,
none 0.570 and 0.611, at 45 % more parameters. Without batch norm complex is above none (p < 0.001) and simple is not
proven to be; with it complex is above simple (p = 0.003), and simple above none at p = 0.036, not corrected. AdamW is
the worse optimizer with batch norm: the network without bypass, the same as squeeze_ratio's 0.125, reaches 0.688 there
with SGD, so part of what bypasses give here may be easier training.
"""

import sys

from experiments.sweep import main
from experiments.trials import Sweep

POINTS = [
    {"model.use_batch_norm": norm, "model.bypass": bypass}
    for norm in (False, True)
    for bypass in ("none", "simple", "complex")
]
# With SGD the network without bypass and batch norm had not left ln(10) after two epochs.
ADAMW = {"optimizer.name": "adamw", "optimizer.learning_rate": 0.003}
PUBLISHED = {
    "paper: ImageNet top-1": (57.5, 60.4, 58.8, "", "", ""),
    "paper: top-5": (80.3, 82.5, 82.0, "", "", ""),
    "paper: MB": (4.8, 4.8, 7.7, "", "", ""),
}

SETTINGS = {
    "cifar10": Sweep("bypass", "configs/cifar10.py:study", POINTS, overrides=ADAMW, published=PUBLISHED),
    "imagenet": Sweep("bypass_imagenet", "configs/imagenet_v1_0.py", POINTS, published=PUBLISHED),
}

if __name__ == "__main__":
    sys.exit(main(SETTINGS))
