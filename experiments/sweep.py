"""Runs sweeps of `python -m squeeze_jax.main`: one process per trial, resumable, on one or several machines.

    python -m experiments.sweep --config configs/digits.py --workdir runs/ratios --seeds 0,1,2 \\
        --config.model.squeeze_ratio=0.125,0.25,0.5 --config.train.ema_decay=0.9

Every combination of values is a point, and every point has one trial per seed; an argument with one value applies to
all trials. A study such as experiments/squeeze_ratio.py is a sweep defined in a file, with the same arguments except
--config.

A trial is a run in WORKDIR/NAME, and is resumed if it was stopped. You can start the same command again at any time,
also in several processes and on several machines that share WORKDIR: nothing runs twice. A trial is claimed by flock(2)
on its `claim` file, which the kernel releases when the trial's last process ends; so the shared folder must support
flock between machines (NFS 4, Lustre with `-o flock`, GPFS; not object stores behind FUSE). A failed trial leaves
failure.json, and the other trials continue; --retry runs it again.

    ... --list            prints the command of every trial, one per line; failures of runs started so are not recorded
    ... --index 4         runs only the fifth trial, for job arrays; a failure is recorded
    ... --report          writes table, CSV and plots of the finished trials; changes nothing else
    ... --jobs 2          number of trials at a time
    ... --reuse FILE.csv  takes the finished trials of an earlier report instead of running them
    ... --output FOLDER   folder of the report, WORKDIR by default; --name NAME sets the names of its files
    ... --metric test_auc metric that its table compares
"""

import concurrent.futures
import dataclasses
import itertools
import json
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from experiments import report
from experiments.trials import FAILURE_FILE, Sweep, SweepError, Trial, check, check_runs, claim, is_finished, status
from squeeze_jax import commands
from squeeze_jax.files import replaced, user_path

OUTPUT_FILE = "output.txt"
POLL_SECONDS = 1.0
ERROR_LINE = re.compile(r"^[\w.]*(Error|Exception|Interrupt)\b.*")


class Runner:
    """Runs trials in child processes.

    Args:
      workdir: the folder of the sweep.
      retry: whether to run failed trials again.
    """

    def __init__(self, workdir: pathlib.Path, *, retry: bool):
        self._workdir = workdir
        self._retry = retry
        self._children: set[subprocess.Popen] = set()
        self._stopping = False

    def run(self, trial: Trial) -> str:
        """Runs a trial unless it is finished, failed or claimed by another process; returns its status afterwards."""
        folder = self._workdir / trial.name
        with claim(folder) as file:
            if file is None:
                return "running"
            failure = folder / FAILURE_FILE
            if self._retry:
                failure.unlink(missing_ok=True)
            if not is_finished(folder) and not failure.exists() and not self._stopping:
                self._train(trial, folder, file)
        return status(folder)

    def _train(self, trial: Trial, folder: pathlib.Path, claimed: TextIO) -> None:
        print(f"{trial.name}: started", flush=True)
        output = folder / OUTPUT_FILE
        with output.open("w") as stream:
            # The child keeps the claim if this process is killed, and receives Ctrl-C only from this process.
            child = subprocess.Popen(
                trial.command(self._workdir),
                stdout=stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                pass_fds=[claimed.fileno()],
                start_new_session=True,
            )
            self._children.add(child)
            if self._stopping:
                child.terminate()
            code = child.wait()
            self._children.discard(child)
        if code and not self._stopping:
            reason = _reason(code, output.read_text(errors="replace"))
            with replaced(folder / FAILURE_FILE) as temporary:
                temporary.write_text(json.dumps({"status": code, "reason": reason}, indent=2) + "\n")

    def run_all(self, trials: Sequence[Trial], jobs: int) -> bool:
        """Runs the trials that have not run; returns whether all trials are finished.

        SIGINT and SIGTERM stop the trials like a single run: the first saves checkpoints, the second ends immediately.

        Args:
          trials: the trials.
          jobs: the number of trials at a time.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            elsewhere = []
            for trial, outcome in zip(trials, pool.map(self.run, trials), strict=True):
                print(f"{trial.name}: {outcome}", flush=True)
                if outcome == "running":
                    elsewhere.append(trial)
        # If another process is killed, its trial must still be run.
        for trial in elsewhere:
            print(f"{trial.name}: waiting for the process that is running it", flush=True)
            while (outcome := self.run(trial)) == "running" and not self._stopping:
                time.sleep(POLL_SECONDS)
            print(f"{trial.name}: {outcome}", flush=True)
        return all(status(self._workdir / trial.name) == "finished" for trial in trials)

    def _stop(self, *_) -> None:
        print("stopping; the same command resumes the sweep", flush=True)
        self._stopping = True
        for child in list(self._children):
            child.terminate()


def _reason(code: int, output: str) -> str:
    if code < 0:
        hint = "; did it run out of memory?" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"
    lines = output.splitlines() or [f"exit status {code}"]
    return next((line for line in reversed(lines) if ERROR_LINE.match(line)), lines[-1])


def split_values(text: str) -> list[str]:
    """Splits text at commas outside brackets and quotes: "1,(2,3)" has two values."""
    values, depth, quote, start = [], 0, "", 0
    for i, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and not depth:
            values.append(text[start:i])
            start = i + 1
    return [*values, text[start:]]


def main(sweeps: Mapping[str, Sweep | Callable[[], Sweep]] | None = None) -> int:
    """Runs the command of a study or a sweep.

    Args:
      sweeps: the named settings of a study, or functions that return them, for those that depend on earlier results;
        None for a sweep that is described by the command-line arguments.

    Returns:
      The exit status.
    """
    return commands.run(lambda: _main(sweeps))


def _main(sweeps: Mapping[str, Sweep | Callable[[], Sweep]] | None) -> int:
    documentation = sys.modules["__main__"].__doc__ or __doc__
    parser = commands.parser(documentation)
    if sweeps:
        parser.add_argument("--setting", choices=list(sweeps), default=next(iter(sweeps)))
    else:
        parser.add_argument("--config", required=True, help="config file, with its argument")
    parser.add_argument("--workdir", required=True, type=user_path, help="folder of the sweep, one subfolder per trial")
    parser.add_argument("--seeds", help="comma-separated integers")
    parser.add_argument("--jobs", type=int, default=1, help="number of trials at a time")
    parser.add_argument("--list", action="store_true", help="print the commands without running them")
    parser.add_argument("--index", type=int, help="run only this trial, counted from 0 in the order of --list")
    parser.add_argument("--retry", action="store_true", help="run failed trials again")
    parser.add_argument(
        "--reuse",
        type=user_path,
        action="append",
        default=[],
        metavar="CSV",
        help="take the finished trials of this report instead of running them; may be repeated",
    )
    parser.add_argument("--report", action="store_true", help="write the report without running anything")
    parser.add_argument("--metric", help="column of the CSV to compare in the table and its tests")
    parser.add_argument("--name", help="name of the report's files")
    parser.add_argument("--output", type=user_path, help="folder of the report; default: WORKDIR")
    args, rest = parser.parse_known_args()
    sweep = sweeps[args.setting] if sweeps else Sweep(_stem(args.config), args.config, [{}])
    sweep = sweep() if callable(sweep) else sweep
    sweep = dataclasses.replace(
        sweep, name=args.name or sweep.name, metric=args.metric or sweep.metric, imports=args.imports
    )
    sweep = _with_arguments(sweep, args.seeds, rest)
    trials = sweep.trials()
    earlier = [item for path in args.reuse for item in report.read_rows(path, trials).items()]
    reused = {name: row for name, row in earlier if row["status"] == "finished"}
    trials = [trial for trial in trials if trial.name not in reused]
    if args.list:
        for trial in trials:
            print(shlex.join(trial.command(args.workdir)))
        return 0
    if args.report:
        check_runs(trials, args.workdir)
    else:
        check(trials, args.workdir)
        runner = Runner(args.workdir, retry=args.retry)
        if args.index is not None:
            if not 0 <= args.index < len(trials):
                raise SweepError(f"--index={args.index}; expected 0 to {len(trials) - 1}.")
            trial = trials[args.index]
            return 0 if runner.run_all([trial], 1) else 1
        finished = runner.run_all(trials, args.jobs)
    print(report.write(sweep, args.workdir, args.output or args.workdir, reused))
    return 0 if args.report or finished else 1


def _stem(config: str) -> str:
    path, _, argument = config.partition(":")
    return pathlib.Path(path).stem + (f"_{argument}" if argument else "")


def _with_arguments(sweep: Sweep, seeds: str | None, arguments: Sequence[str]) -> Sweep:
    """Returns the sweep with --seeds and --config.KEY=VALUES of the command line applied."""
    points, overrides, published = list(sweep.points), dict(sweep.overrides), dict(sweep.published)
    for argument in arguments:
        match = re.fullmatch(r"--config\.([\w.]+)=(.*)", argument)
        if not match:
            raise SweepError(f"unknown argument {argument!r}; config keys are written as --config.KEY=VALUE.")
        key, values = match[1], split_values(match[2])
        if key == "seed":
            raise SweepError(f"{argument}: use --seeds={match[2]} to set the seeds.")
        if any(key in point for point in points):
            raise SweepError(
                f"{argument}: the sweep varies {key} itself; leave the argument out, or use another sweep."
            )
        if len(values) == 1:
            overrides[key] = values[0]
        else:
            points = [{**point, key: value} for point, value in itertools.product(points, values)]
            published = {name: [cell for cell in column for _ in values] for name, column in published.items()}
    try:
        numbers = sweep.seeds if seeds is None else [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise SweepError(f"--seeds={seeds}; expected integers such as 0,1,2.") from None
    return dataclasses.replace(sweep, points=points, overrides=overrides, published=published, seeds=numbers)


if __name__ == "__main__":
    sys.exit(main())
