"""scikit-learn's handwritten digits as a TFDS dataset: real images, no download.

1,797 gray images of 8 x 8 pixels: the test part of the UCI "Optical Recognition of Handwritten Digits" set (Alpaydin
and Kaynak 1998), by 13 writers. The data do not identify the writer, so every split contains all writers, and
accuracies are higher than on unseen writers.
"""

from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

SPLIT_SIZES = {"train": 1197, "validation": 300, "test": 300}
SPLIT_SEED = 0
LARGEST_VALUE = 16  # largest pixel value in scikit-learn's copy


def load_splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns images, uint8 (n, 8, 8, 1) in 0..255, and labels, int64 (n,), of each split.

    The splits are stratified by class and always the same.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / LARGEST_VALUE)).astype(np.uint8)[..., None]
    labels = digits.target

    def divide(indices: np.ndarray, held_out: int) -> tuple[np.ndarray, np.ndarray]:
        return train_test_split(indices, test_size=held_out, stratify=labels[indices], random_state=SPLIT_SEED)

    rest, test = divide(np.arange(len(labels)), SPLIT_SIZES["test"])
    train, validation = divide(rest, SPLIT_SIZES["validation"])
    return {
        name: (images[indices], labels[indices])
        for name, indices in {"train": train, "validation": validation, "test": test}.items()
    }


class Digits(tfds.core.GeneratorBasedBuilder):
    """Handwritten digits, 8 x 8 pixels, ten classes."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "1,197 / 300 / 300 images, stratified."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager  # nothing to download
        return {name: self._generate_examples(*split) for name, split in load_splits().items()}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": image, "label": int(label)}
