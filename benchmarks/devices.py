"""Training images per second over 1, 2, 4 and 8 CPU devices, under jit and pmap, and over two processes.

    python benchmarks/devices.py --csv benchmarks/results/devices.csv

Each row is the median over rounds of `python -m squeeze_jax.main` on random images, with SqueezeNet 1.1 with a stride-1
stem and batch norm, 32-pixel images and global batches of 128; every round measures all rows in turn. The devices share
this machine's cores, so this shows the cost or gain of sharding here, not how accelerators scale. PyTorch with the same
network in one process is measured for comparison.
"""

import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile

import networks
import report

from squeeze_jax.workdir.records import read_metrics

ROOT = pathlib.Path(__file__).parents[1]
PEER_CASE = "training, v1.1 with batch norm, 32"
PEER = "PyTorch, channels last"
FLAGS = {
    "dataset.name": "fake/32x32x3/10",
    "model.stem": "3x3/1",
    "model.bypass": "simple",
    "model.use_batch_norm": True,
    "train.batch_size": 128,
    "train.duration": "24 steps",
    "run.log_every": "8 steps",
}
ROWS = {
    "jit, 1 device": (1, "jit", 1),
    "jit, 2 devices": (2, "jit", 1),
    "jit, 4 devices": (4, "jit", 1),
    "jit, 8 devices": (8, "jit", 1),
    "pmap, 2 devices": (2, "pmap", 1),
    "pmap, 8 devices": (8, "pmap", 1),
    "2 processes of 1 device": (None, "jit", 2),
}


def images_per_second(devices: int | None, backend: str, processes: int) -> float:
    """Returns the mean speed of a run, without its first logging window."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
        free.close()
        flags = {**FLAGS, "run.num_devices": devices, "run.backend": backend}
        command = [sys.executable, "-m", "squeeze_jax.main", "--config", str(ROOT / "configs" / "fake_benchmark.py")]
        command += ["--workdir", folder, *(f"--config.{key}={value}" for key, value in flags.items() if value)]
        started = []
        for i in range(processes):
            hosts = [f"--coordinator_address=localhost:{port}", f"--num_processes={processes}", f"--process_id={i}"]
            arguments = command + hosts if processes > 1 else command
            started.append(subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True))
        for process in started:
            errors = process.communicate()[1]
            if process.returncode:
                raise SystemExit(errors)
        speeds = [r["speed"]["images_per_second"] for r in read_metrics(pathlib.Path(folder)) if r["split"] == "train"]
        return statistics.mean(speeds[1:])


def main() -> int:
    args = report.parser(__doc__).parse_args()
    found: dict[str, list[float]] = {name: [] for name in (*ROWS, PEER)}
    for _ in range(args.rounds):
        for name, row in ROWS.items():
            found[name].append(images_per_second(*row))
        found[PEER] += networks.turns(PEER_CASE, [PEER], rounds=1)[PEER].images_per_second
    rows = [
        {"spread": name}
        | report.spread(values, "images_per_second", 1)
        | {"this_over_one_device": report.ratio(values, found["jit, 1 device"])}
        for name, values in found.items()
    ]
    report.write(args.csv, rows, args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
