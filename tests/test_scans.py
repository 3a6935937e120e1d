"""CT scans: generated ones, cuts in millimeters, files of every kind against what they were written from, errors."""

import csv
import dataclasses
import json
import locale
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from sklearn.metrics import roc_auc_score

from squeeze_jax import patches
from squeeze_jax.config import base_config
from squeeze_jax.data import synthetic_nodules
from squeeze_jax.data.candidates import Candidate, read_candidates
from squeeze_jax.data.scans import AIR, Cut, Scan, cut_all, grid
from squeeze_jax.data.sources import open_dataset
from squeeze_jax.data.volumes import find_scans, locate, read_scan
from squeeze_jax.errors import DataError, FileError, InputError
from squeeze_jax.experiment import open_config_dataset

CENTER = np.array([-41.3, 12.7, 133.1])  # of the ball, in world coordinates


def rotation(axis, angle):
    other = [i for i in range(3) if i != axis]
    matrix = np.eye(3)
    matrix[np.ix_(other, other)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return matrix


def ball(direction, spacing=(0.7, 0.8, 2.3), radius=8.0):
    """A ball of 300 HU in air, in a volume with these axes."""
    shape = np.array([70, 64, 24])  # x, y, z
    direction, spacing = np.asarray(direction, float), np.array(spacing)
    origin = CENTER + np.array([2.0, -1.5, 3.0]) - (direction * spacing) @ ((shape - 1) / 2)
    index = np.stack(np.meshgrid(*map(np.arange, shape[::-1]), indexing="ij")[::-1], -1)
    distance = np.linalg.norm(index @ (direction * spacing).T + origin - CENTER, axis=-1)
    voxels = np.clip(AIR + 1300 * np.clip(radius + 0.5 - distance, 0, 1), AIR, 300)
    return Scan(np.round(voxels).astype(np.int16), origin, spacing, direction)


TILTED = np.array([[1, 0, 0], [0, np.cos(0.35), 0], [0, -np.sin(0.35), 1]])  # the table moves along z
DIRECTIONS = {
    "plain": np.eye(3),
    "flipped": np.diag([-1.0, -1.0, 1.0]),
    "head first": np.diag([1.0, 1.0, -1.0]),
    "oblique": rotation(0, 0.3) @ rotation(2, -0.5),
    "sagittal": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
}


@pytest.mark.parametrize("direction", [*DIRECTIONS.values(), TILTED], ids=[*DIRECTIONS, "tilted"])
@pytest.mark.parametrize("kind", ["cube", "axial", "triplanar"])
def test_the_ball_is_in_the_middle(direction, kind):
    patch = Cut(kind, 33)(ball(direction), CENTER).astype(float)
    assert patch.shape == Cut(kind, 33).shape
    for channel in range(patch.shape[-1]):
        one = patch[..., channel]
        center = [np.sum(np.arange(33) * one.sum(tuple(i for i in range(one.ndim) if i != a))) for a in range(one.ndim)]
        np.testing.assert_allclose(np.array(center) / one.sum(), 16, atol=0.25)
        # 8 mm are 8 voxels, along every axis.
        for axis in range(one.ndim):
            line = np.moveaxis(one, axis, 0)[(slice(None), *(16,) * (one.ndim - 1))]
            assert (line > 118).sum() == pytest.approx(17, abs=2)


def test_outside_there_is_air():
    scan = ball(np.eye(3))
    corner = scan.origin + 0.1
    patch = Cut("cube", 20)(Scan(np.full_like(scan.voxels, 100), scan.origin, scan.spacing, scan.direction), corner)
    assert (patch[:9, :9, :9] == 0).all() and (patch[10:, 10:, 10:] == round(1100 / 1400 * 255)).all()


def itk_image(sitk, scan):
    image = sitk.GetImageFromArray(scan.voxels)
    image.SetOrigin(scan.origin)
    image.SetSpacing(scan.spacing)
    image.SetDirection(scan.direction.ravel())
    return image


def itk_cut(sitk, image, center, size):
    """The cube or slice of `size` (x, y, z) voxels around a point, as ITK resamples it."""
    grid = sitk.Image(size, sitk.sitkFloat32)
    grid.SetOrigin(np.asarray(center) - (np.array(size) - 1) / 2)
    units = sitk.GetArrayFromImage(sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, AIR, sitk.sitkFloat32))
    return np.round(np.clip((units + 1000) / 1400, 0, 1) * 255)


@pytest.mark.parametrize("direction", [DIRECTIONS["oblique"], TILTED], ids=["oblique", "tilted"])
def test_cuts_are_what_itk_interpolates(direction):
    sitk = pytest.importorskip("SimpleITK", reason="the extra 'ct' has SimpleITK")
    scan = synthetic_nodules.generate(3)[0]
    scan = Scan(scan.voxels, scan.origin, scan.spacing, direction)
    image = itk_image(sitk, scan)
    middle = np.array(image.TransformContinuousIndexToPhysicalPoint([size / 2 for size in image.GetSize()]))
    expected = itk_cut(sitk, image, middle, (24, 24, 24))
    np.testing.assert_allclose(Cut("cube", 24)(scan, middle)[..., 0], expected, atol=1)


@pytest.mark.parametrize("slices", [1, 5])
def test_the_outer_half_of_a_border_voxel_is_not_air(slices):
    sitk = pytest.importorskip("SimpleITK", reason="the extra 'ct' has SimpleITK")
    rng = np.random.default_rng(slices)
    voxels = rng.integers(0, 300, (slices, 12, 12)).astype(np.int16)
    scan = Scan(voxels, np.array([-6.0, -6.0, -378.0]), np.array([1.0, 1.0, 0.7]), np.eye(3))
    image = itk_image(sitk, scan)
    last = -378 + 0.7 * (slices - 1)  # -375.2 of five: its index is 4.000000000000016
    places = [-378, last, *rng.uniform(-378.34, last + 0.34, 8)]
    for z in places:
        expected = itk_cut(sitk, image, (-0.5, -0.5, z), (16, 16, 1))[0]
        (patch,) = cut_all(scan, [Candidate("", "1", (-0.5, -0.5, z), "1", "1", "1")], Cut("axial", 16))
        np.testing.assert_allclose(patch[..., 0], expected, atol=1)
        assert (patch[2:14, 2:14] > 180).all() and (patch[0] == 0).all()
    with pytest.raises(DataError, match="mm is outside of the scan"):
        cut_all(scan, [Candidate("", "1", (0, 0, last + 0.4), "1", "1", "1")], Cut("axial", 16))


def test_generated_scans_are_the_same_for_the_same_seed():
    first, again, other = (synthetic_nodules.generate(patient, 5)[0] for patient in (1, 1, 2))
    np.testing.assert_array_equal(first.voxels, again.voxels)
    assert first.voxels.shape != other.voxels.shape and first.spacing[2] > first.spacing[0]


def test_neither_the_diameter_nor_chance_tells_malignant_nodules():
    nodules = [nodule for patient in range(40) for nodule in synthetic_nodules.draw_nodules(patient)]
    malignant = [nodule.candidate.class_name == "malignant" for nodule in nodules]
    assert 0.35 < np.mean(malignant) < 0.65
    assert 0.6 < roc_auc_score(malignant, [nodule.diameter for nodule in nodules]) < 0.9
    assert 0.6 < roc_auc_score(malignant, [nodule.spicules for nodule in nodules]) < 0.97


@pytest.fixture(scope="module", params=["mhd", "dicom"])
def written(request, tmp_path_factory):
    pytest.importorskip("SimpleITK", reason="the extra 'ct' has SimpleITK")
    folder = tmp_path_factory.mktemp(request.param)
    synthetic_nodules.write(folder, 6, dicom=request.param == "dicom")
    return folder


def test_files_hold_what_was_written(written):
    scans = find_scans(written).scans
    by_scan = locate(read_candidates(written / "nodules.csv"), scans)
    assert len(by_scan) == len(scans) == 6
    assert {stored.split for stored in scans.values()} == {f"subset{i}" for i in range(5)}
    flipped = 0
    for patient in range(3):
        scan, nodules, _ = synthetic_nodules.generate(patient)
        listed = by_scan[nodules[0].candidate.scan]
        read = read_scan(scans[listed[0].scan].files)
        flipped += int((np.diag(scan.direction) < 0).any())
        for patch, nodule in zip(cut_all(read, listed, Cut()), nodules, strict=True):
            expected = Cut()(scan, np.array(nodule.candidate.center))
            np.testing.assert_allclose(patch.astype(int), expected.astype(int), atol=2)
            # The nodule is there: the middle is brighter than lung.
            assert patch[14:18, 14:18, 14:18].mean() > 50
    assert flipped


@pytest.mark.parametrize("extension", [".nii.gz", ".nii", ".mha", ".mhd"])
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_every_format_says_where_a_volume_lies(extension, direction, tmp_path):
    sitk = pytest.importorskip("SimpleITK", reason="the extra 'ct' has SimpleITK")
    scan = ball(direction)
    image = sitk.GetImageFromArray(scan.voxels)
    image.SetOrigin(scan.origin.tolist())
    image.SetSpacing(scan.spacing.tolist())
    image.SetDirection(scan.direction.ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / f"1.2.3{extension}"))
    (uid, stored), *others = find_scans(tmp_path).scans.items()
    assert uid == "1.2.3" and not others
    read = read_scan(stored.files)
    np.testing.assert_array_equal(read.voxels, scan.voxels)
    points = CENTER + np.random.default_rng(0).uniform(-10, 10, (20, 3))
    np.testing.assert_allclose(read.indices(points), scan.indices(points), atol=1e-3)


def test_dicom_files_may_be_called_after_their_uid(tmp_path):
    pytest.importorskip("SimpleITK", reason="the extra 'ct' has SimpleITK")
    synthetic_nodules.write(tmp_path, 1, dicom=True)
    before = {uid: len(stored.files) for uid, stored in find_scans(tmp_path).scans.items()}
    for number, path in enumerate(sorted(tmp_path.rglob("*.dcm"))):
        path.rename(path.with_name(f"1.3.6.1.{number}"))
    assert before and {uid: len(stored.files) for uid, stored in find_scans(tmp_path).scans.items()} == before


def test_the_locale_stays(tmp_path):
    pytest.importorskip("SimpleITK", reason="the extra 'ct' has SimpleITK")
    before = locale.setlocale(locale.LC_ALL)
    synthetic_nodules.write(tmp_path, 1, dicom=True)
    (stored,) = find_scans(tmp_path).scans.values()
    read_scan(stored.files)
    assert locale.setlocale(locale.LC_ALL) == before


def test_scans_become_a_dataset_whose_folds_share_no_patient(written, tmp_path):
    command = [sys.executable, "-m", "squeeze_jax.data.prepare", "scans/generated", "--scans", str(written)]
    command += ["--candidates", str(written / "candidates.csv"), "--data_dir", str(tmp_path), "--size", "16"]
    command += ["--class_names", "vessel,nodule"]  # not in the order of the alphabet
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    dataset = open_dataset("scans/generated", str(tmp_path))
    assert dataset.class_names == ("vessel", "nodule") and dataset.image_shape == (16, 16, 16, 1)
    whole = dataset.split("+".join(dataset.source.split_sizes))
    assert np.bincount(whole.targets()["label"]).tolist() == [24, 12]
    assert Cut.from_values(dataset.preparation["cut"]) == Cut(size=16)
    assert set(dataset.source.split_sizes) == {f"subset{i}" for i in range(5)}
    patients = []
    for name, size in dataset.source.split_sizes.items():
        split = dataset.split(name)
        batch = split.batch(range(size))
        assert batch["image"].dtype == np.uint8 and batch["case"].dtype == batch["scan"].dtype == np.int32
        assert isinstance(split.examples._undecoded[0]["image"], bytes)  # which `targets` reads
        for target, values in split.targets().items():
            np.testing.assert_array_equal(values, batch[target])
        patients.append({dataset.group_names["patient"][i] for i in batch["patient"]})
    assert sum(map(len, patients)) == len(set.union(*patients)) == 6
    from squeeze_jax.data.prepare import cut_scans

    # What `predict` cuts from the same scans are the same images, also of slices that are cropped and become RGB.
    slices = Cut("axial", 20, 1.5, (-600.0, 200.0))
    cut_scans("scans/slices", written, written / "candidates.csv", slices, str(tmp_path))
    config = base_config()
    config.dataset.name, config.run.data_dir = "scans/slices", str(tmp_path)
    config.dataset.channels, config.crop.size, config.crop.resize = 3, 16, 18
    cropped = open_config_dataset(config)
    for opened, settings, cut in ((dataset, base_config(), Cut(size=16)), (cropped, config, slices)):
        network = SimpleNamespace(config=settings, image_shape=opened.image_shape, preparation=opened.preparation)
        assert patches.choose_cut(network, None) == patches.choose_cut(network, cut) == cut
        scans, _ = patches.find_volumes([written])
        candidates, _ = patches.listed_candidates(written / "candidates.csv", scans)
        found = {patch.image.tobytes() for patch in patches.cut_patches(network, cut, scans, candidates)}
        whole = opened.split("+".join(opened.source.split_sizes))
        assert found == {image.tobytes() for image in whole.batch(range(len(whole)))["image"]} and len(found) == 36
        with pytest.raises(InputError, match="was trained on patches .* leave these options out"):
            patches.choose_cut(network, Cut(size=17))

    rows = (written / "candidates.csv").read_text().splitlines(keepends=True)
    fewer = tmp_path / "fewer.csv"
    fewer.write_text("".join(rows[:-1]))
    names = ("vessel", "nodule")
    for candidates, cut, class_names in (
        (written / "candidates.csv", Cut(size=16, window=(-600, 200)), names),
        (fewer, Cut(size=16), names),
        (written / "candidates.csv", Cut(size=16), ()),
    ):
        with pytest.raises(DataError, match="exists, but was not made of this list"):
            cut_scans("scans/generated", written, candidates, cut, str(tmp_path), class_names=class_names)


@pytest.mark.parametrize("direction", [*DIRECTIONS.values(), TILTED], ids=[*DIRECTIONS, "tilted"])
def test_a_grid_lies_evenly_in_the_scan(direction):
    scan = ball(direction)
    points = grid(scan, 3.0)
    inside = scan.indices(points)
    assert ((inside >= -0.5 - 1e-6) & (inside <= np.array(scan.voxels.shape) - 0.5 + 1e-6)).all()
    steps = [np.diff(np.unique(np.round(points[:, axis], 6))) for axis in range(3)]
    assert all(np.allclose(step, 3.0) for step in steps)
    volume = np.prod(np.array(scan.voxels.shape)[::-1] * scan.spacing) * abs(np.linalg.det(scan.direction))
    assert len(points) * 3.0**3 == pytest.approx(volume, rel=0.25)
    assert len(grid(scan, 1000.0)) == 1  # its middle
    for step in (0, -1, float("nan"), float("inf")):
        with pytest.raises(DataError, match="expected a positive number"):
            grid(scan, step)


def test_a_cut_is_read_back_from_texts_and_values():
    for cut in (Cut(), Cut("triplanar", 50, 0.5, (-600.0, 200.0)), Cut("axial", 8, 1e-05, (-1e10, 400))):
        assert Cut.named_in(f"Patches. {cut} 0f3a") == cut
        assert Cut.from_values(json.loads(json.dumps(dataclasses.asdict(cut)))) == cut
    assert Cut.named_in("Patches of scans.") is None
    for values in (None, {}, [], "cube", {**dataclasses.asdict(Cut()), "kind": "ball"}, {"kind": "cube", "size": "a"}):
        with pytest.raises(DataError):
            Cut.from_values(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coordX": "9999"}, r"changed.csv, line 3: .* mm is outside of the scan"),
        ({"seriesuid": "1.2.3"}, r"changed.csv, line 3: no volume of the scan 1.2.3 was found"),
        ({"coordY": "left"}, r"changed.csv, line 3: expected a seriesuid, three coordinates in mm and a class"),
        ({"patient": "somebody"}, r"line 4: the patient somebody is in subset0 and in subset1"),
    ],
)
def test_wrong_rows_are_named(written, tmp_path, change, message):
    with (written / "nodules.csv").open(newline="") as file:
        rows = [{**row, "patient": ""} for row in csv.DictReader(file)]
    rows[1] |= change
    if "patient" in change:  # of two scans, with two rows each
        for row in rows[:4]:
            row |= change
    with (tmp_path / "changed.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(DataError, match=message):
        scans = find_scans(written).scans
        for uid, listed in locate(read_candidates(tmp_path / "changed.csv"), scans).items():
            cut_all(read_scan(scans[uid].files), listed, Cut())


def test_a_missing_slice_is_noticed(written):
    scans = find_scans(written).scans
    files = next(iter(scans.values())).files
    if len(files) > 1:
        with pytest.raises(DataError, match="one is missing"):
            read_scan((*files[:5], *files[6:]))


def test_wrong_lists_are_named(tmp_path):
    (tmp_path / "list.csv").write_text("seriesuid,coordX,coordY\n1,2,3\n")
    with pytest.raises(DataError, match="has no column coordZ, class"):
        read_candidates(tmp_path / "list.csv")
    for wrong in ({"spacing": float("nan")}, {"window": (0, float("inf"))}, {"size": 0}):
        with pytest.raises(DataError, match="expected a positive size and spacing"):
            Cut(**wrong)
    with pytest.raises(DataError, match="expected one of cube, axial, triplanar"):
        Cut("sphere")


def test_a_full_disk_ends_generating_in_one_line(tmp_path, monkeypatch):
    sitk = pytest.importorskip("SimpleITK")

    def full(*_):
        raise RuntimeError("Exception thrown in SimpleITK ImageFileWriter_Execute")

    monkeypatch.setattr(sitk, "WriteImage", full)
    with pytest.raises(FileError, match="subset0/.* cannot be written; make room"):
        synthetic_nodules.write(tmp_path, 1)
