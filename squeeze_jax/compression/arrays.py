"""Lossless compression of named arrays, as used by `.sqz` files.

Each array is stored in the form that takes the fewest bytes:

- "codes": for arrays with few distinct values. Each element is a code, which refers to an entry of a codebook or to an
  integer multiple of a step. Zeros are stored in a separate bit mask if that is smaller, and as ordinary codes
  otherwise. All codes and masks share one rANS stream.
- "int8": integer multiples of a step, for arrays that are too small for a frequency table.
- "float16", "float32": the values themselves; float16 only if it represents them exactly.

A `Description` states how an array is stored and can be converted to JSON. `unpack` validates the descriptions and the
length of all data before it allocates an array.
"""

import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from squeeze_jax.compression import rans
from squeeze_jax.errors import WeightError

FORMS = ("codes", "int8", "float16", "float32")
BYTES = np.arange(256, dtype=np.uint8)  # the symbols of a mask: one bit for each of eight values
LARGEST_ARRAYS = 2**26  # values in total; AlexNet, the largest network here, has 61 million
# Equal values take no space. Beyond 2**23 values, a file therefore has at least one byte for every 256 of them: the
# highest ratio of deflate (1032:1) for float32.
FREE_VALUES = 2**23
VALUES_PER_BYTE = 256
LARGEST_RANK = 6
LARGEST_WHOLE = 2**20
LARGEST_STEP = 2.0**100


@dataclasses.dataclass(frozen=True)
class Description:
    """Describes how an array is stored.

    Attributes:
      name: the name of the array, such as "params/conv1/kernel".
      shape: the shape of the array.
      form: the storage form, one of FORMS.
      step: the quantization step, if the values are integer multiples of one; 0 for a codebook.
      lowest: the multiple of the step that symbol 0 represents.
      symbols: the number of symbols in the frequency table of the codes.
      nonzero: the number of non-zero values if there is a mask; -1 if zero is an ordinary symbol.
    """

    name: str
    shape: tuple[int, ...]
    form: str
    step: float = 0.0
    lowest: int = 0
    symbols: int = 0
    nonzero: int = -1

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def has_mask(self) -> bool:
        """Whether the zeros are stored in a mask."""
        return self.nonzero >= 0

    @property
    def lengths(self) -> list[int]:
        """The lengths of the runs of symbols: the bytes of the mask, if there is one, and the codes."""
        return [-(-self.size // 8), self.nonzero] if self.has_mask else [self.size]

    def to_json(self) -> dict[str, Any]:
        """Returns a dict for JSON, without the fields that have their default value."""
        default = Description("", (), "")
        return {key: value for key, value in dataclasses.asdict(self).items() if value != getattr(default, key)}

    @classmethod
    def from_json(cls, values: Any) -> "Description":
        """Returns the description from untrusted JSON data.

        Args:
          values: the parsed JSON, which is validated.

        Raises:
          WeightError: a key, type or value is invalid; the message contains the data.
        """
        kinds = {field.name: field.type for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or not {"name", "form"} <= values.keys() <= kinds.keys():
            raise WeightError(f"the array description is {str(values)[:200]}; expected the keys {', '.join(kinds)}.")
        found = cls(**{"shape": (), **values})
        shape = found.shape
        whole = (found.lowest, found.symbols, found.nonzero, *(shape if isinstance(shape, list | tuple) else [None]))
        if (
            not all(isinstance(text, str) for text in (found.name, found.form))
            or not all(type(number) is int and abs(number) <= LARGEST_ARRAYS for number in whole)
            or type(found.step) not in (int, float)
            or not 0 <= found.step < LARGEST_STEP
        ):
            raise WeightError(f"the array description {str(values)[:200]} has a value of the wrong type or size.")
        found = dataclasses.replace(found, shape=tuple(shape), step=float(found.step))
        legal = (
            found.form in FORMS
            and len(found.shape) <= LARGEST_RANK
            and all(length >= 0 for length in found.shape)
            and found.size <= LARGEST_ARRAYS
            and (found.form != "int8" or found.step > 0)
            and abs(found.lowest) <= LARGEST_WHOLE
            and (found.form != "codes" or (1 <= found.symbols <= rans.LARGEST_ALPHABET and found.size > 0))
            and (found.nonzero == -1 or 0 < found.nonzero <= found.size)
        )
        if not legal:
            raise WeightError(f"the array description {str(values)[:200]} has a value out of range.")
        return found


def pack(
    leaves: Mapping[str, np.ndarray], steps: Mapping[str, float], lanes: int
) -> tuple[list[Description], bytes, bytes]:
    """Compresses arrays without loss.

    Args:
      leaves: the arrays by name, finite float32 of any shape.
      steps: the quantization steps by array name, for arrays whose values are exact integer multiples of a float32.
      lanes: the number of lanes of the rANS stream, 1 to 1024, see `rans`.

    Returns:
      The descriptions, the deflated numbers (codebooks, frequency tables and uncoded arrays) and the rANS stream.

    Raises:
      WeightError: an array is not finite float32, the arrays have too many values in total or for the bytes that they
        take, an array does not hold integer multiples of its step or holds too many of them, or there are too few
        lanes for the number of codes.
    """
    descriptions, plain, codebooks, tables, runs = [], {"float32": [], "float16": [], "int8": []}, [], [], []
    for name, leaf in leaves.items():
        if leaf.dtype != np.float32 or not np.isfinite(leaf).all():
            raise WeightError(f"{name} holds {leaf.dtype} values; expected finite float32 values.")
        description, data = _describe(name, leaf, steps.get(name))
        descriptions.append(description)
        if description.form != "codes":
            plain[description.form].append(data)
            continue
        codebook, *symbols = data
        codebooks.append(codebook)
        runs += symbols
        alphabets = [256, description.symbols] if description.has_mask else [description.symbols]
        tables += [rans.levels(np.bincount(run, minlength=n)) for run, n in zip(symbols, alphabets, strict=True)]
    numbers = b"".join(
        [
            *map(_differences, codebooks),
            _planes(np.concatenate([np.zeros(0, "<f4"), *plain["float32"]]).astype("<f4")),
            _planes(np.concatenate([np.zeros(0, "<f2"), *plain["float16"]]).astype("<f2")),
            *(values.tobytes() for values in plain["int8"]),
            *(level.tobytes() for level in tables),
        ]
    )
    codes = rans.encode(runs, [rans.frequencies(level) for level in tables], lanes)
    deflated = zlib.compress(numbers, 9)
    _check_size(descriptions, len(deflated) + len(codes))
    return descriptions, deflated, codes


def unpack(descriptions: Sequence[Description], numbers: bytes, codes: bytes, lanes: int) -> dict[str, np.ndarray]:
    """Decompresses arrays.

    Args:
      descriptions: the descriptions from `pack`.
      numbers: the deflated numbers from `pack`.
      codes: the rANS stream from `pack`.
      lanes: the number of lanes that was passed to `pack`.

    Returns:
      The arrays by name, float32 of the described shapes.

    Raises:
      WeightError: the data does not have the length that the descriptions require, has too few bytes for that many
        values, or is damaged in another way.
    """
    _check_size(descriptions, len(numbers) + len(codes))
    coded = [d for d in descriptions if d.form == "codes"]
    reader = _Reader(numbers, sum(map(_numbers_of, descriptions)))
    books = [_multiples(d) if d.step else reader.codebook(d.symbols) for d in coded]
    flat: dict[str, np.ndarray] = {}
    for form, dtype in (("float32", "<f4"), ("float16", "<f2"), ("int8", "i1")):
        stored = [d for d in descriptions if d.form == form]
        values = reader.planes(dtype, sum(d.size for d in stored)).astype(np.float32)
        for d in stored:
            part, values = values[: d.size], values[d.size :]
            flat[d.name] = part * np.float32(d.step) if d.step else part
    for name, values in [*flat.items(), *((d.name, book) for d, book in zip(coded, books, strict=True))]:
        if not np.isfinite(values).all():
            raise WeightError(f"{name} holds values that are not finite.")
    meanings = [m for d, book in zip(coded, books, strict=True) for m in ([BYTES, book] if d.has_mask else [book])]
    tables = [rans.frequencies(reader.take("u1", len(meaning))) for meaning in meanings]
    runs = rans.decode(codes, [length for d in coded for length in d.lengths], tables, meanings, lanes)
    runs.reverse()  # so that the memory of each run is freed once it is converted to an array
    for d in coded:
        flat[d.name] = _unmask(d, runs.pop(), runs.pop()) if d.has_mask else runs.pop()
    return {d.name: _from_order(flat[d.name], d.shape) for d in descriptions}


def _check_size(descriptions: Sequence[Description], stored: int) -> None:
    size = sum(description.size for description in descriptions)
    largest = min(LARGEST_ARRAYS, max(FREE_VALUES, VALUES_PER_BYTE * stored))
    if size > largest:
        raise WeightError(f"the arrays have {size} values in {stored} bytes; expected at most {largest} values.")


def _describe(name: str, leaf: np.ndarray, step: float | None) -> tuple[Description, Any]:
    """Selects the smallest storage form of an array.

    Returns:
      The description and the data: the codebook (empty with a step) and the runs of symbols for "codes", the values for
      the other forms.
    """
    flat = _in_order(leaf)
    choices: list[tuple[float, Description, Any]] = []
    if step is not None:
        if not 0 < (step := float(np.float32(step))) < LARGEST_STEP:
            raise WeightError(f"the step of {name} is {step}; expected a positive float32 below {LARGEST_STEP:g}.")
        whole = np.round(flat.astype(np.float64) / step)
        lowest, highest = (int(whole.min()), int(whole.max())) if whole.size else (0, 0)
        is_multiple = (whole.astype(np.float32) * np.float32(step) == flat).all()
        if not is_multiple or max(abs(lowest), abs(highest)) > LARGEST_WHOLE:
            raise WeightError(f"{name} does not hold integer multiples of its step, {step}.")
        symbols, values = (whole - lowest).astype(np.int64), np.arange(lowest, highest + 1)
        if lowest >= -128 and highest <= 127:
            choices.append((leaf.size, Description(name, leaf.shape, "int8", step), whole.astype(np.int8)))
        elif len(values) > rans.LARGEST_ALPHABET:
            raise WeightError(
                f"{name} holds multiples from {lowest} to {highest} of its step; expected at most "
                f"{rans.LARGEST_ALPHABET} multiples. Use a larger step."
            )
    else:
        step, lowest = 0.0, 0
        values, symbols = np.unique(flat, return_inverse=True)
        with np.errstate(over="ignore"):
            half = flat.astype(np.float16)
        if (half.astype(np.float32) == flat).all():
            choices.append((2 * leaf.size, Description(name, leaf.shape, "float16"), half))
        else:
            choices.append((4 * leaf.size, Description(name, leaf.shape, "float32"), flat))
    if leaf.size and len(values) <= rans.LARGEST_ALPHABET:
        choices += _as_codes(Description(name, leaf.shape, "codes", step, lowest), flat, symbols, values)
    _, description, data = min(choices, key=lambda choice: choice[0])
    return description, data


def _as_codes(description: Description, flat: np.ndarray, symbols: np.ndarray, values: np.ndarray) -> list:
    """Returns the choices for the form "codes": with zero as a symbol and, for mixed arrays, with a mask of the zeros.

    Returns:
      A list of (estimated bytes, description, data), see `_describe`.
    """
    has_book = not description.step
    counts = np.bincount(symbols, minlength=len(values))

    def choice(bytes_taken: float, book: np.ndarray, *runs: np.ndarray, **changes: int) -> tuple:
        book = book if has_book else book[:0]
        changed = dataclasses.replace(description, **changes)
        return bytes_taken + 4 * len(book), changed, (book, *(run.astype(np.uint16) for run in runs))

    choices = [choice(rans.cost(counts), values, symbols, symbols=len(values))]
    nonzero = flat != 0
    if 0 < np.count_nonzero(nonzero) < len(flat):
        mask = np.packbits(nonzero)
        others, kept = symbols[nonzero], values
        if has_book:  # zero is removed from a codebook; with a step it keeps its symbol, which is then unused
            zero = int(np.flatnonzero(values == 0)[0])
            others, kept = others - (others > zero), np.delete(values, zero)
        taken = rans.cost(np.bincount(mask, minlength=256)) + rans.cost(np.bincount(others, minlength=len(kept)))
        choices.append(choice(taken, kept, mask, others, symbols=len(kept), nonzero=len(others)))
    return choices


def _unmask(description: Description, mask: np.ndarray, values: np.ndarray) -> np.ndarray:
    bits = np.unpackbits(mask)
    nonzero = bits[: description.size].view(bool)
    if np.count_nonzero(bits) != description.nonzero or np.count_nonzero(nonzero) != description.nonzero:
        raise WeightError(f"the mask of {description.name} does not have {description.nonzero} non-zero values.")
    flat = np.zeros(description.size, np.float32)
    flat[nonzero] = values
    return flat


def _multiples(description: Description) -> np.ndarray:
    """Returns the values that the symbols represent if the description has a step, float32 (symbols,)."""
    whole = np.arange(description.lowest, description.lowest + description.symbols)
    return whole.astype(np.float32) * np.float32(description.step)


# Kernels are stored in the order (in, out, *spatial), in which neighboring values are more often zero together.


def _in_order(leaf: np.ndarray) -> np.ndarray:
    return (np.moveaxis(leaf, (-2, -1), (0, 1)) if leaf.ndim > 2 else leaf).ravel()


def _from_order(flat: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) <= 2:
        return flat.reshape(shape)
    return np.moveaxis(flat.reshape(*shape[-2:], *shape[:-2]), (0, 1), (-2, -1))


def _numbers_of(description: Description) -> int:
    """Returns the number of bytes that an array takes outside the rANS stream."""
    if description.form != "codes":
        return description.size * {"float32": 4, "float16": 2, "int8": 1}[description.form]
    tables = description.symbols + (256 if description.has_mask else 0)
    return tables + (0 if description.step else 4 * description.symbols)


class _Reader:
    """Reads the numbers in the order in which `pack` writes them."""

    def __init__(self, deflated: bytes, expected: int):
        self._data, self._offset = inflate(deflated, expected), 0
        if len(self._data) != expected:
            raise WeightError(f"the numbers have {len(self._data)} bytes; the arrays require {expected}.")

    def take(self, dtype: str, count: int) -> np.ndarray:
        values = np.frombuffer(self._data, dtype, count, self._offset)
        self._offset += values.nbytes
        return values

    def planes(self, dtype: str, count: int) -> np.ndarray:
        width = np.dtype(dtype).itemsize
        return np.ascontiguousarray(self.take("u1", width * count).reshape(width, count).T).view(dtype).reshape(count)

    def codebook(self, count: int) -> np.ndarray:
        ordered = np.cumsum(self.planes("<u4", count), dtype=np.uint32).view(np.int32)
        return _ordered(ordered).view(np.float32)


def inflate(deflated: bytes, largest: int) -> bytes:
    """Decompresses zlib data of limited size.

    Args:
      deflated: the compressed data.
      largest: the maximum size of the result in bytes.

    Raises:
      WeightError: the result is larger, or the data is damaged or has trailing bytes.
    """
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(deflated, largest + 1)
    except zlib.error as error:
        raise WeightError(f"deflated data is damaged: {error}") from error
    if len(data) > largest or not stream.eof or stream.unused_data:
        raise WeightError(f"deflated data does not end after at most {largest} bytes.")
    return data


def _planes(values: np.ndarray) -> bytes:
    """Returns the first byte of every value, then the second and so on; similar high bytes compress well."""
    return np.ascontiguousarray(values.view(np.uint8).reshape(len(values), values.itemsize).T).tobytes()


def _differences(codebook: np.ndarray) -> bytes:
    """Returns a sorted codebook as differences of its bit patterns, which compress better than the values."""
    ordered = _ordered(codebook.astype(np.float32).view(np.int32))
    return _planes(np.diff(ordered.view(np.uint32), prepend=np.uint32(0)).astype("<u4"))


def _ordered(bits: np.ndarray) -> np.ndarray:
    """Maps the bits of float32 to int32 with the same order; the mapping is its own inverse."""
    return np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)
