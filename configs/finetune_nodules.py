"""Fine-tunes SqueezeNet 1.1 with ImageNet weights on lung nodules, in 2-D or inflated to 3-D.

    python -m squeeze_jax.main --config configs/finetune_nodules.py:luna --workdir runs/finetune_luna
    python -m squeeze_jax.main --config configs/finetune_nodules.py:lidc --workdir runs/finetune_lidc
    python -m squeeze_jax.main --config configs/finetune_nodules.py:3d --workdir runs/finetune_3d
    python -m squeeze_jax.main --config configs/finetune_nodules.py:luna,resnet18 --workdir runs/luna_resnet18 \
        --config.init_from=torchvision/resnet18

The datasets are those of configs/luna_candidates.py, lidc_malignancy.py and nodules_3d.py, prepared as they say. Slices
are enlarged to 96 x 96 as RGB on the device. For volumes, the kernels are repeated along the depth, and those of the
first layer added up over the colors (squeeze_jax/training/fine_tuning.py). The weights are squeezenet_v1.1.caffemodel
(docs/weights.md) or what `init_from` says; the network may follow after a comma.

Result (`luna`): AUC 0.979 +- 0.001, accuracy 0.947 +- 0.003 (3 seeds, 4 minutes per run, docs/results.md).
"""

from ml_collections import ConfigDict

from configs import lidc_malignancy, luna_candidates, nodules_3d
from configs.finetune_pneumonia import fine_tune
from squeeze_jax.errors import ConfigError
from squeeze_jax.models import registered

DATASETS = {"luna": luna_candidates, "lidc": lidc_malignancy, "3d": nodules_3d}
EPOCHS = {"luna": 6, "lidc": 5, "3d": 20}


def get_config(argument: str = "luna") -> ConfigDict:
    dataset, _, network = argument.partition(",")
    if dataset not in DATASETS:
        raise ConfigError(f"configs/finetune_nodules.py has no {dataset!r}; expected {', '.join(DATASETS)}.")
    config = DATASETS[dataset].get_config()
    fine_tune(config, network or "squeezenet_v1_1")
    config.init_from = "squeezenet_v1.1.caffemodel"
    if dataset == "3d":
        images = registered(network or "squeezenet_v1_1").input
        config.dataset.mean = (sum(images.mean) / len(images.mean),)
        config.dataset.std = (sum(images.std) / len(images.std),)
        config.crop.size = 0
        config.dataset.image_size = ()
        config.train.batch_size = 16
    else:
        config.dataset.channels = 3
        config.dataset.image_size = (96, 96)
    config.train.duration = f"{EPOCHS[dataset]} epochs"
    return config
