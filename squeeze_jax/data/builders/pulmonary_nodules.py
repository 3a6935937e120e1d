"""134 lung nodules of LIDC-IDRI as volumes with ratings, from franciscapessanha/Pulmonary-nodules-analysis.

`pulmonary_nodules/malignancy` has two classes, ratings below and above 3; nodules rated 3 are left out.
`pulmonary_nodules/malignancy_rating` has all five ratings as ordered classes. The other characteristics likewise.
"""

import csv
import dataclasses
import math
import pathlib
import re
import zipfile
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from squeeze_jax.data.splits import CASE, PATIENT
from squeeze_jax.errors import DataError

CHARACTERISTICS = ("lobulation", "sphericity", "margin", "texture", "malignancy", "spiculation", "subtlety")
RATINGS = ("1", "2", "3", "4", "5")
SIDE = 51  # mm and voxels
NUM_NODULES = 134
NUM_PATIENTS = 1012  # of LIDC-IDRI


@dataclasses.dataclass(kw_only=True)
class RatingConfig(tfds.core.BuilderConfig):
    """One characteristic, as two classes or as five ordered ones."""

    characteristic: str = ""
    ordered: bool = False


class PulmonaryNodules(tfds.core.GeneratorBasedBuilder):
    """Lung nodules, 51 x 51 x 51. `local_file` is the .npz file; the .csv file with the ratings lies beside it."""

    name = "pulmonary_nodules"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        RatingConfig(name=name + ("_rating" if ordered else ""), characteristic=name, ordered=ordered)
        for name in CHARACTERISTICS
        for ordered in (False, True)
    ]

    local_file: pathlib.Path | None = None

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        classes = RATINGS if config.ordered else ("below 3", "above 3")
        image = tfds.features.Tensor(shape=(SIDE,) * 3 + (1,), dtype=np.uint8, encoding=tfds.features.Encoding.ZLIB)
        # The names are known from the file alone, so the patients and cases go by numbers.
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": image,
                    "label": tfds.features.ClassLabel(names=classes),
                    PATIENT: tfds.features.ClassLabel(num_classes=NUM_PATIENTS),
                    CASE: tfds.features.ClassLabel(num_classes=NUM_NODULES),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://github.com/franciscapessanha/Pulmonary-nodules-analysis",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager  # nobody publishes a file to download
        path = self.local_file
        if path is None:
            raise DataError(f"{self.builder_config.name} has no download; give its file: --file nodules_51_3d.npz")
        return {"train": self._generate_examples(path)}

    def _generate_examples(self, path: pathlib.Path):
        config = self.builder_config
        images, names = read_volumes(path)
        ratings = read_ratings(path.with_suffix(".csv"), config.characteristic)
        for i, (image, name) in enumerate(zip(images, names, strict=True)):
            if name not in ratings:
                raise DataError(f"{path} has the nodule {name}, which has no row in {path.with_suffix('.csv').name}.")
            rating = ratings[name]
            if config.ordered or rating != 3:
                label = rating - 1 if config.ordered else int(rating > 3)
                yield i, {"image": image[..., None], "label": label, PATIENT: int(name.split("_")[0]), CASE: i}


def read_volumes(path: pathlib.Path) -> tuple[np.ndarray, list[str]]:
    """Returns the volumes, uint8 (134, 51, 51, 51), and their names, which begin with the patient's number.

    Raises:
      DataError: the file is not an .npz file of these; nothing is unpacked that is larger.
    """
    expected = (NUM_NODULES, *(SIDE,) * 3)
    try:
        with zipfile.ZipFile(path) as file:
            largest = max(member.file_size for member in file.infolist())
        if largest > math.prod(expected) + 1000:  # the header of the array is shorter
            raise DataError(f"{path} has an array of {largest:,} bytes; expected at most {math.prod(expected):,}.")
        with np.load(path) as arrays:
            images, names = arrays["image"], [str(name) for name in arrays["name"]]
    except DataError:
        raise
    except Exception as error:  # of foreign parsers, on bytes that may be anything
        raise DataError(f"{path} is not an intact .npz file with image and name: {error}") from error
    if images.shape != expected or images.dtype != np.uint8 or len(names) != NUM_NODULES:
        raise DataError(
            f"{path} has {len(names)} names and images of type {images.dtype} and shape {images.shape}; expected "
            f"{NUM_NODULES} and uint8 {expected}."
        )
    wrong = [name for name in names if not re.fullmatch(r"\d{1,4}_.*", name) or int(name.split("_")[0]) >= NUM_PATIENTS]
    if wrong:
        raise DataError(f"{path} has a nodule called {wrong[0]!r}; expected a patient's number, _ and a name.")
    return images, names


def read_ratings(path: pathlib.Path, characteristic: str) -> dict[str, int]:
    """Returns the rating of each nodule, 1 to 5; raises DataError, naming the row, if one is missing or wrong."""
    ratings = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = {"Filename", characteristic} - set(reader.fieldnames or ())
            if missing:
                raise DataError(f"{path} has no column {', '.join(sorted(missing))}.")
            for row in reader:
                if row[characteristic] not in RATINGS:
                    raise DataError(
                        f"{path}, line {reader.line_num}: {characteristic} is {row[characteristic]!r}; expected one of "
                        f"{', '.join(RATINGS)}."
                    )
                ratings[row["Filename"]] = int(row[characteristic])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}, the list of ratings, cannot be read: {error}") from error
    return ratings
