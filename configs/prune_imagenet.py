"""SqueezeNet 1.0 pruned to the densities of the paper's Table 1, from the published weights.

    python -m squeeze_jax.main --config configs/prune_imagenet.py --workdir runs/pruned \
        --config.init_from=squeezenet_v1.0.caffemodel
    python -m squeeze_jax.main --config configs/prune_imagenet.py:shared --workdir runs/shared \
        --config.init_from=runs/pruned

421,098 of 1,248,424 parameters are left (paper, Table 1), 57.5 % top-1 and 80.3 % top-5 as before (Table 2). The second
command trains the centroids of 6-bit weights. Not run here: it needs ImageNet and an accelerator. Neither the schedule
nor the learning rates of the paper were published; these are a hundredth of the solver's rate, a cubic schedule over
the first half, and AdamW for the centroids.
"""

from ml_collections import ConfigDict

from configs import imagenet_v1_0
from squeeze_jax.errors import ConfigError
from squeeze_jax.training.pruning import SQUEEZENET_TABLE_1


def get_config(stage: str = "pruned") -> ConfigDict:
    config = imagenet_v1_0.get_config()
    config.schedule.warmup = "0 steps"
    config.run.evaluate_every = "1 epoch"
    if stage == "pruned":
        config.train.duration = "20 epochs"
        config.optimizer.learning_rate /= 100
        config.pruning.layer_densities = SQUEEZENET_TABLE_1
        config.pruning.end = "10 epochs"
        config.pruning.every = "0.5 epochs"
    elif stage == "shared":
        config.train.duration = "5 epochs"
        config.optimizer.name = "adamw"
        config.optimizer.learning_rate = 1e-4
        config.sharing.bits = 6
    else:
        raise ConfigError(f"configs/prune_imagenet.py has no stage {stage!r}; expected pruned or shared.")
    return config
