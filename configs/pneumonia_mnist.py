"""SqueezeNet 1.1 on PneumoniaMNIST (28 x 28 chest X-rays, normal or pneumonia), based on MedMNIST's protocol.

    python -m squeeze_jax.main --config configs/pneumonia_mnist.py --workdir runs/pneumonia
    python -m squeeze_jax.main --config configs/pneumonia_mnist.py:early --workdir runs/pneumonia_early

The protocol is 100 epochs of Adam with a learning rate of 1e-3 that is divided by 10 after 50 % and 75 % of the epochs;
here it is shortened to 50 epochs. Added: a stem for small images, batch norm, random crops with a border of 2 pixels,
and balanced class weights. `early` is an earlier release of the dataset with 3,882 training images instead of 4,708
(squeeze_jax/data/builders/medmnist.py).

Result (`early`, 1 seed, docs/results.md): test AUC 0.946, accuracy 0.865. MedMNIST's published results on the official
release range from AUC 0.942, accuracy 0.854 to AUC 0.991, accuracy 0.946.
"""

from ml_collections import ConfigDict

from squeeze_jax.config import base_config
from squeeze_jax.errors import ConfigError


def get_config(release: str = "official") -> ConfigDict:
    names = {"official": "medmnist/pneumoniamnist", "early": "medmnist/pneumoniamnist_early"}
    if release not in names:
        raise ConfigError(f"configs/pneumonia_mnist.py has no release {release!r}; expected {' or '.join(names)}.")
    config = base_config()
    config.dataset.name = names[release]
    config.dataset.mean = (127.5,)
    config.dataset.std = (127.5,)

    config.model.name = "squeezenet_v1_1"
    config.model.stem = "3x3/1"
    config.model.use_batch_norm = True
    config.model.head_relu = False

    config.augment.pad_and_crop = 2
    config.train.duration = "50 epochs"
    config.train.batch_size = 128
    config.task.class_weights = "balanced"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.0
    config.schedule.name = "step"
    config.task.auc = True
    config.evaluation.best_metric = "auc"
    config.run.log_every = "1 epoch"
    config.run.checkpoint_every = "10 epochs"
    return config
