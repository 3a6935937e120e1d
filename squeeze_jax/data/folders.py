"""Folders of images as datasets: `split/class/image`, as for torchvision, and images grouped by patient."""

import collections
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from squeeze_jax.data import decoding
from squeeze_jax.data.dividing import divide, identical_files
from squeeze_jax.data.identity import HASHED_BYTES, LISTED, Identity, StoredSplit
from squeeze_jax.data.listing import Notes, list_pictures, shown
from squeeze_jax.data.splits import CASE, PATIENT
from squeeze_jax.errors import DataError

SPLIT_NAMES = {"val": "validation", "valid": "validation"}  # other common names
UNDIVIDED = "train"  # the split of a folder that is not divided yet
_SPLIT = re.compile(r"train(ing)?|val|valid|validation|test(ing)?|(subset|fold)_?\d+", re.IGNORECASE)
_NO_PATIENT = re.compile(r"train(ing)?|val|valid|validation|test(ing)?", re.IGNORECASE)
LAYOUTS = ("split/class/", "split/class/patient/", "[split/]class/patient/case/")
INNER = ("images", "image", "imgs", "img")  # folders that may lie between a class and its images and say nothing
ANNOTATIONS = "val_annotations.txt"  # Tiny ImageNet: the classes of the files in val/images
# Kinds of notes.
UNLABELED, OUTSIDE = "left out, in no folder of a class", "left out, in a folder beside those of the splits"
IN_TWO_SPLITS = "identical files in two splits, so that the figures of one are not of unseen images"
IN_TWO_CLASSES = "identical files in two classes"
DEEPER = "taken, but in folders below their class, which do not count as patients"


class _Row(NamedTuple):
    """An image, where its path puts it."""

    split: str
    class_name: str
    between: tuple[str, ...]  # the folders between class and image
    path: str  # relative, with "/"


class ImageFolder:
    """Lists the images of a folder; the classes are the sorted folder names over all splits.

    The layouts are:

        split/class/image
        split/class/patient/image
        split/class/patient/case/image
        class/patient/case/image
        class/image

    A patient is known by the name of the folder, whatever the class; a case, such as a nodule with several slices, is
    one folder. Without folders for splits, all images are in the split "train". A single folder around all of them is
    entered. Most images decide: where they lie directly in their classes, those in deeper folders are taken too, and
    where they lie deeper, all must. Tiny ImageNet is read as it is distributed.

    Args:
      root: the folder.
      shares: splits that are taken from the split "train" if the folder lacks them, such as {"test": 0.15}; see
        `dividing.divide`. An image and its copies, and all images of a patient, stay in one split.
      exif: whether images are turned as their EXIF data say, which `image_shape` needs to know.

    Attributes:
      group_names: see `Source`.
      notes, preparation: see `Source`.

    Raises:
      DataError: the folder does not have one of these layouts, or a patient is in two splits.
    """

    version = "folder"
    preparation: ClassVar = {}

    def __init__(self, root: pathlib.Path, shares: Mapping[str, float] | None = None, exif: bool = True):
        self.root, self._exif = root, exif
        pictures, notes = list_pictures(root)
        layout = _Layout(root, _top(pictures), notes)
        rows, levels = layout.read(pictures)
        self.class_names = tuple(sorted({row.class_name for row in rows}))
        splits = sorted({row.split for row in rows}, key=layout.folder_of)
        members: dict[str, list[_Row]] = {split: [] for split in splits}
        for row in rows:
            members[row.split].append(row)
        labels = {name: {"label": i} for i, name in enumerate(self.class_names)}
        known: dict[str, dict[str, int]] = {group: {} for group in (PATIENT, CASE)[:levels]}
        self._files: dict[str, list[tuple[str, dict[str, int]]]] = {}
        split_of: dict[int, str] = {}  # of each patient
        for split in splits:
            self._files[split] = []
            # The sort is stable: in the order of the listing within a class.
            for row in sorted(members[split], key=lambda row: row.class_name):
                target = labels[row.class_name]
                if levels:
                    names = {PATIENT: row.between[:1], CASE: (row.class_name, *row.between)}
                    groups = {
                        group: index.setdefault("/".join(names[group]), len(index)) for group, index in known.items()
                    }
                    if split_of.setdefault(groups[PATIENT], split) != split:
                        raise DataError(
                            f"{root}: the patient {row.between[0]} is in {split_of[groups[PATIENT]]} and in {split}; "
                            f"move all images of a patient to one split."
                        )
                    target = {**target, **groups}
                self._files[split].append((f"{root}/{row.path}", target))
        self._above = {split: f"{root}/{layout.above(split)}" for split in splits}
        self.group_names = {group: tuple(index) for group, index in known.items()}
        copies = self._find_copies(notes)
        missing = {split: share for split, share in (shares or {}).items() if split not in self._files}
        divided = self._divide(missing, copies) if missing and UNDIVIDED in self._files else ()
        self.notes = (*divided, *notes.lines())

    def _find_copies(self, notes: Notes) -> list[list[str]]:
        """Returns the groups of identical files, and notes those in two splits or two classes."""
        where = {path: (split, targets["label"]) for split in self._files for path, targets in self._files[split]}
        if len(where) > LISTED:
            return []
        copies = identical_files(where)
        for group in copies:
            for kind, part in ((IN_TWO_SPLITS, 0), (IN_TWO_CLASSES, 1)):
                if len({where[path][part] for path in group}) > 1:
                    names = [path.removeprefix(f"{self.root}/") for path in group]
                    notes.add(kind, " = ".join(names[:2]) + (f" = {len(names) - 2} more" if names[2:] else ""))
        return copies

    def _divide(self, shares: Mapping[str, float], copies: list[list[str]]) -> tuple[str, ...]:
        """Takes splits from the split "train", and returns a line that says so."""
        files = self._files[UNDIVIDED]
        names = [self._name(UNDIVIDED, path, targets) for path, targets in files]
        # Images that must stay together have the same number: those of a patient, and copies.
        together = {path: targets.get(PATIENT, -1 - i) for i, (path, targets) in enumerate(files)}
        merged: dict[int, int] = {}

        def number(path: str) -> int:
            found = together[path]
            while found in merged:
                found = merged[found]
            return found

        for group in copies:
            first, *others = sorted({number(path) for path in group if path in together}) or [None]
            merged |= dict.fromkeys(others, first)
        labels = [targets["label"] for _, targets in files]
        parts = divide(names, labels, [number(path) for path, _ in files], shares)
        for split, part in zip((UNDIVIDED, *shares), parts, strict=True):
            self._above[split] = self._above[UNDIVIDED]
            self._files[split] = [files[i] for i in part]
        taken = ", ".join(f"{len(self._files[split])} for {split}" for split in shares)
        return (
            f"divided here, with equal shares of each class: {taken} of its {len(files)} images "
            f"(config.dataset.{'_share, '.join(shares)}_share)",
        )

    def _name(self, split: str, path: str, targets: Mapping[str, int]) -> str:
        """Returns the name of a file that does not depend on where the folder lies, with the class in it."""
        class_name = self.class_names[targets["label"]]
        # The class is part of the name, even where no folder has its name.
        return f"{class_name}/{path.removeprefix(self._above[split]).removeprefix(f'{class_name}/')}"

    @property
    def split_sizes(self) -> dict[str, int]:
        """The number of images in each split."""
        return {split: len(files) for split, files in self._files.items()}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the first image that is one; all images must have it unless they are cropped.

        Raises:
          DataError: no image can be decoded, or the first has more than 8 bits per channel.
        """
        reasons = []
        for files in self._files.values():
            for path, _ in files:
                try:
                    image = decoding.open_image(decoding.read_file(path), channels=3)
                except decoding.Undecodable as error:
                    reasons.append(f"{shown(path)}: {error}")
                    continue
                except (decoding.Unsuitable, OSError) as error:
                    raise DataError(f"{shown(path)} cannot be read: {error}") from error
                width, height = decoding.oriented_size(image, self._exif)
                return height, width, 1 if image.mode in decoding.GRAY_MODES else 3
        raise DataError(f"none of the {len(reasons)} images of {self.root} can be decoded, such as {reasons[0]}")

    def examples(self, split: str) -> Sequence[dict[str, Any]]:
        """Returns the examples of a split: dicts of "image" (encoded bytes), "label" and, if grouped, the groups."""
        return Files(self._files[split])

    def paths(self, split: str) -> list[str]:
        """Returns the paths of the images of a split, in the order of `examples`."""
        return [path for path, _ in self._files[split]]

    def identity(self, splits: Iterable[str]) -> Identity:
        """Returns what tells these splits from changed ones, see `Source`.

        Contents are read if a split has at most HASHED_BYTES.

        Raises:
          DataError: a file cannot be read.
        """
        try:
            return Identity(self.class_names, {split: self._stored(split) for split in splits})
        except OSError as error:
            raise DataError(f"{shown(str(error.filename))} cannot be read: {error.strerror}.") from error

    def _stored(self, split: str) -> StoredSplit:
        files, classes = {}, collections.Counter()
        sizes = [os.stat(path).st_size for path, _ in self._files[split]]
        hashed = sum(sizes) <= HASHED_BYTES
        for (path, targets), size in zip(self._files[split], sizes, strict=True):
            classes[self.class_names[targets["label"]]] += 1
            contents = hashlib.blake2b(pathlib.Path(path).read_bytes(), digest_size=8).hexdigest() if hashed else ""
            files[self._name(split, path, targets)] = (size, contents)
        return StoredSplit.of(files, classes)


class Files(Sequence):
    """The encoded images of one split, read from disk on access.

    Args:
      files: (path, targets) of each image.
    """

    def __init__(self, files: list[tuple[str, dict[str, int]]]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, targets = self._files[index]
        return {"image": decoding.read_file(path), **targets}

    def describe(self, index: int) -> str:
        """Returns the path of an image, for messages."""
        return shown(self._files[index][0])

    def targets(self, index: int) -> dict[str, Any]:
        """Returns the label and the groups of an image, without reading the file."""
        return self._files[index][1]


def _top(pictures: list[str]) -> str:
    """Returns the path of the single folders around all splits or classes, such as "photos/"; "" if there are none."""
    top = ""
    while True:
        inside = [path.removeprefix(top).split("/") for path in pictures if path.startswith(top)]
        children = {parts[0] for parts in inside if len(parts) > 1}
        below = sum(len(parts) > 2 for parts in inside)
        directly = sum(len(parts) == 2 for parts in inside)
        if len(children) != 1 or below <= directly or _SPLIT.fullmatch(name := children.pop()):
            return top
        if {parts[1].lower() for parts in inside if len(parts) > 2} <= set(INNER):
            return top  # cats/images/1.jpg: a class
        top += f"{name}/"


class _Layout:
    """Decides from all pictures which folders are splits, classes, patients and cases.

    Args:
      root: the folder, for messages.
      top: the folders around the splits or classes, see `_top`.
      notes: what is not used is added here.
    """

    def __init__(self, root: pathlib.Path, top: str, notes: Notes):
        self._root, self._top, self._notes = root, top, notes
        self._names: dict[str, str] = {}  # of the folders, by the name of their split
        self._is_divided = False  # whether there are folders for splits

    def folder_of(self, split: str) -> str:
        """Returns the name of the folder of a split."""
        return self._names[split]

    def above(self, split: str) -> str:
        """Returns the path of the folder around the classes of a split."""
        return f"{self._top}{self._names[split]}/" if self._is_divided else self._top

    def read(self, pictures: list[str]) -> tuple[list[_Row], int]:
        """Returns the images, and the number of levels between a class and its images: 0, 1 (patient) or 2 (case).

        Raises:
          DataError: see `ImageFolder`.
        """
        paths = []
        for path in pictures:
            parts = path.removeprefix(self._top).split("/")
            if not path.startswith(self._top) or len(parts) == 1:
                self._notes.add(UNLABELED, path)
            else:
                paths.append((parts, path))
        tops = {parts[0] for parts, _ in paths}
        splits = {name for name in tops if _SPLIT.fullmatch(name)}
        self._is_divided = bool(splits)
        rows = self._divided(paths, splits) if splits else self._undivided(paths)
        if not rows:
            raise self._no_layout()
        return self._grouped(rows)

    def _no_layout(self) -> DataError:
        found = self._notes.lines()
        return DataError(
            f"{self._root} contains no images in split/class/, such as {self._root}/train/cat/1.jpg; the other layouts "
            f"are {', '.join(LAYOUTS[1:])} and class/ for a folder without splits.{' ' if found else ''}"
            f"{'; '.join(found)}"
        )

    def _row(self, folder: str, class_name: str, rest: list[str], path: str) -> _Row:
        split = SPLIT_NAMES.get(folder, folder)
        if self._names.setdefault(split, folder) != folder:
            raise DataError(
                f"{self._root} has folders {self._names[split]} and {folder}, which both mean the split {split!r}; "
                f"rename or remove one."
            )
        if rest[0].lower() in INNER and len(rest) > 1:
            rest = rest[1:]
        return _Row(split, class_name, tuple(rest[:-1]), path)

    def _divided(self, paths: list[tuple[list[str], str]], splits: set[str]) -> list[_Row]:
        classes = collections.defaultdict(set)
        for parts, _ in paths:
            if len(parts) > 2:
                classes[parts[0]].add(parts[1])
        no_classes = {split for split in classes if classes[split] <= set(INNER)}  # such as test/images/1.jpg
        annotated = self._annotated() if "val" in no_classes else {}
        known = set().union(*(classes[split] for split in splits - no_classes))
        others = {parts[0] for parts, _ in paths} - splits
        outside = {name for name in others if not classes[name] or any(map(_SPLIT.fullmatch, classes[name]))}
        outside |= others & no_classes
        strangers = sorted(name for name in others - outside if not classes[name] <= known)
        if strangers:
            raise DataError(
                f"{self._root} has folders called like splits ({', '.join(sorted(splits))}), so the others cannot be "
                f"classes ({', '.join(strangers)}). Call all folders train, val or test, or none."
            )
        rows = []
        for parts, path in paths:
            split = parts[0]
            if split in annotated:
                name = annotated[split].pop(parts[-1], None) if len(parts) < 4 else None
                if name is None:
                    self._notes.add(UNLABELED, path)
                    continue
                if name not in known:
                    raise DataError(
                        f"{self._root / self._top / split / ANNOTATIONS} gives {parts[-1]} the class {name!r}, for "
                        f"which there is no folder in train/."
                    )
                rows.append(self._row(split, name, parts[-1:], path))
            elif split in outside:
                self._notes.add(OUTSIDE, path)
            elif len(parts) == 2 or split in no_classes:
                self._notes.add(UNLABELED, path)
            else:
                rows.append(self._row(split, parts[1], parts[2:], path))
        for split, missing in annotated.items():
            if missing:
                raise DataError(
                    f"{self._root / self._top / split / ANNOTATIONS} names {len(missing)} images that are not there, "
                    f"such as {next(iter(missing))}; unpack the dataset again."
                )
        return rows

    def _annotated(self) -> dict[str, dict[str, str]]:
        """Returns the class of each file name of Tiny ImageNet's validation split, by its folder; else nothing."""
        path = self._root / self._top / "val" / ANNOTATIONS
        if not path.is_file():
            return {}
        try:
            lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}.") from error
        classes = {}
        for number, line in enumerate(lines, 1):
            fields = line.split("\t")
            if len(fields) < 2 or not all(fields[:2]) or fields[0] in classes:
                raise DataError(
                    f"{path}, line {number}: expected a file name of its own, a tab and a class, got {line[:80]!r}."
                )
            classes[fields[0]] = fields[1]
        return {"val": classes}

    def _undivided(self, paths: list[tuple[list[str], str]]) -> list[_Row]:
        paths = [([parts[0], *parts[2:]] if parts[1].lower() in INNER else parts, path) for parts, path in paths]
        depths = collections.Counter(len(parts) - 1 for parts, _ in paths)
        if not depths:
            return []
        nested = collections.defaultdict(set)  # the folders in each folder
        for parts, _ in paths:
            nested[parts[0]].update(parts[1:2] if len(parts) > 2 else ())
        for name, inside in sorted(nested.items()):
            if inside and (inside == {name} or inside <= nested.keys() - {name}):
                raise DataError(
                    f"{self._root / self._top / name} holds {', '.join(sorted(inside)[:3])}, named like a folder "
                    f"around or beside it, so the classes are not clear. Remove the copy, or call the folders of "
                    f"splits train, val or test."
                )
        if 2 * depths[1] >= sum(depths.values()):
            return [self._row(UNDIVIDED, parts[0], parts[1:], path) for parts, path in paths]
        most = depths.most_common(1)[0][0]
        for parts, path in paths:
            if len(parts) - 1 != most and most == 3:
                raise self._odd(path, 2, depths[most])
        if most == 2:
            counts = collections.Counter(name for names in nested.values() for name in names)
            if max(counts.values()) == 1:
                raise DataError(
                    f"{self._root} has the layout a/b/image, and no b is in two a's (such as {self._top}"
                    f"{paths[0][0][0]}/{paths[0][0][1]}), so a is not a split. If a is a class and b a patient, put "
                    f"all of them into a folder called train; if a is a class, move its images directly into it."
                )
            self._is_divided = True
            for parts, path in paths:
                if len(parts) == 2:
                    self._notes.add(UNLABELED, path)
            return [self._row(parts[0], parts[1], parts[2:], path) for parts, path in paths if len(parts) > 2]
        if most != 3:
            return []
        if splits := sorted({name for names in nested.values() for name in names if _NO_PATIENT.fullmatch(name)}):
            raise DataError(
                f"{self._root} has several folders with splits in them ({', '.join(sorted(nested)[:3])}, with "
                f"{', '.join(splits)}); name one of these folders."
            )
        return [self._row(UNDIVIDED, parts[0], parts[1:], path) for parts, path in paths]

    def _grouped(self, rows: list[_Row]) -> tuple[list[_Row], int]:
        levels = collections.Counter(len(row.between) for row in rows)
        if 2 * levels[0] >= len(rows):
            for row in rows:
                if row.between:
                    self._notes.add(DEEPER, row.path)
            return rows, 0
        most = levels.most_common(1)[0][0]
        if most > 2:
            raise self._no_layout()
        for row in rows:
            if len(row.between) != most:
                raise self._odd(row.path, most, levels[most])
        return rows, most

    def _odd(self, path: str, levels: int, others: int) -> DataError:
        where = shown(f"{self._root}/{path}")
        return DataError(f"{where} is not in {LAYOUTS[levels]}, like other images of this folder ({others}); move it.")
