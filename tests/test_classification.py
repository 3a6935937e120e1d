"""Classification: its metrics by hand, ties, mirror images, records without padding, class weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from squeeze_jax.data.augmentation import Preprocessing
from squeeze_jax.data.splits import Split
from squeeze_jax.errors import ConfigError
from squeeze_jax.tasks import Classification
from squeeze_jax.tasks.classification import balanced_weights, per_class
from squeeze_jax.training.evaluation import add_up
from squeeze_jax.training.steps import make_eval_step

CLASSES = 10


def classifier(classes=CLASSES, **options):
    return Classification(tuple("abcdefghij"[:classes]), Preprocessing(std=(1.0,)), **options)


class Constant(nn.Module):
    """Always answers the same class."""

    answer: int

    @nn.compact
    def __call__(self, images):
        return jnp.tile(jax.nn.one_hot(self.answer, CLASSES) * 3.0, (images.shape[0], 1))


def test_a_constant_answer_gets_the_hand_computed_accuracy():
    labels = jnp.array([2, 2, 5, 1, 2, 9, 2, 2], jnp.int32)
    mask = jnp.array([True] * 6 + [False] * 2)
    task = classifier()
    step = make_eval_step(Constant(2), task)
    evaluated = jax.jit(step)({}, {"image": jnp.zeros((8, 4, 4, 1), jnp.uint8), "label": labels, "valid": mask})
    totals, records = add_up([evaluated, evaluated])
    assert records.keys() == {"label", "prediction"} and len(records["label"]) == 12
    assert totals["examples"] == 12 and totals["top1"] == 6 and totals["examples"].dtype == np.int64
    # Behind class 2 the lowest classes win the tie for the five best: 0, 1, 3, 4.
    assert totals["top5"] == 8
    right, wrong = np.log(np.exp(3) + 9) - 3, np.log(np.exp(3) + 9)
    assert totals["loss"] == pytest.approx(2 * (3 * right + 3 * wrong), rel=1e-6)
    confusion = task.confusion(records)
    assert confusion.sum() == 12 and confusion[2, 2] == 6 and confusion[9, 2] == 2
    rows = per_class(confusion, task.class_names)
    assert rows[2]["recall"] == 1.0 and rows[2]["precision"] == 0.5 and np.isnan(rows[0]["recall"])


def test_equal_logits_are_not_a_hit_for_everyone():
    class Flat(nn.Module):
        @nn.compact
        def __call__(self, images):
            return jnp.zeros((images.shape[0], CLASSES))

    data = {"image": jnp.zeros((CLASSES, 4, 4, 1)), "label": jnp.arange(CLASSES), "valid": jnp.ones(CLASSES, bool)}
    sums, _ = make_eval_step(Flat(), classifier())({}, data)
    assert int(sums["top1"]) == 1 and int(sums["top5"]) == 5


def test_evaluation_takes_the_mean_of_the_logits_over_mirror_images():
    class LeftColumn(nn.Module):
        @nn.compact
        def __call__(self, images):
            return images[:, 0, 0, :]

    images = jnp.array([[[[1.0, 0.0], [0.0, 5.0]]]])  # one row, two columns, two channels: the classes
    data = {"image": images, "label": jnp.array([0]), "valid": jnp.array([True])}
    plain, _ = make_eval_step(LeftColumn(), classifier(2))({}, data)
    mirrored, _ = make_eval_step(LeftColumn(), classifier(2, mirror=("width",)))({}, data)
    assert int(plain["top1"]) == 1 and int(mirrored["top1"]) == 0
    assert float(mirrored["loss"]) == pytest.approx(np.log(np.exp(0.5) + np.exp(2.5)) - 0.5)


def test_records_leave_the_padding_out():
    labels, mask = jnp.array([0, 1, 1, 0, 1], jnp.int32), jnp.array([True, True, True, True, False])
    logits = jnp.array([[0.0, 1.0], [0.0, 2.0], [0.0, 0.5], [0.0, -1.0], [9.0, 0.0]])

    class Fixed(nn.Module):
        @nn.compact
        def __call__(self, images):
            return logits

    task = classifier(2, auc=True)
    step = make_eval_step(Fixed(), task)
    sums, records = add_up([step({}, {"image": jnp.zeros((5, 4, 4, 1)), "label": labels, "valid": mask})])
    assert sums["examples"] == 4 and records["label"].tolist() == [0, 1, 1, 0]
    values = task.values(sums, records)
    # Of the four pairs of a positive and a negative, one is in the wrong order: 0.5 below 1.0.
    assert (values["auc"], values["sensitivity"], values["specificity"]) == (0.75, 1.0, 0.5)


def test_balanced_weights_are_inverse_to_the_shares_and_average_to_one():
    examples = [{"image": np.zeros((2, 2, 1), np.uint8), "label": label} for label in (0, 0, 0, 1)]
    weights = np.array(balanced_weights(Split("four", examples, (2, 2, 1), 2)))
    np.testing.assert_allclose(weights, [2 / 3, 2])
    assert np.mean(weights[[0, 0, 0, 1]]) == pytest.approx(1)
    with pytest.raises(ConfigError, match="a class has no examples in four"):
        balanced_weights(Split("four", examples, (2, 2, 1), 3))


def test_the_best_classes_are_described_in_order():
    task = classifier()
    rows = task.describe(np.array([0.1, 0, 0, 0.6, 0, 0, 0, 0.3, 0, 0]))["top5"]
    assert [row["label"] for row in rows] == ["d", "h", "a", "b", "c"]
    assert task.line(rows[0]) == " 60.0%  d (3)"
