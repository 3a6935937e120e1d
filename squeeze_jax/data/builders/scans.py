"""Patches around the candidates of CT scans as TFDS datasets: your own scans, and generated ones."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from squeeze_jax.console import track
from squeeze_jax.data import synthetic_nodules
from squeeze_jax.data.candidates import Candidate
from squeeze_jax.data.scans import Assume, Cut, Scan, cut_all
from squeeze_jax.data.splits import CASE, IGNORED, PATIENT, SCAN
from squeeze_jax.data.volumes import Stored, locate, read_scan
from squeeze_jax.errors import DataError


def features(
    cut: Cut, candidates: Sequence[Candidate], class_names: tuple[str, ...] = ()
) -> tfds.features.FeaturesDict:
    """Returns the features of patches: the image, the label, and whose patient, scan and case it is.

    Args:
      cut: the patches.
      candidates: all candidates.
      class_names: the classes in the order of the labels; by default sorted.
    """
    if cut.kind == "cube":
        image = tfds.features.Tensor(shape=cut.shape, dtype=np.uint8, encoding=tfds.features.Encoding.ZLIB)
    else:
        image = tfds.features.Image(shape=cut.shape)

    def names(attribute: str) -> tfds.features.ClassLabel:
        return tfds.features.ClassLabel(names=sorted({getattr(candidate, attribute) for candidate in candidates}))

    label = tfds.features.ClassLabel(names=list(class_names)) if class_names else names("class_name")
    groups = {PATIENT: names("patient"), SCAN: names("scan"), CASE: names("case")}
    ignored = {IGNORED: tfds.features.Scalar(np.bool_)} if any(one.ignored for one in candidates) else {}
    return tfds.features.FeaturesDict({"image": image, "label": label, **groups, **ignored})


def examples(
    scan: Scan, candidates: list[Candidate], cut: Cut, *, with_ignored: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the examples of one scan, with keys as TFDS wants them."""
    for i, (candidate, patch) in enumerate(zip(candidates, cut_all(scan, candidates, cut), strict=True)):
        groups = {PATIENT: candidate.patient, SCAN: candidate.scan, CASE: candidate.case}
        ignored = {IGNORED: candidate.ignored} if with_ignored else {}
        yield f"{candidate.scan}/{i}", {"image": patch, "label": candidate.class_name, **groups, **ignored}


@dataclasses.dataclass(kw_only=True)
class ScansConfig(tfds.core.BuilderConfig):
    """A list of candidates, the scans that it refers to, how to read them and how to cut them."""

    candidates: Sequence[Candidate] = ()
    scans: Mapping[str, Stored] = dataclasses.field(default_factory=dict)
    cut: Cut = dataclasses.field(default_factory=Cut)
    assume: Assume = dataclasses.field(default_factory=Assume)
    digest: str = ""  # of the list, the scans, what is assumed of them and the names of classes
    class_names: tuple[str, ...] = ()  # in the order of the labels; by default sorted


class Scans(tfds.core.GeneratorBasedBuilder):
    """Patches around the candidates of CT scans. Each volume is opened once."""

    name = "scans"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{__doc__} {config.cut} {config.digest}",
            features=features(config.cut, config.candidates, config.class_names),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager  # nothing to download
        by_scan = locate(list(self.builder_config.candidates), self.builder_config.scans)
        splits: dict[str, list[str]] = {}
        for uid in sorted(by_scan):
            splits.setdefault(self.builder_config.scans[uid].split, []).append(uid)
        return {
            split: self._generate_examples(split, {uid: by_scan[uid] for uid in splits[split]})
            for split in sorted(splits)
        }

    def _generate_examples(self, split: str, by_scan: dict[str, list[Candidate]]):
        for uid, candidates in track(by_scan.items(), f"cutting scans of {split}"):
            try:
                scan = read_scan(self.builder_config.scans[uid].files, self.builder_config.assume)
            except DataError as error:
                raise DataError(f"{candidates[0].row}: {error}") from error
            for remark in scan.remarks:
                print(f"{uid}: {remark}", file=sys.stderr)
            yield from examples(scan, candidates, self.builder_config.cut, with_ignored=IGNORED in self.info.features)


class SyntheticNodules(tfds.core.GeneratorBasedBuilder):
    """Generated CT nodules, benign or malignant, in cubes of 32 mm; see squeeze_jax/data/synthetic_nodules.py."""

    name = "synthetic_nodules"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "400 nodules of 200 patients."}
    PATIENTS: ClassVar = {"train": range(140), "validation": range(140, 170), "test": range(170, 200)}
    CUT = Cut()

    def _info(self) -> tfds.core.DatasetInfo:
        patients = [patient for part in self.PATIENTS.values() for patient in part]
        everyone = [nodule.candidate for patient in patients for nodule in synthetic_nodules.draw_nodules(patient)]
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{__doc__} {self.CUT}",
            features=features(self.CUT, everyone),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager  # nothing to download
        return {split: self._generate_examples(split, patients) for split, patients in self.PATIENTS.items()}

    def _generate_examples(self, split: str, patients: range):
        for patient in track(patients, f"generating scans of {split}"):
            scan, nodules, _ = synthetic_nodules.generate(patient)
            yield from examples(scan, [nodule.candidate for nodule in nodules], self.CUT)
