"""Checks a folder of images before training, and lists everything wrong or unusual at once.

    python -m squeeze_jax.data.check photographs/

Every picture is decoded. Prints how many pictures each class and split has in a run with the default config, which
pictures cannot be read and why, which files are left out, sizes, copies, pictures that are turned by their EXIF data,
classes with few pictures, and class names that differ only in case. The exit status is 1 if a picture cannot be used.
"""

import collections
import concurrent.futures
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from squeeze_jax import commands
from squeeze_jax.config import base_config
from squeeze_jax.console import track
from squeeze_jax.data import decoding
from squeeze_jax.data.folders import ImageFolder
from squeeze_jax.data.listing import shown
from squeeze_jax.errors import DataError
from squeeze_jax.files import user_path

FEW = 10  # pictures of a class
NAMED_SIZES = 5


class Picture(NamedTuple):
    """What decoding a picture shows.

    Attributes:
      wrong: why it cannot be used; "" if it can.
      size: (width, height), after turning it upright.
      is_gray: whether it has no colors.
      is_turned: whether its EXIF data say that its pixels are not upright.
    """

    wrong: str
    size: tuple[int, int] = (0, 0)
    is_gray: bool = False
    is_turned: bool = False


def look_at(path: str) -> Picture:
    """Decodes a picture. An error does not raise, but is part of the result."""
    try:
        stored = decoding.read_file(path)
        image = decoding.open_image(stored, channels=3)
        picture = Picture(
            "",
            decoding.oriented_size(image),
            image.mode in decoding.GRAY_MODES,
            decoding.orientation(image) != 1,
        )
        decoding.to_array(image, 3)
    except (decoding.Undecodable, decoding.Unsuitable) as error:
        return Picture(str(error))
    except OSError as error:
        return Picture(str(error.strerror or error))
    return picture


def look_at_all(paths: Sequence[str]) -> list[Picture]:
    """Decodes pictures, as many at a time as there are CPU cores."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(track(pool.map(look_at, paths), "decoding", total=len(paths)))


def describe(names: Sequence[str], pictures: Sequence[Picture]) -> list[str]:
    """Returns lines about what is wrong or unusual in pictures.

    Args:
      names: the names of the pictures.
      pictures: the result of `look_at` for each of them.
    """
    lines = []
    wrong = [(name, picture.wrong) for name, picture in zip(names, pictures, strict=True) if picture.wrong]
    if wrong:
        skips = "config.dataset.skip_unreadable=True skips damaged ones"
        lines.append(f"{len(wrong)} cannot be used; repair or remove them ({skips}):")
        lines += [f"  {shown(name)}: {reason}" for name, reason in wrong]
    good = [picture for picture in pictures if not picture.wrong]
    sizes = collections.Counter(picture.size for picture in good)
    if len(sizes) > 1:
        most = ", ".join(f"{count} of {width} x {height}" for (width, height), count in sizes.most_common(NAMED_SIZES))
        others = f", and {len(sizes) - NAMED_SIZES} other sizes" if len(sizes) > NAMED_SIZES else ""
        lines.append(f"{len(sizes)} sizes: {most}{others}; training needs config.crop.size, or weights that have it")
    elif sizes:
        (width, height), count = sizes.most_common(1)[0]
        lines.append(f"all {count} are {width} x {height}")
    gray = sum(picture.is_gray for picture in good)
    if 0 < gray < len(good):
        lines.append(f"{gray} gray and {len(good) - gray} in color; set config.dataset.channels=3")
    turned = sum(picture.is_turned for picture in good)
    if turned:
        lines.append(f"{turned} turned upright, as the EXIF data say (config.dataset.exif_orientation)")
    return lines


def describe_classes(counts: Mapping[str, int]) -> list[str]:
    """Returns lines about unusual classes, from the number of pictures of each."""
    lines = []
    few = [f"{shown(name)} ({count})" for name, count in counts.items() if count < FEW]
    if few:
        lines.append(f"classes with fewer than {FEW} pictures: {', '.join(few)}")
    alike = collections.defaultdict(list)
    for name in counts:
        alike[name.casefold().strip()].append(name)
    for same in alike.values():
        if len(same) > 1:
            lines.append(f"classes whose names differ only in case or spaces: {', '.join(map(repr, same))}")
    if len(counts) < 2:
        lines.append("only one class: there is nothing to learn")
    return lines


def table(counts: Mapping[str, Mapping[str, int]]) -> Iterable[str]:
    """Yields the lines of a table: a row for each class, a column for each split.

    Args:
      counts: the number of pictures of each class, by split.
    """
    classes = sorted({name for split in counts.values() for name in split})
    width = max(len(shown(name)) for name in [*classes, "class"])
    yield " ".join([f"{'class':{width}}", *(f"{split:>10}" for split in counts)])
    for name in classes:
        yield " ".join([f"{shown(name):{width}}", *(f"{split.get(name, 0):10}" for split in counts.values())])
    yield " ".join([f"{'all':{width}}", *(f"{sum(split.values()):10}" for split in counts.values())])


def check(root: pathlib.Path) -> bool:
    """Prints a report on a folder of images.

    Returns:
      Whether all of its pictures can be used.

    Raises:
      DataError: the folder does not exist, or no layout fits it.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; expected a folder of images in class/ or split/class/.")
    dataset = base_config().dataset
    folder = ImageFolder(root, {"validation": dataset.validation_share, "test": dataset.test_share})
    counts: dict[str, collections.Counter] = {}
    paths = []
    for split, size in folder.split_sizes.items():
        examples = folder.examples(split)
        labels = [examples.targets(i)["label"] for i in range(size)]
        counts[split] = collections.Counter(folder.class_names[label] for label in labels)
        paths += folder.paths(split)
    print(f"{shown(str(root))}: {len(paths)} pictures in {len(folder.class_names)} classes")
    print("\n".join(table(counts)))
    pictures = look_at_all(paths)
    names = [os.path.relpath(path, root) for path in paths]
    for line in (*describe(names, pictures), *describe_classes(sum(counts.values(), collections.Counter()))):
        print(line)
    for note in folder.notes:
        print(note)
    return not any(picture.wrong for picture in pictures)


def main() -> int:
    """Runs the command and returns its exit status."""
    parser = commands.parser(__doc__)
    parser.add_argument("folder", type=user_path, help="a folder of images")
    return 0 if check(parser.parse_args().folder) else 1


if __name__ == "__main__":
    sys.exit(commands.run(main))
