"""Folders of CT scans: what lies beside them, what only a person knows, compressed, real and damaged files."""

import gzip
import os
import pathlib
import warnings

import numpy as np
import pytest
from scan_files import (
    UID,
    Volume,
    assert_read,
    change,
    dataset,
    draw,
    nifti,
    nifti_bytes,
    only_scan,
    refused,
    stored,
    write_frames,
    write_metaimage,
    write_nifti,
    write_slices,
)

from squeeze_jax.data.identity import fingerprint
from squeeze_jax.data.scans import AIR, Assume, Cut
from squeeze_jax.data.volumes import Stored, files_of, find_scans, read_scan
from squeeze_jax.errors import DataError

pydicom = pytest.importorskip("pydicom", reason="the extra 'ct' has pydicom")
nibabel = pytest.importorskip("nibabel", reason="the extra 'ct' has nibabel")
sitk = pytest.importorskip("SimpleITK", reason="the extra 'ct' has SimpleITK")


def test_a_person_says_what_files_do_not(tmp_path):
    rng = np.random.default_rng(5)
    volume = draw(rng)
    image = nifti(volume, rng)
    spacing = image.header.get_zooms()[:3]
    image.set_sform(None, code=0)
    write_nifti(tmp_path / "1.nii", nifti_bytes(image))
    write_metaimage(
        tmp_path / "2.mha",
        volume,
        rng,
        lambda header, data: [header.pop(key) for key in ("Offset", "TransformMatrix")] and data,
    )
    straight = np.diag(spacing)
    first = Volume(volume.units, np.outer(np.arange(len(volume.units)), straight[2]), straight[:, :2], volume.rescale)
    for name in ("1.nii", "2.mha"):
        assert_read((str(tmp_path / name),), first, Assume(origin=True))
    without = change(None, ImagePositionPatient=None, ImageOrientationPatient=None)
    by_number = Volume(volume.units, np.outer(np.arange(len(volume.units)), [0, 0, 2]), straight[:, :2], volume.rescale)
    paths = write_slices(tmp_path, UID, by_number, rng, without)
    assert_read(tuple(map(str, paths)), by_number, Assume(origin=True))
    paths[2].unlink()
    with pytest.raises(DataError, match="one is missing"):
        read_scan(tuple(map(str, paths[:2] + paths[3:])), Assume(origin=True))
    volume.rescale = [(1.0, 0.0)] * len(volume.units)
    volume.units = np.round(volume.units)
    paths = write_slices(
        tmp_path / "signed",
        UID,
        volume,
        rng,
        lambda i, image: (
            [delattr(image, name) for name in ("RescaleSlope", "RescaleIntercept")]
            and setattr(image, "PixelRepresentation", 1)
        ),
    )
    assert_read(tuple(map(str, paths)), volume, Assume(hounsfield=True))


def test_frames_that_do_not_say_where_they_lie_are_taken_in_order(tmp_path):
    rng = np.random.default_rng(13)
    units = rng.integers(-1000, 1000, (6, 5, 4)).astype(float)
    volume = Volume(units, np.outer(np.arange(6), [0, 0, 2]), np.eye(3)[:, :2] * 0.7, [(1, -1024)] * 6)

    def one_position(image):
        image.ImagePositionPatient, image.ImageOrientationPatient = [5, 5, 5], [1, 0, 0, 0, 1, 0]
        image.PixelSpacing, image.SliceThickness, image.InstanceNumber = [0.7, 0.7], 2, 1
        image.RescaleSlope, image.RescaleIntercept = 1, -1024
        image.PixelData = np.stack([stored(volume, i) for i in range(6)]).tobytes()
        del image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence

    write_frames(tmp_path / "x.dcm", UID, volume, rng, one_position)
    refused((str(tmp_path / "x.dcm"),), r"has no ImagePositionPatient .* --assume_origin")
    assert_read((str(tmp_path / "x.dcm"),), volume, Assume(origin=True))


def test_odd_files_stop_nothing_and_are_named(tmp_path):
    rng = np.random.default_rng(6)
    volume = draw(rng)
    write_slices(tmp_path, UID, volume, rng)
    (tmp_path / "VERSION").touch()
    (tmp_path / "404.dcm").write_text("<html>")
    (tmp_path / "blob").write_bytes(rng.bytes(5000))
    (tmp_path / "old.hdr").write_bytes(b"\0" * 348)
    os.mkfifo(tmp_path / "pipe.dcm")
    for name, elements in {
        "dose": {"Modality": "RTDOSE"},
        "scout": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "Rows": 3},
        "report": {"Modality": "SR"},
        "elsewhere": {"SeriesInstanceUID": "../1.2"},
        "bomb": {"PixelData": b"\0" * 10**6},
    }.items():
        other = dataset(UID, volume)
        if name == "bomb":
            other.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        for element, value in elements.items():
            with warnings.catch_warnings(action="ignore"):  # of pydicom, about the UID
                setattr(other, element, value)
        other.save_as(tmp_path / name, enforce_file_format=True)
    files, remarks = only_scan(tmp_path)
    assert_read(files, volume)
    assert remarks == [
        "1 file was left out (DICOM, but its series instance UID '../1.2' is not one): elsewhere",
        "1 file was left out (a localizer): scout",
        "1 file was left out (convert it to .nii.gz or .mha): old.hdr",
        "1 file was left out (empty): VERSION",
        "1 file was left out (is deflated, to a size that it does not say; store it otherwise): bomb",
        "2 files were left out (not DICOM, or no intact file of it): 404.dcm, blob",
        "1 file was left out (not a regular file): pipe.dcm",
        "1 file was left out (of modality RTDOSE): dose",
        "1 file was left out (of modality SR): report",
    ]


def test_a_name_is_of_one_volume(tmp_path):
    rng = np.random.default_rng(7)
    volume = draw(rng)
    write_nifti(tmp_path / f"{UID}.nii.gz", nifti_bytes(nifti(volume, rng)))
    for name in (f"{UID}.nii", f"{UID}.mha", f"{UID}.MHD"):
        (tmp_path / name).touch()
        with pytest.raises(DataError, match=f"the scan {UID} twice: .*; remove one"):
            find_scans(tmp_path)
        (tmp_path / name).unlink()
    # ITK reads x.nii where x.nii.gz is asked for.
    (tmp_path / f"{UID}.nii").write_bytes(b"")
    assert_read((str(tmp_path / f"{UID}.nii.gz"),), volume)
    (tmp_path / f"{UID}.nii").unlink()
    write_slices(tmp_path / "subset0", UID, volume, rng)
    with pytest.raises(DataError, match="twice"):
        find_scans(tmp_path)
    (tmp_path / f"{UID}.nii.gz").unlink()
    (tmp_path / "subset1").mkdir()
    (tmp_path / "subset0" / "001.dcm").rename(tmp_path / "subset1" / "001.dcm")
    with pytest.raises(DataError, match=f"files of the series {UID} in subset0 and in subset1"):
        find_scans(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        find_scans(tmp_path / "nothing")


def test_two_slices_at_one_place_are_not_mixed(tmp_path):
    rng = np.random.default_rng(8)
    volume = draw(rng)
    paths = write_slices(tmp_path, UID, volume, rng)
    volume.units[2] += 5
    write_slices(tmp_path / "late", UID, volume, rng, lambda i, image: i == 2)
    refused(only_scan(tmp_path)[0], "lie at the same place and differ; two series, such as two phases, are mixed")
    assert len(paths) == len(volume.units)


@pytest.mark.parametrize("compressor", ["RLE", "JPEG2000", "JPEG"])
def test_compressed_series(compressor, tmp_path):
    """Lossless compression by pydicom or ITK, in MONOCHROME1, which ITK would invert."""
    rng = np.random.default_rng(9)
    volume = draw(rng)
    volume.units = np.repeat(np.repeat(volume.units, 8, 1), 8, 2)  # some coders want more than a few pixels
    for path in write_slices(tmp_path, UID, volume, rng, change(None, PhotometricInterpretation="MONOCHROME1")):
        image = pydicom.dcmread(path)
        if compressor == "RLE":
            image.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        else:
            writer = sitk.ImageFileWriter()
            writer.UseCompressionOn()
            writer.SetCompressor(compressor)
            writer.SetFileName(str(tmp_path / "compressed"))
            writer.SetImageIO("GDCMImageIO")
            writer.Execute(sitk.GetImageFromArray(image.pixel_array[None]))
            other = pydicom.dcmread(tmp_path / "compressed")
            image.file_meta.TransferSyntaxUID = other.file_meta.TransferSyntaxUID
            for name in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"):
                image[name] = other[name]
            (tmp_path / "compressed").unlink()
        assert image.file_meta.TransferSyntaxUID.is_compressed
        image.save_as(path)
    files = only_scan(tmp_path)[0]
    assert_read(files, volume)
    # A decoder would allocate what the length of a parcel says: what is there is enough.
    data = pathlib.Path(files[2]).read_bytes()
    at = data.index(b"\xfe\xff\x00\xe0", data.index(b"\xfe\xff\x00\xe0") + 4) + 4
    pathlib.Path(files[2]).write_bytes(data[:at] + b"\xf0\xff\xff\x7f" + data[at + 4 :])
    assert_read(files, volume)


def test_real_files_are_what_pydicom_and_nibabel_read(tmp_path):
    """The files that come with the two packages: a scanner's CT, JPEG 2000, and volumes of which one has NaN."""
    tested = pathlib.Path(pydicom.__file__).parent / "data" / "test_files"
    for name in ("CT_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm"):
        image = pydicom.dcmread(tested / name)
        units = image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept)
        scan = read_scan((str(tested / name),))
        np.testing.assert_allclose(scan.voxels[0], units, atol=0.5)
        np.testing.assert_allclose(scan.origin, np.array(image.ImagePositionPatient, float))
    # One image in many transfer syntaxes, as if it were CT.
    values = pydicom.dcmread(tested / "MR_small.dcm").pixel_array
    for kind in ("RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded"):
        image = pydicom.dcmread(tested / f"MR_small_{kind}.dcm")
        image.Modality = "CT"
        image.save_as(tmp_path / f"{kind}.dcm")
        scan = read_scan((str(tmp_path / f"{kind}.dcm"),), Assume(hounsfield=True))
        np.testing.assert_array_equal(scan.voxels[0], values)
    tested = pathlib.Path(nibabel.__file__).parent / "tests" / "data"
    for name in ("anatomical.nii", "reoriented_anat_moved.nii", "resampled_anat_moved.nii", "standard.nii.gz"):
        image = nibabel.load(tested / name)
        scan = read_scan((str(tested / name),))
        np.testing.assert_allclose(scan.voxels, np.nan_to_num(image.get_fdata(), nan=AIR).T, atol=0.5)
        corner = np.array(image.shape) - 1
        point = (image.affine @ [*corner, 1])[:3] * [-1, -1, 1]
        np.testing.assert_allclose(scan.indices(point), corner[::-1], atol=1e-3)
    with pytest.raises(DataError, match="its size is 32 x 20 x 12 x 2"):
        read_scan((str(tested / "example_nifti2.nii.gz"),))


def test_colors_are_not_a_scan(tmp_path):
    color = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    path = tmp_path / "1.nii"
    path.write_bytes(nibabel.Nifti1Image(np.zeros((3, 3, 3), color), np.eye(4)).to_bytes())
    refused((str(path),), "expected one number each, and no colors")


@pytest.mark.parametrize("at", [0.4, 0.7, "checksum"])
def test_a_damaged_byte_of_a_compressed_file_is_noticed(at, tmp_path):
    rng = np.random.default_rng(10)
    data = bytearray(gzip.compress(nifti_bytes(nifti(draw(rng), rng))))
    data[-8 if at == "checksum" else int(at * len(data))] ^= 4
    path = tmp_path / "1.nii.gz"
    path.write_bytes(data)
    refused((str(path),), "1.nii.gz: it is cut off or damaged|1.nii.gz: it has no intact NIfTI header")


def test_prepare_says_what_it_leaves_out_and_remembers_what_it_was_told(tmp_path, capsys, monkeypatch):
    prepare = pytest.importorskip("squeeze_jax.data.prepare", reason="the extra 'prepare' has TensorFlow")
    rng = np.random.default_rng(12)
    volume = draw(rng)
    scans, data = tmp_path / "scans", tmp_path / "data"
    paths = write_slices(scans, UID, volume, rng, lambda i, image: delattr(image, "RescaleSlope"))
    (scans / "twin.dcm").write_bytes(paths[0].read_bytes())
    (scans / "README").write_text("text")
    point = ",".join(map(str, volume.positions[1]))
    (tmp_path / "list.csv").write_text(f"seriesuid,coordX,coordY,coordZ,class\n{UID},{point},1\n{UID},{point},0\n")

    def cut(assume):
        return prepare.cut_scans("scans/x", scans, tmp_path / "list.csv", Cut("axial", 8), str(data), assume=assume)

    with pytest.raises(DataError, match=r"list.csv, line 2: .*\.dcm has no RescaleSlope.* --assume_hounsfield"):
        cut(Assume())
    assert not (data / "scans" / "x").exists()  # an empty folder would be taken for one of images

    def full(*_, **__):
        raise RuntimeError("INTERNAL: write() failed:\n No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("squeeze_jax.data.builders.scans.Scans.download_and_prepare", full)
        with pytest.raises(
            DataError, match="scans/x cannot be prepared in .*: write.. failed: No space left on device"
        ):
            cut(Assume(hounsfield=True))
    assert cut(Assume(hounsfield=True)).is_dir()
    printed = capsys.readouterr().err
    assert "1 file was left out (not DICOM, or no intact file of it): README" in printed
    assert "2 candidates (1 of class '0', 1 of class '1') in 2 cases, 1 scans of 1 patients." in printed
    assert "1 slices are stored twice, and read once" in printed
    assert cut(Assume(hounsfield=True)).is_dir()
    with pytest.raises(DataError, match="exists, but was not made of this list and these scans"):
        cut(Assume(hounsfield=True, origin=True))
    whole = paths[0].read_bytes()
    paths[0].write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # other voxels in a file of the same size
    with pytest.raises(DataError, match="exists, but was not made of this list and these scans"):
        cut(Assume(hounsfield=True))
    paths[0].write_bytes(whole)
    (scans / "twin.dcm").unlink()
    with pytest.raises(DataError, match="exists, but was not made of this list and these scans"):
        cut(Assume(hounsfield=True))


def test_the_voxels_of_a_header_belong_to_its_files(tmp_path):
    (tmp_path / "s.mhd").write_text("NDims = 3\nElementDataFile = s.raw\n")
    stored = Stored((str(tmp_path / "s.mhd"),), "train")
    assert [path.name for path in files_of(stored)] == ["s.mhd"]
    (tmp_path / "s.raw").write_bytes(b"abc")
    before = fingerprint(files_of(stored))
    (tmp_path / "s.raw").write_bytes(b"abd")
    assert [path.name for path in files_of(stored)] == ["s.mhd", "s.raw"] and fingerprint(files_of(stored)) != before
