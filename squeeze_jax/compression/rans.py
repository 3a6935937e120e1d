"""An entropy coder: range asymmetric numeral systems (Duda 2013, arXiv 1311.2540) on many lanes at once, in NumPy.

Symbols come in runs, each with a frequency table of its own. Symbol i of a run goes to lane i modulo the number of
lanes, so that NumPy codes a row of as many symbols in a few operations. A lane is a state of 32 bits, which gives 16 of
them to the stream, or takes 16 from it, when it leaves its interval. All of it is arithmetic of whole numbers, so that
every machine decodes alike.
"""

from collections.abc import Sequence

import numpy as np

from squeeze_jax.errors import WeightError

PRECISION = 14  # bits; the frequencies of a table sum to 2 to this power
TOTAL = 1 << PRECISION
LOWEST_STATE = 1 << 16
LARGEST_ALPHABET = 4096
LARGEST_LANES = 1024
LARGEST_ROWS = 2**20  # about ten seconds
STEPS_PER_OCTAVE = 2  # of the levels that frequencies are stored in
LARGEST_LEVEL = 16 * STEPS_PER_OCTAVE


def levels(counts: np.ndarray) -> np.ndarray:
    """Counts on a logarithmic scale, as a file stores a table.

    Half an octave a step costs 0.1 % of the size of what is coded, and less than finer steps cost in the table.

    Args:
      counts: how often each symbol occurs, int (symbols,); not all are 0.

    Returns:
      uint8 (symbols,), 0 for symbols that do not occur; `frequencies` makes a table of them.
    """
    shares = np.maximum(counts, 1) / counts.max()
    scaled = LARGEST_LEVEL + np.round(STEPS_PER_OCTAVE * np.log2(shares))
    return np.where(counts > 0, np.maximum(scaled, 1), 0).astype(np.uint8)


def frequencies(stored: np.ndarray) -> np.ndarray:
    """The table of these levels: int64 (symbols,), 0 where the level is 0, with the sum `TOTAL`.

    Raises:
      WeightError: no symbol occurs, there are too many, or a level is beyond the scale.
    """
    level = stored.astype(np.int64)
    if not 0 < level.size <= LARGEST_ALPHABET or not 0 < level.max() <= LARGEST_LEVEL:
        raise WeightError(
            f"a frequency table has {level.size} levels up to {level.max(initial=0)}; expected 1 to "
            f"{LARGEST_ALPHABET} levels, of which the largest lies in 1..{LARGEST_LEVEL}."
        )
    octave, step = np.divmod(level, STEPS_PER_OCTAVE)
    weight = np.where(level > 0, np.where(step == 0, 5, 7) << octave, 0)  # 7 / 5 is the root of 2, nearly
    table = np.where(level > 0, np.maximum(weight * TOTAL // weight.sum(), 1), 0)
    # What rounding left over goes to the most frequent symbols, or is taken from them.
    while (missing := TOTAL - int(table.sum())) != 0:
        largest = int(table.argmax())
        table[largest] += max(missing, -(int(table[largest]) // 2))
    return table


def cost(counts: np.ndarray) -> float:
    """About how many bytes symbols with these counts take, with their table."""
    if not counts.any():
        return 0.0
    table = frequencies(levels(counts))
    occurs = counts > 0
    return float(counts[occurs] @ (PRECISION - np.log2(table[occurs])) / 8) + len(counts) / 2


def encode(runs: Sequence[np.ndarray], tables: Sequence[np.ndarray], lanes: int) -> bytes:
    """Codes runs of symbols.

    Args:
      runs: whole numbers from 0, each array (symbols,).
      tables: of each run, as `frequencies` makes them; every symbol of the run has a frequency.
      lanes: 1 to 1024. More decode faster and take 4 bytes each.

    Raises:
      WeightError: more symbols than so many lanes can decode in reasonable time.
    """
    _check_rows([len(run) for run in runs], lanes)
    state = np.full(lanes, LOWEST_STATE, np.uint64)
    words = []
    # Backwards, because the decoder takes back what was coded last.
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
    """The runs of `encode`, with what their symbols stand for.

    Args:
      data: what `encode` gave.
      lengths: of the runs, in symbols.
      tables: of each run.
      values: of each symbol of a run, (symbols,); the run has their dtype.
      lanes: as they were coded.

    Raises:
      WeightError: data that is damaged or does not belong to these runs; nearly every change shows.
    """
    _check_rows(lengths, lanes)
    if len(data) < 4 * lanes or len(data) % 2:
        raise WeightError(f"the coded symbols have {len(data)} bytes; {lanes} lanes ask for {4 * lanes} or more, even.")
    state = np.frombuffer(data, "<u4", lanes).astype(np.uint32)
    words = np.frombuffer(data, "<u2", offset=4 * lanes)
    position = 0
    runs = []
    for length, table, symbols in zip(lengths, tables, values, strict=True):
        # For each of the TOTAL slots: its symbol's value and frequency, and the place among the symbol's slots.
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
                raise WeightError("the coded symbols end before all are decoded.")
            x[empty] = (x[empty] << np.uint32(16)) | taken
            position += len(empty)
        runs.append(run)
    if position != len(words) or (state != LOWEST_STATE).any():
        raise WeightError("the coded symbols do not end where their last one does.")
    return runs


def _check_rows(lengths: Sequence[int], lanes: int) -> None:
    if not 1 <= lanes <= LARGEST_LANES:
        raise WeightError(f"{lanes} lanes; expected 1 to {LARGEST_LANES}.")
    rows = sum(-(-length // lanes) for length in lengths)
    if rows > LARGEST_ROWS:
        raise WeightError(f"{sum(lengths)} symbols on {lanes} lanes take {rows} rows; {LARGEST_ROWS} are the limit.")
