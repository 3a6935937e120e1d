"""Photographs of any size: decoding and crops against Pillow, folders and TFDS datasets, workers, unreadable files."""

import io
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from conftest import ROOT, SHARED, make_once
from PIL import Image

from squeeze_jax.data import pipeline
from squeeze_jax.data.decoding import Crop, _decode_at_least
from squeeze_jax.data.prepare import convert
from squeeze_jax.data.sources import open_dataset
from squeeze_jax.errors import DataError

RANDOM_RESIZED = Crop(size=(48, 48), train="random_resized", resize=56, keep_aspect=True, smallest_area=0.08)
CAFFE = Crop(size=(48, 48), train="random", resize=56, keep_aspect=False, smallest_area=0.08)


def photograph(seed, width, height, mode="RGB"):
    """A smooth picture, as JPEG."""
    rng = np.random.default_rng(seed)
    pixels = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    stored = io.BytesIO()
    pixels.convert(mode).save(stored, "JPEG", quality=92)
    return stored.getvalue()


@pytest.fixture(scope="module")
def folder(shared):
    """24 photographs of three classes in split/class/image, of different sizes; one is gray, one CMYK."""

    def make(root):
        partial = root.with_suffix(".partial")
        for i in range(24):
            split, name = ("train", "val")[i % 4 == 3], ("ant", "bee", "cow")[i % 3]
            path = partial / split / name / f"{i:02}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            mode = {5: "L", 6: "CMYK"}.get(i, "RGB")
            path.write_bytes(photograph(i, 60 + 37 * (i % 5), 60 + 23 * (i % 7), mode))
        partial.rename(root)

    return make_once(shared, "photographs", make)


def write_tfrecord(folder, root):
    """A folder's photographs as a TFDS dataset in tfrecord."""
    import tensorflow_datasets as tfds

    class Photographs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=sorted(path.name for path in (folder / "train").iterdir())),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
            )

        def _split_generators(self, dl_manager):
            names = {"val": "validation"}
            return {names.get(path.name, path.name): self._generate_examples(path) for path in folder.iterdir()}

        def _generate_examples(self, split):
            for path in sorted(split.glob("*/*.JPEG")):
                yield path.name, {"image": path, "label": path.parent.name}

    Photographs(data_dir=str(root), file_format="tfrecord").download_and_prepare()


@pytest.fixture(scope="module")
def tfrecord(shared, folder):
    return make_once(shared, "tfrecord", lambda root: write_tfrecord(folder, root)) / "photographs" / "1.0.0"


def prepare(*arguments):
    command = [sys.executable, "-m", "squeeze_jax.data.prepare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


@pytest.fixture(scope="module")
def array_record(shared, tfrecord):
    """And converted to array_record by our command."""

    def make(root):
        done = prepare("photographs", "--from", tfrecord, "--data_dir", root)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"{root}/photographs/1.0.0"

    return make_once(shared, "array_record", make)


def sample(count):
    paths = sorted((SHARED / "imagenet_sample").glob("*.JPEG"))[:count]
    if not paths:
        pytest.skip(f"no photographs in {SHARED}/imagenet_sample; set SQUEEZE_JAX_SHARED")
    return [path.read_bytes() for path in paths]


def pillow(stored):
    return Image.open(io.BytesIO(stored)).convert("RGB")


@pytest.mark.parametrize("keep_aspect", [True, False])
def test_evaluation_crops_are_pillows(keep_aspect):
    crop = Crop((224, 224), "random", 256, keep_aspect, 0.08)
    for stored in [photograph(0, 500, 375), photograph(1, 300, 401), *sample(20)]:
        image = pillow(stored)
        short = min(image.size)
        size = (int(256 * image.width / short), int(256 * image.height / short)) if keep_aspect else (256, 256)
        left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
        expected = image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224))
        np.testing.assert_array_equal(crop.for_evaluation(stored, 3)[0], np.asarray(expected))


def test_random_resized_crops_agree_with_pillow():
    """Not to the bit, for they take a faster decoder and interpolation: 1.4 gray levels a pixel on average."""
    crop = Crop((224, 224), "random_resized", 256, True, 0.08)
    errors, offsets = [], []
    for seed, stored in enumerate(sample(40)):
        left, top, width, height = crop.random_box(*pillow(stored).size, np.random.default_rng(seed))
        expected = pillow(stored).crop((left, top, left + width, top + height))
        expected = np.asarray(expected.resize((224, 224), Image.Resampling.BILINEAR), np.float32)
        ours = crop.for_training(stored, 3, np.random.default_rng(seed))[0]
        errors.append(abs(ours - expected).mean())
        offsets.append((ours - expected).mean())
    assert np.mean(errors) < 2 and abs(np.mean(offsets)) < 0.5


def test_a_large_photograph_is_decoded_at_reduced_scale():
    """And still gives the crop that Pillow cuts out of the whole."""
    stored = photograph(3, 2000, 1500)
    crop = Crop((48, 48), "random_resized", 56, True, 0.5)
    box = crop.random_box(2000, 1500, np.random.default_rng(5))
    expected = pillow(stored).crop((box[0], box[1], box[0] + box[2], box[1] + box[3])).resize((48, 48))
    ours = crop.for_training(stored, 3, np.random.default_rng(5))[0]
    assert abs(ours - np.asarray(expected, np.float32)).mean() < 2
    smallest = 2000 * 48 // box[2] + 1, 1500 * 48 // box[3] + 1
    reduced = _decode_at_least(Image.open(io.BytesIO(stored)), stored, 3, smallest).shape
    assert smallest[0] <= reduced[1] <= 1000 and smallest[1] <= reduced[0] <= 750


def test_random_boxes_lie_inside_and_cover_the_area_asked_for():
    rng = np.random.default_rng(0)
    crop = Crop((224, 224), "random_resized", 256, True, 0.25)
    shares = []
    for _ in range(2000):
        left, top, width, height = crop.random_box(500, 375, rng)
        assert 0 <= left <= 500 - width and 0 <= top <= 375 - height
        shares.append(width * height / (500 * 375))
    assert 0.24 < min(shares) < 0.27 and max(shares) > 0.95 and 0.5 < np.mean(shares) < 0.65
    assert crop.random_box(1000, 10, rng)[3] == 10  # no legal shape fits: the largest central part


def coordinates(width, height):
    """A picture whose red is the column and whose green is the row of each pixel."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    stored = io.BytesIO()
    Image.fromarray(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8)).save(stored, "PNG")
    return stored.getvalue()


@pytest.mark.parametrize("train", ["random_resized", "random", "evaluation"])
@pytest.mark.parametrize("keep_aspect", [True, False])
def test_a_crop_may_be_a_rectangle_and_tells_its_box(train, keep_aspect):
    """So that boxes and label maps can follow it."""
    crop = Crop((40, 80), "random" if train == "evaluation" else train, 120, keep_aspect, 0.3)
    for seed in range(20):
        stored, rng = coordinates(250, 200), np.random.default_rng(seed)
        image, box = crop.for_evaluation(stored, 3) if train == "evaluation" else crop.for_training(stored, 3, rng)
        assert image.shape == (40, 80, 3)
        assert 0 <= box.left <= 250 - box.width + 1e-6 and 0 <= box.top <= 200 - box.height + 1e-6
        # The middle of each pixel, in the stored image.
        columns = box.left + (np.arange(80) + 0.5) * box.width / 80 - 0.5
        rows = box.top + (np.arange(40) + 0.5) * box.height / 40 - 0.5
        inner = (slice(2, -2), slice(2, -2))
        assert abs(image[..., 0] - columns[None])[inner].max() < 1.5
        assert abs(image[..., 1] - rows[:, None])[inner].max() < 1.5


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "P"])
def test_every_kind_of_image_becomes_color(mode):
    stored = io.BytesIO()
    Image.fromarray(np.full((60, 70, 3), 204, np.uint8)).convert(mode).save(stored, "TIFF")
    image = RANDOM_RESIZED.for_training(stored.getvalue(), 3, np.random.default_rng(0))[0]
    assert image.shape == (48, 48, 3) and abs(image.astype(int) - 204).max() < 8


@pytest.mark.parametrize(("mode", "channels", "message"), [("RGB", 1, "is in color"), ("I;16", 3, "more than 8 bits")])
def test_images_that_do_not_fit_are_refused(mode, channels, message):
    stored = io.BytesIO()
    Image.new(mode, (60, 60)).save(stored, "TIFF")
    with pytest.raises(ValueError, match=message):
        RANDOM_RESIZED.for_evaluation(stored.getvalue(), channels)


def test_a_folder_is_a_dataset(folder):
    dataset = open_dataset(str(folder), crop=RANDOM_RESIZED, channels=3)
    assert dataset.class_names == ("ant", "bee", "cow") and dataset.image_shape == (48, 48, 3)
    train, validation = dataset.split("train"), dataset.split("validation")
    assert (len(train), len(validation)) == (18, 6)
    assert np.bincount(train.targets()["label"]).tolist() == [6, 6, 6]
    path = sorted((folder / "train" / "bee").iterdir())[0]
    example = train.read(6)
    assert example["label"] == 1
    np.testing.assert_array_equal(example["image"], RANDOM_RESIZED.for_evaluation(path.read_bytes(), 3)[0])
    assert len(dataset.split("train[:50%]+validation[2:4]")) == 11


def test_folder_and_tfds_dataset_hold_the_same(folder, array_record):
    ours = open_dataset(str(folder), crop=CAFFE, channels=3)
    theirs = open_dataset("photographs", str(array_record), crop=CAFFE)
    for other in (theirs, open_dataset(str(array_record / "photographs" / "1.0.0"), crop=CAFFE)):
        assert other.class_names == ours.class_names and other.image_shape == ours.image_shape
    for name in ("train", "validation"):
        ours_all = ours.split(name).batch(np.arange(len(ours.split(name))))
        theirs_all = theirs.split(name).batch(np.arange(len(theirs.split(name))))
        order = [np.lexsort(images["image"].reshape(len(images["label"]), -1).T) for images in (ours_all, theirs_all)]
        for key in ("image", "label"):
            np.testing.assert_array_equal(ours_all[key][order[0]], theirs_all[key][order[1]])
        np.testing.assert_array_equal(theirs.split(name).targets()["label"], theirs_all["label"])


def test_conversion_keeps_every_record(tfrecord, array_record, tmp_path):
    import tensorflow as tf
    import tensorflow_datasets as tfds
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    source = tfds.builder_from_directory(tfrecord)
    converted = tfds.builder_from_directory(array_record / "photographs" / "1.0.0")
    for split in ("train", "validation"):
        paths = [str(path) for path in source.info.splits[split].filepaths]
        before = list(tf.data.TFRecordDataset(paths).as_numpy_iterator())
        stored = ArrayRecordDataSource([str(path) for path in converted.info.splits[split].filepaths])
        assert [stored[i] for i in range(len(stored))] == before
        assert len(before) == source.info.splits[split].num_examples
    # Again: what is there stays. And what cannot be converted is named.
    assert convert("photographs", tfrecord, str(array_record)) == array_record / "photographs" / "1.0.0"
    for name, folder, message in (
        ("photographs", tmp_path, "has no dataset_info.json"),
        ("photographs", array_record / "photographs" / "1.0.0", "stored as array_record; expected tfrecord"),
        ("imagenet2012", tfrecord, "is the dataset photographs/1.0.0; expected imagenet2012"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(name, folder, str(tmp_path))
    with pytest.raises(DataError, match=f"prepare photographs --from {tfrecord}"):
        open_dataset(str(tfrecord))


def test_a_damaged_tfrecord_leaves_nothing_behind(tfrecord, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tfrecord, copy)
    (path,) = copy.glob("*validation*tfrecord*")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Exception, match="corrupted|truncated|records"):
        convert("photographs", copy, str(tmp_path / "out"))
    assert not list((tmp_path / "out" / "photographs").glob("*"))


def test_a_zip_is_unpacked_once(folder, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "pictures"), "zip", folder)
    for _ in range(2):
        assert prepare(archive, "--data_dir", tmp_path / "data").stdout.strip() == f"{tmp_path}/data/pictures"
    assert open_dataset("pictures", str(tmp_path / "data"), crop=CAFFE).num_classes == 3
    (tmp_path / "broken.zip").write_bytes(b"no zip")
    done = prepare(tmp_path / "broken.zip", "--data_dir", tmp_path / "data")
    assert done.returncode == 1 and "is not an intact zip" in done.stderr
    shutil.make_archive(str(tmp_path / "flat"), "zip", folder / "train" / "ant")
    done = prepare(tmp_path / "flat.zip", "--data_dir", tmp_path / "data")
    assert done.returncode == 1 and "no images in split/class/" in done.stderr
    assert sorted(path.name for path in (tmp_path / "data").iterdir() if path.is_dir()) == ["pictures"]


def batches(split, count, **options):
    iterator = pipeline.train_batches(split, batch_size=6, seed=1, **options)
    return [next(iterator) for _ in range(count)]


def assert_same_batches(ours, theirs):
    for mine, yours in zip(ours, theirs, strict=True):
        for key in ("image", "label"):
            np.testing.assert_array_equal(mine[key], yours[key])


@pytest.mark.parametrize("crop", [RANDOM_RESIZED, CAFFE])
def test_crops_do_not_depend_on_threads_hosts_or_resumption(folder, crop):
    split = open_dataset(str(folder), crop=crop, channels=3).split("train")
    whole = batches(split, 7)
    assert_same_batches(batches(split, 7, num_threads=4), whole)
    assert_same_batches(batches(split, 4, first_step=3), whole[3:])
    hosts = [batches(split, 7, process_index=i, process_count=2) for i in range(2)]
    joined = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*hosts, strict=True)]
    assert_same_batches(joined, whole)
    # An epoch is three batches; the next one crops elsewhere.
    assert sorted(np.concatenate([b["label"] for b in whole[:3]]).tolist()) == [0] * 6 + [1] * 6 + [2] * 6
    assert not any(np.array_equal(a, b) for a in whole[0]["image"] for later in whole[3:6] for b in later["image"])


def test_worker_processes_give_the_same_batches_and_end_with_their_parent(folder, tmp_path):
    read = tmp_path / "read.npz"
    script = textwrap.dedent(f"""
        import multiprocessing, time
        import numpy as np
        from squeeze_jax.data import pipeline
        from squeeze_jax.data.decoding import Crop
        from squeeze_jax.data.sources import open_dataset
        if __name__ == "__main__":
            split = open_dataset({str(folder)!r}, channels=3, crop={RANDOM_RESIZED!r}).split("train")
            iterator = pipeline.train_batches(split, batch_size=6, seed=1, first_step=1, num_workers=2)
            batches = [next(iterator) for _ in range(4)]
            np.savez({str(read)!r}, **{{key: [batch[key] for batch in batches] for key in ("image", "label")}})
            print(*[child.pid for child in multiprocessing.active_children()], flush=True)
            time.sleep(600)
    """)
    path = tmp_path / "parent.py"
    path.write_text(script)
    parent = subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    with np.load(read) as theirs:
        ours = batches(open_dataset(str(folder), crop=RANDOM_RESIZED, channels=3).split("train"), 5)[1:]
        assert_same_batches(ours, [{key: theirs[key][i] for key in theirs} for i in range(4)])
    end = time.monotonic() + 20
    while any(is_running(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(is_running(pid) for pid in workers)


def is_running(pid):
    """Not a zombie either, which nobody may be there to reap."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_200_photographs_as_a_folder_and_as_a_tfds_dataset(tmp_path):
    """Every class of the sample has one photograph, so that its label says which one it is."""
    sample(200)
    for path in sorted((SHARED / "imagenet_sample").glob("*.JPEG")):
        link = tmp_path / "folder" / "train" / path.name[:9] / path.name
        link.parent.mkdir(parents=True)
        link.symlink_to(path)
    write_tfrecord(tmp_path / "folder", tmp_path / "tfrecord")
    convert("photographs", tmp_path / "tfrecord" / "photographs" / "1.0.0", str(tmp_path / "array_record"))
    crop = Crop((64, 64), "random_resized", 72, True, 0.08)
    folder = open_dataset(str(tmp_path / "folder"), crop=crop, channels=3).split("train")
    stored = open_dataset("photographs", str(tmp_path / "array_record"), crop=crop).split("train")
    everything = np.arange(200)
    ours, theirs = folder.batch(everything), stored.batch(everything)
    order = np.argsort(theirs["label"])
    assert_same_batches([ours], [{key: value[order] for key, value in theirs.items()}])
    for split in (folder, stored):

        def read(first_step, steps, split=split, **options):
            batches = pipeline.train_batches(split, batch_size=40, seed=0, first_step=first_step, **options)
            return [next(batches) for _ in range(steps)]

        two_epochs = read(0, 10)
        for epoch in (two_epochs[:5], two_epochs[5:]):
            assert sorted(np.concatenate([batch["label"] for batch in epoch])) == list(range(200))
        assert_same_batches(read(7, 3), two_epochs[7:])
        if split is folder:
            assert_same_batches(read(4, 2, num_workers=2), two_epochs[4:6])
        halves = [read(0, 3, process_index=i, process_count=2) for i in range(2)]
        joined = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*halves, strict=True)]
        assert_same_batches(joined, two_epochs[:3])


def test_evaluation_reads_photographs_once(folder):
    split = open_dataset(str(folder), crop=CAFFE, channels=3).split("validation")
    found = list(pipeline.eval_batches(split, batch_size=4))
    assert [batch["valid"].tolist() for batch in found] == [[True] * 4, [True, True, False, False]]


@pytest.fixture
def damaged(folder, tmp_path):
    """The folder with a truncated JPEG among the training images."""
    copy = tmp_path / "damaged"
    shutil.copytree(folder, copy)
    path = copy / "train" / "bee" / "04.JPEG"
    path.write_bytes(path.read_bytes()[:700])
    return copy, path


def test_an_unreadable_photograph_stops_the_run_by_name_or_is_replaced(damaged):
    root, path = damaged
    split = open_dataset(str(root), crop=RANDOM_RESIZED, channels=3).split("train")
    with pytest.raises(DataError, match=f"{path} cannot be read: .*truncated"):
        batches(split, 3)
    skipping = open_dataset(str(root), crop=RANDOM_RESIZED, channels=3, skip_unreadable=True).split("train")
    found = batches(skipping, 6)
    names = [name for batch in found for _, name in batch.get("unreadable", ())]
    assert len(names) == 2 and all(name.startswith(f"{path} cannot be read: ") for name in names)  # once an epoch
    assert all(batch["image"].shape == (6, 48, 48, 3) for batch in found)
    evaluated = list(pipeline.eval_batches(skipping, batch_size=5))
    assert sum(batch["valid"].sum() for batch in evaluated) == 17


def test_without_crops_images_must_have_one_size(folder):
    with pytest.raises(DataError, match=r"has shape .* expected .*"):
        split = open_dataset(str(folder)).split("train")
        split.batch(np.arange(len(split)))


def test_other_wrong_sources_are_named(tmp_path, array_record):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in split/class/"):
        open_dataset(str(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"differ in size or channels .* set config.crop.size"):
        open_dataset("photographs", str(array_record))
    with pytest.raises(DataError, match="expected a shape and a number of classes, such as fake/32x32x3/10"):
        open_dataset("fake/32x32")
    with pytest.raises(DataError, match="contains no photographs to crop"):
        open_dataset("fake/32x32x3/10", crop=CAFFE)
