"""SqueezeNext's caffemodels, and its logits against a NumPy forward pass that follows the authors' prototxt."""

import jax
import numpy as np
import pytest
from test_importers import caffe_messages

from squeeze_jax import load, models
from squeeze_jax.errors import WeightError

# Stem, blocks per stage, factor of the widths, groups, and whether a block reads the convolved shortcut.
VARIANTS = {
    "squeezenext_1_0_23": (7, (6, 6, 8, 1), 1, 1, False),
    "squeezenext_1_0_g_23": (7, (6, 6, 8, 1), 1, 2, False),
    "squeezenext_1_0_23v5": (5, (2, 4, 14, 1), 1, 1, True),
    "squeezenext_2_0_23v5": (5, (2, 4, 14, 1), 2, 1, True),
}


class Net:
    """A Caffe network that makes its weights while it computes, in NumPy; images are (channels, height, width)."""

    def __init__(self):
        self.rng = np.random.default_rng(0)
        self.layers = {}  # name -> blobs
        self.count = 0

    def unit(self, x, outputs, kernel, *, stride=1, pad=(0, 0), groups=1):
        """Convolution, BatchNorm, Scale and ReLU of the same number."""
        self.count += 1
        size = (outputs, len(x) // groups, *kernel)
        weights = np.float32(self.rng.normal(0, (2 / np.prod(size[1:])) ** 0.5, size))
        x = np.pad(x, [(0, 0), (pad[0],) * 2, (pad[1],) * 2])
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel, (1, 2))[:, ::stride, ::stride]
        parts = zip(np.split(windows, groups), np.split(weights, groups), strict=True)
        y = np.concatenate([np.einsum("chwij,ocij->ohw", *part, optimize=True) for part in parts])
        mean, variance = np.float32(self.rng.normal(0, 0.2, outputs)), np.float32(self.rng.uniform(0.5, 1.5, outputs))
        scale, bias = np.float32(self.rng.uniform(0.2, 0.8, outputs)), np.float32(self.rng.normal(0, 0.2, outputs))
        # Caffe stores sums, and the weight to divide them by.
        self.layers[f"Convolution{self.count}"] = [weights]
        self.layers[f"BatchNorm{self.count}"] = [mean * 4, variance * 4, np.float32([4])]
        self.layers[f"Scale{self.count}"] = [scale, bias]
        y = (y - mean[:, None, None]) / np.sqrt(variance + 1e-5)[:, None, None]
        return np.maximum(y * scale[:, None, None] + bias[:, None, None], 0)

    def pool(self, x):
        """3x3 with stride 2; a last window that is partly outside counts."""
        outputs = [-(-(n - 3) // 2) + 1 for n in x.shape[1:]]
        x = np.pad(
            x,
            [(0, 0), *[(0, 2 * out + 1 - n) for out, n in zip(outputs, x.shape[1:], strict=True)]],
            constant_values=-np.inf,
        )
        return np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2].max((-2, -1))

    def logits(self, x, variant):
        stem, depths, factor, groups, reads_shortcut = variant
        x = self.pool(self.unit(x, 64, (stem, stem), stride=2))
        for stage, depth in enumerate(depths):
            width = 32 * factor * 2**stage
            for i in range(depth):
                stride = 2 if stage and not i else 1
                shortcut = x if i else self.unit(x, width, (1, 1), stride=stride)
                y, stride = (shortcut, 1) if reads_shortcut and not i else (x, stride)
                y = self.unit(y, width // 2, (1, 1), stride=stride, groups=groups)
                y = self.unit(y, width // 4, (1, 1))
                for vertical in (True, False) if i % 2 == 0 else (False, True):
                    kernel, pad = ((3, 1), (1, 0)) if vertical else ((1, 3), (0, 1))
                    y = self.unit(y, width // 2, kernel, pad=pad, groups=groups)
                x = np.maximum(shortcut + self.unit(y, width, (1, 1)), 0)
        x = self.unit(x, 128, (1, 1)).mean((1, 2))
        # Logits of the size of a trained network's.
        head = np.float32(self.rng.normal(0, 1 / np.linalg.norm(x), (1000, 128)))
        self.layers["fc1000"] = [head]
        return head @ x

    def caffemodel(self, legacy=False, graph=None):
        """The bytes of a file of names and weights; with a graph, (type, bottoms, top) by name, of the whole net."""
        net = caffe_messages()(name="net")
        for name in graph or self.layers:
            layer, blobs = (net.layers if legacy else net.layer).add(name=name), self.layers.get(name, ())
            if graph:
                layer.type, bottoms, top = graph[name]
                layer.bottom.extend(bottoms)
                layer.top.append(top)
            for values in blobs:
                blob = layer.blobs.add()
                blob.data.extend(values.ravel().tolist())
                if legacy:
                    blob.num, blob.channels, blob.height, blob.width = (1,) * (4 - values.ndim) + values.shape
                else:
                    blob.shape.dim.extend(values.shape)
        return net.SerializeToString()


def graph_of(variant):
    """The layers of the prototxt: (type, bottoms, top) by name."""
    _, depths, _, _, reads_shortcut = variant
    graph, count, sums = {}, 0, 0

    def unit(x):
        nonlocal count
        count += 1
        top = f"Convolution{count}"
        graph[top] = "Convolution", [x], top
        for kind in ("BatchNorm", "Scale", "ReLU"):
            graph[f"{kind}{count}"] = kind, [top], top
        return top

    x = unit("data")
    graph["pool1"] = "Pooling", [x], "pool1"
    x = "pool1"
    for depth in depths:
        for i in range(depth):
            shortcut = x if i else unit(x)
            y = shortcut if reads_shortcut and not i else x
            for _ in range(5):
                y = unit(y)
            sums += 1
            graph[f"Eltwise{sums}"] = "Eltwise", [shortcut, y], f"Eltwise{sums}"
            graph[f"relu of Eltwise{sums}"] = "ReLU", [f"Eltwise{sums}"], f"Eltwise{sums}"
            x = f"Eltwise{sums}"
    graph["pool5"] = "Pooling", [unit(x)], "pool5"
    graph["fc1000"] = "InnerProduct", ["pool5"], "fc1000"
    graph["loss"] = "SoftmaxWithLoss", ["fc1000", "label"], "loss"
    return graph


# These two have all options between them.
QUICK = ("squeezenext_1_0_g_23", "squeezenext_1_0_23v5")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]
)
def test_logits_are_those_of_the_prototxt(name, tmp_path):
    image = np.random.default_rng(1).normal(size=(75, 75, 3)).astype(np.float32)
    net = Net()
    expected = net.logits(image.transpose(2, 0, 1)[::-1], VARIANTS[name])  # Caffe takes blue first
    assert net.count == 111
    (tmp_path / "net.caffemodel").write_bytes(net.caffemodel(legacy=name.endswith("g_23")))
    network = load(tmp_path / "net.caffemodel")
    assert network.config.model.name == name and network.config.crop.size == 227
    assert network.config.dataset.mean == (123.0, 117.0, 104.0) and not network.config.crop.keep_aspect
    assert network.model == models.create(name)
    logits = jax.jit(network.model.apply)(network.variables, image[None])[0]
    assert expected.std() > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


def test_a_whole_net_is_compared_layer_by_layer(tmp_path):
    variant = VARIANTS["squeezenext_1_0_23v5"]
    net, path = Net(), tmp_path / "net.caffemodel"
    net.logits(np.zeros((3, 75, 75), np.float32), variant)
    path.write_bytes(net.caffemodel(graph=graph_of(variant)))
    config = load(path).config
    assert config.model.name == "squeezenext_1_0_23v5"
    changes = {
        "ReLU5": ("TanH", ["Convolution5"], "Convolution5"),
        "Eltwise3": ("Eltwise", ["Eltwise2", "Convolution18"], "Eltwise3"),
        "Scale111": ("Dropout", ["Convolution111"], "Convolution111"),
    }
    for name, changed in changes.items():
        path.write_bytes(net.caffemodel(graph={**graph_of(variant), name: changed}))
        with pytest.raises(WeightError, match=rf"'{name}' differs: |'ReLU111' differs: expected scale"):
            load(path)


def test_a_missing_statistic_is_named(tmp_path):
    net = Net()
    net.logits(np.zeros((3, 75, 75), np.float32), VARIANTS["squeezenext_1_0_23v5"])
    del net.layers["BatchNorm7"]
    (tmp_path / "net.caffemodel").write_bytes(net.caffemodel())
    with pytest.raises(WeightError, match=r"- batch_stats/block1/expand_bn/mean \(32,\)"):
        load(tmp_path / "net.caffemodel")
    net.layers["Scale3"] = net.layers["Scale3"] * 2
    (tmp_path / "net.caffemodel").write_bytes(net.caffemodel())
    with pytest.raises(WeightError, match="the layer 'Scale3' has blobs of shapes"):
        load(tmp_path / "net.caffemodel")
