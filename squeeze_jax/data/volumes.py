"""The files of CT scans: finding them below a folder, and reading one whatever its format."""

import collections
import dataclasses
import os
import pathlib
import re
import warnings
from collections.abc import Mapping

from squeeze_jax.data import dicom, metaimage, nifti
from squeeze_jax.data.candidates import Candidate
from squeeze_jax.data.scans import Assume, Scan
from squeeze_jax.errors import DataError

READERS = {".mhd": metaimage.read, ".mha": metaimage.read, ".nii": nifti.read, ".nii.gz": nifti.read}
VOXELS = (".raw", ".zraw")  # of .mhd files
OTHER_FORMATS = (".hdr", ".img", ".nrrd", ".nhdr")
UNDIVIDED = "train"
AS_STORED = Assume()
_SUBSET = re.compile(r"subset\d+")


@dataclasses.dataclass(frozen=True)
class Stored:
    """The files of a scan on disk, several for a DICOM series, and the split that its folder is named after."""

    files: tuple[str, ...]
    split: str


@dataclasses.dataclass(frozen=True)
class Found:
    """What lies below a folder.

    Attributes:
      scans: by series instance UID.
      left_out: the names of files that are not scans, by the reason.
    """

    scans: Mapping[str, Stored]
    left_out: Mapping[str, list[str]]

    def remarks(self) -> list[str]:
        """Returns a line for each reason why files were left out."""
        return [
            f"{len(names)} {'file was' if len(names) == 1 else 'files were'} left out ({reason}): "
            f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
            for reason, names in sorted(self.left_out.items())
        ]


def find_scans(root: pathlib.Path) -> Found:
    """Finds the scans below a folder by their series instance UID.

    That is the name of a .mhd, .mha or NIfTI file, and is read from DICOM files, whatever their names are and in how
    many folders a series lies. A scan below a folder such as subset3/ is in the split of this name, any other in
    "train".

    Raises:
      DataError: the folder does not exist, pydicom is not installed, two scans have the same UID, or the files of a
        series are in two splits.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give the folder of the scans.")
    volumes: dict[str, Stored] = {}
    series: dict[str, list[tuple[str, str]]] = {}
    left_out: dict[str, list[str]] = collections.defaultdict(list)
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        parts = pathlib.Path(folder).relative_to(root).parts
        split = next(filter(_SUBSET.fullmatch, parts), UNDIVIDED)
        for name in sorted(names):
            path = os.path.join(folder, name)
            extension = _extension(name)
            if extension in READERS:
                uid = scan_name(name)
                if uid in volumes:
                    raise _twice(root, uid, volumes[uid].files[0], path)
                volumes[uid] = Stored((path,), split)
            elif extension not in VOXELS:
                try:
                    series.setdefault(_series_uid(path), []).append((path, split))
                except DataError as error:
                    reason = "convert it to .nii.gz or .mha" if extension in OTHER_FORMATS else str(error)
                    left_out[reason].append(os.path.relpath(path, root))
    for uid, files in series.items():
        if uid in volumes:
            raise _twice(root, uid, volumes[uid].files[0], files[0][0])
        splits = sorted({split for _, split in files})
        if len(splits) > 1:
            raise DataError(f"{root} has files of the series {uid} in {' and in '.join(splits)}; move them to one.")
        volumes[uid] = Stored(tuple(path for path, _ in files), splits[0])
    return Found(volumes, left_out)


def _extension(name: str) -> str:
    """Returns the extension in lower case, .nii.gz as one."""
    suffixes = pathlib.PurePath(name.lower()).suffixes
    return "".join(suffixes[-2:]) if suffixes[-2:] == [".nii", ".gz"] else "".join(suffixes[-1:])


def is_volume(path: str | os.PathLike) -> bool:
    """Returns whether a file has the extension of a scan in one file: .mhd, .mha or NIfTI."""
    return _extension(os.path.basename(path)) in READERS


def scan_name(path: str | os.PathLike) -> str:
    """Returns the series instance UID of a scan in one file, which is its name."""
    name = os.path.basename(path)
    return name[: -len(_extension(name))]


def _series_uid(path: str) -> str:
    if not os.path.isfile(path):
        raise DataError("not a regular file")
    try:
        with warnings.catch_warnings(action="ignore"):
            return dicom.series_uid(path)
    except OSError as error:
        raise DataError(f"unreadable, {error.strerror}") from error


def files_of(stored: Stored) -> list[pathlib.Path]:
    """Returns all files of a scan, those of the voxels included."""
    paths = [pathlib.Path(path) for path in stored.files]
    return metaimage.files(paths[0]) if READERS.get(_extension(paths[0].name)) is metaimage.read else paths


def _twice(root: pathlib.Path, uid: str, first: str, second: str) -> DataError:
    return DataError(f"{root} has the scan {uid} twice: {first} and {second}; remove one.")


def read_scan(files: tuple[str, ...], assume: Assume = AS_STORED) -> Scan:
    """Reads a volume: one .mhd, .mha or NIfTI file, or the files of a DICOM series.

    The position of every voxel and its value in Hounsfield units are those that the file says; values that are not
    finite become air.

    Raises:
      DataError: a package of the extra `ct` is not installed, or the volume cannot be read so; the message names the
        file, and where only a person can know the answer, the option that gives it.
    """
    reader = READERS.get(_extension(files[0]))
    try:
        with warnings.catch_warnings(action="ignore"):
            if reader is None:
                return dicom.read(files, assume)
            try:
                return reader(pathlib.Path(files[0]), assume)
            except DataError as error:
                raise DataError(f"{files[0]}: {error}") from error
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error


def locate(candidates: list[Candidate], scans: Mapping[str, Stored]) -> dict[str, list[Candidate]]:
    """Returns the candidates by scan.

    Raises:
      DataError: a scan is missing, or a patient is in two splits; the message names the row.
    """
    by_scan: dict[str, list[Candidate]] = {}
    split_of: dict[str, str] = {}
    for candidate in candidates:
        if candidate.scan not in scans:
            raise DataError(
                f"{candidate.row}: no volume of the scan {candidate.scan} was found; add it, or remove the row."
            )
        split = scans[candidate.scan].split
        if split_of.setdefault(candidate.patient, split) != split:
            raise DataError(
                f"{candidate.row}: the patient {candidate.patient} is in {split_of[candidate.patient]} and in {split}; "
                f"move the scans of a patient to one subset."
            )
        by_scan.setdefault(candidate.scan, []).append(candidate)
    return by_scan
