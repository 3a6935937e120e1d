"""A folder of images in `split/class/` as a dataset: the layout of torchvision's ImageFolder."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from PIL import Image

from squeeze_jax.data.decoding import GREY_MODES
from squeeze_jax.errors import DataError

EXTENSIONS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SPLIT_NAMES = {"val": "validation", "valid": "validation"}  # other common names


class ImageFolder:
    """Lists the images in `root/split/class/`; the classes are the sorted folder names over all splits.

    Args:
      root: the folder.

    Raises:
      DataError: the folder does not have this layout.
    """

    version = "folder"

    def __init__(self, root: pathlib.Path):
        self.root = root
        folders = {SPLIT_NAMES.get(path.name, path.name): path for path in sorted(root.iterdir()) if path.is_dir()}
        self._folders = {
            split: path for split, path in folders.items() if any(child.is_dir() for child in path.iterdir())
        }
        if not self._folders:
            raise DataError(f"{root} contains no images in split/class/, such as {root}/train/cat/1.jpg.")
        names = {child.name for path in self._folders.values() for child in path.iterdir() if child.is_dir()}
        self.class_names = tuple(sorted(names))
        self.files = {split: self._files(path) for split, path in self._folders.items()}

    def _files(self, folder: pathlib.Path) -> list[tuple[str, int]]:
        found = []
        for label, name in enumerate(self.class_names):
            if (folder / name).is_dir():
                with os.scandir(folder / name) as entries:
                    paths = sorted(entry.path for entry in entries if entry.name.lower().endswith(EXTENSIONS))
                found += [(path, label) for path in paths]
        return found

    @property
    def split_sizes(self) -> dict[str, int]:
        """The number of images in each split."""
        return {split: len(files) for split, files in self.files.items()}

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(height, width, channels) of the first image, which all images must have unless they are cropped; or None."""
        for files in self.files.values():
            for path, _ in files:
                with Image.open(path) as image:
                    return image.height, image.width, 1 if image.mode in GREY_MODES else 3
        return None

    def examples(self, split: str) -> Sequence[dict[str, Any]]:
        """Returns the examples of a split: dicts of "image" (encoded bytes) and "label"."""
        return Files(self.files[split])


class Files(Sequence):
    """The encoded images of one split, read from disk on access.

    Args:
      files: (path, label) of each image.
    """

    def __init__(self, files: list[tuple[str, int]]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, _ = self._files[index]
        return {"image": pathlib.Path(path).read_bytes(), **self.targets(index)}

    def describe(self, index: int) -> str:
        """Returns the path of an image, for messages."""
        return self._files[index][0]

    def targets(self, index: int) -> dict[str, Any]:
        """Returns the label of an image, without reading the file."""
        return {"label": self._files[index][1]}
