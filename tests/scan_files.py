"""Writes small volumes, whose voxels and positions are known, to files of every format, and compares what is read.

pydicom and nibabel write what SimpleITK cannot: tilted series, many frames, headers that lack something.
"""

import dataclasses
import gzip
import pathlib
import zlib

import numpy as np
import pytest

from squeeze_jax.data.scans import Assume
from squeeze_jax.data.volumes import AS_STORED, find_scans, read_scan
from squeeze_jax.errors import DataError

UID = "1.2.826.0.1.5"


@dataclasses.dataclass
class Volume:
    """What is written: `units` (slices, rows, columns) at `positions` (slices, 3) + column and row times `steps`."""

    units: np.ndarray
    positions: np.ndarray
    steps: np.ndarray  # (3, 2): mm from column to column and from row to row, in world coordinates
    rescale: list[tuple[float, float]]  # slope and intercept of each slice

    def points(self) -> np.ndarray:
        """World coordinates of all voxels, (slices, rows, columns, 3)."""
        _, rows, columns = self.units.shape
        row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
        inside = np.stack([column, row], -1) @ self.steps.T
        return self.positions[:, None, None] + inside

    @property
    def affine(self) -> np.ndarray:
        """The matrix from (column, row, slice) to world coordinates, (4, 4)."""
        affine = np.eye(4)
        affine[:3, :2], affine[:3, 2] = self.steps, self.positions[1] - self.positions[0]
        affine[:3, 3] = self.positions[0]
        return affine


def rotation(rng: np.random.Generator) -> np.ndarray:
    """A rotation, or a permutation of the axes with signs, (3, 3)."""
    matrix = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    if rng.random() < 0.4:
        matrix = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    return matrix


def draw(rng: np.random.Generator, *, tilt: bool = False, rounded: bool = False) -> Volume:
    """A volume in random orientation, of random spacing, rescale and size."""
    shape = rng.integers([4, 4, 5], [7, 7, 9])
    across, down, normal = rotation(rng).T
    spacing = rng.uniform(0.5, 1.5, 2)
    step = normal * rng.uniform(0.6, 3)
    if tilt:
        step = step + rng.uniform(-1, 1) * across + rng.uniform(-1, 1) * down
    positions = rng.uniform(-300, 300, 3) + np.arange(shape[0])[:, None] * step
    slope, intercept = rng.choice([1.0, 0.5, 0.7]), rng.choice([0.0, -1024.0, -1000.3])
    rescale = [(slope, intercept)] * shape[0]
    if rng.random() < 0.4:
        rescale = [(rng.choice([1.0, 0.25, 0.6]), rng.choice([-1024.0, -2000.0, -999.5])) for _ in rescale]
    stored = rng.integers(0, 2**11, shape)
    units = np.stack([s * one + t for one, (s, t) in zip(stored, rescale, strict=True)])
    decimals = 1 if rounded else 6
    return Volume(units, positions.round(decimals), np.stack([across, down], 1).round(9) * spacing.round(6), rescale)


def dataset(uid: str, volume: Volume):
    """A DICOM image without what is said of single slices."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    image.SeriesInstanceUID, image.Modality = uid, "CT"
    image.Rows, image.Columns = volume.units.shape[1:]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    return image


def stored(volume: Volume, index: int, signed: bool = False) -> np.ndarray:
    """The stored values of a slice."""
    slope, intercept = volume.rescale[index]
    return np.round((volume.units[index] - intercept) / slope).astype("<i2" if signed else "<u2")


def plane(volume: Volume) -> tuple[list[str], list[str]]:
    """ImageOrientationPatient and PixelSpacing."""
    spacing = np.linalg.norm(volume.steps, axis=0)
    cosines = (volume.steps / spacing).T.ravel()
    return [f"{value:.9f}" for value in cosines], [f"{value:.9g}" for value in spacing[::-1]]


def write_slices(folder: pathlib.Path, uid: str, volume: Volume, rng: np.random.Generator, edit=None) -> list:
    """Writes a file a slice, in random order; `edit(index, image)` changes an image, or leaves it out by False."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    names = rng.permutation(len(volume.units))
    for i in range(len(volume.units)):
        image = dataset(uid, volume)
        image.InstanceNumber, image.SliceThickness = i + 1, 2
        image.ImageOrientationPatient, image.PixelSpacing = plane(volume)
        image.ImagePositionPatient = [f"{value:.10g}" for value in volume.positions[i]]
        image.RescaleSlope, image.RescaleIntercept = volume.rescale[i]
        image.PixelRepresentation = int(rng.integers(2))
        image.PhotometricInterpretation = rng.choice(["MONOCHROME1", "MONOCHROME2"])
        image.PixelData = stored(volume, i, bool(image.PixelRepresentation)).tobytes()
        if edit is None or edit(i, image) is not False:
            path = folder / f"{names[i]:03}.dcm"
            image.save_as(path, enforce_file_format=True)
            written.append(path)
    return written


def write_frames(path: pathlib.Path, uid: str, volume: Volume, rng: np.random.Generator, edit=None) -> None:
    """Writes one file with all slices as frames, in random order; `edit(image)` changes the image."""
    from pydicom.dataset import Dataset
    from pydicom.uid import EnhancedCTImageStorage

    def item(**elements):
        made = Dataset()
        for name, value in elements.items():
            setattr(made, name, value)
        return made

    image = dataset(uid, volume)
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    image.PhotometricInterpretation = rng.choice(["MONOCHROME1", "MONOCHROME2"])
    order = rng.permutation(len(volume.units))
    cosines, spacing = plane(volume)
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=spacing, SliceThickness=2)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=[float(value) for value in cosines])],
    )
    same = len(set(volume.rescale)) == 1
    frames = []
    for i in order:
        frame = item(PlanePositionSequence=[item(ImagePositionPatient=volume.positions[i].tolist())])
        slope, intercept = volume.rescale[i]
        rescale = [item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="HU")]
        (shared if same else frame).PixelValueTransformationSequence = rescale
        frames.append(frame)
    image.NumberOfFrames = len(frames)
    image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence = [shared], frames
    image.PixelData = np.stack([stored(volume, i) for i in order]).tobytes()
    if edit is not None:
        edit(image)
    image.save_as(path, enforce_file_format=True)


def nifti(volume: Volume, rng: np.random.Generator):
    """A NIfTI-1 or NIfTI-2 image of a volume, as float32 or scaled integers, its position in the sform."""
    import nibabel

    kind = nibabel.Nifti2Image if rng.random() < 0.3 else nibabel.Nifti1Image
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    data = volume.units.T
    image = kind(data.astype(np.float32), affine)
    if len(set(volume.rescale)) == 1 and rng.random() < 0.5:
        (slope, intercept), *_ = volume.rescale
        image = kind(np.round((data - intercept) / slope).astype(np.int16), affine)
        image.header.set_slope_inter(slope, intercept)
    image.set_sform(affine, code=1)
    image.set_qform(None, code=0)
    image.header.set_xyzt_units("mm")
    return image


def nifti_bytes(image) -> bytes:
    """The file of an image that keeps the scaling of its header."""
    data = np.asarray(image.dataobj)
    header = image.header.copy()
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    filling = b"\0" * (header.single_vox_offset - header.sizeof_hdr)
    return header.binaryblock + filling + data.astype(header.get_data_dtype()).tobytes(order="F")


def write_nifti(path: pathlib.Path, data: bytes) -> None:
    """Writes bytes, compressed if the name ends in .gz."""
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)


def write_metaimage(path: pathlib.Path, volume: Volume, rng: np.random.Generator, edit=None) -> None:
    """Writes .mha, or .mhd with a file beside it; `edit(header, data)` returns other data, or changes the header."""
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    kind, word = [("<f4", "MET_FLOAT"), ("<f8", "MET_DOUBLE"), (">f4", "MET_FLOAT")][rng.integers(3)]
    data = volume.units.astype(kind).tobytes()
    header = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryDataByteOrderMSB": str(kind[0] == ">"),
        "CompressedData": "False",
        "TransformMatrix": " ".join(map(repr, (volume.affine[:3, :3] / spacing).T.ravel().tolist())),
        "Offset": " ".join(map(repr, volume.positions[0].tolist())),
        "ElementSpacing": " ".join(map(repr, spacing.tolist())),
        "DimSize": " ".join(map(str, reversed(volume.units.shape))),
        "ElementType": word,
        "ElementToIntensityFunctionSlope": "1.0",
        "ElementDataFile": "LOCAL" if path.suffix == ".mha" else f"{path.stem}.raw",
    }
    if rng.random() < 0.5:
        data = zlib.compress(data, 1)
        header |= {"CompressedData": "True", "CompressedDataSize": str(len(data))}
    if edit is not None:
        data = edit(header, data)
    header["ElementDataFile"] = header.pop("ElementDataFile")  # the last line
    text = "".join(f"{key} = {value}\n" for key, value in header.items()).encode()
    if header["ElementDataFile"] == "LOCAL":
        path.write_bytes(text + data)
    else:
        path.write_bytes(text)
        path.with_suffix(".raw").write_bytes(data)


def change(index, **elements):
    """Changes elements of slice `index`, of all slices if it is None; an element that becomes None is deleted."""

    def edit(i, image):
        for name, value in elements.items():
            if index in (i, None) and value is None:
                delattr(image, name)
            elif index in (i, None):
                setattr(image, name, value)

    return edit


def only_scan(folder: pathlib.Path):
    """The one scan of a folder, and what was said."""
    found = find_scans(folder)
    assert list(found.scans) == [UID]
    return found.scans[UID].files, found.remarks()


def assert_read(files, volume: Volume, assume: Assume = AS_STORED) -> None:
    """Asserts that every voxel that was written is read, at its position and with its value."""
    scan = read_scan(files, assume)
    assert scan.voxels.size == volume.units.size
    points = volume.points()
    index = np.rint(scan.indices(points)).astype(int)
    places = scan.origin + index[..., ::-1] @ (scan.direction * scan.spacing).T
    np.testing.assert_allclose(places, points, atol=0.0501, rtol=0)
    np.testing.assert_allclose(scan.voxels[tuple(np.moveaxis(index, -1, 0))], volume.units, atol=0.5, rtol=0)
    assert len(np.unique(index.reshape(-1, 3), axis=0)) == volume.units.size


def assert_value(scan, point, value) -> None:
    """Asserts that a voxel lies at a point and has a value."""
    index = np.rint(scan.indices(np.array(point, float)))
    np.testing.assert_allclose(scan.origin + scan.direction * scan.spacing @ index[::-1], point, atol=0.0501, rtol=0)
    assert scan.voxels[tuple(index.astype(int))] == pytest.approx(value, abs=0.5)


def refused(files, expected: str) -> None:
    with pytest.raises(DataError, match=expected) as error:
        read_scan(files)
    assert any(str(file) in str(error.value) for file in files) and "\n" not in str(error.value)
