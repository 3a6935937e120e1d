"""Measures where a step spends its time: the operations recorded by XLA's profiler, by layer.

    python benchmarks/layer_profile.py --csv benchmarks/results/layer_profile.csv --case 'training, v1.1, 224'

The cases are those of benchmarks/networks.py. The step is a complete one: loss, optimizer and normalization are in the
row "outside". XLA fuses operations across layers; a fused operation counts for the layer of its last part. Operations
that run concurrently share the time. The values are medians over the rounds. The row "step" is a whole step without the
profiler, in the column "forward".
"""

from squeeze_jax.runtime.memory import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()  # as squeeze_jax.main does

import collections
import pathlib
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import report
from layers import compiled_step
from networks import CASES

LAYER = re.compile(r"_feature_maps/(?:[^/]*/)*?(conv\d+|fire\d+|pool\d+|dropout)\b")
END = "end: "

Milliseconds = dict[tuple[str, bool], float]  # key: layer, and whether it is the backward pass


def trace(run: Callable[[], Any]) -> dict[str, float]:
    """Returns the milliseconds of every operation of one call. Operations that ran concurrently share the time."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(path))
    events = [
        (event.name, event.start_ns, event.end_ns, dict(event.stats))
        for plane in profile.planes
        for line in plane.lines
        for event in line.events
    ]
    # An operation that works in other threads returns immediately, and has a separate event for its end.
    ends = {stats["_c"]: end for name, _, end, stats in events if name.startswith(END) and "_c" in stats}
    changes = []
    for name, start, end, stats in events:
        if "hlo_op" in stats and not name.startswith(END):
            changes += [(start, name, 1), (max(end, ends.get(stats.get("_p"), 0)), name, -1)]
    sums: dict[str, float] = collections.defaultdict(float)
    running: collections.Counter[str] = collections.Counter()
    before = 0.0
    for now, name, change in sorted(changes):
        for other, count in running.items():
            sums[other] += (now - before) / 1e6 * count / running.total()
        running[name] += change
        running += collections.Counter()  # drops those that have ended
        before = now
    return sums


def sources_of(program: str) -> dict[str, str]:
    """Returns, for each instruction of a compiled module, the path of the source code that it comes from."""
    found: dict[str, str] = {}
    last_of_computation: dict[str, str] = {}
    computation = ""
    for line in program.splitlines():
        if opened := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line):
            computation = opened[1]
        elif instruction := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = ", line):
            named, called = re.search(r'op_name="([^"]*)"', line), re.search(r"calls=%?([\w.-]+)", line)
            source = named[1] if named else last_of_computation.get(called[1], "") if called else ""
            found[instruction[1]] = source
            if source:
                last_of_computation[computation] = source
    return found


def by_layer(operations: dict[str, float], sources: dict[str, str]) -> Milliseconds:
    sums: Milliseconds = collections.defaultdict(float)
    for name, milliseconds in operations.items():
        source = sources.get(name, "")
        layer = LAYER.search(source)
        elsewhere = "between layers" if "_feature_maps" in source else "outside"
        sums[layer[1] if layer else elsewhere, "transpose(" in source] += milliseconds
    return sums


def main() -> int:
    parser = report.parser(__doc__)
    parser.add_argument("--case", choices=CASES, required=True)
    args = parser.parse_args()
    compiled, run = compiled_step(CASES[args.case])
    sources = sources_of(compiled.as_text())
    rounds, steps = [], []
    for i in range(args.rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        if i:  # the first round is a warm-up
            steps.append(1000 * (time.perf_counter() - start))
            rounds.append(by_layer(trace(run), sources))

    def median(layer: str, is_backward: bool) -> float:
        return statistics.median(sums.get((layer, is_backward), 0.0) for sums in rounds)

    names = sorted({layer for sums in rounds for layer, _ in sums}, key=lambda name: (not name[-1].isdigit(), name))
    found = {name: (median(name, False), median(name, True)) for name in names}
    total = sum(map(sum, found.values()))
    rows = [
        {
            "case": args.case,
            "layer": name,
            "forward_milliseconds": round(forward, 2),
            "backward_milliseconds": round(backward, 2),
            "share": round((forward + backward) / total, 3),
        }
        for name, (forward, backward) in found.items()
    ]
    step = statistics.median(steps)
    rows.append({"case": args.case, "layer": "step", "forward_milliseconds": round(step, 2)})
    report.write(args.csv, rows, args.rounds, key="case")
    return 0


if __name__ == "__main__":
    sys.exit(main())
