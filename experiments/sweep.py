"""Sweeps of `python -m squeeze_jax.main`: trials in processes of their own, resumable, on one machine or on many.

    python -m experiments.sweep --config configs/digits.py --workdir runs/ratios --seeds 0,1,2 \\
        --config.model.squeeze_ratio=0.125,0.25,0.5 --config.train.ema_decay=0.9

Every combination of the values is a point, every point has a trial a seed; an argument with one value goes to all
trials. A study (experiments/squeeze_ratio.py, say) is such a sweep in a file, with the same arguments but --config.

A trial is a run in WORKDIR/NAME, and goes on where it was. Start the same command again, or in several processes and on
several machines that share WORKDIR, at any time: nothing runs twice. A trial is claimed by flock(2) on its `claim`
file, which the kernel releases with the trial's last process; so the shared folder must support flock between machines
(NFS 4, Lustre with `-o flock`, GPFS; not object stores behind FUSE). A trial that fails leaves failure.json and the
others run on; --retry runs it again.

    ... --list            the command of every trial, one a line: plain runs, whose failures no report knows
    ... --index 4         runs the fifth of them alone, for job arrays; a failure is recorded
    ... --report          table, CSV and plots of what is finished; changes nothing else
    ... --jobs 2          trials at a time
    ... --output FOLDER   where the report goes, WORKDIR by default; --name NAME calls its files
    ... --metric test_auc what its table compares
"""

import argparse
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
from collections.abc import Mapping, Sequence
from typing import TextIO

from experiments import report
from experiments.trials import FAILURE_FILE, Sweep, SweepError, Trial, check, check_runs, claim, status
from squeeze_jax.writers import RESULT_FILE

OUTPUT_FILE = "output.txt"
POLL_SECONDS = 1.0
ERROR_LINE = re.compile(r"^[\w.]*(Error|Exception|Interrupt)\b.*")


class Runner:
    """Runs trials in child processes."""

    def __init__(self, workdir: pathlib.Path, *, retry: bool):
        self._workdir = workdir
        self._retry = retry
        self._children: set[subprocess.Popen] = set()
        self._stopping = False

    def run(self, trial: Trial) -> str:
        """Runs a trial unless it is finished, has failed or is another process's; returns its status afterwards."""
        folder = self._workdir / trial.name
        with claim(folder) as file:
            if file is None:
                return "running"
            failure = folder / FAILURE_FILE
            if self._retry:
                failure.unlink(missing_ok=True)
            if not (folder / RESULT_FILE).exists() and not failure.exists() and not self._stopping:
                self._train(trial, folder, file)
        return status(folder)

    def _train(self, trial: Trial, folder: pathlib.Path, claimed: TextIO) -> None:
        print(f"{trial.name}: started", flush=True)
        output = folder / OUTPUT_FILE
        with output.open("w") as stream:
            # The child keeps the claim where this process is killed, and gets no Ctrl-C but ours.
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
            (folder / FAILURE_FILE).write_text(json.dumps({"status": code, "reason": reason}, indent=2) + "\n")

    def run_all(self, trials: Sequence[Trial], jobs: int) -> bool:
        """Runs what has not run; returns whether all trials are finished.

        SIGINT and SIGTERM stop the trials as they stop a run: the first saves checkpoints, the second ends at once.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            elsewhere = []
            for trial, outcome in zip(trials, pool.map(self.run, trials), strict=True):
                print(f"{trial.name}: {outcome}", flush=True)
                if outcome == "running":
                    elsewhere.append(trial)
        # Where another process was killed, its trial is still to be run.
        for trial in elsewhere:
            print(f"{trial.name}: waiting for the process that runs it", flush=True)
            while (outcome := self.run(trial)) == "running" and not self._stopping:
                time.sleep(POLL_SECONDS)
            print(f"{trial.name}: {outcome}", flush=True)
        return all(status(self._workdir / trial.name) == "finished" for trial in trials)

    def _stop(self, *_) -> None:
        print("stopping; the same command goes on", flush=True)
        self._stopping = True
        for child in list(self._children):
            child.terminate()


def _reason(code: int, output: str) -> str:
    if code < 0:
        hint = "; was the memory full?" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"
    lines = output.splitlines() or [f"exit status {code}"]
    return next((line for line in reversed(lines) if ERROR_LINE.match(line)), lines[-1])


def split_values(text: str) -> list[str]:
    """Splits at the commas that stand outside brackets and quotes: "1,(2,3)" has two values."""
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


def main(sweeps: Mapping[str, Sweep] | None = None) -> int:
    """The command of a study, whose settings have names; without them, of a sweep that the arguments describe."""
    documentation = sys.modules["__main__"].__doc__ or __doc__
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    if sweeps:
        parser.add_argument("--setting", choices=list(sweeps), default=next(iter(sweeps)))
    else:
        parser.add_argument("--config", required=True, help="config file, with its argument")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="a folder a trial is made there")
    parser.add_argument("--seeds", help="comma-separated")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time")
    parser.add_argument("--list", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--index", type=int, help="run this trial only, counted from 0 in the order of --list")
    parser.add_argument("--retry", action="store_true", help="run failed trials again")
    parser.add_argument("--report", action="store_true", help="write the report, run nothing")
    parser.add_argument("--metric", help="column of the CSV that the table and the tests compare")
    parser.add_argument("--name", help="of the report's files")
    parser.add_argument("--output", type=pathlib.Path, help="folder of the report; WORKDIR by default")
    args, rest = parser.parse_known_args()
    try:
        sweep = sweeps[args.setting] if sweeps else Sweep(_stem(args.config), args.config, [{}])
        sweep = dataclasses.replace(sweep, name=args.name or sweep.name, metric=args.metric or sweep.metric)
        sweep = _with_arguments(sweep, args.seeds, rest)
        trials = sweep.trials()
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
        print(report.write(sweep, args.workdir, args.output or args.workdir))
        return 0 if args.report or finished else 1
    except SweepError as error:
        print(f"SweepError: {error}", file=sys.stderr)
        return 1


def _stem(config: str) -> str:
    path, _, argument = config.partition(":")
    return pathlib.Path(path).stem + (f"_{argument}" if argument else "")


def _with_arguments(sweep: Sweep, seeds: str | None, arguments: Sequence[str]) -> Sweep:
    """The sweep with --seeds and the --config.KEY=VALUES of the command line."""
    points, overrides, published = list(sweep.points), dict(sweep.overrides), dict(sweep.published)
    for argument in arguments:
        match = re.fullmatch(r"--config\.([\w.]+)=(.*)", argument)
        if not match:
            raise SweepError(f"unknown argument {argument!r}; keys of the config are written --config.KEY=VALUE.")
        key, values = match[1], split_values(match[2])
        if key == "seed":
            raise SweepError(f"{argument}: seeds are given by --seeds={match[2]}.")
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
