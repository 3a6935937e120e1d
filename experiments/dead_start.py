"""Which networks never leave a loss of ln(classes), depending on batch norm, the ReLU after conv10 and learning rate.

    python -m experiments.dead_start --workdir runs/dead_start --output experiments/results

Users report that the loss of SqueezeNet can stay at its initial value forever (forresti/SqueezeNet#4,
pytorch/vision#901). This study measures the fraction of seeds whose final validation loss is above 98 % of ln(10), on
scikit-learn's digits: 10 epochs instead of 40, 5 seeds, 60 trials.

Run here with two trials at a time, 18 minutes on 2 CPU cores, 0.6 core-hours (2026-11-22; experiments/results/
dead_start.csv, .md, .png).

Without batch norm, all 30 runs end at their initial loss, at every learning rate, with and without the ReLU after
conv10. With batch norm, 25 of 30 runs learn: all except those with the ReLU at the highest rate. So batch norm prevents
a dead start except in that case. Where the ReLU does not kill the network, it costs accuracy: the test top-1 is 0.10 to
0.75 with the ReLU at 0.01 and 0.04, and 0.91 to 0.96 without it (p < 0.001 at both rates, by the same command with
`--report --metric test_top1`). The runs have 187 steps from random weights; whether the plain network would start to
learn later was not tested.
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
    for relu in (True, False)  # last, so that the table compares neighboring rows
]


def is_dead(row: Mapping[str, Any]) -> dict[str, float]:
    return {"share_dead": float(row["validation_loss_at_end"] > 0.98 * math.log(10))}


SETTINGS = {
    "digits": Sweep(
        "dead_start",
        "configs/digits.py",
        POINTS,
        seeds=range(5),
        overrides={"train.duration": "10 epochs", "task.label_smoothing": 0.0},
        metric="share_dead",
        derived=is_dead,
        plots=[("optimizer.learning_rate", ""), ("optimizer.learning_rate", "test_top1")],
    )
}

if __name__ == "__main__":
    sys.exit(main(SETTINGS))
