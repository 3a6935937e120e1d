"""SqueezeNet and the networks that it is compared with, trained alike: accuracy against size, compute, bytes, latency.

    python -m experiments.compact_networks --workdir runs/compact_tuning --output experiments/results
    python -m experiments.compact_networks --setting cifar10 --workdir runs/compact --output experiments/results
    python -m experiments.compact_costs --workdir runs/compact --csv experiments/results/compact_networks_costs.csv
    python -m experiments.compact_networks --setting cifar10 --workdir runs/compact --report \\
        --output experiments/results

Every network has the same budget: the same epochs, batches, augmentation and optimizer, and the same three learning
rates, tried for half an epoch with one seed on held-out images (the first command). The second command trains each
network with its best rate and 3 seeds; it takes the rates from experiments/results/compact_networks_tuning.csv. The
third one measures the trained networks, and the last one adds this to the report. The settings imagenet_tuning and
imagenet do the same at 224 pixels, by torchvision's recipe for ResNet-18. With `--reuse`, a part of a sweep may have
been run on another machine.

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
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report import finished_rows
from experiments.sweep import main
from experiments.trials import Sweep

RESULTS = pathlib.Path(__file__).parent / "results"
NAME = "compact_networks"
COSTS = (
    ("sqz_bytes", "sqz_top1"),
    ("jax_milliseconds", ""),
    ("onnx_milliseconds", ""),
    ("onnx_int8_milliseconds", "int8_top1"),
)
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


def best_rates(tuning: Sweep) -> dict[str, float]:
    """Returns the learning rate of each network with the best top-1 on the validation split.

    Nothing is returned until all trials of the tuning are finished in the CSV of its report.
    """
    trials, path = tuning.trials(), RESULTS / f"{tuning.name}.csv"
    rows = finished_rows(path, trials) if path.exists() else {}
    if len(rows) < len(trials):
        return {}
    ranked = sorted(rows.values(), key=lambda row: row["validation_top1"])
    return {row["model.name"]: float(row["optimizer.learning_rate"]) for row in ranked}


def costs(name: str) -> dict[str, dict[str, float]]:
    """Returns what experiments.compact_costs measured for a report: the columns of each trial."""
    path = RESULTS / f"{name}_costs.csv"
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {row.pop("trial"): {key: float(value) for key, value in row.items()} for row in csv.DictReader(file)}


def settings() -> dict[str, Sweep]:
    """Returns the settings; those that train with the best rates exist once their tuning is finished."""
    return {
        **pair(
            NAME,
            "cifar10",
            "configs/cifar10.py:compact",
            [{"model.name": name} | (ENLARGED if name.startswith("alexnet") else {}) for name in QUOTED],
            rates=(1e-3, 3e-3, 1e-2),
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
    tuned = Sweep(
        f"{name}_tuning",
        config,
        [point | {"optimizer.learning_rate": rate} for point in points for rate in rates],
        seeds=(0,),
        # Rates are chosen on held-out images.
        overrides={**overrides, "dataset.test_split": "", "train.duration": tuning},
    )
    made = {f"{setting}_tuning": tuned}
    if best := best_rates(tuned):
        measured = costs(name)
        final = Sweep(
            name,
            config,
            [point | {"optimizer.learning_rate": best[point["model.name"]]} for point in points],
            overrides=overrides,
            published={"quoted: ImageNet top-1": tuple(QUOTED.values())},
            derived=lambda row: measured.get(row["trial"], {}),
        )
        is_measured = all(trial.name in measured for trial in final.trials())
        made[setting] = dataclasses.replace(final, plots=[*final.plots, *COSTS]) if is_measured else final
    return made


SETTINGS = settings()

if __name__ == "__main__":
    sys.exit(main(SETTINGS))
