"""SqueezeNodule-Net v2 in 3-D on NoduleMNIST3D (28 x 28 x 28 CT crops of lung nodules, benign or malignant).

    python -m squeeze_jax.main --config configs/nodule_mnist3d.py --workdir runs/nodule

The protocol is that of configs/adrenal_mnist3d.py without the factor on the voxels, which suits only shapes. Nodules
have no orientation, so volumes are mirrored and rotated; few nodules are malignant, so the loss is balanced.

Expected: MedMNIST's published results range from AUC 0.835, accuracy 0.834 to AUC 0.914, accuracy 0.874 (before the
file was corrected in MedMNIST 2.1.0). Not run here, because the dataset was not available.
"""

from ml_collections import ConfigDict

from configs import adrenal_mnist3d


def get_config() -> ConfigDict:
    config = adrenal_mnist3d.get_config()
    config.dataset.name = "medmnist/nodulemnist3d"
    config.augment.intensity = ()
    config.augment.flip = ("depth", "height", "width")
    config.augment.quarter_turns = True
    config.task.class_weights = "balanced"
    config.train.patience = "30 epochs"
    return config
