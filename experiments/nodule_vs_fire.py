"""SqueezeNet compared with SqueezeNodule-Net v1 and v2 (Tsivgoulis et al. 2022), in 2-D and 3-D.

    python -m experiments.nodule_vs_fire --setting luna --workdir runs/luna --output experiments/results
    python -m experiments.nodule_vs_fire --workdir runs/nodule_2d --output experiments/results
    python -m experiments.nodule_vs_fire --setting 3d --workdir runs/nodule_3d --output experiments/results

`luna` is on CT nodules: candidates of LUNA16, cut to 50 x 50 (configs/luna_candidates.py). The others use MedMNIST:
X-rays in 2-D (PneumoniaMNIST, early release) and shapes of adrenal glands in 3-D (AdrenalMNIST3D), 20 epochs instead of
MedMNIST's 100. All have 20 epochs, 3 seeds and 9 trials.

Run here on 2 CPU cores with two trials at a time (`luna`: 2026-11-28, in 46 minutes, of which other work took more than
10; 2026-11-22: experiments/results/nodule_vs_fire_2d.csv,
nodule_vs_fire_3d.csv, .md, .png): 2-D in 11 minutes, 0.4 core-hours; 3-D, estimated at 2 core-hours, in 51 minutes, for
18 of which the cores were shared with other work.

On CT nodules v2 has the highest test AUC, 0.9755, against 0.9685 of SqueezeNet and 0.9630 of v1; with three seeds no
difference is significant (p = 0.113 and 0.410). On MedMNIST, v2 and v1 cannot be distinguished, in 2-D (test AUC 0.948
and 0.952, paired test p = 0.520) or in 3-D (0.820 and 0.833, p = 0.458). In 2-D SqueezeNet reaches 0.960, better than
v2 for each seed (p = 0.041, not corrected for three comparisons; v1 p = 0.164); in 3-D its 0.804 is the lowest mean
(p = 0.330 and 0.497).
"""

import sys

from experiments.sweep import main
from experiments.trials import Sweep

POINTS = [{"model.name": name} for name in ("squeezenet_v1_0", "squeezenodule_v1", "squeezenodule_v2")]
SHORT = {"train.duration": "20 epochs", "model.stem": "3x3/2"}
# Measured on the paper's own CT nodules, in 2-D.
PUBLISHED = {"paper: accuracy, as NikolasMarkou/dl_techniques quotes it": ("", 93.2, 94.3)}

SETTINGS = {
    "2d": Sweep("nodule_vs_fire_2d", "configs/pneumonia_mnist.py:early", POINTS, overrides=SHORT, published=PUBLISHED),
    "3d": Sweep("nodule_vs_fire_3d", "configs/adrenal_mnist3d.py", POINTS, overrides=SHORT),
    "luna": Sweep("nodule_vs_fire_luna", "configs/luna_candidates.py", POINTS, published=PUBLISHED),
}

if __name__ == "__main__":
    sys.exit(main(SETTINGS))
