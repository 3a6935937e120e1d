"""What a program holds for each platform: accelerators get the plain operations, whatever machine lowers it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax._src.interpreters import mlir
from jaxlib.mlir import ir, passmanager

from squeeze_jax import models

CASES = {
    "2-D": ("squeezenet_v1_0", {"num_classes": 10}, (64, 64, 3), (26, 3)),
    "3-D": ("squeezenodule_v1", {"num_classes": 2, "stem": "3x3/2"}, (28, 28, 28, 1), (18, 3)),
}


def network(case):
    name, options, shape, operations = CASES[case]
    model = models.create(name, **options)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, *shape)), jnp.float32)
    return model, jax.jit(model.init)(jax.random.key(0), images), images, operations


def lowered(function, platforms, *arguments):
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    return export.export(jax.jit(function), platforms=platforms)(*shapes)


def module(exported):
    """The StableHLO, after the pass that resolves a choice which has one outcome."""
    with mlir.make_ir_context():
        parsed = ir.Module.parse(exported.mlir_module())
        passmanager.PassManager.parse("builtin.module(func.func(canonicalize))").run(parsed.operation)
        return str(parsed)


def count(exported, operation):
    return len(re.findall(rf"stablehlo\.{operation}\b", module(exported)))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_get_plain_convolutions_and_window_reductions(case, platform):
    model, variables, images, (convolutions, pools) = network(case)
    exported = lowered(model.apply, [platform], variables, images)
    assert count(exported, "convolution") == convolutions and count(exported, "reduce_window") == pools
    assert count(exported, "dot_general") == count(exported, "case") == 0
    # Each convolution has the rank of its image: none was folded into planes.
    rank = images.ndim
    kernels = re.findall(r"stablehlo\.convolution\(.*?\) .*? : \(tensor<([\dx]+)xf32>", module(exported))
    assert len(kernels) == convolutions and {shape.count("x") + 1 for shape in kernels} == {rank}


@pytest.mark.parametrize("name", ["mobilenet_v2", "alexnet_grouped", "squeezenext_1_0_g_23"])
def test_accelerators_get_plain_grouped_convolutions(name):
    model, images = models.create(name), jnp.zeros((2, 227, 227, 3))
    exported = lowered(model.apply, ["cuda"], jax.eval_shape(model.init, jax.random.key(0), images), images)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    kernels = [leaf for leaf in jax.tree.leaves(shapes) if leaf.ndim == 4]
    dense = 1 + 2 * (name == "alexnet_grouped")
    assert count(exported, "dot_general") == dense and count(exported, "case") == 0
    assert count(exported, "convolution") == len(kernels) - (name == "alexnet_grouped")  # fc6 has a kernel of its map


@pytest.mark.parametrize("case", CASES)
def test_a_cpu_gets_its_own_formulations_and_several_platforms_share_one_module(case):
    model, variables, images, (_, pools) = network(case)
    expected = jax.jit(model.apply)(variables, images)
    alone = lowered(model.apply, ["cpu"], variables, images)
    assert count(alone, "dot_general") > 0 and count(alone, "reduce_window") == count(alone, "case") == 0
    np.testing.assert_allclose(alone.call(variables, images), expected, rtol=1e-5, atol=1e-6)
    together = lowered(model.apply, ["cpu", "cuda", "tpu"], variables, images)
    assert together.platforms == ("cpu", "cuda", "tpu") and count(together, "case") >= pools
    np.testing.assert_allclose(together.call(variables, images), expected, rtol=1e-5, atol=1e-6)


def test_gradients_for_an_accelerator_hold_nothing_of_the_cpus():
    model, variables, images, (_, pools) = network("2-D")

    def gradient(variables, images):
        return jax.grad(lambda v: model.apply(v, images).sum())(variables)

    exported = lowered(gradient, ["cuda"], variables, images)
    assert count(exported, "dot_general") == count(exported, "case") == 0
    assert count(exported, "select_and_scatter") == pools
