"""SqueezeNodule-Net v2 in 3-D on candidates of whole CT scans, in the ten subsets of LUNA16: nodule or not.

    python -m squeeze_jax.data.prepare scans/luna --scans luna16/ --candidates candidates_V2.csv --size 32
    python -m squeeze_jax.main --config configs/luna_scans.py --workdir runs/luna --config.dataset.fold=0
    python -m squeeze_jax.main --config configs/luna_scans.py:generated --workdir runs/generated_scans

The subsets are folders subset0/ to subset9/ of scans; a patient is in one subset. Cubes of 32 mm are cut around the
candidates, and shifted by up to 3 mm in training. One candidate in five hundred of LUNA16's is a nodule, so the classes
are drawn equally often, and the loss is focal. `generated` is the same on the five subsets that
squeeze_jax.data.generate_scans writes, prepared as scans/generated.

Not run here on LUNA16, whose scans were not available.
"""

from ml_collections import ConfigDict

from squeeze_jax.config import base_config
from squeeze_jax.errors import ConfigError

SUBSETS = {"luna": 10, "generated": 5}


def get_config(scans: str = "luna") -> ConfigDict:
    if scans not in SUBSETS:
        raise ConfigError(f"configs/luna_scans.py has no scans {scans!r}; expected {' or '.join(SUBSETS)}.")
    config = base_config()
    config.dataset.name = f"scans/{scans}"
    config.dataset.folds = tuple(f"subset{i}" for i in range(SUBSETS[scans]))
    config.dataset.mean = (127.5,)
    config.dataset.std = (127.5,)
    config.augment.flip = ("depth", "height", "width")
    config.augment.quarter_turns = True
    config.augment.pad_and_crop = 3
    config.augment.scale = (0.9, 1.1)
    config.augment.intensity_shift = 10.0

    config.model.name = "squeezenodule_v2"
    config.model.stem = "3x3/2"
    config.model.use_batch_norm = True
    config.model.head_relu = False

    config.train.duration = "10 epochs"
    config.train.batch_size = 64
    config.train.sampling = "balanced"
    config.task.focal_gamma = 2.0
    config.task.auc = True
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.0
    config.schedule.name = "cosine"
    config.schedule.warmup = "0.5 epochs"
    config.evaluation.best_metric = "auc"
    return config
