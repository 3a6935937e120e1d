"""Folders of images as datasets: `split/class/image`, as for torchvision, and images grouped by patient."""

import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from squeeze_jax.data.decoding import GREY_MODES
from squeeze_jax.data.splits import CASE, PATIENT
from squeeze_jax.errors import DataError

EXTENSIONS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SPLIT_NAMES = {"val": "validation", "valid": "validation"}  # other common names
UNDIVIDED = "train"  # the split of a folder that is not divided yet
_SPLIT = re.compile(r"train|val|valid|validation|test|(subset|fold)_?\d+")
LAYOUTS = ("split/class/", "split/class/patient/", "[split/]class/patient/case/")


class ImageFolder:
    """Lists the images of a folder; the classes are the sorted folder names over all splits.

    The layouts are:

        split/class/image
        split/class/patient/image
        split/class/patient/case/image
        class/patient/case/image

    A patient is known by the name of the folder, whatever the class; a case, such as a nodule with several slices, is
    one folder. Without folders for splits, all images are in the split "train".

    Args:
      root: the folder.

    Attributes:
      group_names: see `Source`.

    Raises:
      DataError: the folder does not have one of these layouts, or a patient is in two splits.
    """

    version = "folder"

    def __init__(self, root: pathlib.Path):
        self.root = root
        folders = {SPLIT_NAMES.get(path.name, path.name): path for path in _subfolders(root)}
        levels = _depth(root) - 2  # of folders between the class and the image
        if levels > 0 and not all(_SPLIT.fullmatch(path.name) for path in folders.values()):
            if named := [path.name for path in folders.values() if _SPLIT.fullmatch(path.name.lower())]:
                others = [path.name for path in folders.values() if path.name not in named]
                raise DataError(
                    f"{root} has folders called like splits ({', '.join(named)}), so the others cannot be classes "
                    f"({', '.join(others) or 'none'}). Call all folders train, val or test, in lower case, or none."
                )
            folders, levels = {UNDIVIDED: root}, levels + 1
        folders = {split: path for split, path in folders.items() if _subfolders(path)}
        if not folders or not 0 <= levels <= 2:
            raise DataError(
                f"{root} contains no images in split/class/, such as {root}/train/cat/1.jpg; the other layouts are "
                f"{' and '.join(LAYOUTS[1:])}."
            )
        self.class_names = tuple(sorted({child.name for path in folders.values() for child in _subfolders(path)}))
        known: dict[str, dict[str, int]] = {group: {} for group in (PATIENT, CASE)[:levels]}
        self._files: dict[str, list[tuple[str, dict[str, int]]]] = {}
        split_of: dict[int, str] = {}  # of each patient
        for split, folder in folders.items():
            self._files[split] = []
            for path, label, between in self._walk(folder, levels):
                names = {PATIENT: between[:1], CASE: (self.class_names[label], *between)}
                groups = {group: index.setdefault("/".join(names[group]), len(index)) for group, index in known.items()}
                if groups and split_of.setdefault(groups[PATIENT], split) != split:
                    raise DataError(
                        f"{root}: the patient {between[0]} is in {split_of[groups[PATIENT]]} and in {split}; move all "
                        f"images of a patient to one split."
                    )
                self._files[split].append((path, {"label": label, **groups}))
        self.group_names = {group: tuple(index) for group, index in known.items()}

    def _walk(self, folder: pathlib.Path, levels: int) -> Iterator[tuple[str, int, tuple[str, ...]]]:
        """Yields the path, the label and the folders between class and image, `levels` many, of each image."""
        for label, name in enumerate(self.class_names):
            for path, between in _images(folder / name):
                if len(between) == levels:
                    yield path, label, between
                elif levels:
                    raise DataError(f"{path} is not in {LAYOUTS[levels]}, like other images of this folder; move it.")

    @property
    def split_sizes(self) -> dict[str, int]:
        """The number of images in each split."""
        return {split: len(files) for split, files in self._files.items()}

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(height, width, channels) of the first image, which all images must have unless they are cropped; or None."""
        for files in self._files.values():
            for path, _ in files:
                with Image.open(path) as image:
                    return image.height, image.width, 1 if image.mode in GREY_MODES else 3
        return None

    def examples(self, split: str) -> Sequence[dict[str, Any]]:
        """Returns the examples of a split: dicts of "image" (encoded bytes), "label" and, if grouped, the groups."""
        return Files(self._files[split])


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
        return {"image": pathlib.Path(path).read_bytes(), **targets}

    def describe(self, index: int) -> str:
        """Returns the path of an image, for messages."""
        return self._files[index][0]

    def targets(self, index: int) -> dict[str, Any]:
        """Returns the label and the groups of an image, without reading the file."""
        return self._files[index][1]


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _depth(root: pathlib.Path) -> int:
    """Returns the number of folders between `root` and the first image; 2 if there is none."""
    for folder, subfolders, files in os.walk(root):
        subfolders.sort()
        if any(map(_is_image, files)):
            return len(pathlib.Path(folder).relative_to(root).parts)
    return 2


def _images(root: pathlib.Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields the path of each image below `root`, sorted by folder and name, and the folders between."""
    for folder, subfolders, files in os.walk(root):
        subfolders.sort()
        between = pathlib.Path(folder).relative_to(root).parts
        for name in sorted(filter(_is_image, files)):
            yield os.path.join(folder, name), between
