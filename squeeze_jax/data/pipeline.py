"""Shuffling, sharding over hosts, and batching. The examples of a batch are a pure function of (seed, step)."""

import functools
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from squeeze_jax.data.splits import UNREADABLE, VALID, Split
from squeeze_jax.errors import DataError

Batch = dict[str, Any]

PREFETCHED_BATCHES = 4
PARENT_CHECK_SECONDS = 0.5


def train_batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    balanced: bool = False,
    num_threads: int = 2,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Returns an endless iterator of shuffled batches; each epoch contains every example exactly once.

    If `balanced`, every class is drawn equally often instead: the examples of a class are shuffled and repeated.

    The examples are first shuffled, repeated and batched; each host then takes a contiguous slice of every global
    batch. A random crop is keyed by (seed, step, position in the global batch). So nothing depends on the number of
    hosts, threads or workers, and a resumed run continues with the next example.

    Args:
      split: the examples.
      batch_size: the size of the global batch; a multiple of `process_count`.
      seed: the seed of the order and of random crops.
      first_step: the step of the first batch.
      balanced: whether every class is drawn equally often.
      num_threads: threads that read, decode and assemble batches, in this process or in each worker.
      num_workers: worker processes that do so instead of this process; 0 for none.
      process_index: the index of this host.
      process_count: the number of hosts.

    Yields:
      This host's part of the batch, batch_size / process_count examples: "image", uint8 or float32
      (batch, *image_shape), and the targets; also "unreadable" if examples were replaced, see `Split.batch`.

    Raises:
      ValueError: `batch_size` is not a multiple of `process_count`.
      DataError: `balanced`, but the examples do not have one class each; or, in the iteration, an example cannot be
        used, see `Split.batch` and `Split.check_unreadable`.
    """
    rows = _host_rows(batch_size, process_index, process_count)

    def load(step_from_first: int, indices: np.ndarray) -> Batch:
        step = first_step + step_from_first
        rngs = None
        if split.crop is not None:
            rngs = [np.random.default_rng((seed, step, position)) for position in range(batch_size)[rows]]
        return split.batch(indices[rows], rngs)

    uniform = grain.MapDataset.range(len(split)).shuffle(seed=seed).repeat()
    batches = (_balanced(split, seed) if balanced else uniform).batch(batch_size)
    return _checked(split, _iterate(batches[first_step:].map_with_index(load), num_threads, num_workers))


def eval_batches(
    split: Split,
    *,
    batch_size: int,
    num_threads: int = 2,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Returns an iterator over every example once, in stored order; the last batch is padded.

    Arguments and errors are those of `train_batches`.

    Yields:
      "image" and targets as in training, and "valid", bool (batch_size / process_count,), which is False for padding
      and for examples that were replaced because they could not be read. Every host gets the same number of batches.
    """
    rows = _host_rows(batch_size, process_index, process_count)
    size = len(split)

    def load(start: int) -> Batch:
        indices = np.arange(start, start + batch_size)[rows]
        valid = indices < size
        batch = split.batch(np.where(valid, indices, 0))
        for row, _ in batch.get(UNREADABLE, ()):
            valid[row] = False
        return {**batch, VALID: valid}

    return _checked(split, _iterate(grain.MapDataset.range(0, size, batch_size).map(load), num_threads, num_workers))


def _checked(split: Split, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Ends with an error when too many examples had to be replaced, whichever process read them."""
    unreadable: set[str] = set()
    for batch in batches:
        found = {wrong for _, wrong in batch.get(UNREADABLE, ())} - unreadable
        if found:
            unreadable |= found
            split.check_unreadable(unreadable)
        yield batch


def _balanced(split: Split, seed: int) -> grain.MapDataset:
    """Returns an endless order of indices in which the classes take turns, those without examples left out."""
    labels = split.targets().get("label")
    if labels is None or labels.ndim != 1:
        raise DataError(
            f"the examples of {split.name} do not have one class each; set config.train.sampling='uniform'."
        )
    classes = [
        grain.MapDataset.source(np.flatnonzero(labels == label)).shuffle(seed=(seed + i) % 2**32).repeat()
        for i, label in enumerate(np.unique(labels))
    ]
    return grain.MapDataset.mix(classes, weights=[1 / len(classes)] * len(classes))


def prefetched_batches(num_threads: int) -> int:
    """Returns the number of batches to prepare ahead. Each thread makes a whole batch, so fewer would idle threads."""
    return max(PREFETCHED_BATCHES, num_threads)


def _iterate(batches: grain.MapDataset, num_threads: int, num_workers: int) -> Iterator[Batch]:
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetched_batches(num_threads))
    dataset = batches.to_iter_dataset(options)
    if num_workers:
        if not flags.FLAGS.is_parsed():  # Grain reads its own absl flags, which a notebook never parses
            flags.FLAGS.mark_as_parsed()
        workers = grain.MultiprocessingOptions(num_workers=num_workers)
        dataset = dataset.mp_prefetch(workers, worker_init_fn=functools.partial(_end_with_parent, os.getpid()))
    return iter(dataset)


def _end_with_parent(parent: int, worker_index: int, worker_count: int) -> None:
    """Runs in a worker: ends it if its parent is gone, because a killed parent cannot stop its workers."""
    del worker_index, worker_count

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _host_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size % process_count:
        raise ValueError(
            f"a batch of {batch_size} cannot be divided among {process_count} processes; use a multiple of "
            f"{process_count}."
        )
    local = batch_size // process_count
    return slice(process_index * local, (process_index + 1) * local)
