"""EfficientNet-B0 (Tan and Le 2019, arXiv 1905.11946), as in torchvision."""

from flax import linen as nn

from squeeze_jax.errors import ModelError
from squeeze_jax.models.inverted_residual import InvertedResidualNet


class EfficientNetB0(InvertedResidualNet):
    """EfficientNet-B0 (Table 1 of the paper), in 2-D and 3-D.

    Attributes and errors are those of `PooledConvNet`, and:

    Attributes:
      stochastic_depth: the drop rate that the blocks approach linearly with depth, see `InvertedResidual`.
    """

    activation = staticmethod(nn.silu)
    squeeze_excite = True
    table = (
        (1, 3, 16, 1, 1),
        (6, 3, 24, 2, 2),
        (6, 5, 40, 2, 2),
        (6, 3, 80, 3, 2),
        (6, 5, 112, 3, 1),
        (6, 5, 192, 4, 2),
        (6, 3, 320, 1, 1),
    )

    stochastic_depth: float = 0.2

    def __post_init__(self):
        if not 0 <= self.stochastic_depth < 1:
            raise ModelError(f"stochastic_depth={self.stochastic_depth}; expected 0 <= rate < 1.")
        super().__post_init__()

    def _drop_rate(self, share: float) -> float:
        return self.stochastic_depth * share
