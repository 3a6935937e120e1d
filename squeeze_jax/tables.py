"""CSV and Markdown tables."""

import csv
import io
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from squeeze_jax.errors import InputError
from squeeze_jax.files import replaced


def write_csv(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> pathlib.Path:
    """Writes a CSV file, with the keys of the first row as its header, and returns its path.

    Raises:
      FileError: the file cannot be written.
    """
    # Names of files and classes need not be UTF-8.
    with (
        replaced(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_csv(path: pathlib.Path, columns: Collection[str] = ()) -> list[dict[str, str]]:
    """Reads what `write_csv` wrote, whole.

    Args:
      path: the file.
      columns: some that it must have.

    Raises:
      InputError: the file cannot be read, lacks a column or has no rows, or was cut: a row has more or fewer cells than
        the header, or the last line has no end.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            text = file.read()
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = next(reader, [])
        if missing := [column for column in columns if column not in header]:
            raise InputError(f"{path} has no column {', '.join(missing)}; it has {', '.join(header) or 'nothing'}.")
        rows = []
        for cells in reader:
            if len(cells) != len(header):
                raise InputError(
                    f"{path}, line {reader.line_num}, has {len(cells)} cells; expected {len(header)}. If the file was "
                    f"cut, write it again."
                )
            rows.append(dict(zip(header, cells, strict=True)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    if not rows:
        raise InputError(f"{path} has no rows.")
    if not text.endswith("\n"):
        raise InputError(f"{path}, line {reader.line_num}, has no end, so the file was cut; write it again.")
    return rows


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])
