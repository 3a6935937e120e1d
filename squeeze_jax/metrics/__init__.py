"""Metrics of a classifier as clinicians and reviewers judge it: by case, with intervals over patients."""
