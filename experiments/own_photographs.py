"""What `configs/finetune_folder.py` reaches with few pictures, and in what time.

    python -m experiments.own_photographs --weights squeezenet_v1.1.caffemodel --pictures cifar10_jpeg.zip \
        --workdir runs/own_photographs --output experiments/results

For each seed it draws a folder as users have them: three classes with odd names, no splits, damaged files among the
pictures. They are pictures of CIFAR-10 (airplane, automobile and frog), from a zip of JPEG files in train/CLASS/ and
test/CLASS/. One command trains on the folder; its time includes start and compilation. The test split has 15 % of the
pictures, so the accuracy on 200 other pictures of each class, from test/, is measured too. `--sides` are values of
`config.crop.size`; 0 is that of the weights.
"""

import argparse
import pathlib
import random
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator

from squeeze_jax import commands
from squeeze_jax.files import make_folder, user_path
from squeeze_jax.tables import write_csv

CLASSES = {"airplane": "My dog (Rex)", "automobile": "Flugzeug_ä", "frog": "車 & co"}
FRESH = 200  # other pictures of each class


def draw_folder(archive: zipfile.ZipFile, root: pathlib.Path, count: int, seed: int) -> None:
    """Writes a folder of pictures in three classes, and three damaged files.

    Args:
      archive: the pictures in train/CLASS/.
      root: the folder.
      count: the number of pictures of all classes.
      seed: of the draw.
    """
    for label, (name, folder) in enumerate(CLASSES.items()):
        for number, contents in enumerate(drawn(archive, f"train/{name}/", count // len(CLASSES), seed + label)):
            path = make_folder(root / folder) / f"foto ü {number:04d}{('.jpg', '.JPG', '.jpeg')[number % 3]}"
            path.write_bytes(contents)
    first, second, _ = (root / folder for folder in CLASSES.values())
    (first / "notes.jpg").write_text("these are notes")
    (first / "cut.jpg").write_bytes((first / "foto ü 0000.jpg").read_bytes()[:400])
    (second / "empty.png").touch()


def drawn(archive: zipfile.ZipFile, below: str, count: int, seed: int) -> Iterator[bytes]:
    """Yields the contents of randomly chosen pictures below a folder of the archive."""
    names = sorted(name for name in archive.namelist() if below in name and name.endswith(".jpg"))
    return map(archive.read, random.Random(seed).sample(names, count))


def main() -> int:
    """Runs the command and returns its exit status."""
    parser = commands.parser(__doc__)
    parser.add_argument("--weights", required=True, help="a name, a weight file or a workdir")
    parser.add_argument("--pictures", required=True, type=user_path, metavar="ZIP", help="CIFAR-10 as JPEG files")
    parser.add_argument("--counts", type=int, nargs="+", default=(99, 150, 3000), help="pictures in all")
    parser.add_argument("--sides", type=int, nargs="+", default=(0, 160), help="values of config.crop.size")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--workdir", required=True, type=user_path)
    parser.add_argument("--output", required=True, type=user_path, help="folder of own_photographs.csv")
    args = parser.parse_args()
    make_folder(args.output)
    rows = []
    with zipfile.ZipFile(args.pictures) as archive:
        fresh = args.workdir / "fresh"
        for name, folder in CLASSES.items():
            for number, contents in enumerate(drawn(archive, f"test/{name}/", FRESH, seed=0)):
                (make_folder(fresh / "test" / folder) / f"{number}.jpg").write_bytes(contents)
        for count in args.counts:
            for seed in args.seeds:
                folder = args.workdir / f"pictures_{count}_{seed}"
                draw_folder(archive, folder, count, 10 * seed)
                for side in args.sides:
                    rows.append({"pictures": count, "seed": seed, **run(args, folder, fresh, side, seed)})
                write_csv(args.output / "own_photographs.csv", rows)
    return 0


def run(args: argparse.Namespace, folder: pathlib.Path, fresh: pathlib.Path, side: int, seed: int) -> dict[str, float]:
    """Trains on a folder, and returns what was measured."""
    from squeeze_jax import load

    workdir = args.workdir / f"{folder.name}_side_{side}"
    config = f"--config=configs/finetune_folder.py:{args.weights}"
    command = [sys.executable, "-m", "squeeze_jax.main", config, f"--config.dataset.name={folder}"]
    command += [f"--config.seed={seed}", f"--workdir={workdir}"]
    begun = time.perf_counter()
    subprocess.run(command + ([f"--config.crop.size={side}"] if side else []), check=True)
    seconds = time.perf_counter() - begun
    network = load(workdir)
    own, other = network.evaluate("test"), network.evaluate("test", dataset=str(fresh))
    return {
        "side": network.image_shape[0],
        "seconds": round(seconds),
        "test_pictures": len(own.records["label"]),
        "test_top1": own.values["top1"],
        "fresh_top1": other.values["top1"],
    }


if __name__ == "__main__":
    sys.exit(commands.run(main))
