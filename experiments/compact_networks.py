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
and no ReLU after the last layer, as in configs/cifar10.py. Dropout and stochastic depth are off on CIFAR-10, where so
short a training does not overfit; on ImageNet each network keeps its own. On 2 cores of an AMD EPYC (2026-11-29 and
30), tuning took about an hour, training 2.5 hours and the costs 40 minutes: about 9 core-hours. Shortened: 2 epochs.

At this budget SqueezeNet with complex bypass is best, 10.2 points above the plain network (p < 0.001) and no worse than
ResNet-18, which has ten times the parameters. MobileNetV2, EfficientNet-B0 and every SqueezeNext end 7 to 11 points
below SqueezeNet 1.0 (p = 0.030 or less): this ranks how fast the networks learn, not what they reach.

The quoted column has the accuracies on ImageNet that the publishers of the weights give, from different recipes: of
torchvision's weights (pytorch/vision, torchvision/models), of SqueezeNext's paper as quoted by others (Gholami et al.
2018, Table 2), of SqueezeNet's paper for the grouped AlexNet (Table 2) and the bypasses (Table 3). A widely copied
table gives ShuffleNet 1.4 M parameters and 69 %: the parameters are those of ShuffleNetV2 0.5x, which has 60.55 %, and
the accuracy is that of 1x, which has 2.3 M.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report import read_rows
from experiments.sweep import main
from experiments.trials import Sweep, SweepError
from squeeze_jax.tables import read_csv

RESULTS = pathlib.Path(__file__).parent / "results"
TUNING = "_tuning"
RATE = "optimizer.learning_rate"
OF_TUNING = ("dataset.test_split", "train.duration")  # keys that only the tuning overrides
CHECKPOINT = ("step", "test_top1")  # columns of the costs: which checkpoint they were measured on
COSTS = ("sqz_bytes", "sqz_top1", "jax_milliseconds", "onnx_milliseconds", "onnx_int8_milliseconds", "int8_top1")
COST_PLOTS = (
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


def tuned(tuning: Sweep) -> Sweep:
    """Returns the sweep that trains each network with the learning rate that was best on the validation split.

    Args:
      tuning: the sweep that tried the rates; its report is read from RESULTS. A trial that failed, perhaps because it
        diverged, counts as tried.

    Raises:
      SweepError: a trial of the tuning has not run, or no rate of a network has a finished trial.
    """
    trials, path = tuning.trials(), RESULTS / f"{tuning.name}.csv"
    rows = read_rows(path, trials) if path.exists() else {}
    waiting = [trial.name for trial in trials if trial.name not in rows or not settled(rows[trial.name])]
    if waiting:
        raise SweepError(
            f"{path} has no result of {len(waiting)} trial(s), such as {waiting[0]}; "
            f"run the tuning first, with --output {RESULTS}."
        )
    finished = [row for row in rows.values() if row["status"] == "finished"]
    best = {row["model.name"]: row for row in sorted(finished, key=lambda row: row["validation_top1"])}
    points = {point["model.name"]: point for point in tuning.points}
    if lost := [network for network in points if network not in best]:
        raise SweepError(f"{path}: no rate of {', '.join(lost)} has a finished trial; tune with lower rates.")
    name = tuning.name.removesuffix(TUNING)
    measured = costs(name)
    sweep = Sweep(
        name,
        tuning.config,
        [point | {RATE: float(best[network][RATE])} for network, point in points.items()],
        overrides={key: value for key, value in tuning.overrides.items() if key not in OF_TUNING},
        published={"quoted: ImageNet top-1": tuple(QUOTED[network] for network in points)},
        derived=lambda row: costs_of(row, measured),
        columns=COSTS,
    )
    with_costs = {trial.point["model.name"] for trial in sweep.trials() if trial.name in measured}
    return dataclasses.replace(sweep, plots=[*sweep.plots, *COST_PLOTS]) if len(with_costs) == len(points) else sweep


def settled(row: Mapping[str, Any]) -> bool:
    return row["status"].startswith(("finished", "failed"))


def costs(name: str) -> dict[str, dict[str, float]]:
    """Returns what experiments.compact_costs measured for a report: the columns of each trial."""
    path = RESULTS / f"{name}_costs.csv"
    if not path.exists():
        return {}
    rows = read_csv(path, ("trial", *CHECKPOINT))
    return {row.pop("trial"): {key: float(value) for key, value in row.items()} for row in rows}


def costs_of(row: Mapping[str, Any], measured: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Returns the costs of a trial; nothing if they were not measured, or on another checkpoint.

    Trials of other images, or of a shorter run, have the same name, but another step or test accuracy.
    """
    found = dict(measured.get(row["trial"], {}))
    checkpoint = {key: found.pop(key) for key in CHECKPOINT if found}
    return found if all(row[key] == value for key, value in checkpoint.items()) else {}


def with_rates(
    name: str, config: str, points: Sequence[Mapping[str, Any]], rates: Sequence[float], overrides: Mapping[str, Any]
) -> Sweep:
    """Returns the sweep that tries these learning rates for each network, on held-out images."""
    return Sweep(
        name + TUNING,
        config,
        [point | {RATE: rate} for point in points for rate in rates],
        seeds=(0,),
        overrides={**overrides, "dataset.test_split": ""},
    )


TUNINGS = {
    "cifar10": with_rates(
        "compact_networks",
        "configs/cifar10.py:compact",
        [{"model.name": name} | (ENLARGED if name.startswith("alexnet") else {}) for name in QUOTED],
        rates=(1e-3, 3e-3, 1e-2),
        overrides={"train.duration": "0.5 epochs"},
    ),
    "imagenet": with_rates(
        "compact_networks_imagenet",
        "configs/imagenet_torchvision.py:resnet18",
        [{"model.name": name} for name in QUOTED],
        rates=(0.01, 0.03, 0.1),
        overrides={
            "model.strict": False,
            "model.use_batch_norm": True,
            "model.head_relu": False,
            "train.duration": "3 epochs",
        },
    ),
}
SETTINGS = {f"{name}{TUNING}": sweep for name, sweep in TUNINGS.items()} | {
    name: functools.partial(tuned, sweep) for name, sweep in TUNINGS.items()
}

if __name__ == "__main__":
    sys.exit(main(SETTINGS))
