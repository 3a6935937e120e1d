"""Which networks never leave ln(classes): batch norm, the ReLU after conv10, the learning rate.

    python -m experiments.dead_start --workdir runs/dead_start --output experiments/results

Users report that SqueezeNet can stay at its start for good (forresti/SqueezeNet#4, pytorch/vision#901). Here the share
of seeds whose validation loss ends within 2 % of ln(10): the embedded digits, 10 epochs instead of 40, 5 seeds,
60 trials.

Run here: 18 minutes on 2 CPU cores, two trials at a time, 0.6 core-hours (2026-11-22; experiments/results/
dead_start.csv, .md, .png).

Without batch norm all 30 runs end at the loss they began with, at every rate, with the ReLU after conv10 and without;
with it 25 of 30 have left it, all but those with the ReLU at the highest rate, so batch norm cures a dead start but for
that case. The ReLU costs accuracy where it does not kill: a test top-1 of 0.10 to 0.75 at 0.01 and 0.04, 0.91 to 0.96
without it (p < 0.001 at both, by the same command with `--report --metric test_top1`). These are 187 steps from random
weights: whether the plain network would start later was not asked.
"""

import math
import sys
from collections.abc import Mapping
from typing import Any

from experiments.sweep import main
from experiments.trials import Sweep

LEARNING_RATES = (0.01, 0.04, 0.16)
POINTS = [
    {"model.use_batch_norm": norm, "model.head_relu": relu, "optimizer.learning_rate": rate}
    for norm in (False, True)
    for rate in LEARNING_RATES
    for relu in (True, False)  # last, so that the table tests it in neighbouring rows
]


def is_dead(row: Mapping[str, Any]) -> dict[str, float]:
    return {"share_dead": float(row["validation_loss_at_end"] > 0.98 * math.log(10))}


SETTINGS = {
    "digits": Sweep(
        "dead_start",
        "configs/digits.py",
        POINTS,
        seeds=range(5),
        overrides={"train.duration": "10 epochs", "train.label_smoothing": 0.0},
        metric="share_dead",
        derived=is_dead,
        plots=[("optimizer.learning_rate", ""), ("optimizer.learning_rate", "test_top1")],
    )
}

if __name__ == "__main__":
    sys.exit(main(SETTINGS))
