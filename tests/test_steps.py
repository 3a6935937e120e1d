"""The training and the evaluation step on their own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from squeeze_jax import metrics, models
from squeeze_jax.data.augment import Preprocessing, random_crop, random_flip
from squeeze_jax.state import all_finite, create_state
from squeeze_jax.steps import make_eval_step, make_train_step

SIZE, SHAPE, CLASSES = 8, (20, 20, 1), 10
PLAIN = Preprocessing(mean=(127.0,), std=(64.0,))


def small_model(**overrides):
    small = {"num_classes": CLASSES, "base_filters": 8, "filter_increment": 8, "stem": "3x3/1", "stem_filters": 8}
    return models.create("squeezenet_v1_1", **{**small, "dropout_rate": 0.0, "head_relu": False, **overrides})


def batch(size=SIZE, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, *SHAPE)).astype(np.uint8)
    return {"image": jnp.array(images), "label": jnp.array(rng.integers(0, CLASSES, size), jnp.int32)}


def after_steps(model, steps=1, use_ema=False, preprocessing=PLAIN, optimizer=None, **options):
    optimizer = optimizer or optax.sgd(0.1)
    state = jax.jit(lambda: create_state(model, optimizer, SHAPE, seed=0, use_ema=use_ema))()
    step = jax.jit(make_train_step(model, optimizer, preprocessing.train, seed=0, **options))
    for i in range(steps):
        state = step(state, batch(seed=i))
    return state


def assert_close(tree, other, tolerance):
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=0)


def test_micro_batches_change_nothing_without_batch_norm():
    model = small_model(dropout_rate=0.5)
    augmented = Preprocessing(mean=(127.0,), std=(64.0,), flip=True, pad_and_crop=2)
    whole = after_steps(model, preprocessing=augmented)
    parts = after_steps(model, preprocessing=augmented, micro_batches=2)
    assert_close(whole.params, parts.params, 1e-6)
    assert int(parts.window["examples"]) == SIZE
    assert float(parts.window["loss"]) == pytest.approx(float(whole.window["loss"]), rel=1e-5)


def test_the_step_is_gradient_descent_on_the_smoothed_loss():
    model = small_model()
    state = jax.jit(lambda: create_state(model, optax.sgd(0.1), SHAPE, seed=0, use_ema=False))()
    data = batch()

    def loss(params):
        log_probabilities = jax.nn.log_softmax(model.apply({"params": params}, (data["image"] - 127.0) / 64.0))
        targets = 0.9 * jax.nn.one_hot(data["label"], CLASSES) + 0.1 / CLASSES
        return -(targets * log_probabilities).sum(-1).mean()

    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, jax.jit(jax.grad(loss))(state.params))
    new = after_steps(model, label_smoothing=0.1)
    assert_close(new.params, expected, 1e-6)
    assert float(new.window["loss"]) / SIZE == pytest.approx(float(loss(state.params)), rel=1e-5)


def test_averaged_weights_warm_up_and_evaluate():
    model, optimizer = small_model(use_batch_norm=True), optax.sgd(0.1)
    state = jax.jit(lambda: create_state(model, optimizer, SHAPE, seed=0, use_ema=True))()
    step = jax.jit(make_train_step(model, optimizer, PLAIN.train, seed=0, ema_decay=0.3))
    average = state.ema
    for i, decay in enumerate([1 / 10, 2 / 11, 3 / 12, 0.3]):  # the warm-up, (1 + step) / (10 + step), then the decay
        state = step(state, batch(seed=i))
        new = {"params": state.params, "batch_stats": state.batch_stats}
        average = jax.tree.map(lambda a, n, d=decay: d * a + (1 - d) * n, average, new)
    assert_close(state.ema, average, 1e-6)
    assert state.eval_variables() is state.ema
    assert state.replace(ema={}).eval_variables()["params"] is state.params


def test_a_window_sums_since_it_was_emptied():
    state = after_steps(small_model(), steps=3)
    assert int(state.window["steps"]) == 3 and int(state.window["examples"]) == 3 * SIZE
    values = metrics.window_means(jax.device_get(state.window), CLASSES)
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


def test_resizing_is_bilinear_and_the_identity_at_the_same_size():
    small = jnp.arange(64, dtype=jnp.uint8).reshape(1, 8, 8, 1)
    enlarged = Preprocessing(image_size=(32, 32)).resize(small)
    assert enlarged.shape == (1, 32, 32, 1) and float(enlarged.max()) <= 63
    np.testing.assert_allclose(np.diff(enlarged[0, 0, 4:28, 0]), 0.25, rtol=1e-5)
    np.testing.assert_array_equal(Preprocessing(image_size=(8, 8)).resize(small), small)


class Constant(nn.Module):
    """Always answers the same class."""

    answer: int

    @nn.compact
    def __call__(self, images):
        return jnp.tile(jax.nn.one_hot(self.answer, CLASSES) * 3.0, (images.shape[0], 1))


def test_a_constant_answer_gets_the_hand_computed_accuracy():
    labels = jnp.array([2, 2, 5, 1, 2, 9, 2, 2], jnp.int32)
    mask = jnp.array([True] * 6 + [False] * 2)
    step = make_eval_step(Constant(2), lambda images: images.astype(jnp.float32), confusion=True)
    sums = jax.jit(step)({}, {"image": batch()["image"], "label": labels, "mask": mask})
    totals = metrics.add_up([sums, sums])
    assert totals["examples"] == 12 and totals["top1"] == 6 and totals["examples"].dtype == np.int64
    # Behind class 2 the lowest classes win the tie for the five best: 0, 1, 3, 4.
    assert totals["top5"] == 8
    right, wrong = np.log(np.exp(3) + 9) - 3, np.log(np.exp(3) + 9)
    assert totals["loss"] == pytest.approx(2 * (3 * right + 3 * wrong), rel=1e-6)
    assert totals["confusion"].sum() == 12 and totals["confusion"][2, 2] == 6 and totals["confusion"][9, 2] == 2
    rows = metrics.per_class(totals["confusion"], tuple("abcdefghij"))
    assert rows[2]["accuracy"] == 1.0 and rows[2]["precision"] == 0.5 and np.isnan(rows[0]["accuracy"])


def test_equal_logits_are_no_hit_for_everyone():
    class Flat(nn.Module):
        @nn.compact
        def __call__(self, images):
            return jnp.zeros((images.shape[0], CLASSES))

    data = {"image": batch(CLASSES)["image"], "label": jnp.arange(CLASSES), "mask": jnp.ones(CLASSES, bool)}
    sums = make_eval_step(Flat(), lambda images: images)({}, data)
    assert int(sums["top1"]) == 1 and int(sums["top5"]) == 5


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_step_keeps_every_shape_and_dtype(dtype):
    """Otherwise the second step compiles again, and a checkpoint does not fit its template."""
    with jax.enable_x64(dtype == "float64"):
        model, optimizer = small_model(use_batch_norm=True, dtype=dtype), optax.sgd(0.1, momentum=0.9)
        state = jax.eval_shape(lambda: create_state(model, optimizer, SHAPE, seed=0, use_ema=True))
        step = make_train_step(model, optimizer, PLAIN.train, seed=0, ema_decay=0.9)
        assert jax.eval_shape(step, state, batch()) == state


def test_a_state_that_is_not_finite_is_seen():
    state = after_steps(small_model(), steps=0)
    assert all_finite(state)
    bad = state.replace(params=jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan), state.params))
    assert not all_finite(bad)
