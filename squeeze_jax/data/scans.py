"""A CT scan as a grid in millimeters, and the cutting of patches.

World coordinates are (x, y, z) in mm, to the patient's left, back and head, as in DICOM, ITK and LUNA16's tables.
Patches are cut on axes parallel to these, so neither the spacing nor the orientation of a stored volume matters.
Files are read by volumes.py.
"""

import contextlib
import dataclasses
import importlib
import locale
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np

from squeeze_jax.data.candidates import Candidate
from squeeze_jax.errors import DataError

AIR = -1000.0  # Hounsfield units
MOST_VOXELS = 2**29  # of a scan, 1,024 slices of 724 x 724; a header that asks for more is taken for damaged
ROUNDING = 1e-6  # of an index
SIZES = {"cube": 32, "axial": 50, "triplanar": 50}  # voxels on a side, unless a person says otherwise
CUTS = tuple(SIZES)
_CUT = re.compile(r"Cut\(kind='(\w+)', size=(\d+), spacing=([\d.e+-]+), window=\(([\d.e+-]+), ([\d.e+-]+)\)\)")


@dataclasses.dataclass(frozen=True)
class Assume:
    """What a person knows of scans whose files do not say it.

    Attributes:
      hounsfield: stored values are Hounsfield units where a DICOM file has no rescale slope and intercept.
      origin: a scan without a position begins at (0, 0, 0) mm.
    """

    hounsfield: bool = False
    origin: bool = False


@dataclasses.dataclass(frozen=True)
class Scan:
    """A volume in Hounsfield units and where it lies.

    Attributes:
      voxels: (slices, rows, columns), the array order of (z, y, x) in the volume's own axes.
      origin: world coordinates of the center of voxel (0, 0, 0), float (3,).
      spacing: mm between voxels along columns, rows and slices, float (3,).
      direction: unit vectors of these axes in world coordinates, as columns, float (3, 3). They need not be at right
        angles: the slices of a tilted gantry are not.
      remarks: what was left out when the scan was read, a line each.
    """

    voxels: np.ndarray
    origin: np.ndarray
    spacing: np.ndarray
    direction: np.ndarray
    remarks: tuple[str, ...] = ()

    @classmethod
    def from_steps(cls, voxels: np.ndarray, origin: np.ndarray, steps: np.ndarray, remarks: Sequence[str] = ()) -> Self:
        """Makes a scan from the steps in mm from column to column, row to row and slice to slice.

        Args:
          voxels: (slices, rows, columns); what is not finite becomes air.
          origin: float (3,), as the attribute.
          steps: float (3, 3), a step in world coordinates in each column.
          remarks: as the attribute.

        Raises:
          DataError: the steps do not span space.
        """
        check_steps(origin, steps)
        spacing = np.linalg.norm(steps, axis=0)
        if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
            voxels = np.where(np.isfinite(voxels), voxels, voxels.dtype.type(AIR))
        return cls(voxels, np.asarray(origin, float), spacing, steps / spacing, tuple(remarks))

    def indices(self, points: np.ndarray) -> np.ndarray:
        """Returns the continuous array indices (slice, row, column) of world coordinates, both float (..., 3)."""
        to_index = np.linalg.inv(self.direction * self.spacing)
        return ((points - self.origin) @ to_index.T)[..., ::-1]

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Returns whether points in world coordinates, float (..., 3), are inside a voxel of the volume, bool (...)."""
        return self._inside(self.indices(np.asarray(points, float)))

    def _inside(self, index: np.ndarray) -> np.ndarray:
        half = 0.5 + ROUNDING
        return ((index >= -half) & (index <= np.array(self.voxels.shape) - 1 + half)).all(-1)

    def sample(self, points: np.ndarray) -> np.ndarray:
        """Returns Hounsfield units at world coordinates (..., 3), float32, interpolated linearly.

        The outer half of a border voxel has the value of its center, as in ITK; outside there is air.
        """
        from scipy import ndimage  # not at the top: reading a workdir needs cuts, and no interpolation

        index = self.indices(points)
        units = ndimage.map_coordinates(self.voxels, np.moveaxis(index, -1, 0), np.float32, order=1, mode="nearest")
        return np.where(self._inside(index), units, np.float32(AIR))


def check_size(shape: Sequence[int]) -> None:
    """Raises DataError if a header's numbers of voxels along the axes are not those of a volume of bearable size."""
    if len(shape) != 3 or min(shape) < 1 or math.prod(shape) > MOST_VOXELS:
        size = " x ".join(map(str, shape))
        raise DataError(f"its size is {size}; expected a volume of three axes and at most {MOST_VOXELS:,} voxels.")


def check_steps(origin: np.ndarray, steps: np.ndarray) -> None:
    """Raises DataError if an origin, float (3,), and steps in mm, float (3, 3), a step a column, are of no grid."""
    spacing = np.linalg.norm(steps, axis=0)
    if not (np.isfinite(origin).all() and np.isfinite(spacing).all() and (spacing > 0).all()):
        raise DataError(f"its origin is {np.array(origin).tolist()} and its spacing {spacing.tolist()} mm; repair it.")
    if abs(np.linalg.det(steps / spacing)) < 1e-3:
        raise DataError(f"its axes are not independent: {(steps / spacing).tolist()}; repair its header.")


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
        low, high = self.window
        if self.size < 1 or not 0 < self.spacing < math.inf or not -math.inf < low < high < math.inf:
            raise DataError(
                f"a cut has size {self.size}, spacing {self.spacing} and window {self.window}; expected a positive "
                f"size and spacing, and a lower limit below the upper one."
            )

    @classmethod
    def from_values(cls, values: Any) -> Self:
        """Returns a cut from the JSON of its attributes, which may be anything; raises DataError if it is not one."""
        try:
            cut = cls(
                str(values["kind"]), int(values["size"]), float(values["spacing"]), tuple(map(float, values["window"]))
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{values!r} is not a cut ({type(error).__name__}: {error}).") from error
        return cut

    @classmethod
    def named_in(cls, text: str) -> Self | None:
        """Returns the cut whose `repr` is in a text, None if there is none."""
        found = _CUT.search(text)
        return found and cls(found[1], int(found[2]), float(found[3]), (float(found[4]), float(found[5])))

    @property
    def shape(self) -> tuple[int, ...]:
        """(*spatial, channels) of a patch."""
        return {
            "cube": (self.size,) * 3 + (1,),
            "axial": (self.size,) * 2 + (1,),
            "triplanar": (self.size,) * 2 + (3,),
        }[self.kind]

    def __call__(self, scan: Scan, center: np.ndarray) -> np.ndarray:
        """Returns the patch around a point in world coordinates, uint8 of shape `shape`."""
        line = (np.arange(self.size) - (self.size - 1) / 2) * self.spacing
        zero = np.zeros(1)

        def plane(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
            grid = np.stack(np.meshgrid(z, y, x, indexing="ij")[::-1], axis=-1)
            return scan.sample(grid + np.asarray(center))

        if self.kind == "cube":
            units = plane(line, line, line)[..., None]
        elif self.kind == "axial":
            units = plane(zero, line, line)[0, ..., None]
        else:
            planes = plane(zero, line, line)[0], plane(line, zero, line)[:, 0], plane(line, line, zero)[..., 0]
            units = np.stack(planes, axis=-1)
        low, high = self.window
        return np.round(np.clip((units - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def grid(scan: Scan, step: float) -> np.ndarray:
    """Returns points of a regular grid in a scan, in world coordinates, float (points, 3), slice by slice.

    The grid is parallel to the patient's axes, and its middle is that of the scan, rounded to 0.001 mm.

    Args:
      scan: the scan.
      step: mm between neighbors, along each axis.

    Raises:
      DataError: the step is not positive.
    """
    if not 0 < step < math.inf:
        raise DataError(f"a grid of {step} mm; expected a positive number.")
    last = np.array(scan.voxels.shape[::-1]) - 1.0
    corners = np.stack(np.meshgrid(*([0.0, end] for end in last)), axis=-1).reshape(-1, 3)
    corners = scan.origin + corners @ (scan.direction * scan.spacing).T
    low, high = corners.min(0), corners.max(0)
    counts = np.floor((high - low) / step + ROUNDING).astype(int)
    first = np.round((low + high - counts * step) / 2, 3)
    lines = [np.round(first[i] + step * np.arange(counts[i] + 1), 3) for i in range(3)]
    points = np.stack(np.meshgrid(*lines[::-1], indexing="ij")[::-1], axis=-1).reshape(-1, 3)
    return points[scan.contains(points)]


def check_inside(scan: Scan, candidate: Candidate) -> None:
    """Raises DataError, naming the row, if a candidate lies outside of its scan."""
    if not scan.contains(np.array(candidate.center)):
        index = np.round(scan.indices(np.array(candidate.center)), 1).tolist()
        raise DataError(
            f"{candidate.row}: {candidate.center} mm is outside of the scan {candidate.scan}: at voxel {index} of "
            f"{scan.voxels.shape}. Expected world coordinates as in DICOM (x to the left, y to the back, z up)."
        )


def add_cut_arguments(group: Any) -> None:
    """Adds the options of `cut_of` and `assumptions` to a group of an argparse parser."""
    group.add_argument("--cut", choices=CUTS, help="default: cube")
    group.add_argument("--size", type=int, help="voxels on a side; default: 32 of a cube, 50 of a slice")
    group.add_argument("--spacing", type=float, help="mm between voxels; default: 1")
    group.add_argument(
        "--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help="Hounsfield units; default: -1000 400"
    )
    group.add_argument("--assume_hounsfield", action="store_true", help="also of DICOM files without a rescale slope")
    group.add_argument("--assume_origin", action="store_true", help="scans without a position begin at 0, 0, 0 mm")


def cut_of(args: Any) -> Cut | None:
    """Returns the cut of the options, with defaults for those that are not given; None if none is.

    Raises:
      DataError: a value is out of range.
    """
    given = {name: getattr(args, name) for name in ("size", "spacing", "window") if getattr(args, name) is not None}
    if args.cut is None and not given:
        return None
    kind = args.cut or Cut.kind
    given.setdefault("size", SIZES[kind])
    return Cut(kind, **{name: tuple(value) if name == "window" else value for name, value in given.items()})


def cut_all(scan: Scan, candidates: list[Candidate], cut: Cut) -> list[np.ndarray]:
    """Cuts the candidates of one scan; raises DataError, naming the row, if one lies outside of it."""
    for candidate in candidates:
        check_inside(scan, candidate)
    return [cut(scan, np.array(candidate.center)) for candidate in candidates]


def extra(name: str) -> Any:
    """Imports a package of the extra `ct`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(f'reading CT scans needs {name}; install it with pip install "squeeze_jax[ct]"') from error


@contextlib.contextmanager
def simple_itk() -> Iterator[Any]:
    """Gives the module SimpleITK, whose DICOM code leaves the process in the locale "C": text files would be ASCII."""
    simpleitk = extra("SimpleITK")
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield simpleitk
    finally:
        locale.setlocale(locale.LC_ALL, before)
