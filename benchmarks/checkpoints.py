"""Seconds to save and restore the state of a run, compared with torch.save and numpy.savez of the same arrays.

    python benchmarks/checkpoints.py --csv benchmarks/results/checkpoints.csv

The state is that of SqueezeNet 1.0 with momentum and averaged weights: three copies of 1,248,424 numbers in 156 leaves.
`ours` uses Orbax, writes to a temporary folder first, stores a SHA-256 per leaf and verifies it when reading; the peers
do none of this. The programs alternate; the table has medians over the rounds.
"""

import pathlib
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
import report

from squeeze_jax.config import base_config
from squeeze_jax.experiment import build
from squeeze_jax.workdir.checkpoints import Checkpoints


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> int:
    args = report.parser(__doc__).parse_args()
    config = base_config()
    config.dataset.name = "fake/224x224x3/1000"
    config.model.name = "squeezenet_v1_0"
    config.train.ema_decay = 0.99
    state = jax.jit(build(config).initial_state)(0)
    arrays = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    found: dict[tuple[str, str], list[float]] = {}

    def add(program: str, action: str, value: float) -> None:
        found.setdefault((program, action), []).append(value)

    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        checkpoints = Checkpoints(folder)
        for step in range(args.rounds + 1):
            ours = seconds(lambda step=step: checkpoints.save(step, state, {"best_step": None, "best_value": None}))
            back = seconds(lambda: checkpoints.restore_latest(state))
            numpy_save = seconds(lambda: np.savez(folder / "a.npz", **arrays))
            numpy_back = seconds(lambda: dict(np.load(folder / "a.npz")))
            times = [("ours", ours, back), ("numpy.savez", numpy_save, numpy_back)]
            try:
                import torch
            except ImportError:
                pass
            else:
                tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
                saved = seconds(lambda tensors=tensors: torch.save(tensors, folder / "a.pth"))
                times.append(("torch.save", saved, seconds(lambda: torch.load(folder / "a.pth"))))
            for program, save, restore in times if step else ():  # the first round warms up
                add(program, "save", save)
                add(program, "restore", restore)
        checkpoints.close()
    rows = [
        {"program": program, "action": action}
        | report.spread(values, "seconds", 3)
        | {"ours_over_this": report.ratio(found["ours", action], values)}
        for (program, action), values in found.items()
    ]
    report.write(args.csv, rows, args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
