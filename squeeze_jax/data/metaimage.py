"""Volumes in MetaImage files: .mha, and .mhd with the voxels in a file beside it.

The header is a text of lines `key = value`. It is read here, and not by ITK, whose reader follows any path in it and
neither compares the sizes nor looks at the checksum of compressed voxels.
"""

import math
import pathlib
import zlib

import numpy as np

from squeeze_jax.data.scans import Assume, Scan, check_size
from squeeze_jax.errors import DataError

LONGEST_HEADER = 2**16  # bytes
TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
# What a header may say in words that mean the same; the first word is used here.
SYNONYMS = (
    ("Offset", "Position", "Origin"),
    ("TransformMatrix", "Rotation", "Orientation"),
    ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"),
)
# What only one value is read of.
FIXED = {
    "ObjectType": ("Image",),
    "NDims": ("3",),
    "BinaryData": ("True", "true", "T", "1"),
    "HeaderSize": ("0",),
    "ElementNumberOfChannels": ("1",),
    "ElementToIntensityFunctionSlope": ("1",),
    "ElementToIntensityFunctionOffset": ("0",),
    "DistanceUnits": ("mm", "?"),
}


def read(path: pathlib.Path, assume: Assume) -> Scan:
    """Reads a MetaImage of one number a voxel, which is taken for Hounsfield units.

    Raises:
      DataError: the header lacks something or is not one of a volume of numbers, the voxels are elsewhere than in the
        file or the folder of the header, or their bytes are not those that the header describes.
    """
    header, offset = _header(path)
    for key, values in FIXED.items():
        if header.get(key, values[0]) not in values and not _is_same_number(header[key], values[0]):
            raise DataError(f"{key} is {header[key][:80]!r}; only {values[0]} is read.")
    dtype = TYPES.get(header.get("ElementType", ""))
    if dtype is None:
        raise DataError(
            f"ElementType is {header.get('ElementType', 'missing')[:80]!r}; expected one of {', '.join(TYPES)}."
        )
    size = _numbers(header, "DimSize", 3, int)
    check_size(size)
    only_size = "ElementSize" in header and "ElementSpacing" not in header  # which ITK takes then, too
    spacing = np.array(_numbers(header, "ElementSize" if only_size else "ElementSpacing", 3))
    if "Offset" not in header and not assume.origin:
        raise DataError(
            "its header has no Offset, the position of the first voxel in mm; add it, or --assume_origin if the "
            "candidates count from there."
        )
    origin = np.array(_numbers(header, "Offset", 3)) if "Offset" in header else np.zeros(3)
    directions = np.eye(3)
    if "TransformMatrix" in header:
        directions = np.array(_numbers(header, "TransformMatrix", 9)).reshape(3, 3)  # an axis in each row
    if not (spacing > 0).all() or not np.allclose(np.linalg.norm(directions, axis=1), 1, atol=1e-3):
        raise DataError(
            f"ElementSpacing is {spacing.tolist()} and TransformMatrix {directions.tolist()}; expected positive "
            "spacings and unit vectors."
        )
    dtype = np.dtype(dtype).newbyteorder(">" if _is_true(header, "BinaryDataByteOrderMSB") else "<")
    data = _data(path, header, offset, math.prod(size) * dtype.itemsize)
    voxels = np.frombuffer(data, dtype).reshape(size[::-1])
    return Scan.from_steps(voxels.astype(dtype.newbyteorder("="), copy=False), origin, directions.T * spacing)


def files(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of a volume: that of the header and, if they lie in another one, that of the voxels."""
    try:
        name = _header(path)[0]["ElementDataFile"]
    except (DataError, OSError):  # an error when it is read
        return [path]
    voxels = path.parent / pathlib.PurePath(name).name
    return [path, voxels] if name != "LOCAL" and voxels.is_file() else [path]


def _header(path: pathlib.Path) -> tuple[dict[str, str], int]:
    """Returns the header's keys and values, and the number of its bytes."""
    header: dict[str, str] = {}
    with path.open("rb") as file:
        while "ElementDataFile" not in header:
            line = file.readline(LONGEST_HEADER)
            if not line or file.tell() > LONGEST_HEADER:
                raise DataError("its header has no line ElementDataFile.")
            key, equals, value = (part.strip() for part in line.decode("latin-1").partition("="))
            key = next((words[0] for words in SYNONYMS if key in words), key)
            if key and not equals:
                raise DataError(f"its header has the line {key[:80]!r}; expected lines of the form key = value.")
            if header.setdefault(key, value) != value and key != "Comment":
                raise DataError(f"its header has two values of {key}: {header[key][:80]!r} and {value[:80]!r}.")
        return header, file.tell()


def _numbers(header: dict[str, str], key: str, count: int, kind: type = float) -> list:
    try:
        numbers = [kind(word) for word in header.get(key, "").split()]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise DataError(f"{key} is {header.get(key, 'missing')[:80]!r} in its header; expected {count} numbers.")
    return numbers


def _data(path: pathlib.Path, header: dict[str, str], offset: int, expected: int) -> bytes:
    """Returns the voxels' bytes, which are as many as the header says."""
    name = header["ElementDataFile"]
    if name != "LOCAL":
        path, offset = path.parent / name, 0
        if not name or pathlib.PurePath(name).name != name or set(name) & set("%\\") or not path.is_file():
            raise DataError(
                f"ElementDataFile is {name[:80]!r}; expected LOCAL or the name of a file that is in the same folder."
            )
    compressed = _is_true(header, "CompressedData")
    actual = path.stat().st_size - offset
    if compressed or actual == expected:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
        if not compressed:
            return data
        stream = zlib.decompressobj(zlib.MAX_WBITS | 32)  # zlib or gzip
        try:
            data = stream.decompress(data, expected + 1)
        except zlib.error as error:
            raise DataError(f"the compressed voxels in {path.name} are damaged: {error}.") from error
        if stream.eof and len(data) == expected:  # the checksum at the end was right
            return data
        actual = len(data)
    raise DataError(
        f"the voxels in {path.name} take {actual:,} bytes, {expected:,} by the header; it is cut off, damaged or of "
        "another volume."
    )


def _is_same_number(text: str, expected: str) -> bool:
    try:
        return float(text) == float(expected)
    except ValueError:
        return False


def _is_true(header: dict[str, str], key: str) -> bool:
    return header.get(key, "False")[:1] in ("T", "t", "1")
