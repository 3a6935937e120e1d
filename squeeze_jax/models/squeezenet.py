"""SqueezeNet and its design space (Iandola et al. 2016, arXiv 1602.07360)."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import linen as nn

from squeeze_jax.models import layers
from squeeze_jax.models.fire import Fire, check_widths

NUM_FIRE_MODULES = 8
FIRST_FIRE = 2  # the paper counts conv1 as layer 1
STEMS = {"7x7/2": (7, 2), "3x3/2": (3, 2), "3x3/1": (3, 1)}  # kernel, stride
BYPASSES = ("none", "simple", "complex")
POOLINGS = ("ceil", "floor")
DTYPES = ("float32", "bfloat16", "float64")
AXIS_NAMES = {2: ("height", "width"), 3: ("depth", "height", "width")}
LARGEST_MINIMUM = 8192  # where the search for the smallest legal input gives up


@dataclasses.dataclass(frozen=True)
class FireWidths:
    """Filters of one Fire module; `expand1x1` is 0 in a simplified one."""

    squeeze: int
    expand1x1: int
    expand3x3: int


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one stage does to the length of a spatial axis; `kernel` is the largest one on its way."""

    name: str
    kernel: int
    stride: int
    kind: str  # "valid", "same" or a pooling mode

    def output_size(self, size: int) -> int:
        if self.kind == "same":
            return size
        if self.kind == "valid":
            return (size - self.kernel) // self.stride + 1
        return layers.pooled_size(size, self.kind)


class SqueezeNet(nn.Module):
    """SqueezeNet with every choice of the paper's section 5 as an attribute; the defaults are version 1.0.

    Fire module i (from 0) has e = base_filters + filter_increment * (i // increment_every) expand filters, of which
    round(fraction_3x3 * e) are 3x3, and round(squeeze_ratio * e) squeeze filters.

    Attributes:
      num_classes: channels of conv10.
      dropout_rate: after fire9.
      bypass: "none", "simple" (identity around every module whose input and output have the same channels: fire3, 5, 7
        and 9 in the paper's network) or "complex" (1x1 convolutions around the others as well).
      base_filters: base_e of the paper.
      filter_increment: incr_e.
      increment_every: freq.
      squeeze_ratio: SR; one number, or one a module.
      fraction_3x3: pct_3x3, 0 to 1.
      stem: "7x7/2" (1.0), "3x3/2" (1.1) or "3x3/1" for small images. Strided stems have no padding, as in Caffe.
      stem_filters: channels of conv1.
      pool_after: layers (1 is conv1, k is firek) that a 3/2 max pooling follows.
      pooling: "ceil" (Caffe, torchvision) or "floor".
      head_padding: the padding 1 of conv10 in Caffe's 1.0, which averages 15 x 15 cells at 227 pixels.
      head_relu: ReLU after conv10, as released.
      use_batch_norm: after every convolution but conv10.
      dtype: of the computation: "float32", "bfloat16" (parameters stay float32) or "float64".
      axis_name: the mapped axis that batch statistics are averaged over; only under pmap.

    Raises:
      ValueError: an illegal attribute, at construction; an illegal input, at the call.
    """

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
        for name, choices in (
            ("bypass", BYPASSES),
            ("stem", tuple(STEMS)),
            ("pooling", POOLINGS),
            ("dtype", DTYPES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; expected one of {', '.join(choices)}.")
        for name in ("num_classes", "stem_filters", "base_filters", "increment_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; the smallest legal value is 1.")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate={self.dropout_rate}; expected 0 <= rate < 1.")
        last = FIRST_FIRE + NUM_FIRE_MODULES - 1
        if any(layer not in range(1, last + 1) for layer in self.pool_after):
            raise ValueError(f"pool_after={self.pool_after}; expected layers from 1 (conv1) to {last} (fire{last}).")
        for i, widths in enumerate(self.fire_widths()):
            try:
                check_widths(**{k: v for k, v in dataclasses.asdict(widths).items() if self._has_branch(k)})
            except ValueError as error:
                raise ValueError(
                    f"fire{i + FIRST_FIRE} (base_filters={self.base_filters}, squeeze_ratio={self.squeeze_ratio}, "
                    f"fraction_3x3={self.fraction_3x3}): {error}"
                ) from None
        super().__post_init__()

    def _has_branch(self, branch: str) -> bool:
        return True

    def fire_widths(self) -> list[FireWidths]:
        """The widths of fire2 to fire9, by the formulas of section 5.1 of the paper."""
        ratios = self.squeeze_ratio
        if not isinstance(ratios, tuple):
            ratios = (ratios,) * NUM_FIRE_MODULES
        if len(ratios) != NUM_FIRE_MODULES:
            raise ValueError(f"squeeze_ratio has {len(ratios)} entries; expected one number or {NUM_FIRE_MODULES}.")
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

    @nn.compact
    def _feature_maps(self, images: jax.Array, train: bool, positions: jax.Array | None) -> dict[str, jax.Array]:
        self._check_images(images)
        maps = {}

        def pool_if_asked(x: jax.Array, layer: int) -> jax.Array:
            if layer in self.pool_after:
                x = maps[f"pool{layer}"] = layers.MaxPool(self.pooling, name=f"pool{layer}")(x)
            return x

        kernel, stride = STEMS[self.stem]
        block = functools.partial(
            layers.conv_block,
            train=train,
            use_batch_norm=self.use_batch_norm,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        padding = "VALID" if stride > 1 else "SAME"
        x = images.astype(self.dtype)
        x = maps["conv1"] = block(x, self.stem_filters, kernel, strides=stride, padding=padding, name="conv1")
        x = pool_if_asked(x, 1)
        for layer, widths in enumerate(self.fire_widths(), start=FIRST_FIRE):
            fire = self._fire(f"fire{layer}", widths, self._fire_bypass(x.shape[-1], widths))
            x = maps[f"fire{layer}"] = fire(x, train=train)
            x = pool_if_asked(x, layer)
        x = layers.Dropout(self.dropout_rate, name="dropout")(x, train=train, positions=positions)
        rank = images.ndim - 2
        maps["conv10"] = layers.conv(
            self.num_classes,
            (1,) * rank,
            padding=1 if self.head_padding else "SAME",
            kernel_init=layers.HEAD_INIT,
            dtype=self.dtype,
            name="conv10",
        )(x)
        return maps

    def __call__(self, images: jax.Array, *, train: bool = False, positions: jax.Array | None = None) -> jax.Array:
        """Classifies a batch.

        Args:
          images: float (batch, *spatial, channels), normalised, with 2 or 3 spatial axes.
          train: dropout on (it needs the `dropout` key), batch statistics of this batch.
          positions: int (batch,), each example's position in the global batch, which keys its dropout; 0, 1, 2, ...
            where not given.

        Returns:
          Logits (batch, num_classes), float32 (float64 for a float64 network).
        """
        x = self._feature_maps(images, train, positions)["conv10"].astype(layers.parameter_dtype(self.dtype))
        if self.head_relu:
            x = nn.relu(x)
        return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))

    def features(self, images: jax.Array) -> dict[str, jax.Array]:
        """Named feature maps, each (batch, *spatial, channels), in the order of computation and without dropout.

        Use `model.apply(variables, images, method="features")`. "fireN" is the value after its bypass sum and before
        a pooling that follows, "poolN" after it; "conv10" is before its ReLU.
        """
        return self._feature_maps(images, False, None)

    def stages(self) -> Iterator[Stage]:
        """The stages that change, or look beyond, one cell of a feature map; in order."""
        kernel, stride = STEMS[self.stem]
        yield Stage("conv1", kernel, stride, "valid" if stride > 1 else "same")
        for layer in range(1, FIRST_FIRE + NUM_FIRE_MODULES):
            if layer >= FIRST_FIRE:
                yield Stage(f"fire{layer}", 3, 1, "same")
            if layer in self.pool_after:
                yield Stage(f"pool{layer}", layers.POOL_WINDOW, layers.POOL_STRIDE, self.pooling)

    def collapses_at(self, size: int) -> str | None:
        """The first stage that an axis of this length does not survive, or None."""
        for stage in self.stages():
            size = stage.output_size(size)
            if size < 1:
                return stage.name
        return None

    def minimum_input_size(self) -> int:
        """The smallest legal length of a spatial axis."""
        return next(size for size in range(1, LARGEST_MINIMUM) if self.collapses_at(size) is None)

    def receptive_field(self) -> int:
        """Pixels along an axis that one cell of conv10 sees."""
        field, jump = 1, 1
        for stage in self.stages():
            field += (stage.kernel - 1) * jump
            jump *= stage.stride
        return field

    def _check_images(self, images: jax.Array) -> None:
        rank = images.ndim - 2
        if rank not in AXIS_NAMES:
            raise ValueError(
                f"images have shape {images.shape}; expected (batch, height, width, channels) or "
                f"(batch, depth, height, width, channels)."
            )
        for axis, (name, size) in enumerate(zip(AXIS_NAMES[rank], images.shape[1:-1], strict=True), start=1):
            stage = self.collapses_at(size)
            if stage is not None:
                raise ValueError(
                    f"images have {size} pixels along {name} (axis {axis}), which collapses to nothing at {stage}; "
                    f"the smallest legal value is {self.minimum_input_size()}. Enlarge the images, or use the stem "
                    f"'3x3/1' or fewer entries in pool_after."
                )
        if self.has_variable("params", "conv1"):
            kernel = self.get_variable("params", "conv1")["kernel"]
            if kernel.ndim - 2 != rank:
                raise ValueError(
                    f"images have {rank} spatial axes (shape {images.shape}), but the parameters are of a "
                    f"{kernel.ndim - 2}-D network; conv1 holds a kernel of shape {kernel.shape}."
                )
            if kernel.shape[-2] != images.shape[-1]:
                raise ValueError(
                    f"images have {images.shape[-1]} channels (last axis of {images.shape}), but conv1 was made for "
                    f"{kernel.shape[-2]}; channels come last."
                )
