"""ROC, precision-recall, reliability and FROC plots."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from squeeze_jax import plotting
from squeeze_jax.metrics.cases import Cases
from squeeze_jax.metrics.froc import LUNA16_RATES, Froc
from squeeze_jax.metrics.scores import confidence_and_hit, reliability
from squeeze_jax.plotting import plain

CURVES = 10  # largest number of classes that get a curve each


def draw_curves(path: pathlib.Path, judged: Mapping[str, Cases], class_names: Sequence[str]) -> pathlib.Path:
    """Draws ROC, precision-recall and reliability curves side by side, and returns the path of the PNG.

    With two classes, the curves are those of the positive one, which the titles name, and a dot marks the operating
    threshold. With more, there is one curve per class against the rest, for up to 10 classes. The legend has the AUC
    of each ROC curve.

    Args:
      path: the file to write.
      judged: the cases of each classifier by its name, which is "" if there is only one.
      class_names: one per class.
    """
    from sklearn.metrics import auc, precision_recall_curve, roc_curve

    positive = next(iter(judged.values())).positive
    binary = len(class_names) == 2
    classes = [positive] if binary else range(min(len(class_names), CURVES))
    with plotting.figure(path, 1, 3, width=11, height=3.9) as (_, axes):
        roc, precision_recall, reliable = axes.flat
        lines = [(name, cases, i) for name, cases in judged.items() for i in classes]
        apart = False  # operating points that do not lie on their curve
        for index, (name, cases, i) in enumerate(lines):
            label, score = cases.label == i, cases.probability[:, i]
            if not 0 < label.sum() < len(label):
                continue
            style = plotting.line(index)
            false_positives, sensitivity, _ = roc_curve(label, score)
            title = ", ".join(filter(None, [name, "" if binary else class_names[i]]))
            area = f"AUC {auc(false_positives, sensitivity):.3f}"
            roc.plot(false_positives, sensitivity, label=f"{plain(title)} ({area})" if title else area, **style)
            precision, recall, _ = precision_recall_curve(label, score)
            precision_recall.plot(recall, precision, **style)
            if binary:
                called = cases.prediction == positive
                wrong, right = called[~label].mean(), called[label].mean()
                roc.plot(wrong, right, "o", markersize=6, color=style["color"])
                every = roc_curve(label, score, drop_intermediate=False)
                apart |= np.hypot(every[0] - wrong, every[1] - right).min() > 1e-6
                if called.any():
                    precision_recall.plot(right, label[called].mean(), "o", markersize=6, color=style["color"])
        if binary:
            text = "at the threshold of each fold, which may lie off the pooled curve" if apart else "at the threshold"
            roc.plot([], [], "o", markersize=6, color="gray", label=text)
        for index, (name, cases) in enumerate(judged.items()):
            confidences, hits, _ = reliability(*confidence_and_hit(cases))
            # With many classes, this curve is of all of them together, so its color is not that of any class.
            style = plotting.points(index) if binary else {**plotting.points(index), "color": "gray"}
            label = f"{plain(name)} (reliability)" if name and not binary else None
            reliable.plot(confidences, hits, label=label, **style)
        for axis in (roc, reliable):
            axis.plot((0, 1), (0, 1), ":", color="gray", zorder=0)
        of = f" of {plain(class_names[positive])}" if binary else ", each class against the rest"
        if len(class_names) > CURVES:
            of = f" of the first {CURVES} of {len(class_names)} classes"
        limits = {"xlim": (-0.02, 1.02), "ylim": (-0.02, 1.02)}
        roc.set(xlabel="1 - specificity", ylabel="sensitivity", title=f"ROC{of}", **limits)
        precision_recall.set(xlabel="recall", ylabel="precision", title=f"precision-recall{of}", **limits)
        reliable.set(xlabel="mean probability", ylabel="share of cases", **limits)
        reliable.set_title(f"reliability{of}" if binary else "reliability of the best class")
    return path


def draw_froc(path: pathlib.Path, curves: Mapping[str, Froc], positive: str) -> pathlib.Path:
    """Draws FROC curves from 1/8 to 8 false positives per scan, and returns the path of the PNG.

    Args:
      path: the file to write.
      curves: the curve of each classifier by its name.
      positive: the name of the positive class.
    """
    rates = np.geomspace(LUNA16_RATES[0], LUNA16_RATES[-1], 200)
    with plotting.figure(path, width=6, height=4) as (_, ((axis,),)):
        for index, (name, froc) in enumerate(curves.items()):
            score = f"competition score {froc.competition_score:.3f}"
            text = f"{plain(name)} ({score})" if name else score
            axis.plot(rates, [froc.sensitivity_at(rate) for rate in rates], label=text, **plotting.line(index))
        axis.set_xscale("log", base=2)
        axis.set_xticks(LUNA16_RATES, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
        axis.set(xlabel="false positives per scan", ylabel="sensitivity", ylim=(-0.02, 1.02))
        axis.set_title(f"FROC of {plain(positive)}")
    return path
