"""Judges finished classifiers on the same test cases: metrics with intervals, DeLong's test, curves, FROC.

    python -m experiments.judge runs/lidc/* --output reports/lidc
    python -m experiments.judge runs/luna/* --output reports/luna --ensemble --nodules 1186 --scans 888

The runs are those of a sweep, or any workdirs. Runs whose configs differ in `seed` and `dataset.fold` only are of one
model. The folds of a model are pooled: each case is judged once, by the run that did not see its patient, at the
threshold and temperature that this run's validation split chose. --ensemble averages the probabilities of the seeds,
on the validation split too.

NAME.csv has a row per model, seed and metric, with 95 % bootstrap intervals over patients; NAME.md is the table, with
DeLong's test of each model against the first one; NAME_cases.csv has the judged cases; NAME.png ROC, precision-recall
and reliability. With --nodules, NAME_froc.png is the FROC curve, and the table has LUNA16's competition score. All of
them name the positive one of two classes, which --positive sets.
"""

import dataclasses
import functools
import math
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.report import mean_and_spread
from squeeze_jax import commands, load
from squeeze_jax import config as config_lib
from squeeze_jax.errors import InputError, MetricError
from squeeze_jax.experiment import make_task
from squeeze_jax.files import make_folder, replaced, user_path
from squeeze_jax.metrics import delong
from squeeze_jax.metrics.cases import Cases, pool
from squeeze_jax.metrics.froc import Froc, candidates, froc
from squeeze_jax.metrics.plots import draw_curves, draw_froc
from squeeze_jax.runtime import compilation_cache
from squeeze_jax.tables import markdown, write_csv
from squeeze_jax.tasks import Classification
from squeeze_jax.tasks.task import Records
from squeeze_jax.workdir.records import RESULT_FILE

ENSEMBLE = "ensemble"
NAMING = ("init_from", "model.name")  # the keys that say most about a model
SURE = 0.001  # the smallest p that is written as a number

Key = tuple[str, int | str]  # a model and its seed


@dataclasses.dataclass(frozen=True)
class Run:
    """What a finished run predicts.

    Attributes:
      model: the values of its config that seeds and folds share, by dotted key.
      seed: its seed, or ENSEMBLE.
      fold: the fold that is its test split; 0 without cross-validation.
      folds: the number of folds; 1 without cross-validation.
      task: its task, before anything is chosen on the validation split.
      validation: the records of its validation split; None if nothing is chosen there.
      test: those of its test split.
    """

    model: Mapping[str, Any]
    seed: int | str
    fold: int
    folds: int
    task: Classification
    validation: Records | None
    test: Records

    @functools.cached_property
    def _fitted(self) -> Classification:
        return self.task if self.validation is None else self.task.fitted(self.validation)

    def cases(self, first: int) -> Cases:
        """Returns the judged cases; those without ids are counted from `first`."""
        return self._fitted.cases(self.test, first)

    def candidates(self, first: int) -> dict[str, np.ndarray]:
        """Returns the arguments of `froc` for the examples; those without ids are counted from `first`."""
        return candidates(self.test, self._fitted.point, first, self.task.positive_class)


def evaluate(workdir: pathlib.Path, options: Mapping[str, Any]) -> Run:
    """Evaluates a run on its test split and, if needed, on its validation split.

    Args:
      workdir: of a finished run.
      options: other values for keys of `config.task`.

    Raises:
      InputError: it is not the finished run of a classifier.
    """
    if not (workdir / RESULT_FILE).exists():
        raise InputError(f"the run {workdir} is not finished; start its command again.")
    network = load(workdir)
    if not isinstance(network.task, Classification):
        raise InputError(f"{workdir} is not the run of a classifier.")
    config = network.config.copy_and_resolve_references()
    config.task.update({**options, "metrics": "full"})
    task = make_task(config, network.class_names)
    plain = config.copy_and_resolve_references()
    plain.task.update({"threshold": "0.5", "calibrate": False})  # `Run.cases` chooses them, after averaging over seeds
    records = {split: network.evaluate(split, config=plain).records for split in _splits(task)}
    values = config_lib.flatten(config)
    fold, folds = values.pop("dataset.fold", 0), values.pop("dataset.folds", 0)
    seed = values.pop("seed")
    model = {key: value for key, value in values.items() if not key.startswith("run.")}
    count = (len(folds) if isinstance(folds, tuple) else folds) or 1
    return Run(model, seed, fold if folds else 0, count, task, records.get("validation"), records["test"])


def _splits(task: Classification) -> Iterable[str]:
    return ("validation", "test") if task.fits_on_validation else ("test",)


def averaged(runs: Sequence[Run]) -> Run:
    """Returns an ensemble: the mean probabilities of runs of one model and fold.

    Raises:
      InputError: the runs have other examples.
    """

    def mean(parts: Sequence[Records]) -> Records:
        if any(not np.array_equal(part["label"], parts[0]["label"]) for part in parts):
            raise InputError("the seeds of a model were tested on different examples, so they make no ensemble.")
        return {**parts[0], "probability": np.mean([part["probability"] for part in parts], axis=0)}

    first = runs[0]
    validation = None if first.validation is None else mean([run.validation for run in runs])
    return dataclasses.replace(first, seed=ENSEMBLE, validation=validation, test=mean([run.test for run in runs]))


def grouped(runs: Sequence[Run], *, ensemble: bool) -> dict[Key, list[Run]]:
    """Returns the runs of all folds by model and seed, in the order of the runs.

    Args:
      runs: the runs.
      ensemble: whether to average over seeds.

    Raises:
      InputError: a fold is missing, or two runs have the same model, seed and fold.
    """
    models: dict[str, dict[int | str, dict[int, Run]]] = {}
    for name, run in zip(name_models([run.model for run in runs]), runs, strict=True):
        folds = models.setdefault(name, {}).setdefault(run.seed, {})
        if run.fold in folds:
            raise InputError(f"two runs have the model {name or 'of the first run'}, seed {run.seed}, fold {run.fold}.")
        folds[run.fold] = run
    found = {}
    for name, seeds in models.items():
        if ensemble:
            common = set.intersection(*(set(folds) for folds in seeds.values()))
            seeds = {ENSEMBLE: {fold: averaged([folds[fold] for folds in seeds.values()]) for fold in common}}
        for seed, folds in seeds.items():
            missing = set(range(next(iter(folds.values())).folds)) - set(folds) if folds else {0}
            if missing:
                raise InputError(
                    f"model {name or 'of the runs'}, seed {seed}: fold {min(missing)} is missing; finish its run first."
                )
            found[name, seed] = [folds[fold] for fold in sorted(folds)]
    return found


def judged(folds: Sequence[Run]) -> Cases:
    """Returns the pooled cases of the runs of all folds."""
    return pool([run.cases(first) for run, first in zip(folds, _first_examples(folds), strict=True)])


def free_response(folds: Sequence[Run], num_nodules: int, num_scans: int | None) -> Froc:
    """Returns the FROC curve of the runs of all folds; the counts are those of `froc`."""
    parts = [run.candidates(first) for run, first in zip(folds, _first_examples(folds), strict=True)]
    pooled = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return froc(**pooled, num_nodules=num_nodules, num_scans=num_scans)


def _first_examples(folds: Sequence[Run]) -> list[int]:
    """Returns the number of the first example of each fold, counted over all folds."""
    return [0, *np.cumsum([len(run.test["label"]) for run in folds])[:-1].tolist()]


def name_models(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a name for each model, of as few of its keys as tell the models apart; empty if all are the same."""
    differing = [key for key in models[0] if any(model.get(key) != models[0][key] for model in models)]
    kept = [key for key in NAMING if key in differing]

    def count(keys: Sequence[str]) -> int:
        return len({tuple(str(model.get(key)) for key in keys) for model in models})

    for key in differing:
        if count([*kept, key]) > count(kept):
            kept.append(key)
    shown = [{key: model.get(key) for key in kept if model.get(key) not in (None, "")} for model in models]
    return [", ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in values.items()) for values in shown]


def compare(found: Mapping[Key, Cases]) -> list[list[str]]:
    """Returns the rows of DeLong's test of each model against the first one, seed by seed.

    Where nothing varies, the cells of the interval and of p say so.

    Raises:
      InputError: the models were tested on different cases.
    """
    first = next(iter(found))[0]
    rows = []
    for (name, seed), cases in found.items():
        if name == first or (first, seed) not in found:
            continue
        base = found[first, seed]
        a, b = np.argsort(base.case), np.argsort(cases.case)
        columns = ("case", "label", "patient")
        if not all(np.array_equal(getattr(base, name)[a], getattr(cases, name)[b]) for name in columns):
            raise InputError(
                f"{name} and {first} were tested on different cases; compare runs with the same test split."
            )
        positive = base.positive
        scores = base.probability[a, positive], cases.probability[b, positive]
        try:
            test = delong.compare(base.label[a] == positive, *scores, base.patient[a])
        except MetricError as error:
            rows.append([name, str(seed), "", f"none: {error}", "none"])
            continue
        if math.isnan(test.p):
            cells = ["none: the difference has no variance", "none"]
        else:
            low, high = test.interval
            cells = [f"{low:+.4f} to {high:+.4f}", "< 0.001" if test.p < SURE else f"{test.p:.3f}"]
        rows.append([name, str(seed), f"{test.difference:+.4f}", *cells])
    return rows


def table(rows: Sequence[Mapping[str, Any]], curves: Mapping[Key, Froc]) -> str:
    """Returns the metrics as Markdown: a row per model and seed, the mean over the seeds of each model, and notes."""
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    header = ["model", "seed", "cases", "patients", *(name.replace("_", " ") for name in metrics)]
    header += ["competition score"] if curves else []
    lines, by_model = [], {}
    for row in rows:
        by_model.setdefault(row["model"], {}).setdefault(row["seed"], []).append(row)
    for model, seeds in by_model.items():
        for seed, of_seed in seeds.items():
            cells = [_cell(row) for row in of_seed]
            cells += [f"{curves[model, seed].competition_score:.3f}"] if curves else []
            lines.append([model, str(seed), str(of_seed[0]["cases"]), str(of_seed[0]["patients"]), *cells])
        if len(seeds) > 1:
            columns = [[row["value"] for row in column] for column in zip(*seeds.values(), strict=True)]
            columns += [[curves[model, seed].competition_score for seed in seeds]] if curves else []
            means = [mean_and_spread(values) if "" not in values else "" for values in columns]
            lines.append([model, "mean ± s. d.", "", "", *means])
    notes: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["note"]:
            of = notes.setdefault((_title((row["model"], row["seed"])), row["note"]), [])
            of.append(row["metric"].replace("_", " "))
    listed = ["- " + ": ".join(filter(None, [title, ", ".join(of), note])) for (title, note), of in notes.items()]
    return "\n".join([markdown(header, lines), *(["", *listed] if listed else [])])


def _title(key: Key) -> str:
    model, seed = key
    return ", ".join(filter(None, [model, f"seed {seed}" if seed != ENSEMBLE else ""]))


def _cell(row: Mapping[str, Any]) -> str:
    if row["value"] == "":
        return "not defined"
    return f"{row['value']:.3f}" + (f" ({row['low']:.3f} to {row['high']:.3f})" if row["low"] != "" else "")


def main() -> None:
    """Runs the command."""
    parser = commands.parser(__doc__)
    parser.add_argument("workdirs", nargs="+", type=user_path, help="workdirs; other files and folders are skipped")
    parser.add_argument("--output", required=True, type=user_path, help="folder of the report")
    parser.add_argument("--name", default="judge", help="name of the report's files")
    parser.add_argument("--ensemble", action="store_true", help="average the probabilities of a model's seeds")
    parser.add_argument("--positive", help="other value of config.task.positive, the class that is looked for")
    parser.add_argument("--threshold", help="other value of config.task.threshold")
    parser.add_argument("--calibrate", action="store_true", help="fit a temperature to each validation split")
    parser.add_argument("--mirror", nargs="+", help="average over mirror images along these axes")
    parser.add_argument("--nodules", type=int, help="nodules in all scans, for FROC; also those without a candidate")
    parser.add_argument("--scans", type=int, help="scans, for FROC; default: those that have candidates")
    args = parser.parse_args()
    if args.scans is not None and args.nodules is None:
        raise InputError("--scans is for FROC, which needs --nodules.")
    for flag, count in (("nodules", args.nodules), ("scans", args.scans)):
        if count is not None and count < 1:
            raise InputError(f"--{flag}={count}; expected at least 1.")
    compilation_cache.enable()
    options: dict[str, Any] = {}
    if args.positive:
        options["positive"] = args.positive
    if args.threshold:
        options["threshold"] = args.threshold
    if args.calibrate:
        options["calibrate"] = True
    if args.mirror:
        options["mirror"] = tuple(args.mirror)
    workdirs = [path for path in args.workdirs if (path / config_lib.CONFIG_FILE).exists()]
    if not workdirs:
        raise InputError("none of the arguments is the workdir of a run.")
    runs = [evaluate(workdir, options) for workdir in workdirs]
    task = runs[0].task
    if any(run.task.class_names != task.class_names for run in runs):
        raise InputError("the runs have different classes; judge runs on one dataset.")
    if any(run.task.positive_class != task.positive_class for run in runs):
        raise InputError("the runs have different positive classes; name one with --positive.")
    found = grouped(runs, ensemble=args.ensemble)
    write(found, task, args.output, args.name, num_nodules=args.nodules, num_scans=args.scans)


def write(
    found: Mapping[Key, Sequence[Run]],
    task: Classification,
    output: pathlib.Path,
    name: str,
    *,
    num_nodules: int | None = None,
    num_scans: int | None = None,
) -> None:
    """Writes the report and prints its table.

    Args:
      found: the runs of all folds by model and seed.
      task: gives the class names and the metrics.
      output: the folder.
      name: the name of the files.
      num_nodules: nodules in all scans; None for no FROC.
      num_scans: see `froc`.

    Raises:
      InputError: FROC is asked for with other than two classes, or the models were tested on different cases.
    """
    if num_nodules is not None and task.num_classes != 2:
        raise InputError(f"FROC (--nodules) is for two classes; there are {', '.join(task.class_names)}.")
    cases = {key: judged(folds) for key, folds in found.items()}
    curves = {}
    if num_nodules is not None:
        curves = {key: free_response(folds, num_nodules, num_scans) for key, folds in found.items()}
    scores, rows = [], []
    for key, of_key in cases.items():
        columns = dict(zip(("model", "seed"), key, strict=True))
        size = {"cases": len(of_key), "patients": len(np.unique(of_key.patient))}
        scores += task.score_rows(of_key, **columns, **size)
        rows += [{**columns, **row} for row in of_key.rows(task.class_names)]
    text = _text(scores, curves, compare(cases) if task.num_classes == 2 else [], task)
    make_folder(output)
    write_csv(output / f"{name}.csv", scores)
    write_csv(output / f"{name}_cases.csv", rows)
    draw_curves(output / f"{name}.png", {_title(key): of_key for key, of_key in cases.items()}, task.class_names)
    if curves:
        titled = {_title(key): curve for key, curve in curves.items()}
        draw_froc(output / f"{name}_froc.png", titled, task.class_names[task.positive_class])
    with replaced(output / f"{name}.md") as temporary:
        temporary.write_text(text + "\n")
    print(text)


def _text(
    scores: Sequence[Mapping[str, Any]],
    curves: Mapping[Key, Froc],
    tests: Sequence[Sequence[str]],
    task: Classification,
) -> str:
    parts = [f"{name.capitalize()}: {value}." for name, value in task.naming.items()] + [table(scores, curves)]
    if tests:
        header = ["DeLong's test of", "seed", "AUC minus that of the first model", "95 % interval", "p"]
        parts.append(markdown(header, tests))
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(commands.run(main))
