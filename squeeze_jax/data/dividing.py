"""Divides the images of a folder into splits: by class, reproducibly, no image and none of its copies in two splits."""

import collections
import hashlib
import os
import pathlib
from collections.abc import Hashable, Iterable, Mapping, Sequence

from squeeze_jax.data.listing import shown
from squeeze_jax.errors import DataError

LARGEST_COMPARED = 2**28  # bytes of all files that share their size with another one


def divide(
    names: Sequence[str], labels: Sequence[int], together: Sequence[Hashable], shares: Mapping[str, float]
) -> list[list[int]]:
    """Divides examples so that each split has about its share of each class.

    The hashes of the names decide, so the division depends neither on the order of the list nor on where the files
    lie, and few images move if others are added. A class of one group is for training alone; a class of two
    or more is in as many splits as it has groups.

    Args:
      names: the names of the examples, without duplicates.
      labels: the class of each example.
      together: examples with the same value form a group, which is never divided; it counts with its largest class.
      shares: the share of each split; the rest is one more split.

    Returns:
      The increasing indices of the examples of each split, the one that gets the rest first.
    """
    groups: dict[Hashable, list[int]] = collections.defaultdict(list)
    for i, group in enumerate(together):
        groups[group].append(i)
    strata: dict[int, list[list[int]]] = collections.defaultdict(list)
    for members in groups.values():
        counts = collections.Counter(labels[i] for i in members)
        strata[min(counts, key=lambda label: (-counts[label], label))].append(members)
    parts: list[list[int]] = [[] for _ in range(1 + len(shares))]
    for stratum in strata.values():
        waiting = sorted(stratum, key=lambda members: min(_hash(names[i]) for i in members))
        total = sum(map(len, waiting))
        for part, share in enumerate(shares.values(), 1):
            taken = 0
            # Half of a group beyond the share is as near to it as half of a group below.
            while len(waiting) > 1 and (not taken or taken + len(waiting[0]) / 2 <= share * total):
                taken += len(waiting[0])
                parts[part] += waiting.pop(0)
        parts[0] += [i for members in waiting for i in members]
    return [sorted(part) for part in parts]


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()


def identical_files(paths: Iterable[str]) -> list[list[str]]:
    """Returns the groups of files with the same bytes, each sorted; nothing if too many bytes would have to be read.

    Only files of the same size are read.

    Args:
      paths: the files.

    Raises:
      DataError: a file cannot be read.
    """
    by_size: dict[int, list[str]] = collections.defaultdict(list)
    try:
        for path in paths:
            by_size[os.stat(path).st_size].append(path)
        candidates = {size: found for size, found in by_size.items() if len(found) > 1}
        if sum(size * len(found) for size, found in candidates.items()) > LARGEST_COMPARED:
            return []
        by_contents: dict[bytes, list[str]] = collections.defaultdict(list)
        for path in (path for found in candidates.values() for path in found):
            by_contents[hashlib.blake2b(pathlib.Path(path).read_bytes(), digest_size=16).digest()].append(path)
    except OSError as error:
        raise DataError(f"{shown(str(error.filename))} cannot be read: {error.strerror}.") from error
    return sorted(sorted(group) for group in by_contents.values() if len(group) > 1)
