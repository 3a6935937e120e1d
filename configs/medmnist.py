"""SqueezeNet 1.1 (2-D) or SqueezeNodule-Net v2 (3-D) on any MedMNIST dataset, with MedMNIST's protocol.

    python -m squeeze_jax.main --config configs/medmnist.py:chestmnist --workdir runs/chest
    python -m squeeze_jax.main --config configs/medmnist.py:retinamnist --workdir runs/retina
    python -m squeeze_jax.main --config configs/medmnist.py:organmnist3d_64 --workdir runs/organ

ChestMNIST has several labels per image: binary cross entropy, and the mean AUC over the labels. RetinaMNIST has ordered
grades: ordinal regression. The others have one class per image. The protocol is that of MedMNIST/experiments, see
configs/adrenal_mnist3d.py. Sides of 64 pixels and more have a stem with stride 2.

Not run here, because the files were not available; MedMNIST's published results are at medmnist.com.
"""

from ml_collections import ConfigDict

from configs import adrenal_mnist3d
from squeeze_jax.data.builders.medmnist import MULTI_LABEL, ORDINAL, MedMNIST
from squeeze_jax.errors import ConfigError


def get_config(name: str = "retinamnist") -> ConfigDict:
    if name not in MedMNIST.builder_configs:
        raise ConfigError(f"configs/medmnist.py has no {name!r}; expected a dataset such as pathmnist or pathmnist_64.")
    dataset = MedMNIST.builder_configs[name]
    config = adrenal_mnist3d.get_config()
    config.dataset.name = f"medmnist/{name}"
    config.dataset.mean = (127.5,)
    config.dataset.std = (127.5,)
    config.augment.intensity = ()
    if dataset.entry.spatial_axes == 2:
        config.model.name = "squeezenet_v1_1"
        config.model.stem = "3x3/1" if dataset.size == 28 else "3x3/2"
        config.train.batch_size = 128
    if dataset.entry_name in MULTI_LABEL:
        config.task.labels = "multilabel"
    elif dataset.entry_name in ORDINAL:
        config.task.labels = "ordinal"
    return config
