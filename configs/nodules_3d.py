"""SqueezeNodule-Net v2 in 3-D on 134 lung nodules with radiologists' ratings, in five folds by patient.

    python -m squeeze_jax.data.prepare pulmonary_nodules/malignancy --file nodules_51_3d.npz
    python -m squeeze_jax.main --config configs/nodules_3d.py --workdir runs/nodules --config.dataset.fold=0
    python -m squeeze_jax.main --config configs/nodules_3d.py:rating --workdir runs/nodules_rating

Malignancy above 3 against below 3, or with `rating` all five ratings by ordinal regression (prepare
pulmonary_nodules/malignancy_rating for it). No published figure is for these folds.

Result: malignancy AUC 0.623, 95 % interval 0.500 to 0.745; texture (config.dataset.name=pulmonary_nodules/texture)
0.679, 0.566 to 0.780 (1 seed, docs/results.md). `rating` was not run.
"""

from ml_collections import ConfigDict

from squeeze_jax.config import base_config
from squeeze_jax.errors import ConfigError


def get_config(target: str = "class") -> ConfigDict:
    names = {"class": "pulmonary_nodules/malignancy", "rating": "pulmonary_nodules/malignancy_rating"}
    if target not in names:
        raise ConfigError(f"configs/nodules_3d.py has no target {target!r}; expected {' or '.join(names)}.")
    config = base_config()
    config.dataset.name = names[target]
    config.dataset.folds = 5
    config.dataset.image_size = (32, 32, 32)
    config.dataset.mean = (127.5,)
    config.dataset.std = (127.5,)
    config.augment.flip = ("depth", "height", "width")
    config.augment.quarter_turns = True
    config.augment.pad_and_crop = 4
    config.augment.scale = (0.9, 1.1)
    config.augment.intensity_shift = 10.0

    config.model.name = "squeezenodule_v2"
    config.model.stem = "3x3/2"
    config.model.use_batch_norm = True
    config.model.head_relu = False

    config.train.duration = "30 epochs"
    config.train.batch_size = 16
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.0
    config.schedule.name = "cosine"
    config.schedule.warmup = "2 epochs"
    config.evaluation.batch_size = 50
    config.evaluation.best_metric = "loss"
    if target == "class":
        config.train.sampling = "balanced"
        config.task.auc = True
    else:
        config.task.labels = "ordinal"
    config.run.log_every = "1 epoch"
    config.run.evaluate_every = "2 epochs"
    config.run.checkpoint_every = "10 epochs"
    return config
