"""Measures whether the input pipeline is as fast as the training step, for every config.

    python benchmarks/feeding.py --photographs FOLDER --csv benchmarks/results/feeding.csv \\
        --dataset cifar10=FOLDER --dataset cifar100=FOLDER

For each config, this alternates between the step alone on one batch and the pipeline alone with the config's threads.
The table has images per second on all cores, medians over the rounds. Batches have at most 64 examples, and configs
whose dataset is not on disk are skipped. The ImageNet configs read photographs instead, with one class per file; FOLDER
contains the JPEGs. `--dataset` replaces a dataset by another one.
"""

from squeeze_jax.files import user_path
from squeeze_jax.runtime.memory import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()  # as squeeze_jax.main does

import importlib
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import report

sys.path.append(str(pathlib.Path(__file__).parents[1]))  # the parent folder of configs/

from squeeze_jax import show_data
from squeeze_jax.errors import DataError
from squeeze_jax.experiment import Experiment, build
from squeeze_jax.runtime.devices import DeviceMesh

CONFIGS = (
    "adrenal_mnist3d",
    "cifar10",
    "cifar10:study",
    "cifar100",
    "digits",
    "finetune_pneumonia:early",
    "imagenet_bypass:complex",
    "imagenet_torchvision",
    "imagenet_v1_0",
    "imagenet_v1_1",
    "nodule_mnist3d",
    "pneumonia_mnist:early",
)
IMAGENET = "imagenet2012"
LARGEST_BATCH = 64
SECONDS = 1.0  # of each measurement


def config_of(name: str, others: dict[str, str]) -> Any:
    """Returns the config of a file, named as "name" or "name:recipe", with its dataset replaced if `others` says so."""
    file, _, recipe = name.partition(":")
    config = importlib.import_module(f"configs.{file}").get_config(*filter(None, [recipe]))
    config.dataset.name = others.get(config.dataset.name, config.dataset.name)
    config.dataset.held_out = 0  # there may be only a few photographs
    config.dataset.validation_split = config.dataset.test_split = ""
    config.train.batch_size = min(config.train.batch_size, LARGEST_BATCH)
    return config


def step_of(experiment: Experiment) -> Callable[[], Any]:
    """Returns a function that makes one training step on a batch on the device."""
    mesh = DeviceMesh.create()
    state = [mesh.replicate(experiment.initial_state(0))]
    step = mesh.compile_train_step(experiment.train_step())
    split = experiment.splits["train"]
    batch = mesh.shard(split.batch(np.arange(experiment.config.train.batch_size) % len(split)))

    def make_step() -> None:
        state[0] = step(state[0], batch, 0)
        jax.block_until_ready(state[0])

    return make_step


def images_per_second(make_step: Callable[[], Any], batch_size: int) -> float:
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        make_step()
        count += 1
    return count * batch_size / (time.perf_counter() - start)


def measure(name: str, config: Any, rounds: int) -> dict[str, Any]:
    experiment = build(config)
    make_step = step_of(experiment)
    make_step()  # compiles
    found: dict[str, list[float]] = {"pipeline": [], "step": []}
    for _ in range(rounds):
        found["pipeline"].append(show_data.images_per_second(experiment.splits["train"], config, SECONDS))
        found["step"].append(images_per_second(make_step, config.train.batch_size))
    return (
        {"config": name, "image": "x".join(map(str, experiment.dataset.image_shape)), "threads": config.run.num_threads}
        | report.spread(found["pipeline"], "pipeline_images_per_second", 0)
        | {"step_images_per_second": report.spread(found["step"], "step", 1)["step"]}
        | {"pipeline_over_step": report.ratio(found["pipeline"], found["step"])}
    )


def main() -> int:
    parser = report.parser(__doc__)
    parser.add_argument("--config", action="append", choices=CONFIGS, help="may be repeated; default: all")
    parser.add_argument("--photographs", type=user_path, help="a folder of JPEGs for the ImageNet configs")
    parser.add_argument(
        "--dataset", action="append", default=[], metavar="NAME=OTHER", help="replace a dataset; may be repeated"
    )
    args = parser.parse_args()
    others = dict(pair.split("=", 1) for pair in args.dataset)
    with tempfile.TemporaryDirectory() as folder:
        if args.photographs:
            for path in args.photographs.glob("*.JPEG"):
                link = pathlib.Path(folder, "train", path.stem, path.name)
                link.parent.mkdir(parents=True)
                link.symlink_to(path.resolve())
            others[IMAGENET] = folder
        for name in args.config or CONFIGS:
            try:
                row = measure(name, config_of(name, others), args.rounds)
            except DataError as error:
                print(f"{name} is skipped: {error}", file=sys.stderr)
            else:
                report.write(args.csv, [row], args.rounds, key="config")
    return 0


if __name__ == "__main__":
    sys.exit(main())
