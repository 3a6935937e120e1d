"""Tests of the entropy coders: interleaved rANS, and Huffman codes for small alphabets."""

import hashlib

import numpy as np
import pytest

from squeeze_jax.compression import huffman, rans
from squeeze_jax.errors import WeightError

LANES = (1, 2, 7, 256, 1024)


def random_run(rng):
    """Returns random symbols of an alphabet of 1 to 4096 symbols, with a uniform to a degenerate distribution."""
    alphabet = int(2 ** rng.uniform(0, 12))
    length = int(rng.integers(1, 3000))
    share = rng.dirichlet(np.full(alphabet, 10 ** rng.uniform(-2, 1)))
    return rng.choice(alphabet, length, p=share / share.sum()), alphabet


def table_of(run, alphabet):
    return rans.frequencies(rans.levels(np.bincount(run, minlength=alphabet)))


@pytest.mark.parametrize("lanes", LANES)
def test_what_is_coded_is_decoded(lanes):
    rng = np.random.default_rng(lanes)
    for _ in range(20):
        runs, alphabets = zip(*(random_run(rng) for _ in range(rng.integers(1, 6))), strict=True)
        tables = [table_of(*pair) for pair in zip(runs, alphabets, strict=True)]
        data = rans.encode(runs, tables, lanes)
        values = [np.arange(alphabet) for alphabet in alphabets]
        decoded = rans.decode(data, [len(run) for run in runs], tables, values, lanes)
        for run, back in zip(runs, decoded, strict=True):
            np.testing.assert_array_equal(run, back)


def test_nothing_at_all_can_be_coded():
    assert rans.decode(rans.encode([], [], 3), [], [], [], 3) == []
    data = rans.encode([np.zeros(10**5, int)], [table_of(np.zeros(1, int), 1)], 256)
    assert len(data) == 4 * 256  # a certain symbol takes no bits


def test_tables_are_whole_and_keep_every_symbol():
    rng = np.random.default_rng(0)
    for _ in range(300):
        level = rng.integers(0, rans.LARGEST_LEVEL + 1, int(2 ** rng.uniform(0, 12)))
        level[rng.integers(len(level))] = rans.LARGEST_LEVEL
        table = rans.frequencies(level.astype(np.uint8))
        assert table.sum() == rans.TOTAL and ((table > 0) == (level > 0)).all()
    for wrong in ([], [0, 0], [rans.LARGEST_LEVEL + 1], [1] * (rans.LARGEST_ALPHABET + 1)):
        with pytest.raises(WeightError, match="a frequency table has"):
            rans.frequencies(np.array(wrong, np.uint8))


@pytest.mark.parametrize("spread", [0.3, 3, 30])
def test_the_size_is_the_entropy_to_one_per_cent(spread):
    run = np.abs(np.random.default_rng(0).laplace(0, spread, 400_000)).astype(int)
    counts = np.bincount(run)
    share = counts[counts > 0] / len(run)
    entropy = -len(run) * (share @ np.log2(share)) / 8
    data = rans.encode([run], [table_of(run, len(counts))], 256)
    assert entropy < len(data) < 1.01 * entropy + 4 * 256
    # The final state of a lane holds up to 16 bits of the coded data.
    assert len(data) == pytest.approx(rans.cost(counts) - len(counts) / 2 + 3 * 256, abs=256)


def test_the_bytes_are_those_of_every_machine():
    run = (np.arange(10_000) ** 2 % 251) // 3
    level = (np.arange(84) * 7 % 32 + 1).astype(np.uint8)
    data = rans.encode([run], [rans.frequencies(level)], 64)
    assert hashlib.sha256(data).hexdigest() == "e927c7c229c5341a7a85a142c89822e31eca09de06fa7c9b8f69de4e35366611"


def test_nearly_all_damage_shows():
    rng = np.random.default_rng(0)
    run, alphabet = rng.geometric(0.2, 5000).clip(0, 30), 31
    table = table_of(run, alphabet)
    data = rans.encode([run], [table], 16)
    missed = 0
    for _ in range(200):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        try:
            rans.decode(bytes(damaged), [len(run)], [table], [np.arange(alphabet)], 16)
            missed += 1
        except WeightError:
            pass
    assert missed <= 2  # changes of the last symbols, which only the checksum of a file detects
    for shorter in (data[:-2], data[:-1], data[:10], b"", data + b"\0\0"):
        with pytest.raises(WeightError, match="the coded symbols"):
            rans.decode(shorter, [len(run)], [table], [np.arange(alphabet)], 16)
    for lanes in (0, -1, 1025):
        with pytest.raises(WeightError, match="lanes; expected 1 to 1024"):
            rans.decode(data, [len(run)], [table], [np.arange(alphabet)], lanes)
    with pytest.raises(WeightError, match="rows; expected at most 1048576"):
        rans.decode(data, [2**21], [table], [np.arange(alphabet)], 1)


def test_huffman_codes_are_decoded_and_short():
    rng = np.random.default_rng(0)
    for _ in range(50):
        symbols = rng.choice(16, int(rng.integers(1, 3000)), p=rng.dirichlet(np.full(16, 10 ** rng.uniform(-2, 1))))
        counts = np.bincount(symbols, minlength=16)
        lengths = huffman.code_lengths(counts)
        data = huffman.encode(symbols, lengths)
        decoded, taken = huffman.decode(data + b"more", lengths, len(symbols))
        np.testing.assert_array_equal(decoded, symbols)
        share = counts[counts > 0] / len(symbols)
        assert taken == len(data) <= len(symbols) * (1 - share @ np.log2(share)) / 8 + 1


def test_the_deepest_huffman_tree_has_codes_of_15_bits():
    fibonacci = [1, 1]
    while len(fibonacci) < 16:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = huffman.code_lengths(np.array(fibonacci))
    assert lengths.max() == huffman.LONGEST
    symbols = np.arange(16).repeat(3)
    np.testing.assert_array_equal(huffman.decode(huffman.encode(symbols, lengths), lengths, 48)[0], symbols)


def test_wrong_huffman_codes_are_refused():
    lengths = huffman.code_lengths(np.array([5, 3, 1, 1]))
    data = huffman.encode(np.array([0, 1, 2, 3] * 10), lengths)
    with pytest.raises(WeightError, match="end before all symbols"):
        huffman.decode(data[:-2], lengths, 40)
    for wrong in ([0, 0, 0, 0], [1, 1, 1, 1], [1, 2, 0, 0], [2, 0, 0, 0]):
        with pytest.raises(WeightError, match="no complete code"):
            huffman.decode(data, np.array(wrong), 40)
