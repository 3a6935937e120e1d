"""Unpacks a zip of images that may come from anybody, and remembers which one a folder was unpacked from."""

import hashlib
import json
import pathlib
import shutil
import zipfile

from squeeze_jax.data.listing import ARCHIVE_RECORD, shown
from squeeze_jax.errors import DataError
from squeeze_jax.files import replaced

OTHER_ARCHIVES = (".tar", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
LARGEST_RATIO = 100  # of the unpacked size to the archive's, above SMALL; pictures hardly compress
SMALL = 2**27  # bytes
LARGEST_COUNT = 10_000_000  # files
METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
_ENCRYPTED = 0x1  # in the flags of a file


def is_archive(name: str) -> bool:
    """Returns whether a name is that of an archive, of whatever kind."""
    return name.lower().endswith((".zip", *OTHER_ARCHIVES))


def digest(archive: pathlib.Path) -> dict[str, str | int]:
    """Returns what is remembered of an archive: its size in bytes and its SHA-256.

    Raises:
      DataError: it is not a zip by its name, or cannot be read.
    """
    if archive.suffix.lower() != ".zip":
        raise DataError(f"{archive} is not a .zip; unpack it, and use the folder as the name of the dataset.")
    try:
        with archive.open("rb") as file:
            return {"size": archive.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    except OSError as error:
        raise DataError(f"{archive} cannot be read ({error.strerror}); expected a zip of images.") from error


def record(folder: pathlib.Path, found: dict[str, str | int]) -> None:
    """Writes into a folder which archive it was unpacked from, see `digest`.

    Raises:
      FileError: the file cannot be written.
    """
    with replaced(folder / ARCHIVE_RECORD) as path:
        path.write_text(json.dumps(found) + "\n")


def check_same(folder: pathlib.Path, archive: pathlib.Path, found: dict[str, str | int]) -> None:
    """Checks that a folder was unpacked from an archive.

    A folder without a record, of an earlier version, must hold the archive's files with their sizes.

    Args:
      folder: the folder.
      archive: the archive.
      found: its `digest`.

    Raises:
      DataError: it was not.
    """
    try:
        is_same = json.loads((folder / ARCHIVE_RECORD).read_text()) == found
    except FileNotFoundError:
        is_same = all(_is_there(folder, member) for member in _members(archive))
    except (OSError, ValueError):
        is_same = False
    if not is_same:
        raise DataError(
            f"{folder} exists, but was not unpacked from this {archive.name} ({found['size']:,} bytes); delete that "
            f"folder, or rename the archive."
        )


def _is_there(folder: pathlib.Path, member: zipfile.ZipInfo) -> bool:
    path = folder / member.filename
    return path.is_dir() if member.is_dir() else path.is_file() and path.stat().st_size == member.file_size


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> None:
    """Unpacks a zip into an empty folder.

    Raises:
      DataError: it is damaged, encrypted or compressed in another way; it would write outside of the folder; or it
        is larger than the limits of this module, or than the room on the disk.
    """
    members = _members(archive)
    size = sum(member.file_size for member in members)
    largest = max(SMALL, LARGEST_RATIO * archive.stat().st_size)
    if size > largest or len(members) > LARGEST_COUNT:
        raise DataError(
            f"{archive} unpacks to {size:,} bytes in {len(members):,} files; expected at most {largest:,} bytes "
            f"({LARGEST_RATIO} times its own size) in {LARGEST_COUNT:,} files. Unpack it yourself if you trust it."
        )
    room = shutil.disk_usage(folder).free
    if size > room:
        raise DataError(
            f"{archive} unpacks to {size:,} bytes, but {folder.parent} has room for {room:,}; make room, or use "
            f"another --data_dir."
        )
    try:
        with zipfile.ZipFile(archive) as zipped:
            zipped.extractall(folder)
    except OSError as error:
        reason = error.strerror or str(error)
        name = f" ({shown(str(error.filename))[:200]})" if error.filename else ""
        raise DataError(
            f"{archive} cannot be unpacked to {folder.parent}: {reason}{name}; make room, shorten its names, or use "
            f"another --data_dir."
        ) from error
    except Exception as error:  # of zipfile and its decompressors, for bytes that may be anything
        raise DataError(f"{archive} is not an intact zip: {_reason(error)}") from error


def _members(archive: pathlib.Path) -> list[zipfile.ZipInfo]:
    """Returns the files and folders of a zip, which can be unpacked as they are named."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = zipped.infolist()
    except Exception as error:  # of zipfile, for bytes that may be anything
        raise DataError(f"{archive} is not an intact zip: {_reason(error)}") from error
    names = set()
    for member in members:
        name = f"{archive}: {shown(member.filename)[:200]!r}"
        path = pathlib.PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename or member.filename[1:2] == ":":
            raise DataError(f"{name} would be written outside of the dataset's folder; expected relative names.")
        if member.filename in names:
            raise DataError(f"{name} is in it twice; expected each name once. Pack it again.")
        if member.flag_bits & _ENCRYPTED:
            raise DataError(f"{name} is encrypted; unpack it with its password, and use the folder.")
        if member.compress_type not in METHODS:
            kind = "Deflate64" if member.compress_type == 9 else f"method {member.compress_type}"
            raise DataError(
                f"{name} is compressed by {kind}, which Python cannot unpack; unpack it with another program (7-Zip), "
                f"and use the folder."
            )
        names.add(member.filename)
    return members


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
