"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381), as in torchvision."""

from flax import linen as nn

from squeeze_jax.models.inverted_residual import InvertedResidualNet


class MobileNetV2(InvertedResidualNet):
    """MobileNetV2 with width 1 (Table 2 of the paper), in 2-D and 3-D. Attributes and errors: see `PooledConvNet`."""

    activation = staticmethod(nn.relu6)
    table = (
        (1, 3, 16, 1, 1),
        (6, 3, 24, 2, 2),
        (6, 3, 32, 3, 2),
        (6, 3, 64, 4, 2),
        (6, 3, 96, 3, 1),
        (6, 3, 160, 3, 2),
        (6, 3, 320, 1, 1),
    )
