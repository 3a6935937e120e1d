"""CT series in DICOM files, which pydicom reads: single slices or many frames a file, in any order and any orientation.

Headers come first: every slice must lie on one even grid before a voxel is read.
"""

import dataclasses
import importlib
import itertools
import math
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from squeeze_jax.data.scans import Assume, Scan, check_size, check_steps, extra, simple_itk
from squeeze_jax.errors import DataError

MARK = 132  # bytes until the end of the letters DICM, by which a DICOM file is known
OFF_GRID = 0.05  # mm that a slice may lie beside the even grid: positions are often rounded to 0.1 mm
SAME_PLACE = 1e-3  # mm
LARGEST = 2.0**32  # number in a header that is not taken for damaged
MODALITIES = ("CT", "OT", "")  # other, and not said: what converters write
HOUNSFIELD = ("HU", "US", "")  # types of rescaled values: Hounsfield units, not specified, and not said
CAPTURE = "1.2.840.10008.5.1.4.1.1.7.3"  # Multi-frame Grayscale Word Secondary Capture Image Storage
RUN_LENGTHS = "1.2.840.10008.1.2.5"  # a transfer syntax that pydicom decodes itself
DEFLATED = "1.2.840.10008.1.2.1.99"  # a transfer syntax that pydicom inflates whole, header and all
MIXED = "two series are mixed; move one elsewhere."


@dataclasses.dataclass(frozen=True)
class Slice:
    """One frame of a file: where it lies, and how its stored values become Hounsfield units.

    Attributes:
      file: the file.
      frame: the number of the frame in the file.
      number: the number of the slice in the series; None if the file does not say.
      size: columns and rows.
      position: world coordinates of the first pixel, float (3,); None if the file does not say.
      steps: mm from column to column and from row to row in world coordinates, float (3, 2).
      thickness: mm; 0 if the file does not say.
      slope, intercept: of the Hounsfield units.
    """

    file: str
    frame: int
    number: float | None
    size: tuple[int, int]
    position: np.ndarray | None
    steps: np.ndarray
    thickness: float
    slope: float
    intercept: float

    @property
    def normal(self) -> np.ndarray:
        """The unit vector across the slice, float (3,)."""
        normal = np.cross(*self.steps.T)
        return normal / np.linalg.norm(normal)

    def __str__(self) -> str:
        return self.file if self.frame == 0 else f"{self.file} (frame {self.frame + 1})"


def series_uid(path: str) -> str:
    """Returns the series instance UID of a CT image.

    Raises:
      DataError: the file is not a CT image; the message says why, and does not name it.
    """
    with open(path, "rb") as file:
        start = file.read(MARK)
    if start[-4:] != b"DICM":
        raise DataError("not DICOM, or no intact file of it" if start else "empty")
    header = _dataset(path, pixels=False)
    if (modality := _text(header, "Modality")) not in MODALITIES:
        raise DataError(f"of modality {modality}")
    if "LOCALIZER" in _text(header, "ImageType"):
        raise DataError("a localizer")
    uid = _text(header, "SeriesInstanceUID")
    if not uid or "Rows" not in header:
        raise DataError("DICOM, but no image of a series, or cut off")
    if uid.startswith(".") or {"/", "\0"} & {*uid}:  # it becomes part of the names of files
        raise DataError(f"DICOM, but its series instance UID {uid!r} is not one")
    return uid


def read(files: Sequence[str], assume: Assume) -> Scan:
    """Reads a series.

    A slice that is stored twice is read once, and a remark says so.

    Raises:
      DataError: a file cannot be read or has no rescale slope, the slices do not lie on one even grid, or two that
        differ lie at the same place; the message names the file.
    """
    slices = [one for file in files for one in _slices(file, assume)]
    first = slices[0]
    for one in slices:
        if one.size != first.size:
            raise DataError(f"{one} has {one.size} columns and rows, {first} {first.size}; {MIXED}")
        apart = np.abs((one.steps - first.steps) * first.size).sum(1).max()  # mm at the last pixel
        if apart > OFF_GRID / 5:
            raise DataError(f"{one} and {first} differ in orientation or pixel spacing; {MIXED}")
    place, origin, step = _grid(slices, assume)
    steps = np.column_stack([first.steps, step])
    try:
        check_size((*first.size, place.max() + 1))
        check_steps(origin, steps)
    except DataError as error:
        raise DataError(f"the series of {first.file}: {error}") from error
    voxels, twice = _voxels(slices, place)
    remarks = [f"{len(twice)} slices are stored twice, and read once: {', '.join(twice[:10])}"] if twice else []
    return Scan.from_steps(voxels, origin, steps, remarks)


def _voxels(slices: Sequence[Slice], place: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Returns Hounsfield units, float32 (slices, rows, columns), and the slices that are stored twice."""
    voxels = np.empty((place.max() + 1, *reversed(slices[0].size)), np.float32)
    filled: dict[int, Slice] = {}
    twice = []
    for file, group in itertools.groupby(zip(slices, place.tolist(), strict=True), key=lambda pair: pair[0].file):
        stored = _stored_values(file)
        for one, index in group:
            units = stored[one.frame] * np.float32(one.slope) + np.float32(one.intercept)
            if index not in filled:
                filled[index] = one
                voxels[index] = units
            elif np.array_equal(voxels[index], units):
                twice.append(str(one))
            else:
                raise DataError(
                    f"{one} and {filled[index]} lie at the same place and differ; two series, such as two phases, are "
                    "mixed."
                )
    return voxels, twice


def _grid(slices: Sequence[Slice], assume: Assume) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the place of each slice on the even grid, int (n,), and the grid's origin and step in mm, float (3,)."""
    first = slices[0]
    unplaced = [one for one in slices if one.position is None]
    if unplaced and not (assume.origin and len(unplaced) == len(slices)):
        raise DataError(
            f"{unplaced[0].file} has no ImagePositionPatient or ImageOrientationPatient, so it does not say where it "
            "lies; --assume_origin places a series without them by its numbers, if the candidates count from there."
        )
    positions = np.array([_assumed_position(one) if unplaced else one.position for one in slices])
    order = np.argsort(positions @ first.normal, kind="stable")
    gaps = np.linalg.norm(np.diff(positions[order], axis=0), axis=1)
    place = np.empty(len(slices), int)
    place[order] = np.cumsum([0, *(gaps > SAME_PLACE)])
    positions = positions[order][[True, *(gaps > SAME_PLACE)]]
    if unplaced:
        positions -= positions[0]
    if len(positions) == 1:
        if not first.thickness:
            raise DataError(f"{first.file} is a single slice without SliceThickness; add it.")
        return place, positions[0], first.normal * first.thickness
    index = np.arange(len(positions))
    origin, step = np.array([_line(index, values) for values in positions.T]).T
    beside = np.abs(origin + index[:, None] * step - positions).max(1)
    gaps = gaps[gaps > SAME_PLACE]
    # One that is missing among three leaves the others a quarter of a step beside.
    if beside.max() > min(OFF_GRID + SAME_PLACE, gaps.min() / 5):
        after = slices[int(np.flatnonzero(place == gaps.argmax() + 1)[0])]
        raise DataError(
            f"the slices of the series of {first.file} are {gaps.min():.4g} to {gaps.max():.4g} mm apart, up to "
            f"{beside.max():.2g} mm beside an even grid; one is missing before {after}, or two series are mixed."
        )
    return place, origin, step


def _assumed_position(one: Slice) -> np.ndarray:
    if one.number is None or not one.thickness:
        raise DataError(f"{one.file} has no InstanceNumber or no SliceThickness, so it has no place in its series.")
    return one.normal * one.thickness * (one.number + one.frame)


def _line(index: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Returns offset and slope of the line next to all values: values that were rounded stay within the rounding."""
    slope, offset = np.polyfit(index, values, 1)
    if np.abs(offset + slope * index - values).max() < SAME_PLACE:
        return offset, slope
    from scipy import optimize

    one = np.ones_like(values)
    # The smallest t so that offset + slope * index and values are nowhere farther apart than t.
    above, below = np.stack([one, index, -one], 1), np.stack([-one, -index, -one], 1)
    fit = optimize.linprog([0, 0, 1], np.vstack([above, below]), [*values, *-values], bounds=(None, None))
    return (fit.x[0], fit.x[1]) if fit.success else (offset, slope)


def _slices(path: str, assume: Assume) -> list[Slice]:
    """Reads the header of a file with one frame or many."""
    header = _dataset(path, pixels=False)
    try:
        frames = int(_number(header, "NumberOfFrames", 1))
        per_frame = _items(header, "PerFrameFunctionalGroupsSequence")
        if frames < 1 or (per_frame and len(per_frame) != frames):
            raise DataError(f"has {frames} frames, but says of {len(per_frame)} where they lie")
        photometric = _text(header, "PhotometricInterpretation")
        if not photometric.startswith("MONOCHROME") or _number(header, "SamplesPerPixel", 1) != 1:
            raise DataError(f"is not a gray image: PhotometricInterpretation is {photometric!r}; expected MONOCHROME2")
        if _items(header, "ModalityLUTSequence"):
            raise DataError("has a table of values (ModalityLUTSequence); expected RescaleSlope and RescaleIntercept")
        slices = [_slice(path, i, header, per_frame[i : i + 1], assume) for i in range(frames)]
        if frames > 1 and not per_frame:  # a position of the file is not that of every frame
            return [dataclasses.replace(one, position=None) for one in slices]
        return slices
    except DataError as error:
        raise DataError(f"{path} {error}") from error


def _slice(path: str, frame: int, header: Any, own: list[Any], assume: Assume) -> Slice:
    groups = [*own, *_items(header, "SharedFunctionalGroupsSequence")]

    def macro(name: str) -> Any:
        """The functional group that says it of this frame; a classic image says it at the top."""
        return next((item for group in groups for item in _items(group, name)), header)

    measures, values = macro("PixelMeasuresSequence"), macro("PixelValueTransformationSequence")
    position = _numbers(macro("PlanePositionSequence"), "ImagePositionPatient", 3)
    cosines = _numbers(macro("PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    if cosines is None:
        position, cosines = None, np.array([1.0, 0, 0, 0, 1, 0])
    across, down = cosines[:3], cosines[3:]
    if max(abs(across @ across - 1), abs(down @ down - 1), abs(across @ down)) > 2e-3:
        raise DataError(f"has ImageOrientationPatient {cosines.tolist()}, which are not unit vectors at right angles")
    spacing = _numbers(measures, "PixelSpacing", 2)
    if spacing is None or not (spacing > 0).all():
        raise DataError("has no PixelSpacing of two positive numbers")
    slope, intercept = _number(values, "RescaleSlope"), _number(values, "RescaleIntercept")
    if (slope is None or intercept is None) and not assume.hounsfield:
        raise DataError(
            "has no RescaleSlope and RescaleIntercept, so its values may be anything; --assume_hounsfield takes them "
            "for Hounsfield units"
        )
    if (kind := _text(values, "RescaleType").upper()) not in HOUNSFIELD or slope == 0:
        raise DataError(f"has values of RescaleType {kind!r} and RescaleSlope {slope}; expected Hounsfield units")
    thickness = _number(measures, "SpacingBetweenSlices") or _number(measures, "SliceThickness") or 0.0
    return Slice(
        file=path,
        frame=frame,
        number=_number(header, "InstanceNumber"),
        size=(int(_number(header, "Columns", 0)), int(_number(header, "Rows", 0))),
        position=position,
        steps=np.stack([across * spacing[1], down * spacing[0]], axis=1),
        thickness=abs(thickness),
        slope=1.0 if slope is None else slope,
        intercept=intercept or 0.0,
    )


def _dataset(path: str, *, pixels: bool) -> Any:
    pydicom = extra("pydicom")
    try:
        meta = importlib.import_module("pydicom.filereader").read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") == DEFLATED:
            raise DataError("is deflated, to a size that it does not say; store it otherwise")
        return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except DataError:
        raise
    except Exception as error:  # of a foreign parser, on bytes that may be anything
        raise DataError(f"cannot be read as DICOM: {error}") from error


def _get(dataset: Any, keyword: str) -> Any:
    """Returns an element's value; pydicom converts it now, and fails here if it is damaged."""
    try:
        return dataset.get(keyword)
    except Exception as error:
        raise DataError(f"has a damaged {keyword}: {error}") from error


def _text(dataset: Any, keyword: str) -> str:
    value = _get(dataset, keyword)
    return "" if value is None else str(value).strip(" \0")


def _items(dataset: Any, keyword: str) -> list[Any]:
    return list(_get(dataset, keyword) or ())


def _numbers(dataset: Any, keyword: str, count: int) -> np.ndarray | None:
    """Returns the numbers of an element, float (count,); None if it is missing or empty."""
    value = _get(dataset, keyword)
    try:
        numbers = np.array([] if value is None or value == "" else value, float).reshape(-1)
    except (TypeError, ValueError):
        numbers = np.array([math.nan])
    if not numbers.size:
        return None
    if len(numbers) != count or not (np.abs(numbers) < LARGEST).all():
        raise DataError(f"has {keyword} {str(value)[:80]!r}; expected {count} numbers")
    return numbers


def _number(dataset: Any, keyword: str, default: float | None = None) -> float | None:
    numbers = _numbers(dataset, keyword, 1)
    return default if numbers is None else float(numbers[0])


def _stored_values(path: str) -> np.ndarray:
    """Returns the stored values of a file, (frames, rows, columns)."""
    try:
        dataset = _dataset(path, pixels=True)
        shape = tuple(int(_number(dataset, name, 1)) for name in ("NumberOfFrames", "Rows", "Columns"))
        check_size(shape)
        try:
            syntax = dataset.file_meta.TransferSyntaxUID
            by_itk = syntax.is_encapsulated and syntax != RUN_LENGTHS
            values = _decompressed(dataset, shape[0]) if by_itk else dataset.pixel_array
        except DataError:
            raise
        except Exception as error:  # of foreign decoders
            reason = str(error).partition(" - ")[0]
            raise DataError(f"has voxels that cannot be read; it is cut off or damaged: {reason}") from error
        if values.size != math.prod(shape):
            raise DataError(f"has voxels of shape {values.shape}; expected {shape}")
        return values.reshape(shape)
    except DataError as error:
        raise DataError(f"{path} {error}") from error


def _decompressed(dataset: Any, frames: int) -> np.ndarray:
    """Decodes JPEG and its relatives by ITK.

    It is given nothing but the voxels, or it would rescale and invert them, and these in new parcels: it allocates what
    a damaged parcel asks for.
    """
    pydicom = extra("pydicom")
    encaps = importlib.import_module("pydicom.encaps")
    part = pydicom.Dataset()
    for keyword in (
        *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit"),
        *("PixelRepresentation", "SOPInstanceUID"),
    ):
        if keyword in dataset:
            part[keyword] = dataset[keyword]
    tables = (dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths"))
    parcels = encaps.generate_frames(
        dataset.PixelData, number_of_frames=frames, extended_offsets=tables if all(tables) else None
    )
    part.PixelData = encaps.encapsulate(list(parcels))
    part["PixelData"].VR = "OB"
    part["PixelData"].is_undefined_length = True
    part.PhotometricInterpretation = "MONOCHROME2"
    part.SOPClassUID = CAPTURE
    part.file_meta = dataset.file_meta
    part.file_meta.MediaStorageSOPClassUID = CAPTURE
    with tempfile.TemporaryDirectory() as folder, simple_itk() as sitk:
        path = pathlib.Path(folder) / "compressed.dcm"
        part.save_as(path, enforce_file_format=True)
        return sitk.GetArrayFromImage(sitk.ReadImage(path))
