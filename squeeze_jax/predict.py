"""Classifies photographs, or candidates in CT scans, with published weights or a network that you trained.

    python -m squeeze_jax.predict --weights compressed_SqueezeNet.net photographs/ tench.jpg 'more/*.png'
    python -m squeeze_jax.predict --weights runs/cifar10 --format csv photographs/
    python -m squeeze_jax.predict --weights runs/cifar10 --cam maps image.png
    python -m squeeze_jax.predict --weights runs/nodules --report nodule7.html nodule7/*.png
    python -m squeeze_jax.predict --weights runs/luna scan.mhd --candidates list.csv --format csv
    python -m squeeze_jax.predict --weights runs/luna scans/ --grid 10 --report scans.html

--weights is a weight file (see squeeze_jax.pretrained), the workdir of a run, the name of a network that comes with
this package, such as digits, or that is downloaded, such as torchvision/resnet18, or a file that squeeze_jax.export
wrote, which is run by its own runtime; it includes the preprocessing. A volume is a uint8 array in a .npy file. With
--report, all images are slices of one case.

With --candidates or --grid, the arguments are CT scans (.mhd, .mha, NIfTI, DICOM) or folders of them. Patches are cut
like those that the network was trained on. --report and the table then show the ten candidates with the highest
probability of the positive class.

What is missing or cannot be read is reported, and has its reason in the column "error" of CSV and JSON; the exit status
is then 1.
"""

from squeeze_jax.runtime.memory import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()  # before the imports below

import argparse
import csv
import dataclasses
import glob
import json
import math
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from squeeze_jax import commands
from squeeze_jax.console import doing, track
from squeeze_jax.data.listing import EXTENSIONS, is_left_behind
from squeeze_jax.data.scans import Assume, add_cut_arguments, cut_of
from squeeze_jax.errors import InputError
from squeeze_jax.files import make_folder, user_path

if TYPE_CHECKING:
    from squeeze_jax.export.exported import Exported
    from squeeze_jax.network import Network
    from squeeze_jax.tasks import Task

TOP = 5  # classes of an image that are shown
MANY = 20  # classes that have a column each in CSV
BEST = 10  # candidates that are shown


def find_images(arguments: Sequence[str | os.PathLike]) -> list[pathlib.Path]:
    """Expands files, folders (all images below them) and glob patterns to image paths, in the order given.

    Hidden files and folders below a folder, such as the "._" files of macOS, are left out.

    Raises:
      InputError: an argument gives no image, or a folder cannot be read.
    """
    from squeeze_jax.data.volumes import is_volume
    from squeeze_jax.network import SCANS

    found = []
    for argument in arguments:
        path = user_path(argument)
        if path.is_dir():
            images = _images_below(path)
        elif os.path.lexists(path):
            images = [path]
        else:
            images = sorted(map(pathlib.Path, glob.glob(str(path), recursive=True)))
        if not images:
            hint = f" {SCANS}" if path.is_dir() and any(map(is_volume, path.rglob("*"))) else ""
            raise InputError(
                f"{argument} is not a file, a folder with images or a pattern that matches any image.{hint}"
            )
        found += images
    return found


def _images_below(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns the images below a folder, also in linked folders, sorted; each folder is entered once.

    Unlike in a dataset, links to nothing and pipes with the name of an image are among them, to be reported one by one.

    Raises:
      InputError: a folder cannot be read.
    """
    from squeeze_jax.network import ARRAY

    def fail(error: OSError) -> None:
        raise InputError(f"the folder {error.filename} cannot be read ({error.strerror}); make it readable.") from error

    images, hidden, entered = [], [], set()
    for folder, subfolders, files in os.walk(root, onerror=fail, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:  # a link to a folder above
            subfolders.clear()
            continue
        entered.add(real)
        hidden += [pathlib.Path(folder, name) for name in (*subfolders, *files) if is_left_behind(name)]
        subfolders[:] = [name for name in subfolders if not is_left_behind(name)]
        names = [name for name in files if name.lower().endswith((*EXTENSIONS, ARRAY)) and not is_left_behind(name)]
        images += [pathlib.Path(folder, name) for name in names]
    if hidden:
        print(f"left out {len(hidden)} hidden file(s) and folder(s), such as {min(hidden)}", file=sys.stderr)
    return sorted(images)


def map_names(paths: Sequence[pathlib.Path]) -> dict[pathlib.Path, str]:
    """Returns a name for the class activation map of each image, below the folder of the maps.

    The name is that of the image; where two images have one name, all keep their folders and suffixes.
    """
    files = {path: pathlib.Path(os.path.abspath(path)) for path in paths}
    if len({file.stem for file in files.values()}) == len(set(files.values())):
        return {path: f"{file.stem}.png" for path, file in files.items()}
    root = os.path.commonpath([file.parent for file in files.values()])
    return {path: f"{file.relative_to(root)}.png" for path, file in files.items()}


def read_images(
    network: "Network", paths: Sequence[pathlib.Path], batch_size: int, description: str = "reading images"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Reads images in batches, with labels derived from the names of their folders. What cannot be read is named.

    Args:
      network: the network, which determines the image shape and the classes.
      paths: the image files.
      batch_size: the number of images in all batches but the last.
      description: what is done with them, for a bar in a terminal.

    Yields:
      Images, uint8 (batch, *image_shape), and labels, int (batch,); -1 if the folder is not named after a class.

    Raises:
      InputError: no image can be read.
    """
    classes = {name: i for i, name in enumerate(network.class_names)}
    images: list[np.ndarray] = []
    labels: list[int] = []
    skipped = 0
    for i, path in enumerate(track(paths, description), start=1):
        try:
            images.append(network.read_image(path))
            labels.append(classes.get(path.parent.name, -1))
        except InputError as error:
            print(f"skipped: {error}", file=sys.stderr)
            skipped += 1
        if images and (len(images) == batch_size or i == len(paths)):
            yield np.stack(images), np.array(labels)
            images, labels = [], []
    if skipped and skipped == len(paths):
        raise InputError(f"none of the {len(paths)} images can be read.")


class Example(NamedTuple):
    """What is classified.

    Attributes:
      columns: what says in a table which one it is.
      title: the same as a text.
      map: the path of its class activation map below the folder of the maps.
      image: uint8 (*spatial, channels); None if there is an error.
      error: why there is no image.
    """

    columns: dict[str, Any]
    title: str
    map: str
    image: np.ndarray | None
    error: str = ""


def read_examples(network: "Network | Exported", arguments: Sequence[str]) -> tuple[int, Iterator[Example]]:
    """Returns the number of images that the arguments of the command name, and the images; see `find_images`."""
    found: list[tuple[pathlib.Path | str, str]] = []
    for argument in arguments:
        try:
            found += [(path, "") for path in find_images([argument])]
        except InputError as error:
            found.append((argument, str(error)))
    maps = map_names([path for path, error in found if not error])

    def read(path: pathlib.Path | str, error: str) -> Example:
        image = None
        if not error:
            try:
                image = network.read_image(path)
            except InputError as reason:
                error = str(reason)
        return Example({"file": str(path)}, str(path), maps.get(path, ""), image, error)

    return len(found), (read(*one) for one in found)


def cut_examples(network: "Network | Exported", args: argparse.Namespace) -> tuple[int | None, Iterator[Example]]:
    """Returns the number of candidates (None of a grid) in the scans that the arguments name, and their patches."""
    from squeeze_jax import patches

    cut = patches.choose_cut(network, cut_of(args))
    scans, remarks = patches.find_volumes(args.images)
    candidates, count = None, None
    if args.candidates:
        candidates, remark = patches.listed_candidates(args.candidates, scans)
        remarks += [remark] if remark else []
        count = sum(map(len, candidates.values()))
    for line in remarks:
        print(line, file=sys.stderr)
    assume = Assume(args.assume_hounsfield, args.assume_origin)
    cutting = enumerate(patches.cut_patches(network, cut, scans, candidates, args.grid, assume))
    named = (
        Example(patch.columns, patch.title, f"{patch.scan}/{number}.png", patch.image, patch.error)
        for number, patch in cutting
    )
    return count, named


def predictions(
    network: "Network | Exported", examples: Iterable[Example], batch_size: int
) -> Iterator[tuple[Example, Any]]:
    """Yields each example and its prediction, None without an image, in order.

    Args:
      network: the network.
      examples: the examples.
      batch_size: images per call of the network.
    """
    import jax

    waiting: list[Example] = []
    count = 0  # of images among them
    sizes = 0  # of the calls before

    def predicted() -> Iterator[tuple[Example, Any]]:
        images = [example.image for example in waiting if example.image is not None]
        rows: Iterator[Any] = iter(())
        if images:
            # The last batch is padded, so that it does not need another compilation.
            filled = np.resize(np.stack(images), (max(sizes, len(images)), *images[0].shape))
            outputs = network.predict(filled)
            rows = (jax.tree.map(lambda leaf, i=i: leaf[i], outputs) for i in range(len(images)))
        for example in waiting:
            yield example, (None if example.image is None else next(rows))

    for example in examples:
        waiting.append(example)
        count += example.image is not None
        if count == batch_size:
            yield from predicted()
            waiting, count, sizes = [], 0, batch_size
    yield from predicted()


def read_labels(path: pathlib.Path, class_names: tuple[str, ...]) -> tuple[str, ...]:
    """Reads one label per line, in the order of the classes; a leading WordNet id is dropped.

    Raises:
      InputError: the file cannot be read, or its number of lines differs from the number of classes.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read: it is not text in UTF-8.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    if len(lines) != len(class_names):
        raise InputError(f"{path} has {len(lines)} lines; expected {len(class_names)}, one label per class.")
    ids = [line.split(maxsplit=1) for line in lines]
    return tuple(
        rest[1] if len(rest) == 2 and rest[0] == name else line
        for rest, name, line in zip(ids, class_names, lines, strict=True)
    )


def _parser() -> argparse.ArgumentParser:
    parser = commands.parser(__doc__)
    parser.add_argument(
        "images", nargs="+", help="files, folders or glob patterns; CT scans with --candidates or --grid"
    )
    parser.add_argument(
        "--weights", required=True, type=user_path, help="a weight file, a workdir, a name or an exported file"
    )
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table")
    parser.add_argument(
        "--top",
        type=int,
        metavar="K",
        help=f"show the K most probable classes; default: {TOP}, in CSV all up to {MANY}",
    )
    parser.add_argument("--labels", type=user_path, help="file with one label per line, in the order of the classes")
    parser.add_argument(
        "--cam",
        type=user_path,
        metavar="DIR",
        help="folder for class activation maps; where two images have one name, all keep their folders and suffixes",
    )
    parser.add_argument("--cam_class", metavar="NAME", help="class of the maps; default: the most probable one")
    parser.add_argument(
        "--report", type=user_path, metavar="FILE", help="HTML page about the images as one case, or about a scan"
    )
    parser.add_argument("--batch_size", type=int, default=32)
    scans = parser.add_argument_group("CT scans")
    places = scans.add_mutually_exclusive_group()
    places.add_argument(
        "--candidates",
        type=user_path,
        metavar="CSV",
        help="seriesuid, coordX, coordY, coordZ in mm; see docs/medical.md",
    )
    places.add_argument("--grid", type=float, metavar="MM", help="candidates on a regular grid")
    add_cut_arguments(scans)
    return parser


def main() -> int:
    """Runs the command and returns its exit status."""
    args = _parser().parse_args()
    _check(args)
    with doing(f"loading {args.weights}"):
        from squeeze_jax.export.exported import Exported
        from squeeze_jax.export.formats import is_exported, open_exported
        from squeeze_jax.network import load
        from squeeze_jax.pretrained.imagenet import readable
        from squeeze_jax.runtime import compilation_cache

        compilation_cache.enable()
        network = open_exported(args.weights) if is_exported(args.weights) else load(args.weights)
    if (args.cam or args.report) and isinstance(network, Exported):
        raise InputError(
            "--cam and --report need feature maps, which an exported file does not have; use what it was exported from."
        )
    ids = network.class_names
    network = renamed(network, read_labels(args.labels, ids) if args.labels else readable(ids))
    of_scans = args.candidates is not None or args.grid is not None
    count, examples = cut_examples(network, args) if of_scans else read_examples(network, args.images)
    results: list[Result] = []
    case: list[tuple[Example, Any]] = []
    notes: dict[str, str] = {}  # what is said of the maps that are drawn
    try:
        for example, predicted in track(predictions(network, examples, args.batch_size), "classifying", count):
            if predicted is None:
                print(f"skipped: {example.error}", file=sys.stderr)
                results.append(Result(example, None, 0.0))
                continue
            score = network.task.score(predicted) if of_scans else 0.0
            results.append(Result(example._replace(image=None), predicted, score))
            if args.cam:
                picture = args.cam / example.map
                make_folder(picture.parent)
                notes[example.map] = network.explain(picture, example.image, predicted, args.cam_class)
            if args.report:
                case.append((example, predicted))
                if of_scans:
                    case = sorted(case, key=lambda pair: -network.task.score(pair[1]))[:BEST]
        skipped = sum(result.predicted is None for result in results)
        if skipped == len(results):
            raise InputError(f"there is no {'candidate' if of_scans else 'image'} to classify.")
        if args.report:
            _report(args, network, case, notes, len(results) - skipped if of_scans else None)
    finally:
        _print(results, network.task, ids, args, of_scans)
    if args.cam:
        print(f"maps: {args.cam}", file=sys.stderr)
    if args.report:
        print(f"report: {args.report}", file=sys.stderr)
    if skipped:
        print(f"{skipped:,} of {len(results):,} could not be classified, see above.", file=sys.stderr)
    return 1 if skipped else 0


def renamed(network: "Network | Exported", names: tuple[str, ...]) -> "Network | Exported":
    """Returns a network with other names of its classes."""
    config, positive = network.config, network.config.task.get("positive")
    if positive in network.class_names:
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.task.positive = names[network.class_names.index(positive)]
    return dataclasses.replace(network, class_names=names, config=config)


def _check(args: argparse.Namespace) -> None:
    """Raises InputError or FileError before anything is computed for what cannot be written or used."""
    if args.batch_size < 1:
        raise InputError(f"--batch_size {args.batch_size}; expected at least 1.")
    if args.top is not None and args.top < 1:
        raise InputError(f"--top {args.top}; expected at least 1.")
    if args.grid is not None and not 0 < args.grid < math.inf:
        raise InputError(f"--grid {args.grid:g}; expected a positive number of mm.")
    about_scans = ("cut", "size", "spacing", "window", "assume_hounsfield", "assume_origin")
    if args.candidates is None and args.grid is None:
        for name in about_scans:
            if getattr(args, name) not in (None, False):
                raise InputError(f"--{name} is for CT scans; add --candidates LIST.csv or --grid MM.")
    if args.cam:
        make_folder(args.cam)
    if args.report:
        make_folder(args.report.parent)
        if args.report.is_dir():
            raise InputError(
                f"--report {args.report} is a folder; expected a file, such as {args.report / 'case.html'}."
            )


def _report(
    args: argparse.Namespace,
    network: "Network",
    case: list[tuple[Example, Any]],
    notes: dict[str, str],
    of: int | None,
) -> None:
    """Writes the page about a case, or about the best of a number of candidates."""

    def drawn(example: Example, predicted: Any) -> tuple[bytes, str]:
        if example.map in notes:
            return (args.cam / example.map).read_bytes(), notes[example.map]
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "map.png"
            note = network.explain(path, example.image, predicted, args.cam_class)
            return path.read_bytes(), note

    pages = [(example.title, *drawn(example, predicted), predicted) for example, predicted in case]
    title = None if of is None else _best_of(network.task, len(case), of)
    network.task.report_case(args.report, *zip(*pages, strict=True), title=title)


def _best_of(task: "Task", shown: int, of: int) -> str:
    name = "".join(f" of {name}" for name in task.naming.values())
    if shown == of:
        return f"{of} candidate{'s' * (of > 1)}, the highest probability{name} first"
    return f"The {shown} of {of:,} candidates with the highest probability{name}"


class Result(NamedTuple):
    """An example without its image, its prediction (None with an error), and what candidates are ranked by."""

    example: Example
    predicted: Any
    score: float


def _print(results: list[Result], task: "Task", ids: Sequence[str], args: argparse.Namespace, of_scans: bool) -> None:
    def described(result: Result, top: int) -> dict[str, list[dict[str, Any]]]:
        if result.predicted is None:
            return {}
        found = task.describe(result.predicted, top)
        if tuple(ids) == task.class_names:
            return found
        return {name: [row | {"id": ids[row["class"]]} for row in rows] for name, rows in found.items()}

    top = args.top or TOP
    if args.format == "json":
        errors = [{"error": result.example.error} if result.predicted is None else {} for result in results]
        rows = [
            result.example.columns | described(result, top) | error
            for result, error in zip(results, errors, strict=True)
        ]
        print(json.dumps(rows, indent=2))
    elif args.format == "csv":
        rows = []
        for result in results:
            lists = described(result, args.top or MANY + 1).values()
            predicted = {key: value for ranking in lists for key, value in cells(ranking, args.top).items()}
            rows.append(result.example.columns | predicted | {"error": result.example.error})
        columns = dict.fromkeys(key for row in rows for key in row if key != "error")
        writer = csv.DictWriter(sys.stdout, [*columns, "error"])
        writer.writeheader()
        writer.writerows(rows)
    else:
        shown = [result for result in results if result.predicted is not None]
        if of_scans and len(shown) > BEST:
            print(f"{_best_of(task, BEST, len(shown))}; --format csv has all:", file=sys.stderr)
            shown = sorted(shown, key=lambda result: -result.score)[:BEST]
        for result in shown:
            print(result.example.title)
            for rows in task.describe(result.predicted, top).values():
                for row in rows:
                    print(f"  {task.line(row)}")


def cells(rows: Sequence[dict[str, Any]], top: int | None) -> dict[str, Any]:
    """Returns the cells of a table for one example.

    Up to MANY classes have a column each: label, probability, and probability_NAME in the order of the classes. Of
    more classes, or with `top`, the most probable ones have columns: label, probability, label_2, probability_2, ...

    Args:
      rows: of `Task.describe`; more than MANY if the network has more classes.
      top: the number of classes.
    """
    labels = [row.get("label") for row in rows]
    if top is None and len(set(labels)) == len(rows) <= MANY and None not in labels:
        by_class = sorted(rows, key=lambda row: row["class"])
        return rows[0] | {f"probability_{row['label']}": row["probability"] for row in by_class}
    ranked = enumerate(rows[: top or TOP], start=1)
    return {key if i == 1 else f"{key}_{i}": value for i, row in ranked for key, value in row.items()}


if __name__ == "__main__":
    sys.exit(commands.run(main))
