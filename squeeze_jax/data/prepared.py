"""Datasets that TFDS prepared, stored as array_record; opened without TensorFlow and without code that comes with them.

TFDS imports whatever class the features.json of a dataset names. A dataset from elsewhere may name a module of its own,
so the files are read here first, and nothing but TFDS's own features is accepted.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from squeeze_jax.data.identity import HASHED_BYTES, Identity, StoredSplit, fingerprint
from squeeze_jax.data.scans import Cut
from squeeze_jax.data.splits import GROUPS, IGNORED
from squeeze_jax.errors import DataError

FEATURES, INFO = "features.json", "dataset_info.json"
# TFDS reads both spellings; "type" is that of its versions before 4.3.
CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
TEMPLATE_KEYS = ("filepathTemplate", "filepath_template")
_OWN_FEATURE = re.compile(r"tensorflow_datasets\.core\.features(\.\w+)+")
AGAIN = "delete its folder and prepare it again"
MADE_BY_USERS = ("scans",)  # builders whose description says what the data were made of
CUT_FROM_SCANS = ("scans", "synthetic_nodules")  # builders whose description says how patches were cut


class Prepared:
    """A prepared dataset as a `Source`.

    Args:
      name: the name of the dataset, for messages.
      builder: its TFDS builder.
      is_own: whether it is a user's folder, and not a published dataset, which its name and version identify.

    Raises:
      DataError: it does not have one image and its class label or labels per example, or its description is damaged.
    """

    notes = ()

    def __init__(self, name: str, builder: Any, *, is_own: bool = False):
        self._name, self._builder, self._is_own = name, builder, is_own
        try:
            self._read(name, builder.info)
        except DataError:
            raise
        except Exception as error:  # of TFDS, for a description that may hold anything
            raise DataError(f"the description of {name} is damaged ({_reason(error)}); {AGAIN}.") from error

    def _read(self, name: str, info: Any) -> None:
        import tensorflow_datasets as tfds

        keys = info.supervised_keys
        label = info.features[keys[1]] if keys and len(keys) == 2 else None
        several = isinstance(label, tfds.features.Sequence)  # labels per example
        label = label.feature if several else label
        if not hasattr(label, "num_classes"):
            raise DataError(
                f"{name} does not have one image and its class label or labels per example; its supervised keys are "
                f"{keys}."
            )
        self._image, self._label = keys
        if label.num_classes is None:
            raise DataError(f"{name} does not declare its number of classes.")
        self._num_labels = label.num_classes if several else 0
        self.version = str(info.version)
        cut = Cut.named_in(info.description) if self._builder.name in CUT_FROM_SCANS else None
        self.preparation = {"cut": dataclasses.asdict(cut)} if cut else {}
        # TFDS uses 0, 1, 2, ... if the classes have no names.
        self.class_names = tuple(label.names)
        self.image_shape = tuple(info.features[self._image].shape)
        self.split_sizes = {split: info.splits[split].num_examples for split in info.splits}
        self.group_names = {
            group: tuple(info.features[group].names)
            for group in GROUPS
            if group in info.features and isinstance(info.features[group], tfds.features.ClassLabel)
        }
        # This project decodes encoded images itself, together with cropping.
        feature = info.features[self._image]
        stored_as = np.dtype(feature.np_dtype)
        if stored_as.kind in "iu" and stored_as != np.uint8:
            raise DataError(f"{name} stores pixels as {stored_as}; expected uint8, or floating-point values in 0..255.")
        encoded = isinstance(feature, tfds.features.Image) and np.dtype(feature.np_dtype) == np.uint8
        self._skip_image = {self._image: tfds.decode.SkipDecoding()}
        self._decoders = self._skip_image if encoded else None

    def examples(self, split: str) -> Sequence[dict[str, Any]]:
        """Returns the examples of a split, see `Source`.

        Raises:
          DataError: its files cannot be opened.
        """
        try:
            stored = undecoded = self._builder.as_data_source(split=split, decoders=self._decoders)
            if self._decoders is None:
                undecoded = self._builder.as_data_source(split=split, decoders=self._skip_image)
        except Exception as error:  # of TFDS, for files that may be missing or hold anything
            raise DataError(f"{self._name}/{split} cannot be opened ({_reason(error)}); {AGAIN}.") from error
        targets = (*self.group_names, *(name for name in (IGNORED,) if name in self._builder.info.features))
        return _Examples(stored, undecoded, self._image, self._label, targets, self._num_labels)

    def identity(self, splits: Iterable[str]) -> Identity:
        """Returns what tells these splits from changed ones, see `Source`."""
        if self._builder.name in MADE_BY_USERS:
            made_of = hashlib.sha256(self._builder.info.description.encode()).hexdigest()
            stored = {split: StoredSplit(self.split_sizes[split], made_of) for split in splits}
        else:
            stored = {split: self._stored(split) for split in splits}
        return Identity(self.class_names, stored)

    def _stored(self, split: str) -> StoredSplit:
        if not self._is_own:
            return StoredSplit(self.split_sizes[split], self._builder.info.full_name)  # a version never changes
        files = [*self._builder.info.splits[split].filepaths, self._builder.data_path / FEATURES]
        size = sum(pathlib.Path(path).stat().st_size for path in files)
        return StoredSplit(self.split_sizes[split], fingerprint(files) if size <= HASHED_BYTES else "")


class _Examples(Sequence):
    """The examples of a split.

    Args:
      stored: the examples, with images as `Split` takes them.
      undecoded: the same examples, with images as they are stored.
      image_key: the name of the image in both.
      label_key: the name of the label or labels.
      targets: the names of the other targets.
      num_labels: the number of labels if examples may have several; else 0.
    """

    def __init__(
        self,
        stored: Sequence,
        undecoded: Sequence,
        image_key: str,
        label_key: str,
        targets: tuple[str, ...],
        num_labels: int,
    ):
        self._stored, self._undecoded, self._image_key = stored, undecoded, image_key
        self._keys, self._num_labels = {"label": label_key, **{key: key for key in targets}}, num_labels

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._stored[index]
        return {"image": example[self._image_key], **self._targets_in(example)}

    def targets(self, index: int) -> dict[str, Any]:
        """Returns the targets of an example without decoding its image."""
        return self._targets_in(self._undecoded[index])

    def _targets_in(self, example: dict[str, Any]) -> dict[str, Any]:
        targets = {name: example[key] for name, key in self._keys.items()}
        if self._num_labels:  # stored as the indices of those that the example has
            targets["label"] = np.isin(np.arange(self._num_labels), targets["label"]).astype(np.uint8)
        return targets


def builder_of(folder: pathlib.Path) -> Any:
    """Returns the TFDS builder of the folder of a prepared dataset.

    Raises:
      DataError: the files of the folder are damaged, or name code that is not TFDS's own.
    """
    import tensorflow_datasets as tfds

    check(folder)
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # of TFDS, for files that may hold anything
        raise DataError(f"{folder} is not an intact TFDS dataset ({_reason(error)}); {AGAIN}.") from error


def builder_named(name: str, data_dir: pathlib.Path, make: Callable[[], Any]) -> Any:
    """Returns a TFDS builder that looks for its dataset in `data_dir`.

    Args:
      name: the name of the dataset.
      data_dir: the folder for datasets.
      make: makes the builder.

    Raises:
      DataError: what is in the folder is damaged, or names code that is not TFDS's own.
    """
    from google.protobuf.json_format import ParseError

    check_named(name, data_dir)
    try:
        return make()
    except (ParseError, AssertionError) as error:  # of TFDS, for a dataset_info.json that may hold anything
        raise DataError(f"{name} in {data_dir} is damaged ({_reason(error)}); {AGAIN}.") from error


def check(folder: pathlib.Path) -> None:
    """Checks that the files of a prepared dataset name no code but TFDS's own, and no file elsewhere.

    Raises:
      DataError: they do, or they cannot be read.
    """
    for key, value in _strings(folder / FEATURES):
        if key in CLASS_KEYS and not _OWN_FEATURE.fullmatch(value):
            raise DataError(
                f"{folder / FEATURES} names the class {value[:100]!r}, whose code would run; expected only classes of "
                f"tensorflow_datasets.core.features. Store the dataset with these, and open none that you do not trust."
            )
    for key, value in _strings(folder / INFO):
        if key in TEMPLATE_KEYS and ("/" in value or "\\" in value):
            raise DataError(f"{folder / INFO} names files in another folder ({value[:100]!r}); expected its own files.")


def check_named(name: str, data_dir: pathlib.Path) -> None:
    """Checks a dataset that TFDS opens by its name, like `check`, in whatever versions and configs it is there.

    Raises:
      DataError: see `check`; or the name is of a dataset whose code is somewhere else, such as "huggingface:x".
    """
    own, _, version = name.split("/")[0].partition(":")
    if version and not re.fullmatch(r"[\d.*]+", version):
        raise DataError(
            f"{name!r} names a dataset outside of TFDS, whose code would run; expected a name of TFDS, the folder of a "
            f"prepared dataset, or a folder of images."
        )
    if not data_dir.is_dir():
        return
    for folder in data_dir.iterdir():
        if folder.name.replace("_", "").lower() == own.replace("_", "").lower():  # TFDS takes MyData for my_data
            for pattern in (FEATURES, f"*/{FEATURES}", f"*/*/{FEATURES}"):
                for path in folder.glob(pattern):
                    check(path.parent)


def _strings(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yields the key and the value of each text in a JSON file, and in JSON that is stored as text in it."""
    try:
        waiting = [("", json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=list))]
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {AGAIN}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({_reason(error)}); {AGAIN}.") from error
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, list):
            # Objects are lists of pairs, so that no key hides another one.
            waiting += [tuple(item) if _is_pair(item) else (key, item) for item in value]
        elif isinstance(value, str):
            yield key, value
            if key == "json":
                try:
                    waiting.append((key, json.loads(value, object_pairs_hook=list)))
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path} is damaged ({_reason(error)}); {AGAIN}.") from error


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
