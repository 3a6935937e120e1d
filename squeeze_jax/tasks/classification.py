"""Classification: one label per image."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from squeeze_jax import drawing, tables
from squeeze_jax.data.augmentation import AXES, Preprocessing, mirror_images, mixup
from squeeze_jax.data.splits import GROUPS, VALID, Split
from squeeze_jax.errors import ConfigError
from squeeze_jax.tasks.task import Batch, Records, Sums, Values

TOP_K = 5
MIXUP = 2**20  # folded into an example's key for mixup, because image augmentation splits the key itself
LABELLED_CLASSES = 30  # maximum number of classes for a confusion matrix with readable labels and counts


@dataclasses.dataclass(frozen=True)
class Classification:
    """Classification with one label per image, trained with cross entropy.

    Attributes:
      class_names: the class names, in the order of the logits.
      preprocessing: the preprocessing of the images.
      label_smoothing: probability mass that is spread evenly over all classes.
      class_weights: factor on the loss of each class; empty for none. The reported training loss includes them.
      mixup: alpha of mixup with the neighbouring example, see `data.augmentation.mixup`; 0 for none. The reported
        training loss is that of the mixed examples; the accuracies use an example's own label.
      auc: whether to report AUC too and, with two classes, sensitivity and specificity.
      mirror: axes; in evaluation the logits are averaged over an image and its mirror images along these axes.
    """

    OPTIONS: ClassVar[Mapping[str, Any]] = {
        "label_smoothing": 0.0,
        "class_weights": "none",  # "balanced" (inverse to the class frequencies), or factors: "1, 2.5"
        "mixup": 0.0,  # alpha of the Beta distribution of the mixing share; 0 for no mixup
        "auc": False,
        "mirror": (),
    }

    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    mixup: float = 0.0
    auc: bool = False
    mirror: tuple[str, ...] = ()

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
        if options["mixup"] < 0:
            raise ConfigError(f"config.task.mixup={options['mixup']}; expected zero or more.")
        known = set().union(*AXES.values())
        if not set(options["mirror"]) <= known:
            raise ConfigError(f"config.task.mirror={options['mirror']}; expected some of {', '.join(sorted(known))}.")
        values = {name: options[name] for name in cls.OPTIONS}
        weights = parse_class_weights(options["class_weights"])
        if weights == "balanced":
            weights = () if train_split is None else balanced_weights(train_split)
        elif weights and len(weights) != len(class_names):
            raise ConfigError(
                f"config.task.class_weights has {len(weights)} factors; expected {len(class_names)}, one per class."
            )
        return cls(class_names, preprocessing, **{**values, "class_weights": weights})

    @property
    def num_outputs(self) -> int:
        """One logit per class."""
        return len(self.class_names)

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        """See `Task`: "top1", "loss" and, with `auc`, "auc"."""
        return {"top1": True, "loss": False} | ({"auc": True} if self.auc else {})

    @property
    def chance_loss(self) -> float:
        """The loss of a network that gives every class the same probability: ln(classes)."""
        return math.log(self.num_outputs)

    def augment(self, batch: Batch, keys: jax.Array) -> Batch:
        """Augments the images and adds "target", the soft labels for the loss, float (batch, classes)."""
        if self.mixup and len(batch["image"]) % 2:
            raise ConfigError(
                f"config.task.mixup pairs examples, but a batch has {len(batch['image'])}; use an even batch size per "
                f"device."
            )
        images = self.preprocessing.augment(batch["image"], keys)
        one_hot = jax.nn.one_hot(batch["label"], self.num_outputs, dtype=images.dtype)
        targets = optax.smooth_labels(one_hot, self.label_smoothing)
        if self.mixup:
            mixup_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, MIXUP)
            images, targets = mixup(images, targets, mixup_keys, self.mixup)
        if self.class_weights:
            # Cross entropy is linear in the target, so weighting the target weights the loss.
            targets = targets * jnp.array(self.class_weights, images.dtype)
        return {**batch, "image": images, "target": targets}

    def forward(self, apply: Callable[[jax.Array], jax.Array], batch: Batch) -> jax.Array:
        """Returns the logits (batch, classes), averaged over the mirror images if `mirror` is set."""
        views = mirror_images(self.preprocessing.evaluate(batch["image"]), self.mirror)
        return sum(map(apply, views)) / len(views)

    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """Returns the cross entropy (batch,), with soft labels in training and with the label in evaluation."""
        if "target" in batch:
            return optax.softmax_cross_entropy(outputs, batch["target"])
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["label"])

    def sums(self, outputs: jax.Array, batch: Batch) -> Sums:
        """Returns the sums of examples, loss, top-1 hits and top-5 hits.

        Ties between logits go to the lower class index, so that equal logits do not count as hits for all classes.
        """
        labels = batch["label"]
        valid = batch.get(VALID, jnp.ones(labels.shape, bool))
        _, best = jax.lax.top_k(outputs, min(TOP_K, outputs.shape[-1]))
        hits = (best == labels[:, None]) & valid[:, None]
        return {
            "examples": jnp.sum(valid, dtype=jnp.int32),
            "loss": jnp.sum(jnp.where(valid, self.loss(outputs, batch), 0)),
            "top1": jnp.sum(hits[:, 0], dtype=jnp.int32),
            "top5": jnp.sum(hits, dtype=jnp.int32),
        }

    def records(self, outputs: jax.Array, batch: Batch) -> Records:
        """Returns "label" and "prediction", int32 (batch,), and with `auc` "probability", float (batch, classes).

        If the examples name their patient, scan or case, so do the records, see `data.splits.GROUPS`.
        """
        found = {"label": batch["label"], "prediction": jnp.argmax(outputs, -1).astype(jnp.int32)}
        found |= {group: batch[group] for group in GROUPS if group in batch}
        return found | ({"probability": jax.nn.softmax(outputs)} if self.auc else {})

    def values(self, sums: Sums, records: Records) -> Values:
        """Returns the mean loss and the accuracies in 0..1 ("top5" only with more than five classes).

        With `auc`, evaluation also returns "auc" and, with two classes, "sensitivity" and "specificity".
        """
        names = ["loss", "top1"] + (["top5"] if self.num_outputs > TOP_K else [])
        values = {name: float(sums[name]) / int(sums["examples"]) for name in names}
        if "probability" in records:
            values["auc"] = auc(records["probability"], records["label"])
            if self.num_outputs == 2:
                values |= sensitivity_and_specificity(records["probability"], records["label"])
        return values

    def predict(self, outputs: jax.Array) -> jax.Array:
        """Returns the probabilities, float32 (batch, classes)."""
        return jax.nn.softmax(outputs).astype(jnp.float32)

    def describe(self, predicted: np.ndarray) -> dict[str, list[dict[str, Any]]]:
        """Returns the five most probable classes of one example as rows of "top5"."""
        order = np.argsort(-predicted, kind="stable")[:TOP_K]
        rows = [{"class": int(i), "label": self.class_names[i], "probability": float(predicted[i])} for i in order]
        return {"top5": rows}

    def line(self, row: Mapping[str, Any]) -> str:
        """Returns a row of `describe` as text, such as "99.3%  tench (0)"."""
        return f"{row['probability']:6.1%}  {row['label']} ({row['class']})"

    def confusion(self, records: Records) -> np.ndarray:
        """Returns the confusion matrix: counts of examples, int64 (true class, predicted class)."""
        counts = np.zeros((self.num_outputs, self.num_outputs), np.int64)
        np.add.at(counts, (records["label"], records["prediction"]), 1)
        return counts

    def report(self, folder: pathlib.Path, sums: Sums, records: Records) -> None:
        """Writes per_class.csv, confusion.csv and confusion.png."""
        confusion = self.confusion(records)
        tables.write_csv(folder / "per_class.csv", per_class(confusion, self.class_names))
        rows = [
            {"label": name, **dict(zip(self.class_names, map(int, counts), strict=True))}
            for name, counts in zip(self.class_names, confusion, strict=True)
        ]
        tables.write_csv(folder / "confusion.csv", rows)
        draw_confusion(folder / "confusion.png", confusion, self.class_names)

    def draw(self, path: pathlib.Path, batch: Batch) -> None:
        """Draws a sheet of images with their class names."""
        drawing.draw_sheet(path, batch["image"], [self.class_names[int(label)] for label in batch["label"]])

    def explain(self, path: pathlib.Path, image: np.ndarray, predicted: np.ndarray, head: np.ndarray) -> None:
        """Draws the class activation map (Zhou et al. 2016, arXiv 1512.04150) of the most probable class."""
        drawing.draw_overlay(path, image, head[..., int(np.argmax(predicted))])


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


def balanced_weights(split: Split) -> tuple[float, ...]:
    """Returns factors inverse to the class frequencies, with a mean of 1 over the examples.

    Raises:
      ConfigError: a class has no examples.
    """
    counts = np.bincount(split.targets()["label"], minlength=split.num_classes)
    if not counts.all():
        raise ConfigError(
            f"config.task.class_weights='balanced', but a class has no examples in {split.name}: the counts are "
            f"{counts}. Use factors instead."
        )
    return tuple((counts.sum() / (len(counts) * counts)).tolist())


def auc(probability: np.ndarray, label: np.ndarray) -> float:
    """Returns the area under the ROC curve, as in MedMNIST's evaluator; NaN if a class has no examples.

    With two classes this is the AUC of the second one, else the mean AUC of each class against the rest.

    Args:
      probability: float (examples, num_classes).
      label: int (examples,).
    """
    from sklearn.metrics import roc_auc_score

    num_classes = probability.shape[1]
    if len(np.unique(label)) < num_classes:
        return float("nan")
    classes = [num_classes - 1] if num_classes == 2 else range(num_classes)
    return float(np.mean([roc_auc_score(label == i, probability[:, i]) for i in classes]))


def sensitivity_and_specificity(probability: np.ndarray, label: np.ndarray) -> Values:
    """Returns sensitivity and specificity of a binary classifier at a threshold of 0.5; NaN if undefined.

    Args:
      probability: float (examples, 2); class 1 is the positive class.
      label: int (examples,).
    """
    positive = probability[:, 1] > 0.5
    rates = {}
    for name, hit, of in (("sensitivity", positive, label == 1), ("specificity", ~positive, label == 0)):
        rates[name] = float((hit & of).sum() / of.sum()) if of.any() else float("nan")
    return rates


def per_class(confusion: np.ndarray, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns one row per class: examples, correct predictions, recall and precision (NaN if undefined)."""
    rows = []
    for i, name in enumerate(class_names):
        examples, predicted, correct = int(confusion[i].sum()), int(confusion[:, i].sum()), int(confusion[i, i])
        rows.append(
            {
                "class": i,
                "name": name,
                "examples": examples,
                "correct": correct,
                "recall": correct / examples if examples else float("nan"),
                "precision": correct / predicted if predicted else float("nan"),
            }
        )
    return rows


def draw_confusion(path: pathlib.Path, confusion: np.ndarray, class_names: tuple[str, ...]) -> pathlib.Path:
    """Draws a confusion matrix with one row per true class, shaded by the fraction of the row.

    Args:
      path: the file to write.
      confusion: counts, int (true class, predicted class).
      class_names: one per class.
    """
    size = len(class_names)
    side = min(12.0, 2.5 + 0.4 * size)
    figure, axes = drawing.new_figure(1, 1, width=side, height=side)
    axis = axes.flat[0]
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set(xlabel="predicted", ylabel="true")
    if size <= LABELLED_CLASSES:
        axis.set_xticks(range(size), class_names, rotation=90)
        axis.set_yticks(range(size), class_names)
        write = functools.partial(axis.text, ha="center", va="center", fontsize=7)
        for i, j in zip(*np.nonzero(confusion), strict=True):
            write(j, i, int(confusion[i, j]), color="k" if shares[i, j] < 0.6 else "w")
    return drawing.save(figure, path)
