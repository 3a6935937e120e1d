"""Shows the data of an experiment before training.

    python -m squeeze_jax.show_data --config configs/digits.py --output runs/digits_data

Prints the number of examples per class and split, the mean and standard deviation of the pixels (for
config.dataset.mean and std), and the speed of the input pipeline alone in images per second. Writes counts.csv and
pictures of training examples before and after augmentation (middle slices of volumes).
"""

import os
import pathlib
import time
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from squeeze_jax import commands, console, tables
from squeeze_jax.data.splits import UNREADABLE, Split
from squeeze_jax.files import make_folder

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/digits.py.")
OUTPUT = flags.DEFINE_string("output", "data_report", "Folder for the pictures and the table.")
EXAMPLES = flags.DEFINE_integer("examples", 2000, "Maximum number of training examples for the pixel statistics.")
SECONDS = flags.DEFINE_float("seconds", 5.0, "How long to time the input pipeline, in seconds.")

SHOWN = 32
SHOWN_CLASSES = 50


def class_counts(splits: dict[str, Split], class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns one row per class, with its number of examples in each split; none if the examples have no labels."""
    targets = {name: split.targets() for name, split in splits.items()}
    if not all("label" in found for found in targets.values()):
        return []
    counts = {name: _counts(found["label"], len(class_names)) for name, found in targets.items()}
    return [
        {"class": i, "name": name, **{split: int(counts[split][i]) for split in splits}}
        for i, name in enumerate(class_names)
    ]


def _counts(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the number of examples of each class; `labels` are (examples,), or 0 and 1 of (examples, classes)."""
    return np.bincount(labels, minlength=num_classes) if labels.ndim == 1 else np.sum(labels, axis=0)


def pixel_statistics(split: Split, examples: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns the mean and standard deviation of the pixels in 0..255, float64 (channels,), and how many examples could
    not be decoded and were replaced by the next one.

    Args:
      split: the split; its images are read as for evaluation.
      examples: the maximum number of examples, which are evenly spaced in the split.
    """
    indices = np.unique(np.linspace(0, len(split) - 1, min(examples, len(split))).astype(int))
    total, squares, count, replaced = 0.0, 0.0, 0, 0
    parts = np.array_split(indices, max(1, len(indices) // 100))
    for part in console.track(parts, "reading pixels"):
        batch = split.batch(part)
        replaced += len(batch.get(UNREADABLE, ()))
        pixels = batch["image"].astype(np.float64)
        axes = tuple(range(pixels.ndim - 1))
        total, squares = total + pixels.sum(axes), squares + (pixels**2).sum(axes)
        count += pixels.size // pixels.shape[-1]
    mean = total / count
    return mean, np.sqrt(squares / count - mean**2), replaced


def images_per_second(split: Split, config: ConfigDict, seconds: float) -> float:
    """Measures the speed of the input pipeline alone, after its first batches.

    A split that is cached in memory is read once before the measurement.

    Args:
      split: the training split.
      config: the config of the experiment.
      seconds: the duration of the measurement.
    """
    from squeeze_jax.data import pipeline

    batches = pipeline.train_batches(
        split,
        batch_size=config.train.batch_size,
        seed=config.seed,
        balanced=config.train.sampling == "balanced",
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


def show(config: ConfigDict, output: pathlib.Path) -> None:
    """Prints the statistics, and writes counts.csv, before.png and after.png to the folder `output`."""
    with console.doing("opening the dataset"):
        import jax

        from squeeze_jax.experiment import build
        from squeeze_jax.training.fine_tuning import with_weights

        experiment = build(with_weights(config))
    dataset, splits, train = experiment.dataset, experiment.splits, experiment.splits["train"]
    output = make_folder(output)
    print(f"{dataset.name} {dataset.version}: images {'x'.join(map(str, dataset.image_shape))}")
    for note in dataset.notes:
        print(note)
    rows = class_counts(splits, dataset.class_names)
    width = max(len(row["name"]) for row in rows) if rows else len("all")
    print(f"{'class':{width}} " + " ".join(f"{name:>10}" for name in splits))
    for row in rows[:SHOWN_CLASSES]:
        print(f"{row['name']:{width}} " + " ".join(f"{row[name]:10}" for name in splits))
    if len(rows) > SHOWN_CLASSES:
        print(f"... and {len(rows) - SHOWN_CLASSES} more classes, in counts.csv")
    print(f"{'all':{width}} " + " ".join(f"{len(split):10}" for split in splits.values()))
    if rows:
        tables.write_csv(output / "counts.csv", rows)

    mean, std, replaced = pixel_statistics(train, EXAMPLES.value)
    if replaced:
        print(
            f"{replaced} of {min(EXAMPLES.value, len(train))} training images cannot be decoded and are skipped; "
            f"`python -m squeeze_jax.data.check {dataset.name}` lists all that is wrong"
        )
    print(
        f"pixels of training images: mean {np.round(mean, 1).tolist()}, standard deviation {np.round(std, 1).tolist()}"
    )
    indices = np.random.default_rng(config.seed).permutation(len(train))[:SHOWN]
    rngs = [np.random.default_rng((config.seed, position)) for position in range(len(indices))] if train.crop else None
    before, after = train.batch(indices), train.batch(indices, rngs)  # central and random crops
    for batch in (before, after):
        batch.pop(UNREADABLE, None)
    keys = jax.random.split(jax.random.key(config.seed), len(indices))
    experiment.task.draw(output / "before.png", before)
    experiment.task.draw(output / "after.png", jax.device_get(jax.jit(experiment.task.augment)(after, keys)))
    with console.doing("timing the input pipeline"):
        rate = images_per_second(train, config, SECONDS.value)
    source = f"{config.run.num_workers} workers of" if config.run.num_workers else "no workers,"
    print(
        f"pipeline: {rate:.0f} images/s in batches of {config.train.batch_size} ({source} {config.run.num_threads} "
        f"threads, {os.cpu_count()} CPU cores)"
    )
    print(f"counts.csv, before.png and after.png are in {output}")


def main() -> None:
    """Runs the command."""
    show(CONFIG.value, pathlib.Path(OUTPUT.value))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    commands.run_with_flags(main)
