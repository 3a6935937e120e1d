"""What all networks share: checks of attributes and images, geometry, and the head of those that average at the end."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from squeeze_jax.errors import ModelError
from squeeze_jax.models import layers

DTYPES = ("float32", "bfloat16", "float64")
AXIS_NAMES = {2: ("height", "width"), 3: ("depth", "height", "width")}
LARGEST_MINIMUM = 8192  # limit of the search for the smallest valid input
SMALL_STEM = "3x3/1"  # the stem for small images, of every network


@dataclasses.dataclass(frozen=True)
class Stage:
    """The effect of one stage on the length of a spatial axis.

    Attributes:
      name: the name of the stage.
      kernel: the largest kernel in the stage.
      stride: its stride.
      padding: the padding at each side.
      rounding: "floor", or "ceil" for a last window that is partly outside.
    """

    name: str
    kernel: int
    stride: int = 1
    padding: int = 0
    rounding: str = "floor"

    def output_size(self, size: int) -> int:
        """Returns the length of an axis after this stage; less than 1 if the window does not fit."""
        span = size + 2 * self.padding - self.kernel
        return (-(-span // self.stride) if self.rounding == "ceil" else span // self.stride) + 1


class ConvNet(nn.Module):
    """The base of all networks; it has no attributes of its own.

    A network has the attributes `num_classes`, `dropout_rate`, `stem`, `dtype` and `axis_name`, calls its first
    convolution conv1, and yields its stages. Its class attributes say what is known of all its instances.

    Class attributes:
      head: the name of the last layer, whose channels are the classes.
      head_margin: number of cells at each border of the head's feature map that are outside the image.
      ranks: the numbers of spatial axes that the input may have.
      stems: kernel and stride of the first convolution, by the name of the stem.
      too_small: what to do about images that are too small.
    """

    head = "fc"
    head_margin = 0
    ranks = tuple(AXIS_NAMES)
    stems: ClassVar[Mapping[str, tuple[int, int]]] = {}
    too_small = f"use the stem {SMALL_STEM!r}"

    def __post_init__(self):
        self._check_choices(stem=tuple(self.stems), dtype=DTYPES)
        if self.num_classes < 0:
            raise ModelError(f"num_classes={self.num_classes}; expected at least 0.")
        if not 0 <= self.dropout_rate < 1:
            raise ModelError(f"dropout_rate={self.dropout_rate}; expected 0 <= rate < 1.")
        super().__post_init__()

    def _check_choices(self, **choices: tuple[str, ...]) -> None:
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ModelError(f"{name}={getattr(self, name)!r} is unknown; expected one of {', '.join(known)}.")

    def stages(self) -> Iterator[Stage]:
        """Yields, in order, the stages with a stride or a kernel larger than 1; of parallel paths, the widest."""
        raise NotImplementedError

    def collapses_at(self, size: int) -> str | None:
        """Returns the name of the first stage whose output would be empty for an axis of this length, or None."""
        for stage in self.stages():
            size = stage.output_size(size)
            if size < 1:
                return stage.name
        return None

    def minimum_input_size(self) -> int:
        """Returns the smallest valid length of a spatial axis, in pixels."""
        return next(size for size in range(1, LARGEST_MINIMUM) if self.collapses_at(size) is None)

    def receptive_field(self) -> int:
        """Returns the receptive field of one cell of the last feature map, in pixels along an axis."""
        field, jump = 1, 1
        for stage in self.stages():
            field += (stage.kernel - 1) * jump
            jump *= stage.stride
        return field

    def _check_images(self, images: jax.Array) -> None:
        rank = images.ndim - 2
        if rank not in self.ranks:
            shapes = (f"(batch, {', '.join(AXIS_NAMES[rank])}, channels)" for rank in self.ranks)
            raise ModelError(f"images have shape {images.shape}; expected {' or '.join(shapes)}.")
        for axis, (name, size) in enumerate(zip(AXIS_NAMES[rank], images.shape[1:-1], strict=True), start=1):
            stage = self.collapses_at(size)
            if stage is not None:
                advice = "" if self.stem == SMALL_STEM else f", or {self.too_small}"
                raise ModelError(
                    f"images have {size} pixels along {name} (axis {axis}), which collapses to nothing at {stage}; "
                    f"the smallest legal value is {self.minimum_input_size()}. Enlarge the images{advice}."
                )
        if self.has_variable("params", "conv1"):
            kernel = self.get_variable("params", "conv1")["kernel"]
            if kernel.ndim - 2 != rank:
                raise ModelError(
                    f"images have {rank} spatial axes (shape {images.shape}), but the parameters are of a "
                    f"{kernel.ndim - 2}-D network; conv1 has a kernel of shape {kernel.shape}."
                )
            if kernel.shape[-2] != images.shape[-1]:
                raise ModelError(
                    f"images have {images.shape[-1]} channels (last axis of {images.shape}), but conv1 expects "
                    f"{kernel.shape[-2]}; channels come last."
                )


class PooledConvNet(ConvNet):
    """A network with batch normalization whose head is a dense layer of the mean of the last feature map.

    Subclasses compute the feature maps; the attributes are theirs.

    Attributes:
      num_classes: outputs of the last layer; with 0 there is none, and the output is the mean of each channel of the
        last feature map.
      dropout_rate: dropout rate before the last layer.
      stem: kernel and stride of conv1; "3x3/1" is for small images.
      dtype: dtype of the computation: "float32", "bfloat16" (parameters stay float32) or "float64".
      axis_name: the mapped axis that batch statistics are averaged over (pmap only).

    Raises:
      ModelError: an attribute is invalid (at construction), or an input is invalid (at the call).
    """

    activation = staticmethod(nn.relu)
    head_has_bias = True

    num_classes: int = 1000
    dropout_rate: float = 0.0
    stem: str = ""
    dtype: str = "float32"
    axis_name: str | None = None

    def _feature_maps(self, x: jax.Array, block: layers.ConvBlock, positions: jax.Array | None) -> dict[str, jax.Array]:
        """Returns the named feature maps in order; called inside a compact method."""
        raise NotImplementedError

    def _maps(self, images: jax.Array, train: bool, positions: jax.Array | None) -> dict[str, jax.Array]:
        self._check_images(images)
        block = layers.ConvBlock(True, self.dtype, self.axis_name, train, self.activation)
        return self._feature_maps(images.astype(self.dtype), block, positions)

    def _classify(self, x: jax.Array) -> jax.Array:
        return nn.Dense(
            self.num_classes,
            use_bias=self.head_has_bias,
            kernel_init=layers.HEAD_INIT,
            dtype=jnp.dtype(self.dtype),
            param_dtype=layers.parameter_dtype(self.dtype),
            name=self.head,
        )(x)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False, positions: jax.Array | None = None) -> jax.Array:
        """Computes the logits of a batch.

        Args:
          images: float (batch, *spatial, channels), normalized.
          train: apply dropout (needs the `dropout` RNG) and normalize by the statistics of this batch.
          positions: int (batch,), the position of each example in the global batch, which keys its dropout mask;
            defaults to 0, 1, 2, ...

        Returns:
          Logits (batch, num_classes), float32 (float64 for a float64 network). With `num_classes=0`, the pooled
          features (batch, channels of the last feature map).

        Raises:
          ModelError: the shape of `images` is invalid, or does not fit the parameters.
        """
        *_, x = self._maps(images, train, positions).values()
        x = jnp.mean(x.astype(layers.parameter_dtype(self.dtype)), axis=tuple(range(1, x.ndim - 1)))
        if self.num_classes:
            x = layers.Dropout(self.dropout_rate, name="dropout")(x, train=train, positions=positions)
            x = self._classify(x).astype(x.dtype)
        return x

    @nn.compact
    def features(self, images: jax.Array) -> dict[str, jax.Array]:
        """Returns the named feature maps, each (batch, *spatial, channels), in order of computation, without dropout.

        Use `model.apply(variables, images, method="features")`. The last one is the head applied to each cell, whose
        mean over the cells is the logits: the class activation maps of Zhou et al. 2016 (arXiv 1512.04150).

        Args:
          images: as in `__call__`.
        """
        maps = self._maps(images, False, None)
        if self.num_classes:
            *_, x = maps.values()
            maps[self.head] = self._classify(x)
        return maps
