"""Images from anybody: read as Pillow reads them, or refused with one of two errors, whatever they are."""

import contextlib
import dataclasses
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from squeeze_jax import config as config_lib
from squeeze_jax import experiment, network
from squeeze_jax.data import decoding
from squeeze_jax.data.decoding import Crop, Undecodable, Unsuitable
from squeeze_jax.errors import InputError
from squeeze_jax.training.fine_tuning import with_weights

CROP = Crop((224, 224), "random", 256, True, 0.08)
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)


def encode(form, mode="RGB", size=None, **options):
    stored = io.BytesIO()
    image = Image.fromarray(PIXELS).convert(mode)
    (image if size is None else image.resize(size)).save(stored, form, **options)
    return stored.getvalue()


def png_of(width, height):
    """A PNG of a few bytes whose header says this size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")


def broken_png():
    """A PNG of which the type of the second chunk of data is overwritten, for which Pillow raises SyntaxError."""
    stored = encode("PNG", size=(200, 200))
    start = stored.index(b"IDAT")
    length = struct.unpack(">I", stored[start - 4 : start])[0]
    pixels = stored[start + 4 : start + 4 + length]
    chunks = b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        for kind, part in ((b"IDAT", pixels[: length // 2]), (b"\xff\xff\xff\xff", pixels[length // 2 :]))
    )
    return stored[: start - 4] + chunks + stored[start + 8 + length :]


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "JPEG"])
def test_every_format_is_read_as_pillow_reads_it(form):
    stored = encode(form, **({"lossless": True} if form == "WEBP" else {}))
    expected = np.asarray(Image.open(io.BytesIO(stored)).convert("RGB"))
    assert np.array_equal(decoding.decode(stored, 3), expected)


def test_no_other_reader_of_pillow_is_started(monkeypatch):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n%%EOF\n"
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    for stored in (eps, encode("ICO"), encode("JPEG2000"), b"<html></html>", b""):
        with pytest.raises(
            Undecodable, match="it is (not an image of a format that is read; expected JPEG, PNG, |empty)"
        ):
            decoding.decode(stored, 3)


@pytest.mark.parametrize(
    ("stored", "error", "message"),
    [
        (png_of(50_000, 50_000), Unsuitable, "it has more than 100,000,000 pixels"),
        (png_of(13_000, 13_000), Unsuitable, "it has 13,000 x 13,000 pixels; expected at most 100,000,000 pixels"),
        (png_of(9_000, 9_000), Undecodable, "it is damaged"),
        (broken_png(), Undecodable, "it is damaged: broken PNG file"),
        (encode("JPEG")[:-300], Undecodable, "it is damaged: image file is truncated"),
        (encode("PNG")[:-300], Undecodable, "it is damaged"),
        (encode("TIFF", "F"), Unsuitable, "more than 8 bits"),
    ],
    ids=["bomb", "large", "empty", "chunk", "jpeg", "png", "float"],
)
def test_what_cannot_be_read_is_one_of_two_errors(stored, error, message):
    for read in (lambda: decoding.decode(stored, 3), lambda: CROP.for_evaluation(stored, 3)):
        with pytest.raises(error, match=message):
            read()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM"])
def test_damaged_images_raise_nothing_else(form):
    stored = encode(form)
    rng = np.random.default_rng(1)
    for _ in range(100):
        changed = bytearray(stored)
        for place in rng.integers(0, min(len(stored), 600), rng.integers(1, 4)):
            changed[place] = rng.integers(256)
        with contextlib.suppress(Undecodable, Unsuitable):
            assert CROP.for_evaluation(bytes(changed), 3)[0].shape == (224, 224, 3)


def test_only_the_crop_of_a_thin_image_is_resized(monkeypatch):
    stored = encode("PNG", size=(900, 3))
    whole, box = CROP.for_evaluation(stored, 3)  # 76,800 x 256 pixels
    monkeypatch.setattr(decoding, "LARGEST_IMAGE", 76_800 * 256 - 1)
    part, same_box = CROP.for_evaluation(stored, 3)
    assert box == same_box and np.abs(part.astype(int) - whole).max() <= 1
    monkeypatch.undo()
    resized = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda *a, **o: resized.append(resize(*a, **o)) or resized[-1])
    longest, _ = CROP.for_evaluation(encode("PNG", size=(60_000, 1)), 3)
    assert longest.shape == (224, 224, 3) and resized[-1].size == (224, 224)


def npy(header, data=bytes(192)):
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def test_what_is_no_image_file_is_an_input_error(tmp_path):
    config = config_lib.base_config()
    np.save(tmp_path / "right.npy", PIXELS)
    assert np.array_equal(network.read_image(tmp_path / "right.npy", config, PIXELS.shape), PIXELS)
    form = "{'descr': '|u1', 'fortran_order': False, 'shape': %s, }\n"
    for name, stored in {
        "token": npy((form % "(8, 8, 3)").replace("}", " ")),
        "long": npy(form % (2**63,)),
        "bool": npy(form % "(True, 8, 3)"),
        "deep": npy(form % ("-" * 9000 + "1")),
        "objects": npy((form % "(8, 8, 3)").replace("|u1", "|O")),
        "cut": npy(form % "(8, 8, 3)", b""),
        "zip": b"PK\x03\x04",
    }.items():
        (tmp_path / f"{name}.npy").write_bytes(stored)
    for name in ("pipe.png", "pipe.npy"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "absent")
    paths = [path for path in tmp_path.iterdir() if path.name != "right.npy"]
    assert len(paths) == 11
    for path in [*paths, "/dev/zero"]:
        with pytest.raises(InputError, match="cannot be read: "):
            network.read_image(path, config, (8, 8, 3))


def test_a_file_of_any_size_is_not_read_whole(tmp_path):
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(decoding.LARGEST_FILE + 1)
    with pytest.raises(Unsuitable, match="has 1,073,741,825 bytes; expected at most 1,073,741,824"):
        decoding.read_file(tmp_path / "sparse.png")


def with_orientation(pixels, turn, kind):
    stored = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(pixels).save(stored, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    return stored.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_images_are_turned_as_their_exif_data_say(kind, turn):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    stored = with_orientation(pixels, turn, kind)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(stored))))
    assert expected.shape[:2] == ((80, 48) if turn > 4 else (48, 80))
    np.testing.assert_array_equal(decoding.decode(stored, 3), expected)
    assert decoding.oriented_size(decoding.open_image(stored, 3)) == expected.shape[1::-1]
    upright = io.BytesIO()
    Image.fromarray(expected).save(upright, "PNG")
    whole = decoding.Crop((24, 24), "random_resized", 32, True, 0.999)
    for crop in (whole, dataclasses.replace(whole, size=(40, 40), resize=(48, 60), keep_aspect=False)):
        found, box = crop.for_evaluation(stored, 3)
        wanted, wanted_box = crop.for_evaluation(upright.getvalue(), 3)
        np.testing.assert_array_equal(found, wanted)
        assert box == wanted_box
        found, box = crop.for_training(stored, 3, np.random.default_rng(4))
        wanted, wanted_box = crop.for_training(upright.getvalue(), 3, np.random.default_rng(4))
        assert box == wanted_box and np.abs(found.astype(int) - wanted).mean() < 12  # of two decoders of JPEG
    if kind != "TIFF":  # which Pillow turns itself
        np.testing.assert_array_equal(
            decoding.decode(stored, 3, exif=False), np.asarray(Image.open(io.BytesIO(stored)))
        )


def test_damaged_exif_data_turn_nothing():
    pixels = np.zeros((4, 6, 3), np.uint8)
    stored = (
        with_orientation(pixels, 6, "JPEG").replace(b"Exif\0\0II", b"Exif\0\0??").replace(b"Exif\0\0MM", b"Exif\0\0??")
    )
    assert decoding.decode(stored, 3).shape == (4, 6, 3)
    assert decoding.decode(with_orientation(pixels, 99, "JPEG"), 3).shape == (4, 6, 3)


def test_folders_and_prediction_are_turned_unless_the_config_says_otherwise(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "pets" / name / f"{i}.png").write_bytes(with_orientation(np.roll(pixels, i, 0), 6, "PNG"))
    config = config_lib.base_config()
    config.dataset.name = str(tmp_path / "pets")
    path = tmp_path / "pets" / "cat" / "0.png"
    for exif, shape in ((True, (6, 4, 3)), (False, (4, 6, 3))):
        config.dataset.exif_orientation = exif
        dataset = experiment.open_config_dataset(config)
        assert dataset.image_shape == dataset.split("train").read(0)["image"].shape == shape
        expected = np.rot90(pixels, -1) if exif else pixels
        np.testing.assert_array_equal(network.read_image(path, config, shape), expected)
    values = config.to_dict()
    del values["dataset"]["exif_orientation"]
    old = config_lib.from_values(values, tmp_path, config_lib.VERSION)
    assert old.dataset.exif_orientation is False, "of a run before there was this key"
    config.dataset.exif_orientation = None
    config_lib.check_same_experiment(old, config, tmp_path)
    config_lib.save(tmp_path, old, {"class_names": ["cat", "dog"], "image_shape": [4, 6, 3]})
    assert not with_weights(config, tmp_path).dataset.exif_orientation and with_weights(config).dataset.exif_orientation
    again = config_lib.from_values(config.to_dict(), tmp_path, config_lib.VERSION)
    assert again.dataset.exif_orientation is None, "of weights that were published without any of ours"
