"""Weights that a run starts from: what comes with them, and 2-D ones in a 3-D network."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from squeeze_jax import models, pretrained
from squeeze_jax.config import base_config, check_same_experiment, complete, save
from squeeze_jax.errors import ConfigError
from squeeze_jax.network import Network
from squeeze_jax.training.fine_tuning import inflate, start_from, with_weights
from squeeze_jax.training.state import create_state
from squeeze_jax.validation import UNSET, lookup

# Small enough to compile quickly, and its receptive field fits into the depth of the volume.
MODEL = {
    "stem": "3x3/1",
    "stem_filters": 4,
    "base_filters": 4,
    "filter_increment": 4,
    "squeeze_ratio": 0.5,
    "pool_after": (1,),
}
DEPTH, SIDE = 64, 8


@pytest.fixture(scope="module")
def flat():
    config = base_config()
    config.update_from_flattened_dict({"model.name": "squeezenet_v1_1", **{f"model.{k}": v for k, v in MODEL.items()}})
    model = models.create("squeezenet_v1_1", **MODEL, use_batch_norm=True, num_classes=3)
    config.model.use_batch_norm = True
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, SIDE, SIDE, 3), np.float32))
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.uniform(-1 if leaf.ndim > 1 else 0.5, 1, leaf.shape).astype(leaf.dtype)  # noqa: E731
    variables = jax.tree.map(draw, shapes)
    return Network(model, variables, config, 0, ("a", "b", "c"), (SIDE, SIDE, 3))


def start(network, folder, channels, **options):
    """The state of a 3-D network that starts from a 2-D one."""
    pretrained.save(network, folder / "flat.safetensors")
    optimizer = optax.sgd(0.1)
    shape = (DEPTH, SIDE, SIDE, channels)
    state = jax.eval_shape(lambda: create_state(network.model, optimizer, shape, {}, 0, use_ema=False))
    return start_from(state, network.model, optimizer, folder / "flat.safetensors", new_head=False, **options)


def test_a_volume_that_is_constant_along_its_depth_gives_the_2d_maps(flat, tmp_path):
    assert flat.model.receptive_field() < DEPTH
    state = start(flat, tmp_path, 3)
    image = np.random.default_rng(1).normal(size=(1, SIDE, SIDE, 3)).astype(np.float32)
    volume = np.repeat(image[:, None], DEPTH, axis=1)
    features = jax.jit(lambda variables, images: flat.model.apply(variables, images, method="features"))
    of_image, of_volume = features(flat.variables, image), features(state.eval_variables(), volume)
    assert of_image.keys() == of_volume.keys()
    for name, expected in of_image.items():
        assert np.ptp(expected) > 0, name
        middle = of_volume[name][:, of_volume[name].shape[1] // 2]
        # Relative to the map: a value near zero is the difference of large ones.
        np.testing.assert_allclose(middle, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=name)
    border = of_volume["fire2"][:, 0]
    assert np.abs(border - of_image["fire2"]).max() > 1e-3, "padding has no effect, so this shows nothing"


def test_a_kernel_for_colors_sums_them_for_a_gray_volume(flat, tmp_path):
    kernel = flat.variables["params"]["conv1"]["kernel"]
    found = start(flat, tmp_path, 1).params["conv1"]["kernel"]
    assert found.shape == (3, 3, 3, 1, 4)
    np.testing.assert_allclose(found.sum(axis=0), kernel.sum(axis=2, keepdims=True), rtol=1e-5)
    assert inflate(kernel, (3, 3, 3, 3, 4)).shape == (3, 3, 3, 3, 4)


def test_other_differences_are_still_errors(flat, tmp_path):
    with pytest.raises(ConfigError, match=r"- params/conv1/kernel \(3, 3, 3, 2, 4\)"):
        start(flat, tmp_path, 2)


def test_what_shapes_do_not_show_is_warned_of(flat, tmp_path, caplog):
    pretrained.save(flat, tmp_path / "flat.safetensors")
    state = jax.eval_shape(lambda: create_state(flat.model, optax.sgd(0.1), (SIDE, SIDE, 3), {}, 0, use_ema=False))
    other = models.create("squeezenet_v1_1", **{**MODEL, "pool_after": (2,)}, use_batch_norm=True, num_classes=3)
    for model, expected in ((flat.model, ""), (other, "now pool_after=(2,) instead of (1,)")):
        caplog.clear()
        start_from(state, model, optax.sgd(0.1), tmp_path / "flat.safetensors", new_head=False)
        assert (expected in caplog.text) if expected else not caplog.text


def test_preprocessing_and_network_come_with_the_weights(flat, tmp_path):
    config = flat.config.copy_and_resolve_references()
    config.dataset.update({"mean": (9.0, 8.0, 7.0), "std": (2.0,), "channels": 3})
    config.crop.update({"size": 60, "resize": 80, "keep_aspect": False, "interpolation": "bicubic"})
    weights = dataclasses.replace(flat, config=config, image_shape=(60, 60, 3))
    pretrained.save(weights, tmp_path / "w.safetensors")
    given = base_config()
    given.init_from, given.model.name = str(tmp_path / "w.safetensors"), None
    full = with_weights(given)
    for key in UNSET:
        assert lookup(full, key) == lookup(complete(config), key), key
    assert full.model.name == "squeezenet_v1_1" and full.model.use_batch_norm and full.model.num_classes is None
    assert [full.model[key] for key in MODEL] == list(MODEL.values()) and given.dataset.mean is None

    given.crop.size = 30
    assert with_weights(given).crop.resize == 40
    given.crop.resize = 0
    assert with_weights(given).crop.resize == 30
    given.crop.resize = None
    given.crop.size, given.dataset.image_size = None, (32, 32)
    assert with_weights(given).crop.size == 0, "resized on the device instead"
    for mean in ((8.0,), (9.0, 8.0, 7.0)):  # the average is for gray images
        given.dataset.mean = mean
        assert with_weights(given).dataset.mean == mean
    given.dataset.mean = (0.0,)
    with pytest.raises(ConfigError, match=r"mean=\(0.0,\), but the weights .* with \(9.0, 8.0, 7.0\); leave .* out to"):
        with_weights(given)
    given.init_from = ""
    with pytest.raises(ConfigError, match="config.model.name is None, which takes the network of config.init_from"):
        with_weights(given)
    given.model.name, given.dataset.mean = "squeezenet_v1_1", None
    assert with_weights(given).dataset.mean == (0.0,)


def test_a_resumed_run_does_not_read_its_first_weights(flat, tmp_path):
    stored = complete(flat.config)
    stored.init_from, stored.dataset.mean = "gone.safetensors", (3.0,)
    save(tmp_path, stored, {"class_names": ["a", "b"], "image_shape": [SIDE, SIDE, 3]})
    given = flat.config.copy_and_resolve_references()
    given.init_from, given.dataset.mean = "gone.safetensors", None
    assert with_weights(given, tmp_path).dataset.mean == (3.0,)
    check_same_experiment(stored, given, tmp_path)
    given.dataset.mean = (4.0,)
    with pytest.raises(ConfigError, match="dataset.mean"):
        check_same_experiment(stored, given, tmp_path)
