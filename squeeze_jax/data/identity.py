"""What tells a dataset from a changed one: its class names, and the names, sizes and contents of its files."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from squeeze_jax.data.listing import shown
from squeeze_jax.errors import DataError
from squeeze_jax.files import replaced

FILE = "dataset.json"  # in a workdir
VERSION = 1  # of the file
LISTED = 50_000  # files; of larger splits only the counts of the classes and a digest are kept
HASHED_BYTES = 2**28  # the contents of larger splits are not compared, only names and sizes
NAMED = 3  # examples in a message


@dataclasses.dataclass(frozen=True)
class StoredSplit:
    """What is known of a split.

    Attributes:
      examples: their number.
      digest: a hash of the names and sizes of all files, or of whatever else the data were made of; the name and
        version of a published dataset; "" if unknown.
      classes: the number of examples of each class; empty if unknown.
      files: the size in bytes and the hash of the contents ("" if they were not read) of each file, by its name; empty
        if there are no files, or too many to list.
    """

    examples: int
    digest: str = ""
    classes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    files: Mapping[str, tuple[int, str]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, files: Mapping[str, tuple[int, str]], classes: Mapping[str, int]) -> "StoredSplit":
        """Returns the split of these files, see the attributes."""
        digest = hashlib.sha256()
        for name, (size, _) in sorted(files.items()):
            digest.update(f"{name}\n{size}\n".encode(errors="surrogateescape"))
        return cls(len(files), digest.hexdigest(), dict(classes), dict(files) if len(files) <= LISTED else {})

    def changes(self, now: "StoredSplit") -> list[str]:
        """Returns what is different now, in words."""
        if not (self.files and now.files):
            if self.examples == now.examples and (self.digest == now.digest or "" in (self.digest, now.digest)):
                return []
            classes = sorted(self.classes.keys() | now.classes.keys())
            counts = [(name, self.classes.get(name, 0), now.classes.get(name, 0)) for name in classes]
            differing = [f"{new} of {shown(name)} for {old}" for name, old, new in counts if old != new]
            return differing[:NAMED] or [
                f"{now.examples} examples for {self.examples}" if now.examples != self.examples else "other data"
            ]
        both = self.files.keys() & now.files.keys()
        found = {
            "more": now.files.keys() - both,
            "less": self.files.keys() - both,
            "with other contents": [name for name in both if _differ(self.files[name], now.files[name])],
        }
        return [
            f"{len(names)} file{'s' * (len(names) > 1)} {kind} ({_some(names)})"
            for kind, names in found.items()
            if names
        ]


@dataclasses.dataclass(frozen=True)
class Identity:
    """The identity of a dataset: its class names, and its stored splits by their names."""

    class_names: tuple[str, ...]
    splits: Mapping[str, StoredSplit]

    def changes(self, now: "Identity", splits: Iterable[str]) -> str:
        """Returns what is different now, in words; "" if nothing.

        Args:
          now: the dataset as it is now.
          splits: the splits to compare; those that this identity does not know are left out.
        """
        lines = []
        new, gone = (
            [name for name in ours if name not in theirs]
            for ours, theirs in ((now.class_names, self.class_names), (self.class_names, now.class_names))
        )
        lines += [f"new classes: {_some(new)}"] if new else []
        lines += [f"classes that are gone: {_some(gone)}"] if gone else []
        if not lines and self.class_names != now.class_names:
            lines.append("the classes have another order")
        for split in splits:
            if split in self.splits:
                other = now.splits.get(split)
                found = self.splits[split].changes(other) if other else ["the split is gone"]
                lines += [f"{split}: {', '.join(found)}"] if found else []
        return "; ".join(lines)

    def write(self, folder: pathlib.Path) -> None:
        """Writes dataset.json to a workdir.

        Raises:
          FileError: the file cannot be written.
        """
        with replaced(folder / FILE) as path:
            path.write_text(json.dumps({"version": VERSION, **dataclasses.asdict(self)}) + "\n")

    @classmethod
    def read(cls, folder: pathlib.Path) -> "Identity | None":
        """Reads dataset.json of a workdir; None if there is none, because an earlier version made the workdir.

        Raises:
          DataError: the file is damaged, or of a later version.
        """
        path = folder / FILE
        try:
            stored = json.loads(path.read_text())
            if stored["version"] != VERSION:
                raise DataError(f"{path} has version {stored['version']!r}; expected {VERSION}. Update squeeze_jax.")
            return cls(
                tuple(map(str, stored["class_names"])),
                {name: StoredSplit(**_checked(split)) for name, split in stored["splits"].items()},
            )
        except FileNotFoundError:
            return None
        except DataError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{path} cannot be read ({type(error).__name__}: {error}); restore it, or delete it to continue "
                f"without knowing whether the dataset changed."
            ) from error


def _checked(split: dict[str, Any]) -> dict[str, Any]:
    return {
        "examples": int(split["examples"]),
        "digest": str(split["digest"]),
        "classes": {name: int(count) for name, count in split["classes"].items()},
        "files": {name: (int(size), str(contents)) for name, (size, contents) in split["files"].items()},
    }


def fingerprint(paths: Iterable[pathlib.Path]) -> str:
    """Returns the SHA-256 of the names, sizes and contents of files.

    Raises:
      DataError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(map(pathlib.Path, paths)):
        try:
            with path.open("rb") as file:
                contents = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.name}\n{path.stat().st_size}\n{contents}\n".encode(errors="surrogateescape"))
        except OSError as error:
            raise DataError(f"{shown(str(path))} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()


def _differ(before: tuple[int, str], now: tuple[int, str]) -> bool:
    """Returns whether a file has another size or, if both were read, other contents."""
    return before[0] != now[0] or (before[1] != now[1] and "" not in (before[1], now[1]))


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(map(shown, names[:NAMED])) + (", ..." if len(names) > NAMED else "")
