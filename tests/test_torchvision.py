"""The imported networks compute what torchvision's do: stored logits, and torchvision itself where it is installed.

    python tests/test_torchvision.py     # stores the logits anew; needs torch and torchvision

Weights and images are seeded, so only the names and shapes of the tensors and a tenth of the logits are stored.
"""

import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from squeeze_jax import load
from squeeze_jax.errors import WeightError
from squeeze_jax.pretrained.pth import read_tensors

GOLDEN = pathlib.Path(__file__).parent / "data" / "torchvision.npz"
NETWORKS = (
    "alexnet",
    "efficientnet_b0",
    "mobilenet_v2",
    "resnet18",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
)
SIZES = (224, 75)  # at 75 pixels, most strides do not divide the maps
EVERY = 10  # stored logits


def seeded(shapes):
    """A state dict of random weights, with statistics that are far from those of a new network."""
    rng = np.random.default_rng(0)
    state = {}
    for name, shape in shapes.items():
        kind = name.rpartition(".")[2]
        if kind == "num_batches_tracked":
            state[name] = np.array(7)
        elif kind == "running_mean" or kind == "bias":
            state[name] = rng.normal(0, 0.2, shape)
        elif kind == "running_var" or len(shape) == 1:
            state[name] = rng.uniform(0.5, 1.5, shape)
        else:
            gain = 0.01 if shape[0] == 1000 else 1  # logits of the size of a trained network's
            state[name] = rng.normal(0, gain, shape) * (2 / np.prod(shape[1:])) ** 0.5
    return {name: value if value.ndim == 0 else value.astype(np.float32) for name, value in state.items()}


def images(size):
    return np.random.default_rng(size).normal(size=(1, size, size, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN)


# Compiling takes most of the time, at any size.
@pytest.mark.parametrize("size", [pytest.param(224, marks=pytest.mark.slow), 75])
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_that_torchvision_computed(name, size, golden, tmp_path):
    state = seeded(json.loads(str(golden[f"{name}/shapes"])))
    safetensors.numpy.save_file(state, tmp_path / "net.safetensors")
    network = load(tmp_path / "net.safetensors")
    assert network.config.model.name == name and network.config.crop.size == 224
    assert network.config.crop.interpolation == ("bicubic" if name == "efficientnet_b0" else "bilinear")
    logits = jax.jit(network.model.apply)(network.variables, images(size))[0, ::EVERY]
    expected = golden[f"{name}/{size}"]
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_that_torchvision_computes(name, golden, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    shapes, model = theirs(name)
    assert shapes == json.loads(str(golden[f"{name}/shapes"]))
    for size in SIZES:
        np.testing.assert_allclose(logits_of(model, size), golden[f"{name}/{size}"], atol=1e-5, rtol=1e-5)
    torch.save(model.state_dict(), tmp_path / "new.pth")
    torch.save(model.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for file in ("new.pth", "old.pth"):
        state = read_tensors(tmp_path / file)
        assert state.keys() == shapes.keys()
        for key, value in seeded(shapes).items():
            np.testing.assert_array_equal(state[key], value, err_msg=key)


def test_another_network_is_named(tmp_path):
    safetensors.numpy.save_file({"stem.weight": np.zeros((2, 2), np.float32)}, tmp_path / "net.safetensors")
    with pytest.raises(
        WeightError, match=r"not a state dict of a network here \(squeezenet_v1_0, .*it has stem.weight"
    ):
        load(tmp_path / "net.safetensors")


def theirs(name):
    """The names and shapes of torchvision's tensors, and the network with seeded weights."""
    import torch
    import torchvision.models

    model = getattr(torchvision.models, name)().eval()
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in seeded(shapes).items()})
    return shapes, model


def logits_of(model, size):
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(images(size).transpose(0, 3, 1, 2).copy()))[0, ::EVERY].numpy()


def write():
    stored = {}
    for name in NETWORKS:
        shapes, model = theirs(name)
        stored[f"{name}/shapes"] = np.array(json.dumps(shapes))
        stored |= {f"{name}/{size}": logits_of(model, size) for size in SIZES}
    np.savez_compressed(GOLDEN, **stored)


if __name__ == "__main__":
    write()
