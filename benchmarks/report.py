"""Reporting shared by all benchmarks: medians with quartiles, and the machine and date of the measurement."""

import argparse
import datetime
import os
import pathlib
import statistics
from typing import Any

from squeeze_jax.export.latency import processor
from squeeze_jax.files import user_path
from squeeze_jax.tables import read_csv, write_csv


def parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser with the arguments of all benchmarks."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--csv", type=user_path, help="file for the table")
    made.add_argument("--rounds", type=int, default=7)
    return made


def spread(values: list[float], name: str, digits: int) -> dict[str, float]:
    """Returns the median, with the key `name`, and the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {name: round(middle, digits), "quartile_low": round(low, digits), "quartile_high": round(high, digits)}


def ratio(values: list[float], others: list[float]) -> float:
    """Returns the ratio of the medians."""
    return round(statistics.median(values) / statistics.median(others), 2)


def write(path: pathlib.Path | None, rows: list[dict[str, Any]], rounds: int, key: str | None = None) -> None:
    """Prints the rows and, with a path, writes them with the number of rounds, the date and the machine.

    With a key, existing rows of the table are kept unless a new row has the same value for the key.
    """
    for row in rows:
        print("  ".join(f"{name}={value}" for name, value in row.items()), flush=True)
    if path is None:
        return
    new = {row[key] for row in rows} if key else set()
    kept = []
    if key and path.exists():
        kept = [row for row in read_csv(path, (key,)) if row[key] not in new]
    machine = {
        "rounds": rounds,
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "cpu_cores": len(os.sched_getaffinity(0)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, kept + [row | machine for row in rows])
