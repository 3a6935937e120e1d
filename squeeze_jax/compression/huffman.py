"""Canonical Huffman codes for small alphabets, as used for the gaps in Deep Compression."""

import heapq
import itertools

import numpy as np

from squeeze_jax.errors import WeightError

LONGEST = 15  # bits, so that a length fits in 4 bits


def code_lengths(counts: np.ndarray) -> np.ndarray:
    """Returns the length of each symbol's code in bits, int64 (symbols,); 0 if the symbol does not occur.

    Args:
      counts: the number of occurrences of each symbol, int (symbols,). At most 16 symbols are allowed, so that no code
        is longer than 15 bits.
    """
    lengths = np.zeros(len(counts), np.int64)
    present = np.flatnonzero(counts).tolist()
    if len(present) == 1:
        lengths[present] = 1
    order = itertools.count()  # ties are broken by order of insertion
    heap = [(int(counts[symbol]), next(order), [symbol]) for symbol in present]
    heapq.heapify(heap)
    while len(heap) > 1:
        (first, _, left), (second, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[left + right] += 1
        heapq.heappush(heap, (first + second, next(order), left + right))
    return lengths


def encode(symbols: np.ndarray, lengths: np.ndarray) -> bytes:
    """Encodes symbols.

    Args:
      symbols: the symbols, int (count,).
      lengths: the code lengths from `code_lengths`.

    Returns:
      The concatenated codes, most significant bit first; the last byte is padded with zeros.
    """
    length = lengths[symbols]
    ends = np.cumsum(length)
    code = np.repeat(_codes(lengths)[symbols], length)
    behind = np.repeat(ends, length) - np.arange(len(code)) - 1  # bits of the same code that follow
    return np.packbits((code >> behind & 1).astype(np.uint8)).tobytes()


def decode(data: bytes, lengths: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """Decodes symbols from the beginning of a byte string.

    Args:
      data: bytes that start with the output of `encode`.
      lengths: the code lengths, int64 (symbols,) from 0 to 15.
      count: the number of symbols to decode, at least 1.

    Returns:
      The symbols, uint8 (count,), and the number of bytes read.

    Raises:
      WeightError: the lengths do not form a complete code, or the data ends too early.
    """
    used = np.flatnonzero(lengths)
    spaces = int((1 << (LONGEST - lengths[used])).sum())
    if spaces != 1 << LONGEST and lengths[used].tolist() != [1]:
        raise WeightError(f"a Huffman code has the lengths {lengths.tolist()}, which form no complete code.")
    # Lookup table from the next LONGEST bits to the symbol.
    by_code = used[np.lexsort((used, lengths[used]))]
    symbol = np.repeat(by_code, 1 << (LONGEST - lengths[by_code]))
    symbol = np.append(symbol, np.full((1 << LONGEST) - len(symbol), by_code[-1]))
    bits = np.unpackbits(np.frombuffer(data, np.uint8, min(len(data), -(-count * int(lengths.max()) // 8))))
    padded = np.append(bits, np.zeros(LONGEST, np.uint8))
    ahead = np.zeros(len(bits), np.uint16)  # the next LONGEST bits at each position
    for i in range(LONGEST):
        ahead |= padded[i : i + len(bits)].astype(np.uint16) << np.uint16(LONGEST - 1 - i)
    found = symbol.astype(np.uint8)[ahead]
    length = memoryview(lengths.astype(np.uint8)[found])
    places = np.empty(count, np.int64)
    place = 0
    for i in range(count):
        if place >= len(length):
            raise WeightError("Huffman codes end before all symbols are decoded.")
        places[i] = place
        place += length[place]
    if place > len(bits):
        raise WeightError("Huffman codes end before all symbols are decoded.")
    return found[places], -(-place // 8)


def _codes(lengths: np.ndarray) -> np.ndarray:
    """Returns the canonical codes: ordered by length, and by symbol among codes of the same length."""
    codes = np.zeros(len(lengths), np.int64)
    code, before = 0, 0
    for symbol in np.lexsort((np.arange(len(lengths)), lengths)):
        if lengths[symbol]:
            code <<= int(lengths[symbol]) - before
            codes[symbol], before = code, int(lengths[symbol])
            code += 1
    return codes
