"""SqueezeNet 1.1 on random images, to measure the speed of a training step alone, without files or decoding.

    python -m squeeze_jax.main --config configs/fake_benchmark.py --workdir runs/fake
    python -m squeeze_jax.main --config configs/fake_benchmark.py:32x32x3 --workdir runs/fake_32

The images per second in the log exclude compilation. The loss stays at ln(1000), because there is nothing to learn.
"""

from ml_collections import ConfigDict

from squeeze_jax.config import base_config


def get_config(image_shape: str = "224x224x3") -> ConfigDict:
    config = base_config()
    config.dataset.name = f"fake/{image_shape}/1000"
    config.dataset.validation_split = ""
    config.dataset.test_split = ""
    config.model.name = "squeezenet_v1_1"
    config.train.duration = "50 steps"
    config.train.batch_size = 32
    config.run.log_every = "10 steps"
    return config
