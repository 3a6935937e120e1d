"""134 lung nodules of LIDC-IDRI as volumes with ratings, from franciscapessanha/Pulmonary-nodules-analysis.

`pulmonary_nodules/malignancy` has two classes, ratings below and above 3; nodules rated 3 are left out.
`pulmonary_nodules/malignancy_rating` has all five ratings as ordered classes. The other characteristics likewise.
"""

import csv
import dataclasses
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
LONGEST_NAME = 1000  # bytes
_NAME = re.compile(r"(\d{1,3}|100\d|101[01])_\w+")  # of a nodule: it begins with the patient


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
        # The names are known from the file alone, so patients and cases are numbered.
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": image,
                    "label": tfds.features.ClassLabel(names=classes),
                    PATIENT: tfds.features.ClassLabel(num_classes=1012),
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
        ratings = read_ratings(path.with_suffix(".csv"), config.characteristic)
        images, names = read_nodules(path)
        missing = sorted(set(names) - set(ratings))
        if missing:
            raise DataError(
                f"{path.with_suffix('.csv')} has no row of {len(missing)} nodules, such as {missing[0]}; expected one "
                f"of each nodule in {path.name}."
            )
        for i, (image, name) in enumerate(zip(images, names, strict=True)):
            rating = ratings[name]
            if config.ordered or rating != 3:
                label = rating - 1 if config.ordered else int(rating > 3)
                yield i, {"image": image[..., None], "label": label, PATIENT: int(_NAME.fullmatch(name)[1]), CASE: i}


def read_ratings(path: pathlib.Path, characteristic: str) -> dict[str, int]:
    """Reads the rating of each nodule, 1 to 5, by its name.

    Raises:
      DataError: the file cannot be read, lacks a column, or a rating is something else.
    """
    ratings = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            lacking = {"Filename", characteristic} - set(rows.fieldnames or ())
            if lacking:
                raise DataError(f"{path} has no column {', '.join(sorted(lacking))}; it has {rows.fieldnames}.")
            for row in rows:
                if row[characteristic] not in RATINGS:
                    raise DataError(
                        f"{path}, line {rows.line_num}: {characteristic} is {row[characteristic]!r}; expected 1 to 5."
                    )
                ratings[row["Filename"]] = int(row[characteristic])
    except FileNotFoundError:
        raise DataError(f"{path} is missing; it has the ratings, and lies beside the .npz file.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}); download it again.") from error
    return ratings


def read_nodules(path: pathlib.Path) -> tuple[np.ndarray, list[str]]:
    """Reads the nodules, uint8 (134, 51, 51, 51), and their names. The headers are checked before anything is inflated.

    Raises:
      DataError: the file is damaged, or holds something else.
    """
    shape = (NUM_NODULES, *(SIDE,) * 3)
    try:
        with zipfile.ZipFile(path) as archive:
            headers = {key: _header(archive, f"{key}.npy") for key in ("image", "name")}
            if headers["image"] == (shape, "uint8") and headers["name"] == ((NUM_NODULES,), headers["name"][1]):
                images, names = (np.lib.format.read_array(archive.open(f"{key}.npy")) for key in ("image", "name"))
                if all(_NAME.fullmatch(str(name)) for name in names):
                    return images, [str(name) for name in names]
    except Exception as error:  # of zipfile and NumPy, for bytes that may be anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} is not an intact file of nodules ({reason}); download it again.") from error
    raise DataError(
        f"{path} holds {headers['image'][1]} images of shape {headers['image'][0]} and {headers['name'][1]} names of "
        f"shape {headers['name'][0]}; expected uint8 {shape} and names such as 0_nod1_ann0."
    )


def _header(archive: zipfile.ZipFile, member: str) -> tuple[tuple[int, ...], str]:
    """Returns the shape and dtype of an array in a .npz file; the file is not inflated further than that."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
        shape, _, dtype = read(file)
    if dtype.hasobject or dtype.itemsize > LONGEST_NAME:
        raise ValueError(f"{member} is of {dtype}")
    return shape, str(dtype)
