"""SqueezeNet 1.0 with bypass connections on ImageNet, with the authors' published solver.

    python -m squeeze_jax.main --config configs/imagenet_bypass.py:simple --workdir runs/imagenet_simple_bypass
    python -m squeeze_jax.main --config configs/imagenet_bypass.py:complex --workdir runs/imagenet_complex_bypass

Expected (the paper, Table 3): simple 60.4 % top-1 and 82.5 % top-5, complex 58.8 % and 82.0 %, no bypass 57.5 % and
80.3 %. Not run here, because it needs ImageNet and an accelerator. Images are flipped horizontally, as for the authors'
residual networks (songhan/SqueezeNet-Residual, trainval.prototxt).
"""

from ml_collections import ConfigDict

from configs import imagenet_v1_0
from squeeze_jax.errors import ConfigError


def get_config(bypass: str = "simple") -> ConfigDict:
    if bypass not in ("simple", "complex"):
        raise ConfigError(f"configs/imagenet_bypass.py has no bypass {bypass!r}; expected simple or complex.")
    config = imagenet_v1_0.get_config()
    config.model.name = f"squeezenet_v1_0_{bypass}_bypass"
    config.augment.flip = ("width",)
    return config
