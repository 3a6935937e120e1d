"""Volumes in NIfTI files (.nii, .nii.gz), NIfTI-1 and NIfTI-2, whose headers nibabel reads."""

import gzip
import itertools
import math
import pathlib
import zlib
from typing import Any

import numpy as np

from squeeze_jax.data.scans import Assume, Scan, check_size, extra
from squeeze_jax.errors import DataError

TOLERANCE = 0.1  # by how much of the smallest spacing the two positions of a corner may differ
TO_LPS = np.array([-1.0, -1.0, 1.0])  # NIfTI's axes run to the right and to the front
LONGEST_HEADER = 2**20  # bytes, with extensions
BLOCK = 2**24  # bytes
NIFTI_2 = (b"\x1c\x02\0\0", b"\0\0\x02\x1c")  # its header's length, 540


def read(path: pathlib.Path, assume: Assume) -> Scan:
    """Reads a NIfTI volume of one number a voxel, which is taken for Hounsfield units.

    Raises:
      DataError: nibabel is not installed, the file is cut off or damaged, is not a gray volume of three axes, or does
        not say where it lies, or says it in two ways that differ.
    """
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            data = bytearray(file.read(540))
            header = _header(bytes(data))
            shape, dtype, offset = _layout(header)
            expected = offset + math.prod(shape) * dtype.itemsize
            # A block more than there should be, so that gzip compares its checksum at the end.
            while len(data) <= expected and (block := file.read(min(BLOCK, expected + 1 - len(data)))):
                data += block
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"it is cut off or damaged: {error}.") from error
    if len(data) != expected:
        actual = f"{len(data):,}" if len(data) < expected else "more"
        raise DataError(f"it is cut off or damaged: {actual} bytes, {expected:,} according to its header.")
    affine = _affine(header, shape, assume)
    voxels = np.frombuffer(data, dtype, math.prod(shape), offset).reshape(shape[::-1])  # the first axis varies fastest
    slope, intercept = _checked(header.get_slope_inter)
    if slope is not None and (slope, intercept) != (1, 0):
        voxels = np.multiply(voxels, slope, dtype=np.float32) + np.float32(intercept)
    voxels = voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
    return Scan.from_steps(voxels, affine[:3, 3], affine[:3, :3])


def _checked(parse: Any, *arguments: Any, **options: Any) -> Any:
    """Calls a parser of nibabel on bytes that may be anything."""
    try:
        return parse(*arguments, **options)
    except Exception as error:
        raise DataError(f"it has no intact NIfTI header: {error}") from error


def _header(start: bytes) -> Any:
    nibabel = extra("nibabel")
    kind = nibabel.Nifti2Header if start[:4] in NIFTI_2 else nibabel.Nifti1Header
    return _checked(kind, start[: kind.sizeof_hdr])


def _layout(header: Any) -> tuple[tuple[int, ...], np.dtype, int]:
    """Returns the shape, the type of the voxels, and the byte where they begin."""
    shape = tuple(map(int, _checked(header.get_data_shape)))
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    check_size(shape)
    dtype = _checked(header.get_data_dtype)
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise DataError(f"its voxels are of type {dtype}; expected one number each, and no colors.")
    offset = int(_checked(header.get_data_offset))
    if not header.sizeof_hdr <= offset <= LONGEST_HEADER:
        raise DataError(f"its voxels begin at byte {offset:,}; at most {LONGEST_HEADER:,} are read.")
    return shape, dtype, offset


def _affine(header: Any, shape: tuple[int, ...], assume: Assume) -> np.ndarray:
    """Returns the matrix from indices to world coordinates, float (4, 4)."""
    unit = _checked(header.get_xyzt_units)[0]
    if unit not in ("mm", "unknown"):
        raise DataError(f"its unit of length is {unit}, which readers treat differently; convert it to mm.")
    sform, sform_code = _checked(header.get_sform, coded=True)
    qform, qform_code = _checked(header.get_qform, coded=True)
    if not sform_code and not qform_code:
        if not assume.origin:
            raise DataError(
                "neither its sform nor its qform has a code, so it does not say where it lies; set one, or "
                "--assume_origin if the candidates count from the first voxel."
            )
        return np.diag([*map(float, _checked(header.get_zooms)[:3]), 1.0])
    if sform_code and qform_code:
        corners = np.array([*itertools.product(*((0, n - 1) for n in shape))])
        apart = np.linalg.norm(corners @ (sform - qform)[:3, :3].T + (sform - qform)[:3, 3], axis=1).max()
        if not apart <= TOLERANCE * np.linalg.norm(qform[:3, :3], axis=0).min():
            raise DataError(
                f"its sform (code {sform_code}) and its qform (code {qform_code}) place a corner {apart:.3g} mm apart; "
                "delete the wrong one (set its code to 0)."
            )
    affine = sform if sform_code else qform
    return np.diag([*TO_LPS, 1.0]) @ affine
