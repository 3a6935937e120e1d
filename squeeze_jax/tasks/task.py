"""The task protocol: everything that differs between classification and other things a network may learn.

The trainer, the training step, the state, the evaluation, the records, the report of a sweep and `predict` use only
this protocol, not a specific task. A task is a frozen dataclass of pure functions; `config.task.name` selects it.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import numpy as np
from flax import linen as nn

from squeeze_jax.data.augmentation import Preprocessing
from squeeze_jax.data.splits import Split

Batch = dict[str, Any]  # arrays (batch, ...): "image" and targets, in evaluation also "valid"
Sums = dict[str, Any]  # arrays that are sums over examples; "examples" is their number
Records = dict[str, Any]  # values per example that cannot be summed, arrays (batch, ...)
Values = dict[str, float]


class Task(Protocol):
    """What a network learns, and how this is measured.

    Attributes:
      OPTIONS: the keys of `config.task` and their defaults.
      preprocessing: the preprocessing of the images.
    """

    OPTIONS: ClassVar[Mapping[str, Any]]
    preprocessing: Preprocessing

    @property
    def num_outputs(self) -> int:
        """Output channels of the network's head."""

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        """The metrics that can select the best checkpoint, and whether a higher value is better."""

    @property
    def naming(self) -> Mapping[str, str]:
        """Columns that say in every table of metrics what they are about, such as the positive class; {} for none."""

    @property
    def chance_loss(self) -> float | None:
        """The loss of a network that has learned nothing; the log warns if a run stays there. None if unknown."""

    @property
    def fits_on_validation(self) -> bool:
        """Whether the test split is judged by what `fitted` chooses on the validation split."""

    @classmethod
    def create(
        cls,
        options: Mapping[str, Any],
        class_names: tuple[str, ...],
        preprocessing: Preprocessing,
        train_split: Split | None = None,
    ) -> "Task":
        """Creates the task of a config.

        Args:
          options: `config.task`.
          class_names: the class names of the dataset.
          preprocessing: the preprocessing of the images.
          train_split: the training split; None for evaluation and prediction only.

        Raises:
          ConfigError: an option is invalid.
        """

    def check_split(self, split: Split, group_names: Mapping[str, tuple[str, ...]]) -> None:
        """Checks that a split holds what the task can learn or judge.

        Args:
          split: the split.
          group_names: the names that the groups of its examples index, see `data.sources.Source`.

        Raises:
          ConfigError: the targets are not of the task's kind.
          DataError: examples contradict each other; the message names them.
        """

    def check_network(self, model: nn.Module) -> None:
        """Checks that the outputs of a network can express the targets.

        Raises:
          ConfigError: they cannot; the message names the key to change.
        """

    def augment(self, batch: Batch, keys: jax.Array) -> Batch:
        """Augments a training batch on the device; pixels stay in 0..255.

        Args:
          batch: "image" and targets.
          keys: one random key per example.
        """

    def forward(self, apply: Callable[[jax.Array], Any], batch: Batch) -> Any:
        """Returns the network's outputs for a raw batch in evaluation.

        Args:
          apply: maps the network's input to its outputs.
          images: raw images (batch, *spatial, channels), in 0..255.
        """

    def loss(self, outputs: Any, batch: Batch) -> jax.Array:
        """Returns the loss of each example, float (batch,).

        Args:
          outputs: of the network.
          batch: in training what `augment` returned, without "image"; in evaluation the raw batch.
        """

    def sums(self, outputs: Any, batch: Batch) -> Sums:
        """Returns sums over the examples; if the batch has "valid", only over those where it is True."""

    def records(self, outputs: Any, batch: Batch) -> Records:
        """Returns the values that evaluation keeps for each example; {} for none."""

    def values(self, sums: Sums, records: Records) -> Values:
        """Computes the metrics on the host; "loss" is one of them.

        Args:
          sums: the sums over all examples; in evaluation int64 and float64.
          records: the records of all examples; {} in training.
        """

    def fitted(self, records: Records) -> "Task":
        """Returns the task with what it chooses on the validation split; called only if `fits_on_validation`.

        What it chooses must not change `forward`, `sums` and `records`.

        Args:
          records: those of all examples of the validation split.
        """

    def predict(self, outputs: Any) -> Any:
        """Returns the predictions for the user, (batch, ...)."""

    def score(self, predicted: np.ndarray) -> float:
        """Returns what candidates are ranked by, the most important ones having the highest score."""

    def describe(self, predicted: np.ndarray, top: int = 5) -> dict[str, list[dict[str, Any]]]:
        """Returns the prediction for one example as named lists of rows, each of at most `top` rows."""

    def line(self, row: Mapping[str, Any]) -> str:
        """Returns a row of `describe` as one line of text."""

    def report(self, folder: pathlib.Path, sums: Sums, records: Records) -> None:
        """Writes the tables and pictures of an evaluation."""

    def draw(self, path: pathlib.Path, batch: Batch) -> None:
        """Draws the examples of a batch, with pixels in 0..255, as a PNG."""

    def report_case(
        self,
        path: pathlib.Path,
        names: Sequence[str],
        pictures: Sequence[bytes],
        notes: Sequence[str],
        predicted: Sequence[np.ndarray],
        title: str | None = None,
    ) -> None:
        """Writes an HTML page about one case, or about several things.

        Args:
          path: the file to write.
          names: of the images.
          pictures: what `explain` drew for each image, as the bytes of a PNG.
          notes: what `explain` returned for each image.
          predicted: the prediction for each image, rows of the output of `predict`.
          title: the heading, if the images are of different things; None if all are slices of one case.
        """

    def explain(
        self,
        path: pathlib.Path,
        image: np.ndarray,
        predicted: np.ndarray,
        head: np.ndarray,
        class_name: str | None = None,
    ) -> str:
        """Draws an explanation of the prediction for one image as a PNG, and returns a sentence about what it shows.

        Args:
          path: the file to write.
          image: the raw image, (*spatial, channels).
          predicted: the prediction for it, one row of the output of `predict`.
          head: the feature map of the network's head, (*spatial, channels).
          class_name: the class to explain; None for the predicted one.
        """


@runtime_checkable
class Likelihood(Protocol):
    """What a task has beside `Task` if its predictions are distributions; compression to a size needs it."""

    def log_likelihood_of_draw(self, outputs: Any, key: jax.Array) -> jax.Array:
        """Returns the log-likelihood, a scalar, of a target that is drawn from the prediction for one example.

        No gradient flows through the draw. The mean square of the gradient is the Fisher information.

        Args:
          outputs: of the network, for a batch of one.
          key: of the draw.
        """
