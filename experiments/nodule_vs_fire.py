"""SqueezeNet against SqueezeNodule-Net v1 and v2 (Tsivgoulis et al. 2022), in 2-D and in 3-D.

    python -m experiments.nodule_vs_fire --workdir runs/nodule_2d --output experiments/results
    python -m experiments.nodule_vs_fire --setting 3d --workdir runs/nodule_3d --output experiments/results

The paper's CT nodules are not public, so this is on MedMNIST: X-rays in 2-D (PneumoniaMNIST, early release), shapes of
adrenal glands in 3-D (AdrenalMNIST3D), 20 epochs instead of MedMNIST's 100, 3 seeds, 9 trials each.

2-D was run here: 11 minutes on 2 CPU cores, two trials at a time (2026-11-22; experiments/results/
nodule_vs_fire_2d.csv, .md, .png). About 2 core-hours in 3-D, by estimate; not run here yet.

In 2-D neither for nor against the paper: v2 and v1 cannot be told apart (test AUC 0.948 and 0.952, p = 0.520). Both lie
below SqueezeNet's 0.960, v2 on each seed (paired test p = 0.041, not corrected for three comparisons; v1 p = 0.164).
"""

import sys

from experiments.sweep import main
from experiments.trials import Sweep

POINTS = [{"model.name": name} for name in ("squeezenet_v1_0", "squeezenodule_v1", "squeezenodule_v2")]
SHORT = {"train.duration": "20 epochs", "model.stem": "3x3/2"}
# On the paper's own CT nodules, in 2-D.
PUBLISHED = {"paper: accuracy, as NikolasMarkou/dl_techniques quotes it": ("", 93.2, 94.3)}

SETTINGS = {
    "2d": Sweep("nodule_vs_fire_2d", "configs/pneumonia_mnist.py:early", POINTS, overrides=SHORT, published=PUBLISHED),
    "3d": Sweep("nodule_vs_fire_3d", "configs/adrenal_mnist3d.py", POINTS, overrides=SHORT),
}

if __name__ == "__main__":
    sys.exit(main(SETTINGS))
