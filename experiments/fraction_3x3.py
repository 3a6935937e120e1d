"""The fraction of 3x3 filters (SqueezeNet paper, section 5.3, Figure 3b): 1 to 99 % at a squeeze ratio of 0.5.

    python -m experiments.fraction_3x3 --workdir runs/fraction_3x3 --output experiments/results
    python -m experiments.fraction_3x3 --setting imagenet --workdir runs/fraction_3x3_imagenet --list

`digits` is for a CPU: scikit-learn's digits at 32 x 32 pixels, 10 epochs instead of 40, 3 seeds, 27 trials. `imagenet`
is the paper's setting, with the published solver.

Differences from the paper: the dataset, 10 epochs, and the network of configs/digits.py, which is SqueezeNet 1.1 with
batch norm and without the ReLU after conv10. Run here with two trials at a time, 15 minutes on 2 CPU cores, 0.5
core-hours (2026-11-22; experiments/results/fraction_3x3.csv, .md, .png).

As in the paper, 1 % is lowest, for each seed (0.67 to 0.90), but no difference from it is significant in a paired test
(p = 0.09 to 0.15). From 12.5 % on, the fractions cannot be distinguished with 3 seeds and 300 test images, so the
result neither confirms nor contradicts the paper.
"""

import sys

from experiments.sweep import main
from experiments.trials import Sweep

SHARES = (0.01, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 0.99)
POINTS = [{"model.fraction_3x3": share} for share in SHARES]
SQUEEZE_RATIO = {"model.squeeze_ratio": 0.5}
# Unlabeled points in Figure 3b are read from its pixels, +- 0.3.
PUBLISHED = {
    "paper: ImageNet top-5": (
        *(76.3, "about 80.8", "about 84.2", "about 84.8", 85.3),
        *("about 85.7", "about 85.6", "about 85.6", 85.3),
    ),
}
SIZES = {
    "paper: parameters": (  # of the paper's network
        *("1,478,248", "1,929,832", "2,421,352", "2,912,872", "3,404,392"),
        *("3,895,912", "4,387,432", "4,878,952", "5,330,536"),
    ),
}

SETTINGS = {
    "digits": Sweep(
        "fraction_3x3",
        "configs/digits.py",
        POINTS,
        overrides={**SQUEEZE_RATIO, "train.duration": "10 epochs"},
        published=PUBLISHED,
    ),
    "imagenet": Sweep(
        "fraction_3x3_imagenet",
        "configs/imagenet_v1_0.py",
        POINTS,
        overrides=SQUEEZE_RATIO,
        metric="test_top5",
        published=SIZES | PUBLISHED,
    ),
}

if __name__ == "__main__":
    sys.exit(main(SETTINGS))
