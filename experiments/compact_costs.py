"""Measures what trained classifiers cost: bytes as .sqz, latency in JAX and ONNX Runtime, and what int8 loses.

    python -m experiments.compact_costs --workdir runs/compact --csv experiments/results/compact_networks_costs.csv

The table has one row per network of a sweep, its run with seed 0: the bytes of its .sqz file with float weights and
with shared weights of 8 bits, and the test top-1 of the latter; the latency of one image in JAX and, exported to ONNX,
in ONNX Runtime in float and in int8, as medians of 30 alternating rounds on all cores; and the test top-1 in int8,
calibrated on 200 training images. Raw pixels go in, and mean, standard deviation and enlargement are part of every
program. Rows of other networks in the file are kept.
"""

import argparse
import csv
import dataclasses
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from squeeze_jax import commands, load, tables
from squeeze_jax.compression.sharing import layer_bits, share
from squeeze_jax.data.splits import Split
from squeeze_jax.export import onnx_file
from squeeze_jax.export.comparison import BATCH, compare
from squeeze_jax.export.exported import Exported
from squeeze_jax.export.formats import open_exported
from squeeze_jax.export.forward import forward
from squeeze_jax.pretrained import sqz
from squeeze_jax.runtime.devices import compile_often

NETWORK = "model.name"
BITS = 8
ROUNDS = 30
CALIBRATION_IMAGES = 200


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
    compared = compare(network, int8_file, batches(test))
    return {
        NETWORK: network.config.model.name,
        "float_bytes": len(sqz.serialise(network)),
        "sqz_bytes": len(sqz.serialise(small)),
        "sqz_top1": round(small.evaluate("test").values["top1"], 4),
        "int8_top1": round(compared.file.top1 / compared.file.images, 4),
        **{f"{name}_milliseconds": round(1000 * statistics.median(each), 3) for name, each in seconds.items()},
    }


def batches(split: Split) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields raw images and labels."""
    for first in range(0, len(split), BATCH):
        examples = [split.read(i) for i in range(first, min(first + BATCH, len(split)))]
        yield tuple(np.stack([example[key] for example in examples]) for key in ("image", "label"))


def exported(data: bytes) -> Exported:
    """Opens the contents of an .onnx file in ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "network.onnx")
        path.write_bytes(data)
        return open_exported(path)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the sweep")
    parser.add_argument("--csv", required=True, type=pathlib.Path, help="the table")
    args = parser.parse_args()
    measured = {}
    if args.csv.exists():
        with args.csv.open(newline="") as file:
            measured = {row[NETWORK]: row for row in csv.DictReader(file)}
    for folder in sorted(args.workdir.glob("*seed=0")):
        row = measure(folder)
        print("  ".join(f"{name}={value}" for name, value in row.items()), flush=True)
        measured[row[NETWORK]] = row
        tables.write_csv(args.csv, list(measured.values()))


if __name__ == "__main__":
    sys.exit(commands.run(main))
