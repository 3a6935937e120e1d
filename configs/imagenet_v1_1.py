"""SqueezeNet 1.1 on ImageNet by the authors' published solver, the same as version 1.0's byte for byte.

    python -m squeeze_jax.main --config configs/imagenet_v1_1.py --workdir runs/imagenet_v1_1

Expected: at least 57.5 % top-1 and 80.3 % top-5 (forresti/SqueezeNet, SqueezeNet_v1.1/README.md); the released weights
reach 58.4 % and 81.0 % (openvinotoolkit/open_model_zoo, squeezenet1.1). Not run here: it needs ImageNet and an
accelerator.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

BASE = pathlib.Path(__file__).with_name("imagenet_v1_0.py")


def get_config() -> ConfigDict:
    config = runpy.run_path(str(BASE))["get_config"]()
    config.model.name = "squeezenet_v1_1"
    config.model.head_padding = False
    return config
