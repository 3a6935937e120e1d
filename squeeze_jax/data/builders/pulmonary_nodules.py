"""134 lung nodules of LIDC-IDRI as volumes with ratings, from franciscapessanha/Pulmonary-nodules-analysis.

`pulmonary_nodules/malignancy` has two classes, ratings below and above 3; nodules rated 3 are left out.
`pulmonary_nodules/malignancy_rating` has all five ratings as ordered classes. The other characteristics likewise.
"""

import csv
import dataclasses
import pathlib
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from squeeze_jax.data.splits import CASE, PATIENT
from squeeze_jax.errors import DataError

CHARACTERISTICS = ("lobulation", "sphericity", "margin", "texture", "malignancy", "spiculation", "subtlety")
RATINGS = ("1", "2", "3", "4", "5")
SIDE = 51  # mm and voxels
NUM_NODULES = 134


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
        with path.with_suffix(".csv").open(newline="") as file:
            ratings = {row["Filename"]: int(row[config.characteristic]) for row in csv.DictReader(file)}
        with np.load(path) as arrays:
            images, names = arrays["image"], [str(name) for name in arrays["name"]]
        missing = sorted(set(names) - set(ratings))
        if missing or images.shape != (NUM_NODULES, *(SIDE,) * 3):
            raise DataError(
                f"{path} has images of shape {images.shape} and {len(missing)} nodules without a rating; expected "
                f"{NUM_NODULES} of {SIDE}^3, each with a row in {path.with_suffix('.csv').name}."
            )
        for i, (image, name) in enumerate(zip(images, names, strict=True)):
            rating = ratings[name]
            if config.ordered or rating != 3:
                label = rating - 1 if config.ordered else int(rating > 3)
                yield i, {"image": image[..., None], "label": label, PATIENT: int(name.split("_")[0]), CASE: i}
