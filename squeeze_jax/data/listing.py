"""Lists the pictures below a folder, and counts and names what is left out."""

import os
import pathlib

from squeeze_jax.errors import DataError

# torchvision's suffixes, other names of JPEG files, and GIF.
EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"
)  # fmt: skip
# What systems and programs leave behind; names that begin with "." likewise.
LEFT_BEHIND = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found")
LEFT_BEHIND += ("thumbs.db", "desktop.ini", "ehthumbs.db")
ARCHIVE_RECORD = ".archive.json"  # which zip a folder was unpacked from; not noted
NAMED = 3  # examples of each kind of note
# Kinds of notes.
HIDDEN, OTHER_FILES = "left out, hidden or left behind by a system", "left out, without the suffix of an image"
EMPTY = "left out, folders without images"
BROKEN, LOOPS = "left out, broken links or special files", "left out, links to a folder around them"


class Notes:
    """Counts remarks about files and folders, and keeps the first names of each kind."""

    def __init__(self):
        self._counts: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}
        self._suffixes: set[str] = set()

    def add(self, kind: str, path: str) -> None:
        """Adds a file or folder."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        names = self._names.setdefault(kind, [])
        if len(names) < NAMED:
            names.append(shown(path))
        if kind == OTHER_FILES:
            self._suffixes.add(pathlib.PurePosixPath(path).suffix.lower())

    def lines(self) -> tuple[str, ...]:
        """Returns one line for each kind, with the count and some names."""
        lines = []
        for kind, count in self._counts.items():
            names = ", ".join(self._names[kind]) + (", ..." if count > NAMED else "")
            suffixes = sorted(filter(None, self._suffixes)) if kind == OTHER_FILES else []
            listed = f" ({', '.join(suffixes[:8])}{', ...' if len(suffixes) > 8 else ''})" if suffixes else ""
            lines.append(f"{kind}{listed}: {count}, such as {names}")
        return tuple(lines)


def list_pictures(root: pathlib.Path) -> tuple[list[str], Notes]:
    """Lists all files with the suffix of an image below a folder, also behind links.

    Returns:
      The paths of the pictures, relative and with "/", sorted, the files of a folder before those of its subfolders;
      and notes about the rest.

    Raises:
      DataError: a folder cannot be read.
    """
    pictures, folders, notes = [], [], Notes()
    waiting: list[tuple[str, frozenset]] = [("", frozenset())]  # relative path of a folder, and those around it
    while waiting:
        above, around = waiting.pop()
        folder = os.path.join(root, above)
        try:
            status = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{folder} cannot be read ({error.strerror}); make it readable, or remove it.") from error
        identity = status.st_dev, status.st_ino
        if identity in around:
            notes.add(LOOPS, above)
            continue
        if above:
            folders.append(above.removesuffix("/"))
        subfolders = []
        for entry in entries:
            path = above + entry.name
            if is_left_behind(entry.name):
                if entry.name != ARCHIVE_RECORD:
                    notes.add(HIDDEN, path)
            elif entry.is_dir():
                subfolders.append((f"{path}/", around | {identity}))
            elif not entry.name.lower().endswith(EXTENSIONS):
                notes.add(OTHER_FILES, path)
            elif not entry.is_file():
                notes.add(BROKEN, path)
            else:
                pictures.append(path)
        waiting.extend(reversed(subfolders))
    _note_empty(pictures, folders, notes)
    return pictures, notes


def _note_empty(pictures: list[str], folders: list[str], notes: Notes) -> None:
    """Notes the outermost folders without pictures."""
    filled = {""}
    for folder in {path.rpartition("/")[0] for path in pictures}:
        while folder not in filled:
            filled.add(folder)
            folder = folder.rpartition("/")[0]
    for folder in folders:
        if folder not in filled and folder.rpartition("/")[0] in filled:
            notes.add(EMPTY, folder)


def is_left_behind(name: str) -> bool:
    """Returns whether a file or folder is hidden, or left behind by a system or a program."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def shown(path: str) -> str:
    """Returns a path as every output can print it, also if its name is not UTF-8."""
    return path.encode(errors="backslashreplace").decode()
