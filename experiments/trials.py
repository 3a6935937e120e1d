"""The trials of a sweep: which runs, what each is called, and who has claimed it."""

import contextlib
import dataclasses
import fcntl
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from absl import flags
from ml_collections import ConfigDict, config_flags

from squeeze_jax import config as config_lib
from squeeze_jax import run
from squeeze_jax.data.sources import DataError, Dataset
from squeeze_jax.optimizers import make_schedule
from squeeze_jax.summary import summarize
from squeeze_jax.trainer import Plan
from squeeze_jax.workdir import LOCK_FILE
from squeeze_jax.writers import RESULT_FILE

CLAIM_FILE = "claim"
FAILURE_FILE = "failure.json"
UNSAFE = re.compile(r"[^\w.+-]")  # in the name of a folder


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run.

    Attributes:
      config: the config file, with its argument.
      overrides: dotted keys to the text of their values, as on the command line.
      point: those of them that the sweep varies.
      seed: config.seed.
    """

    config: str
    overrides: Mapping[str, str]
    point: Mapping[str, str]
    seed: int

    @property
    def name(self) -> str:
        """The folder of the run, e.g. "squeeze_ratio=0.25,seed=0"; keys are whole where their last parts are alike."""
        short = [key.rsplit(".", 1)[-1] for key in self.point]
        keys = [key if short.count(last) > 1 else last for key, last in zip(self.point, short, strict=True)]
        parts = zip([*keys, "seed"], [*self.point.values(), str(self.seed)], strict=True)
        return ",".join(f"{key}={UNSAFE.sub('_', value)}" for key, value in parts)

    def flags(self) -> list[str]:
        values = {**self.overrides, "seed": str(self.seed)}
        return [f"--config={self.config}", *(f"--config.{key}={value}" for key, value in values.items())]

    def command(self, workdir: pathlib.Path) -> list[str]:
        return [sys.executable, "-m", "squeeze_jax.main", f"--workdir={workdir / self.name}", *self.flags()]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What runs, and how it is reported.

    Attributes:
      name: of the report's files.
      config: a config file, with its argument.
      points: for each point, dotted keys of the config and their values.
      seeds: of every point.
      overrides: dotted keys and values of all trials.
      published: columns of the table with the paper's figures: a value a point.
      metric: the column of the CSV that the table compares; where empty, the test split's AUC or accuracy.
      derived: of the row of a finished trial, further columns.
      plots: x and y of each, columns of the CSV; an empty y is the metric.
    """

    name: str
    config: str
    points: Sequence[Mapping[str, Any]]
    seeds: Sequence[int] = (0, 1, 2)
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    published: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    metric: str = ""
    derived: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda row: {}
    plots: Sequence[tuple[str, str]] = (("parameters", ""), ("macs", ""))

    def trials(self) -> list[Trial]:
        """Seed by seed, so that a sweep that is stopped has whole rows of points."""
        shared = {key: str(value) for key, value in self.overrides.items()}
        points = [{key: str(value) for key, value in point.items()} for point in self.points]
        return [Trial(self.config, shared | point, point, seed) for seed in self.seeds for point in points]


class SweepError(ValueError):
    """A sweep that cannot run; the message says why."""


def check(trials: Sequence[Trial], workdir: pathlib.Path) -> None:
    """Parses the flags of every trial as its process will, opens its dataset and splits, and traces its network.

    Raises:
      SweepError: a key, a value or a dataset is wrong, two trials would share a folder, or a folder holds a run of
        another config.
    """
    datasets: dict[str, Dataset] = {}
    traced: set[str] = set()

    def check_one(config: ConfigDict) -> None:
        of_dataset = f"{config.dataset} {config.crop} {config.run.data_dir}"
        if of_dataset not in datasets:
            datasets[of_dataset] = run.dataset_of(config)
        dataset = datasets[of_dataset]
        splits = {split: run.split_of(dataset, config, split) for split in config_lib.SPLITS}
        plan = Plan.of(config, len(splits["train"] or ()))
        make_schedule(config.schedule, config.optimizer.learning_rate, plan.total, plan.warmup)
        shape = run.preprocessing_of(config).input_shape(dataset.image_shape)
        of_network = f"{config.model} {shape} {dataset.num_classes}"
        if of_network not in traced:
            summarize(run.model_of(config, dataset.num_classes), shape)
            traced.add(of_network)

    check_runs(trials, workdir, check_one)


def check_runs(
    trials: Sequence[Trial], workdir: pathlib.Path, check_one: Callable[[ConfigDict], None] = lambda config: None
) -> None:
    """Compares every trial with the run that its folder holds, if any; `check_one` says more of each config.

    Raises:
      SweepError: a key or a value is wrong, two trials would share a folder, or a folder holds a run of another config.
    """
    names = [trial.name for trial in trials]
    for trial in trials:
        try:
            if names.count(trial.name) > 1:
                raise SweepError("two trials have this name; each point must differ from the others in its values.")
            config = _parse(trial)
            config_lib.validate(config)
            check_one(config)
            folder = workdir / trial.name
            if (folder / config_lib.CONFIG_FILE).exists():
                config_lib.check_same_experiment(config_lib.read(folder)[0], config, folder)
        except (flags.Error, KeyError, AttributeError, TypeError, ValueError, OSError, DataError) as error:
            raise SweepError(f"trial {trial.name}: {error}") from error


def _parse(trial: Trial) -> ConfigDict:
    arguments = [sys.argv[0], *trial.flags()]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=arguments)
    values(arguments)
    return values.config


@contextlib.contextmanager
def claim(folder: pathlib.Path) -> Iterator[TextIO | None]:
    """The claim of a trial, or None where another process has it, or runs it without a claim as --list prints it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / CLAIM_FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield None if _is_locked(folder / LOCK_FILE) else file


def _is_locked(path: pathlib.Path) -> bool:
    """Whether a process holds the file, which need not exist and is not changed."""
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def status(folder: pathlib.Path) -> str:
    """ "finished", "failed: REASON", "running", "stopped" or "not run"."""
    if (folder / RESULT_FILE).exists():
        return "finished"
    if (folder / FAILURE_FILE).exists():
        return f"failed: {json.loads((folder / FAILURE_FILE).read_text())['reason']}"
    if not folder.exists():
        return "not run"
    return "running" if _is_locked(folder / CLAIM_FILE) or _is_locked(folder / LOCK_FILE) else "stopped"
