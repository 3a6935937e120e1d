"""Judges finished classifiers on the same test cases: metrics with intervals, DeLong's test, curves, FROC.

    python -m experiments.judge runs/lidc/* --output reports/lidc
    python -m experiments.judge 2-D=runs/slices 3-D=runs/volumes --output reports/both
    python -m experiments.judge runs/luna/* --output reports/luna --ensemble --nodules 1186 --scans 888

The runs are workdirs, or folders of them such as that of a sweep. Runs whose configs differ in `seed` and
`dataset.fold` only are of one model. A model is called what precedes the `=` before its path, or by --names, else after
what tells it from the others. The folds of a model are pooled: each case is judged once, by the run that did not see
its patient, at the threshold and temperature that this run's validation split chose. --ensemble averages the
probabilities of the seeds, on the validation split too.

NAME.csv has a row per model, seed and metric, with 95 % bootstrap intervals over patients; NAME.md is the table, with
the folds one by one and DeLong's test of each model against the first one; NAME_cases.csv has the judged cases;
NAME_folds.csv the folds; NAME.png ROC, precision-recall and reliability. With --nodules, NAME_froc.png is the FROC
curve, and the table has LUNA16's competition score. All of them name the positive one of two classes, which --positive
sets.
"""

import dataclasses
import functools
import math
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.report import mean_and_spread
from experiments.trials import NO_WORKDIR, find_workdirs
from squeeze_jax import commands, console
from squeeze_jax import config as config_lib
from squeeze_jax.errors import InputError, MetricError
from squeeze_jax.files import make_folder, replaced, user_path
from squeeze_jax.metrics import delong
from squeeze_jax.metrics.cases import Cases, groups_of, pool
from squeeze_jax.metrics.froc import Froc, Marks, candidates
from squeeze_jax.metrics.plots import draw_curves, draw_froc
from squeeze_jax.metrics.scores import available, scores
from squeeze_jax.tables import markdown, write_csv
from squeeze_jax.workdir.records import RESULT_FILE

if TYPE_CHECKING:
    from squeeze_jax.tasks import Classification
    from squeeze_jax.tasks.task import Records

ENSEMBLE = "ensemble"
# The keys that say most about a model, or how such keys begin.
NAMING = ("model.name", "init_from", "model.", "dataset.name", "dataset.")
OF_FOLDS = ("auc", "accuracy", "sensitivity", "specificity")  # the metrics of the table of folds
WHY_POOLED = (
    "Pooled, cases of different folds are ranked against each other, although the probabilities of two runs need not "
    "be on one scale; so the pooled AUC may lie below, or above, that of every fold. Each fold has its own threshold, "
    "so the operating point of the pooled cases need not lie on their curve."
)
SURE = 0.001  # the smallest p that is written as a number

Key = tuple[str, int | str]  # a model and its seed


@dataclasses.dataclass(frozen=True)
class Run:
    """What a finished run predicts.

    Attributes:
      workdir: its workdir.
      named: the name that the user gave its model; "" for none.
      model: the values of its config that seeds and folds share, by dotted key.
      seed: its seed, or ENSEMBLE.
      fold: the fold that is its test split; 0 without cross-validation.
      folds: the number of folds; 1 without cross-validation.
      task: its task, before anything is chosen on the validation split.
      validation: the records of its validation split; None if nothing is chosen there.
      test: those of its test split.
    """

    workdir: pathlib.Path
    named: str
    model: Mapping[str, Any]
    seed: int | str
    fold: int
    folds: int
    task: "Classification"
    validation: "Records | None"
    test: "Records"

    @functools.cached_property
    def _fitted(self) -> "Classification":
        return self.task if self.validation is None else self.task.fitted(self.validation)

    def cases(self, first: int) -> Cases:
        """Returns the judged cases; those without ids are counted from `first`."""
        return self._fitted.cases(self.test, first)

    def candidates(self, first: int) -> dict[str, np.ndarray]:
        """Returns the arguments of `froc` for the examples; those without ids are counted from `first`."""
        return candidates(self.test, self._fitted.point, first, self.task.positive_class)

    def scores(self, cases: Cases) -> dict[str, float]:
        """Returns the metrics of the table of folds for the cases of this run, and the threshold of two classes."""
        names = [name for name in OF_FOLDS if name in available(cases.num_classes)]
        return scores(cases, names) | ({"threshold": self._fitted.point.threshold} if cases.num_classes == 2 else {})


def evaluate(workdir: pathlib.Path, options: Mapping[str, Any], named: str = "") -> Run:
    """Evaluates a run on its test split and, if needed, on its validation split.

    Args:
      workdir: of a finished run.
      options: other values for keys of `config.task`.
      named: the name that the user gave its model; "" for none.

    Raises:
      InputError: it is not the finished run of a classifier.
    """
    if not (workdir / RESULT_FILE).exists():
        raise InputError(f"the run {workdir} is not finished; start its command again.")
    from squeeze_jax import load
    from squeeze_jax.experiment import make_task
    from squeeze_jax.tasks import Classification

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
    fold = fold if folds else 0
    return Run(workdir, named, model, seed, fold, count, task, records.get("validation"), records["test"])


def _splits(task: "Classification") -> Iterable[str]:
    return ("validation", "test") if task.fits_on_validation else ("test",)


def averaged(runs: Sequence[Run]) -> Run:
    """Returns an ensemble: the mean probabilities of runs of one model and fold.

    Raises:
      InputError: the runs have other examples.
    """

    def mean(parts: "Sequence[Records]") -> "Records":
        if any(not np.array_equal(part["label"], parts[0]["label"]) for part in parts):
            raise InputError("the seeds of a model were tested on different examples, so they make no ensemble.")
        return {**parts[0], "probability": np.mean([part["probability"] for part in parts], axis=0)}

    first = runs[0]
    validation = None if first.validation is None else mean([run.validation for run in runs])
    return dataclasses.replace(first, seed=ENSEMBLE, validation=validation, test=mean([run.test for run in runs]))


def grouped(runs: Sequence[Run], *, ensemble: bool, names: Sequence[str] = ()) -> dict[Key, list[Run]]:
    """Returns the runs of all folds by model and seed, in the order of the runs.

    Args:
      runs: the runs.
      ensemble: whether to average over seeds.
      names: of the models, in the order of the runs; empty for those that the runs or their configs have.

    Raises:
      InputError: a fold is missing, two runs have the same model, seed and fold, or there are more or fewer names than
        models.
    """
    models: dict[str, dict[int | str, dict[int, Run]]] = {}
    for name, run in zip(name_models(runs, names), runs, strict=True):
        folds = models.setdefault(name, {}).setdefault(run.seed, {})
        if run.fold in folds:
            raise InputError(
                f"{folds[run.fold].workdir} and {run.workdir} are both of the model {name}, seed {run.seed}, fold "
                f"{run.fold}; judge one of them."
            )
        folds[run.fold] = run
    found = {}
    for name, seeds in models.items():
        if ensemble:
            common = set.intersection(*(set(folds) for folds in seeds.values()))
            seeds = {ENSEMBLE: {fold: averaged([folds[fold] for folds in seeds.values()]) for fold in common}}
        for seed, folds in seeds.items():
            missing = set(range(next(iter(folds.values())).folds)) - set(folds) if folds else {0}
            if missing:
                raise InputError(f"model {name}, seed {seed}: fold {min(missing)} is missing; finish its run first.")
            found[name, seed] = [folds[fold] for fold in sorted(folds)]
    return found


def judged(folds: Sequence[Run]) -> Cases:
    """Returns the pooled cases of the runs of all folds."""
    return pool([run.cases(first) for run, first in zip(folds, _first_examples(folds), strict=True)])


def free_response(folds: Sequence[Run], num_nodules: int, num_scans: int | None) -> tuple[Froc, str]:
    """Returns the FROC curve of the runs of all folds, and its competition score with the interval over patients.

    Args:
      folds: the runs.
      num_nodules, num_scans: see `Marks.of`.
    """
    firsts = _first_examples(folds)
    parts = [run.candidates(first) for run, first in zip(folds, firsts, strict=True)]
    pooled = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    patient = np.concatenate([groups_of(run.test, first)[1] for run, first in zip(folds, firsts, strict=True)])
    marks = Marks.of(**pooled, num_nodules=num_nodules, num_scans=num_scans)
    curve = marks.curve()
    interval, reason = marks.competition_interval(patient)
    text = f"({interval[0]:.3f} to {interval[1]:.3f})" if interval else f"({reason.rstrip('.')})"
    return curve, f"{curve.competition_score:.3f} {text}"


def _first_examples(folds: Sequence[Run]) -> list[int]:
    """Returns the number of the first example of each fold, counted over all folds."""
    return [0, *np.cumsum([len(run.test["label"]) for run in folds])[:-1].tolist()]


def name_models(runs: Sequence[Run], names: Sequence[str] = ()) -> list[str]:
    """Returns the name of the model of each run.

    That is the one that the user gave, or the name of the network with as few values of the config as tell the models
    apart; where long values such as tuples alone differ, the folder of the runs.

    Args:
      runs: the runs.
      names: of the models, in the order of the runs.

    Raises:
      InputError: there are more or fewer names than models, or two models have the same name.
    """
    models: list[tuple[str, Mapping[str, Any]]] = []
    for run in runs:
        if (run.named, run.model) not in models:
            models.append((run.named, run.model))
    if names and len(names) != len(models):
        raise InputError(
            f"--names has {len(names)} names, but the runs are of {len(models)} models: "
            f"{', '.join(dict.fromkeys(name_models(runs)))}."
        )
    found = list(names) or [given or own for (given, _), own in zip(models, _own_names(runs, models), strict=True)]
    if twice := sorted({name for name in found if found.count(name) > 1}):
        raise InputError(
            f"{found.count(twice[0])} models, whose configs differ, are called {twice[0]}; give each a name of its own "
            f"by NAME=PATH, or by --names."
        )
    return [found[models.index((run.named, run.model))] for run in runs]


def _own_names(runs: Sequence[Run], models: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    configs = [config for _, config in models]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    short = [key for key in keys if all(isinstance(config.get(key), str | int | float | None) for config in configs)]
    best = [key for start in NAMING for key in short if key.startswith(start)]
    kept: list[str] = []

    def names(keys: Sequence[str]) -> list[str]:
        return [", ".join(filter(None, (_shown(key, config.get(key)) for key in keys))) for config in configs]

    for key in dict.fromkeys([*best, *short]):
        if len(set(names([*kept, key]))) > len(set(names(kept))):
            kept.append(key)
    found = names(dict.fromkeys(["model.name", *kept]))
    if len(set(found)) == len(found) and all(found):
        return found
    first = [next(run for run in runs if (run.named, run.model) == model) for model in models]
    return [run.workdir.resolve().parent.name if run.folds > 1 else run.workdir.resolve().name for run in first]


def _shown(key: str, value: Any) -> str:
    """Returns a value of a config as a part of a model's name: the name of a network as it is, the end of a path."""
    if value is None or value == "":
        return ""
    last = pathlib.PurePath(value).name if key in commands.PATH_KEYS else value
    return str(value) if key == "model.name" else f"{key.rsplit('.', 2)[-2 if key.endswith('.name') else -1]}={last}"


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


def table(rows: Sequence[Mapping[str, Any]], curves: Mapping[Key, tuple[Froc, str]]) -> str:
    """Returns the metrics as Markdown: a row per model and seed, the mean over the seeds of each model, and notes.

    Args:
      rows: see `Classification.score_rows`.
      curves: the FROC curve of each model and seed, and its score as text; {} for none.
    """
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    header = ["model", "seed", "cases", "patients", *(name.replace("_", " ") for name in metrics)]
    header += ["competition score"] if curves else []
    lines, by_model = [], {}
    for row in rows:
        by_model.setdefault(row["model"], {}).setdefault(row["seed"], []).append(row)
    for model, seeds in by_model.items():
        for seed, of_seed in seeds.items():
            cells = [_cell(row) for row in of_seed]
            cells += [curves[model, seed][1]] if curves else []
            lines.append([model, str(seed), str(of_seed[0]["cases"]), str(of_seed[0]["patients"]), *cells])
        if len(seeds) > 1:
            columns = [[row["value"] for row in column] for column in zip(*seeds.values(), strict=True)]
            columns += [[curves[model, seed][0].competition_score for seed in seeds]] if curves else []
            means = [mean_and_spread(values) if "" not in values else "" for values in columns]
            lines.append([model, "mean ± s. d.", "", "", *means])
    notes: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["note"]:
            of = notes.setdefault((_title((row["model"], row["seed"])), row["note"]), [])
            of.append(row["metric"].replace("_", " "))
    listed = ["- " + ": ".join(filter(None, [title, ", ".join(of), note])) for (title, note), of in notes.items()]
    return "\n".join([markdown(header, lines), *(["", *listed] if listed else [])])


def fold_rows(found: Mapping[Key, Sequence[Run]]) -> list[dict[str, Any]]:
    """Returns a row for each fold of each model and seed, at the threshold of the fold; [] without folds.

    A metric that the cases of a fold do not define is empty.
    """
    rows = []
    for (model, seed), folds in found.items():
        for run, first in zip(folds, _first_examples(folds), strict=True):
            if run.folds > 1:
                cases = run.cases(first)
                size = {"cases": len(cases), "patients": len(np.unique(cases.patient))}
                rows.append({"model": model, "seed": seed, "fold": run.fold, **size, **run.scores(cases)})
    columns = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key, "") for key in columns} for row in rows]


def _fold_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows of `fold_rows` as Markdown, with the mean over the folds of each model and seed, and a note."""
    metrics = [name for name in rows[0] if name not in ("model", "seed", "fold", "cases", "patients")]
    lines = []
    for key in dict.fromkeys((row["model"], row["seed"]) for row in rows):
        of_key = [row for row in rows if (row["model"], row["seed"]) == key]
        for row in of_key:
            cells = ["not defined" if row[name] == "" else f"{row[name]:.3f}" for name in metrics]
            lines.append([*map(str, key), str(row["fold"]), str(row["cases"]), str(row["patients"]), *cells])
        columns = [[row[name] for row in of_key if row[name] != ""] for name in metrics]
        means = [mean_and_spread(values) if values else "" for values in columns]
        means = ["" if name == "threshold" else mean for name, mean in zip(metrics, means, strict=True)]
        lines.append([*map(str, key), "mean ± s. d.", "", "", *means])
    header = ["model", "seed", "fold", "cases", "patients", *metrics]
    return "\n".join([markdown(header, lines), "", WHY_POOLED])


def _title(key: Key) -> str:
    model, seed = key
    return ", ".join([model, *([f"seed {seed}"] if seed != ENSEMBLE else [])])


def _cell(row: Mapping[str, Any]) -> str:
    if row["value"] == "":
        return "not defined"
    return f"{row['value']:.3f}" + (f" ({row['low']:.3f} to {row['high']:.3f})" if row["low"] != "" else "")


def main() -> None:
    """Runs the command."""
    parser = commands.parser(__doc__)
    parser.add_argument(
        "workdirs",
        nargs="+",
        metavar="[NAME=]PATH",
        help="workdirs, or folders of them such as a sweep's; other files are skipped",
    )
    parser.add_argument("--names", help="names of the models, in the order of their runs, separated by commas")
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
    with console.doing("importing JAX"):
        from squeeze_jax.runtime import compilation_cache

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
    given = [named_path(argument) for argument in args.workdirs]
    if not (workdirs := [(name, workdir) for name, path in given for workdir in find_workdirs(path)]):
        raise InputError(NO_WORKDIR)
    runs = [evaluate(workdir, options, name) for name, workdir in console.track(workdirs, "evaluating runs")]
    task = runs[0].task
    if any(run.task.class_names != task.class_names for run in runs):
        raise InputError("the runs have different classes; judge runs on one dataset.")
    if any(run.task.positive_class != task.positive_class for run in runs):
        raise InputError("the runs have different positive classes; name one with --positive.")
    found = grouped(runs, ensemble=args.ensemble, names=args.names.split(",") if args.names else ())
    write(found, task, args.output, args.name, num_nodules=args.nodules, num_scans=args.scans)


def named_path(argument: str) -> tuple[str, pathlib.Path]:
    """Returns the name and the path of NAME=PATH, or "" and the path of PATH, which may have "=" in it if it exists."""
    name, equals, path = argument.partition("=")
    if not equals or os.sep in name or user_path(argument).exists():
        return "", user_path(argument)
    return name, user_path(path)


def write(
    found: Mapping[Key, Sequence[Run]],
    task: "Classification",
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
      num_scans: see `Marks.of`.

    Raises:
      InputError: FROC is asked for with other than two classes, or the models were tested on different cases.
    """
    if num_nodules is not None and task.num_classes != 2:
        raise InputError(f"FROC (--nodules) is for two classes; there are {', '.join(task.class_names)}.")
    cases = {key: judged(folds) for key, folds in found.items()}
    curves = {}
    if num_nodules is not None:
        curves = {key: free_response(folds, num_nodules, num_scans) for key, folds in found.items()}
    folds = fold_rows(found)
    metrics, rows = [], []
    for key, of_key in cases.items():
        columns = dict(zip(("model", "seed"), key, strict=True))
        size = {"cases": len(of_key), "patients": len(np.unique(of_key.patient))}
        metrics += task.score_rows(of_key, **columns, **size)
        rows += [{**columns, **row} for row in of_key.rows(task.class_names)]
    text = _text(metrics, curves, folds, compare(cases) if task.num_classes == 2 else [], task)
    make_folder(output)
    write_csv(output / f"{name}.csv", metrics)
    write_csv(output / f"{name}_cases.csv", rows)
    if folds:
        write_csv(output / f"{name}_folds.csv", folds)
    draw_curves(output / f"{name}.png", {_title(key): of_key for key, of_key in cases.items()}, task.class_names)
    if curves:
        titled = {_title(key): curve for key, (curve, _) in curves.items()}
        draw_froc(output / f"{name}_froc.png", titled, task.class_names[task.positive_class])
    with replaced(output / f"{name}.md") as temporary:
        temporary.write_text(text + "\n")
    print(text)


def _text(
    scores: Sequence[Mapping[str, Any]],
    curves: Mapping[Key, tuple[Froc, str]],
    folds: Sequence[Mapping[str, Any]],
    tests: Sequence[Sequence[str]],
    task: "Classification",
) -> str:
    parts = [f"{name.capitalize()}: {value}." for name, value in task.naming.items()] + [table(scores, curves)]
    if folds:
        parts.append(_fold_table(folds))
    if tests:
        header = ["DeLong's test of", "seed", "AUC minus that of the first model", "95 % interval", "p"]
        parts.append(markdown(header, tests))
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(commands.run(main))
