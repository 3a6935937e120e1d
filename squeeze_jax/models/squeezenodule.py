"""SqueezeNodule-Net, 2-D and 3-D (Tsivgoulis, Papastergiou, Megalooikonomou 2022, doi 10.1016/j.mlwa.2022.100399)."""

from flax import linen as nn

from squeeze_jax.errors import ModelError
from squeeze_jax.models.fire import SimplifiedFire
from squeeze_jax.models.squeezenet import FireWidths, SqueezeNet


class SqueezeNoduleNet(SqueezeNet):
    """SqueezeNet 1.0 whose Fire modules have no 1x1 expand branch; the defaults are version 1.

    The widths are those of SqueezeNet's 3x3 branches (64 to 256), and the squeeze ratio is relative to them. The full
    text of the article was not available: the widths follow a public implementation (NikolasMarkou/dl_techniques), and
    agree with the parameter counts that the article gives relative to SqueezeNet, -15.8 % and +23 %, at 1 channel and
    2 classes.

    Attributes and errors are those of `SqueezeNet`; `fraction_3x3` must be 1.
    """

    base_filters: int = 64
    filter_increment: int = 64
    squeeze_ratio: float | tuple[float, ...] = 0.25
    fraction_3x3: float = 1.0

    def __post_init__(self):
        if self.fraction_3x3 != 1:
            raise ModelError(
                f"fraction_3x3={self.fraction_3x3}; expected 1.0, because SqueezeNodule-Net has only 3x3 expand "
                f"filters. Use a squeezenet_* model to vary the fraction."
            )
        super().__post_init__()

    def _has_branch(self, branch: str) -> bool:
        return branch != "expand1x1"

    def _fire(self, name: str, widths: FireWidths, bypass: str) -> nn.Module:
        return SimplifiedFire(
            widths.squeeze,
            widths.expand3x3,
            bypass=bypass,
            use_batch_norm=self.use_batch_norm,
            dtype=self.dtype,
            axis_name=self.axis_name,
            name=name,
        )
