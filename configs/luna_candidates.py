"""SqueezeNodule-Net v2 on candidates of LUNA16, cut to 50 x 50 pixels: lung nodule or not.

    python -m squeeze_jax.data.prepare luna16_candidates_50x50.zip
    python -m squeeze_jax.main --config configs/luna_candidates.py --workdir runs/luna_candidates

The zip has folders split/class/ of 8-bit images, -1000 to 400 Hounsfield units, made from the candidates that
swethasubramanian/LungCancerDetection published: 5,187 for training, 1,297 for validation and 1,622 for the test, one in
six of them a nodule. It does not name patients, so one may be in two splits. Images are cut to 48 x 48, which also
shifts them; a few at the border of a scan are smaller than 50 x 50 and are enlarged.

Result: AUC 0.976 +- 0.002, accuracy 0.943 +- 0.001; SqueezeNet 0.969 +- 0.005, 0.939 +- 0.002 (3 seeds, 8 minutes per
run, docs/results.md). SqueezeNodule-Net's article reports an accuracy of 94.3 % for v2 on other cuts of CT scans.
"""

from ml_collections import ConfigDict

from squeeze_jax.config import base_config


def get_config() -> ConfigDict:
    config = base_config()
    config.dataset.name = "luna16_candidates_50x50"
    config.dataset.channels = 1
    config.dataset.mean = (127.5,)
    config.dataset.std = (127.5,)
    config.crop.size = 48
    config.crop.resize = 50
    config.crop.train = "random"
    config.augment.flip = ("height", "width")
    config.augment.quarter_turns = True

    config.model.name = "squeezenodule_v2"
    config.model.stem = "3x3/2"
    config.model.use_batch_norm = True
    config.model.head_relu = False

    config.train.duration = "20 epochs"
    config.train.batch_size = 128
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.0
    config.schedule.name = "cosine"
    config.schedule.warmup = "1 epoch"
    config.task.auc = True
    config.evaluation.best_metric = "auc"
    config.run.log_every = "1 epoch"
    return config
