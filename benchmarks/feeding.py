"""Whether the input pipeline delivers what a training step consumes, in every config.

    python benchmarks/feeding.py --photographs FOLDER --csv benchmarks/results/feeding.csv \\
        --dataset cifar10=FOLDER --dataset cifar100=FOLDER

For each config the step alone on one batch, and the pipeline alone with the config's threads, in turns; images a second
on all cores, medians over the rounds. Batches are no larger than 64, and a dataset that is not on disk is left out. The
ImageNet configs read photographs instead, each a class of its own: FOLDER holds JPEGs. `--dataset` puts another
dataset in the place of one.
"""

from squeeze_jax.memory import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()  # as squeeze_jax.main does

import pathlib
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import report

from squeeze_jax import run
from squeeze_jax.data import show
from squeeze_jax.data.sources import DataError, Split
from squeeze_jax.optimizers import make_optimizer
from squeeze_jax.parallel import Parallel
from squeeze_jax.state import create_state
from squeeze_jax.steps import make_train_step

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
SECONDS = 1.0  # of a turn


def config_of(name: str, others: dict[str, str]) -> Any:
    """The config of a file, by "name" or "name:recipe", with its dataset replaced where another one is given."""
    file, _, recipe = name.partition(":")
    path = pathlib.Path(__file__).parents[1] / "configs" / f"{file}.py"
    config = runpy.run_path(str(path))["get_config"](*filter(None, [recipe]))
    config.dataset.name = others.get(config.dataset.name, config.dataset.name)
    config.dataset.held_out = 0  # photographs are few
    config.train.batch_size = min(config.train.batch_size, LARGEST_BATCH)
    return config


def step_of(config: Any, split: Split, image_shape: tuple[int, ...]) -> Callable[[], Any]:
    """One training step of a batch that the device holds."""
    model = run.model_of(config, split.num_classes)
    preprocessing = run.preprocessing_of(config)
    optimizer = make_optimizer(config.optimizer, lambda step: 1e-4)
    use_ema = config.train.ema_decay > 0
    spread = Parallel.create()
    fresh = create_state(model, optimizer, preprocessing.input_shape(image_shape), 0, use_ema=use_ema)
    state = [spread.replicate(fresh)]
    step = spread.compile_train_step(
        make_train_step(
            model,
            optimizer,
            preprocessing.train,
            mixup_alpha=config.augment.mixup,
            ema_decay=config.train.ema_decay,
        )
    )
    read = split.batch(np.arange(config.train.batch_size) % len(split))
    batch = spread.shard({name: read[name] for name in ("image", "label")})

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
    dataset = run.dataset_of(config)
    split = run.split_of(dataset, config, "train")
    make_step = step_of(config, split, dataset.image_shape)
    make_step()  # compiles
    found: dict[str, list[float]] = {"pipeline": [], "step": []}
    for _ in range(rounds):
        found["pipeline"].append(show.images_per_second(split, config, SECONDS))
        found["step"].append(images_per_second(make_step, config.train.batch_size))
    return (
        {"config": name, "image": "x".join(map(str, dataset.image_shape)), "threads": config.run.num_threads}
        | report.spread(found["pipeline"], "pipeline_images_per_second", 0)
        | {"step_images_per_second": report.spread(found["step"], "step", 1)["step"]}
        | {"pipeline_over_step": report.ratio(found["pipeline"], found["step"])}
    )


def main() -> int:
    parser = report.parser(__doc__)
    parser.add_argument("--config", action="append", choices=CONFIGS, help="all by default; may be repeated")
    parser.add_argument("--photographs", type=pathlib.Path, help="a folder of JPEGs for the ImageNet configs")
    parser.add_argument("--dataset", action="append", default=[], metavar="NAME=OTHER", help="may be repeated")
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
                print(f"{name} is left out: {error}", file=sys.stderr)
            else:
                report.write(args.csv, [row], args.rounds, key="config")
    return 0


if __name__ == "__main__":
    sys.exit(main())
