"""ImageNet's 1,000 classes: their WordNet ids, which are the class names of published weights, and their names."""

import csv
import functools
import pathlib
from collections.abc import Sequence

CLASSES = pathlib.Path(__file__).with_name("imagenet_classes.csv")  # docs/make_imagenet_classes.py makes it


@functools.cache
def imagenet_classes() -> dict[str, str]:
    """Returns the names of the 1000 classes by their WordNet ids, in the order of the logits: n01440764 is "tench"."""
    with CLASSES.open(encoding="utf-8", newline="") as file:
        return {row["id"]: row["name"] for row in csv.DictReader(file)}


def imagenet_class_names() -> tuple[str, ...]:
    """Returns the WordNet ids of the 1000 classes, such as n01440764, in the order of the logits."""
    return tuple(imagenet_classes())


def readable(class_names: Sequence[str]) -> tuple[str, ...]:
    """Returns class names with ImageNet's names in place of its ids, such as "tench" for "n01440764".

    Names stay as they are unless all are ids of ImageNet's classes.
    """
    known = imagenet_classes()
    return tuple(known[name] for name in class_names) if known.keys() >= set(class_names) else tuple(class_names)
