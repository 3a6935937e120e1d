"""CSV and Markdown tables."""

import csv
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from squeeze_jax.files import replaced


def write_csv(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> pathlib.Path:
    """Writes a CSV file, with the keys of the first row as its header, and returns its path.

    Raises:
      FileError: the file cannot be written.
    """
    with replaced(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])
