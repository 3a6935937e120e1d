"""The training and the evaluation step on their own."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from squeeze_jax import models
from squeeze_jax.data.augmentation import (
    Preprocessing,
    mirror_images,
    mixup,
    random_crop,
    random_cutout,
    random_flip,
    random_quarter_turns,
    random_rotation,
    random_scale,
    shift_intensity,
)
from squeeze_jax.errors import ConfigError, TrainingError
from squeeze_jax.tasks import Classification
from squeeze_jax.training.health import Health
from squeeze_jax.training.recorder import window_means
from squeeze_jax.training.state import create_state
from squeeze_jax.training.steps import make_train_step

SIZE, SHAPE, CLASSES = 8, (20, 20, 1), 10
PLAIN = Preprocessing(mean=(127.0,), std=(64.0,))


SUMS = {name: jax.ShapeDtypeStruct((), jnp.int32) for name in ("examples", "top1", "top5")}
SUMS["loss"] = jax.ShapeDtypeStruct((), jnp.float32)


def classifier(preprocessing=PLAIN, **options):
    return Classification(tuple("abcdefghij"), preprocessing, **options)


def small_model(**overrides):
    small = {"num_classes": CLASSES, "base_filters": 8, "filter_increment": 8, "stem": "3x3/1", "stem_filters": 8}
    return models.create("squeezenodule_v1", **{**small, "dropout_rate": 0.0, "head_relu": False, **overrides})


def batch(size=SIZE, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, *SHAPE)).astype(np.uint8)
    return {"image": jnp.array(images), "label": jnp.array(rng.integers(0, CLASSES, size), jnp.int32)}


def after_steps(model, steps=1, task=None, **options):
    optimizer = optax.sgd(0.1)
    state = jax.jit(lambda: create_state(model, optimizer, SHAPE, SUMS, 0, use_ema=False))()
    step = jax.jit(make_train_step(model, task or classifier(), optimizer, **options))
    for i in range(steps):
        state = step(state, batch(seed=i), 0)
    return state


def assert_close(tree, other, tolerance):
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=0)


def test_micro_batches_change_nothing_without_batch_norm():
    model = small_model(dropout_rate=0.5)
    augmented = Preprocessing(mean=(127.0,), std=(64.0,), flip=("width",), pad_and_crop=2)
    whole = after_steps(model, task=classifier(augmented))
    parts = after_steps(model, task=classifier(augmented), micro_batches=2)
    assert_close(whole.params, parts.params, 1e-6)
    assert int(parts.window["sums"]["examples"]) == SIZE
    assert float(parts.window["sums"]["loss"]) == pytest.approx(float(whole.window["sums"]["loss"]), rel=1e-5)


def test_the_step_is_gradient_descent_on_the_smoothed_and_weighted_loss():
    model, weights = small_model(), tuple(np.linspace(0.5, 2, CLASSES))
    state = jax.jit(lambda: create_state(model, optax.sgd(0.1), SHAPE, SUMS, 0, use_ema=False))()
    data = batch()

    def loss(params):
        log_probabilities = jax.nn.log_softmax(model.apply({"params": params}, (data["image"] - 127.0) / 64.0))
        targets = 0.9 * jax.nn.one_hot(data["label"], CLASSES) + 0.1 / CLASSES
        return -(jnp.array(weights) * targets * log_probabilities).sum(-1).mean()

    value, gradients = jax.jit(jax.value_and_grad(loss))(state.params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, gradients)
    new = after_steps(model, task=classifier(label_smoothing=0.1, class_weights=weights))
    assert_close(new.params, expected, 1e-6)
    assert float(new.window["sums"]["loss"]) / SIZE == pytest.approx(float(value), rel=1e-5)


def test_averaged_weights_warm_up_and_evaluate():
    model, optimizer = small_model(use_batch_norm=True), optax.sgd(0.1)
    state = jax.jit(lambda: create_state(model, optimizer, SHAPE, SUMS, 0, use_ema=True))()
    step = jax.jit(make_train_step(model, classifier(), optimizer, ema_decay=0.3))
    average = state.ema
    for i, decay in enumerate([1 / 10, 2 / 11, 3 / 12, 0.3]):  # the warm-up, (1 + step) / (10 + step), then the decay
        state = step(state, batch(seed=i), 0)
        new = {"params": state.params, "batch_stats": state.batch_stats}
        average = jax.tree.map(lambda a, n, d=decay: d * a + (1 - d) * n, average, new)
    assert_close(state.ema, average, 1e-6)
    assert state.eval_variables() is state.ema
    assert state.replace(ema={}).eval_variables()["params"] is state.params


def test_a_window_sums_since_it_was_emptied():
    state = after_steps(small_model(), steps=3)
    assert int(state.window["steps"]) == 3 and int(state.window["sums"]["examples"]) == 3 * SIZE
    values = window_means(jax.device_get(state.window), classifier())
    assert set(values) == {"loss", "top1", "top5", "gradient_norm", "parameter_norm", "update_norm"}
    assert values["update_norm"] == pytest.approx(0.1 * values["gradient_norm"], rel=1e-4)


def test_randomness_differs_between_steps_and_examples():
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(64))
    images = jnp.tile(jnp.arange(36.0).reshape(1, 6, 6, 1), (64, 1, 1, 1))
    flipped = random_flip(images, keys)
    count = int((flipped[:, 0, 0, 0] != 0).sum())
    assert 16 < count < 48
    np.testing.assert_array_equal(flipped.sum((1, 2, 3)), images.sum((1, 2, 3)))
    cropped = random_crop(images + 1, keys, 2)
    corners = {tuple(np.argwhere(np.asarray(c)[..., 0] > 0)[0]) for c in cropped}
    assert cropped.shape == images.shape and len(corners) > 4
    volumes = jnp.ones((64, 6, 6, 6, 2))
    assert random_crop(volumes, keys, 1).shape == volumes.shape


KEYS = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(256))


def test_every_axis_is_flipped_on_its_own():
    volume = jnp.arange(8.0).reshape(1, 2, 2, 2, 1)
    flipped = random_flip(jnp.tile(volume, (256, 1, 1, 1, 1)), KEYS, (0, 1, 2))
    assert len({tuple(v.ravel()) for v in np.asarray(flipped)}) == 8
    only_depth = random_flip(jnp.tile(volume, (256, 1, 1, 1, 1)), KEYS, (0,))
    expected = {tuple(np.asarray(volume[0]).ravel()), tuple(np.asarray(volume[0, ::-1]).ravel())}
    assert {tuple(v.ravel()) for v in np.asarray(only_depth)} == expected


def test_mirror_images_are_all_that_the_axes_allow():
    volume = jnp.arange(8.0).reshape(1, 2, 2, 2, 1)
    views = mirror_images(volume, ("depth", "height", "width"))
    assert len(views) == len({tuple(np.asarray(view).ravel()) for view in views}) == 8
    itself, mirrored = mirror_images(volume, ("width",))
    np.testing.assert_array_equal(itself, volume)
    np.testing.assert_array_equal(mirrored, volume[:, :, :, ::-1])
    with pytest.raises(ValueError, match="config.task.mirror names depth; images of 2 spatial axes have height"):
        mirror_images(volume[0], ("depth",))


def test_quarter_turns_reach_every_turn():
    image = np.arange(9, dtype=np.float32).reshape(3, 3, 1)
    turned = random_quarter_turns(jnp.tile(image, (256, 1, 1, 1)), KEYS)
    assert {np.asarray(t).tobytes() for t in turned} == {np.rot90(image, k).tobytes() for k in range(4)}


def test_rotation_is_pillows():
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    rotated = np.asarray(random_rotation(jnp.tile(image, (4, 1, 1, 1)), KEYS[:4], 30.0))
    for key, ours in zip(KEYS[:4], rotated, strict=True):
        angle = float(jax.random.uniform(key, (), minval=-30.0, maxval=30.0))
        candidates = [np.asarray(Image.fromarray(image).rotate(sign * angle)) for sign in (1, -1)]
        # Pixels on the edge between two cells may round either way.
        assert max((ours == c).mean() for c in candidates) > 0.9
    still = random_rotation(jnp.asarray(image)[None], KEYS[:1], 1e-3)
    np.testing.assert_array_equal(still[0], image)


@pytest.mark.parametrize("shape", [(12, 12, 3), (12, 12, 12, 1)])
def test_cutout_fills_at_most_a_cube(shape):
    images = jnp.zeros((256, *shape))
    filled = (np.asarray(random_cutout(images, KEYS, 4, jnp.ones(shape[-1]))) == 1).sum(
        axis=tuple(range(1, len(shape) + 1))
    )
    cube = 4 ** (len(shape) - 1) * shape[-1]
    assert filled.max() == cube and 0 < filled.min() < cube


def test_intensity_is_random_in_training_and_the_middle_in_evaluation():
    preprocessing = Preprocessing(std=(1.0,), intensity=(0.5, 1.0))
    images = jnp.full((256, 4, 4, 1), 100, jnp.uint8)
    assert float(preprocessing.evaluate(images)[0, 0, 0, 0]) == 75.0
    drawn = np.asarray(preprocessing.augment(images, KEYS))
    assert (drawn == drawn[:, :1, :1]).all()
    assert 50 <= drawn.min() < 52 and 98 < drawn.max() <= 100


def test_mixup_mixes_neighbors_and_their_targets_alike():
    images = jnp.arange(256.0).reshape(256, 1, 1, 1) * jnp.ones((256, 2, 2, 1))
    targets = jax.nn.one_hot(jnp.arange(256) % CLASSES, CLASSES)
    mixed, mixed_targets = mixup(images, targets, KEYS, 0.4)
    own = jnp.arange(256) % CLASSES
    share = np.asarray(mixed_targets)[np.arange(256), own]
    neighbor = np.arange(256) ^ 1
    np.testing.assert_allclose(mixed[:, 0, 0, 0], share * np.arange(256) + (1 - share) * neighbor, rtol=1e-4)
    np.testing.assert_allclose(mixed_targets.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(mixed_targets)[np.arange(256), (neighbor % CLASSES)], 1 - share, atol=1e-5)
    assert share.min() >= 0.5 and share.max() > 0.99 and share.std() > 0.1


def test_mixup_trains():
    plain, mixed = after_steps(small_model()), after_steps(small_model(), task=classifier(mixup=1.0))
    assert np.isfinite(float(mixed.window["sums"]["loss"]))
    assert float(mixed.window["sums"]["loss"]) != float(plain.window["sums"]["loss"])


@pytest.mark.parametrize(
    ("preprocessing", "shape", "message"),
    [
        (Preprocessing(flip=("depth",)), (8, 8, 1), "config.augment.flip names depth; images of 2 spatial axes have"),
        (Preprocessing(quarter_turns=True), (8, 6, 1), r"needs images with equal sides; these have \(8, 6\)"),
        (Preprocessing(rotate=10.0), (8, 8, 8, 1), "config.augment.rotate is for 2-D images"),
        (Preprocessing(cutout=9), (8, 8, 1), "config.augment.cutout=9 is larger than the images"),
    ],
)
def test_augmentation_that_does_not_fit_is_named(preprocessing, shape, message):
    with pytest.raises(ConfigError, match=message):
        preprocessing.augment(jnp.zeros((2, *shape)), KEYS[:2])


def test_resizing_is_bilinear_and_the_identity_at_the_same_size():
    small = jnp.arange(64, dtype=jnp.uint8).reshape(1, 8, 8, 1)
    enlarged = Preprocessing(image_size=(32, 32)).resize(small)
    assert enlarged.shape == (1, 32, 32, 1) and float(enlarged.max()) <= 63
    np.testing.assert_allclose(np.diff(enlarged[0, 0, 4:28, 0]), 0.25, rtol=1e-5)
    np.testing.assert_array_equal(Preprocessing(image_size=(8, 8)).resize(small), small)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_step_keeps_every_shape_and_dtype(dtype):
    """Otherwise the second step compiles again, and a checkpoint does not fit its template."""
    with jax.enable_x64(dtype == "float64"):
        model, optimizer = small_model(use_batch_norm=True, dtype=dtype), optax.sgd(0.1, momentum=0.9)
        sums = {**SUMS, "loss": jax.ShapeDtypeStruct((), jnp.float64 if dtype == "float64" else jnp.float32)}
        state = jax.eval_shape(lambda: create_state(model, optimizer, SHAPE, sums, 0, use_ema=True))
        task = classifier(Preprocessing(dtype="float64" if dtype == "float64" else "float32"))
        step = make_train_step(model, task, optimizer, ema_decay=0.9)
        assert jax.eval_shape(step, state, batch(), 0) == state


def test_a_state_that_is_not_finite_is_seen():
    state, health = after_steps(small_model(), steps=0), Health(0, None)
    health.check_finite(state, 2, 0.1)
    bad = state.replace(params=jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan), state.params))
    with pytest.raises(TrainingError, match="not finite between steps 3 and 3"):
        health.check_finite(bad, 3, 0.1)


@pytest.mark.parametrize(
    ("train", "validation", "warns"),
    [(1.1, 1.0986, True), (1.2, None, True), (0.9, 1.5, False), (1.0986, 0.7, False), (0.4, None, False)],
)
def test_a_run_that_ends_at_chance_level_says_so(caplog, train, validation, warns):
    values = {"train": {"loss": train}} | ({} if validation is None else {"validation": {"loss": validation}})
    Health(0, math.log(3)).warn_at_end(values)
    assert ("this run ended at chance level: its loss is not below 1.099" in caplog.text) == warns
    Health(0, None).warn_at_end(values)


def test_a_volume_gets_all_rotations_of_the_cube_equally_often():
    cube = jnp.arange(27.0).reshape(3, 3, 3, 1)
    keys = jax.random.split(jax.random.key(0), 1200)
    found = np.asarray(random_quarter_turns(jnp.tile(cube, (1200, 1, 1, 1, 1)), keys))[..., 0]
    rotations = set()
    grid = np.asarray(cube)[..., 0]
    for turned in (grid, *(np.rot90(grid, i, (0, 1)) for i in (1, 2, 3)), *(np.rot90(grid, i, (0, 2)) for i in (1, 3))):
        rotations |= {np.rot90(turned, i, (1, 2)).tobytes() for i in range(4)}
    seen, counts = np.unique(found.reshape(1200, -1), axis=0, return_counts=True)
    assert {row.astype(grid.dtype).tobytes() for row in seen} == rotations and len(rotations) == 24
    assert counts.min() > 25 and counts.max() < 85  # 50 each on average


def test_scale_and_intensity_shift_of_volumes():
    volume = jnp.zeros((2, 9, 9, 9, 1)).at[:, 3:6, 3:6, 3:6].set(100.0)
    keys = jax.random.split(jax.random.key(3), 2)
    same = random_scale(volume, keys, (1.0, 1.0))
    np.testing.assert_allclose(same, volume, atol=1e-4)
    twice = np.asarray(random_scale(volume, keys, (2.0, 2.0)))[0, ..., 0]
    assert twice[4, 4, 4] == pytest.approx(100) and twice[2, 4, 4] == pytest.approx(100) and twice[0, 4, 4] < 1
    half = np.asarray(random_scale(volume + 100, keys, (0.5, 0.5)))[0, ..., 0]
    assert half[0].max() == 0 and half[4, 4, 4] > 150  # what lies outside is black
    bright = np.asarray(shift_intensity(volume, keys, 20.0))
    shifts = bright[:, 4, 4, 4, 0] - 100
    assert (abs(shifts) <= 20).all() and shifts[0] != shifts[1] and bright.min() >= 0
    alone = random_scale(volume[1:], keys[1:], (0.8, 1.2))
    np.testing.assert_array_equal(random_scale(volume, keys, (0.8, 1.2))[1:], alone)
