"""Size and speed of lossless coders on a network: our coder with several numbers of lanes, zlib, bzip2 and xz.

    python benchmarks/coding.py --weights compressed_SqueezeNet.net --csv benchmarks/results/coding.csv

All coders compress the same data: a codebook and one byte per value for each array with more than 256 values of which
at most 256 are distinct, and all other arrays unchanged. "Ours" is the contents of a `.sqz` file without the
description of the network. The coders take turns; the results are medians over the rounds.
"""

import bz2
import lzma
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import numpy as np
import report

from squeeze_jax import load
from squeeze_jax.compression import arrays
from squeeze_jax.files import user_path

LANES = (64, 256, 1024)
OURS = "ours, {} lanes"
DEFAULT = OURS.format(256)


def plain_bytes(leaves: dict[str, np.ndarray]) -> bytes:
    """Returns codebooks and codes for arrays with few distinct values, and the plain bytes of the others."""
    parts = []
    for leaf in leaves.values():
        values, codes = np.unique(leaf, return_inverse=True)
        has_codes = len(values) <= 256 < leaf.size
        parts += [values.tobytes(), codes.astype(np.uint8).tobytes()] if has_codes else [leaf.tobytes()]
    return b"".join(parts)


def coders(leaves: dict[str, np.ndarray]) -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """Returns the functions to encode and to decode, by the name of the program."""
    data = plain_bytes(leaves)
    found: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
        OURS.format(lanes): (
            lambda lanes=lanes: arrays.pack(leaves, {}, lanes),
            lambda packed, lanes=lanes: arrays.unpack(*packed, lanes),
        )
        for lanes in LANES
    }
    best = 9 | lzma.PRESET_EXTREME
    return found | {
        "zlib -9": (lambda: zlib.compress(data, 9), zlib.decompress),
        "bzip2 -9": (lambda: bz2.compress(data, 9), bz2.decompress),
        "xz -9e": (lambda: lzma.compress(data, preset=best), lzma.decompress),
    }


def size(coded: Any) -> int:
    """Returns the size of the coded data in bytes; for our coder, without the descriptions."""
    return len(coded) if isinstance(coded, bytes) else sum(map(len, coded[1:]))


def main() -> int:
    """Runs the benchmark."""
    parser = report.parser(__doc__)
    parser.add_argument("--weights", type=user_path, required=True, help="weight file or workdir")
    args = parser.parse_args()
    flat = flax.traverse_util.flatten_dict(load(args.weights).variables, sep="/")
    programs = coders({name: np.asarray(leaf) for name, leaf in flat.items()})
    found: dict[str, dict[str, list[float]]] = {name: {"encode": [], "decode": []} for name in programs}
    sizes = {}
    for _ in range(args.rounds):
        for name, (encode, decode) in programs.items():
            start = time.perf_counter()
            coded = encode()
            middle = time.perf_counter()
            decode(coded)
            found[name]["encode"].append(middle - start)
            found[name]["decode"].append(time.perf_counter() - middle)
            sizes[name] = size(coded)
    rows = [
        {
            "program": name,
            "bytes": sizes[name],
            "bytes_over_ours": round(sizes[name] / sizes[DEFAULT], 3),
            "encode_seconds": report.spread(seconds["encode"], "seconds", 3)["seconds"],
        }
        | report.spread(seconds["decode"], "decode_seconds", 3)
        for name, seconds in found.items()
    ]
    report.write(args.csv, rows, args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
