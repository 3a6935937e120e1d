"""Measures how sensitive a network is to the pruning and to the weight sharing of each layer alone.

    python -m squeeze_jax.compression.sensitivity --weights runs/digits --output runs/digits/sensitivity
    python -m squeeze_jax.compression.sensitivity --weights compressed_SqueezeNet.net --evaluation photographs \\
        --output sensitivity

Each layer is pruned by magnitude to several densities, and shared by k-means at several numbers of bits, while the
others stay as they are (Han et al. 2015, arXiv 1506.02626, Figure 6). The images are those of a split of the network's
own dataset, of --dataset, or of a folder, which needs no labels. The output is sensitivity.csv, and sensitivity.png
with one line per layer.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from squeeze_jax import commands, console, plotting, tables
from squeeze_jax.compression import BITS
from squeeze_jax.errors import InputError
from squeeze_jax.files import make_folder, user_path

if TYPE_CHECKING:
    from squeeze_jax.network import Network

DENSITIES = (0.1, 0.2, 0.3, 0.5, 0.7)
WIDTHS = (2, 3, 4, 5, 6)
NAME = "sensitivity"


@dataclasses.dataclass(frozen=True)
class Change:
    """A change of one layer.

    Attributes:
      layer: the name of the layer, such as "fire2/squeeze1x1"; empty for the original network.
      method: "pruned" or "shared".
      value: the density, or the number of bits.
    """

    layer: str = ""
    method: str = ""
    value: float = 0

    def apply(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the variables with the layer changed."""
        import flax.traverse_util

        from squeeze_jax.compression.sharing import share

        if self.method == "shared":
            return share(variables, {self.layer: int(self.value)})
        leaves = flax.traverse_util.flatten_dict(variables, sep="/")
        name = f"params/{self.layer}/kernel"
        if self.method == "pruned":
            leaves[name] = pruned(np.asarray(leaves[name]), self.value)
        return flax.traverse_util.unflatten_dict(leaves, sep="/")


def pruned(kernel: np.ndarray, density: float) -> np.ndarray:
    """Returns a kernel of which only the round(density * size) weights of largest magnitude are left."""
    order = np.argsort(np.abs(kernel).ravel(), kind="stable")
    flat = kernel.ravel().copy()
    flat[order[: kernel.size - round(density * kernel.size)]] = 0
    return flat.reshape(kernel.shape)


def measure(
    network: "Network",
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    densities: Sequence[float] = DENSITIES,
    widths: Sequence[int] = WIDTHS,
    scratch: pathlib.Path | None = None,
) -> list[dict[str, Any]]:
    """Measures the sensitivity of all layers.

    Args:
      network: the network.
      batches: batches of at most BATCH raw images, uint8 (batch, *image_shape), and labels, int (batch,); -1 for
        unlabeled images. Images and predictions are kept on disk meanwhile.
      densities: the densities of pruning, 0 to 1.
      widths: the numbers of bits of weight sharing, 2 to 8.
      scratch: the folder whose disk is used, see `DiskArray`.

    Returns:
      A row for the original network, then one per layer, method and value: "layer", "method", "value", "agreement" with
      the original network, "KL" divergence from it in nats and, if all images are labeled, "top1".
    """
    from squeeze_jax.compression.on_disk import DiskArray
    from squeeze_jax.compression.report import BATCH, Answers
    from squeeze_jax.compression.sharing import layer_bits
    from squeeze_jax.models.summary import summarize
    from squeeze_jax.runtime import devices

    order = summarize(network.model, network.task.preprocessing.input_shape(network.image_shape)).layers
    known = layer_bits(network.variables, BITS[-1])
    changes = [Change()]
    for layer in (layer.name for layer in order if layer.name in known):
        changes += [Change(layer, "pruned", density) for density in densities]
        changes += [Change(layer, "shared", bits) for bits in widths]
    task = network.task
    predict = devices.compile_often(
        lambda variables, images: task.predict(network.model.apply(variables, task.preprocessing.evaluate(images)))
    )
    labels: list[np.ndarray] = []

    def filled() -> Iterator[np.ndarray]:  # the last batch is padded, so that it does not need another compilation
        for images, label in batches:
            labels.append(label)
            yield np.resize(images, (BATCH, *images.shape[1:]))

    data = DiskArray.of(filled(), scratch)
    parts = [slice(first, first + BATCH) for first in range(0, len(data), BATCH)]
    originals = DiskArray.of((np.asarray(predict(network.variables, data[part])) for part in parts), scratch)
    rows = []
    for change in console.track(changes, "measuring layers"):
        variables, answers = change.apply(network.variables), Answers()
        for part, label in zip(parts, labels, strict=True):
            probability = np.asarray(predict(variables, data[part]))[: len(label)]
            answers.add(probability, originals[part][: len(label)], label)
        row = dataclasses.asdict(change)
        row |= {"agreement": answers.agree / answers.images, "KL": answers.divergence / answers.images}
        if answers.has_labels:
            row["top1"] = answers.top1 / answers.images
        rows.append(row)
    return rows


def draw(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> pathlib.Path:
    """Draws the rows of `measure`, with one line per layer, and returns the path of the PNG."""
    metric = "top1" if "top1" in rows[0] else "agreement"
    methods = {"pruned": "density", "shared": "bits"}
    titles = {"density": "share of weights that are kept", "bits": "bits per weight"}
    labels = {"top1": "top-1 accuracy", "agreement": "share of images with the same best class"}
    layers = list(dict.fromkeys(row["layer"] for row in rows[1:]))
    with plotting.figure(path, 1, len(methods), width=10, height=4) as (_, axes):
        for axis, (method, quantity) in zip(axes.flat, methods.items(), strict=True):
            axis.axhline(rows[0][metric], color="0.6", linestyle=":", label="unchanged")
            for index, layer in enumerate(layers):
                line = [row for row in rows if (row["layer"], row["method"]) == (layer, method)]
                x, y = [r["value"] for r in line], [r[metric] for r in line]
                axis.plot(x, y, label=plotting.plain(layer), **plotting.points(index))
            axis.set(xlabel=titles[quantity], ylabel=labels[metric], title=f"one layer {method}")
    return path


def examples_of(network: "Network", dataset: str | None, split: str, count: int) -> Iterator:
    """Yields the first examples of a split in batches, as `measure` takes them."""
    from squeeze_jax.compression.report import BATCH

    examples = network.split(split, dataset)
    count = min(count, len(examples))
    for first in range(0, count, BATCH):
        batch = examples.batch(range(first, min(first + BATCH, count)))
        yield batch["image"], batch["label"]


def numbers(text: str) -> list[float]:
    """Parses comma-separated numbers, for argparse."""
    return [float(part) for part in text.split(",")]


def main() -> int:
    """Runs the command and returns its exit status."""
    parser = commands.parser(__doc__)
    parser.add_argument("--weights", required=True, type=user_path, help="weight file or workdir")
    parser.add_argument("--output", required=True, type=user_path, help="folder for the table and the plot")
    parser.add_argument("--evaluation", type=user_path, metavar="FOLDER", help="images to evaluate on")
    parser.add_argument("--dataset", help="dataset to evaluate on; default: the network's own")
    parser.add_argument("--split", default="validation", help="split of the dataset")
    parser.add_argument("--examples", type=int, default=1000, help="largest number of examples of the split")
    parser.add_argument("--densities", type=numbers, default=DENSITIES, help="comma-separated, above 0 and up to 1")
    parser.add_argument("--bits", type=numbers, default=WIDTHS, help="comma-separated, 2 to 8")
    args = parser.parse_args()
    if not all(0 < density <= 1 for density in args.densities):
        raise InputError(f"--densities {args.densities}; expected numbers above 0 and up to 1, such as 0.1,0.3,0.5.")
    if not all(bits in BITS for bits in args.bits):
        raise InputError(f"--bits {args.bits}; expected whole numbers from {BITS[0]} to {BITS[-1]}, such as 2,4,6.")
    with console.doing(f"loading {args.weights}"):
        from squeeze_jax.compression.report import BATCH
        from squeeze_jax.network import load
        from squeeze_jax.predict import find_images, read_images
        from squeeze_jax.runtime import compilation_cache

        compilation_cache.enable()
        paths = find_images([str(args.evaluation)]) if args.evaluation else []
        network = load(args.weights)
    batches = (
        read_images(network, paths, BATCH) if paths else examples_of(network, args.dataset, args.split, args.examples)
    )
    make_folder(args.output)
    rows = measure(network, batches, args.densities, args.bits, args.output)
    print(tables.write_csv(args.output / f"{NAME}.csv", rows))
    print(draw(args.output / f"{NAME}.png", rows))
    return 0


if __name__ == "__main__":
    sys.exit(commands.run(main))
