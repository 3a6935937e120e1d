"""Fine-tunes SqueezeNet 1.0 with ImageNet weights on PneumoniaMNIST: gray X-rays as RGB, enlarged on the device.

    python -m squeeze_jax.main --config configs/finetune_pneumonia.py --workdir runs/finetune_pneumonia \
        --config.init_from=compressed_SqueezeNet.net
    python -m squeeze_jax.main --config configs/finetune_pneumonia.py:early --workdir runs/finetune_pneumonia_early \
        --config.init_from=compressed_SqueezeNet.net
    python -m squeeze_jax.main --config configs/finetune_pneumonia.py:early,resnet18 --workdir runs/resnet18 \
        --config.init_from=torchvision/resnet18

The weights can be any file or name that squeeze_jax.pretrained supports, by default the paper's compressed network; the
last layer is reinitialized. `early` is the earlier release of the dataset, see configs/pneumonia_mnist.py;
the network may follow after a comma.

Result (`early`, 3 seeds, 303 steps, docs/results.md): test AUC 0.962 +- 0.006, accuracy 0.811 +- 0.021; from scratch
AUC 0.942 +- 0.005, accuracy 0.812 +- 0.009. At a threshold that the validation images chose, the accuracy is 0.902 +-
0.013 (another run, AUC 0.964 +- 0.004). MedMNIST's ResNet-18 after 100 epochs: AUC 0.944, accuracy 0.854.
"""

from ml_collections import ConfigDict

from configs import pneumonia_mnist
from squeeze_jax.models import registered


def get_config(argument: str = "official") -> ConfigDict:
    release, _, network = argument.partition(",")
    config = pneumonia_mnist.get_config(release)
    config.augment.pad_and_crop = 0
    config.dataset.channels = 3
    config.dataset.image_size = (64, 64)
    fine_tune(config, network or "squeezenet_v1_0")
    config.train.duration = "5 epochs"
    config.task.class_weights = "none"
    config.run.log_every = "10 steps"
    return config


def fine_tune(config: ConfigDict, network: str) -> None:
    """Sets the network, the pixels of `init_from`, and a short training from there, with a new last layer."""
    config.init_new_head = True
    config.dataset.mean = config.dataset.std = None  # those of the weights
    config.model.name = network
    for option in ("stem", "bypass", "use_batch_norm", "head_relu"):
        config.model[option] = None  # those of the weights
    if "head_relu" in registered(network).overrides():
        config.model.head_relu = False  # some classes of a new head may never pass it
    config.train.batch_size = 64
    config.optimizer.learning_rate = 2e-4
    config.schedule.name = "cosine"
    config.schedule.warmup = "0.1 epochs"
    config.run.evaluate_every = "1 epoch"
