"""A look at the data of an experiment before it is trained on.

    python -m squeeze_jax.data.show --config configs/digits.py --output runs/digits_data

Prints the examples of each class and split, mean and standard deviation of the pixels (for config.dataset.mean and
std), and the images a second of the input pipeline alone. Writes counts.csv, and pictures of training examples before
and after augmentation, middle slices of volumes.
"""

import os
import pathlib
import sys
import time
from typing import Any

import absl.logging
import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from squeeze_jax import config as config_lib
from squeeze_jax import run, workdir, writers
from squeeze_jax.data import pipeline
from squeeze_jax.data.sources import DataError, Split

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, e.g. configs/digits.py.")
OUTPUT = flags.DEFINE_string("output", "data_report", "Folder for the pictures and the table.")
EXAMPLES = flags.DEFINE_integer("examples", 2000, "Training examples, at most, that the pixel statistics are of.")
SECONDS = flags.DEFINE_float("seconds", 5.0, "How long the pipeline is timed.")

SHOWN = 32


def class_counts(splits: dict[str, Split], class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row a class: its examples in each split."""
    counts = {name: np.bincount(split.labels(), minlength=split.num_classes) for name, split in splits.items()}
    return [
        {"class": i, "name": name, **{split: int(counts[split][i]) for split in splits}}
        for i, name in enumerate(class_names)
    ]


def pixel_statistics(split: Split, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel in 0..255, over evenly spaced examples as evaluation sees them."""
    indices = np.unique(np.linspace(0, len(split) - 1, min(examples, len(split))).astype(int))
    total, squares, count = 0.0, 0.0, 0
    for part in np.array_split(indices, max(1, len(indices) // 100)):
        pixels = split.batch(part)["image"].astype(np.float64)
        axes = tuple(range(pixels.ndim - 1))
        total, squares = total + pixels.sum(axes), squares + (pixels**2).sum(axes)
        count += pixels.size // pixels.shape[-1]
    mean = total / count
    return mean, np.sqrt(squares / count - mean**2)


def images_per_second(split: Split, config: Any, seconds: float) -> float:
    """Of the input pipeline alone, after its first batches; a split that memory holds is read once before."""
    batches = pipeline.train_batches(
        split,
        batch_size=config.train.batch_size,
        seed=config.seed,
        num_threads=config.run.num_threads,
        num_workers=config.run.num_workers,
    )
    if split.is_cached:
        split.batch(np.arange(len(split)))
    for _ in range(pipeline.prefetched_batches(config.run.num_threads) + 1):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        count += 1
    return count * config.train.batch_size / (time.perf_counter() - start)


def show(config: Any, output: pathlib.Path) -> None:
    """Prints and writes all of it."""
    config_lib.validate(config)
    dataset = run.dataset_of(config)
    found = {name: run.split_of(dataset, config, name) for name in config_lib.SPLITS}
    splits = {name: split for name, split in found.items() if split is not None}
    print(f"{dataset.name} {dataset.version}: images {'x'.join(map(str, dataset.image_shape))}")
    rows = class_counts(splits, dataset.class_names)
    width = max(len(row["name"]) for row in rows)
    print(f"{'class':{width}} " + " ".join(f"{name:>10}" for name in splits))
    for row in rows[:50]:
        print(f"{row['name']:{width}} " + " ".join(f"{row[name]:10}" for name in splits))
    if len(rows) > 50:
        print(f"... and {len(rows) - 50} more classes, in counts.csv")
    print(f"{'all':{width}} " + " ".join(f"{len(split):10}" for split in splits.values()))
    writers.write_csv(workdir.create(output) / "counts.csv", rows)

    train = splits["train"]
    mean, std = pixel_statistics(train, EXAMPLES.value)
    print(
        f"pixels of training images: mean {np.round(mean, 1).tolist()}, standard deviation {np.round(std, 1).tolist()}"
    )
    preprocessing = run.preprocessing_of(config)
    batch = next(pipeline.train_batches(train, batch_size=min(SHOWN, len(train)), seed=config.seed))
    keys = jax.random.split(jax.random.key(config.seed), len(batch["label"]))
    augmented = np.asarray(jax.jit(preprocessing.augment)(batch["image"], keys))
    writers.draw_batch(output / "before.png", batch["image"], batch["label"], dataset.class_names)
    writers.draw_batch(output / "after.png", augmented, batch["label"], dataset.class_names)
    rate = images_per_second(train, config, SECONDS.value)
    source = f"{config.run.num_workers} workers of" if config.run.num_workers else "no workers,"
    print(
        f"pipeline: {rate:.0f} images/s in batches of {config.train.batch_size} ({source} {config.run.num_threads} "
        f"threads, {os.cpu_count()} CPU cores)"
    )
    print(f"counts.csv, before.png and after.png are in {output}")


def main(argv: list[str]) -> int:
    del argv
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        show(CONFIG.value, pathlib.Path(OUTPUT.value))
    except (config_lib.ConfigError, DataError, workdir.WorkdirError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
