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

Each line on the console is one event: what starts, and how many of all trials are done, with the metric of the last
one and an estimate of the time left.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import pathlib
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from experiments import report
from experiments.trials import (
    FAILURE_FILE,
    Sweep,
    SweepError,
    Trial,
    check,
    check_runs,
    claim,
    is_finished,
    measured,
    status,
)
from squeeze_jax import commands, console
from squeeze_jax.files import replaced, user_path

OUTPUT_FILE = "output.txt"
POLL_SECONDS = 1.0
ERROR_LINE = re.compile(r"^[\w.]*(Error|Exception|Interrupt)\b.*")


class Events:
    """Prints a line for each event of a sweep; in a terminal, none is longer than its width.

    Args:
      total: the number of trials.
      done: the number of those that are finished, or have failed, before.
      jobs: the number of trials at a time.
    """

    def __init__(self, total: int, done: int, jobs: int):
        self._total, self._done, self._jobs = total, done, jobs
        self._seconds: list[float] = []
        self._lock = threading.RLock()  # a signal may come while a line is printed
        if done:
            print(f"{done} of {total} trials are done already", flush=True)

    def say(self, name: str, text: str) -> None:
        """Prints an event of a trial."""
        with self._lock:
            print(fitting(name, text), flush=True)

    def done(self, name: str, text: str, seconds: float) -> None:
        """Prints the end of a trial, which took so many seconds, and the time left."""
        with self._lock:
            self._done += 1
            self._seconds.append(seconds)
            rest = self._total - self._done
            left = rest * statistics.mean(self._seconds) / min(self._jobs, max(rest, 1))
            count = f"[{self._done}/{self._total}]"
            self.say(f"{count} {name}", f"{text}, {duration(seconds)}" + (f"; {duration(left)} left" if rest else ""))


def fitting(name: str, text: str) -> str:
    """Returns "NAME: TEXT"; in a terminal, without the middle of the name and the end of the text if it is narrow."""
    if not sys.stdout.isatty():
        return f"{name}: {text}"
    width = shutil.get_terminal_size().columns - 1
    line = f"{console.shortened(name, max(width - len(text) - 2, 20))}: {text}"
    return line if len(line) <= width else f"{line[: width - 1]}…"


def duration(seconds: float) -> str:
    """Returns a duration in words, such as "45 s", "3 min" or "1 h 20 min"."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class Runner:
    """Runs trials in child processes.

    Args:
      workdir: the folder of the sweep.
      retry: whether to run failed trials again.
      metric: the column of the report that the console shows; if empty, that of `measured`.
    """

    def __init__(self, workdir: pathlib.Path, *, retry: bool, metric: str = ""):
        self._workdir = workdir
        self._retry = retry
        self._metric = metric
        self._events = Events(1, 0, 1)
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
                self._events.say(trial.name, "started")
                start = time.monotonic()
                self._train(trial, folder, file)
                self._tell_end(trial, folder, time.monotonic() - start)
        return status(folder)

    def _tell_end(self, trial: Trial, folder: pathlib.Path, seconds: float) -> None:
        if is_finished(folder):
            columns, chosen = measured(folder)
            metric = self._metric or chosen
            value = columns.get(metric)
            text = f"{metric} {value:.4f}" if isinstance(value, int | float) else "finished"
            self._events.done(trial.name, text, seconds)
        elif (folder / FAILURE_FILE).exists():
            self._events.done(trial.name, status(folder), seconds)
        else:
            self._events.say(trial.name, "stopped")

    def _train(self, trial: Trial, folder: pathlib.Path, claimed: TextIO) -> None:
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
        before = [status(self._workdir / trial.name) for trial in trials]
        done = sum(text == "finished" or (text.startswith("failed") and not self._retry) for text in before)
        self._events = Events(len(trials), done, jobs)
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            outcomes = zip(trials, pool.map(self.run, trials), strict=True)
            elsewhere = [trial for trial, outcome in outcomes if outcome == "running"]
        # If another process is killed, its trial must still be run.
        for trial in elsewhere:
            self._events.say(trial.name, "waiting for the process that is running it")
            while (outcome := self.run(trial)) == "running" and not self._stopping:
                time.sleep(POLL_SECONDS)
            self._events.say(trial.name, outcome)
        return all(status(self._workdir / trial.name) == "finished" for trial in trials)

    @property
    def stopped(self) -> bool:
        """Whether a signal has stopped the trials."""
        return self._stopping

    def _stop(self, *_) -> None:
        print("stopping; checkpoints are saved", flush=True)
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
        with console.doing(f"checking {len(trials)} trials"):
            check(trials, args.workdir)
        runner = Runner(args.workdir, retry=args.retry, metric=sweep.metric)
        if args.index is not None:
            if not 0 <= args.index < len(trials):
                raise SweepError(
                    f"--index={args.index} is not one of the {len(trials)} trials; expected 0 to {len(trials) - 1}, in "
                    f"the order of --list."
                )
            trial = trials[args.index]
            return 0 if runner.run_all([trial], 1) else 1
        finished = runner.run_all(trials, args.jobs)
    print(report.write(sweep, args.workdir, args.output or args.workdir, reused))
    if not args.report and runner.stopped:
        done = sum(is_finished(args.workdir / trial.name) for trial in trials)
        print(f"\nStopped with {done} of {len(trials)} trials finished. The same command continues:\n{_same_command()}")
    return 0 if args.report or finished else 1


def _same_command() -> str:
    """Returns the command that started this program, as it is typed."""
    _, *arguments = sys.orig_argv
    return shlex.join([pathlib.Path(sys.executable).name, *arguments])


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
