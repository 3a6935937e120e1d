"""Bypass connections (SqueezeNet paper, section 6, Table 3), without batch norm as in the paper, and with it.

    python -m experiments.bypass --workdir runs/bypass --output experiments/results
    python -m experiments.bypass --setting imagenet --workdir runs/bypass_imagenet --list

`cifar10` is for a CPU (configs/cifar10.py:study): a network with a quarter of the width on 32 x 32 images, 10 epochs, 3
seeds, 18 trials. `imagenet` is the paper's setting, with the published solver; the paper has no batch norm.

Differences from the paper: a quarter of the width, 32 x 32 images, 10 epochs of CIFAR-10 instead of 68 of ImageNet.
AdamW replaces SGD, because with SGD the loss of the network without bypass and batch norm was still at chance level
after two epochs, at learning rates of 0.02, 0.05 and the config's 0.1. Of AdamW's learning rates 0.001 and 0.003, the
latter was better on held-out images (0.366, 0.416). Commands: `python -m experiments.sweep --config
configs/cifar10.py:study --seeds 0 --workdir runs/pilot --config.train.duration='2 epochs'
--config.model.use_batch_norm=False --config.optimizer.learning_rate=0.02,0.05,0.1`, and for AdamW with
`--config.optimizer.name=adamw --config.optimizer.learning_rate=0.001,0.003`.

Run here with two trials at a time, 68 minutes on 2 CPU cores that were shared with other work for 35 minutes, 2.3
core-hours (2026-11-22; experiments/results/bypass.csv, .md, .png), with `--jobs 2 --config.dataset.name=FOLDER`,
CIFAR-10 as JPEGs.

Unlike in the paper, complex bypass is best: 0.647 without and 0.727 with batch norm, against 0.596 and 0.639 for simple
bypass and 0.570 and 0.611 for none, with 45 % more parameters. Without batch norm, complex is better than none
(p < 0.001), and simple is not significantly better; with batch norm, complex is better than simple (p = 0.003), and
simple better than none with p = 0.036, not corrected for multiple tests. AdamW is the worse optimizer with batch norm:
the network without bypass, the same as in squeeze_ratio.py at 0.125, reaches 0.688 there with SGD. So part of the gain
from bypasses here may be due to easier training.
"""

import sys

from experiments.sweep import main
from experiments.trials import Sweep

POINTS = [
    {"model.use_batch_norm": norm, "model.bypass": bypass}
    for norm in (False, True)
    for bypass in ("none", "simple", "complex")
]
# With SGD, the loss of the network without bypass and batch norm was still at ln(10) after two epochs.
ADAMW = {"optimizer.name": "adamw", "optimizer.learning_rate": 0.003}
PUBLISHED = {
    "paper: ImageNet top-1": (57.5, 60.4, 58.8, "", "", ""),
    "paper: top-5": (80.3, 82.5, 82.0, "", "", ""),
}
SIZES = {"paper: MB": (4.8, 4.8, 7.7, "", "", "")}  # of the paper's network

SETTINGS = {
    "cifar10": Sweep("bypass", "configs/cifar10.py:study", POINTS, overrides=ADAMW, published=PUBLISHED),
    "imagenet": Sweep("bypass_imagenet", "configs/imagenet_v1_0.py", POINTS, published=PUBLISHED | SIZES),
}

if __name__ == "__main__":
    sys.exit(main(SETTINGS))
