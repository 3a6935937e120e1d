"""An entropy coder in NumPy: interleaved range asymmetric numeral systems (rANS; Duda 2013, arXiv 1311.2540).

Symbols are coded in runs, each with its own frequency table. Symbol i of a run belongs to lane i modulo the number of
lanes, so that NumPy processes one row of symbols, one per lane, in a few operations. Each lane has a 32-bit state. When
the state leaves its interval, it writes 16 bits to the stream or reads 16 bits from it. Only integer arithmetic is
used, so that the result is the same on every machine.
"""

from collections.abc import Sequence

import numpy as np

from squeeze_jax.errors import WeightError

PRECISION = 14  # bits; the frequencies of a table sum to 2 ** PRECISION
TOTAL = 1 << PRECISION
LOWEST_STATE = 1 << 16
LARGEST_ALPHABET = 4096
LARGEST_LANES = 1024
LARGEST_ROWS = 2**20  # decoding takes about ten seconds
STEPS_PER_OCTAVE = 2  # resolution of the stored levels
LARGEST_LEVEL = 16 * STEPS_PER_OCTAVE


def levels(counts: np.ndarray) -> np.ndarray:
    """Quantizes counts on a logarithmic scale, for storage in a file.

    Steps of half an octave increase the size of the coded data by 0.1 %. Finer steps would save less than they add to
    the table.

    Args:
      counts: the number of occurrences of each symbol, int (symbols,); at least one is positive.

    Returns:
      The levels, uint8 (symbols,), 0 for symbols that do not occur; see `frequencies`.
    """
    shares = np.maximum(counts, 1) / counts.max()
    scaled = LARGEST_LEVEL + np.round(STEPS_PER_OCTAVE * np.log2(shares))
    return np.where(counts > 0, np.maximum(scaled, 1), 0).astype(np.uint8)


def frequencies(stored: np.ndarray) -> np.ndarray:
    """Returns the frequency table for stored levels.

    Args:
      stored: the levels from `levels`, uint8 (symbols,).

    Returns:
      The frequencies, int64 (symbols,), with the sum `TOTAL`; 0 where the level is 0.

    Raises:
      WeightError: no symbol occurs, there are too many symbols, or a level is out of range.
    """
    level = stored.astype(np.int64)
    if not 0 < level.size <= LARGEST_ALPHABET or not 0 < level.max() <= LARGEST_LEVEL:
        raise WeightError(
            f"a frequency table has {level.size} levels up to {level.max(initial=0)}; expected 1 to "
            f"{LARGEST_ALPHABET} levels with a maximum in 1..{LARGEST_LEVEL}."
        )
    octave, step = np.divmod(level, STEPS_PER_OCTAVE)
    weight = np.where(level > 0, np.where(step == 0, 5, 7) << octave, 0)  # 7 / 5 approximates the square root of 2
    table = np.where(level > 0, np.maximum(weight * TOTAL // weight.sum(), 1), 0)
    # The rounding error is added to or subtracted from the most frequent symbols.
    while (missing := TOTAL - int(table.sum())) != 0:
        largest = int(table.argmax())
        table[largest] += max(missing, -(int(table[largest]) // 2))
    return table


def cost(counts: np.ndarray) -> float:
    """Estimates the size of coded symbols with their frequency table.

    Args:
      counts: the number of occurrences of each symbol, int (symbols,).

    Returns:
      The approximate number of bytes.
    """
    if not counts.any():
        return 0.0
    table = frequencies(levels(counts))
    occurs = counts > 0
    return float(counts[occurs] @ (PRECISION - np.log2(table[occurs])) / 8) + len(counts) / 2


def encode(runs: Sequence[np.ndarray], tables: Sequence[np.ndarray], lanes: int) -> bytes:
    """Encodes runs of symbols.

    Args:
      runs: the symbols of each run, non-negative int (length,).
      tables: the frequency table of each run, from `frequencies`; every symbol of the run must have a positive
        frequency.
      lanes: the number of lanes, 1 to 1024. More lanes decode faster and take 4 bytes each.

    Returns:
      The final states of the lanes, followed by the stream.

    Raises:
      WeightError: the number of lanes is out of range, or too small for the number of symbols.
    """
    _check_rows([len(run) for run in runs], lanes)
    state = np.full(lanes, LOWEST_STATE, np.uint64)
    words = []
    # In reverse order, because rANS decodes the last encoded symbol first.
    for run, table in zip(reversed(runs), reversed(tables), strict=True):
        frequency = table.astype(np.uint64)[run]
        start = (np.cumsum(table) - table).astype(np.uint64)[run]
        for first in reversed(range(0, len(run), lanes)):
            f, c = frequency[first : first + lanes], start[first : first + lanes]
            x = state[: len(f)]
            full = x >= f << np.uint64(32 - PRECISION)
            words.append(x[full].astype(np.uint16))
            x = np.where(full, x >> np.uint64(16), x)
            state[: len(f)] = (x // f << np.uint64(PRECISION)) + x % f + c
    return state.astype("<u4").tobytes() + b"".join(part.astype("<u2").tobytes() for part in reversed(words))


def decode(
    data: bytes, lengths: Sequence[int], tables: Sequence[np.ndarray], values: Sequence[np.ndarray], lanes: int
) -> list[np.ndarray]:
    """Decodes runs of symbols and replaces the symbols by their values.

    Args:
      data: the output of `encode`.
      lengths: the number of symbols of each run.
      tables: the frequency table of each run.
      values: the values of the symbols of each run, (symbols,) of any dtype.
      lanes: the number of lanes that was passed to `encode`.

    Returns:
      The values of each run, (length,) with the dtype of its `values`.

    Raises:
      WeightError: the data is damaged or does not match the runs. Almost all changes of the data are detected.
    """
    _check_rows(lengths, lanes)
    if len(data) < 4 * lanes or len(data) % 2:
        raise WeightError(
            f"the coded symbols have {len(data)} bytes; {lanes} lanes require an even number, at least {4 * lanes}."
        )
    state = np.frombuffer(data, "<u4", lanes).astype(np.uint32)
    words = np.frombuffer(data, "<u2", offset=4 * lanes)
    position = 0
    runs = []
    for length, table, symbols in zip(lengths, tables, values, strict=True):
        # For each of the TOTAL slots: the value and frequency of its symbol, and its index among the symbol's slots.
        value = np.repeat(symbols, table)
        frequency = np.repeat(table, table).astype(np.uint32)
        place = (np.arange(TOTAL) - np.repeat(np.cumsum(table) - table, table)).astype(np.uint32)
        run = np.empty(length, symbols.dtype)
        for first in range(0, length, lanes):
            row = run[first : first + lanes]
            x = state[: len(row)]
            slot = x & np.uint32(TOTAL - 1)
            row[:] = value[slot]
            x[:] = frequency[slot] * (x >> np.uint32(PRECISION)) + place[slot]
            empty = np.flatnonzero(x < LOWEST_STATE)
            taken = words[position : position + len(empty)]
            if len(taken) < len(empty):
                raise WeightError("the coded symbols end before all of them are decoded.")
            x[empty] = (x[empty] << np.uint32(16)) | taken
            position += len(empty)
        runs.append(run)
    if position != len(words) or (state != LOWEST_STATE).any():
        raise WeightError("the coded symbols do not end after the last symbol.")
    return runs


def _check_rows(lengths: Sequence[int], lanes: int) -> None:
    if not 1 <= lanes <= LARGEST_LANES:
        raise WeightError(f"{lanes} lanes; expected 1 to {LARGEST_LANES}.")
    rows = sum(-(-length // lanes) for length in lengths)
    if rows > LARGEST_ROWS:
        raise WeightError(f"{sum(lengths)} symbols on {lanes} lanes need {rows} rows; expected at most {LARGEST_ROWS}.")
