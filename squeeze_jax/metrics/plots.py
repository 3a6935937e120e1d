"""ROC, precision-recall, reliability and FROC plots."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from squeeze_jax import drawing
from squeeze_jax.metrics.cases import Cases
from squeeze_jax.metrics.froc import LUNA16_RATES, Froc
from squeeze_jax.metrics.scores import confidence_and_hit, reliability

CURVES = 10  # largest number of classes that get a curve each


def plain(text: str) -> str:
    """Returns text that Matplotlib writes as it is: a pair of dollars would be read as a formula."""
    return text.replace("$", r"\$")


def draw_curves(path: pathlib.Path, judged: Mapping[str, Cases], class_names: Sequence[str]) -> pathlib.Path:
    """Draws ROC, precision-recall and reliability curves side by side, and returns the path of the PNG.

    With two classes, the curves are those of the positive one, which the titles name, and a dot marks the operating
    threshold. With more, there is one curve per class against the rest, for up to 10 classes.

    Args:
      path: the file to write.
      judged: the cases of each classifier by its name, which is "" if there is only one.
      class_names: one per class.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    figure, axes = drawing.new_figure(1, 3, width=13, height=4.3)
    roc, precision_recall, reliable = axes.flat
    positive = next(iter(judged.values())).positive
    classes = [positive] if len(class_names) == 2 else range(min(len(class_names), CURVES))
    lines = [(name, cases, i) for name, cases in judged.items() for i in classes]
    for (name, cases, i), color in zip(lines, drawing.colors(len(lines)), strict=True):
        label, score = cases.label == i, cases.probability[:, i]
        if not 0 < label.sum() < len(label):
            continue
        text = plain(", ".join(filter(None, [name, class_names[i] if len(class_names) > 2 else ""])))
        false_positives, sensitivity, _ = roc_curve(label, score)
        roc.plot(false_positives, sensitivity, color=color, label=text)
        precision, recall, _ = precision_recall_curve(label, score)
        precision_recall.plot(recall, precision, color=color, label=text)
        if len(class_names) == 2:
            called = cases.prediction == positive
            here = called[label].mean()
            roc.plot(called[~label].mean(), here, "o", color=color)
            if called.any():
                precision_recall.plot(here, label[called].mean(), "o", color=color)
    for (name, cases), color in zip(judged.items(), drawing.colors(len(judged)), strict=True):
        confidences, hits, _ = reliability(*confidence_and_hit(cases))
        reliable.plot(confidences, hits, "o-", color=color, label=plain(name))
    for axis in (roc, reliable):
        axis.plot((0, 1), (0, 1), ":", color="gray")
    of = f" of {plain(class_names[positive])}" if len(class_names) == 2 else ""
    roc.set(xlabel="1 - specificity", ylabel="sensitivity", title=f"ROC{of}")
    precision_recall.set(xlabel="recall", ylabel="precision", title=f"precision-recall{of}", ylim=(0, 1.05))
    reliable.set(xlabel="probability", ylabel="share of cases", title=f"reliability{of}")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    if any(line.get_label()[:1] not in ("", "_") for line in roc.lines):
        roc.legend(loc="lower right", fontsize=8)
    return drawing.save(figure, path)


def draw_froc(path: pathlib.Path, curves: Mapping[str, Froc], positive: str) -> pathlib.Path:
    """Draws FROC curves from 1/8 to 8 false positives per scan, and returns the path of the PNG.

    Args:
      path: the file to write.
      curves: the curve of each classifier by its name.
      positive: the name of the positive class.
    """
    figure, ((axis,),) = drawing.new_figure(1, 1, width=6, height=4.3)
    rates = np.geomspace(LUNA16_RATES[0], LUNA16_RATES[-1], 200)
    for (name, froc), color in zip(curves.items(), drawing.colors(len(curves)), strict=True):
        text = plain(f"{name}: {froc.competition_score:.3f}".removeprefix(": "))
        axis.plot(rates, [froc.sensitivity_at(rate) for rate in rates], color=color, label=text)
    axis.set_xscale("log", base=2)
    axis.set_xticks(LUNA16_RATES, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    axis.set(
        xlabel="false positives per scan", ylabel="sensitivity", ylim=(0, 1.02), title=f"FROC of {plain(positive)}"
    )
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize=8)
    return drawing.save(figure, path)
