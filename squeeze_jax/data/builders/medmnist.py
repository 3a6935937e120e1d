"""MedMNIST v2 as TFDS datasets: every 2-D and 3-D dataset at every published size.

`medmnist/pneumoniamnist` is the dataset at 28 pixels, `medmnist/pneumoniamnist_64` at 64 pixels. Files, MD5s, split
sizes and class names are those of MedMNIST/MedMNIST, medmnist/info.py, version 3.0.2 (Yang et al. 2023, doi
10.1038/s41597-022-01721-8). Pixels keep their values in 0..255; volumes are (depth, height, width, 1).
"""

import dataclasses
import hashlib
import pathlib
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from squeeze_jax.errors import DataError

ADDRESS = "https://zenodo.org/records/10519652/files/{name}.npz?download=1"
SPLITS = {"train": "train", "validation": "val", "test": "test"}
SIZES_2D = (28, 64, 128, 224)
SIZES_3D = (28, 64)
MULTI_LABEL = ("chestmnist",)  # MedMNIST's task "multi-label, binary-class"
ORDINAL = ("retinamnist",)  # "ordinal-regression"

ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One MedMNIST dataset.

    Attributes:
      class_names: the class names, in the order of the labels.
      num_examples: the number of training, validation and test examples.
      md5: the MD5 of the file of each size, smallest size first.
      channels: 1 or 3.
      spatial_axes: 2 or 3.
    """

    class_names: tuple[str, ...]
    num_examples: tuple[int, int, int]
    md5: tuple[str, ...]
    channels: int = 1
    spatial_axes: int = 2

    @property
    def sizes(self) -> tuple[int, ...]:
        """The published sizes in pixels, smallest first."""
        return (SIZES_2D if self.spatial_axes == 2 else SIZES_3D)[: len(self.md5)]


ENTRIES = {
    "pathmnist": Entry(
        (
            "adipose",
            "background",
            "debris",
            "lymphocytes",
            "mucus",
            "smooth muscle",
            "normal colon mucosa",
            "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
        (89996, 10004, 7180),
        (
            "a8b06965200029087d5bd730944a56c1",
            "55aa9c1e0525abe5a6b9d8343a507616",
            "ac42d08fb904d92c244187169d1fd1d9",
            "2c51a510bcdc9cf8ddb2af93af1eadec",
        ),
        channels=3,
    ),
    "chestmnist": Entry(
        (
            "atelectasis",
            "cardiomegaly",
            "effusion",
            "infiltration",
            "mass",
            "nodule",
            "pneumonia",
            "pneumothorax",
            "consolidation",
            "edema",
            "emphysema",
            "fibrosis",
            "pleural",
            "hernia",
        ),
        (78468, 11219, 22433),
        (
            "02c8a6516a18b556561a56cbdd36c4a8",
            "9de6cd0b934ebb5b7426cfba5efbae16",
            "db107e5590b27930b62dbaf558aebee3",
            "45bd33e6f06c3e8cdb481c74a89152aa",
        ),
    ),
    "dermamnist": Entry(
        (
            "actinic keratoses and intraepithelial carcinoma",
            "basal cell carcinoma",
            "benign keratosis-like lesions",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevi",
            "vascular lesions",
        ),
        (7007, 1003, 2005),
        (
            "0744692d530f8e62ec473284d019b0c7",
            "b70a2f5635c6199aeaa28c31d7202e1f",
            "2defd784463fa5243564e855ed717de1",
            "8974907d8e169bef5f5b96bc506ae45d",
        ),
        channels=3,
    ),
    "octmnist": Entry(
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
        (97477, 10832, 1000),
        (
            "c68d92d5b585d8d81f7112f81e2d0842",
            "e229e9440236b774d9f0dfef9d07bdaf",
            "0a97e76651ace45c5d943ee3f65b63ae",
            "abc493b6d529d5de7569faaef2773ba3",
        ),
    ),
    "pneumoniamnist": Entry(
        ("normal", "pneumonia"),
        (4708, 524, 624),
        (
            "28209eda62fecd6e6a2d98b1501bb15f",
            "8f4eceb4ccffa70c672198ea285246c6",
            "05b46931834c231683c68f40c47b2971",
            "d6a3c71de1b945ea11211b03746c1fe1",
        ),
    ),
    # An earlier release that is still in circulation, with 826 fewer training images. It has no official download.
    "pneumoniamnist_early": Entry(("normal", "pneumonia"), (3882, 524, 624), ("f5b994ec7c2fe8bc81ae15cbab7c3df8",)),
    "retinamnist": Entry(
        ("0", "1", "2", "3", "4"),
        (1080, 120, 400),
        (
            "bd4c0672f1bba3e3a89f0e4e876791e4",
            "afda852cc34dcda56f86ad2b2457dbcc",
            "e48e916a24454daf90583d4e6efb1a18",
            "eae7e3b6f3fcbda4ae613ebdcbe35348",
        ),
        channels=3,
    ),
    "breastmnist": Entry(
        ("malignant", "normal, benign"),
        (546, 78, 156),
        (
            "750601b1f35ba3300ea97c75c52ff8f6",
            "742edef2a1fd1524b2efff4bd7ba9364",
            "363e4b3f8d712e9b5de15470a2aaadf1",
            "b56378a6eefa9fed602bb16d192d4c8b",
        ),
    ),
    "bloodmnist": Entry(
        (
            "basophil",
            "eosinophil",
            "erythroblast",
            "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
            "lymphocyte",
            "monocyte",
            "neutrophil",
            "platelet",
        ),
        (11959, 1712, 3421),
        (
            "7053d0359d879ad8a5505303e11de1dc",
            "2b94928a2ae4916078ca51e05b6b800b",
            "adace1e0ed228fccda1f39692059dd4c",
            "b718ff6835fcbdb22ba9eacccd7b2601",
        ),
        channels=3,
    ),
    "tissuemnist": Entry(
        (
            "Collecting Duct, Connecting Tubule",
            "Distal Convoluted Tubule",
            "Glomerular endothelial cells",
            "Interstitial endothelial cells",
            "Leukocytes",
            "Podocytes",
            "Proximal Tubule Segments",
            "Thick Ascending Limb",
        ),
        (165466, 23640, 47280),
        (
            "ebe78ee8b05294063de985d821c1c34b",
            "123ece2eba09d0aa5d698fda57103344",
            "61b955355d7425a89687b06cca3ce0c2",
            "b077128c4a949f0a4eb01517f9037b9c",
        ),
    ),
    "organamnist": Entry(
        ORGANS,
        (34561, 6491, 17778),
        (
            "68e3f8846a6bd62f0c9bf841c0d9eacc",
            "2dcccc29b88e6da5a01161ef20cda288",
            "eeae80d0a227a8d099027e1b3cfd3b60",
            "50747347e05c87dd3aaf92c49f9f3170",
        ),
    ),
    "organcmnist": Entry(
        ORGANS,
        (12975, 2392, 8216),
        (
            "b9ceb9546e10131b32923c5bbeaea2b1",
            "3ce34a8724ea6f548e6db4744d03b6a9",
            "773c1f009daa3fe5d9a2a201b2a7ed94",
            "050f5e875dc056f6768abf94ec9995d1",
        ),
    ),
    "organsmnist": Entry(
        ORGANS,
        (13932, 2452, 8827),
        (
            "9ab87b696fb54e2a387ebe992d6ed5f1",
            "53a6d115339d874c25e309a994ff46d3",
            "ded0c5fa01a95dc4978b956f613e9b8e",
            "b354719e553fbbb2513d5533f52a4cb1",
        ),
    ),
    "organmnist3d": Entry(
        (
            "liver",
            "kidney-right",
            "kidney-left",
            "femur-right",
            "femur-left",
            "bladder",
            "heart",
            "lung-right",
            "lung-left",
            "spleen",
            "pancreas",
        ),
        (971, 161, 610),
        ("a0c5a1ff56af4f155c46d46fbb45a2fe", "58a2205adf14a9d0a189cb06dc78bf10"),
        spatial_axes=3,
    ),
    "nodulemnist3d": Entry(
        ("benign", "malignant"),
        (1158, 165, 310),
        ("8755a7e9e05a4d9ce80a24c3e7a256f3", "c47c5b7d457bf6332200d2ea6d64ecd8"),
        spatial_axes=3,
    ),
    "adrenalmnist3d": Entry(
        ("normal", "hyperplasia"),
        (1188, 98, 298),
        ("bbd3c5a5576322bc4cdfea780653b1ce", "17721accfe9fb005146a47d33bc54b2f"),
        spatial_axes=3,
    ),
    "fracturemnist3d": Entry(
        ("buckle rib fracture", "nondisplaced rib fracture", "displaced rib fracture"),
        (1027, 103, 240),
        ("6aa7b0143a6b42da40027a9dda61302f", "f01d7e6316aedf4210da0da5b7437b42"),
        spatial_axes=3,
    ),
    "vesselmnist3d": Entry(
        ("vessel", "aneurysm"),
        (1335, 191, 382),
        ("b41fd4f7e7e2feedddb201585ecafa1b", "6bb274a8846e1097066dcd64e2c4520f"),
        spatial_axes=3,
    ),
    "synapsemnist3d": Entry(
        ("inhibitory synapse", "excitatory synapse"),
        (1230, 177, 352),
        ("1235b78a3cd6280881dd7850a78eadb6", "43bd14ebf3af9d3dd072446fedc14d5e"),
        spatial_axes=3,
    ),
}


@dataclasses.dataclass(kw_only=True)
class MedMNISTConfig(tfds.core.BuilderConfig):
    """One dataset (`entry_name`) at one size in pixels."""

    entry_name: str = ""
    size: int = 28

    @property
    def entry(self) -> Entry:
        """The dataset."""
        return ENTRIES[self.entry_name]

    @property
    def md5(self) -> str:
        """The MD5 of the file at this size."""
        return self.entry.md5[self.entry.sizes.index(self.size)]


def _configs() -> list[MedMNISTConfig]:
    return [
        MedMNISTConfig(
            name=name if size == 28 else f"{name}_{size}",
            entry_name=name,
            size=size,
            # Copies of version 3.0.2 hold the labels without their names.
            version=tfds.core.Version("3.0.3") if name in MULTI_LABEL else None,
        )
        for name, entry in ENTRIES.items()
        for size in entry.sizes
    ]


class MedMNIST(tfds.core.GeneratorBasedBuilder):
    """MedMNIST v2. Set `local_file` to use an already downloaded .npz file; its MD5 is verified too."""

    name = "medmnist"
    VERSION = tfds.core.Version("3.0.2")
    RELEASE_NOTES: ClassVar = {"3.0.2": "The files of MedMNIST 3.0.2."}
    BUILDER_CONFIGS: ClassVar = _configs()

    local_file: pathlib.Path | None = None

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        entry = config.entry
        shape = (config.size,) * entry.spatial_axes + (entry.channels,)
        if entry.spatial_axes == 2:
            image = tfds.features.Image(shape=shape)
        else:
            image = tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding=tfds.features.Encoding.ZLIB)
        if config.entry_name in MULTI_LABEL:
            label = tfds.features.Sequence(tfds.features.ClassLabel(names=entry.class_names))  # those that it has
        else:
            label = tfds.features.ClassLabel(names=entry.class_names)
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            supervised_keys=("image", "label"),
            homepage="https://medmnist.com/",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        config = self.builder_config
        path = self.local_file
        if path is None:
            if config.entry_name == "pneumoniamnist_early":
                raise DataError(f"{config.name} has no official download; give its file: --file {config.name}.npz")
            path = pathlib.Path(dl_manager.download(ADDRESS.format(name=config.name)))
        check_md5(path, config.md5)
        with np.load(path) as arrays:
            sizes = tuple(len(arrays[f"{stored}_labels"]) for stored in SPLITS.values())
        if sizes != config.entry.num_examples:
            raise DataError(
                f"{path} contains {sizes} examples (train, validation, test); expected {config.entry.num_examples}."
            )
        return {split: self._generate_examples(path, stored) for split, stored in SPLITS.items()}

    def _generate_examples(self, path: pathlib.Path, stored: str):
        entry = self.builder_config.entry
        with np.load(path) as arrays:
            images, labels = arrays[f"{stored}_images"], arrays[f"{stored}_labels"]
        images = images.reshape(len(images), *(self.builder_config.size,) * entry.spatial_axes, entry.channels)
        single = self.builder_config.entry_name not in MULTI_LABEL
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": image, "label": int(label[0]) if single else np.flatnonzero(label).tolist()}


def check_md5(path: pathlib.Path, expected: str) -> None:
    """Raises DataError unless the file has the expected MD5 (hexadecimal)."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); expected a .npz file of MedMNIST.") from error
    if found != expected:
        known = {
            md5: f"{name} at {size} pixels"
            for name, entry in ENTRIES.items()
            for size, md5 in zip(entry.sizes, entry.md5, strict=True)
        }
        is_another = f" It is {known[found]}." if found in known else ""
        raise DataError(
            f"{path} has the MD5 {found}; expected {expected}.{is_another} Download it again, or use the right file."
        )
