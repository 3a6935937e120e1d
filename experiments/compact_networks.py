"""SqueezeNet and the networks that it is compared with, trained alike: accuracy against size, compute, bytes, latency.

    python -m experiments.compact_networks --workdir runs/compact_tuning --output experiments/results
    python -m experiments.compact_networks --setting cifar10 --workdir runs/compact --output experiments/results
    python -m experiments.compact_networks --costs runs/compact
    python -m experiments.compact_networks --setting cifar10 --workdir runs/compact --report \\
        --output experiments/results

Every network has the same budget: the same epochs, batches, augmentation and optimizer, and the same three learning
rates, tried for half an epoch with one seed on held-out images (the first command). The second command trains each
network with its best rate and 3 seeds; it takes the rates from experiments/results/compact_networks_tuning.csv. The
third one measures the networks of the first seed: their bytes as .sqz files with shared weights of 8 bits, their
latency at batch 1 in JAX and, exported, in ONNX Runtime in float and int8, and the test top-1 that is left in .sqz and
in int8. The last one adds this to the report. `imagenet` trains all of them at 224 pixels by torchvision's recipe for
ResNet-18.

The networks have their published stems and the 32 x 32 pixels of CIFAR-10, so that their costs relate as at 224.
AlexNet takes no less than 63 pixels; its images are enlarged to 64. SqueezeNet and SqueezeNodule-Net have batch norm
and no ReLU after the last layer, as in configs/cifar10.py. Dropout is off everywhere: so short a training does not
overfit.

The quoted column has the accuracies on ImageNet that the publishers of the weights give, from different recipes: of
torchvision's weights (pytorch/vision, torchvision/models), of SqueezeNext's paper as quoted by others (Gholami et al.
2018, Table 2), of SqueezeNet's Table 3 for the bypasses. A widely copied table gives ShuffleNet 1.4 M parameters and
69 %: the parameters are those of ShuffleNetV2 0.5x, which has 60.55 %, and the accuracy is that of 1x, which has 2.3 M.
"""

import csv
import dataclasses
import functools
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.sweep import main
from experiments.trials import Sweep
from squeeze_jax import load, tables
from squeeze_jax.compression.sharing import layer_bits, share
from squeeze_jax.export import onnx_file
from squeeze_jax.export.exported import Exported
from squeeze_jax.export.formats import open_exported
from squeeze_jax.export.forward import forward
from squeeze_jax.pretrained import sqz
from squeeze_jax.runtime.devices import compile_often

RESULTS = pathlib.Path(__file__).parent / "results"
NAME = "compact_networks"
BITS = 8  # of the shared weights in a .sqz file
ROUNDS = 30  # of the latency
CALIBRATION_IMAGES = 200  # of int8
BATCH = 100
ENLARGED = {"dataset.image_size": (64, 64), "augment.pad_and_crop": 8}

# Top-1 on ImageNet as quoted; empty where nobody published one.
QUOTED: dict[str, float | str] = {
    "squeezenet_v1_0": 58.09,
    "squeezenet_v1_1": 58.18,
    "squeezenet_v1_0_simple_bypass": 60.4,
    "squeezenet_v1_0_complex_bypass": 58.8,
    "squeezenodule_v1": "",
    "squeezenodule_v2": "",
    "squeezenext_1_0_23": 59.05,
    "squeezenext_1_0_g_23": "",
    "squeezenext_1_0_23v5": 59.24,
    "squeezenext_2_0_23": 67.18,
    "squeezenext_2_0_23v5": 67.44,
    "alexnet": 56.52,
    "alexnet_grouped": 57.2,
    "resnet18": 69.76,
    "mobilenet_v2": 71.88,
    "shufflenet_v2_x0_5": 60.55,
    "shufflenet_v2_x1_0": 69.36,
    "efficientnet_b0": 77.69,
}
PUBLISHED = {"quoted: ImageNet top-1": tuple(QUOTED.values())}


def best_rates(path: pathlib.Path) -> dict[str, float]:
    """Returns the learning rate of each network with the best top-1 on the validation split, from the tuning's CSV."""
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "finished"]
    best = {}
    for row in sorted(rows, key=lambda row: float(row["validation_top1"])):
        best[row["model.name"]] = float(row["optimizer.learning_rate"])
    return best


def costs(name: str, row: Mapping[str, Any]) -> dict[str, float]:
    """Returns the measured columns of a trial's network, if --costs has run for the report of this name."""
    path = RESULTS / f"{name}_costs.csv"
    if not path.exists():
        return {}
    with path.open() as file:
        for measured in csv.DictReader(file):
            if measured.pop("model.name") == row["model.name"]:
                return {column: float(value) for column, value in measured.items()}
    return {}


def measure(folder: pathlib.Path) -> dict[str, Any]:
    """Measures a network: bytes, latency of one image in milliseconds, and test top-1 of its small forms.

    Args:
      folder: the workdir of its run.
    """
    network = load(folder)
    shared = share(network.variables, layer_bits(network.variables, BITS), "density")
    small = dataclasses.replace(network, variables=shared)
    train, test = network.split("train"), network.split("test")
    images = np.stack([train.read(i)["image"] for i in range(CALIBRATION_IMAGES)])
    float_file, int8_file = (
        exported(data) for data in (onnx_file.serialise(network), onnx_file.serialise_int8(network, images))
    )
    function, variables = forward(network)
    compiled = compile_often(function)
    image = images[:1]
    programs = {
        "jax": lambda: jax.block_until_ready(compiled(variables, image)),
        "onnx": lambda: float_file.logits(image),
        "onnx_int8": lambda: int8_file.logits(image),
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(ROUNDS):
        for name, run in programs.items():
            run()  # caches and threads are warm in the second call
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    batches = ([test.read(i) for i in some] for some in np.array_split(np.arange(len(test)), len(test) // BATCH))
    right = 0
    for batch in batches:
        logits = int8_file.logits(np.stack([example["image"] for example in batch]))
        right += int(np.sum(np.argmax(logits, axis=-1) == [example["label"] for example in batch]))
    return {
        "model.name": network.config.model.name,
        "float_bytes": len(sqz.serialise(network)),
        "sqz_bytes": len(sqz.serialise(small)),
        "sqz_top1": round(small.evaluate("test").values["top1"], 4),
        "int8_top1": round(right / len(test), 4),
        **{f"{name}_milliseconds": round(1000 * statistics.median(each), 3) for name, each in seconds.items()},
    }


def exported(data: bytes) -> Exported:
    """Opens the contents of an .onnx file in ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "network.onnx")
        path.write_bytes(data)
        return open_exported(path)


def settings() -> dict[str, Sweep]:
    """Returns the settings; those that train the best rates exist once the CSV of their tuning does."""
    return {
        **pair(
            NAME,
            "cifar10",
            "configs/cifar10.py:compact",
            [{"model.name": name} | (ENLARGED if name.startswith("alexnet") else {}) for name in QUOTED],
            rates=(3e-4, 1e-3, 3e-3),
            tuning="0.5 epochs",
        ),
        **pair(
            f"{NAME}_imagenet",
            "imagenet",
            "configs/imagenet_torchvision.py:resnet18",
            [{"model.name": name} for name in QUOTED],
            rates=(0.01, 0.03, 0.1),
            tuning="3 epochs",
            overrides={"model.strict": False, "model.use_batch_norm": True, "model.head_relu": False},
        ),
    }


def pair(
    name: str,
    setting: str,
    config: str,
    points: Sequence[Mapping[str, Any]],
    *,
    rates: Sequence[float],
    tuning: str,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Sweep]:
    """Returns the sweep that tunes the learning rate of each network, and the one that trains with the best rates.

    Args:
      name: the name of the report's files.
      setting: the name of the second setting; the first one's is SETTING_tuning.
      config: the config of both.
      points: the networks of QUOTED.
      rates: the learning rates to try.
      tuning: the duration of a trial of the tuning.
      overrides: of both.
    """
    overrides = overrides or {}
    made = {
        f"{setting}_tuning": Sweep(
            f"{name}_tuning",
            config,
            [point | {"optimizer.learning_rate": rate} for point in points for rate in rates],
            seeds=(0,),
            # Rates are chosen on held-out images.
            overrides={**overrides, "dataset.test_split": "", "train.duration": tuning},
        )
    }
    path = RESULTS / f"{name}_tuning.csv"
    if path.exists():
        best = best_rates(path)
        plots = [("parameters", ""), ("macs", "")]
        if (RESULTS / f"{name}_costs.csv").exists():
            plots += [(cost, "") for cost in ("sqz_bytes", "jax_milliseconds", "onnx_milliseconds")]
            plots += [("onnx_int8_milliseconds", "int8_top1")]
        made[setting] = Sweep(
            name,
            config,
            [point | {"optimizer.learning_rate": best[point["model.name"]]} for point in points],
            overrides=overrides,
            published=PUBLISHED,
            derived=functools.partial(costs, name),
            plots=plots,
        )
    return made


SETTINGS = settings()

if __name__ == "__main__":
    if sys.argv[1:2] == ["--costs"]:
        folders = sorted(pathlib.Path(sys.argv[2]).glob("*seed=0"))
        tables.write_csv(RESULTS / f"{NAME}_costs.csv", [measure(folder) for folder in folders])
    else:
        sys.exit(main(SETTINGS))
