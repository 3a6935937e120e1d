"""Deep Compression (Han et al. 2016, arXiv 1510.00149): pruning, weight sharing and entropy coding, with training.

    python -m experiments.deep_compression --config configs/cifar10.py --workdir runs/deep --dense "8 epochs"
    python -m experiments.deep_compression --config configs/digits.py --workdir runs/deep_digits \\
        --pruned "20 epochs" --shared "5 epochs"

For each seed, a dense network is trained, gradually pruned to a third of its weights, and fine-tuned with shared
weights of 8, 6 and 4 bits (--bits). Each stage is an ordinary run in WORKDIR/seed=0/pruned and so on, which starts from
the best checkpoint of the stage before it. The same command resumes a stopped study; finished runs, also those that
were started by hand, are not run again. --config.KEY=VALUE changes the config of all stages.

The network of each finished run is stored as WORKDIR/seed=0/pruned.sqz, without loss, so its accuracy is that of the
run. NAME.csv has one row per run, NAME.md one per stage. Checkpoints are selected on the validation split.

    ... --list            prints the command of every run
    ... --report          writes files and tables of the finished runs
    ... --publish FILE    also copies the network of one stage (--publish_stage) and of the seed that is best on the
                          validation split to FILE
"""

import argparse
import dataclasses
import pathlib
import re
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.report import difference, mean_and_spread
from experiments.sweep import Runner
from experiments.trials import SweepError, Trial, check, check_runs, parse, read_json, status
from squeeze_jax import commands, load
from squeeze_jax.files import make_folder, replaced, user_path
from squeeze_jax.models.variables import kernels
from squeeze_jax.network import Network
from squeeze_jax.pretrained import sqz
from squeeze_jax.tables import markdown, write_csv
from squeeze_jax.workdir.records import RESULT_FILE

PRUNED_BY = 2 / 3  # of the duration of the pruned stage; the rest of it trains with the final masks
PRUNING_STEPS = 20
EVALUATIONS = 6  # of a stage after the dense one


@dataclasses.dataclass(frozen=True)
class Run(Trial):
    """One stage of one seed; `point` is the name of the stage."""

    @property
    def stage(self) -> str:
        """The stage, such as "pruned"."""
        return self.point["stage"]

    @property
    def name(self) -> str:
        """The folder of the run, such as "seed=0/pruned"."""
        return f"seed={self.seed}/{self.stage}"


def runs_of(args: argparse.Namespace, overrides: Mapping[str, str]) -> list[list[Run]]:
    """Returns the runs in groups; those of a group depend only on earlier groups.

    Args:
      args: the arguments of the command.
      overrides: dotted config keys and the text of their values, for all stages.
    """

    def fine_tuned(seed: int, first: str, duration: str, rate: str) -> dict[str, str]:
        return {
            "init_from": str(args.workdir / f"seed={seed}" / first),
            "train.duration": duration,
            "schedule.warmup": "0 steps",
            "run.evaluate_every": _part(duration, 1 / EVALUATIONS),
            "optimizer.learning_rate": rate,
        }

    def run(stage: str, seed: int, values: Mapping[str, str]) -> Run:
        return Run(args.config, {**overrides, **values}, {"stage": stage}, seed)

    groups: list[list[Run]] = [[], [], []]
    for seed in map(int, args.seeds.split(",")):
        groups[0].append(run("dense", seed, {"train.duration": args.dense} if args.dense else {}))
        pruning = {
            "pruning.density": args.density,
            "pruning.scope": args.scope,
            "pruning.end": _part(args.pruned, PRUNED_BY),
            "pruning.every": _part(args.pruned, PRUNED_BY / PRUNING_STEPS),
        }
        groups[1].append(run("pruned", seed, fine_tuned(seed, "dense", args.pruned, args.pruned_rate) | pruning))
        for bits in args.bits.split(","):
            sharing = {"sharing.bits": bits, "optimizer.name": "adamw"}
            tuned = fine_tuned(seed, "pruned", args.shared, args.shared_rate)
            groups[2].append(run(f"shared_{bits}", seed, tuned | sharing))
    return groups


def _part(duration: str, fraction: float) -> str:
    """Returns a fraction of a duration such as "3 epochs"."""
    amount, _, unit = duration.partition(" ")
    try:
        return f"{float(amount) * fraction:g} {unit}"
    except ValueError:
        raise SweepError(f"{duration!r} is not a duration; expected a number and a unit, such as '3 epochs'.") from None


def row(run: Run, workdir: pathlib.Path) -> dict[str, Any]:
    """Stores the network of a run as a `.sqz` file and returns the run's row of the CSV."""
    found: dict[str, Any] = {"stage": run.stage, "seed": run.seed, "status": status(workdir / run.name)}
    if found["status"] != "finished":
        return found
    network = load(workdir / run.name)
    path = workdir / f"{run.name}.sqz"
    sqz.save(network, path)
    arrays = list(kernels(network.variables["params"]).values())
    result = read_json(workdir / run.name / RESULT_FILE, "step")
    found |= {
        "non_zero": sum(map(np.count_nonzero, arrays)) / sum(map(np.size, arrays)),
        "float32_bytes": 4 * sum(map(np.size, jax.tree.leaves(network.variables))),
        "bytes": path.stat().st_size,
        "step": result["step"],
        "metric": network.config.evaluation.best_metric,
    }
    for split in ("validation", "test"):
        found |= {f"{split}_{name}": value for name, value in result.get(split, {}).items()}
    return found


def report(rows: Sequence[Mapping[str, Any]], name: str, output: pathlib.Path) -> str:
    """Writes NAME.csv and NAME.md; returns the table, and the list of missing runs, as Markdown."""
    columns = dict.fromkeys(key for found in rows for key in found)
    write_csv(output / f"{name}.csv", [{key: found.get(key, "") for key in columns} for found in rows])
    finished = [found for found in rows if found["status"] == "finished"]
    lines, dense = [], [found for found in finished if found["stage"] == "dense"]
    for stage in dict.fromkeys(found["stage"] for found in finished):
        of_stage = [found for found in finished if found["stage"] == stage]
        size = statistics.mean(found["bytes"] for found in of_stage)
        metric = f"test_{of_stage[0]['metric']}"
        lines.append(
            [
                stage,
                f"{statistics.mean(found['non_zero'] for found in of_stage):.3f}",
                f"{size:,.0f}",
                f"{of_stage[0]['float32_bytes'] / size:.1f}",
                mean_and_spread([found[metric] for found in of_stage]),
                difference(dense, of_stage, metric) if stage != "dense" else "",
                str(len(of_stage)),
            ]
        )
    metric = finished[0]["metric"] if finished else "metric"
    header = ["stage", "non-zero", "bytes", "32 bits / file", f"test {metric} (mean ± s. d.)", "to dense", "seeds"]
    text = markdown(header, lines)
    missing = [f"- seed={r['seed']}/{r['stage']}: {r['status']}" for r in rows if r["status"] != "finished"]
    text = "\n".join([text, *(["", "Not in the table:", *missing] if missing else [])])
    with replaced(output / f"{name}.md") as temporary:
        temporary.write_text(text + "\n")
    return text


def publish(
    rows: Sequence[Mapping[str, Any]], stage: str, workdir: pathlib.Path, path: pathlib.Path, dataset: str
) -> str:
    """Writes the network of the seed that is best on the validation split to a file that names no local folder.

    Args:
      rows: the rows of the CSV.
      stage: the stage of the network.
      workdir: the folder of the study.
      path: the file to write.
      dataset: the name of the dataset that the file should give.

    Returns:
      A line with what its model card needs.

    Raises:
      SweepError: no run of the stage is finished.
    """
    candidates = [found for found in rows if found["stage"] == stage and found["status"] == "finished"]
    if not candidates:
        raise SweepError(f"--publish_stage {stage}: no run of this stage is finished.")
    best = max(candidates, key=lambda found: found[f"validation_{found['metric']}"])
    network: Network = load(workdir / f"seed={best['seed']}" / stage)
    config = network.config.copy_and_resolve_references()
    config.dataset.name, config.init_from, config.run.data_dir = dataset, "", None
    sqz.save(dataclasses.replace(network, config=config), path)
    values = ", ".join(f"{key} {value:.4f}" for key, value in best.items() if key.startswith(("validation_", "test_")))
    return f"{path}: {path.stat().st_size:,} bytes, seed {best['seed']}, step {best['step']}, {values}"


def main() -> int:
    """Runs the command of the study and returns its exit status."""
    return commands.run(_main)


def _main() -> int:
    parser = commands.parser(__doc__)
    parser.add_argument("--config", required=True, help="config file, with its argument")
    parser.add_argument("--workdir", required=True, type=user_path, help="folder of the study")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated integers")
    parser.add_argument("--dense", default="", help="duration of the dense stage; default: the config's")
    parser.add_argument("--pruned", default="3 epochs", help="duration of the pruned stage")
    parser.add_argument("--shared", default="1 epoch", help="duration of each stage with shared weights")
    parser.add_argument("--pruned_rate", help="learning rate of the pruned stage; default: a tenth of the config's")
    parser.add_argument("--shared_rate", default="0.0003", help="learning rate of the shared stages, by AdamW")
    parser.add_argument("--bits", default="8,6,4", help="comma-separated bits of the shared stages")
    parser.add_argument("--density", default="0.3333", help="fraction of the weights that are left")
    parser.add_argument("--scope", default="global", help="of the ranking by magnitude: layer or global")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at a time")
    parser.add_argument("--list", action="store_true", help="print the commands without running them")
    parser.add_argument("--retry", action="store_true", help="run failed runs again")
    parser.add_argument("--report", action="store_true", help="write files and tables without running anything")
    parser.add_argument("--publish", type=user_path, metavar="FILE", help="a .sqz file for the best network")
    parser.add_argument("--publish_stage", default="shared_6", help="the stage of that network")
    parser.add_argument("--name", default="deep_compression", help="name of the report's files")
    parser.add_argument("--output", type=user_path, help="folder of the report; default: WORKDIR")
    args, rest = parser.parse_known_args()
    overrides = {}
    for argument in rest:
        match = re.fullmatch(r"--config\.([\w.]+)=(.*)", argument)
        if not match or match[1] == "seed":
            raise SweepError(f"unknown argument {argument!r}; expected --config.KEY=VALUE, or --seeds for seeds.")
        overrides[match[1]] = match[2]
    config = parse(Trial(args.config, {}, {}, 0))
    args.pruned_rate = args.pruned_rate or f"{config.optimizer.learning_rate / 10:g}"
    groups = runs_of(args, overrides)
    runs = [run for group in groups for run in group]
    if args.list:
        for run in runs:
            print(shlex.join(run.command(args.workdir)))
        return 0
    finished = True
    if args.report:
        check_runs(runs, args.workdir)
    else:
        check(runs, args.workdir)
        runner = Runner(args.workdir, retry=args.retry)
        finished = all(runner.run_all(group, args.jobs) for group in groups)  # stops at the first unfinished group
    stages = list(dict.fromkeys(run.stage for run in runs))
    rows = [row(run, args.workdir) for run in sorted(runs, key=lambda run: stages.index(run.stage))]
    output = args.output or args.workdir
    make_folder(output)
    print(report(rows, args.name, output))
    if args.publish:
        print(publish(rows, args.publish_stage, args.workdir, args.publish, config.dataset.name))
    return 0 if args.report or finished else 1


if __name__ == "__main__":
    sys.exit(main())
