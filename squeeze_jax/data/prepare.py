"""Prepares a dataset on disk in the format that training reads. Only this module needs TensorFlow.

    python -m squeeze_jax.data.prepare cifar10                          # downloads and prepares a TFDS dataset
    python -m squeeze_jax.data.prepare medmnist/adrenalmnist3d --file adrenalmnist3d.npz   # from a downloaded file
    python -m squeeze_jax.data.prepare imagenet2012 --from ~/tensorflow_datasets/imagenet2012/5.1.0   # from tfrecord
    python -m squeeze_jax.data.prepare photographs.zip                  # unpacks a zip of images (folders.ImageFolder)
    python -m squeeze_jax.data.prepare scans/luna --scans luna16/ --candidates candidates.csv   # cut from CT scans

Datasets are stored as array_record, which gives the training process random access without TensorFlow. A dataset that
is already prepared is not changed.
"""

import contextlib
import fcntl
import functools
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from typing import Any

from squeeze_jax import commands, console
from squeeze_jax.data import archives, prepared
from squeeze_jax.data.builders import BUILDERS, builder_class, unknown
from squeeze_jax.data.candidates import read_candidates, rename_classes, summary
from squeeze_jax.data.folders import ImageFolder
from squeeze_jax.data.identity import fingerprint
from squeeze_jax.data.scans import Assume, Cut, add_cut_arguments, cut_of
from squeeze_jax.data.sources import default_data_dir, prepare_command
from squeeze_jax.data.volumes import AS_STORED, files_of, find_scans
from squeeze_jax.errors import DataError, SqueezeJaxError
from squeeze_jax.files import user_path
from squeeze_jax.runtime import download

SCANS_READ_AS = 2  # counts the changes of what a voxel's position or value is
MOST_ADDRESSES = 5  # in a message
PARTIAL = "partial-"  # in the names of folders that are being written
_INCOMPLETE = r"incomplete\.\w{6}_\d+\.\d+\.\d+"  # how TFDS calls them


def prepare(name: str, data_dir: str | None = None, *, file: pathlib.Path | None = None) -> pathlib.Path:
    """Downloads and prepares a dataset of this project or of TFDS.

    Several processes may call this at the same time: the others wait for the first.

    Args:
      name: the name of the dataset.
      data_dir: the folder for datasets; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      file: the dataset's file, if it is already downloaded; only for builders of this project with a `local_file`.

    Returns:
      The dataset's folder.

    Raises:
      DataError: the name is unknown, or the file is not the right one.
    """
    with console.doing("importing TensorFlow Datasets"):
        import tensorflow_datasets as tfds

    folder = default_data_dir(data_dir)
    own = name.split("/")[0] in BUILDERS
    with _preparing(name, folder), _locked(folder, name):
        make = builder_class(name) if own else functools.partial(tfds.builder, name)
        make = functools.partial(make, data_dir=folder, file_format="array_record")
        builder = prepared.builder_named(name, folder, make)
        if file is not None:
            if not hasattr(builder, "local_file"):
                raise DataError(f"{name} is not made from one file; leave --file out.")
            builder.local_file = file.expanduser()
        _download_and_prepare(builder, name, folder, bars=not own)
    return pathlib.Path(builder.data_dir)


def _download_and_prepare(builder: Any, name: str, folder: pathlib.Path, *, bars: bool = False) -> None:
    """Prepares a dataset unless it exists, shows progress in a terminal, and prints the sizes of its splits.

    Args:
      builder: a TFDS builder.
      name: the name of the dataset, for messages.
      folder: the folder for datasets.
      bars: in a terminal, show the bars of TFDS, which count bytes of downloads and examples.

    Raises:
      DataError: a download failed.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.util import DownloadError

    if builder.is_prepared():
        return
    tfds.display_progress_bar(bars and console.is_terminal())
    said = contextlib.nullcontext() if bars else console.doing(f"preparing {name}")
    with said, contextlib.redirect_stdout(io.StringIO()), _trying_once():  # TFDS says "Unknown size" there
        try:
            builder.download_and_prepare()
        except OSError as error:
            address = getattr(getattr(error, "request", None), "url", None)  # of requests
            if address is None:
                raise
            reason = str(getattr(error.args[0] if error.args else None, "reason", error))  # of urllib3
            reason = reason.partition("): ")[2] or reason
            raise DataError(_not_downloaded(builder, name, folder, address, reason)) from error
        except DownloadError as error:  # an answer that is not the file
            raise DataError(f"{name} could not be downloaded: {error}") from error
        except AssertionError as error:
            if not str(error).startswith("Manual directory"):
                raise
            raise DataError(f"{name} has to be downloaded by hand: {' '.join(str(error).split())}") from error
    sizes = ", ".join(f"{split.num_examples:,} {key}" for key, split in builder.info.splits.items())
    print(f"{name}: {sizes} examples", file=sys.stderr)


@contextlib.contextmanager
def _trying_once() -> Iterator[None]:
    """Makes TFDS try a download once; it would try ten times, for minutes, and wait for an answer forever."""
    from tensorflow_datasets.core.download import downloader

    tries, opened = downloader.MAX_RETRIES, downloader._open_url
    downloader.MAX_RETRIES = 0
    downloader._open_url = functools.partial(opened, timeout=download.SILENCE)
    try:
        yield
    finally:
        downloader.MAX_RETRIES, downloader._open_url = tries, opened


def _not_downloaded(builder: Any, name: str, folder: pathlib.Path, address: str, reason: str) -> str:
    """Returns a message about a failed download: the address, where to put the file, and the command to use it."""
    command = prepare_command(name, None if folder == default_data_dir(None) else str(folder))
    failed = f"{name} could not be downloaded ({reason}). On a machine with a connection, get"
    if hasattr(builder, "local_file"):
        file = pathlib.PurePosixPath(urllib.parse.urlsplit(address).path).name
        return f"{failed} {address} and give its file: {command} --file {file}"
    known = {url: entry.filename for url, entry in builder.url_infos.items() if entry.filename}
    wanted = known if 0 < len(known) <= MOST_ADDRESSES else {address: known.get(address)}
    manual = folder / "downloads" / "manual"
    if None in wanted.values():
        return f"{failed} {address}, prepare the dataset there, and copy its folder to {folder}."
    files = ", ".join(f"{url} as {file}" for url, file in wanted.items())
    return f"{failed} {files}, put it in {manual}, and repeat: {command}"


def convert(name: str, source: pathlib.Path, data_dir: str | None = None) -> pathlib.Path:
    """Converts a prepared tfrecord dataset to array_record, record by record, without decoding or shuffling.

    Args:
      name: the name of the dataset.
      source: the folder of the prepared dataset, which contains dataset_info.json.
      data_dir: as in `prepare`.

    Returns:
      The dataset's new folder.

    Raises:
      DataError: `source` is not a prepared tfrecord dataset, is another dataset, or has a record count that differs
        from its dataset_info.json.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    if not (source / prepared.INFO).exists():
        raise DataError(
            f"{source} is not a prepared dataset (it has no dataset_info.json); give the folder of a version, such as "
            f"{name}/1.0.0."
        )
    builder = prepared.builder_of(source)
    if builder.info.file_format is not tfds.core.FileFormat.TFRECORD:
        raise DataError(f"{source} is stored as {builder.info.file_format.value}; expected tfrecord.")
    if name != "/".join(filter(None, (builder.name, builder.info.config_name))):
        raise DataError(f"{source} is the dataset {builder.info.full_name}; expected {name}.")
    folder = default_data_dir(data_dir)
    target = folder / builder.info.full_name
    with _locked(folder, name):
        if (target / prepared.INFO).exists():
            if target.resolve() != source.resolve():
                return target
            raise DataError(f"{source} would be overwritten by its own conversion; use another --data_dir.")
        try:
            with _complete_or_absent(target) as partial:
                _convert_records(builder, source, partial)
        except SqueezeJaxError:
            raise
        except (OSError, RuntimeError, tf.errors.OpError) as error:  # a full disk, a damaged record
            reason = " ".join(str(error).split())[:500]
            raise DataError(f"{source} cannot be converted to {target}: {reason}") from error
    return target


def _convert_records(builder: Any, source: pathlib.Path, target: pathlib.Path) -> None:
    import tensorflow as tf
    from array_record.python.array_record_module import ArrayRecordWriter

    for path in source.iterdir():
        if path.is_file() and ".tfrecord" not in path.name:
            shutil.copy(path, target / path.name)
    description = json.loads((source / prepared.INFO).read_text())
    description["fileFormat"] = "array_record"
    for split in description["splits"]:
        info = builder.info.splits[split["name"]]
        template = info.filename_template.replace(data_dir=target, filetype_suffix="array_record")
        split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        for shard, (path, expected) in enumerate(zip(info.filepaths, info.shard_lengths, strict=True)):
            output = template.sharded_filepath(shard_index=shard, num_shards=info.num_shards)
            writer = ArrayRecordWriter(str(output), "group_size:1")
            count = 0
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                writer.write(record)
                count += 1
            writer.close()
            if count != expected:
                raise DataError(f"{path} contains {count} records; expected {expected} according to dataset_info.json.")
    (target / prepared.INFO).write_text(json.dumps(description, indent=2))


def cut_scans(
    name: str,
    scans: pathlib.Path,
    candidates: pathlib.Path,
    cut: Cut,
    data_dir: str | None = None,
    *,
    assume: Assume = AS_STORED,
    class_names: tuple[str, ...] = (),
) -> pathlib.Path:
    """Cuts patches around the candidates of CT scans, and stores them as a dataset.

    Scans in folders such as subset0/ are in splits of these names, as LUNA16 publishes them; others are in "train".

    Args:
      name: the name of the new dataset, "scans/" and a name of your own.
      scans: the folder of the scans, see `volumes.find_scans`.
      candidates: the list of candidates, see `candidates.read_candidates`.
      cut: the patches.
      data_dir: as in `prepare`.
      assume: what is known about scans whose files do not say it.
      class_names: names that replace the list's sorted classes, such as no_nodule and nodule; empty keeps the list's.

    Returns:
      The dataset's folder.

    Raises:
      DataError: a row, a scan or the name is wrong, or the dataset exists, made otherwise.
    """
    with console.doing("importing TensorFlow Datasets"):
        from squeeze_jax.data.builders.scans import Scans, ScansConfig

    kind, _, own = name.partition("/")
    if kind != Scans.name or not re.fullmatch(r"\w+", own):
        raise DataError(f"a dataset of scans cannot be called {name!r}; expected a name such as scans/luna.")
    listed = read_candidates(candidates)
    if class_names:
        listed = rename_classes(listed, class_names)
    with console.doing(f"looking for scans in {scans}"):
        found = find_scans(scans)
    for line in (*found.remarks(), summary(listed)):
        print(line, file=sys.stderr)
    listed_scans = {candidate.scan for candidate in listed}
    made_of = sorted(
        (uid, stored.split, fingerprint(files_of(stored)))  # they are read once more, as they may have changed
        for uid, stored in found.scans.items()
        if uid in listed_scans
    )
    renaming = (class_names,) if class_names else ()
    read_as = repr((SCANS_READ_AS, made_of, assume, *renaming)).encode()
    digest = hashlib.sha256(candidates.read_bytes() + read_as).hexdigest()
    config = ScansConfig(
        name=own,
        candidates=listed,
        scans=found.scans,
        cut=cut,
        assume=assume,
        digest=digest,
        class_names=class_names,
    )
    folder = default_data_dir(data_dir)
    with _preparing(name, folder), _locked(folder, name):
        builder = Scans(config=config, data_dir=folder, file_format="array_record")
        stored = pathlib.Path(builder.data_dir)
        made = f"{cut} {digest}"
        if builder.is_prepared() and made not in prepared.builder_of(stored).info.description:
            raise DataError(
                f"{stored} exists, but was not made of this list and these scans, or by an earlier version, or not cut "
                f"as {cut} with {assume}, or its classes have other names; use another name, or delete it."
            )
        try:
            _download_and_prepare(builder, name, folder)
        finally:
            with contextlib.suppress(OSError):  # a folder without a dataset would be taken for one of images
                stored.parent.rmdir()
    return stored


def unpack(archive: pathlib.Path, data_dir: str | None = None) -> pathlib.Path:
    """Unpacks a zip of images, in a layout of `ImageFolder`, to a folder with the archive's name.

    What is left out is printed. A folder that was unpacked from the same archive before is not changed.

    Args:
      archive: the zip file.
      data_dir: as in `prepare`.

    Returns:
      The dataset's folder.

    Raises:
      DataError: the file is not a zip, cannot be unpacked, or has another layout; or the folder is there already, but
        was not unpacked from this archive.
    """
    archive = archive.expanduser()
    found = archives.digest(archive)
    folder = default_data_dir(data_dir)
    target = folder / archive.stem
    with _locked(folder, archive.stem):
        if target.exists():
            archives.check_same(target, archive, found)
        else:
            with _complete_or_absent(target) as partial:
                archives.unpack(archive, partial)
                try:
                    notes = ImageFolder(partial).notes
                except DataError as error:
                    raise DataError(str(error).replace(str(partial), str(archive))) from error
                archives.record(partial, found)
            for note in notes:
                print(note, file=sys.stderr)
    return target


@contextlib.contextmanager
def _preparing(name: str, folder: pathlib.Path) -> Iterator[None]:
    """Raises DataError for what TFDS raises: an unknown name, a failed download, a full disk, a missing package."""
    try:
        yield
    except SqueezeJaxError:
        raise
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if type(error).__name__ == "DatasetNotFoundError" or "BuilderConfig" in str(error):
            raise DataError(unknown(name)) from error
        reason = " ".join(str(error).split())[:500]
        raise DataError(f"{name} cannot be prepared in {folder}: {reason}") from error


@contextlib.contextmanager
def _locked(folder: pathlib.Path, name: str) -> Iterator[None]:
    """Waits for other processes that prepare this dataset, and removes what killed ones left behind."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / f".{name.replace('/', '_').replace(':', '_')}.lock").open("w")
    except OSError as error:
        raise DataError(
            f"{name} cannot be prepared in {folder} ({error.strerror}); use another --data_dir or a shorter name."
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _remove_leftovers(folder, pathlib.PurePosixPath(name.replace(":", "/")))
        yield


def _remove_leftovers(folder: pathlib.Path, name: pathlib.PurePosixPath) -> None:
    """Removes the unfinished folders of a dataset, to which no other process writes while it is locked."""
    if name.is_absolute() or ".." in name.parts:
        return
    own = folder / name
    for around, pattern in (
        (own.parent, re.compile(rf"\.{re.escape(own.name)}\.{PARTIAL}\w{{8}}")),
        (own, re.compile(rf"\.\d+\.\d+\.\d+\.{PARTIAL}\w{{8}}|{_INCOMPLETE}")),
        *((config, re.compile(_INCOMPLETE)) for config in own.glob("*")),
    ):
        for left in around.iterdir() if around.is_dir() else ():
            if pattern.fullmatch(left.name):
                shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _complete_or_absent(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder next to `target`, which is renamed to `target` on success and deleted on failure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.{PARTIAL}", dir=target.parent))
    except OSError as error:
        raise DataError(f"{target} cannot be written ({error.strerror}); use another --data_dir.") from error
    try:
        yield partial
        partial.chmod(0o755)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def main() -> None:
    """Runs the command."""
    parser = commands.parser(__doc__)
    parser.add_argument("name", help="a dataset of this project or of TFDS, a zip of images, or scans/NAME")
    parser.add_argument("--data_dir", help="folder for datasets; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--from", dest="source", type=user_path, metavar="DIR", help="a prepared tfrecord dataset to convert"
    )
    what.add_argument("--file", type=user_path, help="the dataset's file, if it is already downloaded")
    scans = parser.add_argument_group("patches of CT scans")
    scans.add_argument("--scans", type=user_path, help="folder of .mhd, .mha, NIfTI or DICOM files")
    scans.add_argument("--candidates", type=user_path, help="CSV: seriesuid, coordX, coordY, coordZ in mm, class")
    scans.add_argument(
        "--class_names",
        metavar="A,B",
        help="names of the classes of the list, in the order of its sorted classes: no_nodule,nodule for 0 and 1",
    )
    add_cut_arguments(scans)
    args = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # about which TensorFlow prints a line, whatever the level
    if archives.is_archive(args.name):
        print(unpack(pathlib.Path(args.name), args.data_dir))
    elif args.scans or args.candidates:
        if not (args.scans and args.candidates):
            raise DataError("a dataset of scans needs both --scans and --candidates.")
        assume = Assume(args.assume_hounsfield, args.assume_origin)
        names = tuple(args.class_names.split(",")) if args.class_names is not None else ()
        options = {"assume": assume, "class_names": names}
        print(cut_scans(args.name, args.scans, args.candidates, cut_of(args) or Cut(), args.data_dir, **options))
    elif args.source:
        print(convert(args.name, args.source.expanduser(), args.data_dir))
    else:
        print(prepare(args.name, args.data_dir, file=args.file))


if __name__ == "__main__":
    sys.exit(commands.run(main))
