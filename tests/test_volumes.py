"""The files of CT scans: 500 drawn ones, against what was written and other readers, or refused by name."""

import numpy as np
import pytest
from scan_files import (
    UID,
    assert_read,
    assert_value,
    change,
    draw,
    nifti,
    nifti_bytes,
    only_scan,
    refused,
    write_frames,
    write_metaimage,
    write_nifti,
    write_slices,
)

from squeeze_jax.data.scans import AIR
from squeeze_jax.data.volumes import read_scan

pydicom = pytest.importorskip("pydicom", reason="the extra 'ct' has pydicom")
nibabel = pytest.importorskip("nibabel", reason="the extra 'ct' has nibabel")
sitk = pytest.importorskip("SimpleITK", reason="the extra 'ct' has SimpleITK")

# 500 draws: 374 whole ones and 126 damaged ones.
SLICES, FRAMES, NIFTI, METAIMAGE, DAMAGED = range(100), range(80), range(80), range(114), range(3)


def leave_out(index):
    return lambda i, image: i != index


def another_size(i, image):
    if i == 2:
        image.Rows -= 1
        image.PixelData = image.PixelData[: 2 * image.Rows * image.Columns]


DAMAGED_SERIES = [
    (leave_out(2), r"mm apart, .* mm beside an even grid; one is missing before .*\.dcm"),
    (change(1, ImagePositionPatient=None), r"\.dcm has no ImagePositionPatient .* --assume_origin"),
    (change(None, ImageOrientationPatient=None), r"\.dcm has no ImagePositionPatient or ImageOrientationPatient"),
    (change(0, PixelSpacing=None), r"\.dcm has no PixelSpacing"),
    (change(3, PixelSpacing=[2, 2]), r"differ in orientation or pixel spacing"),
    (change(2, ImageOrientationPatient=[0.6, 0.8, 0, -0.8, 0.6, 0]), r"differ in orientation"),
    (change(2, ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), r"not unit vectors at right angles"),
    (change(2, RescaleIntercept=None), r"\.dcm has no RescaleSlope and RescaleIntercept.* --assume_hounsfield"),
    (change(1, RescaleSlope=0), r"RescaleSlope 0"),
    (change(1, RescaleType="Z_EFF"), r"RescaleType 'Z_EFF'"),
    (change(2, PixelData=b"\0\0" * 5), r"\.dcm has voxels that cannot be read; it is cut off"),
    (
        change(1, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0),
        r"\.dcm is not a gray image: PhotometricInterpretation is 'RGB'",
    ),
    (change(1, Rows=60000, Columns=60000), r"60000, 60000"),
    (another_size, r"columns and rows"),
]


@pytest.mark.parametrize("seed", DAMAGED)
@pytest.mark.parametrize(("edit", "expected"), DAMAGED_SERIES)
def test_damaged_series(edit, expected, seed, tmp_path):
    rng = np.random.default_rng(seed)
    write_slices(tmp_path, UID, draw(rng), rng, edit)
    refused(only_scan(tmp_path)[0], expected)


@pytest.mark.parametrize("seed", SLICES)
def test_series_of_slices(seed, tmp_path):
    rng = np.random.default_rng((1, seed))
    volume = draw(rng, tilt=rng.random() < 0.4, rounded=rng.random() < 0.3)
    paths = write_slices(tmp_path, UID, volume, rng)
    if seed % 3 == 1:  # exports fill several folders, and save a slice twice
        (tmp_path / "more").mkdir()
        twin = tmp_path / "more" / "twin.IMA"
        twin.write_bytes(paths[0].read_bytes())
        paths[1] = paths[1].rename(tmp_path / "more" / paths[1].name)
        (tmp_path / "index.html").write_text("<html>404</html>")
        (tmp_path / "999.dcm").write_bytes(paths[2].read_bytes()[:200])
        files, remarks = only_scan(tmp_path)
        assert "index.html" in "".join(remarks) and "999.dcm" in "".join(remarks)
        assert str(twin) in files and "1 slices are stored twice" in read_scan(files).remarks[0]
    files, _ = only_scan(tmp_path)
    assert_read(files, volume)
    # And as pydicom reads one of the files.
    image = pydicom.dcmread(paths[2])
    units = image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept)
    assert_value(read_scan(files), image.ImagePositionPatient, units[0, 0])


def position_missing(image):
    del image.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence


def frame_missing(image):
    image.PerFrameFunctionalGroupsSequence.pop(1)
    image.NumberOfFrames -= 1
    image.PixelData = image.PixelData[: -2 * image.Rows * image.Columns]


def middle_frame_missing(image):
    """Leaves out the frame in the middle, wherever it is stored."""
    frames = image.PerFrameFunctionalGroupsSequence
    positions = np.array([frame.PlanePositionSequence[0].ImagePositionPatient for frame in frames], float)
    middle = int(np.argsort(np.linalg.norm(positions - positions.mean(0), axis=1))[0])
    size = 2 * image.Rows * image.Columns
    frames.pop(middle)
    image.NumberOfFrames -= 1
    image.PixelData = image.PixelData[: size * middle] + image.PixelData[size * (middle + 1) :]


def phases(image):
    frames = image.PerFrameFunctionalGroupsSequence
    frames[1].PlanePositionSequence = frames[0].PlanePositionSequence


def no_rescale(image):
    for group in (*image.SharedFunctionalGroupsSequence, *image.PerFrameFunctionalGroupsSequence):
        if "PixelValueTransformationSequence" in group:
            del group.PixelValueTransformationSequence


DAMAGED_FRAMES = [
    (middle_frame_missing, r"one is missing before .*x\.dcm"),
    (position_missing, r"x\.dcm \(frame 3\) has no ImagePositionPatient|x\.dcm has no ImagePositionPatient"),
    (lambda image: setattr(image, "NumberOfFrames", 3), r"x\.dcm has 3 frames, but says of \d where they lie"),
    (phases, r"lie at the same place and differ|one is missing"),
    (no_rescale, r"--assume_hounsfield"),
    (lambda image: setattr(image, "PixelData", image.PixelData[:-20]), r"x\.dcm has voxels that cannot be read"),
]


@pytest.mark.parametrize("seed", DAMAGED)
@pytest.mark.parametrize(("edit", "expected"), DAMAGED_FRAMES)
def test_damaged_frames(edit, expected, seed, tmp_path):
    rng = np.random.default_rng(seed)
    write_frames(tmp_path / "x.dcm", UID, draw(rng), rng, edit)
    refused(only_scan(tmp_path)[0], expected)


@pytest.mark.parametrize("seed", FRAMES)
def test_frames_of_one_file(seed, tmp_path):
    rng = np.random.default_rng((2, seed))
    volume = draw(rng, tilt=rng.random() < 0.3, rounded=rng.random() < 0.3)
    write_frames(tmp_path / "x.dcm", UID, volume, rng)
    files, _ = only_scan(tmp_path)
    assert_read(files, volume)
    image = pydicom.dcmread(tmp_path / "x.dcm")
    groups = [image.PerFrameFunctionalGroupsSequence[1], *image.SharedFunctionalGroupsSequence]
    rescale = next(
        group.PixelValueTransformationSequence[0] for group in groups if "PixelValueTransformationSequence" in group
    )
    units = image.pixel_array[1] * float(rescale.RescaleSlope) + float(rescale.RescaleIntercept)
    assert_value(read_scan(files), groups[0].PlanePositionSequence[0].ImagePositionPatient, units[0, 0])


def cut_off(data):
    return data[:-9]


def no_code(image):
    image.set_sform(None, code=0)


def forms_differ(image):
    turned = image.affine @ np.diag([-1, 1, 1, 1])
    image.set_qform(turned, code=1)


def keep(what):
    return what


DAMAGED_NIFTI = [
    (keep, cut_off, r"it is cut off or damaged: [\d,]+ bytes, [\d,]+ according to its header"),
    (keep, lambda data: data + b"12345678", r"it is cut off or damaged: more bytes"),
    (no_code, keep, r"neither its sform nor its qform has a code.* --assume_origin"),
    (forms_differ, keep, r"its sform \(code 1\) and its qform \(code 1\) place a corner [\d.e+]+ mm apart"),
    (lambda image: image.header.set_xyzt_units("micron"), keep, r"its unit of length is micron"),
    (lambda image: image.header.set_data_shape((9, 9, 9, 4)), keep, r"its size is 9 x 9 x 9 x 4"),
    (lambda image: image.header.set_data_shape((30000, 30000, 3)), keep, r"at most 536,870,912 voxels"),
    (keep, lambda data: b"\0" * 352, r"it has no intact NIfTI header"),
]


@pytest.mark.parametrize("seed", DAMAGED)
@pytest.mark.parametrize(("edit", "damage", "expected"), DAMAGED_NIFTI)
def test_damaged_nifti(edit, damage, expected, seed, tmp_path):
    rng = np.random.default_rng(seed)
    image = nifti(draw(rng), rng)
    edit(image)
    path = tmp_path / f"{UID}{('.nii', '.nii.gz', '.NII')[seed]}"
    write_nifti(path, damage(nifti_bytes(image)))
    refused((str(path),), expected)


@pytest.mark.parametrize("seed", NIFTI)
def test_nifti(seed, tmp_path):
    rng = np.random.default_rng((3, seed))
    volume = draw(rng, tilt=rng.random() < 0.3)
    path = tmp_path / f"{UID}{rng.choice(['.nii', '.nii.gz', '.NII'])}"
    image = nifti(volume, rng)
    if seed % 3 == 1 and image.get_data_dtype().kind == "f":
        image.dataobj[0, 0, :2] = np.nan, np.inf
        volume.units[:2, 0, 0] = AIR
    write_nifti(path, nifti_bytes(image))
    files, _ = only_scan(tmp_path)
    assert_read(files, volume)
    other = nibabel.load(path)
    corner = np.array(other.shape) - 1
    point = (other.affine @ [*corner, 1])[:3] * [-1, -1, 1]
    assert_value(read_scan(files), point, other.get_fdata()[tuple(corner)])


def drop(*keys):
    def edit(header, data):
        for key in keys:
            header.pop(key)
        return data

    return edit


def put(**values):
    def edit(header, data):
        header.update(values)
        return data

    return edit


def damage_middle(header, data):
    """Damages compressed data so that what comes out has the right length, if it was compressed; else cuts it off."""
    if header["CompressedData"] == "False":
        return data[:-1]
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]  # the checksum, which says the same as a damaged voxel


DAMAGED_METAIMAGE = [
    (damage_middle, r"damaged"),
    (lambda header, data: data[: len(data) // 2], r"bytes, [\d,]+ by the header|damaged"),
    (drop("Offset"), r"its header has no Offset.* --assume_origin"),
    (drop("ElementSpacing"), r"ElementSpacing is 'missing'"),
    (put(ElementDataFile="/etc/passwd"), r"ElementDataFile is '/etc/passwd'; expected LOCAL or the name of a file"),
    (put(ElementDataFile="../x.raw"), r"ElementDataFile is '../x.raw'"),
    (put(ElementDataFile="%s%s%n"), r"ElementDataFile is '%s%s%n'"),
    (put(ElementDataFile="."), r"ElementDataFile is '.'"),
    (put(DimSize="20000 20000 20"), r"its size is 20000 x 20000 x 20"),
    (put(DimSize="4 4 4"), r"bytes, [\d,]+ by the header"),
    (put(DimSize="1e308 1 1"), r"DimSize is '1e308 1 1'"),
    (put(ElementNumberOfChannels="3"), r"ElementNumberOfChannels is '3'; only 1 is read"),
    (put(ElementSpacing="-1 1 1"), r"expected positive spacings"),
    (put(TransformMatrix="1 0 0 0 1 0 1 0 0"), r"its axes are not independent"),
]


@pytest.mark.parametrize("seed", DAMAGED)
@pytest.mark.parametrize(("edit", "expected"), DAMAGED_METAIMAGE)
def test_damaged_metaimage(edit, expected, seed, tmp_path):
    rng = np.random.default_rng(seed)
    path = tmp_path / f"{UID}{('.mha', '.mhd', '.MHD')[seed]}"
    write_metaimage(path, draw(rng), rng, edit)
    refused((str(path),), expected)


@pytest.mark.parametrize("seed", METAIMAGE)
def test_metaimage(seed, tmp_path):
    rng = np.random.default_rng((4, seed))
    volume = draw(rng)
    path = tmp_path / f"{UID}{rng.choice(['.mha', '.mhd', '.MHD'])}"
    write_metaimage(path, volume, rng)
    files, remarks = only_scan(tmp_path)
    assert not remarks
    assert_read(files, volume)
    image = sitk.ReadImage(str(path), imageIO="MetaImageIO")
    corner = [size - 1 for size in image.GetSize()]
    assert_value(read_scan(files), image.TransformIndexToPhysicalPoint(corner), image[corner])
