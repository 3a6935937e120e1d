"""Architecture: parameter counts, feature-map sizes and MACs of the papers, number by number; errors; behavior."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SHORT, options_of
from flax import linen as nn

from squeeze_jax import models
from squeeze_jax.config import base_config
from squeeze_jax.errors import ModelError
from squeeze_jax.experiment import network_options
from squeeze_jax.models.fire import Fire, SimplifiedFire
from squeeze_jax.models.summary import summarize

# facts.md 1.1: Table 1 of the paper, "before pruning".
TABLE_1 = {
    "conv1": 14_208,
    "fire2": 11_920,
    "fire3": 12_432,
    "fire4": 45_344,
    "fire5": 49_440,
    "fire6": 104_880,
    "fire7": 111_024,
    "fire8": 188_992,
    "fire9": 197_184,
    "conv10": 513_000,
}


def shapes(model, input_shape):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *input_shape)))


def random_variables(model, images):
    """Kernels, biases and statistics of sensible sizes, without compiling the initializers."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        kind = path[-1].key
        if kind in ("var", "scale"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        deviation = np.sqrt(2 / np.prod(leaf.shape[:-1])) if kind == "kernel" else 0.1
        return rng.normal(0, deviation, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0), images))


def count(model, input_shape):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(model, input_shape)["params"]))


def feature_shapes(model, variables, images):
    """In the order of computation; what a transformed function returns is sorted."""
    found = {}

    def note(variables, images):
        found.update({name: value.shape for name, value in model.apply(variables, images, method="features").items()})

    jax.eval_shape(note, variables, images)
    return found


def map_sizes(model, size, channels=3):
    """Side of conv1, of the feature maps after each pooling, in order."""
    variables = shapes(model, (size, size, channels))
    maps = jax.eval_shape(
        lambda v, x: model.apply(v, x, method="features"), variables, jnp.zeros((1, size, size, channels))
    )
    return [value.shape[1] for name, value in maps.items() if name == "conv1" or name.startswith("pool")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("squeezenet_v1_0", 1_248_424),
        ("squeezenet_v1_1", 1_235_496),
        ("squeezenet_v1_0_simple_bypass", 1_248_424),
        ("squeezenet_v1_0_complex_bypass", 1_589_672),
        ("squeezenodule_v1", 878_504),
        ("squeezenodule_v2", 1_160_808),
    ],
)
def test_parameters_at_1000_classes(name, expected):
    assert count(models.create(name), (224, 224, 3)) == expected


@pytest.mark.parametrize(
    ("name", "two_d", "three_d"),
    [
        ("squeezenet_v1_0", 727_042, 1_861_186),
        ("squeezenodule_v1", 612_610, 1_746_754),
        ("squeezenodule_v2", 894_914, 2_545_154),
    ],
)
def test_parameters_of_gray_two_class_networks(name, two_d, three_d):
    model = models.create(name, num_classes=2)
    assert count(model, (64, 64, 1)) == two_d
    assert count(model, (32, 32, 32, 1)) == three_d


@pytest.mark.parametrize(
    ("squeeze_ratio", "expected"),
    [(0.125, 1_248_424), (0.25, 1_967_080), (0.5, 3_404_392), (0.75, 4_841_704), (1.0, 6_279_016)],
)
def test_parameters_of_figure_3a(squeeze_ratio, expected):
    assert count(models.create("squeezenet_v1_0", squeeze_ratio=squeeze_ratio), (224, 224, 3)) == expected


@pytest.mark.parametrize(
    ("percent", "expected"),
    [
        (1, 1_478_248),
        (12.5, 1_929_832),
        (25, 2_421_352),
        (37.5, 2_912_872),
        (50, 3_404_392),
        (62.5, 3_895_912),
        (75, 4_387_432),
        (87.5, 4_878_952),
        (99, 5_330_536),
    ],
)
def test_parameters_of_figure_3b(percent, expected):
    model = models.create("squeezenet_v1_0", squeeze_ratio=0.5, fraction_3x3=percent / 100)
    assert count(model, (224, 224, 3)) == expected


def test_parameters_and_sizes_of_table_1():
    params = shapes(models.create("squeezenet_v1_0"), (227, 227, 3))["params"]
    assert {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()} == TABLE_1
    widths = models.create("squeezenet_v1_0").fire_widths()
    pairs = [(16, 64, 64), (32, 128, 128), (48, 192, 192), (64, 256, 256)]
    assert [(w.squeeze, w.expand1x1, w.expand3x3) for w in widths] == [p for pair in pairs for p in (pair, pair)]


# facts.md 1.7, every row: side of the maps after conv1 and the three poolings; None where nothing is left.
GEOMETRY = [
    ("squeezenet_v1_0", "ceil", 227, [111, 55, 27, 13]),
    ("squeezenet_v1_0", "floor", 227, [111, 55, 27, 13]),
    ("squeezenet_v1_0", "ceil", 224, [109, 54, 27, 13]),
    ("squeezenet_v1_0", "floor", 224, [109, 54, 26, 12]),
    ("squeezenet_v1_0", "ceil", 64, [29, 14, 7, 3]),
    ("squeezenet_v1_0", "floor", 64, [29, 14, 6, 2]),
    ("squeezenet_v1_0", "ceil", 50, [22, 11, 5, 2]),
    ("squeezenet_v1_0", "floor", 50, [22, 10, 4, 1]),
    ("squeezenet_v1_0", "ceil", 48, [21, 10, 5, 2]),
    ("squeezenet_v1_0", "floor", 48, [21, 10, 4, 1]),
    ("squeezenet_v1_0", "ceil", 32, [13, 6, 3, 1]),
    ("squeezenet_v1_0", "floor", 32, None),
    ("squeezenet_v1_0", "ceil", 28, [11, 5, 2, 1]),
    ("squeezenet_v1_0", "floor", 28, None),
    ("squeezenet_v1_1", "ceil", 227, [113, 56, 28, 14]),
    ("squeezenet_v1_1", "floor", 227, [113, 56, 27, 13]),
    ("squeezenet_v1_1", "ceil", 224, [111, 55, 27, 13]),
    ("squeezenet_v1_1", "floor", 224, [111, 55, 27, 13]),
    ("squeezenet_v1_1", "ceil", 64, [31, 15, 7, 3]),
    ("squeezenet_v1_1", "floor", 64, [31, 15, 7, 3]),
    ("squeezenet_v1_1", "ceil", 50, [24, 12, 6, 3]),
    ("squeezenet_v1_1", "floor", 50, [24, 11, 5, 2]),
    ("squeezenet_v1_1", "ceil", 48, [23, 11, 5, 2]),
    ("squeezenet_v1_1", "floor", 48, [23, 11, 5, 2]),
    ("squeezenet_v1_1", "ceil", 32, [15, 7, 3, 1]),
    ("squeezenet_v1_1", "floor", 32, [15, 7, 3, 1]),
    ("squeezenet_v1_1", "ceil", 28, [13, 6, 3, 1]),
    ("squeezenet_v1_1", "floor", 28, None),
]


@pytest.mark.parametrize(("name", "pooling", "size", "expected"), GEOMETRY)
def test_feature_map_sizes(name, pooling, size, expected):
    model = models.create(name, pooling=pooling)
    if expected is None:
        with pytest.raises(ValueError, match=f"{size} pixels along height .axis 1., which collapses"):
            map_sizes(model, size)
    else:
        assert map_sizes(model, size) == expected


@pytest.mark.parametrize(
    ("name", "pooling", "minimum"),
    [
        ("squeezenet_v1_0", "ceil", 21),
        ("squeezenet_v1_1", "ceil", 17),
        ("squeezenet_v1_0", "floor", 35),
        ("squeezenet_v1_1", "floor", 31),
        ("squeezenodule_v1", "floor", 35),
        ("squeezenodule_v2", "ceil", 21),
    ],
)
def test_minimum_input_is_exact_in_both_directions(name, pooling, minimum):
    model = models.create(name, pooling=pooling, num_classes=2)
    assert model.minimum_input_size() == minimum
    count(model, (minimum, minimum, 1))
    with pytest.raises(ValueError, match=f"along width .axis 2.*at pool.*smallest legal value is {minimum}"):
        count(model, (minimum, minimum - 1, 1))


@pytest.mark.parametrize(
    ("name", "size", "head_padding", "million_macs"),
    [
        ("squeezenet_v1_0", 227, True, 861.34),
        ("squeezenet_v1_0", 224, False, 818.92),
        ("squeezenet_v1_1", 224, False, 349.15),
        ("squeezenet_v1_1", 227, False, 387.75),
    ],
)
def test_macs(name, size, head_padding, million_macs):
    summary = summarize(models.create(name, head_padding=head_padding), (size, size, 3))
    assert round(summary.macs / 1e6, 2) == million_macs


def test_summary_counts_what_xla_counts():
    """2 FLOPs a MAC; XLA also counts pooling, biases and ReLU, and leaves out what padding multiplies by zero."""
    model = models.create("squeezenet_v1_1")
    images = jnp.zeros((1, 224, 224, 3))
    analysis = jax.jit(model.apply).lower(shapes(model, (224, 224, 3)), images).cost_analysis()
    assert analysis["flops"] == pytest.approx(2 * summarize(model, (224, 224, 3)).macs, rel=0.05)


def test_summary_table():
    table = summarize(models.create("squeezenet_v1_0"), (227, 227, 3)).table()
    assert "1,248,424 parameters (4.76 MiB as float32)" in table
    assert "fire2/squeeze1x1" in table and "55x55x16" in table and "pool8" in table
    assert "2 FLOPs" in table


def test_receptive_field_is_where_gradients_come_from():
    model = models.create("squeezenet_v1_1", num_classes=2, base_filters=16, filter_increment=16)
    images = jax.random.uniform(jax.random.key(1), (1, 255, 255, 1))
    # Positive weights let every path contribute; average pooling would hide nothing, max pooling picks one cell.
    variables = jax.tree.map(jnp.abs, random_variables(model, images))

    def center(image):
        maps = model.apply(variables, image, method="features")["conv10"]
        return maps[0, maps.shape[1] // 2, maps.shape[2] // 2, 0]

    rows = np.flatnonzero(np.asarray(jax.jit(jax.grad(center))(images))[0, :, :, 0].any(axis=1))
    assert rows[-1] - rows[0] + 1 <= model.receptive_field()
    assert rows[-1] - rows[0] + 1 >= 0.8 * model.receptive_field()


@pytest.mark.parametrize("name", models.list_models())
@pytest.mark.parametrize("input_shape", [(32, 32, 3), (32, 32, 32, 1)])
def test_every_model_classifies_small_images_and_volumes(name, input_shape, short_networks):
    model = models.create(name, num_classes=4, stem="3x3/1", **options_of(name, **SHORT))
    if len(input_shape) - 1 not in model.ranks:
        with pytest.raises(ModelError, match=r"expected \(batch, height, width, channels\)\."):
            shapes(model, input_shape)
        return
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((2, *input_shape)))
    assert logits.shape == (2, 4) and logits.dtype == jnp.float32


@pytest.mark.parametrize(
    ("name", "use_batch_norm"),
    [("squeezenet_v1_1", False), ("squeezenet_v1_0_complex_bypass", True), ("squeezenodule_v2", True)],
)
def test_every_parameter_learns(name, use_batch_norm):
    narrow = {"base_filters": 16, "filter_increment": 16, "num_classes": 3, "head_relu": False}
    model = models.create(name, use_batch_norm=use_batch_norm, **narrow)
    images = jax.random.normal(jax.random.key(1), (4, 33, 33, 3))
    variables = random_variables(model, images)

    def loss(params):
        logits, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"], rngs=keys)
        return (logits * jnp.arange(12.0).reshape(4, 3)).sum()

    keys = {"dropout": jax.random.key(2)}
    for path, gradient in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(variables["params"])):
        assert np.isfinite(gradient).all() and np.any(gradient != 0), jax.tree_util.keystr(path)


def test_features_are_named_and_a_bypass_sum_stands_before_its_pooling():
    model = models.create("squeezenet_v1_0_complex_bypass", num_classes=7, base_filters=16, filter_increment=16)
    images = jax.random.normal(jax.random.key(1), (1, 40, 40, 3))
    variables = random_variables(model, images)
    names = []

    @jax.jit
    def features(variables, images):
        maps = model.apply(variables, images, method="features")
        names.extend(maps)  # here in their order; what a compiled function returns is sorted
        return maps

    maps = features(variables, images)
    assert names == [
        *("conv1", "pool1", "fire2", "fire3", "fire4", "pool4"),
        *("fire5", "fire6", "fire7", "fire8", "pool8", "fire9", "conv10"),
    ]
    assert maps["conv10"].min() < 0  # before its ReLU
    widths = model.fire_widths()[3]
    fire5 = Fire(widths.squeeze, widths.expand1x1, widths.expand3x3)
    plain = fire5.apply({"params": variables["params"]["fire5"]}, maps["pool4"])
    np.testing.assert_allclose(maps["fire5"], plain + maps["pool4"], rtol=1e-5, atol=1e-5)
    logits = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(logits, jax.nn.relu(maps["conv10"]).mean((1, 2)), rtol=1e-5, atol=1e-6)
    with_conv = {name for name, part in variables["params"].items() if "bypass1x1" in part}
    assert with_conv == {"fire2", "fire4", "fire6", "fire8"}


def test_simple_bypass_is_identity_around_3_5_7_9():
    names = ("squeezenet_v1_0", "squeezenet_v1_0_simple_bypass")
    plain, bypassed = (models.create(name, base_filters=16, filter_increment=16) for name in names)
    images = jax.random.normal(jax.random.key(1), (1, 40, 40, 3))
    variables = random_variables(plain, images)
    maps = jax.jit(functools.partial(bypassed.apply, method="features"))(variables, images)
    before = {3: "fire2", 5: "pool4", 7: "fire6", 9: "pool8", 2: "pool1", 4: "fire3", 6: "fire5", 8: "fire7"}
    for number, source in before.items():
        widths = plain.fire_widths()[number - 2]
        fire = Fire(widths.squeeze, widths.expand1x1, widths.expand3x3)
        output = fire.apply({"params": variables["params"][f"fire{number}"]}, maps[source])
        expected = output + maps[source] if number % 2 else output
        np.testing.assert_allclose(maps[f"fire{number}"], expected, rtol=1e-4, atol=1e-5)


def test_ceil_pooling_matches_a_plain_definition():
    from squeeze_jax.models.layers import MaxPool

    for size in (3, 4, 6, 7, 13):
        x = jax.random.normal(jax.random.key(size), (1, size, size, 1))
        pooled = np.asarray(MaxPool("ceil").apply({}, x))[0, :, :, 0]
        starts = range(0, size - 1, 2)
        image = np.asarray(x)[0, :, :, 0]
        expected = [[image[i : i + 3, j : j + 3].max() for j in starts] for i in starts]
        np.testing.assert_array_equal(pooled, np.array(expected)[: pooled.shape[0], : pooled.shape[1]])
        assert pooled.shape[0] == -(-(size - 3) // 2) + 1


def test_initialization_follows_caffe():
    params = jax.jit(models.create("squeezenet_v1_0").init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    stem, head = np.asarray(params["conv1"]["kernel"]), np.asarray(params["conv10"]["kernel"])
    bound = np.sqrt(3 / (7 * 7 * 3))
    assert abs(stem).max() <= bound and stem.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
    assert head.std() == pytest.approx(0.01, rel=0.02)
    assert all(not np.any(leaf) for path, leaf in jax.tree.leaves_with_path(params) if path[-1].key == "bias")


def test_dropout_follows_the_position_not_the_batch():
    model = models.create("squeezenet_v1_1", num_classes=3, dropout_rate=0.5, head_relu=False, base_filters=16)
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    variables = random_variables(model, images)

    @jax.jit
    def logits(images, seed, positions):
        keys = {"dropout": jax.random.key(seed)}
        return model.apply(variables, images, train=True, rngs=keys, positions=positions)

    whole = logits(images, 2, jnp.arange(4))
    np.testing.assert_allclose(whole[2:], logits(images[2:], 2, jnp.array([2, 3])), rtol=1e-5, atol=1e-6)
    expected = jax.jit(model.apply)(variables, images)
    assert not np.allclose(whole, expected)
    many = jax.lax.map(lambda seed: logits(images, seed, jnp.arange(4)), jnp.arange(200))
    np.testing.assert_allclose(many.mean(0), expected, atol=0.1 * np.abs(whole).max())


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters():
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    model = models.create("squeezenet_v1_1", num_classes=3, use_batch_norm=True, dtype="bfloat16", head_relu=False)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = jax.jit(model.apply)(variables, images)
    assert logits.dtype == jnp.float32
    exact = jax.jit(model.clone(dtype="float32").apply)(variables, images)
    np.testing.assert_allclose(logits, exact, atol=0.05 * np.abs(exact).max())


@pytest.mark.parametrize("name", models.list_models())
def test_a_headless_network_has_no_head_and_returns_features(name, short_networks):
    options = {"stem": "3x3/1"} | options_of(name, **SHORT)
    model, whole = (models.create(name, num_classes=num_classes, **options) for num_classes in (0, 5))
    variables, of_whole = shapes(model, (40, 40, 3)), shapes(whole, (40, 40, 3))
    assert variables["params"].keys() == of_whole["params"].keys() - {whole.head}
    images = jnp.zeros((2, 40, 40, 3))
    maps = feature_shapes(model, variables, images)
    assert [*maps, whole.head] == [*feature_shapes(whole, of_whole, images)]
    features = jax.eval_shape(model.apply, variables, images)
    *_, last = maps.values()
    assert features.shape == (2, last[-1]) and features.dtype == jnp.float32


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("squeezenet_v1_1", {"base_filters": 16, "filter_increment": 16}),
        ("squeezenodule_v1", {"base_filters": 16, "filter_increment": 16}),
        ("squeezenext_1_0_23", {"depths": (1,) * 4}),
    ],
)
def test_the_head_is_a_map_of_the_classes(name, options):
    """The features are the mean of the last map, and the logits that of the head's, after SqueezeNet's ReLU."""
    images = jax.random.normal(jax.random.key(1), (2, 48, 48, 3))
    model, whole = (models.create(name, num_classes=num_classes, **options) for num_classes in (0, 5))
    variables = random_variables(whole, images)
    backbone = {key: value for key, value in variables["params"].items() if key != whole.head}
    features = jax.jit(model.apply)({**variables, "params": backbone}, images)
    maps = jax.jit(functools.partial(whole.apply, method="features"))(variables, images)
    *_, last, _ = feature_shapes(whole, variables, images)
    np.testing.assert_allclose(features, maps[last].mean((1, 2)), rtol=1e-5, atol=1e-6)
    head = jax.nn.relu(maps[whole.head]) if getattr(whole, "head_relu", False) else maps[whole.head]
    np.testing.assert_allclose(jax.jit(whole.apply)(variables, images), head.mean((1, 2)), rtol=1e-4, atol=1e-5)


def test_a_network_can_be_registered(own_names):
    models.register("narrow", models.SqueezeNet, base_filters=16, filter_increment=16)
    assert "narrow" in models.list_models() and models.create("narrow").base_filters == 16
    models.register("narrow", models.SqueezeNet, base_filters=16, filter_increment=16)  # a config file read again
    with pytest.raises(ModelError, match="another model is already registered as 'narrow'"):
        models.register("narrow", models.SqueezeNet)


def test_attributes_of_one_name_and_two_types_accept_both(own_names):
    class Other(nn.Module):
        pool_after: str = "all"

    models.register("other", Other)
    config = base_config()
    config.model.pool_after = (1, 3)
    config.model.pool_after = "all"


def test_a_summary_counts_every_parameter():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, images):
            self.param("scale", nn.initializers.ones, (7,))
            return nn.ConvTranspose(3, (2, 2))(nn.Conv(4, (1, 1))(images))

        def receptive_field(self):
            return 1

    summary = models.summarize(Net(), (8, 8, 3))
    assert summary.parameters == 7 + (2 * 2 * 4 * 3 + 3) + (3 * 4 + 4)
    assert summary.layers[-1].name == "(other modules)" and "(other modules)" in summary.table()


def test_the_config_has_the_options_of_every_network():
    known = set(models.override_types())
    assert known == set(base_config().model) - {"name", "strict"}
    assert {"num_classes", "squeeze_ratio", "dtype"} <= known and not known & {"axis_name", "parent"}


def test_a_config_may_skip_options_that_its_network_lacks():
    config = base_config()
    config.model.update({"name": "resnet18", "stem": "3x3/1", "bypass": "simple"})
    with pytest.raises(ModelError, match="resnet18 has no option 'bypass'"):
        models.create("resnet18", **network_options(config))
    config.model.strict = False
    assert network_options(config) == {"stem": "3x3/1", "dtype": "float32"}
    config.model.name = "squeezenet_v1_1"
    assert network_options(config)["bypass"] == "simple"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.create("squeezenet_v11"), "did you mean 'squeezenet_v1_1'"),
        (lambda: models.create("squeezenet_v1_1", squeze_ratio=0.5), "did you mean 'squeeze_ratio'"),
        (lambda: models.create("squeezenet_v1_1", bypass="Simple"), "expected one of none, simple, complex"),
        (lambda: models.create("squeezenet_v1_1", stem="5x5/2"), "expected one of 7x7/2, 3x3/2, 3x3/1"),
        (lambda: models.create("squeezenet_v1_1", pooling="same"), "expected one of ceil, floor"),
        (lambda: models.create("squeezenet_v1_1", dtype="float16"), "expected one of float32"),
        (lambda: models.create("squeezenet_v1_1", num_classes=-1), "num_classes=-1; expected at least 0"),
        (lambda: models.create("squeezenet_v1_1", dropout_rate=1.0), "0 <= rate < 1"),
        (lambda: models.create("squeezenet_v1_1", squeeze_ratio=1.1), "fire2 .*expected a squeeze ratio with 0"),
        (lambda: models.create("squeezenet_v1_1", squeeze_ratio=0.001), "squeeze=0; expected at least 1"),
        (lambda: models.create("squeezenet_v1_1", squeeze_ratio=(0.5, 0.5)), "expected one number or 8"),
        (lambda: models.create("squeezenet_v1_1", fraction_3x3=1.0), "expand1x1=0; expected at least 1"),
        (lambda: models.create("squeezenet_v1_1", pool_after=(1, 10)), "from 1 .conv1. to 9 .fire9."),
        (lambda: models.create("squeezenodule_v1", fraction_3x3=0.5), "only 3x3 expand"),
        (lambda: Fire(0, 4, 4), "squeeze=0"),
        (lambda: SimplifiedFire(9, 8), "more than its 8 expand filters"),
    ],
)
def test_illegal_choices_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_illegal_inputs_are_named():
    model = models.create("squeezenet_v1_1", num_classes=3)
    variables = random_variables(model, jnp.zeros((1, 32, 32, 3)))
    for shape, message in [
        ((1, 32, 32, 1), "images have 1 channels .*conv1 expects 3"),
        ((1, 3, 32, 32), "3 pixels along height"),
        ((1, 32, 32, 32, 3), "3 spatial axes .* parameters are of a 2-D network"),
        ((32, 32, 3), r"expected \(batch, height, width, channels\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.apply(variables, jnp.zeros(shape))
