"""From examples to cases: the slices of one nodule are judged together."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from squeeze_jax.data.splits import CASE, NAME, PATIENT, SCAN
from squeeze_jax.errors import MetricError
from squeeze_jax.metrics.operating_point import OperatingPoint


@dataclasses.dataclass(frozen=True)
class Cases:
    """The cases of an evaluation, in the order of their ids.

    Attributes:
      case: the id of each case, int (cases,).
      patient: the id of its patient, int (cases,).
      scan: the id of its scan, int (cases,).
      slices: the number of its examples, int (cases,).
      label: its class, int (cases,).
      probability: the mean over its examples, float64 (cases, classes).
      highest: the highest probability of its examples, float64 (cases, classes).
      prediction: its predicted class, int (cases,).
      case_name: its name, (cases,); its id where nothing is known.
      patient_name: the name of its patient, likewise.
      positive: the positive one of two classes; means nothing with more.
    """

    case: np.ndarray
    patient: np.ndarray
    scan: np.ndarray
    slices: np.ndarray
    label: np.ndarray
    probability: np.ndarray
    highest: np.ndarray
    prediction: np.ndarray
    case_name: np.ndarray
    patient_name: np.ndarray
    positive: int = 1

    @classmethod
    def of(cls, records: Mapping[str, np.ndarray], point: OperatingPoint, first: int = 0, positive: int = 1) -> "Cases":
        """Joins the examples of each case.

        Args:
          records: "label", int (examples,), "probability", float (examples, classes), and, if known, "case",
            "patient" and "scan", int (examples,). Without "case", every example is its own case; without "patient",
            every case is its own patient; without "scan", every patient has one. "case_name" and "patient_name", str
            (examples,), name them in tables.
          point: the temperature is applied to each example, the threshold to each case.
          first: the id of the first example where examples have no ids.
          positive: the positive one of two classes.

        Raises:
          MetricError: the examples of a case have different labels, patients or scans.
        """
        label = np.asarray(records["label"])
        ids, patients, scans = groups_of(records, first)
        case, starts, inverse, slices = np.unique(ids, return_index=True, return_inverse=True, return_counts=True)
        columns = {"labels": label, "patients": patients, "scans": scans}
        for name, column in columns.items():
            differs = column != column[starts][inverse]
            if differs.any():
                wrong = ids[differs][0]
                found = ", ".join(map(str, np.unique(column[ids == wrong])))
                raise MetricError(f"case {wrong} has examples of several {name} ({found}); expected one.")
        scaled = point.scale(np.asarray(records["probability"]))
        sums = np.zeros((len(case), scaled.shape[1]))
        np.add.at(sums, inverse, scaled)
        probability = sums / slices[:, None]
        highest = np.zeros_like(sums)
        np.maximum.at(highest, inverse, scaled)
        first_label, patient, scan = (column[starts] for column in columns.values())
        prediction = point.decide(probability, positive)
        names = [records.get(NAME.format(CASE), ids)]
        names += [records.get(NAME.format(PATIENT), patients if PATIENT in records else names[0])]
        case_name, patient_name = (np.asarray(name)[starts] for name in names)
        return cls(
            *(case, patient, scan, slices, first_label, probability, highest, prediction, case_name, patient_name),
            positive=positive,
        )

    def __len__(self) -> int:
        return len(self.case)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return self.probability.shape[1]

    def take(self, rows: np.ndarray) -> "Cases":
        """Returns the cases at these indices; a case may be taken several times."""
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in ARRAYS})

    def rows(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Returns one row per case for a table."""
        positive = {"positive class": class_names[self.positive]} if self.num_classes == 2 else {}
        return [
            {
                "case": self.case_name[i],
                "patient": self.patient_name[i],
                "slices": int(self.slices[i]),
                "label": class_names[self.label[i]],
                "prediction": class_names[self.prediction[i]],
                **positive,
                **{f"probability {name}": float(p) for name, p in zip(class_names, self.probability[i], strict=True)},
            }
            for i in range(len(self))
        ]


ARRAYS = tuple(field.name for field in dataclasses.fields(Cases) if field.name != "positive")


def groups_of(records: Mapping[str, np.ndarray], first: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the case, patient and scan of each example, int (examples,); see `Cases.of`."""
    case = np.asarray(records.get(CASE, np.arange(first, first + len(records["label"]))))
    patient = np.asarray(records.get(PATIENT, case))
    return case, patient, np.asarray(records.get(SCAN, patient))


def pool(parts: Sequence[Cases]) -> Cases:
    """Joins the out-of-fold cases of a cross-validation.

    Raises:
      MetricError: a case or a patient is in several folds.
    """
    for name in (CASE, PATIENT):
        ids, counts = np.unique(np.concatenate([np.unique(getattr(part, name)) for part in parts]), return_counts=True)
        if (counts > 1).any():
            raise MetricError(f"{name} {ids[counts > 1][0]} is in several folds; expected folds without a common one.")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS}
    return dataclasses.replace(parts[0], **arrays)
