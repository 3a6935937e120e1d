"""Programs that take turns: each runs in a process of its own and measures when it is told to."""

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any


def take_turns(call: Callable[[], Any], warm_up_calls: int, turn_seconds: float, ready: str) -> None:
    """Measures a call once for each line of input, until input ends; the program that reads the output sets the pace.

    Args:
      call: the call to measure.
      warm_up_calls: the number of calls before the first measurement.
      turn_seconds: the approximate duration of one measurement.
      ready: the line to print after the warm-up. Each measurement prints a line of JSON, the seconds per call and the
        peak memory of the process.
    """
    for _ in range(warm_up_calls):
        start = time.perf_counter()
        call()
    calls = max(1, round(turn_seconds / (time.perf_counter() - start)))
    print(ready, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        seconds = (time.perf_counter() - start) / calls
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak_mib": peak}), flush=True)
