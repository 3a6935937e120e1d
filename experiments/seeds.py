"""One experiment with several seeds: the mean and the spread of its test result.

    python -m experiments.seeds --config configs/digits.py --seeds 0,1,2 --workdir runs/digits_seeds \
        --csv experiments/results/digits.csv

Each seed is a run of its own (`python -m squeeze_jax.main`) in `WORKDIR/seed_N`; a stopped study goes on where it was.
Arguments that are not listed below go to every run.
"""

import argparse
import datetime
import os
import pathlib
import statistics
import subprocess
import sys
import time

from squeeze_jax.writers import read_metrics, write_csv


def run_seed(config: str, seed: int, workdir: pathlib.Path, arguments: list[str]) -> dict[str, object]:
    """Trains one seed, and returns its row: test metrics of the best checkpoint, and the seconds of this call."""
    start = time.monotonic()
    command = [sys.executable, "-m", "squeeze_jax.main", "--config", config, "--workdir", str(workdir)]
    subprocess.run([*command, f"--config.seed={seed}", *arguments], check=True)
    records = read_metrics(workdir)
    test = next(record for record in records if record["split"] == "test")
    return {
        "date": datetime.date.today().isoformat(),
        "config": config,
        "seed": seed,
        "best_step": test["step"],
        **{f"test_{name}": value for name, value in test["values"].items()},
        "seconds": round(time.monotonic() - start, 1),
        "cpu_cores": os.cpu_count(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="config file")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--csv", required=True, type=pathlib.Path, help="a row a seed")
    args, rest = parser.parse_known_args()
    rows = [run_seed(args.config, int(seed), args.workdir / f"seed_{seed}", rest) for seed in args.seeds.split(",")]
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    write_csv(args.csv, rows)
    for name in [name for name in rows[0] if name.startswith("test_")]:
        values = [row[name] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(f"{name}: {statistics.mean(values):.4f} +- {spread:.4f} ({len(values)} seeds)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
