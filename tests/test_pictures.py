"""Every figure with names and numbers that are hard to place: no two texts overlap, and none leaves the figure."""

import itertools
import json
import logging

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from docs import make_pictures
from experiments import compare, compression_curve, report
from experiments.trials import Sweep
from squeeze_jax import config, drawing, plotting
from squeeze_jax.compression import sensitivity
from squeeze_jax.metrics.cases import Cases
from squeeze_jax.metrics.froc import froc
from squeeze_jax.metrics.operating_point import OperatingPoint
from squeeze_jax.metrics.plots import draw_curves, draw_froc
from squeeze_jax.tasks.classification_report import draw_confusion, draw_map
from squeeze_jax.workdir import records

NAMES = {
    "short": "{}",
    "long": "a class whose name has about as many letters as a file: {:04}",
    "accented": "Flugzeug_äöüß $_{} é",
    "cjk": "飞机 {} 航空機",
}


RESOLVED = {"class_names": ["a"], "num_classes": 1, "image_shape": [1, 1, 1], "dataset_version": ""}


def names(kind: str, count: int) -> tuple[str, ...]:
    return tuple(NAMES[kind].format(i) for i in range(count))


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are written. Each is checked: its texts lie in it, and do not overlap."""
    figures, save = [], plotting.save

    def checked(figure, path):
        save(figure, path)
        figures.append(figure)
        check_texts(figure)

    monkeypatch.setattr(plotting, "save", checked)
    return figures


def check_texts(figure):
    boxes = {text: text.get_window_extent().padded(-0.5) for text in drawn_texts(figure)}
    assert boxes
    inside = figure.bbox.padded(1)
    for text, box in boxes.items():
        corners = inside.x0 <= box.x0 and inside.y0 <= box.y0 and box.x1 <= inside.x1 and box.y1 <= inside.y1
        assert corners, f"{text.get_text()!r} leaves the figure"
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        assert not a.overlaps(b), f"{one.get_text()!r} overlaps {other.get_text()!r}"


def drawn_texts(figure):
    """The texts that Matplotlib draws, which are fewer than those that the figure has: ticks may lie outside."""
    found, draw = [], Text.draw

    def recorded(text, *args, **kwargs):
        if text.get_visible() and text.get_text().strip():
            found.append(text)
        draw(text, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", recorded)
        figure.canvas.draw()
    return found


def cases(classes: int, seed: int = 0) -> Cases:
    rng = np.random.default_rng(seed)
    label = np.arange(20 * classes) % classes
    logits = rng.normal(size=(len(label), classes)) + 1.5 * np.eye(classes)[label]
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Cases.of({"label": label, "probability": probability}, OperatingPoint(0.5), positive=1)


def labels_of_axes(figure):
    return [(axis.get_xlabel(), axis.get_ylabel()) for axis in figure.axes]


def test_the_check_finds_what_overlaps_and_what_leaves_the_figure(tmp_path):
    for place, said in (((0.5, 0.5), "overlaps 'here'"), ((1.2, 0.5), "leaves the figure")):
        with (
            pytest.raises(AssertionError, match=said),
            plotting.figure(tmp_path / "a.png", width=3, height=2) as (
                figure,
                _,
            ),
        ):
            figure.text(*place, "there")
            figure.text(0.5, 0.5, "here")
            check_texts(figure)
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("classes", "kind"), [(2, "short"), (2, "long"), (10, "accented"), (10, "long"), (40, "cjk"), (100, "long")]
)
def test_confusion_matrices(classes, kind, tmp_path, drawn):
    rng = np.random.default_rng(0)
    confusion = rng.integers(0, 20, (classes, classes)) * (rng.random((classes, classes)) < 0.5)
    confusion += np.diag(rng.integers(100, 1000, classes))
    draw_confusion(tmp_path / "confusion.png", confusion, names(kind, classes))
    (figure,) = drawn
    right = f"{np.trace(confusion)} of {confusion.sum()} right"
    assert right in figure.texts[0].get_text()
    texts = [text.get_text() for text in drawn_texts(figure)]
    assert {plotting.plain(name) for name in names(kind, classes)} <= set(texts)
    if classes == 2:
        shares = 100 * confusion[0] / confusion[0].sum()
        assert all(f"{n}\n{share:.0f} %" in texts for n, share in zip(confusion[0], shares, strict=True) if n)


@pytest.mark.parametrize(
    ("classes", "models", "kind"),
    [(2, 1, "long"), (2, 12, "long"), (2, 1, "cjk"), (10, 1, "accented"), (40, 1, "long"), (10, 2, "short")],
)
def test_curves_of_classifiers(classes, models, kind, tmp_path, drawn):
    titles = names(kind, models) if models > 1 else [""]
    judged = {name: cases(classes, i) for i, name in enumerate(titles)}
    draw_curves(tmp_path / "curves.png", judged, names(kind, classes))
    (figure,) = drawn
    assert all(map(all, labels_of_axes(figure)))
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sum("AUC 0." in text for text in legend) == models * (1 if classes == 2 else min(classes, 10))
    assert any("at the threshold" in text for text in legend) == (classes == 2)


def test_an_operating_point_off_its_curve_is_explained(tmp_path, drawn):
    """The folds of a pooled curve have thresholds of their own."""
    one = cases(2)
    threshold = np.where(np.arange(len(one)) % 2, 0.3, 0.7)
    pooled = Cases(**{**vars(one), "prediction": (one.probability[:, 1] > threshold).astype(int)})
    draw_curves(tmp_path / "curves.png", {"": pooled}, ("benign", "malignant"))
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert "at the threshold of each fold, which may lie off the pooled curve" in legend


@pytest.mark.parametrize(("models", "kind"), [(1, "long"), (12, "accented")])
def test_froc_curves(models, kind, tmp_path, drawn):
    curves = {}
    for i, name in enumerate(names(kind, models)):
        found = cases(2, i)
        curves[name] = froc(found.probability[:, 1], found.label == 1, np.arange(len(found.label)) // 8)
    draw_froc(tmp_path / "froc.png", curves, names(kind, 1)[0])
    assert labels_of_axes(drawn[0]) == [("false positives per scan", "sensitivity")]


def write_metrics(folder, steps, rate=0.00031):
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in steps:
        train = {"loss": 1000 / step, "top1": 0.5, "learning_rate": rate * step}
        lines += [{"step": step, "split": "train", "values": train}]
        lines += [{"step": step, "split": "validation", "values": {"loss": 900 / step, "top1": 0.75}}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("steps", "panels"), [((34,), 2), ((50, 100), 3), (tuple(range(100, 200_100, 5000)), 3), ((1, 1_000_000), 3)]
)
def test_curves_of_a_run_without_empty_panels(steps, panels, tmp_path, drawn):
    write_metrics(tmp_path, steps)
    records.draw_curves(tmp_path, ["loss", "top1", "learning_rate"])
    (figure,) = drawn
    assert [y for _, y in labels_of_axes(figure)] == ["loss", "top-1 accuracy", "learning rate"][:panels]
    assert all(axis.lines for axis in figure.axes)


def test_nothing_measured_twice_is_no_curve(tmp_path):
    write_metrics(tmp_path, (34,))
    assert records.draw_curves(tmp_path, ["learning_rate"]) is None


@pytest.mark.parametrize(("runs", "kind"), [(1, "long"), (12, "long"), (12, "cjk")])
def test_runs_compared(runs, kind, tmp_path, drawn):
    workdirs = [tmp_path / "a folder" / name for name in names(kind, runs)]
    for i, workdir in enumerate(workdirs):
        write_metrics(workdir, range(10 + i, 1000, 40))
        config.save(workdir, config.base_config(), RESOLVED)
    compare.plot(workdirs, tmp_path / "comparison.png")
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == [plotting.plain(name) for name in names(kind, runs)]  # without what all have in common


@pytest.mark.parametrize(
    ("values", "seeds", "parameters"),
    [
        ((0.125, 0.25, 0.5), (0,), (165_000_000, 167_600_000, 170_100_000)),
        ((0.125, 0.25, 0.5), (0, 1, 2), (1_000, 50_000, 9_000_000)),
        (names("long", 12), (0, 1), range(90_100, 90_112)),
        (names("accented", 3), (0, 1), (1, 2, 3)),
    ],
)
def test_plots_of_a_sweep(values, seeds, parameters, tmp_path, drawn):
    points = [{"model.kind_of_network": value} for value in values]
    sweep = Sweep("squeeze_ratio", "", points, seeds=seeds, metric="test_top1")
    rows = [
        {
            "trial": f"{i} {seed}",
            "seed": seed,
            "status": "finished",
            "test_top1": 0.5 + i / 100 + seed / 1000,
            "parameters": size,
            "macs": 100 * size,
            "mebibytes": 1.0,
        }
        for seed in seeds
        for i, size in enumerate(parameters)
    ]
    report._plot(sweep, rows, tmp_path)
    figure = drawn[0]
    said = "one seed" if len(seeds) == 1 else f"over {len(seeds)} seeds"
    assert said in figure.texts[0].get_text()
    assert figure.legends[0].get_title().get_text() == "kind of network"
    expected = [("parameters", "test top-1 accuracy"), ("multiply-accumulates (MACs)", "test top-1 accuracy")]
    assert labels_of_axes(figure) == expected
    assert (tmp_path / "squeeze_ratio.svg").exists()


@pytest.mark.parametrize("layers", [1, 26])
def test_sensitivities(layers, tmp_path, drawn):
    settings = [("pruned", 0.1), ("pruned", 0.5), ("shared", 2.0), ("shared", 8.0)]
    rows = [{"layer": "", "method": "", "value": 0, "agreement": 1.0}]
    for i, (method, value) in itertools.product(range(layers), settings):
        row = {"layer": f"fire{i}/expand3x3/conv", "method": method, "value": value}
        rows.append({**row, "agreement": 1 - i / 100 / value})
    sensitivity.draw(tmp_path / "sensitivity.png", rows)
    assert all(map(all, labels_of_axes(drawn[0])))


def test_compression_curves(tmp_path, drawn):
    rows = [
        {"method": method, "bytes": size, "divergence": 1e9 / size**2}
        for method in ("k-means", "second-order")
        for size in (280_000, 400_000, 700_000)
    ]
    compression_curve.plot(rows, tmp_path / "curve.png")
    assert labels_of_axes(drawn[0]) == [("size of the file (kB)", "divergence from the original (nats)")]


def test_the_picture_of_the_readme(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(make_pictures, "PICTURE", tmp_path / "images" / "accuracy.png")
    make_pictures.main()
    assert all(map(all, labels_of_axes(drawn[0])))


@pytest.mark.parametrize(
    ("shape", "head", "kind"),
    [
        ((60, 60, 3), (7, 7), "short"),
        ((40, 120, 3), (3, 9), "long"),
        ((120, 40, 1), (9, 3), "long"),
        ((32, 32, 32, 1), (4, 4, 4), "accented"),
        ((16, 24, 16, 1), (1, 1, 1), "cjk"),
        ((3, 64, 64, 1), (2, 2, 2), "short"),
        ((50, 50, 3), (1, 1), "long"),
    ],
)
def test_class_activation_maps(shape, head, kind, tmp_path, drawn):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, shape).astype(np.uint8)
    (name,) = names(kind, 1)
    note = draw_map(tmp_path / "map.png", image, rng.normal(size=head), name, 0.931, name)
    (figure,) = drawn
    texts = [text.get_text().replace("\n", " ") for text in drawn_texts(figure)]
    assert f"{plotting.plain(name)}, probability 93.1%" in texts
    assert plotting.plain(note, len(note)) in texts
    assert ("evidence (logit at each place)" in texts) == (np.prod(head) > 1)


@pytest.mark.parametrize("kind", NAMES)
def test_captions_of_a_sheet_fit_above_their_image(kind, tmp_path, monkeypatch):
    written = []
    text = drawing.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        drawing.ImageDraw.ImageDraw,
        "text",
        lambda pen, place, line, **style: written.append((place, line, style)) or text(pen, place, line, **style),
    )
    path = drawing.draw_sheet(tmp_path / "sheet.png", np.full((10, 64, 96, 3), 128), names(kind, 10))
    boxes = [(x, y, x + style["font"].getlength(line), y + drawing.LINE) for (x, y), line, style in written]
    size = Image.open(path).size
    assert len(written) >= 10 and all(x0 >= 0 and x1 <= size[0] and y1 <= size[1] for x0, _, x1, y1 in boxes)
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_captions_tell_names_apart_by_their_ends():
    lines = [drawing._caption(name, drawing.TILE)[0] for name in names("long", 2)]
    assert lines[0] != lines[1] and all(len(of) <= drawing.CAPTION_LINES for of in lines)


def test_what_no_font_has_is_written_as_its_code_and_logged_once(monkeypatch, caplog):
    fonts = tuple(font for font in plotting._fonts() if font[0] == "DejaVu Sans")
    monkeypatch.setattr(plotting, "_fonts", lambda: fonts)
    plotting._log_absent.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [plotting.plain("飞 ä") for _ in range(2)] == ["\\u98de ä"] * 2
    assert caplog.text.count("\\u98de") == 1 and "install a font" in caplog.text
    assert plotting.plain("Zu\u0308rich") == "Zürich"  # as macOS names files
    assert plotting.plain("\udce4") == "\\udce4" and plotting.plain("a\nb") == "a\\nb"
    assert plotting.plain("abcdefghij", 5) == "ab…ij"


def test_the_palette_has_no_yellow_and_is_readable_on_white():
    def luminance(color):
        channels = np.array(to_rgb(color))
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return linear @ (0.2126, 0.7152, 0.0722)

    assert all(1.05 / (luminance(color) + 0.05) > 2 for color in plotting.COLORS)  # yellow on white is 1.3
    styles = [tuple(plotting.line(i).values()) for i in range(28)]
    assert len(set(styles)) == 28 and len({tuple(plotting.points(i).values()) for i in range(28)}) == 28


def test_settings_of_matplotlib_are_as_before(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    with plotting.figure(tmp_path / "a.pdf", width=2, height=2):
        assert dict(matplotlib.rcParams) != before
    assert dict(matplotlib.rcParams) == before and (tmp_path / "a.pdf").read_bytes()[:4] == b"%PDF"
