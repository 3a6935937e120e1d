"""Generated CT scans of the lung with nodules, benign or malignant: the same for the same seed, on every machine.

Voxels are anisotropic and axes may be reversed. Malignant nodules tend to be larger, spiculated and lobulated, benign
ones to be calcified, but each of these overlaps. The images are not a substitute for patients: they test code and show
whether a network learns shape.
"""

import dataclasses
import pathlib

import numpy as np
from scipy import ndimage

from squeeze_jax.console import track
from squeeze_jax.data.candidates import Candidate
from squeeze_jax.data.scans import Scan, simple_itk
from squeeze_jax.errors import FileError
from squeeze_jax.files import make_folder
from squeeze_jax.tables import write_csv

CLASSES = ("benign", "malignant")
CANDIDATE_CLASSES = ("0", "1")  # as in LUNA16
NODULES = 2  # of each patient
FALSE_CANDIDATES = 4
VESSELS = 16
SUBSETS = 5
EXTENT = np.array([96.0, 96.0, 80.0])  # mm along x, y and z
MARGIN, DISTANCE = 18.0, 30.0  # mm from a nodule to the border and to another nodule
LUNG, TISSUE = -860.0, 40.0  # Hounsfield units
UID = "1.2.826.0.1.3680043.8.498"  # a root for generated identifiers


@dataclasses.dataclass(frozen=True)
class Nodule:
    """A generated nodule: where it lies, its class, and the features that the class was drawn with."""

    candidate: Candidate
    diameter: float  # mm
    spicules: int
    lobulation: float  # height of the lobes as a fraction of the radius
    calcified: bool


def nodule_names(patient: int, seed: int = 0) -> tuple[str, list[str]]:
    """Returns the name of a patient's scan, which is its series UID, and those of the nodules."""
    scan = f"{UID}.{seed + 1}.{patient + 1}"
    return scan, [f"{scan}/nodule{i}" for i in range(NODULES)]


def draw_nodules(patient: int, seed: int = 0) -> list[Nodule]:
    """Returns the nodules of a patient's scan, without making the scan."""
    rng = np.random.default_rng((seed, patient, 0))
    scan, cases = nodule_names(patient, seed)
    nodules = []
    for center, case in zip(_places(rng, NODULES), cases, strict=True):
        malignant = bool(rng.random() < 0.5)
        world = tuple((center + _middle(patient, seed)).tolist())
        nodules.append(
            Nodule(
                Candidate("", scan, world, CLASSES[malignant], scan, case),
                diameter=float(np.clip(rng.lognormal(np.log(11.5 if malignant else 9.0), 0.3), 5, 24)),
                spicules=int(rng.poisson(9 if malignant else 3)),
                lobulation=float(rng.uniform(0.05, 0.35) if malignant else rng.uniform(0, 0.2)),
                calcified=bool(rng.random() < (0.05 if malignant else 0.3)),
            )
        )
    return nodules


def _middle(patient: int, seed: int) -> np.ndarray:
    """Returns the world coordinates of the middle of a patient's scan."""
    return np.random.default_rng((seed, patient, 2)).uniform(-100, 100, 3)


def generate(patient: int, seed: int = 0) -> tuple[Scan, list[Nodule], list[Candidate]]:
    """Generates the scan of a patient.

    Args:
      patient: the patient's number.
      seed: the seed of all patients.

    Returns:
      The scan, int16 Hounsfield units; its nodules; and places on vessels, far from any nodule.
    """
    nodules = draw_nodules(patient, seed)
    rng = np.random.default_rng((seed, patient, 1))
    spacing = np.array([*[rng.uniform(0.6, 0.9)] * 2, rng.uniform(1.0, 2.5)])
    shape = np.round(EXTENT / spacing).astype(int)
    middle = _middle(patient, seed)
    # World coordinates of the voxels, relative to the middle of the scan.
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing, strict=True)]
    units = _parenchyma(rng, shape, spacing)
    points = [point for _ in range(VESSELS) for point in _draw_vessel(rng, units, axes)]
    centers = [np.array(nodule.candidate.center) - middle for nodule in nodules]
    for center, nodule in zip(centers, nodules, strict=True):
        _draw_nodule(rng, units, axes, center, nodule)
    scan_name = nodules[0].candidate.scan
    units += rng.normal(0, 25, units.shape)  # of the detector
    far = [point for point in points if np.linalg.norm(np.subtract(centers, point), axis=1).min() > MARGIN]
    inside = [point for point in far if (np.abs(point) < EXTENT / 2 - 5).all()]
    chosen = rng.permutation(len(inside))[:FALSE_CANDIDATES]
    others = [
        Candidate("", scan_name, tuple(inside[i] + middle), CANDIDATE_CLASSES[0], scan_name, f"{scan_name}/vessel{n}")
        for n, i in enumerate(chosen)
    ]
    # The axes are stored forwards or backwards; the world coordinates of every voxel stay what they are.
    signs = rng.choice([-1.0, 1.0], 3)
    voxels = np.clip(np.round(units), -1024, 3000).astype(np.int16)
    voxels = voxels[tuple(slice(None, None, int(sign)) for sign in signs)].transpose(2, 1, 0)
    first = np.array([axis[0] for axis in axes]) * signs + middle
    return Scan(np.ascontiguousarray(voxels), first, spacing, np.diag(signs)), nodules, others


def _parenchyma(rng: np.random.Generator, shape: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Returns lung tissue, float (x, y, z), with a wall of soft tissue on one side."""
    texture = ndimage.gaussian_filter(rng.normal(size=shape), 1.5 / spacing)
    units = LUNG + 50 * texture / texture.std()
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij", sparse=True)
    depth = 0.95 + 0.05 * np.sin(3 * y + rng.uniform(0, 6)) - 0.1 * z**2 * rng.uniform()
    return np.where(x > depth, TISSUE, units)


def _blend(units: np.ndarray, box: tuple[slice, ...], share: np.ndarray, value: np.ndarray | float) -> None:
    units[box] += share * (value - units[box])


def _box(axes: list[np.ndarray], center: np.ndarray, radius: float) -> tuple[tuple[slice, ...], list[np.ndarray]]:
    """Returns the voxels within a cube around a point, and their coordinates relative to it along each axis."""
    ends = [np.searchsorted(axis, [c - radius, c + radius]) for axis, c in zip(axes, center, strict=True)]
    box = tuple(slice(first, last) for first, last in ends)
    offsets = [axis[part] - c for axis, part, c in zip(axes, box, center, strict=True)]
    return box, np.meshgrid(*offsets, indexing="ij", sparse=True)


def _draw_vessel(rng: np.random.Generator, units: np.ndarray, axes: list[np.ndarray]) -> list[np.ndarray]:
    """Draws a curved tube and returns points on its axis."""
    ends = rng.uniform(-0.5, 0.5, (3, 3)) * EXTENT
    radius, value = rng.uniform(0.7, 2.8), rng.uniform(-50, 60)
    steps = int(np.linalg.norm(np.diff(ends, axis=0), axis=1).sum() / max(radius, 1.0))
    t = np.linspace(0, 1, max(steps, 2))[:, None]
    path = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * ends[1] + t**2 * ends[2]
    for point in path:
        box, (x, y, z) = _box(axes, point, radius + 1.5)
        distance = np.sqrt(x**2 + y**2 + z**2)
        share = 1 / (1 + np.exp(np.clip((distance - radius) / 0.3, -30, 30)))
        units[box] = np.maximum(units[box], units[box] + share * (value - units[box]))
    return list(path[:: max(1, len(path) // 4)])


def _places(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    places: list[np.ndarray] = []
    while len(places) < count:
        place = rng.uniform(-1, 1, 3) * (EXTENT / 2 - MARGIN)
        if all(np.linalg.norm(place - other) > DISTANCE for other in places):
            places.append(place)
    return places


def _directions(rng: np.random.Generator, count: int) -> np.ndarray:
    vectors = rng.normal(size=(count, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _draw_nodule(
    rng: np.random.Generator, units: np.ndarray, axes: list[np.ndarray], center: np.ndarray, nodule: Nodule
) -> None:
    """Draws a ball with lobes and spicules, perhaps with a calcified core, solid or of ground glass."""
    radius = nodule.diameter / 2
    box, (x, y, z) = _box(axes, center, 2 * radius + 2)
    distance = np.sqrt(x**2 + y**2 + z**2)
    unit = np.stack(np.broadcast_arrays(x, y, z), -1) / np.maximum(distance, 1e-6)[..., None]
    surface = np.full(distance.shape, radius * (1 - nodule.lobulation / 2))
    for lobe in _directions(rng, 6):
        surface += radius * nodule.lobulation * np.exp(6 * (unit @ lobe - 1))
    for spicule in _directions(rng, nodule.spicules):
        surface += radius * rng.uniform(0.3, 0.8) * np.exp(60 * (unit @ spicule - 1))
    share = 1 / (1 + np.exp(np.clip((distance - surface) / 0.4, -30, 30)))
    value = rng.uniform(-650, -350) if rng.random() < 0.2 else rng.uniform(-50, 60)
    _blend(units, box, share, value)
    if nodule.calcified:
        core = 1 / (1 + np.exp(np.clip((distance - radius * rng.uniform(0.25, 0.5)) / 0.4, -30, 30)))
        _blend(units, box, core, rng.uniform(250, 600))


def write(folder: pathlib.Path, patients: int, *, seed: int = 0, dicom: bool = False) -> None:
    """Writes volumes to subset0/ to subset4/, and two lists of candidates, which `candidates.read_candidates` reads.

    candidates.csv has the nodules (1) among places on vessels (0), as LUNA16 does; nodules.csv has the nodules, benign
    or malignant, with their features.

    Args:
      folder: where to; files of the same names are replaced.
      patients: their number.
      seed: the seed.
      dicom: whether to write DICOM series instead of .mhd files.

    Raises:
      DataError: SimpleITK is not installed.
      FileError: a file cannot be written, for example because the disk is full.
    """
    candidates, rows = [], []
    for patient in track(range(patients), "generating scans"):
        scan, nodules, others = generate(patient, seed)
        uid = nodules[0].candidate.scan
        subset = folder / f"subset{patient % SUBSETS}"
        make_folder(subset)
        with simple_itk() as sitk:
            image = sitk.GetImageFromArray(scan.voxels)
            image.SetOrigin(scan.origin.tolist())
            image.SetSpacing(scan.spacing.tolist())
            image.SetDirection(scan.direction.ravel().tolist())
            try:
                if dicom:
                    _write_dicom(sitk, image, subset / uid, uid)
                else:
                    sitk.WriteImage(image, str(subset / f"{uid}.mhd"))
            except RuntimeError as error:  # of ITK, which does not say why
                raise FileError(f"{subset / uid} cannot be written; make room or name another place.") from error
        for nodule in nodules:
            row = _row(nodule.candidate) | {"diameter_mm": round(nodule.diameter, 2)}
            candidates.append(row | {"class": CANDIDATE_CLASSES[1]})
            features = {"spicules": nodule.spicules, "lobulation": round(nodule.lobulation, 3)}
            rows.append(row | features | {"calcified": int(nodule.calcified), "class": nodule.candidate.class_name})
        candidates += [_row(other) | {"diameter_mm": "", "class": other.class_name} for other in others]
    for name, table in (("candidates.csv", candidates), ("nodules.csv", rows)):
        write_csv(folder / name, table)


def _row(candidate: Candidate) -> dict[str, object]:
    center = {f"coord{axis}": round(value, 4) for axis, value in zip("XYZ", candidate.center, strict=True)}
    return {"seriesuid": candidate.scan, **center, "nodule": candidate.case.rsplit("/", 1)[1]}


def _write_dicom(sitk, image, folder: pathlib.Path, uid: str) -> None:
    make_folder(folder)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    columns = np.array(image.GetDirection()).reshape(3, 3)
    for i in range(image.GetDepth()):
        part = image[:, :, i]
        position = image.TransformIndexToPhysicalPoint((0, 0, i))
        for tag, value in {
            "0008|0060": "CT",
            "0020|000d": f"{uid}.1",
            "0020|000e": uid,
            "0008|0018": f"{uid}.2.{i + 1}",
            "0020|0013": str(i + 1),
            "0020|0032": "\\".join(f"{value:.6f}" for value in position),
            "0020|0037": "\\".join(f"{value:g}" for value in [*columns[:, 0], *columns[:, 1]]),
            "0028|1052": "0",
            "0028|1053": "1",
        }.items():
            part.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{i:04}.dcm"))
        writer.Execute(part)
