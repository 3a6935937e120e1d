"""Reads damaged files of every format.

    python tests/fuzz.py --mutants 1000 --seed 7            # all formats
    python tests/fuzz.py --mutants 1000 --seed 7 png .pth   # some

A reader accepts a file, or raises an error of this project. All else is a failure: another exception, a signal, more
than 10 seconds, more than 1 GiB beyond what the process held before, a file opened outside of its folder, a program
started or a connection opened. The files are read in a child process, which is started again after a crash. The
command prints a line a format and keeps the files that failed (`--keep`); its exit status is 1 if any did.
"""

import argparse
import collections
import functools
import gzip
import io
import json
import os
import pathlib
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import typing
import zipfile
import zlib

import numpy as np

SECONDS = 10
MEBIBYTES = 1024
LONGEST_MESSAGE = 4000  # characters
FORMATS = {}
# Exported programs with a checksum that was computed again are left to the runtimes, which they may crash; see
# docs/export.md. They are read only if they are named on the command line.
PROGRAMS = ("exported .onnx with a new checksum", "exported .jaxexport with a new checksum")
ROOT = pathlib.Path(__file__).parents[1]


def mutants(data: bytes, count: int, seed: int = 0):
    """Yields copies of `data`: cut, lengthened, spliced, with bits, bytes, words or numbers in text overwritten."""
    rng = np.random.default_rng(seed)
    words = (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x80")
    numbers = list(re.finditer(rb"\d+", data[:2000]))
    for i in range(count):
        copy = bytearray(data)
        kind, position = i % 9, int(rng.integers(len(data)))
        place = int(rng.integers(min(len(data), 400))) if rng.random() < 0.5 else position  # headers break most
        length = int(rng.integers(1, 64))
        if kind == 0:
            del copy[position:]
        elif kind == 1:
            copy += rng.bytes(length)
        elif kind == 2:
            copy[place] ^= 1 << int(rng.integers(8))
        elif kind == 3:
            copy[place : place + 4] = rng.bytes(4)
        elif kind == 4:
            copy[place : place + 4] = words[int(rng.integers(len(words)))]
        elif kind == 5:
            del copy[place : place + length]
        elif kind == 6:
            copy[place:place] = copy[position : position + length]
        elif kind == 7:
            for at in rng.integers(len(copy), size=length // 3 + 2):
                copy[at] = int(rng.integers(256))
        elif numbers:
            found = numbers[int(rng.integers(len(numbers)))]
            values = (b"-1", b"0", b"1e308", b"99999999999", b"nan", b'""', b"[]", b"null")
            copy[found.start() : found.end()] = values[int(rng.integers(len(values)))]
        if bytes(copy) != data:
            yield bytes(copy)


class Format(typing.NamedTuple):
    """A file format.

    Attributes:
      make: returns the bytes of an intact file; called once, in the child.
      read: reads a file by its path.
      file: the name of the file, which is alone in its folder.
      mutate: yields damaged copies of the bytes: mutate(data, count, seed).
    """

    make: typing.Callable
    read: typing.Callable
    file: str
    mutate: typing.Callable


def register(name, file, read, mutate=mutants):
    """Adds a format to FORMATS, with the function that makes an intact file."""

    def add(make):
        FORMATS[name] = Format(make, read, file, mutate)
        return make

    return add


# Pictures


def read_picture(path):
    from squeeze_jax.network import read_image

    return read_image(path, picture_config(), (16, 16, 3))


@functools.cache
def picture_config():
    from squeeze_jax.config import base_config

    config = base_config()
    config.crop.size, config.crop.resize, config.dataset.channels = 16, 20, 3
    return config


def picture(form, **options):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    pixels[6:18] //= 8
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


for form, suffix in (
    ("PNG", "png"),
    ("JPEG", "jpg"),
    ("BMP", "bmp"),
    ("WEBP", "webp"),
    ("TIFF", "tif"),
    ("GIF", "gif"),
    ("PPM", "ppm"),
):
    register(suffix, f"a.{suffix}", read_picture)(functools.partial(picture, form))


@register("npy", "a.npy", read_picture)
def array():
    file = io.BytesIO()
    np.save(file, np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    return file.getvalue()


# Scans and lists


def read_scans(path):
    from squeeze_jax.data import volumes

    for stored in volumes.find_scans(path.parent).scans.values():
        volumes.read_scan(stored.files)


def volume():
    return np.random.default_rng(0).integers(-1000, 400, (6, 7, 8)).astype(np.int16)


@register("nii", "s.nii", read_scans)
def nifti():
    import nibabel

    return nibabel.Nifti1Image(volume().T, np.diag([0.7, 0.7, 2, 1])).to_bytes()


register("nii.gz", "s.nii.gz", read_scans)(lambda: gzip.compress(nifti(), mtime=0))

META_IMAGE = """ObjectType = Image
NDims = 3
CompressedData = {compressed}
Offset = 1 2 3
ElementSpacing = 0.7 0.7 2
DimSize = 8 7 6
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""


@register("mha", "s.mha", read_scans)
def meta_image():
    return META_IMAGE.format(compressed=False).encode() + volume().tobytes()


@register("mha compressed", "s.mha", read_scans)
def compressed_meta_image():
    return META_IMAGE.format(compressed=True).encode() + zlib.compress(volume().tobytes())


@register("dicom", "s.dcm", read_scans)
def dicom():
    return dicom_slice()


@register("dicom enhanced", "s.dcm", read_scans)
def enhanced_dicom():
    return dicom_slice(frames=3)


def dicom_slice(frames=0):
    import pydicom
    from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian

    item = pydicom.Dataset
    data = item()
    data.SOPClassUID = EnhancedCTImageStorage if frames else CTImageStorage
    data.SOPInstanceUID, data.SeriesInstanceUID, data.StudyInstanceUID = "1.2.3", "1.2", "1"
    data.Modality, data.PatientID = "CT", "p"
    data.Rows, data.Columns, data.SamplesPerPixel = 7, 8, 1
    data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 1
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelData = volume()[: frames or 1].tobytes()
    if frames:
        data.NumberOfFrames = frames
        shared, measures, orientation, rescale = item(), item(), item(), item()
        measures.PixelSpacing, measures.SliceThickness = [0.7, 0.7], 2
        orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, 0, "HU"
        shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
        shared.PixelValueTransformationSequence = [rescale]
        data.SharedFunctionalGroupsSequence = [shared]
        groups = []
        for i in range(frames):
            group, position = item(), item()
            position.ImagePositionPatient = [1, 2, 3 + 2 * i]
            group.PlanePositionSequence = [position]
            groups.append(group)
        data.PerFrameFunctionalGroupsSequence = groups
    else:
        data.ImagePositionPatient, data.ImageOrientationPatient = [1, 2, 3], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness = [0.7, 0.7], 2
        data.RescaleSlope, data.RescaleIntercept = 1, 0
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def read_list(path):
    from squeeze_jax.data.candidates import read_candidates

    read_candidates(path)


@register("candidates", "list.csv", read_list)
def candidates():
    rows = [f"1.2.{i},{i}.5,-{i},{i * 3},{i % 2},p{i},{i}" for i in range(8)]
    return "\n".join(["seriesuid,coordX,coordY,coordZ,class,patient,nodule", *rows, ""]).encode()


# Weights


def read_weights(path):
    from squeeze_jax import load

    load(path)


@functools.cache
def small_network():
    import jax

    from squeeze_jax.config import base_config
    from squeeze_jax.experiment import make_model, make_task
    from squeeze_jax.network import Network

    config = base_config()
    config.model.update(name="squeezenet_v1_1", base_filters=8, filter_increment=8, stem="3x3/1", stem_filters=8)
    model = make_model(config, make_task(config, ("a", "b")))
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 20, 20, 3), np.float32))
    return Network(model, jax.device_get(variables), config, 0, ("a", "b"), (20, 20, 3))


def saved(write, file):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / file
        write(path)
        return path.read_bytes()


def with_new_checksum(data, count, seed):
    """Yields .sqz files whose description was changed, or that are damaged, with the checksum computed again."""
    from test_compression import hostile

    return hostile(data, count, seed)


@register(".sqz with a new checksum", "n.sqz", read_weights, with_new_checksum)
@register(".sqz", "n.sqz", read_weights)
def sqz():
    from squeeze_jax.pretrained import sqz

    return saved(lambda path: sqz.save(small_network(), path), "n.sqz")


def with_changed_header(data, count, seed):
    """Yields .safetensors files with a changed description and the checksum computed again."""
    from safetensors.numpy import load as arrays_of
    from test_compression import WRONG

    from squeeze_jax.pretrained import own_file

    rng = np.random.default_rng(seed)
    arrays = arrays_of(data)
    length = int.from_bytes(data[:8], "little")
    description = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["squeeze_jax"])
    for _ in range(count):
        changed = json.loads(json.dumps(description))
        place, key = changed, rng.choice(list(changed))
        while isinstance(place[key], dict) and place[key] and rng.random() < 0.9:
            place = place[key]
            key = rng.choice(list(place))
        place[key] = WRONG[rng.integers(len(WRONG))]
        yield own_file._serialize(arrays, changed)


@register(".safetensors with a new checksum", "n.safetensors", read_weights, with_changed_header)
@register(".safetensors", "n.safetensors", read_weights)
def own():
    from squeeze_jax import pretrained

    return saved(lambda path: pretrained.save(small_network(), path), "n.safetensors")


@functools.cache
def published():
    from test_importers import random_leaves, state_dict

    leaves = random_leaves("squeezenet_v1_1")
    return leaves, state_dict(leaves, "squeezenet_v1_1")


@register(".pth", "n.pth", read_weights)
def pth():
    from test_importers import pth as write

    return write(published()[1])


@register(".caffemodel", "n.caffemodel", read_weights)
def caffe():
    from test_importers import caffemodel

    return caffemodel(published()[0])


# Exported files


def read_exported(path):
    from squeeze_jax.export.formats import open_exported

    open_exported(path)


def with_new_seal(data, count, seed):
    """Yields damaged files whose checksum is computed again."""
    from squeeze_jax.export.description import SEALED, UNSEALED, seal

    for copy in mutants(data, count, seed):
        unsealed = SEALED.sub(UNSEALED, copy)
        yield seal(unsealed) if unsealed.count(UNSEALED) == 1 else copy


@register("exported .onnx with a new checksum", "n.onnx", read_exported, with_new_seal)
@register("exported .onnx", "n.onnx", read_exported)
def exported_onnx():
    from squeeze_jax.export.formats import FORMATS

    return FORMATS[".onnx"].serialize(small_network())


@register("exported .jaxexport with a new checksum", "n.jaxexport", read_exported, with_new_seal)
@register("exported .jaxexport", "n.jaxexport", read_exported)
def exported_stablehlo():
    from squeeze_jax.export.formats import FORMATS

    return FORMATS[".jaxexport"].serialize(small_network())


# The files of a workdir


def read_workdir_config(path):
    from squeeze_jax import config as config_lib
    from squeeze_jax.config import validate

    config, _ = config_lib.read(path.parent)
    validate(config)


@register("config.json", "config.json", read_workdir_config)
def workdir_config():
    from squeeze_jax import config as config_lib
    from squeeze_jax.config import base_config

    resolved = {"class_names": ["a", "b"], "num_classes": 2, "image_shape": [8, 8, 3], "dataset_version": "1.0.0"}
    return saved(lambda path: config_lib.save(path.parent, base_config(), resolved), "config.json")


def read_metrics(path):
    from squeeze_jax.workdir.records import read_metrics

    read_metrics(path.parent)


@register("metrics.jsonl", "metrics.jsonl", read_metrics)
def metrics():
    lines = [{"step": i, "split": "train", "values": {"loss": 1.5, "top1": 0.25}} for i in range(20)]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def read_archive(path):
    from squeeze_jax.data import prepare

    with tempfile.TemporaryDirectory(dir=path.parent.parent) as folder:
        prepare.unpack(path, folder)


@register("zip of pictures", "photos.zip", read_archive)
def archive():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        for split in ("train", "val"):
            for name in ("cat", "dog"):
                zipped.writestr(f"{split}/{name}/1.png", picture("PNG"))
    return file.getvalue()


# The child process


def status(key: str) -> float:
    """A size of this process in MiB, from /proc/self/status."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(key))


class Watch:
    """Collects what a reader must not do. Audit hooks cannot be removed, so it is switched on and off."""

    STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pty.spawn")

    def __init__(self, folder):
        self.on, self.found = False, []
        self.allowed = tuple(map(os.path.realpath, (folder, sys.prefix, sys.base_prefix, ROOT, "/proc", "/sys")))
        sys.addaudithook(self)

    def __call__(self, event, args):
        if not self.on:
            return
        if event in self.STARTS:
            self.found.append(f"{event} {args[:2]}"[:200])
        elif event == "open" and isinstance(args[0], str | bytes):
            path = os.path.realpath(os.fsdecode(args[0]))
            if not path.startswith((*self.allowed, "/dev/urandom", "/dev/null")):
                self.found.append(f"opened {path}")


def work(names, count, seed, keep, first):
    """Reads the mutants of the formats from number `first` on, and prints a line of JSON before and after each."""
    report = os.fdopen(os.dup(1), "w", buffering=1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)  # libraries are noisy about damage
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(folder)
        for number, name in enumerate(names):
            if (number + 1) * count <= first:
                continue
            form = FORMATS[name]
            try:
                intact = form.make()
                form.read(place(folder, form, intact))
                copies = enumerate(form.mutate(intact, count, seed), start=number * count)
                copies = [(i, copy) for i, copy in copies if i >= first]
            except Exception:
                report.write(json.dumps(["failed", name, traceback.format_exc()]) + "\n")
                return
            limit = int((status("VmSize") + 16 * MEBIBYTES) * 2**20)
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
            for i, copy in copies:
                path = place(folder, form, copy)
                report.write(json.dumps(["start", name, i]) + "\n")
                result, text, seconds, memory = attempt(form, path, watch)
                if result not in ("accepted", "refused") and keep:
                    pathlib.Path(keep, f"{i}.{form.file}").write_bytes(copy)
                report.write(json.dumps(["end", name, i, result, text[:500], seconds, memory]) + "\n")


def attempt(form, path, watch):
    """Reads one file; returns the result, its message, seconds and MiB."""
    from squeeze_jax.errors import SqueezeJaxError

    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, start = status("VmRSS"), time.monotonic()
    watch.found, watch.on = [], True
    try:
        form.read(path)
        result, text = "accepted", ""
    except SqueezeJaxError as error:
        result, text = "refused", str(error)
    except BaseException as error:
        where = " < ".join(f"{f.name}:{f.lineno}" for f in reversed(traceback.extract_tb(error.__traceback__)))
        result, text = "exception", f"{type(error).__name__}: {error} @ {where}"
    watch.on = False
    seconds, memory = time.monotonic() - start, status("VmHWM") - before
    if result == "refused" and len(text) > LONGEST_MESSAGE:
        result = "long message"
    if watch.found:
        result, text = "touched", str(watch.found)
    if memory > MEBIBYTES:
        result, text = "memory", f"{memory:.0f} MiB"
    return result, text, seconds, memory


def place(folder, form, data):
    """Writes a file into a folder of its own, which it is alone in."""
    path = pathlib.Path(folder, "in", form.file)
    path.parent.mkdir(exist_ok=True)
    for other in path.parent.iterdir():
        other.unlink()
    path.write_bytes(data)
    return path


def run(names, count, seed, keep=None, seconds=SECONDS):
    """Returns {format: [(result, text, seconds, MiB), ...]}; a file that takes more seconds than these is a crash."""
    results, first = collections.defaultdict(list), 0
    while first < count * len(names):
        command = [sys.executable, __file__, "--worker", str(first), "--mutants", str(count), "--seed", str(seed)]
        command += ["--keep", str(keep)] if keep else []
        child = subprocess.Popen([*command, *names], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        current, died = None, "ended"
        while True:
            ready, _, _ = select.select([child.stdout], [], [], seconds if current else 600)
            if not ready:
                child.kill()
                died = f"hung for {seconds} s"
                break
            line = child.stdout.readline()
            if not line:
                break
            kind, name, number, *rest = json.loads(line)
            if kind == "failed":
                raise RuntimeError(f"{name}: an intact file cannot be made and read\n{number}")
            if kind == "start":
                current = name, number
            else:
                results[name].append(tuple(rest))
                current, first = None, number + 1
        code = child.wait()
        if current is None:
            if code:
                raise RuntimeError(f"the child ended with status {code} outside of a reader")
            return dict(results)
        name, first = current[0], current[1] + 1
        died = died if died != "ended" else f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
        results[name].append(("crash", died, seconds, 0))
    return dict(results)


def default_formats():
    """The names of the formats that no damage may get past the reader of."""
    return [name for name in FORMATS if name not in PROGRAMS]


def failures(results):
    """The results that are neither accepted nor refused, by format."""
    bad = {name: [row for row in rows if row[0] not in ("accepted", "refused")] for name, rows in results.items()}
    return {name: rows for name, rows in bad.items() if rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("--mutants", type=int, default=100, help="a format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=pathlib.Path, help="folder for the files that failed")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = args.formats or default_formats()
    if args.worker is not None:
        os.environ["JAX_PLATFORMS"] = "cpu"
        return work(names, args.mutants, args.seed, args.keep, args.worker)
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    bad = {}
    for name in names:
        start = time.monotonic()
        results = run([name], args.mutants, args.seed, args.keep)
        print(describe(name, results[name]), f"{time.monotonic() - start:.0f} s", flush=True)
        bad |= failures(results)
        examples = {(result, text[:30]): text for result, text, *_ in bad.get(name, ())}
        for (result, _), text in sorted(examples.items()):
            print(f"    {result}: {text[:400]}")
    return int(bool(bad))


def describe(name, rows):
    """One line about the results of a format."""
    counts = collections.Counter(row[0] for row in rows)
    return (
        f"{name}: {len(rows)} files, {', '.join(f'{n} {result}' for result, n in sorted(counts.items()))}; longest "
        f"{max(row[2] for row in rows):.1f} s, most memory {max(row[3] for row in rows):.0f} MiB,"
    )


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    sys.exit(main())
