"""Order, sharding over hosts, and batching. Which example stands where is a pure function of (seed, step)."""

from collections.abc import Iterator

import grain
import numpy as np

from squeeze_jax.data.sources import Split

Batch = dict[str, np.ndarray]

PREFETCHED_BATCHES = 4


def train_batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    num_threads: int = 2,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Endless shuffled batches, from step `first_step` on; each epoch holds every example exactly once.

    Examples are shuffled, repeated and numbered first; then each host takes its contiguous positions of every global
    batch. So the order does not depend on the number of hosts, and a resumed run goes on with the next example.

    Args:
      split: the examples.
      batch_size: of the global batch; a multiple of `process_count`.
      seed: of the order.
      first_step: the step of the first batch.
      num_threads: that read and assemble batches.
      process_index: of this host.
      process_count: hosts.

    Yields:
      "image" (batch_size / process_count, *image_shape) and "label" int32, this host's part of the batch.
    """
    rows = _host_rows(batch_size, process_index, process_count)
    batches = (
        grain.MapDataset.range(len(split))
        .shuffle(seed=seed)
        .repeat()
        .batch(batch_size)
        .map(lambda indices: split.batch(indices[rows]))
        .to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=PREFETCHED_BATCHES))
    )
    iterator = iter(batches)
    iterator.set_state({"next_index": first_step})
    return iterator


def eval_batches(
    split: Split, *, batch_size: int, num_threads: int = 2, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Every example once, in its stored order; the last batch is padded, and "mask" is false on the padding.

    Yields:
      "image" and "label" as in training, "mask" bool (batch_size / process_count,); as many batches on every host.
    """
    rows = _host_rows(batch_size, process_index, process_count)
    size = len(split)

    def load(start: int) -> Batch:
        indices = np.arange(start, start + batch_size)[rows]
        mask = indices < size
        return {**split.batch(np.where(mask, indices, 0)), "mask": mask}

    batches = grain.MapDataset.range(0, size, batch_size).map(load)
    return iter(
        batches.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=PREFETCHED_BATCHES))
    )


def _host_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size % process_count:
        raise ValueError(f"a batch of {batch_size} cannot be divided among {process_count} processes.")
    local = batch_size // process_count
    return slice(process_index * local, (process_index + 1) * local)
