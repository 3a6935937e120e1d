"""SqueezeNodule-Net v2 in 3-D on NoduleMNIST3D (28 x 28 x 28 CT crops of lung nodules, benign or malignant).

    python -m squeeze_jax.main --config configs/nodule_mnist3d.py --workdir runs/nodule

The protocol of configs/adrenal_mnist3d.py without its factor on the voxels, which is for shapes. A nodule has no up or
down, so volumes are mirrored and turned; few are malignant, so the loss is balanced.

Expected: MedMNIST's own rows lie between AUC 0.835, accuracy 0.834 and AUC 0.914, accuracy 0.874 (published before the
file was corrected in MedMNIST 2.1.0). Not run here: the dataset was not at hand.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

BASE = pathlib.Path(__file__).with_name("adrenal_mnist3d.py")


def get_config() -> ConfigDict:
    config = runpy.run_path(str(BASE))["get_config"]()
    config.dataset.name = "medmnist/nodulemnist3d"
    config.augment.intensity = ()
    config.augment.flip = ("depth", "height", "width")
    config.augment.quarter_turns = True
    config.train.class_weights = "balanced"
    config.train.patience = "30 epochs"
    return config
