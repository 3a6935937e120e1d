"""Lists of candidates in CSV, as LUNA16 publishes them and as spreadsheets save them."""

import codecs
import collections
import csv
import dataclasses
import io
import math
import pathlib
import re
import unicodedata
from collections.abc import Sequence

from squeeze_jax.errors import DataError

COORDINATES = ("coordX", "coordY", "coordZ")
COLUMNS = ("seriesuid", *COORDINATES, "class")
OPTIONAL = ("patient", "nodule", "ignore")
NO_NODULE = {"", "0", "-1", "nan", "none", "null", "na", "n/a", "<na>"}  # in the column nodule, any case


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One row of a list of candidates.

    Attributes:
      row: the file and line, for messages.
      scan: the series instance UID.
      center: world coordinates in mm.
      class_name: the text of its class.
      patient: the patient; the scan where the list does not say.
      case: the nodule; a case of its own where the list does not say.
      ignored: whether it is on an irrelevant finding, which FROC counts neither as found nor as wrong.
    """

    row: str
    scan: str
    center: tuple[float, float, float]
    class_name: str
    patient: str
    case: str
    ignored: bool = False


def read_candidates(path: pathlib.Path, *, classified: bool = True) -> list[Candidate]:
    """Reads a list of candidates in CSV.

    The columns are those of LUNA16: seriesuid, coordX, coordY, coordZ (world coordinates in mm) and class. The columns
    patient and nodule may say which rows belong together. A nodule that is empty, 0, -1, nan or none is not a nodule:
    the row is a case of its own. The column ignore (1, or 0 or empty) says which rows are on an irrelevant finding, see
    `metrics.froc`. Other columns, such as diameter_mm, are not used. Cells are separated by commas, semicolons or tabs;
    columns may be written in any case; blanks around names do not count.

    Args:
      path: the file.
      classified: whether the list says the class of each candidate. If not, the column class is not read.

    Raises:
      DataError: the file cannot be read, a column or value is missing or wrong, or rows of one nodule or one scan
        contradict each other; the message names the row.
    """
    reader = _table(path)
    found = []
    try:
        reader.fieldnames = _columns(path, reader.fieldnames or [], classified)
        for values in reader:
            row = f"{path}, line {reader.line_num}"
            beyond = values.pop(None, ())  # the cells beyond the header
            if any(map(str.strip, beyond)):
                raise DataError(
                    f"{row}: more cells than columns, got {values} and {beyond}; write decimals with a point."
                )
            if any(map(str.strip, values.values())):
                found.append(_candidate(row, reader, values, classified))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}, cannot be read: {error}") from error
    if not found:
        raise DataError(f"{path} lists no candidates.")
    _check_agreement(found)
    return found


def rename_classes(candidates: Sequence[Candidate], names: Sequence[str]) -> list[Candidate]:
    """Returns candidates with other names of their classes, in the order of the sorted old names.

    Args:
      candidates: the candidates, such as those of the classes "0" and "1".
      names: the new names, such as "no_nodule" and "nodule".

    Raises:
      DataError: there are more or fewer names than classes, or a name is empty or given twice.
    """
    classes = sorted({candidate.class_name for candidate in candidates})
    if len(names) != len(classes) or len(set(names)) != len(names) or not all(names):
        raise DataError(
            f"the class names {','.join(names)!r} are {len(names)}; expected a different name for each of the "
            f"{len(classes)} classes {', '.join(classes[:10])}."
        )
    renamed = dict(zip(classes, names, strict=True))
    return [dataclasses.replace(one, class_name=renamed[one.class_name]) for one in candidates]


def summary(candidates: list[Candidate]) -> str:
    """Returns a line that says how many candidates, scans, patients, cases and rows of each class there are."""
    scans, patients, cases = (len({getattr(one, name) for one in candidates}) for name in ("scan", "patient", "case"))
    classes = collections.Counter(candidate.class_name for candidate in candidates)
    counts = ", ".join(f"{count} of class {name!r}" for name, count in sorted(classes.items()))
    return f"{len(candidates)} candidates ({counts}) in {cases} cases, {scans} scans of {patients} patients."


def _table(path: pathlib.Path) -> csv.DictReader:
    """Returns a reader of the rows, whatever the encoding and the separator that a spreadsheet chose."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text in UTF-8 ({error}); save it as CSV in UTF-8.") from error
    header = text.lstrip().partition("\n")[0]
    separator = max(",;\t", key=header.count)
    rows = io.StringIO(text, newline="")
    return csv.DictReader(rows, restval="", delimiter=separator, skipinitialspace=True, strict=True)


def _columns(path: pathlib.Path, header: Sequence[str], classified: bool) -> list[str]:
    """Returns the header with the columns that are used as this module writes them."""
    known = {column.casefold(): column for column in (*COLUMNS, *OPTIONAL)}
    names = [known.get(name.strip().casefold(), name) for name in header]
    expected = COLUMNS if classified else COLUMNS[:-1]
    missing = [column for column in expected if column not in names]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(missing)}; expected {', '.join(expected)}, found "
            f"{', '.join(map(repr, header[:20])) or 'nothing'}."
        )
    for column in known.values():
        if names.count(column) > 1:
            raise DataError(f"{path} has the column {column} twice; rename one.")
    return names


def _candidate(row: str, reader: csv.DictReader, values: dict[str, str], classified: bool) -> Candidate:
    def name(column: str) -> str:
        text = values.get(column, "").strip()
        if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text):
            raise DataError(f"{row}: the {column} {text!r} contains a line break or a control character; remove it.")
        return text

    scan, nodule = name("seriesuid"), _whole(name("nodule"))
    class_name = _whole(name("class")) if classified else ""
    center = tuple(_number(values[column], reader.reader.dialect.delimiter == ";") for column in COORDINATES)
    if not scan or (classified and not class_name) or not all(map(math.isfinite, center)):
        wanted = (
            "a seriesuid, three coordinates in mm and a class" if classified else "a seriesuid and coordinates in mm"
        )
        raise DataError(f"{row}: expected {wanted}, got {values}.")
    case = f"line{reader.line_num}" if nodule.casefold() in NO_NODULE else nodule
    ignore = _whole(name("ignore")) or "0"
    if ignore not in ("0", "1"):
        raise DataError(f"{row}: the column ignore has {ignore!r}; expected 1 on an irrelevant finding, else 0.")
    return Candidate(row, scan, center, class_name, name("patient") or scan, f"{scan}/{case}", ignore == "1")


def _whole(text: str) -> str:
    """Returns a whole number without the ".0" that a column with empty cells gets from some programs."""
    return text[:-2] if re.fullmatch(r"-?\d+\.0", text) else text


def _number(text: str, decimal_comma: bool) -> float:
    """Reads a number, NaN if it is none. Where semicolons separate the cells, the decimal sign may be a comma."""
    try:
        return float(text.replace(",", ".") if decimal_comma else text) if "_" not in text else math.nan
    except ValueError:
        return math.nan


def _check_agreement(candidates: list[Candidate]) -> None:
    """Raises DataError if rows of one nodule are of two classes, or rows of one scan of two patients."""
    classes: dict[str, Candidate] = {}
    patients: dict[str, Candidate] = {}
    for candidate in candidates:
        first = classes.setdefault(candidate.case, candidate)
        if first.class_name != candidate.class_name:
            raise DataError(
                f"{candidate.row}: the nodule {candidate.case} is of class {candidate.class_name!r} here and of class "
                f"{first.class_name!r} in {first.row}; give the rows of a nodule one class, or name two nodules."
            )
        first = patients.setdefault(candidate.scan, candidate)
        if first.patient != candidate.patient:
            raise DataError(
                f"{candidate.row}: the scan {candidate.scan} is of patient {candidate.patient!r} here and of "
                f"{first.patient!r} in {first.row}; a scan has one patient."
            )
