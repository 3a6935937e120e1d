"""Other labels than one class per image, and losses and sampling for rare classes."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from squeeze_jax import tasks
from squeeze_jax.config import base_config
from squeeze_jax.data import pipeline
from squeeze_jax.data.augmentation import Preprocessing
from squeeze_jax.data.sources import Dataset
from squeeze_jax.data.splits import Split
from squeeze_jax.errors import ConfigError, DataError
from squeeze_jax.experiment import build, make_model
from squeeze_jax.tasks import Likelihood
from squeeze_jax.tasks.classification import MultiLabel, Ordinal


def create(split=None, names="abcde", **options):
    options = {**tasks.Classification.OPTIONS, **options}
    return tasks.Classification.create(options, tuple(names), Preprocessing(std=(1.0,)), split)


def split_of(labels, num_classes):
    examples = [{"image": np.full((2, 2, 1), i, np.uint8), "label": label} for i, label in enumerate(labels)]
    return Split("some/train", examples, (2, 2, 1), num_classes)


def test_ordinal_probabilities_are_a_product_of_conditions():
    task = create(labels="ordinal")
    assert isinstance(task, Ordinal) and (task.num_outputs, task.num_classes) == (4, 5)
    outputs = jax.random.normal(jax.random.key(0), (6, 4)) * 3
    go = np.asarray(jax.nn.sigmoid(outputs), np.float64)
    expected = np.empty((6, 5))
    for row in range(6):
        left = 1.0
        for k in range(4):
            expected[row, k] = left * (1 - go[row, k])
            left *= go[row, k]
        expected[row, 4] = left
    np.testing.assert_allclose(task.predict(outputs), expected, rtol=1e-3)
    labels = jnp.array([0, 1, 2, 3, 4, 2])
    loss = task.loss(outputs, {"label": labels})
    np.testing.assert_allclose(loss, -np.log(expected[range(6), labels]), rtol=1e-3)
    batch = {"label": labels, "valid": jnp.array([True] * 5 + [False])}
    sums = task.sums(outputs, batch)
    assert int(sums["mae"]) == np.abs(expected.argmax(1) - labels)[:5].sum() and int(sums["examples"]) == 5
    values = task.values(sums, {})
    assert values["mae"] == int(sums["mae"]) / 5 and task.higher_is_better["mae"] is False


def test_ordinal_outputs_learn_from_the_classes_they_are_about():
    task = create(labels="ordinal")
    gradient = jax.grad(lambda outputs: task.loss(outputs, {"label": jnp.array([1])})[0])(jnp.zeros((1, 4)))
    np.testing.assert_allclose(gradient[0], [-0.5, 0.5, 0, 0], atol=1e-6)


def test_multilabel_is_binary_cross_entropy():
    labels = np.random.default_rng(0).integers(0, 2, (40, 3)).astype(np.uint8)
    task = create(split_of(labels, 3), "abc", labels="multilabel", auc=True)
    assert isinstance(task, MultiLabel) and task.chance_loss == pytest.approx(np.log(2))
    outputs = jax.random.normal(jax.random.key(1), (40, 3))
    expected = optax.sigmoid_binary_cross_entropy(outputs, labels.astype(float)).mean(1)
    batch = {"label": jnp.array(labels), "valid": jnp.arange(40) < 30}
    np.testing.assert_allclose(task.loss(outputs, batch), expected, rtol=1e-5)
    sums = task.sums(outputs, batch)
    records = {name: np.asarray(value)[:30] for name, value in task.records(outputs, batch).items()}
    values = task.values(sums, records)
    from sklearn.metrics import roc_auc_score

    assert values["auc"] == pytest.approx(roc_auc_score(labels[:30], np.asarray(outputs)[:30], average="macro"))
    assert values["accuracy"] == pytest.approx(((np.asarray(outputs) > 0) == labels)[:30].mean())
    assert values["loss"] == pytest.approx(float(expected[:30].mean()), rel=1e-5)
    augmented = task.augment({"image": jnp.zeros((40, 2, 2, 1)), **batch}, jax.random.split(jax.random.key(0), 40))
    np.testing.assert_allclose(task.loss(outputs, augmented), expected, rtol=1e-5)


def test_multilabel_writes_a_table(tmp_path):
    task = create(labels="multilabel", names="ab", auc=True)
    records = {
        "label": np.array([[1, 0], [0, 0], [1, 0]]),
        "probability": np.array([[0.9, 0.1], [0.6, 0.2], [0.7, 0.3]]),
    }
    task.report(tmp_path, {}, records)
    rows = (tmp_path / "per_class.csv").read_text().splitlines()
    assert rows[0] == "class,name,examples,correct,recall,precision,auc"
    assert rows[1].startswith("0,a,2,2,1.0,0.66") and rows[1].endswith(",1.0") and rows[2].startswith("1,b,0,0,nan")
    task.draw(tmp_path / "sheet.png", {"image": np.zeros((3, 4, 4, 1)), "label": records["label"]})


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([[1, 0], [0, 1]], {}, "have 2 labels each; set config.task.labels='multilabel'"),
        ([1, 0], {"labels": "multilabel"}, "have one class each; set config.task.labels='multiclass' or 'ordinal'"),
        ([1, 0], {"labels": "several"}, "config.task.labels='several'; expected one of multiclass, ordinal"),
        ([1, 0], {"focal_gamma": 0.5}, "config.task.focal_gamma=0.5; expected 0, or 1 or more"),
        ([[1, 0], [0, 1]], {"labels": "multilabel", "class_weights": "balanced"}, "are for one class per image"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels, options, message):
    with pytest.raises(ConfigError, match=message):
        create(split_of([np.array(label) for label in labels], 2), "ab", **options)


@pytest.mark.parametrize(("kind", "labels"), [("multilabel", [1, 0]), ("ordinal", [[1, 0], [0, 1]])])
def test_a_split_of_another_kind_of_labels_is_not_evaluated(kind, labels):
    split = split_of([np.array(label) for label in labels], 2)
    with pytest.raises(ConfigError, match=r"set config.task.labels="):
        create(names="ab", labels=kind).check_split(split, {})


def test_mixup_of_labels_needs_pairs():
    task = create(names="ab", labels="multilabel", mixup=0.2)
    assert not task.naming  # two labels are not a pair of a positive and a negative class
    batch = {"image": jnp.zeros((3, 2, 2, 1)), "label": jnp.zeros((3, 2))}
    with pytest.raises(ConfigError, match="mixup pairs examples, but a batch has 3"):
        task.augment(batch, jax.random.split(jax.random.key(0), 3))


@pytest.mark.parametrize("kind", ["ordinal", "multilabel"])
@pytest.mark.parametrize("network", ["squeezenet_v1_1", "squeezenodule_v2"])
def test_outputs_that_cannot_say_no_are_refused_before_anything_runs(kind, network):
    """And a network that was trained so by an earlier version is still what it was."""
    config = base_config()
    config.update({"model": {"name": network}, "task": {"labels": kind}, "evaluation": {"best_metric": "loss"}})
    config.train.duration = "3 steps"
    config.dataset.update({"validation_split": "", "test_split": ""})
    label = np.zeros(3, np.uint8) if kind == "multilabel" else 0
    examples = [{"image": np.zeros((64, 64, 3), np.uint8), "label": label}]
    source = types.SimpleNamespace(
        class_names=tuple("abc"), split_sizes={"train": 1}, group_names={}, examples=lambda split: examples
    )
    dataset = Dataset("some", source, (64, 64, 3))
    with pytest.raises(ConfigError, match=f"config.model.head_relu=True, the default of this Squeeze.*labels='{kind}'"):
        build(config, dataset)
    assert make_model(config, create(names="abc", labels=kind)).head_relu
    config.model.head_relu = False
    assert not build(config, dataset).model.head_relu
    config.model.name = "resnet18"  # ends without a ReLU
    config.model.head_relu = None
    assert build(config, dataset)


def test_focal_loss_by_hand():
    outputs, labels = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])
    p = np.exp(outputs)[:, 0] / np.exp(outputs).sum(1)
    found = create(names="ab", focal_gamma=2.0).loss(outputs, {"label": labels})
    np.testing.assert_allclose(found, -((1 - p) ** 2) * np.log(p), rtol=1e-5)
    task = create(names="ab", focal_gamma=1.5, labels="multilabel")
    p = jax.nn.sigmoid(outputs[:1])
    expected = -((1 - p[0, 0]) ** 1.5 * jnp.log(p[0, 0]) + p[0, 1] ** 1.5 * jnp.log(1 - p[0, 1])) / 2
    np.testing.assert_allclose(task.loss(outputs[:1], {"label": jnp.array([[1, 0]])})[0], expected, rtol=1e-5)


def test_balanced_batches_hold_every_class_equally_and_resume():
    labels = np.array([0] * 90 + [1] * 7 + [3] * 3)
    split = split_of(labels, 4)

    def batches(count, **options):
        found = pipeline.train_batches(split, batch_size=12, seed=4, balanced=True, **options)
        return [next(found) for _ in range(count)]

    whole = batches(30)
    assert all(np.bincount(batch["label"], minlength=4).tolist() == [4, 4, 0, 4] for batch in whole)
    frequent = np.concatenate([batch["image"][batch["label"] == 0, 0, 0, 0] for batch in whole])
    assert len(set(frequent[:90])) == 90  # every example of a class before one of them again
    rest = batches(9, first_step=21, num_threads=1)
    for ours, theirs in zip(rest, whole[21:], strict=True):
        np.testing.assert_array_equal(ours["image"], theirs["image"])
    halves = [batches(5, process_index=i, process_count=2) for i in range(2)]
    for step in range(5):
        joined = np.concatenate([half[step]["image"] for half in halves])
        np.testing.assert_array_equal(joined, whole[step]["image"])
    with pytest.raises(DataError, match="do not have one class each; set config.train.sampling='uniform'"):
        pipeline.train_batches(split_of([np.ones(2, int)] * 3, 2), batch_size=2, seed=0, balanced=True)


@pytest.mark.parametrize("kind", ["multiclass", "ordinal", "multilabel"])
def test_targets_are_drawn_from_the_prediction(kind):
    """The mean log-likelihood of what is drawn is the negative entropy of the prediction."""
    task = create(names="abc", labels=kind)
    outputs = jnp.array([[1.5, -0.5, 0.3][: task.num_outputs]])
    drawn = jax.vmap(lambda key: task.log_likelihood_of_draw(outputs, key))(jax.random.split(jax.random.key(0), 4000))
    p = np.asarray(task.predict(outputs)[0], np.float64)
    entropy = -(p * np.log(p)).sum() - (((1 - p) * np.log1p(-p)).sum() if kind == "multilabel" else 0)
    assert float(drawn.mean()) == pytest.approx(-entropy, rel=0.05)
    assert isinstance(task, Likelihood)
