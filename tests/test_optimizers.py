"""Schedules against their formulas; optimizers against a few lines of NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from squeeze_jax.config import base_config, validate
from squeeze_jax.data import augmentation
from squeeze_jax.errors import ConfigError
from squeeze_jax.experiment import make_preprocessing
from squeeze_jax.training import optimizers, schedules
from squeeze_jax.training.optimizers import make_optimizer
from squeeze_jax.training.schedules import make_schedule


def schedule(total=100, warmup=0, rate=0.4, **overrides):
    config = base_config().schedule
    config.update(overrides)
    return make_schedule(config, rate, total, warmup)


def test_polynomial_is_the_papers_linear_decay():
    values = [float(schedule(name="polynomial")(step)) for step in (0, 25, 50, 100)]
    np.testing.assert_allclose(values, [0.4, 0.3, 0.2, 0.0], rtol=1e-6, atol=1e-8)
    assert float(schedule(name="polynomial", power=0.5)(75)) == pytest.approx(0.4 * 0.25**0.5)


def test_other_schedules():
    assert float(schedule(name="constant")(99)) == pytest.approx(0.4)
    assert float(schedule(name="cosine")(50)) == pytest.approx(0.2)
    step = schedule(name="step", milestones=(0.5, 0.75), factor=0.1)
    np.testing.assert_allclose([step(49), step(50), step(74), step(75)], [0.4, 0.04, 0.04, 0.004], rtol=1e-5)
    short = schedule(name="step", milestones=(0.499, 0.5, 0.501), factor=0.5)  # all at step 50
    np.testing.assert_allclose([short(49), short(50)], [0.4, 0.05], rtol=1e-5)
    one_cycle = schedule(name="one_cycle", peak_at=0.3)
    assert max(range(100), key=one_cycle) == 30 and float(one_cycle(30)) == pytest.approx(0.4)


def test_warmup_rises_from_zero_and_shifts_nothing_else():
    rates = schedule(name="step", warmup=10, milestones=(0.5,))
    np.testing.assert_allclose([rates(0), rates(5), rates(10)], [0, 0.2, 0.4], rtol=1e-6)
    np.testing.assert_allclose([rates(49), rates(50)], [0.4, 0.04], rtol=1e-5)
    with pytest.raises(ConfigError, match="has its own warm-up"):
        schedule(name="one_cycle", warmup=10)
    with pytest.raises(ConfigError, match="100 steps, but the run has only 100"):
        schedule(warmup=100)


def follow(overrides, steps=5):
    """The kernel and the bias after some steps with gradients 1, 2, 3, ... and a falling rate."""
    config = base_config().optimizer
    config.update(overrides)
    optimizer = make_optimizer(config, lambda count: 0.1 / (1 + count))
    params = {"kernel": jnp.ones((1, 1)), "bias": jnp.ones((1,))}
    state = optimizer.init(params)
    for step in range(steps):
        gradients = {name: jnp.full_like(value, 1.0 + step) for name, value in params.items()}
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return float(params["kernel"][0, 0]), float(params["bias"][0])


def numpy_sgd(*, decay, caffe=False, nesterov=False, momentum=0.9, steps=5):
    weight, velocity = 1.0, 0.0
    for step in range(steps):
        rate, gradient = 0.1 / (1 + step), 1.0 + step + decay * weight
        if caffe:
            velocity = momentum * velocity + rate * gradient
            weight -= velocity
        else:
            velocity = momentum * velocity + gradient
            weight -= rate * (gradient + momentum * velocity if nesterov else velocity)
    return weight


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_keeps_the_momentum_of_gradients(nesterov):
    kernel, bias = follow({"name": "sgd", "weight_decay": 0.01, "nesterov": nesterov})
    assert kernel == pytest.approx(numpy_sgd(decay=0.01, nesterov=nesterov), rel=1e-5)
    assert bias == pytest.approx(numpy_sgd(decay=0.0, nesterov=nesterov), rel=1e-5)


def test_caffe_sgd_keeps_the_rate_in_its_momentum_and_decays_biases():
    kernel, bias = follow({"name": "caffe_sgd", "weight_decay": 0.01, "decay_biases": True})
    assert kernel == bias == pytest.approx(numpy_sgd(decay=0.01, caffe=True), rel=1e-5)
    assert kernel != pytest.approx(numpy_sgd(decay=0.01), rel=1e-3)


def test_adamw_decays_apart_from_the_gradient():
    kernel, bias = follow({"name": "adamw", "weight_decay": 0.5}, steps=1)
    assert bias == pytest.approx(1 - 0.1, rel=1e-4)
    assert kernel == pytest.approx(1 - 0.1 - 0.1 * 0.5, rel=1e-4)


def test_muon_makes_kernels_orthogonal_and_leaves_biases_to_adam():
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 3, 4, 8)), jnp.float32), "bias": jnp.ones(8)}
    gradients = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
    config = base_config().optimizer
    config.update({"name": "muon", "weight_decay": 0.0})
    optimizer = make_optimizer(config, optax.constant_schedule(0.1))
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    # Of a matrix with all singular values 1 and of 36 x 8 elements, times sqrt(36), the root mean square is 1.
    u, singular, v = np.linalg.svd(np.reshape(updates["kernel"], (36, 8)) / (-0.1 * 0.2 * 6), full_matrices=False)
    assert 0.6 < singular.min() <= singular.max() < 1.3, "the Newton-Schulz steps end near 1, not at it"
    expected_u, _, expected_v = np.linalg.svd(np.reshape(gradients["kernel"], (36, 8)), full_matrices=False)
    np.testing.assert_allclose(u @ v, expected_u @ expected_v, atol=1e-4)
    np.testing.assert_allclose(updates["bias"], -0.1 * np.sign(gradients["bias"]), rtol=1e-4)

    config.update({"weight_decay": 0.5, "decay_biases": True})
    optimizer = make_optimizer(config, optax.constant_schedule(0.1))
    decayed, _ = optimizer.update(gradients, optimizer.init(params), params)
    for name in params:
        np.testing.assert_allclose(decayed[name], updates[name] - 0.1 * 0.5 * params[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rmsprop_is_tensorflows(momentum):
    """tf.compat.v1.train.RMSPropOptimizer: the mean square starts at 1, and epsilon is inside the root."""
    options = {"name": "rmsprop", "momentum": momentum, "rms_decay": 0.8, "epsilon": 0.5, "weight_decay": 0.1}
    weight, mean_square, velocity = 1.0, 1.0, 0.0
    for step in range(5):
        gradient = 1.0 + step + 0.1 * weight
        mean_square = 0.8 * mean_square + 0.2 * gradient**2
        velocity = momentum * velocity + 0.1 / (1 + step) * gradient / np.sqrt(mean_square + 0.5)
        weight -= velocity
    assert follow(options)[0] == pytest.approx(weight, rel=1e-5)


def test_gradient_clip_limits_the_global_norm():
    _, clipped = follow({"gradient_clip": 0.5, "weight_decay": 0.0}, steps=1)
    assert clipped == pytest.approx(1 - 0.1 * 0.5 / np.sqrt(2), rel=1e-5)


def test_rates_by_path_freeze_and_slow_down():
    params = {"conv1": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "conv10": {"kernel": jnp.ones((2, 2))}}
    config = base_config().optimizer
    config.learning_rate_multipliers = (("^conv1/", 0.0), ("conv10", 0.5))
    optimizer = make_optimizer(config, optax.constant_schedule(0.1))
    state = optimizer.init(params)
    new = params
    for _ in range(2):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, new)
        new = optax.apply_updates(new, updates)
    np.testing.assert_array_equal(new["conv1"]["kernel"], params["conv1"]["kernel"])  # no weight decay either
    np.testing.assert_array_equal(new["conv1"]["bias"], params["conv1"]["bias"])
    config.learning_rate_multipliers = ()
    whole = make_optimizer(config, optax.constant_schedule(0.05))
    state, expected = whole.init(params), params
    for _ in range(2):
        updates, state = whole.update(jax.tree.map(jnp.ones_like, params), state, expected)
        expected = optax.apply_updates(expected, updates)
    np.testing.assert_allclose(new["conv10"]["kernel"], expected["conv10"]["kernel"], rtol=1e-5)


def test_a_path_that_fits_nothing_is_named():
    config = base_config().optimizer
    config.learning_rate_multipliers = (("convl", 0.0),)
    with pytest.raises(ConfigError, match="'convl' matches no parameter; expected part of one of conv1/kernel"):
        make_optimizer(config, optax.constant_schedule(0.1)).init({"conv1": {"kernel": jnp.ones((2, 2))}})


def test_schedules_optimizers_and_augmentations_can_be_registered(own_names):
    schedules.register(
        "half", lambda config, rate, steps, warmup: lambda step: rate * config.share + 0 * step, share=0.5
    )
    for _ in range(2):  # as by a config file that is read twice
        optimizers.register("partial", functools.partial(lambda decay, config, rate: [], 0.5))
    augmentation.register("brighter", lambda images, keys: images + 10, moves=False)
    config = base_config()
    assert config.schedule.share == 0.5
    config.schedule.name, config.augment.own = "half", ("brighter",)
    validate(config)
    assert float(make_schedule(config.schedule, 0.2, 10, 2)(5)) == pytest.approx(0.1)
    images = jnp.zeros((2, 4, 4, 1))
    augmented = make_preprocessing(config).augment(images, jax.random.split(jax.random.key(0), 2))
    np.testing.assert_array_equal(augmented, images + 10)
    with pytest.raises(ConfigError, match="another schedule is already registered as 'cosine'"):
        schedules.register("cosine", lambda *_: None)
    config.augment.own = ("brigter",)
    with pytest.raises(ConfigError, match="the augmentation 'brigter' is unknown; did you mean 'brighter'"):
        validate(config)
    optimizers.register("other", lambda *_: [], momentum=0.5)
    with pytest.raises(ConfigError, match="config.optimizer.momentum already exists, so a registered optimizer"):
        base_config()
