"""Classification: one class per image, one of ordered classes, or any number of labels."""

import dataclasses
import difflib
import logging
import math
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from squeeze_jax import drawing, tables
from squeeze_jax.data.augmentation import AXES, Preprocessing, mirror_images, mixup
from squeeze_jax.data.splits import CASE, GROUPS, IGNORED, PATIENT, VALID, Split, targets_of
from squeeze_jax.errors import ConfigError, DataError, InputError
from squeeze_jax.metrics import plots
from squeeze_jax.metrics.cases import Cases
from squeeze_jax.metrics.operating_point import (
    UNFITTED,
    OperatingPoint,
    at_limit,
    choose_threshold,
    fit_temperature,
    parse_rule,
)
from squeeze_jax.metrics.scores import available, explain_undefined, explained_intervals, scores
from squeeze_jax.tasks.classification_report import draw_map, per_class, write_case, write_confusion
from squeeze_jax.tasks.task import Batch, Records, Sums, Values

logger = logging.getLogger(__name__)

TOP_K = 5
MIXUP = 2**20  # folded into an example's key for mixup, because image augmentation splits the key itself
METRICS = ("basic", "full")
LISTED = 10  # classes in a message


@dataclasses.dataclass(frozen=True)
class Classification:
    """Classification with one label per image, trained with cross entropy.

    Attributes:
      class_names: the class names, in the order of the logits.
      preprocessing: the preprocessing of the images.
      labels: the kind of labels; see `Ordinal` and `MultiLabel` for the kinds other than "multiclass".
      label_smoothing: probability mass that is spread evenly over all classes.
      focal_gamma: the exponent of the focal loss (Lin et al. 2017, arXiv 1708.02002); 0 for cross entropy.
      class_weights: factor on the loss of each class; empty for none. The reported training loss includes them.
      mixup: alpha of mixup with the neighboring example, see `data.augmentation.mixup`; 0 for none. The reported
        training loss is that of the mixed examples; the accuracies use an example's own label.
      auc: whether to report AUC too and, with two classes, sensitivity and specificity; by case, see `metrics.cases`.
      metrics: "full" for all metrics of `metrics.scores` and, in the report, their intervals, the cases and curves.
      positive: the name of the positive one of two classes; empty for the second one.
      threshold: a rule for the threshold on the probability of the positive class, see
        `metrics.operating_point.parse_rule`.
      calibrate: whether to fit a temperature to the validation split.
      specificity: of the metric "sensitivity_at_specificity".
      point: the threshold and the temperature.
      mirror: axes; in evaluation the logits are averaged over an image and its mirror images along these axes.
    """

    OPTIONS: ClassVar[Mapping[str, Any]] = {
        # One class per image; "ordinal": of ordered classes, such as grades; "multilabel": any number of labels.
        "labels": "multiclass",
        "label_smoothing": 0.0,
        "focal_gamma": 0.0,  # of the focal loss, which weights hard examples more; 0 for cross entropy
        "class_weights": "none",  # "balanced" (inverse to the class frequencies), or factors: "1, 2.5"
        "mixup": 0.0,  # alpha of the Beta distribution of the mixing share; 0 for no mixup
        "auc": False,
        "metrics": "basic",  # "full": AUC, average precision, F1, Brier score, calibration and others, with intervals
        "positive": "",  # the class that sensitivity, threshold and FROC are about; "" for the second of two
        "threshold": "0.5",  # of two classes; "youden", "sensitivity=0.9", "specificity=0.9": chosen in validation
        "calibrate": False,  # scale the logits by a temperature that is fitted to the validation data
        "specificity": 0.9,  # at which the sensitivity is reported with "full"
        "mirror": (),
    }

    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    labels: str = "multiclass"
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    class_weights: tuple[float, ...] = ()
    mixup: float = 0.0
    auc: bool = False
    metrics: str = "basic"
    positive: str = ""
    threshold: str = "0.5"
    calibrate: bool = False
    specificity: float = 0.9
    mirror: tuple[str, ...] = ()
    point: OperatingPoint = UNFITTED

    @classmethod
    def create(
        cls,
        options: Mapping[str, Any],
        class_names: tuple[str, ...],
        preprocessing: Preprocessing,
        train_split: Split | None = None,
    ) -> "Classification":
        """See `Task.create`."""
        if not 0 <= options["label_smoothing"] < 1:
            raise ConfigError(f"config.task.label_smoothing={options['label_smoothing']}; expected 0 <= value < 1.")
        if options["labels"] not in LABELS:
            raise ConfigError(f"config.task.labels={options['labels']!r}; expected one of {', '.join(LABELS)}.")
        if options["labels"] == "multilabel" and (options["label_smoothing"] or options["class_weights"] != "none"):
            raise ConfigError(
                "config.task.label_smoothing and config.task.class_weights are for one class per image; leave them out "
                "with config.task.labels='multilabel'."
            )
        if options["focal_gamma"] and options["focal_gamma"] < 1:  # the gradient of a certain prediction is not finite
            raise ConfigError(f"config.task.focal_gamma={options['focal_gamma']}; expected 0, or 1 or more.")
        if options["mixup"] < 0:
            raise ConfigError(f"config.task.mixup={options['mixup']}; expected zero or more.")
        known = set().union(*AXES.values())
        if not set(options["mirror"]) <= known:
            raise ConfigError(f"config.task.mirror={options['mirror']}; expected some of {', '.join(sorted(known))}.")
        if options["metrics"] not in METRICS:
            raise ConfigError(f"config.task.metrics={options['metrics']!r}; expected {' or '.join(METRICS)}.")
        if not 0 < options["specificity"] < 1:
            raise ConfigError(f"config.task.specificity={options['specificity']}; expected 0 < value < 1.")
        rule = parse_rule(options["threshold"])
        given = {name for name, default in cls.OPTIONS.items() if options[name] != default}
        given -= {"threshold"} if rule == 0.5 else set()
        if options["labels"] == "multilabel":
            reason = "is for one class per image, not for config.task.labels='multilabel'"
            _refuse(options, given & {"metrics", "calibrate", "positive", "threshold"}, reason)
        if options["labels"] == "multilabel" or len(class_names) != 2:
            # Runs of earlier versions may have set the specificity in vain, and must be loaded.
            useless = {"positive", "threshold"} | ({"specificity"} if train_split is not None else set())
            _refuse(options, given & useless, f"is for two classes, but there are {len(class_names)}")
        elif options["positive"] not in ("", *class_names):
            raise ConfigError(
                f"config.task.positive={options['positive']!r} is not a class of the dataset; expected "
                f"{' or '.join(map(repr, class_names))}."
            )
        point = OperatingPoint(threshold=rule) if isinstance(rule, float) else UNFITTED
        values = {name: options[name] for name in cls.OPTIONS}
        weights = parse_class_weights(options["class_weights"])
        if weights == "balanced":
            weights = () if train_split is None else balanced_weights(train_split, class_names)
        elif weights and len(weights) != len(class_names):
            raise ConfigError(
                f"config.task.class_weights has {len(weights)} factors; expected {len(class_names)}, one per class."
            )
        kind = cls if options["labels"] == "multiclass" else LABELS[options["labels"]]
        if train_split is not None:
            kind.check_labels(train_split, len(class_names))
        task = kind(class_names, preprocessing, **{**values, "class_weights": weights}, point=point)
        if train_split is not None and (task.auc or task.metrics == "full"):
            for name, value in task.naming.items():
                logger.info("%s: %s", name, value)
        return task

    @staticmethod
    def check_labels(split: Split, num_classes: int) -> None:
        """Raises ConfigError unless each example has one class."""
        shape = np.shape(targets_of(split.examples, 0)["label"])
        if shape:
            raise ConfigError(
                f"the examples of {split.name} have {num_classes} labels each; set config.task.labels='multilabel'."
            )

    def check_split(self, split: Split, group_names: Mapping[str, tuple[str, ...]]) -> None:
        """Raises ConfigError if the labels are of another kind, and DataError if a case has several classes."""
        self.check_labels(split, self.num_classes)
        if not split.has(CASE):
            return
        targets = split.targets()
        pairs = np.unique(np.stack([targets[CASE], targets["label"]]), axis=1)
        cases, counts = np.unique(pairs[0], return_counts=True)
        if (counts > 1).any():
            first = cases[counts > 1][0]
            name = group_names[CASE][first] if CASE in group_names else first
            classes = ", ".join(self.class_names[i] for i in pairs[1][pairs[0] == first])
            raise DataError(
                f"{split.name}: the case {name} has examples of several classes ({classes}), but a case is judged as "
                f"one; give them one class, or cases of their own."
            )

    def check_network(self, model: nn.Module) -> None:
        """Accepts every network: any outputs, even those of a ReLU, rank the classes."""

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def positive_class(self) -> int:
        """The positive one of two classes, as an index; means nothing with more."""
        return self.class_names.index(self.positive) if self.positive else 1

    @property
    def num_outputs(self) -> int:
        """One logit per class."""
        return self.num_classes

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        """See `Task`: "top1", "loss" and, with `auc` or `metrics`, those of `metrics.scores`."""
        known = available(self.num_classes)
        return {"top1": True, "loss": False} | {name: known[name] for name in self._case_metrics}

    @property
    def _case_metrics(self) -> tuple[str, ...]:
        """The metrics that are computed from the records, by case."""
        if self.metrics == "full":
            return tuple(available(self.num_classes))
        return ("auc", *(("sensitivity", "specificity") if self.num_classes == 2 else ())) if self.auc else ()

    @property
    def fits_on_validation(self) -> bool:
        """See `Task`: whether the threshold or the temperature is chosen on the validation split."""
        return self.calibrate or not isinstance(parse_rule(self.threshold), float)

    def fitted(self, records: Records) -> "Classification":
        """See `Task`. The temperature is fitted to the examples, then the threshold to the cases.

        Raises:
          MetricError: the threshold needs cases of both classes.
        """
        point = self.point
        if self.calibrate:
            temperature = fit_temperature(records["label"], records["probability"])
            point = dataclasses.replace(point, temperature=temperature)
            if at_limit(temperature):
                logger.warning(
                    "the temperature is at the limit of the search: the validation data are too few, or too easy, to "
                    "calibrate by"
                )
        cases = Cases.of(records, point)
        text = f"temperature {point.temperature:.4f}"
        if self.num_classes == 2:
            positive = self.positive_class
            threshold = choose_threshold(self.threshold, cases.label == positive, cases.probability[:, positive])
            point = dataclasses.replace(point, threshold=threshold)
            text += f", threshold {threshold:.4f} on the probability of {self.class_names[positive]}"
        logger.info("on %d validation cases: %s", len(cases), text)
        return dataclasses.replace(self, point=point)

    @property
    def chance_loss(self) -> float:
        """The loss of a network that gives every class the same probability: ln(classes)."""
        return math.log(self.num_classes)

    def augment(self, batch: Batch, keys: jax.Array) -> Batch:
        """Augments the images and adds "target", the soft labels for the loss, float (batch, classes)."""
        images = self.preprocessing.augment(batch["image"], keys)
        one_hot = jax.nn.one_hot(batch["label"], self.num_classes, dtype=images.dtype)
        images, targets = self._mixed(images, optax.smooth_labels(one_hot, self.label_smoothing), keys)
        if self.class_weights:
            # Cross entropy is linear in the target, so weighting the target weights the loss.
            targets = targets * jnp.array(self.class_weights, images.dtype)
        return {**batch, "image": images, "target": targets}

    def _mixed(self, images: jax.Array, targets: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        if not self.mixup:
            return images, targets
        if len(images) % 2:
            raise ConfigError(
                f"config.task.mixup pairs examples, but a batch has {len(images)}; use an even batch size per device."
            )
        return mixup(images, targets, jax.vmap(jax.random.fold_in, (0, None))(keys, MIXUP), self.mixup)

    def forward(self, apply: Callable[[jax.Array], jax.Array], batch: Batch) -> jax.Array:
        """Returns the logits (batch, classes), averaged over the mirror images if `mirror` is set."""
        views = mirror_images(self.preprocessing.evaluate(batch["image"]), self.mirror)
        return sum(map(apply, views)) / len(views)

    def class_logits(self, outputs: jax.Array) -> jax.Array:
        """Returns the logits of the classes (batch, classes) of a network's outputs."""
        return outputs

    def log_likelihood_of_draw(self, outputs: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the log probability of a class that is drawn, see `Likelihood`."""
        scores = jax.nn.log_softmax(self.class_logits(outputs)[0])
        return scores[jax.random.categorical(key, jax.lax.stop_gradient(scores))]

    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """Returns the cross entropy or focal loss (batch,), with soft labels in training, the label in evaluation."""
        outputs = self.class_logits(outputs)
        if self.focal_gamma:
            target = batch["target"] if "target" in batch else jax.nn.one_hot(batch["label"], self.num_classes)
            log_probability = jax.nn.log_softmax(outputs)
            return -jnp.sum(target * (1 - jnp.exp(log_probability)) ** self.focal_gamma * log_probability, axis=-1)
        if "target" in batch:
            return optax.softmax_cross_entropy(outputs, batch["target"])
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["label"])

    def sums(self, outputs: jax.Array, batch: Batch) -> Sums:
        """Returns the sums of examples, loss, top-1 hits and top-5 hits.

        Ties between logits go to the lower class index, so that equal logits do not count as hits for all classes.
        """
        labels = batch["label"]
        valid = batch.get(VALID, jnp.ones(labels.shape, bool))
        _, best = jax.lax.top_k(self.class_logits(outputs), min(TOP_K, self.num_classes))
        hits = (best == labels[:, None]) & valid[:, None]
        return {
            "examples": jnp.sum(valid, dtype=jnp.int32),
            "loss": jnp.sum(jnp.where(valid, self.loss(outputs, batch), 0)),
            "top1": jnp.sum(hits[:, 0], dtype=jnp.int32),
            "top5": jnp.sum(hits, dtype=jnp.int32),
        }

    def records(self, outputs: jax.Array, batch: Batch) -> Records:
        """Returns "label" and "prediction", int32 (batch,), and what the batch has of `data.splits.GROUPS` and IGNORED.

        For metrics by case also "probability", float (batch, classes).
        """
        outputs = self.class_logits(outputs)
        found = {"label": batch["label"], "prediction": jnp.argmax(outputs, -1).astype(jnp.int32)}
        found |= {name: batch[name] for name in (*GROUPS, IGNORED) if name in batch}
        by_case = self._case_metrics or self.fits_on_validation
        return found | ({"probability": jax.nn.softmax(outputs)} if by_case else {})

    def values(self, sums: Sums, records: Records) -> Values:
        """Returns the mean loss and the accuracies in 0..1 ("top5" only with more than five classes).

        These are by example. Evaluation also returns the metrics by case that `auc` or `metrics` asks for, at the
        threshold and temperature of `point`. Those that cannot be computed because a class has no cases are left out,
        and logged.
        """
        names = ["loss", "top1"] + (["top5"] if self.num_classes > TOP_K else [])
        values = {name: float(sums[name]) / int(sums["examples"]) for name in names}
        if "probability" in records:
            cases = self.cases(records)
            values |= scores(cases, self._case_metrics, self.specificity)
            if left_out := explain_undefined(cases, self._case_metrics, self.class_names):
                logger.warning(left_out)
            if self.fits_on_validation:
                values |= dataclasses.asdict(self.point)
        return values

    def cases(self, records: Records, first: int = 0) -> Cases:
        """Returns the cases of an evaluation, judged at the threshold and temperature of `point`; see `Cases.of`."""
        return Cases.of(records, self.point, first, self.positive_class)

    def predict(self, outputs: jax.Array) -> jax.Array:
        """Returns the probabilities, float32 (batch, classes)."""
        return jax.nn.softmax(self.class_logits(outputs)).astype(jnp.float32)

    def score(self, predicted: np.ndarray) -> float:
        """Returns the probability of the positive one of two classes, else of the most probable class."""
        return float(predicted[self.positive_class] if self.num_classes == 2 else predicted.max())

    def describe(self, predicted: np.ndarray, top: int = TOP_K) -> dict[str, list[dict[str, Any]]]:
        """Returns the most probable classes of one example as rows of "top5"."""
        order = np.argsort(-predicted, kind="stable")[:top]
        rows = [{"class": int(i), "label": self.class_names[i], "probability": float(predicted[i])} for i in order]
        return {f"top{top}": rows}

    def line(self, row: Mapping[str, Any]) -> str:
        """Returns a row of `describe` as text, such as "99.3%  tench (0)"."""
        return f"{row['probability']:6.1%}  {row['label']} ({row['class']})"

    def confusion(self, records: Records) -> np.ndarray:
        """Returns the confusion matrix: counts of examples, int64 (true class, predicted class)."""
        counts = np.zeros((self.num_classes, self.num_classes), np.int64)
        np.add.at(counts, (records["label"], records["prediction"]), 1)
        return counts

    def report(self, folder: pathlib.Path, sums: Sums, records: Records) -> None:
        """Writes per_class.csv, confusion.csv and confusion.png, by example.

        With `metrics="full"` also scores.csv, the metrics with their intervals, cases.csv and curves.png. All but the
        confusion matrix name the positive one of two classes.
        """
        confusion = self.confusion(records)
        rows = [row | self.naming for row in per_class(confusion, self.class_names)]
        tables.write_csv(folder / "per_class.csv", rows)
        write_confusion(folder, confusion, self.class_names)
        if self.metrics == "full":
            cases = self.cases(records)
            tables.write_csv(folder / "cases.csv", cases.rows(self.class_names))
            plots.draw_curves(folder / "curves.png", {"": cases}, self.class_names)
            units = {"case": cases}
            if len(cases) < len(records["label"]):
                of_patients = {**records, PATIENT: records.get(PATIENT, records[CASE])}
                del of_patients[CASE]
                units["example"] = self.cases(of_patients)
            rows = [row for unit, judged in units.items() for row in self.score_rows(judged, unit=unit)]
            tables.write_csv(folder / "scores.csv", rows)

    @property
    def naming(self) -> dict[str, str]:
        """See `Task`: the positive one of two classes; none with more classes."""
        return {"positive class": self.class_names[self.positive_class]} if self.num_classes == 2 else {}

    def score_rows(self, cases: Cases, /, **columns: Any) -> list[dict[str, Any]]:
        """Returns a row for each metric of `metrics="full"`, with its 95 % interval over patients.

        Args:
          cases: the cases.
          columns: the first columns of every row.
        """
        names = available(self.num_classes)
        values = scores(cases, names, self.specificity)
        ranges, reasons = explained_intervals(cases, names, self.specificity)
        rows = []
        for name in names:
            low, high = ranges.get(name, ("", ""))
            note = reasons.get(name, "") if name in values else explain_undefined(cases, [name], self.class_names)
            row = {"metric": name, "value": values.get(name, ""), "low": low, "high": high, "note": note}
            rows.append({**columns, **self.naming, **row})
        return rows

    def draw(self, path: pathlib.Path, batch: Batch) -> None:
        """Draws a sheet of images with their class names."""
        drawing.draw_sheet(path, batch["image"], [self.class_names[int(label)] for label in batch["label"]])

    def report_case(
        self,
        path: pathlib.Path,
        names: Sequence[str],
        pictures: Sequence[bytes],
        notes: Sequence[str],
        predicted: Sequence[np.ndarray],
        title: str | None = None,
    ) -> None:
        """Writes an HTML page: each image with its map and probability and, of a case, the mean over its images."""

        def best(probability: np.ndarray) -> list[tuple[str, float]]:
            return [(row["label"], row["probability"]) for row in self.describe(probability)["top5"]]

        files = [pathlib.PurePath(name).name for name in names]
        mean = best(np.mean(predicted, axis=0)) if title is None else None
        write_case(path, files, pictures, notes, list(map(best, predicted)), mean, title or "")

    def explain(
        self,
        path: pathlib.Path,
        image: np.ndarray,
        predicted: np.ndarray,
        head: np.ndarray,
        class_name: str | None = None,
    ) -> str:
        """Draws the class activation map of a class, by default the most probable one; see `Task`.

        Raises:
          InputError: there is no such class.
        """
        index = int(np.argmax(predicted)) if class_name is None else self.class_index(class_name)
        channel, evidence = self._evidence(index)
        name = self.class_names[index]
        return draw_map(path, image, head[..., channel], name, float(predicted[index]), evidence)

    def _evidence(self, index: int) -> tuple[int, str]:
        """Returns the output whose map is shown for a class, and what it is the evidence for."""
        return index, self.class_names[index]

    def class_index(self, name: str) -> int:
        """Returns the index of a class.

        Raises:
          InputError: there is no such class; the message suggests one.
        """
        if name not in self.class_names:
            close = difflib.get_close_matches(name, self.class_names, n=1)
            more = f" and {self.num_classes - LISTED} more" if self.num_classes > LISTED else ""
            listed = ", ".join(self.class_names[:LISTED]) + more
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise InputError(f"the network has no class {name!r}; expected one of {listed}.{hint}")
        return self.class_names.index(name)


class Ordinal(Classification):
    """Classification into ordered classes, such as grades of a disease.

    Output k is the logit of "above class k, given that it is not below k": the continuation-ratio model, as in CORN
    (Shi et al. 2023, arXiv 2111.08851), whose class probabilities always add up to one. The loss is the negative log
    likelihood of the class. There is one more metric, "mae": the mean absolute difference of the most probable class.
    """

    def check_network(self, model: nn.Module) -> None:
        """Raises ConfigError if the network ends in a ReLU."""
        check_signed(model, "ordinal")

    @property
    def num_outputs(self) -> int:
        """One logit for each class but the last."""
        return self.num_classes - 1

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        """See `Classification`, and "mae"."""
        return {**super().higher_is_better, "mae": False}

    def class_logits(self, outputs: jax.Array) -> jax.Array:
        """Returns the log probabilities of the classes, float (batch, classes), of outputs (batch, classes - 1)."""
        above = jnp.cumsum(jax.nn.log_sigmoid(outputs), axis=-1)
        first = jnp.zeros_like(outputs[..., :1])
        not_below = jnp.concatenate([first, above], axis=-1)
        stay = jnp.concatenate([jax.nn.log_sigmoid(-outputs), first], axis=-1)
        return not_below + stay

    def sums(self, outputs: jax.Array, batch: Batch) -> Sums:
        """Returns the sums of `Classification.sums`, and of the absolute difference of the class."""
        valid = batch.get(VALID, jnp.ones(batch["label"].shape, bool))
        difference = jnp.abs(jnp.argmax(self.class_logits(outputs), -1) - batch["label"])
        return {**super().sums(outputs, batch), "mae": jnp.sum(jnp.where(valid, difference, 0), dtype=jnp.int32)}

    def values(self, sums: Sums, records: Records) -> Values:
        """Returns the values of `Classification.values`, and "mae"."""
        return {**super().values(sums, records), "mae": float(sums["mae"]) / int(sums["examples"])}

    def _evidence(self, index: int) -> tuple[int, str]:
        """The map of the output that says "above the class before this one"."""
        below = max(index - 1, 0)
        return below, f"a class above {self.class_names[below]}"


class MultiLabel(Classification):
    """Classification with any number of labels per image: binary cross entropy, the mean over the labels.

    The metrics are "accuracy", the fraction of all labels that are right at a probability of 0.5, and "auc", the mean
    AUC over the labels, as in MedMNIST's evaluator.
    """

    @staticmethod
    def check_labels(split: Split, num_classes: int) -> None:
        """Raises ConfigError unless each example says of each label whether it has it."""
        shape = np.shape(targets_of(split.examples, 0)["label"])
        if shape != (num_classes,):
            raise ConfigError(
                f"the examples of {split.name} have one class each; set config.task.labels='multiclass' or 'ordinal'."
            )

    def check_split(self, split: Split, group_names: Mapping[str, tuple[str, ...]]) -> None:
        """Raises ConfigError if the labels are of another kind."""
        self.check_labels(split, self.num_classes)

    def check_network(self, model: nn.Module) -> None:
        """Raises ConfigError if the network ends in a ReLU."""
        check_signed(model, "multilabel")

    @property
    def naming(self) -> dict[str, str]:
        """None: every label is a question of its own."""
        return {}

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        """See `Task`: "accuracy", "loss" and, with `auc`, "auc"."""
        return {"accuracy": True, "loss": False} | ({"auc": True} if self.auc else {})

    @property
    def chance_loss(self) -> float:
        """The loss of a network that gives every label the probability 1/2: ln(2)."""
        return math.log(2)

    def log_likelihood_of_draw(self, outputs: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the log probability of labels that are drawn one by one, see `Likelihood`."""
        drawn = jax.random.bernoulli(key, jax.nn.sigmoid(jax.lax.stop_gradient(outputs[0])))
        return jnp.sum(jax.nn.log_sigmoid(jnp.where(drawn, outputs[0], -outputs[0])))

    def augment(self, batch: Batch, keys: jax.Array) -> Batch:
        """Augments the images and adds "target", the labels, float (batch, labels), mixed with `mixup`."""
        images = self.preprocessing.augment(batch["image"], keys)
        images, targets = self._mixed(images, batch["label"].astype(images.dtype), keys)
        return {**batch, "image": images, "target": targets}

    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """Returns the mean binary cross entropy or focal loss over the labels (batch,)."""
        target = batch["target"] if "target" in batch else batch["label"].astype(outputs.dtype)
        losses = optax.losses.sigmoid_focal_loss(outputs, target, gamma=self.focal_gamma)
        return jnp.mean(losses, axis=-1)

    def sums(self, outputs: jax.Array, batch: Batch) -> Sums:
        """Returns the sums of examples, loss and right labels."""
        valid = batch.get(VALID, jnp.ones(len(outputs), bool))
        right = (outputs > 0) == (batch["label"] > 0)
        return {
            "examples": jnp.sum(valid, dtype=jnp.int32),
            "loss": jnp.sum(jnp.where(valid, self.loss(outputs, batch), 0)),
            "right": jnp.sum(right & valid[:, None], dtype=jnp.int32),
        }

    def records(self, outputs: jax.Array, batch: Batch) -> Records:
        """Returns "label", (batch, labels), "probability", float (batch, labels), and the groups."""
        groups = {group: batch[group] for group in GROUPS if group in batch}
        return {"label": batch["label"], "probability": jax.nn.sigmoid(outputs), **groups}

    def values(self, sums: Sums, records: Records) -> Values:
        """Returns the mean loss, "accuracy" and, with `auc` in evaluation, "auc", unless a label is the same in all."""
        examples = int(sums["examples"])
        values = {
            "loss": float(sums["loss"]) / examples,
            "accuracy": float(sums["right"]) / (examples * self.num_classes),
        }
        if self.auc and records:
            aucs = label_aucs(records["probability"], records["label"])
            if np.isfinite(aucs).all():
                values["auc"] = float(np.mean(aucs))
            else:
                same = [name for name, value in zip(self.class_names, aucs, strict=True) if not np.isfinite(value)]
                logger.warning("no auc: all examples or none have the labels %s", ", ".join(same))
        return values

    def predict(self, outputs: jax.Array) -> jax.Array:
        """Returns the probability of each label, float32 (batch, labels)."""
        return jax.nn.sigmoid(outputs).astype(jnp.float32)

    def report(self, folder: pathlib.Path, sums: Sums, records: Records) -> None:
        """Writes per_class.csv: examples, AUC, and recall and precision at a probability of 0.5 of each label."""
        label, predicted = records["label"] > 0, records["probability"] > 0.5
        aucs = label_aucs(records["probability"], records["label"])
        rows = []
        for i, name in enumerate(self.class_names):
            counts = np.zeros((2, 2), np.int64)
            np.add.at(counts, (label[:, i].astype(int), predicted[:, i].astype(int)), 1)
            rows.append({**per_class(counts, ("", name))[1], "class": i, "auc": float(aucs[i])})
        tables.write_csv(folder / "per_class.csv", rows)

    def draw(self, path: pathlib.Path, batch: Batch) -> None:
        """Draws a sheet of images with their labels."""
        captions = [", ".join(n for n, has in zip(self.class_names, row, strict=True) if has) for row in batch["label"]]
        drawing.draw_sheet(path, batch["image"], captions)


LABELS: Mapping[str, type[Classification]] = {
    "multiclass": Classification,
    "ordinal": Ordinal,
    "multilabel": MultiLabel,
}


def _refuse(options: Mapping[str, Any], given: Collection[str], reason: str) -> None:
    """Raises ConfigError, for this reason, if any options are given, because they would have no effect."""
    for name in sorted(given):
        raise ConfigError(f"config.task.{name}={options[name]!r} {reason}; leave it out.")


def check_signed(model: nn.Module, labels: str) -> None:
    """Raises ConfigError if a network ends in a ReLU, whose outputs cannot be the logits of yes and no."""
    if getattr(model, "head_relu", False):
        raise ConfigError(
            f"config.model.head_relu=True, the default of this {type(model).__name__}, ends the network in a ReLU, so "
            f"it cannot learn config.task.labels={labels!r}, whose outputs are logits of yes and no: none could say "
            f"no. Set config.model.head_relu=False."
        )


def label_aucs(probability: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Returns the AUC of each label, float (labels,); NaN if no example has it, or all have.

    Args:
      probability: float (examples, labels).
      label: 0 or 1, (examples, labels).
    """
    from sklearn.metrics import roc_auc_score

    return np.array(
        [
            roc_auc_score(truth, found) if 0 < truth.sum() < len(truth) else math.nan
            for truth, found in zip(label.T, probability.T, strict=True)
        ]
    )


def parse_class_weights(text: str) -> str | tuple[float, ...]:
    """Parses `config.task.class_weights`.

    Returns:
      "balanced", the factors of a comma-separated list, or an empty tuple for "none".

    Raises:
      ConfigError: the text is none of these, or a factor is not positive.
    """
    if text == "none":
        return ()
    if text == "balanced":
        return text
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        weights = ()
    if not weights or min(weights) <= 0:
        raise ConfigError(
            f"config.task.class_weights={text!r}; expected 'none', 'balanced', or positive factors such as '1, 2.5'."
        )
    return weights


def balanced_weights(split: Split, class_names: Sequence[str]) -> tuple[float, ...]:
    """Returns factors inverse to the class frequencies, with a mean of 1 over the examples.

    Args:
      split: the examples.
      class_names: one per class.

    Raises:
      ConfigError: a class has no examples.
    """
    counts = np.bincount(split.targets()["label"], minlength=split.num_classes)
    if absent := [name for name, count in zip(class_names, counts, strict=True) if not count]:
        raise ConfigError(
            f"config.task.class_weights='balanced', but {split.name} has no examples of {', '.join(absent)}; use "
            f"factors instead, or remove the class."
        )
    return tuple((counts.sum() / (len(counts) * counts)).tolist())
