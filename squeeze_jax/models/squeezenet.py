"""SqueezeNet and its design space (Iandola et al. 2016, arXiv 1602.07360)."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import linen as nn

from squeeze_jax.errors import ModelError
from squeeze_jax.models import layers
from squeeze_jax.models.convnet import ConvNet, Stage
from squeeze_jax.models.fire import Fire, check_widths

NUM_FIRE_MODULES = 8
FIRST_FIRE = 2  # the paper counts conv1 as layer 1
STEMS = {"7x7/2": (7, 2), "3x3/2": (3, 2), "3x3/1": (3, 1)}  # kernel, stride
BYPASSES = ("none", "simple", "complex")
POOLINGS = ("ceil", "floor")


@dataclasses.dataclass(frozen=True)
class FireWidths:
    """Filter counts of one Fire module; `expand1x1` is 0 in a simplified one."""

    squeeze: int
    expand1x1: int
    expand3x3: int


class SqueezeNet(ConvNet):
    """SqueezeNet, with every design choice of the paper's section 5 as an attribute; the defaults are version 1.0.

    Fire module i (counted from 0) has e = base_filters + filter_increment * (i // increment_every) expand filters, of
    which round(fraction_3x3 * e) are 3x3, and round(squeeze_ratio * e) squeeze filters.

    Attributes:
      num_classes: output channels of conv10; 0 leaves conv10 out, and the output is the mean of each channel of
        the last feature map.
      dropout_rate: dropout rate after fire9.
      bypass: "none", "simple" (identity around every module with equal input and output channels: fire3, 5, 7 and 9 in
        the paper's network) or "complex" (also 1x1 convolutions around the other modules).
      base_filters: base_e of the paper.
      filter_increment: incr_e of the paper.
      increment_every: freq of the paper.
      squeeze_ratio: SR of the paper; one number, or one per Fire module.
      fraction_3x3: pct_3x3 of the paper, 0 to 1.
      stem: "7x7/2" (1.0), "3x3/2" (1.1) or "3x3/1" for small images. Strided stems have no padding, as in Caffe.
      stem_filters: output channels of conv1.
      pool_after: the layers (1 is conv1, k is firek) that are followed by 3x3 max pooling with stride 2.
      pooling: rounding of the pooled size: "ceil" (Caffe, torchvision) or "floor".
      head_padding: pad conv10 by 1, as Caffe's 1.0 does, so that 15 x 15 cells are averaged at 227 pixels.
      head_relu: apply ReLU after conv10, as in the released networks.
      use_batch_norm: apply batch normalization after every convolution except conv10.
      dtype: dtype of the computation: "float32", "bfloat16" (parameters stay float32) or "float64".
      axis_name: the mapped axis that batch statistics are averaged over (pmap only).

    Raises:
      ModelError: an attribute is invalid (at construction), or an input is invalid (at the call).
    """

    head = "conv10"
    stems = STEMS
    too_small = "use the stem '3x3/1' or fewer entries in pool_after"

    num_classes: int = 1000
    dropout_rate: float = 0.5
    bypass: str = "none"
    base_filters: int = 128
    filter_increment: int = 128
    increment_every: int = 2
    squeeze_ratio: float | tuple[float, ...] = 0.125
    fraction_3x3: float = 0.5
    stem: str = "7x7/2"
    stem_filters: int = 96
    pool_after: tuple[int, ...] = (1, 4, 8)
    pooling: str = "ceil"
    head_padding: bool = False
    head_relu: bool = True
    use_batch_norm: bool = False
    dtype: str = "float32"
    axis_name: str | None = None

    def __post_init__(self):
        self._check_choices(bypass=BYPASSES, pooling=POOLINGS)
        for name in ("stem_filters", "base_filters", "increment_every"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name}={getattr(self, name)}; expected at least 1.")
        last = FIRST_FIRE + NUM_FIRE_MODULES - 1
        if any(layer not in range(1, last + 1) for layer in self.pool_after):
            raise ModelError(f"pool_after={self.pool_after}; expected layers from 1 (conv1) to {last} (fire{last}).")
        for i, widths in enumerate(self.fire_widths()):
            try:
                check_widths(**{k: v for k, v in dataclasses.asdict(widths).items() if self._has_branch(k)})
            except ModelError as error:
                raise ModelError(
                    f"fire{i + FIRST_FIRE} (base_filters={self.base_filters}, squeeze_ratio={self.squeeze_ratio}, "
                    f"fraction_3x3={self.fraction_3x3}): {error}"
                ) from None
        super().__post_init__()

    def _has_branch(self, branch: str) -> bool:
        return True

    def fire_widths(self) -> list[FireWidths]:
        """Returns the widths of fire2 to fire9, by the formulas in section 5.1 of the paper.

        Raises:
          ModelError: `squeeze_ratio` is a tuple of the wrong length.
        """
        ratios = self.squeeze_ratio
        if not isinstance(ratios, tuple):
            ratios = (ratios,) * NUM_FIRE_MODULES
        if len(ratios) != NUM_FIRE_MODULES:
            raise ModelError(f"squeeze_ratio has {len(ratios)} entries; expected one number or {NUM_FIRE_MODULES}.")
        widths = []
        for i, ratio in enumerate(ratios):
            expand = self.base_filters + self.filter_increment * (i // self.increment_every)
            expand3x3 = round(self.fraction_3x3 * expand)
            widths.append(FireWidths(round(ratio * expand), expand - expand3x3, expand3x3))
        return widths

    def _fire(self, name: str, widths: FireWidths, bypass: str) -> nn.Module:
        return Fire(
            widths.squeeze,
            widths.expand1x1,
            widths.expand3x3,
            bypass=bypass,
            use_batch_norm=self.use_batch_norm,
            dtype=self.dtype,
            axis_name=self.axis_name,
            name=name,
        )

    def _fire_bypass(self, in_channels: int, widths: FireWidths) -> str:
        if self.bypass == "none":
            return "none"
        if in_channels == widths.expand1x1 + widths.expand3x3:
            return "identity"
        return "conv" if self.bypass == "complex" else "none"

    @property
    def head_margin(self) -> int:
        """Number of cells at each border of the head's feature map that are outside the image."""
        return int(self.head_padding)

    @nn.compact
    def _feature_maps(self, images: jax.Array, train: bool, positions: jax.Array | None) -> dict[str, jax.Array]:
        self._check_images(images)
        maps = {}

        def pool_if_asked(x: jax.Array, layer: int) -> jax.Array:
            if layer in self.pool_after:
                x = maps[f"pool{layer}"] = layers.MaxPool(self.pooling, name=f"pool{layer}")(x)
            return x

        kernel, stride = STEMS[self.stem]
        block = layers.ConvBlock(self.use_batch_norm, self.dtype, self.axis_name, train)
        padding = "VALID" if stride > 1 else "SAME"
        x = images.astype(self.dtype)
        x = maps["conv1"] = block(x, self.stem_filters, kernel, strides=stride, padding=padding, name="conv1")
        x = pool_if_asked(x, 1)
        for layer, widths in enumerate(self.fire_widths(), start=FIRST_FIRE):
            fire = self._fire(f"fire{layer}", widths, self._fire_bypass(x.shape[-1], widths))
            x = maps[f"fire{layer}"] = fire(x, train=train)
            x = pool_if_asked(x, layer)
        if self.num_classes:
            x = layers.Dropout(self.dropout_rate, name="dropout")(x, train=train, positions=positions)
            maps[self.head] = layers.conv(
                self.num_classes,
                (1,) * (images.ndim - 2),
                padding=1 if self.head_padding else "SAME",
                kernel_init=layers.HEAD_INIT,
                dtype=self.dtype,
                name=self.head,
            )(x)
        return maps

    def __call__(self, images: jax.Array, *, train: bool = False, positions: jax.Array | None = None) -> jax.Array:
        """Computes the logits of a batch.

        Args:
          images: float (batch, *spatial, channels), normalized, with 2 or 3 spatial axes.
          train: apply dropout (needs the `dropout` RNG) and normalize by the statistics of this batch.
          positions: int (batch,), the position of each example in the global batch, which keys its dropout mask;
            defaults to 0, 1, 2, ...

        Returns:
          Logits (batch, num_classes), float32 (float64 for a float64 network). With `num_classes=0`, the pooled
          features (batch, channels of the last feature map).

        Raises:
          ModelError: the shape of `images` is invalid, or does not fit the parameters.
        """
        *_, x = self._feature_maps(images, train, positions).values()
        x = x.astype(layers.parameter_dtype(self.dtype))
        if self.num_classes and self.head_relu:
            x = nn.relu(x)
        return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))

    def features(self, images: jax.Array) -> dict[str, jax.Array]:
        """Returns the named feature maps, each (batch, *spatial, channels), in order of computation, without dropout.

        Use `model.apply(variables, images, method="features")`. "fireN" includes the bypass sum but not the pooling
        after it, which is "poolN"; "conv10" is before its ReLU.

        Args:
          images: as in `__call__`.
        """
        return self._feature_maps(images, False, None)

    def stages(self) -> Iterator[Stage]:
        kernel, stride = STEMS[self.stem]
        yield Stage("conv1", kernel, stride, padding=0 if stride > 1 else kernel // 2)
        for layer in range(1, FIRST_FIRE + NUM_FIRE_MODULES):
            if layer >= FIRST_FIRE:
                yield Stage(f"fire{layer}", 3, padding=1)
            if layer in self.pool_after:
                yield Stage(f"pool{layer}", layers.POOL_WINDOW, layers.POOL_STRIDE, rounding=self.pooling)
