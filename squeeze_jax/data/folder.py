"""A folder `split/class/image` as a dataset: the layout of torchvision's ImageFolder."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from PIL import Image

from squeeze_jax.data.decode import GREY_MODES

EXTENSIONS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SPLIT_NAMES = {"val": "validation", "valid": "validation"}  # other names in use


class ImageFolder:
    """Lists the images below `root/split/class/`; classes are the sorted folder names over all splits.

    Args:
      root: the folder.

    Raises:
      ValueError: not that layout.
    """

    version = "folder"

    def __init__(self, root: pathlib.Path):
        self.root = root
        folders = {SPLIT_NAMES.get(path.name, path.name): path for path in sorted(root.iterdir()) if path.is_dir()}
        self._folders = {
            split: path for split, path in folders.items() if any(child.is_dir() for child in path.iterdir())
        }
        if not self._folders:
            raise ValueError(f"{root} holds no images in split/class/, such as {root}/train/cat/1.jpg.")
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
        return {split: len(files) for split, files in self.files.items()}

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of the first image; the others are held to it unless they are cropped."""
        for files in self.files.values():
            for path, _ in files:
                with Image.open(path) as image:
                    return image.height, image.width, 1 if image.mode in GREY_MODES else 3
        return None

    def examples(self, split: str) -> Sequence[dict[str, Any]]:
        return Files(self.files[split])


class Files(Sequence):
    """The encoded images of one split, read when asked for."""

    def __init__(self, files: list[tuple[str, int]]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self._files[index]
        return {"image": pathlib.Path(path).read_bytes(), "label": label}

    def describe(self, index: int) -> str:
        return self._files[index][0]

    def label(self, index: int) -> int:
        return self._files[index][1]
