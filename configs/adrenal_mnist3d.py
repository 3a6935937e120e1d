"""SqueezeNodule-Net v2 in 3-D on AdrenalMNIST3D (28 x 28 x 28 shapes, normal or hyperplasia), with MedMNIST's protocol.

    python -m squeeze_jax.main --config configs/adrenal_mnist3d.py --workdir runs/adrenal
    python -m squeeze_jax.main --config configs/adrenal_mnist3d.py:augmented --workdir runs/adrenal_augmented

The protocol: 100 epochs of Adam with a learning rate of 1e-3 that is divided by 10 after 50 % and 75 % of the epochs,
batches of 32, and the checkpoint with the best validation AUC. The voxels of a shape are multiplied by a random factor
in training and by 0.5 in evaluation (MedMNIST/experiments, --shape_transform). Added: batch norm and a 3x3/2 stem.

`augmented` is a recipe of our own: half the width, shifts, averaged weights, 50 epochs, and the last checkpoint.

Result (docs/results.md): AUC 0.840, accuracy 0.732 (1 seed); `augmented` 0.872 +- 0.016, 0.828 +- 0.010 (3 seeds).
MedMNIST's published results range from AUC 0.718, accuracy 0.705 to AUC 0.839, accuracy 0.802.
"""

from ml_collections import ConfigDict

from squeeze_jax.config import base_config
from squeeze_jax.errors import ConfigError


def get_config(recipe: str = "protocol") -> ConfigDict:
    if recipe not in ("protocol", "augmented"):
        raise ConfigError(f"configs/adrenal_mnist3d.py has no recipe {recipe!r}; expected protocol or augmented.")
    config = base_config()
    config.dataset.name = "medmnist/adrenalmnist3d"
    config.dataset.mean = (0.0,)
    config.dataset.std = (255.0,)
    config.augment.intensity = (0.0, 1.0)

    config.model.name = "squeezenodule_v2"
    config.model.stem = "3x3/2"
    config.model.use_batch_norm = True
    config.model.head_relu = False

    config.train.duration = "100 epochs"
    config.train.batch_size = 32
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.0
    config.schedule.name = "step"
    config.evaluation.batch_size = 100
    config.task.auc = True
    config.evaluation.best_metric = "auc"
    config.run.log_every = "1 epoch"
    config.run.checkpoint_every = "10 epochs"
    if recipe == "augmented":
        config.augment.intensity = ()
        config.augment.pad_and_crop = 2
        config.model.stem_filters = 48
        config.model.base_filters = 32
        config.model.filter_increment = 32
        config.train.duration = "50 epochs"
        config.train.ema_decay = 0.995
        config.optimizer.learning_rate = 3e-3
        config.optimizer.weight_decay = 0.01
        config.schedule.name = "cosine"
        config.schedule.warmup = "2 epochs"
        config.run.evaluate_every = "50 epochs"  # 98 shapes choose badly: the last weights are kept
    return config
