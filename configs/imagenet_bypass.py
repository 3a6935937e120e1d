"""SqueezeNet 1.0 with bypasses on ImageNet, by the authors' published solver.

    python -m squeeze_jax.main --config configs/imagenet_bypass.py:simple --workdir runs/imagenet_simple_bypass
    python -m squeeze_jax.main --config configs/imagenet_bypass.py:complex --workdir runs/imagenet_complex_bypass

Expected (the paper, Table 3): simple 60.4 % top-1 and 82.5 % top-5, complex 58.8 % and 82.0 %; without one 57.5 % and
80.3 %. Not run here: it needs ImageNet and an accelerator. The authors' residual networks flip images left and right
(songhan/SqueezeNet-Residual, trainval.prototxt), so this does as well.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

from squeeze_jax.config import ConfigError

BASE = pathlib.Path(__file__).with_name("imagenet_v1_0.py")


def get_config(bypass: str = "simple") -> ConfigDict:
    if bypass not in ("simple", "complex"):
        raise ConfigError(f"configs/imagenet_bypass.py has the bypasses simple and complex, not {bypass!r}.")
    config = runpy.run_path(str(BASE))["get_config"]()
    config.model.name = f"squeezenet_v1_0_{bypass}_bypass"
    config.augment.flip = ("width",)
    return config
