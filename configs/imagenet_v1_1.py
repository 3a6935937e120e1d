"""SqueezeNet 1.1 on ImageNet, with the authors' published solver, which is identical to that of version 1.0.

    python -m squeeze_jax.main --config configs/imagenet_v1_1.py --workdir runs/imagenet_v1_1

Expected: at least 57.5 % top-1 and 80.3 % top-5 (forresti/SqueezeNet, SqueezeNet_v1.1/README.md); the released weights
reach 58.4 % and 81.0 % (openvinotoolkit/open_model_zoo, squeezenet1.1). Not run here, because it needs ImageNet and an
accelerator.
"""

from ml_collections import ConfigDict

from configs import imagenet_v1_0


def get_config() -> ConfigDict:
    config = imagenet_v1_0.get_config()
    config.model.name = "squeezenet_v1_1"
    config.model.head_padding = False
    return config
