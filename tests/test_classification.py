"""Classification: its metrics by hand, ties, mirror images, records without padding, class weights."""

import csv
import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from squeeze_jax import drawing, network
from squeeze_jax.config import base_config
from squeeze_jax.data.augmentation import Preprocessing
from squeeze_jax.data.splits import Split
from squeeze_jax.errors import ConfigError, InputError
from squeeze_jax.network import read_image
from squeeze_jax.tasks import Classification, classification
from squeeze_jax.tasks.classification import balanced_weights, per_class
from squeeze_jax.training.evaluation import Evaluation, add_up
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
    weights = np.array(balanced_weights(Split("four", examples, (2, 2, 1), 2), "ab"))
    np.testing.assert_allclose(weights, [2 / 3, 2])
    assert np.mean(weights[[0, 0, 0, 1]]) == pytest.approx(1)
    with pytest.raises(ConfigError, match="four has no examples of c; use factors instead"):
        balanced_weights(Split("four", examples, (2, 2, 1), 3), "abc")


def test_the_best_classes_are_described_in_order():
    task = classifier()
    rows = task.describe(np.array([0.1, 0, 0, 0.6, 0, 0, 0, 0.3, 0, 0]))["top5"]
    assert [row["label"] for row in rows] == ["d", "h", "a", "b", "c"]
    assert task.line(rows[0]) == " 60.0%  d (3)"


def test_metrics_are_by_case_and_a_class_without_cases_is_named(caplog):
    """Three slices of one nodule and one of another; by slices, one of three positives would be missed."""
    logits = jnp.array([[0.0, 3.0], [0.0, 2.0], [1.0, 0.0], [1.0, 0.0]])
    batch = {
        "image": jnp.zeros((4, 4, 4, 1)),
        "label": jnp.array([1, 1, 1, 0]),
        "case": jnp.array([5, 5, 5, 6]),
        "patient": jnp.array([1, 1, 1, 2]),
        "valid": jnp.ones(4, bool),
    }

    class Fixed(nn.Module):
        @nn.compact
        def __call__(self, images):
            return logits

    task = classifier(2, metrics="full")
    sums, records = add_up([make_eval_step(Fixed(), task)({}, batch)])
    assert records["case"].tolist() == [5, 5, 5, 6] and records["patient"].tolist() == [1, 1, 1, 2]
    values = task.values(sums, records)
    assert values["top1"] == 0.75 and values["accuracy"] == values["sensitivity"] == values["auc"] == 1.0
    assert set(values) == set(task.higher_is_better) and not caplog.records
    one_class = task.values(sums, {**records, "label": np.ones(4, int)})
    assert "auc" not in one_class and one_class["accuracy"] == 0.5
    assert "none of the 2 cases is of class a" in caplog.text


def test_what_is_chosen_on_validation_data_changes_the_judgment():
    rng = np.random.default_rng(0)
    label = rng.integers(2, size=200)
    logit = 4 * (rng.normal(size=200) + 2 * label)  # far too sure, and 2 too high
    p = 1 / (1 + np.exp(-logit))
    records = {"label": label, "probability": np.stack([1 - p, p], 1)}
    sums = {"examples": 200, "loss": 0.0, "top1": 0}
    plain, chosen = classifier(2, metrics="full"), classifier(2, metrics="full", threshold="youden", calibrate=True)
    assert chosen.fits_on_validation and not plain.fits_on_validation
    before, after = plain.values(sums, records), chosen.fitted(records).values(sums, records)
    assert after["temperature"] > 1.5 and 0.5 < after["threshold"] < 1
    assert after["calibration_error"] < before["calibration_error"] and after["brier"] < before["brier"]
    assert after["balanced_accuracy"] > before["balanced_accuracy"] and after["auc"] == before["auc"]


def test_a_temperature_that_the_validation_data_do_not_tell_is_a_warning(caplog):
    p = np.linspace(0.6, 0.9, 20)  # right without an exception
    records = {"label": np.arange(20) % 2, "probability": np.where(np.arange(20) % 2, p, 1 - p)}
    records["probability"] = np.stack([1 - records["probability"], records["probability"]], 1)
    classifier(2, calibrate=True).fitted(records)
    assert "the temperature is at the limit" in caplog.text
    caplog.clear()
    classifier(2, calibrate=True).fitted({**records, "label": np.arange(20) // 3 % 2})
    assert not caplog.records


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": "all"}, "config.task.metrics='all'; expected basic or full"),
        ({"specificity": 1.0}, "config.task.specificity=1.0; expected 0 < value < 1"),
        ({"threshold": "best"}, "config.task.threshold='best'; expected a probability"),
        ({"threshold": "youden"}, "config.task.threshold='youden' is for two classes, but there are 3; leave it out"),
        ({"positive": "a"}, "config.task.positive='a' is for two classes, but there are 3; leave it out"),
        ({"labels": "multilabel", "positive": "a"}, "config.task.positive='a' is for one class per image"),
        ({"labels": "multilabel", "calibrate": True}, "config.task.calibrate=True is for one class per image"),
    ],
)
def test_wrong_options_of_judging(options, message):
    with pytest.raises(ConfigError, match=message):
        create("abc", **options)
    assert create("ab", threshold="0.3").point.threshold == 0.3
    assert create("abc", threshold="0.50").threshold == "0.50"  # the default in other words


def test_an_option_without_effect_is_refused_in_training_and_does_not_keep_a_network_from_loading():
    examples = [{"image": np.zeros((2, 2, 1), np.uint8), "label": label} for label in (0, 1, 2)]
    assert create("abc", specificity=0.8).specificity == 0.8
    with pytest.raises(ConfigError, match=r"config.task.specificity=0.8 is for two classes, but there are 3"):
        create("abc", Split("three", examples, (2, 2, 1), 3), specificity=0.8)


def create(names, split=None, **options):
    return Classification.create({**Classification.OPTIONS, **options}, tuple(names), Preprocessing(), split)


def test_the_positive_class_is_a_key():
    assert [create(("COVID", "NonCOVID"), positive=name).positive_class for name in ("COVID", "NonCOVID", "")] == [
        0,
        1,
        1,
    ]
    with pytest.raises(
        ConfigError, match="config.task.positive='covid' is not a class.*expected 'COVID' or 'NonCOVID'"
    ):
        create(("COVID", "NonCOVID"), positive="covid")


def test_the_tables_of_an_evaluation_name_the_positive_class(tmp_path, caplog, monkeypatch):
    """10 of 10 COVID found, 5 of 10 NonCOVID right; the threshold is chosen for the positive class."""
    few = functools.partial(classification.explained_intervals, resamples=20)
    monkeypatch.setattr(classification, "explained_intervals", few)
    monkeypatch.setattr(classification, "write_confusion", lambda *_: None)
    monkeypatch.setattr(classification.plots, "draw_curves", lambda *_: None)
    p = np.array([0.9] * 10 + [0.8] * 5 + [0.1] * 5)  # of COVID
    records = {"label": np.repeat([0, 1], 10), "probability": np.stack([p, 1 - p], 1)}
    records["prediction"] = records["probability"].argmax(1)
    task = create(("COVID", "NonCOVID"), positive="COVID", metrics="full")
    values = task.values({"examples": 20, "loss": 0.0, "top1": 15}, records)
    assert (values["sensitivity"], values["specificity"]) == (1.0, 0.5)
    task.report(tmp_path, {}, records)
    for name in ("scores", "cases", "per_class"):
        with (tmp_path / f"{name}.csv").open() as file:
            assert {row["positive class"] for row in csv.DictReader(file)} == {"COVID"}
    sums = {"examples": 20, "loss": 0.0, "top1": 15}
    evaluation = Evaluation(task.values(sums, records), sums, records, task)
    loaded = types.SimpleNamespace(config=base_config(), step=3, evaluate=lambda *_: evaluation)
    monkeypatch.setattr(network, "load", lambda *_: loaded)
    network.evaluate(tmp_path)
    with (tmp_path / "evaluation" / "test_step_3" / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["positive class"], row["sensitivity"]) == ("COVID", "1.0")
    caplog.set_level("INFO")
    chosen = dataclasses.replace(task, threshold="specificity=0.9").fitted(records)
    assert chosen.point.threshold == pytest.approx(0.85) and "0.8500 on the probability of COVID" in caplog.text
    assert chosen.values({"examples": 20, "loss": 0.0, "top1": 15}, records)["specificity"] == 1.0


def test_what_a_candidate_is_ignored_for_reaches_the_records():
    batch = {"image": jnp.zeros((2, 4, 4, 1)), "label": jnp.array([0, 1]), "ignored": jnp.array([True, False])}
    records = classifier(2).records(jnp.zeros((2, 2)), batch)
    assert records["ignored"].tolist() == [True, False]


def test_maps_over_the_slices_of_a_volume_and_the_page_of_a_case(tmp_path):
    task = Classification(("benign", "<malignant>"), Preprocessing())
    rng = np.random.default_rng(0)
    volume, head = rng.integers(0, 256, (12, 16, 16, 1)).astype(np.uint8), rng.normal(size=(3, 4, 4, 2))
    notes = [
        task.explain(tmp_path / "map.png", volume, np.array([0.2, 0.8]), head),
        task.explain(tmp_path / "flat.png", volume[0], np.array([0.2, 0.8]), head[0], "benign"),
    ]
    assert "evidence for <malignant> is" in notes[0] and "evidence for benign is" in notes[1]
    pictures = [(tmp_path / name).read_bytes() for name in ("map.png", "flat.png")]
    assert min(map(len, pictures)) > 5000 and len(pictures[0]) > len(pictures[1])
    task.report_case(
        tmp_path / "case.html", ["/x/a&b.npy", "c.png"], pictures, notes, [np.array([0.2, 0.8]), np.array([0.6, 0.4])]
    )
    page = (tmp_path / "case.html").read_text()
    assert "<h1>Most probable class: &lt;malignant&gt;, with a probability of 60.0%</h1>" in page
    assert "<h2>a&amp;b.npy</h2>" in page and "where the evidence for benign is" in page
    assert page.count("data:image/png;base64,") == 2 and "80.0%" in page and not (tmp_path / "case.html.tmp").exists()


def test_a_map_of_one_cell_is_not_drawn_and_the_page_says_why(tmp_path, monkeypatch):
    task, drawn = Classification(("benign", "malignant"), Preprocessing()), []
    overlay = drawing.draw_overlay
    monkeypatch.setattr(
        drawing, "draw_overlay", lambda *args, **names: drawn.append(args[2]) or overlay(*args, **names)
    )
    volume, head = np.full((4, 8, 8, 1), 7, np.uint8), np.ones((1, 1, 1, 2))
    note = task.explain(tmp_path / "map.png", volume, np.array([0.2, 0.8]), head)
    assert drawn == [None] and note.startswith("No class activation map is shown, because")
    picture = (tmp_path / "map.png").read_bytes()
    task.report_case(tmp_path / "case.html", ["a.npy"], [picture], [note], [np.array([0.2, 0.8])])
    page = (tmp_path / "case.html").read_text()
    assert note in page and "where the evidence" not in page and "over 1 image of the case" in page


def test_a_map_of_an_unknown_class_suggests_one(tmp_path):
    task = Classification(("benign", "malignant"), Preprocessing())
    with pytest.raises(InputError, match="no class 'malign'; expected one of benign, malignant. Did you mean 'malig"):
        task.explain(tmp_path / "map.png", np.ones((4, 4, 1)), np.array([0.2, 0.8]), np.ones((2, 2, 2)), "malign")
    many = Classification(tuple("abcdefghijkl"), Preprocessing())
    with pytest.raises(InputError, match=r"expected one of a, b, c, d, e, f, g, h, i, j and 2 more\.$"):
        many.class_index("?")


def test_a_volume_is_read_from_an_array(tmp_path):
    volume, path = np.arange(64, dtype=np.uint8).reshape(4, 4, 4), tmp_path / "volume.npy"
    np.save(path, volume)
    config = base_config()
    np.testing.assert_array_equal(read_image(path, config, (4, 4, 4, 1)), volume[..., None])
    with pytest.raises(
        InputError, match=r"volume.npy has shape \(4, 4, 4\), uint8; the network expects \(5, 4, 4, 1\)"
    ):
        read_image(path, config, (5, 4, 4, 1))
    for damaged in (b"", b"PK\x03\x04", path.read_bytes()[:90]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="volume.npy cannot be read"):
            read_image(path, config, (4, 4, 4, 1))
    np.save(path, volume / 255)
    with pytest.raises(
        InputError, match=r"has shape \(4, 4, 4, 1\), float64; the network expects \(4, 4, 4, 1\), uint8"
    ):
        read_image(path, config, (4, 4, 4, 1))
    np.save(path, np.array([object()]), allow_pickle=True)
    with pytest.raises(InputError, match="volume.npy cannot be read: .*Python objects"):
        read_image(path, config, (4, 4, 4, 1))
