"""Measures what trained classifiers cost: bytes as .sqz, latency in JAX and ONNX Runtime, and what int8 loses.

    python -m experiments.compact_costs --workdir runs/compact --csv experiments/results/compact_networks_costs.csv

The table has one row per finished trial of a sweep: the bytes of its .sqz file with float weights and with shared
weights of 8 bits, and the test top-1 of the latter; the latency of one image in JAX and, exported to ONNX, in ONNX
Runtime in float and in int8, as medians of 30 calls on all cores; and the test top-1 in int8, calibrated on 200 random
training images. Raw pixels go in, and mean, standard deviation and enlargement are part of every program. Trials that
are already in the file are measured again only if their step or test top-1 has changed.
"""

import dataclasses
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from experiments.compact_networks import CHECKPOINT
from experiments.trials import read_json
from squeeze_jax import commands, load, tables
from squeeze_jax.compression.sharing import layer_bits, share
from squeeze_jax.data.splits import Split
from squeeze_jax.export import onnx_file
from squeeze_jax.export.comparison import BATCH, compare
from squeeze_jax.export.exported import Exported
from squeeze_jax.export.formats import open_exported
from squeeze_jax.export.forward import forward
from squeeze_jax.files import user_path
from squeeze_jax.pretrained import sqz
from squeeze_jax.runtime.devices import compile_often
from squeeze_jax.workdir.records import RESULT_FILE

TRIAL = "trial"
BITS = 8
WARM_UP, ROUNDS = 5, 30
CALIBRATION_IMAGES = 200


def measure(folder: pathlib.Path) -> dict[str, Any]:
    """Measures the network of a run: bytes, latency of one image in milliseconds, and test top-1 of its small forms."""
    network = load(folder)
    shared = share(network.variables, layer_bits(network.variables, BITS), "density")
    small = dataclasses.replace(network, variables=shared)
    train, test = network.split("train"), network.split("test")
    images = calibration_images(train)
    image = images[:1]
    function, weights = forward(network)
    compiled = compile_often(function)
    placed = jax.device_put(weights), jax.device_put(image)
    # One after the other, because the idle threads of ONNX Runtime spin.
    in_jax = milliseconds(lambda: jax.block_until_ready(compiled(*placed)))
    float_file = exported(onnx_file.serialize(network))
    in_onnx = milliseconds(lambda: float_file.logits(image))
    int8_file = exported(onnx_file.serialize_int8(network, images))
    in_int8 = milliseconds(lambda: int8_file.logits(image))
    compared = compare(network, int8_file, batches(test))
    return {
        TRIAL: folder.name,
        **checkpoint(folder),
        "float_bytes": len(sqz.serialize(network)),
        "sqz_bytes": len(sqz.serialize(small)),
        "sqz_top1": round(small.evaluate("test").values["top1"], 4),
        "int8_top1": round(compared.file.top1 / compared.file.images, 4),
        "jax_milliseconds": in_jax,
        "onnx_milliseconds": in_onnx,
        "onnx_int8_milliseconds": in_int8,
    }


def checkpoint(folder: pathlib.Path) -> dict[str, float]:
    """Returns what tells the checkpoint of a run from that of another run of the same name."""
    result = read_json(folder / RESULT_FILE, "step", "test")
    return dict(zip(CHECKPOINT, (result["step"], result["test"]["top1"]), strict=True))


def calibration_images(train: Split) -> np.ndarray:
    """Returns images of a split, chosen at random because the images of a folder are sorted by class."""
    chosen = np.random.default_rng(0).choice(len(train), CALIBRATION_IMAGES, replace=False)
    return np.stack([train.read(i)["image"] for i in chosen])


def milliseconds(call: Callable[[], Any]) -> float:
    """Returns the median duration of a call, without the first calls."""
    seconds = []
    for _ in range(WARM_UP + ROUNDS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return round(1000 * statistics.median(seconds[WARM_UP:]), 3)


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
    parser = commands.parser(__doc__)
    parser.add_argument("--workdir", required=True, type=user_path, help="folder of the sweep")
    parser.add_argument("--csv", required=True, type=user_path, help="the table")
    args = parser.parse_args()
    listed = tables.read_csv(args.csv, (TRIAL, *CHECKPOINT)) if args.csv.exists() else []
    rows = {row[TRIAL]: row for row in listed}
    for result in sorted(args.workdir.glob(f"*/{RESULT_FILE}")):
        folder = result.parent
        row = rows.get(folder.name)
        if row is None or any(float(row[key]) != value for key, value in checkpoint(folder).items()):
            rows[folder.name] = measure(folder)
            print("  ".join(f"{name}={value}" for name, value in rows[folder.name].items()), flush=True)
            tables.write_csv(args.csv, list(rows.values()))


if __name__ == "__main__":
    sys.exit(commands.run(main))
