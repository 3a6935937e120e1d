"""The networks beside SqueezeNet's family: published sizes, feature maps, options, and what all of them promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SHORT, options_of
from flax import linen as nn
from test_models import feature_shapes, random_variables, shapes

from squeeze_jax import models
from squeeze_jax.errors import ModelError
from squeeze_jax.models import alexnet, layers
from squeeze_jax.models.inverted_residual import InvertedResidual
from squeeze_jax.models.resnet import ResidualBlock
from squeeze_jax.models.shufflenet import ShuffleUnit
from squeeze_jax.models.squeezenext import SqueezeNextBlock
from squeeze_jax.models.summary import summarize

# Parameters at 1000 classes, and millions of MACs at an image size. Sources: SqueezeNext, counted in the authors'
# train_val.prototxt (amirgholami/SqueezeNext); the grouped AlexNet, Sze et al. 2017 (arXiv 1703.09039), Table II; the
# others, `num_params` and `_ops` of torchvision 0.29.1, given in billions with three decimals.
PUBLISHED = {
    "squeezenext_1_0_23": (717_280, 227, 278.0),
    "squeezenext_1_0_g_23": (543_072, 227, 224.2),
    "squeezenext_1_0_23v5": (930_016, 227, 224.9),
    "squeezenext_2_0_23": (2_361_728, 227, 742.1),
    "squeezenext_2_0_23v5": (3_222_912, 227, 702.6),
    "alexnet": (61_100_840, 224, 714),
    "alexnet_grouped": (60_965_224, 227, 724),
    "resnet18": (11_689_512, 224, 1814),
    "mobilenet_v2": (3_504_872, 224, 301),
    "shufflenet_v2_x0_5": (1_366_792, 224, 40),
    "shufflenet_v2_x1_0": (2_278_604, 224, 145),
    "efficientnet_b0": (5_288_548, 224, 386),
}
NAMES = list(PUBLISHED)


def small(name, **options):
    return models.create(name, num_classes=3, stem="3x3/1", **options)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_macs_are_the_published_ones(name):
    parameters, size, million_macs = PUBLISHED[name]
    summary = summarize(models.create(name), (size, size, 3))
    assert summary.parameters == parameters
    decimals = 1 if isinstance(million_macs, float) else 0
    assert round(summary.macs / 1e6, decimals) == million_macs


# Sides of the feature maps. SqueezeNext: the authors' files with Caffe's rounding; the others: their papers' tables.
SIZES = {
    ("squeezenext_1_0_23", 227): {"conv1": 111, "pool1": 55, "block1": 55, "block7": 28, "block13": 14, "block21": 7},
    ("squeezenext_1_0_23v5", 227): {"conv1": 112, "pool1": 56, "block1": 56, "block3": 28, "block7": 14, "block21": 7},
    ("alexnet", 224): {"conv1": 55, "pool1": 27, "conv2": 27, "pool2": 13, "conv5": 13, "pool5": 6, "fc6": 1, "fc8": 1},
    ("alexnet_grouped", 227): {"conv1": 55, "pool1": 27, "conv2": 27, "pool2": 13, "conv5": 13, "pool5": 6, "fc8": 1},
    ("resnet18", 224): {"conv1": 112, "pool1": 56, "stage1_1": 56, "stage2_1": 28, "stage3_1": 14, "stage4_1": 7},
    ("mobilenet_v2", 224): {"conv1": 112, "block1": 112, "block2": 56, "block4": 28, "block7": 14, "block14": 7},
    ("shufflenet_v2_x1_0", 224): {"conv1": 112, "pool1": 56, "stage2_3": 28, "stage3_7": 14, "stage4_3": 7},
    ("efficientnet_b0", 224): {"conv1": 112, "block2": 56, "block4": 28, "block6": 14, "block12": 7, "conv_last": 7},
}


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_feature_maps_have_the_published_sizes(name, size):
    model, images = models.create(name), jnp.zeros((1, size, size, 3))
    traced = functools.partial(model.init_with_output, method="features")
    maps, _ = jax.eval_shape(traced, jax.random.key(0), images)
    assert {key: maps[key].shape[1] for key in SIZES[name, size]} == SIZES[name, size]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"stem": "3x3/1"}], ids=str)
def test_the_geometry_is_that_of_the_maps(name, options, short_networks):
    """`stages` gives the sizes of the feature maps at an odd size, and the smallest input in both directions."""
    model = models.create(name, **options, **options_of(name, **SHORT))
    size = model.minimum_input_size()
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    if size > 1:
        with pytest.raises(ModelError, match=f"collapses to nothing at .*; the smallest legal value is {size}"):
            shapes(model, (size, size - 1, 3))
    size = final = 77
    for stage in model.stages():
        final = stage.output_size(final)
    variables, images = shapes(model, (size, size, 3)), jnp.zeros((1, size, size, 3))
    maps = jax.eval_shape(functools.partial(model.apply, method="features"), variables, images)
    last = "pool5" if name.startswith("alexnet") else [*feature_shapes(model, variables, images)][-2]
    assert maps[last].shape[1:3] == (final, final)


class OneUnit(nn.Module):
    """A unit of a network with its convolution blocks, so that a test compiles no whole network."""

    unit: nn.Module

    @nn.compact
    def __call__(self, x, *, train=True, positions=None):
        block = layers.ConvBlock(True, "float32", None, train, nn.silu)
        takes_positions = isinstance(self.unit, InvertedResidual)
        return self.unit(x, block, *([positions] if takes_positions else []))


UNITS = {
    "ResNet-18": ResidualBlock(12, 2),
    "ShuffleNetV2": ShuffleUnit(8, 1),
    "ShuffleNetV2, stride 2": ShuffleUnit(12, 2),
    "MobileNetV2": InvertedResidual(8, 3, 3, 1),
    "EfficientNet": InvertedResidual(12, 3, 5, 2, squeeze_excite=True),
    "SqueezeNext, grouped": SqueezeNextBlock(16, 2, True, True, 2, False),
    "SqueezeNext, version 5": SqueezeNextBlock(16, 2, True, False, 1, True),
}


@pytest.mark.parametrize("unit", UNITS)
def test_every_parameter_learns(unit):
    model = OneUnit(UNITS[unit])
    x = jax.random.normal(jax.random.key(1), (4, 7, 7, 8))
    variables = random_variables(model, x)

    def loss(params):
        y, _ = model.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return (y * jax.random.normal(jax.random.key(2), y.shape)).sum()

    for path, gradient in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(variables["params"])):
        assert np.isfinite(gradient).all() and np.any(gradient != 0), jax.tree_util.keystr(path)


def test_half_of_the_channels_pass_a_shuffle_unit_and_are_interleaved():
    model = OneUnit(UNITS["ShuffleNetV2"])
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, 8))
    y = jax.jit(functools.partial(model.apply, train=False))(random_variables(model, x), x)
    np.testing.assert_array_equal(y[..., ::2], x[..., :4])


def test_features_come_in_the_order_of_computation():
    model, images = small("shufflenet_v2_x0_5"), jnp.zeros((1, 16, 16, 3))
    names = [*feature_shapes(model, shapes(model, (16, 16, 3)), images)]
    assert names[:3] == ["conv1", "stage2_0", "stage2_1"] and names[-2:] == ["conv_last", "fc"]


def test_stochastic_depth_leaves_out_a_block_by_the_position():
    model = OneUnit(InvertedResidual(8, 3, 3, 1, drop_rate=0.5))
    x = jax.random.normal(jax.random.key(1), (16, 5, 5, 8))
    variables = random_variables(model, x[:1])

    @jax.jit
    def output(x, positions):
        keys = {"dropout": jax.random.key(3)}
        return model.apply(variables, x, positions=positions, rngs=keys, mutable=["batch_stats"])[0]

    y, z = output(x, jnp.arange(16)), output(x, jnp.arange(16)[::-1])
    left_out = np.array([np.array_equal(a, b) for a, b in zip(x, y, strict=True)])
    assert 3 <= left_out.sum() <= 13
    np.testing.assert_array_equal(left_out[::-1], [np.array_equal(a, b) for a, b in zip(x, z, strict=True)])
    plain = jax.jit(functools.partial(OneUnit(InvertedResidual(8, 3, 3, 1)).apply, mutable=["batch_stats"]))
    kept = np.asarray(x + 2 * (plain(variables, x)[0] - x))
    np.testing.assert_allclose(y[~left_out], kept[~left_out], rtol=1e-4, atol=1e-5)


def test_local_response_normalization_is_the_papers_formula():
    x = np.random.default_rng(0).normal(size=(1, 2, 2, 7)).astype(np.float32)
    expected = np.empty_like(x)
    for i in range(7):
        near = x[..., max(0, i - 2) : i + 3]
        expected[..., i] = x[..., i] / (1 + 1e-4 / 5 * (near**2).sum(-1)) ** 0.75
    np.testing.assert_allclose(alexnet._normalize_locally(jnp.asarray(x)), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.create("resnet18", stem="3x3/2"), "expected one of 7x7/2, 3x3/1"),
        (lambda: models.create("resnet18", bypass="simple"), "resnet18 has no option 'bypass'"),
        (lambda: models.create("mobilenet_v2", dtype="float16"), "expected one of float32"),
        (lambda: models.create("alexnet", dropout_rate=1.0), "0 <= rate < 1"),
        (lambda: models.create("efficientnet_b0", stochastic_depth=-0.1), "stochastic_depth=-0.1; expected 0 <= rate"),
        (lambda: models.create("squeezenext_1_0_23", depths=(1, 2)), "expected 4 numbers"),
        (lambda: models.create("squeezenext_1_0_23", width=0.1), "width=0.1; expected 0.125 to 16"),
        (lambda: models.create("squeezenext_1_0_23", width=float("nan")), "width=nan"),
        (lambda: models.create("squeezenext_1_0_23", groups=0), "groups=0; expected a divisor"),
        (lambda: models.create("squeezenext_1_0_23", groups=3), "groups=3; expected a divisor"),
        (lambda: models.create("shufflenet_v2_x1_0", stage_filters=(8, 16)), "expected 3 even numbers"),
        (lambda: shapes(models.create("alexnet"), (32, 32, 3)), "at pool5; the smallest .* 63.*use the stem '3x3/1'"),
        (lambda: shapes(models.create("alexnet", stem="3x3/1"), (8, 8, 3)), "is 15. Enlarge the images[.]\n"),
    ],
)
def test_illegal_choices_are_named(call, message):
    with pytest.raises(ModelError, match=message):
        call()
