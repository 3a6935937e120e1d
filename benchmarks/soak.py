"""Do several CPU devices hang? Trains a CIFAR-sized network with batch norm on them for a long time.

    python benchmarks/soak.py --devices 2 --steps 20000 --csv benchmarks/results/soak.csv

XLA runs all-reduces of CPU devices on a pool of threads that can run out; it then waits for ever or aborts ("Expected
2 threads to join the rendezvous"). The training runs in a child process that reports every 100 steps; a child that is
silent for --patience seconds, or dies, is a failure, named with its step. `--pool-threads 0` leaves the pool as it is.
"""

import argparse
import csv
import datetime
import os
import pathlib
import queue
import subprocess
import sys
import threading
import time

REPORT_EVERY = 100


def train(devices: int, steps: int, batch_size: int, pool_threads: int) -> None:
    """The child: prints a line every REPORT_EVERY steps."""
    import jax
    import numpy as np

    from squeeze_jax import models, parallel
    from squeeze_jax.config import base_config
    from squeeze_jax.data.augment import Preprocessing
    from squeeze_jax.optimizers import make_optimizer
    from squeeze_jax.state import create_state
    from squeeze_jax.steps import make_train_step

    if pool_threads:
        os.environ["NPROC"] = str(pool_threads)
        parallel.prepare_cpu_devices(devices)
    else:
        jax.config.update("jax_num_cpu_devices", devices)
    spread = parallel.Parallel.create("jit", devices)
    config = base_config()
    config.optimizer.learning_rate = 0.01
    model = models.create(
        "squeezenet_v1_1", num_classes=10, stem="3x3/1", use_batch_norm=True, base_filters=32, filter_increment=32
    )
    optimizer = make_optimizer(config.optimizer, lambda step: 0.01)
    preprocessing = Preprocessing(mean=(127.0,), std=(64.0,), flip=("width",), pad_and_crop=4)
    state = parallel.compile_once(
        lambda: create_state(model, optimizer, (32, 32, 3), 0, use_ema=True), out_shardings=spread.replicated
    )()
    step = spread.compile_train_step(make_train_step(model, optimizer, preprocessing.train, ema_decay=0.99))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, batch_size, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, (64, batch_size)).astype(np.int32)
    for i in range(steps):
        state = step(state, spread.shard({"image": images[i % 64], "label": labels[i % 64]}), 0)
        if (i + 1) % REPORT_EVERY == 0:
            print(f"step {int(state.step)} loss {float(state.window['loss']):.1f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--pool-threads", type=int, default=16, help="NPROC; 0 for XLA's own choice")
    parser.add_argument("--patience", type=float, default=180.0, help="seconds of silence that count as a hang")
    parser.add_argument("--csv", type=pathlib.Path, help="append a row with the outcome")
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
