"""CT scans and lists of candidates, as LUNA16 publishes them: reading, and cutting patches on a grid in millimetres.

World coordinates are (x, y, z) in mm, to the patient's left, back and head, as in DICOM, ITK and LUNA16's tables.
Patches are cut on axes parallel to these, so neither the spacing nor the orientation of a stored volume matters.
SimpleITK (the extra `ct`) reads the files.
"""

import contextlib
import csv
import dataclasses
import locale
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from scipy import ndimage

from squeeze_jax.errors import DataError

AIR = -1000.0  # Hounsfield units
UNEVEN = 0.05  # largest deviation of a slice from even spacing, as a fraction of the spacing
COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "class")
VOLUMES = (".mhd", ".mha", ".nii", ".nii.gz")
CUTS = ("cube", "axial", "triplanar")
UNDIVIDED = "train"
_SUBSET = re.compile(r"subset\d+")
_DICOM = re.compile(r"\.dcm|\.ima|\.\d+|", re.IGNORECASE)  # extensions; a file called after its UID ends in a number


@dataclasses.dataclass(frozen=True)
class Scan:
    """A volume in Hounsfield units and where it lies.

    Attributes:
      voxels: (slices, rows, columns), the array order of (z, y, x) in the volume's own axes.
      origin: world coordinates of the centre of voxel (0, 0, 0), float (3,).
      spacing: mm between voxels along columns, rows and slices, float (3,).
      direction: unit vectors of these axes in world coordinates, as columns, float (3, 3).
    """

    voxels: np.ndarray
    origin: np.ndarray
    spacing: np.ndarray
    direction: np.ndarray

    def indices(self, points: np.ndarray) -> np.ndarray:
        """Returns the continuous array indices (slice, row, column) of world coordinates, both float (..., 3)."""
        to_index = np.linalg.inv(self.direction * self.spacing)
        return ((points - self.origin) @ to_index.T)[..., ::-1]

    def contains(self, point: np.ndarray) -> bool:
        """Returns whether a point in world coordinates is inside a voxel of the volume."""
        index = self.indices(np.asarray(point, float))
        return bool((index >= -0.5).all() and (index <= np.array(self.voxels.shape) - 0.5).all())

    def sample(self, points: np.ndarray) -> np.ndarray:
        """Returns Hounsfield units at world coordinates (..., 3), interpolated linearly; outside there is air."""
        index = np.moveaxis(self.indices(points), -1, 0)
        return ndimage.map_coordinates(self.voxels, index, np.float32, order=1, mode="constant", cval=AIR)


@dataclasses.dataclass(frozen=True)
class Cut:
    """How patches are cut around candidates.

    Attributes:
      kind: "cube" gives (size, size, size, 1), axes (z, y, x); "axial" gives the slice (size, size, 1), axes (y, x);
        "triplanar" gives (size, size, 3): the axial (y, x), coronal (z, x) and sagittal (z, y) slices as channels.
      size: voxels on a side.
      spacing: mm between voxels.
      window: the Hounsfield units that become 0 and 255; values outside are clipped.
    """

    kind: str = "cube"
    size: int = 32
    spacing: float = 1.0
    window: tuple[float, float] = (-1000.0, 400.0)

    def __post_init__(self):
        if self.kind not in CUTS:
            raise DataError(f"a cut is called {self.kind!r}; expected one of {', '.join(CUTS)}.")
        if self.size < 1 or self.spacing <= 0 or not self.window[0] < self.window[1]:
            raise DataError(
                f"a cut has size {self.size}, spacing {self.spacing} and window {self.window}; expected a positive "
                f"size and spacing, and a lower limit below the upper one."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """(*spatial, channels) of a patch."""
        return {
            "cube": (self.size,) * 3 + (1,),
            "axial": (self.size,) * 2 + (1,),
            "triplanar": (self.size,) * 2 + (3,),
        }[self.kind]

    def __call__(self, scan: Scan, centre: np.ndarray) -> np.ndarray:
        """Returns the patch around a point in world coordinates, uint8 of shape `shape`."""
        line = (np.arange(self.size) - (self.size - 1) / 2) * self.spacing
        zero = np.zeros(1)

        def plane(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
            grid = np.stack(np.meshgrid(z, y, x, indexing="ij")[::-1], axis=-1)
            return scan.sample(grid + np.asarray(centre))

        if self.kind == "cube":
            units = plane(line, line, line)[..., None]
        elif self.kind == "axial":
            units = plane(zero, line, line)[0, ..., None]
        else:
            planes = plane(zero, line, line)[0], plane(line, zero, line)[:, 0], plane(line, line, zero)[..., 0]
            units = np.stack(planes, axis=-1)
        low, high = self.window
        return np.round(np.clip((units - low) / (high - low), 0, 1) * 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One row of a list of candidates.

    Attributes:
      row: the file and line, for messages.
      scan: the series instance UID.
      centre: world coordinates in mm.
      class_name: the text of its class.
      patient: the patient; the scan where the list does not say.
      case: the nodule; a case of its own where the list does not say.
      ignored: whether it is on an irrelevant finding, which FROC counts neither as found nor as wrong.
    """

    row: str
    scan: str
    centre: tuple[float, float, float]
    class_name: str
    patient: str
    case: str
    ignored: bool = False


def read_candidates(path: pathlib.Path) -> list[Candidate]:
    """Reads a list of candidates in CSV.

    The columns are those of LUNA16: seriesuid, coordX, coordY, coordZ (world coordinates in mm) and class. The columns
    patient and nodule may say which rows belong together, and the column ignore (1 or 0, empty for 0) which are on an
    irrelevant finding, see `metrics.froc`; others, such as diameter_mm, are ignored.

    Raises:
      DataError: the file cannot be read, or a column or value is missing or wrong; the message names the row.
    """
    found = []
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path} has no column {', '.join(missing)}; expected {', '.join(COLUMNS)}.")
            for values in reader:
                row = f"{path}, line {reader.line_num}"
                scan = (values["seriesuid"] or "").strip()
                try:
                    centre = tuple(float(values[column]) for column in ("coordX", "coordY", "coordZ"))
                except (TypeError, ValueError):
                    centre = (math.nan,) * 3
                if not scan or not values["class"] or not all(map(math.isfinite, centre)):
                    raise DataError(f"{row}: expected a seriesuid, three coordinates in mm and a class, got {values}.")
                case = f"{scan}/{values.get('nodule') or f'line{reader.line_num}'}"
                patient = values.get("patient") or scan
                ignored = _is_ignored(row, values.get("ignore"))
                found.append(Candidate(row, scan, centre, values["class"].strip(), patient, case, ignored))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not found:
        raise DataError(f"{path} lists no candidates.")
    return found


def _is_ignored(row: str, text: str | None) -> bool:
    """Returns the value of the column `ignore`; raises DataError, naming the row, if it is neither 0 nor 1."""
    value = (text or "").strip() or "0"
    if value not in ("0", "1"):
        raise DataError(f"{row}: the column ignore has {value!r}; expected 1 on an irrelevant finding, else 0.")
    return value == "1"


@dataclasses.dataclass(frozen=True)
class Stored:
    """The files of a scan on disk, several for a DICOM series, and the split that its folder is named after."""

    files: tuple[str, ...]
    split: str


def find_scans(root: pathlib.Path) -> dict[str, Stored]:
    """Finds the scans below a folder by their series instance UID.

    That is the name of a .mhd, .mha or NIfTI file, and is read from DICOM files. A scan below a folder such as
    subset3/ is in the split of this name, any other in "train".

    Raises:
      DataError: SimpleITK is not installed, or two scans have the same UID.
    """
    found: dict[str, Stored] = {}
    with simple_itk() as sitk:
        for folder, subfolders, names in os.walk(root):
            subfolders.sort()
            parts = pathlib.Path(folder).relative_to(root).parts
            split = next(filter(_SUBSET.fullmatch, parts), UNDIVIDED)
            series = {}
            for name in sorted(names):
                for extension in VOLUMES:
                    if name.lower().endswith(extension):
                        series[name[: -len(extension)]] = (os.path.join(folder, name),)
            if any(_DICOM.fullmatch(pathlib.Path(name).suffix) for name in names):
                for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(folder):
                    series[uid] = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(folder, uid)
            for uid, files in series.items():
                if uid in found:
                    raise DataError(
                        f"{root} has the scan {uid} twice: {found[uid].files[0]} and {files[0]}; remove one."
                    )
                found[uid] = Stored(tuple(files), split)
    return found


def read_scan(files: tuple[str, ...]) -> Scan:
    """Reads a volume: one .mhd, .mha or NIfTI file, or the slices of a DICOM series.

    Raises:
      DataError: SimpleITK is not installed, or the volume cannot be read, is not a grey volume, or lacks slices.
    """
    with simple_itk() as sitk:
        try:
            image = sitk.ReadImage(files[0]) if len(files) == 1 else _read_series(sitk, files)
        except RuntimeError as error:
            raise DataError(f"{files[0]} cannot be read: {str(error).strip().splitlines()[-1]}") from error
        if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
            raise DataError(f"{files[0]} has {image.GetDimension()} axes; expected a grey volume of three.")
        direction = np.array(image.GetDirection()).reshape(3, 3)
        if abs(np.linalg.det(direction)) < 1e-3:
            raise DataError(f"{files[0]} has axes that are not independent: {direction.tolist()}; repair its header.")
        voxels = sitk.GetArrayFromImage(image)
        return Scan(voxels, np.array(image.GetOrigin()), np.array(image.GetSpacing()), direction)


def _read_series(sitk: Any, files: tuple[str, ...]) -> Any:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    reader.MetaDataDictionaryArrayUpdateOn()
    image = reader.Execute()
    # GDCM takes the spacing of the first two slices for all.
    positions = [
        np.array(reader.GetMetaData(i, "0020|0032").split("\\"), float)
        for i in range(len(files))
        if reader.HasMetaDataKey(i, "0020|0032")
    ]
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1) if len(positions) == len(files) else np.ones(1)
    if np.ptp(steps) > UNEVEN * steps.min():
        raise DataError(
            f"{files[0]}: the slices of this series are {steps.min():g} to {steps.max():g} mm apart; one is missing or "
            "two series are mixed."
        )
    return image


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


def cut_all(scan: Scan, candidates: list[Candidate], cut: Cut) -> list[np.ndarray]:
    """Cuts the candidates of one scan; raises DataError, naming the row, if one lies outside of it."""
    for candidate in candidates:
        if not scan.contains(candidate.centre):
            index = np.round(scan.indices(np.array(candidate.centre)), 1).tolist()
            raise DataError(
                f"{candidate.row}: {candidate.centre} mm is outside of the scan {candidate.scan}: at voxel {index} of "
                f"{scan.voxels.shape}. Expected world coordinates as in DICOM (x to the left, y to the back, z up)."
            )
    return [cut(scan, np.array(candidate.centre)) for candidate in candidates]


@contextlib.contextmanager
def simple_itk() -> Iterator[Any]:
    """Gives the module SimpleITK, whose DICOM code leaves the process in the locale "C": text files would be ASCII."""
    try:
        import SimpleITK
    except ImportError as error:
        raise DataError('reading CT scans needs SimpleITK; install it with pip install "squeeze_jax[ct]"') from error
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield SimpleITK
    finally:
        locale.setlocale(locale.LC_ALL, before)
