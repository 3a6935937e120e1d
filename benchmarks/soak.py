"""Tests whether training on several CPU devices hangs, with a CIFAR-sized network with batch norm and many steps.

    python benchmarks/soak.py --devices 2 --steps 20000 --csv benchmarks/results/soak.csv

XLA runs all-reduces of CPU devices on a thread pool that can be exhausted; it then waits for ever or aborts ("Expected
2 threads to join the rendezvous"). The training runs in a child process that reports every 100 steps. If the child is
silent for --patience seconds or dies, the test fails and reports the step. `--pool-threads 0` keeps XLA's default pool.
"""

import argparse
import csv
import datetime
import os
import queue
import subprocess
import sys
import threading
import time

from squeeze_jax.files import user_path

REPORT_EVERY = 100


def train(devices: int, steps: int, batch_size: int, pool_threads: int) -> None:
    """Trains in the child process, and prints a line every REPORT_EVERY steps."""
    import jax
    import numpy as np

    from squeeze_jax.config import base_config
    from squeeze_jax.experiment import build
    from squeeze_jax.runtime.devices import DeviceMesh, compile_once, prepare_cpu_devices

    if pool_threads:
        os.environ["NPROC"] = str(pool_threads)
        prepare_cpu_devices(devices)
    else:
        jax.config.update("jax_num_cpu_devices", devices)
    config = base_config()
    config.dataset.update({"name": "fake/32x32x3/10", "mean": (127.0,), "std": (64.0,)})
    config.augment.update({"flip": ("width",), "pad_and_crop": 4})
    config.model.update({"stem": "3x3/1", "use_batch_norm": True, "base_filters": 32, "filter_increment": 32})
    config.train.update({"batch_size": batch_size, "ema_decay": 0.99})
    config.optimizer.learning_rate = 0.01
    config.schedule.name = "constant"
    experiment = build(config)
    mesh = DeviceMesh.create("jit", devices)
    state = compile_once(experiment.initial_state, out_shardings=mesh.replicated)(0)
    step = mesh.compile_train_step(experiment.train_step())
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, batch_size, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, (64, batch_size)).astype(np.int32)
    for i in range(steps):
        state = step(state, mesh.shard({"image": images[i % 64], "label": labels[i % 64]}), 0)
        if (i + 1) % REPORT_EVERY == 0:
            print(f"step {int(state.step)} loss {float(state.window['sums']['loss']):.1f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--pool-threads", type=int, default=16, help="value of NPROC; 0 for XLA's default")
    parser.add_argument("--patience", type=float, default=180.0, help="seconds without output that count as a hang")
    parser.add_argument("--csv", type=user_path, help="append a row with the outcome")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        train(args.devices, args.steps, args.batch_size, args.pool_threads)
        return 0

    start = time.monotonic()
    child = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--child"], stdout=subprocess.PIPE, text=True)
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in child.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    step, outcome = 0, None
    while outcome is None:
        try:
            line = lines.get(timeout=args.patience)
        except queue.Empty:
            child.kill()
            outcome = f"hung after step {step}"
            continue
        if line is None:
            outcome = "passed" if child.wait() == 0 and step == args.steps else f"died after step {step}"
        else:
            step = int(line.split()[1])
            print(f"{time.monotonic() - start:8.0f} s  {line}", end="", flush=True)
    seconds = time.monotonic() - start
    print(f"{outcome}: {args.devices} devices, {args.steps} steps, {seconds:.0f} s")
    if args.csv:
        import jax

        row = {
            "date": datetime.date.today().isoformat(),
            "outcome": outcome,
            "steps": step,
            "devices": args.devices,
            "batch_size": args.batch_size,
            "pool_threads": args.pool_threads,
            "cpu_cores": os.cpu_count(),
            "jax": jax.__version__,
            "seconds": round(seconds),
        }
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        new = not args.csv.exists()
        with args.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)
    return 0 if outcome == "passed" else 1


if __name__ == "__main__":
    sys.exit(main())
