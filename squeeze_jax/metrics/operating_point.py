"""What a classifier's judgment depends on besides its weights: the threshold and the temperature.

Both are chosen on validation data only.
"""

import dataclasses

import numpy as np

from squeeze_jax.errors import ConfigError, MetricError

RATES = ("sensitivity", "specificity")
TEMPERATURES = (0.05, 20.0)  # the range that is searched
SMALLEST = np.finfo(np.float32).tiny  # a probability of zero has no logarithm


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """A threshold on the probability of the positive one of two classes, and a temperature.

    Attributes:
      threshold: a case is positive if the probability of that class is above it; not used with more than two classes.
      temperature: the logits are divided by it.
    """

    threshold: float = 0.5
    temperature: float = 1.0

    def scale(self, probability: np.ndarray) -> np.ndarray:
        """Returns the probabilities at this temperature, float64 (examples, classes)."""
        if self.temperature == 1:
            return probability.astype(np.float64)
        # The logarithms of the probabilities are the logits but for a constant.
        logits = np.log(np.maximum(probability.astype(np.float64), SMALLEST)) / self.temperature
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def decide(self, probability: np.ndarray, positive: int = 1) -> np.ndarray:
        """Returns the predicted class of each case, int (cases,).

        Args:
          probability: scaled, float (cases, classes).
          positive: the positive one of two classes.
        """
        if probability.shape[1] == 2:
            return np.where(probability[:, positive] > self.threshold, positive, 1 - positive)
        return probability.argmax(axis=1)


UNFITTED = OperatingPoint()


def parse_rule(text: str) -> float | tuple[str, float]:
    """Parses a rule for the threshold.

    Returns:
      A number, ("youden", 0), or the name of a rate and its smallest value, such as ("specificity", 0.9).

    Raises:
      ConfigError: the text is none of these.
    """
    if text == "youden":
        return "youden", 0.0
    name, _, value = text.rpartition("=")
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 < number < 1 or name not in ("", *RATES):
        raise ConfigError(
            f"config.task.threshold={text!r}; expected a probability such as '0.5', 'youden', 'sensitivity=0.9' or "
            f"'specificity=0.9'."
        )
    return (name, number) if name else number


def choose_threshold(rule: str, label: np.ndarray, probability: np.ndarray) -> float:
    """Chooses the threshold for two classes by a rule.

    "youden" maximizes sensitivity + specificity - 1 (Youden 1950). "specificity=0.9" maximizes the sensitivity among
    thresholds with a specificity of at least 0.9, and "sensitivity=0.9" the other way round.

    Args:
      rule: see `parse_rule`.
      label: whether a case is positive, bool or int (cases,).
      probability: of the positive class, float (cases,).

    Returns:
      A number that lies in the middle between two neighboring probabilities.

    Raises:
      ConfigError: the rule is invalid.
      MetricError: all labels are the same.
    """
    parsed = parse_rule(rule)
    if isinstance(parsed, float):
        return parsed
    from sklearn.metrics import roc_curve

    if len(np.unique(label)) < 2:
        raise MetricError(
            f"config.task.threshold={rule!r} needs cases of both classes in the validation data, but "
            f"{'all' if np.any(label) else 'none'} of the {len(label)} are positive; use another validation split or a "
            f"number."
        )
    false_positives, sensitivity, thresholds = roc_curve(label, probability, drop_intermediate=False)
    specificity = 1 - false_positives
    name, least = parsed
    if name == "youden":
        best = np.argmax(sensitivity + specificity)
    else:
        rate, other = (sensitivity, specificity) if name == "sensitivity" else (specificity, sensitivity)
        best = np.argmax(np.where(rate >= least, other, -1))
    above = min(thresholds[best], 1.0)  # the first threshold is infinite: nothing is positive
    below = thresholds[best + 1] if best + 1 < len(thresholds) else 0.0
    return 1.0 if np.isinf(thresholds[best]) else float(above + below) / 2


def at_limit(temperature: float) -> bool:
    """Returns whether a fitted temperature is one end of the range, so that a more extreme one would fit better."""
    low, high = TEMPERATURES
    return not low * 1.01 < temperature < high / 1.01


def fit_temperature(label: np.ndarray, probability: np.ndarray) -> float:
    """Fits the temperature by the negative log-likelihood (Guo et al. 2017, arXiv 1706.04599, section 4.2).

    Args:
      label: int (examples,).
      probability: float (examples, classes), at temperature 1.
    """
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(label))

    def loss(log_temperature: float) -> float:
        scaled = OperatingPoint(temperature=float(np.exp(log_temperature))).scale(probability)
        return -float(np.log(np.maximum(scaled[rows, label], SMALLEST)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded").x))
