"""The trials of a sweep: their runs, names, claims and status."""

import contextlib
import dataclasses
import fcntl
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from absl import flags
from ml_collections import ConfigDict, config_flags

from squeeze_jax import commands, files
from squeeze_jax import config as config_lib
from squeeze_jax.errors import ConfigError, SqueezeJaxError
from squeeze_jax.workdir.folder import LOCK_FILE
from squeeze_jax.workdir.records import RESULT_FILE

if TYPE_CHECKING:
    from squeeze_jax.data.sources import Dataset

CLAIM_FILE = "claim"
FAILURE_FILE = "failure.json"
NO_WORKDIR = "none of the arguments is the workdir of a run, or a folder of such workdirs."
MIB = 2**20
DEPTH = 2  # of the folders above workdirs
UNSAFE = re.compile(r"[^\w.+-]")  # characters that are not allowed in a folder name


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
      config: the config file, with its argument.
      overrides: dotted keys and the text of their values, as on the command line.
      point: the overrides that the sweep varies.
      seed: the value of config.seed.
      imports: the modules of `--import`.
    """

    config: str
    overrides: Mapping[str, str]
    point: Mapping[str, str]
    seed: int
    imports: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The folder of the run, e.g. "squeeze_ratio=0.25,seed=0"; keys are shortened to their last part if unique."""
        short = [key.rsplit(".", 1)[-1] for key in self.point]
        keys = [key if short.count(last) > 1 else last for key, last in zip(self.point, short, strict=True)]
        parts = zip([*keys, "seed"], [*self.point.values(), str(self.seed)], strict=True)
        return ",".join(f"{key}={UNSAFE.sub('_', value)}" for key, value in parts)

    def flags(self) -> list[str]:
        """Returns the flags of the config."""
        values = {**self.overrides, "seed": str(self.seed)}
        imports = [f"--import={name}" for name in self.imports]
        return [*imports, f"--config={self.config}", *(f"--config.{key}={value}" for key, value in values.items())]

    def command(self, workdir: pathlib.Path) -> list[str]:
        """Returns the command of the run; `workdir` is the folder of the sweep."""
        return [sys.executable, "-m", "squeeze_jax.main", f"--workdir={workdir / self.name}", *self.flags()]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The trials of a sweep, and how they are reported.

    Attributes:
      name: the name of the report's files.
      config: a config file, with its argument.
      points: for each point, dotted config keys and their values.
      seeds: the seeds of every point.
      overrides: dotted config keys and values for all trials.
      published: additional columns of the table with published values, one per point.
      metric: the column of the CSV that the table compares; if empty, the metric that selects the checkpoints, on the
        test split.
      derived: maps the row of a finished trial to additional columns of the CSV.
      columns: further columns of the CSV whose means the table gives.
      plots: (x, y) of each plot, as columns of the CSV; an empty y is the metric.
      imports: the modules of `--import` of every trial.
    """

    name: str
    config: str
    points: Sequence[Mapping[str, Any]]
    seeds: Sequence[int] = (0, 1, 2)
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    published: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    metric: str = ""
    derived: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda row: {}
    columns: Sequence[str] = ()
    plots: Sequence[tuple[str, str]] = (("parameters", ""), ("macs", ""))
    imports: Sequence[str] = ()

    def trials(self) -> list[Trial]:
        """Returns the trials, seed by seed, so that a stopped sweep has all points for its first seeds."""
        shared = {key: str(value) for key, value in self.overrides.items()}
        points = [{key: str(value) for key, value in point.items()} for point in self.points]
        return [
            Trial(self.config, shared | point, point, seed, self.imports) for seed in self.seeds for point in points
        ]


class SweepError(SqueezeJaxError, ValueError):
    """An invalid sweep, trial or argument."""


def check(trials: Sequence[Trial], workdir: pathlib.Path) -> None:
    """Checks every trial: parses its flags as its process will, opens its dataset and splits, and traces its network.

    Raises:
      SweepError: a key, a value or a dataset is invalid, two trials have the same name, or a folder contains a run of
        another config.
    """
    from squeeze_jax.experiment import build, open_config_dataset
    from squeeze_jax.training.fine_tuning import with_weights

    datasets: dict[str, Dataset] = {}
    traced: set[str] = set()
    completed: dict[str, ConfigDict] = {}  # by folder

    def check_one(trial: Trial, config: ConfigDict) -> None:
        earlier = completed.get(config.init_from)  # a trial whose weights are not there yet
        config = with_weights(config) if earlier is None else config_lib.complete(config, earlier)
        completed[str(workdir / trial.name)] = config
        of_dataset = f"{config.dataset} {config.crop} {config.run.data_dir}"
        if of_dataset not in datasets:
            datasets[of_dataset] = open_config_dataset(config)
        experiment = build(config, datasets[of_dataset])
        of_network = f"{experiment.model} {experiment.input_shape}"
        if of_network not in traced:
            _ = experiment.summary  # raises if the images are too small
            traced.add(of_network)

    check_runs(trials, workdir, check_one)


def check_runs(
    trials: Sequence[Trial],
    workdir: pathlib.Path,
    check_one: Callable[[Trial, ConfigDict], None] = lambda trial, config: None,
) -> None:
    """Checks the config of every trial, and compares it with that of the run in its folder, if any.

    Args:
      trials: the trials.
      workdir: the folder of the sweep.
      check_one: an additional check of each trial and its config.

    Raises:
      SweepError: a key or a value is invalid, two trials have the same name, or a folder contains a run of another
        config.
    """
    names = [trial.name for trial in trials]

    def check_stored(folder: pathlib.Path, config: ConfigDict) -> None:
        try:
            stored = config_lib.read(folder)[0]
        except ConfigError:  # missing, or damaged: its own process or the report says so, and the others go on
            return
        config_lib.check_same_experiment(stored, config, folder)

    for trial in trials:
        try:
            if names.count(trial.name) > 1:
                raise SweepError("two trials have this name; every point needs different values.")
            config = parse(trial)
            config_lib.validate(config)
            check_one(trial, config)
            check_stored(workdir / trial.name, config)
        except SqueezeJaxError as error:
            raise SweepError(f"trial {trial.name}: {error}") from error


def parse(trial: Trial) -> ConfigDict:
    """Returns the config that the trial's process will read; raises ConfigError if it is invalid."""
    arguments = [sys.argv[0], *trial.flags()]
    values = flags.FlagValues()
    flags.DEFINE_multi_string("import", [], commands.IMPORT, flag_values=values)
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=arguments)
    return commands.read_config(values, arguments)


@contextlib.contextmanager
def claim(folder: pathlib.Path) -> Iterator[TextIO | None]:
    """Yields the claim file of a trial, locked; None if another process has claimed the trial, or runs it anyway.

    Commands printed by --list run trials without a claim; such a run is recognized by the lock of its workdir.
    """
    files.make_folder(folder)
    with (folder / CLAIM_FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield None if _is_locked(folder / LOCK_FILE) else file


def _is_locked(path: pathlib.Path) -> bool:
    """Returns whether a process has locked the file, which is not changed and need not exist."""
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def read_json(path: pathlib.Path, *keys: str) -> dict[str, Any]:
    """Returns the object in a JSON file of a run or a trial.

    Args:
      path: the file.
      keys: some that the object must have.

    Raises:
      SweepError: the file is missing or damaged, or lacks a key; the message names it.
    """
    try:
        found = files.read_json(path)
    except ValueError as error:
        raise SweepError(f"{path} cannot be read: {error}.") from error
    missing = [key for key in keys if key not in found] if isinstance(found, dict) else ["{...}"]
    if missing:
        raise SweepError(f"{path} cannot be read: it lacks {', '.join(missing)}.")
    return found


def find_workdirs(path: pathlib.Path, depth: int = DEPTH) -> list[pathlib.Path]:
    """Returns the workdirs at or below a path: itself, the trials of a sweep, or those of the sweeps in a folder."""
    if (path / config_lib.CONFIG_FILE).exists():
        return [path]
    if not depth or not path.is_dir():
        return []
    return [found for child in sorted(path.iterdir()) for found in find_workdirs(child, depth - 1)]


def measured(folder: pathlib.Path) -> tuple[dict[str, Any], str]:
    """Returns the columns of a finished run in a report, and the metric that a sweep compares.

    By default, this is the metric that selects the checkpoints, on the test split if there is one, else on the
    validation split; "" if the run has neither.

    Args:
      folder: the workdir of the run.

    Raises:
      SweepError, ConfigError: a file of the run is missing or damaged.
    """
    result = read_json(folder / RESULT_FILE, "parameters", "macs", "step")
    chooser = config_lib.read(folder)[0].evaluation.best_metric
    columns = {
        "parameters": result["parameters"],
        "mebibytes": round(result["parameters"] * 4 / MIB, 2),
        "macs": result["macs"],
        "step": result["step"],
    }
    for split in ("validation", "test"):
        columns |= {f"{split}_{name}": value for name, value in result.get(split, {}).items()}
    return columns, next((f"{split}_{chooser}" for split in ("test", "validation") if split in result), "")


def is_finished(folder: pathlib.Path) -> bool:
    """Returns whether a trial has a result that can be read; if not, the trial's command writes it again."""
    try:
        return bool(read_json(folder / RESULT_FILE, "parameters", "macs", "step"))
    except SweepError:
        return False


def status(folder: pathlib.Path) -> str:
    """Returns the status of a trial: "finished", "failed: REASON", "running", "stopped" or "not run"."""
    if is_finished(folder):
        return "finished"
    if (folder / FAILURE_FILE).exists():
        try:
            return f"failed: {read_json(folder / FAILURE_FILE, 'reason')['reason']}"
        except SweepError as error:
            return f"failed: for an unknown reason, because {error}"
    if not folder.exists():
        return "not run"
    return "running" if _is_locked(folder / CLAIM_FILE) or _is_locked(folder / LOCK_FILE) else "stopped"
