"""SqueezeNet and the networks that it is compared with, trained alike: accuracy against size, compute, bytes, latency.

    python -m experiments.compact_networks --workdir runs/compact_tuning --output experiments/results
    python -m experiments.compact_networks --setting cifar10 --workdir runs/compact --output experiments/results
    python -m experiments.compact_networks --costs runs/compact
    python -m experiments.compact_networks --setting cifar10 --workdir runs/compact --report \\
        --output experiments/results

Every network has the same budget: the same epochs, batches, augmentation and optimizer, and the same three learning
rates, tried for 2 epochs with one seed on held-out images (the first command). The second command trains each network
with its best rate and 3 seeds; it takes the rates from experiments/results/compact_networks_tuning.csv, so the setting
exists only once that file does. The third one measures the bytes of the trained networks as .sqz files and their
latency, and the last one adds both to the report. `imagenet` trains all of them at 224 pixels by torchvision's recipe
for ResNet-18.

Nothing of this has been run yet. By MACs and the throughput of benchmarks/results/layers.csv, the first two commands
take about 22 to 38 core-hours on 2 CPU cores.

The networks are unchanged: CIFAR-10 is enlarged to 64 x 64, about a twelfth of the compute at 224. Without enlargement,
most of them would need another stem, and their maps would end at one cell.

The quoted column has the accuracies on ImageNet that the publishers of the weights give, from different recipes: of
torchvision's weights (pytorch/vision, torchvision/models), of SqueezeNext's paper as quoted by others (Gholami et al.
2018, Table 2), of SqueezeNet's Table 3 for the bypasses. A widely copied table gives ShuffleNet 1.4 M parameters and
69 %: the parameters are those of ShuffleNetV2 0.5x, which has 60.55 %, and the accuracy is that of 1x, which has 2.3 M.
"""

import csv
import dataclasses
import pathlib
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.sweep import main
from experiments.trials import Sweep
from squeeze_jax import load, tables
from squeeze_jax.compression.sharing import layer_bits, share
from squeeze_jax.pretrained import sqz
from squeeze_jax.runtime.devices import compile_often

RESULTS = pathlib.Path(__file__).parent / "results"
NAME = "compact_networks"
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
BITS = 8  # of the shared weights in a .sqz file
ROUNDS = 30  # of the latency

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


def costs(row: Mapping[str, Any]) -> dict[str, float]:
    """Returns the measured columns of a network, if --costs has run."""
    path = RESULTS / f"{NAME}_costs.csv"
    if not path.exists():
        return {}
    with path.open() as file:
        measured = {of_network["model.name"]: of_network for of_network in csv.DictReader(file)}
    found = measured.get(row["model.name"], {})
    return {key: float(found[key]) for key in ("sqz_bytes", "milliseconds") if key in found}


def measure(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Measures the networks of the first seed: bytes with shared weights, and latency of one image.

    Args:
      workdir: the folder of the sweep.

    Returns:
      One row per network.
    """
    rows = []
    for folder in sorted(workdir.glob("*seed=0")):
        network = load(folder)
        shared = share(network.variables, layer_bits(network.variables, BITS), "density")
        small = dataclasses.replace(network, variables=shared)
        image = np.zeros((1, *network.task.preprocessing.input_shape(network.image_shape)), np.float32)
        forward = compile_often(network.model.apply).lower(network.variables, image).compile()
        seconds = []
        for _ in range(ROUNDS + 1):
            start = time.perf_counter()
            jax.block_until_ready(forward(network.variables, image))
            seconds.append(time.perf_counter() - start)
        rows.append(
            {
                "model.name": network.config.model.name,
                "float_bytes": len(sqz.serialise(network)),
                "sqz_bytes": len(sqz.serialise(small)),
                "milliseconds": round(1000 * statistics.median(seconds[1:]), 3),
            }
        )
    return rows


def settings() -> dict[str, Sweep]:
    """Returns the settings; that of CIFAR-10 needs the tuning's CSV."""
    tuning = [{"model.name": name, "optimizer.learning_rate": rate} for name in QUOTED for rate in LEARNING_RATES]
    made = {
        "tuning": Sweep(
            f"{NAME}_tuning",
            "configs/cifar10.py:compact",
            tuning,
            seeds=(0,),
            # Rates are chosen on held-out images.
            overrides={"dataset.test_split": "", "train.duration": "2 epochs"},
        ),
        "imagenet": Sweep(
            f"{NAME}_imagenet",
            "configs/imagenet_torchvision.py:resnet18",
            [{"model.name": name} for name in QUOTED],
            published=PUBLISHED,
        ),
    }
    path = RESULTS / f"{NAME}_tuning.csv"
    if path.exists():
        rates = best_rates(path)
        plots = [("parameters", ""), ("macs", "")]
        if (RESULTS / f"{NAME}_costs.csv").exists():
            plots += [("sqz_bytes", ""), ("milliseconds", "")]
        made["cifar10"] = Sweep(
            NAME,
            "configs/cifar10.py:compact",
            [{"model.name": name, "optimizer.learning_rate": rates[name]} for name in QUOTED if name in rates],
            published={"quoted: ImageNet top-1": tuple(QUOTED[name] for name in QUOTED if name in rates)},
            derived=costs,
            plots=plots,
        )
    return made


SETTINGS = settings()

if __name__ == "__main__":
    if sys.argv[1:2] == ["--costs"]:
        tables.write_csv(RESULTS / f"{NAME}_costs.csv", measure(pathlib.Path(sys.argv[2])))
    else:
        sys.exit(main(SETTINGS))
