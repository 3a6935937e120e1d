"""Images per second and core of the input pipeline on photographs, compared with tf.data and PyTorch's DataLoader.

    python benchmarks/pipeline.py --images FOLDER --csv benchmarks/results/pipeline.csv

FOLDER contains JPEGs, such as a class of ImageNet. Each program runs on one core in a separate process, several times
and alternating with the others: it reads the files, decodes them, takes random resized crops of 224 pixels and makes
batches of 64. `ours` is `squeeze_jax.data.pipeline.train_batches` with one thread; `tf.data` uses decode_and_crop_jpeg,
which decodes only the crop, and TensorFlow's bilinear resize; `PyTorch DataLoader` decodes, crops and resizes with
Pillow, as torchvision does, in the main process.
"""

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

import report

from squeeze_jax.files import user_path
from squeeze_jax.runtime import memory

SIZE, BATCH, SMALLEST_AREA = 224, 64, 0.08


def ours(paths: list[pathlib.Path]) -> Iterator[object]:
    from squeeze_jax.data import pipeline
    from squeeze_jax.data.decoding import Crop
    from squeeze_jax.data.folders import Files
    from squeeze_jax.data.splits import Split

    crop = Crop((SIZE, SIZE), "random_resized", 256, True, SMALLEST_AREA)
    split = Split("photographs", Files([(str(path), 0) for path in paths]), (SIZE, SIZE, 3), 1, crop)
    return pipeline.train_batches(split, batch_size=BATCH, seed=0, num_threads=1)


def tf_data(paths: list[pathlib.Path]) -> Iterator[object]:
    import tensorflow as tf

    def crop(path):
        stored = tf.io.read_file(path)
        shape = tf.io.extract_jpeg_shape(stored)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape,
            tf.zeros((1, 0, 4)),
            area_range=(SMALLEST_AREA, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.io.decode_and_crop_jpeg(stored, window, channels=3)
        return tf.cast(tf.image.resize(image, (SIZE, SIZE)), tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    dataset = tf.data.Dataset.from_tensor_slices([str(path) for path in paths]).shuffle(len(paths)).repeat()
    dataset = dataset.map(crop, num_parallel_calls=1).batch(BATCH).prefetch(2).with_options(options)
    return iter(dataset)


def torch_data_loader(paths: list[pathlib.Path]) -> Iterator[object]:
    import numpy as np
    import torch
    from PIL import Image

    from squeeze_jax.data.decoding import Crop

    torch.set_num_threads(1)
    crop = Crop((SIZE, SIZE), "random_resized", 256, True, SMALLEST_AREA)
    rng = np.random.default_rng(0)

    class Photographs(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            image = Image.open(paths[index]).convert("RGB")
            left, top, width, height = crop.random_box(*image.size, rng)
            cut = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            return torch.from_numpy(np.array(cut))

    loader = torch.utils.data.DataLoader(Photographs(), BATCH, shuffle=True, drop_last=True)
    while True:
        yield from loader


PROGRAMS = {"ours": ours, "tf.data": tf_data, "PyTorch DataLoader": torch_data_loader}


def measure(name: str, folder: pathlib.Path, seconds: float) -> float:
    """Returns the images per second of CPU time of a program on one core, after two batches.

    CPU time is used because other guests of a virtual machine may take the core away for a while.
    """
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg"))
    batches = PROGRAMS[name](paths)
    for _ in range(2):
        next(batches)
    start, count = time.process_time(), 0
    while time.process_time() - start < seconds:
        next(batches)
        count += 1
    return count * BATCH / (time.process_time() - start)


def main() -> int:
    parser = report.parser(__doc__)
    parser.add_argument("--images", required=True, type=user_path)
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each measurement")
    parser.add_argument("--program", choices=PROGRAMS, help="measure only this one, and print its images per second")
    args = parser.parse_args()
    if args.program:
        print(measure(args.program, args.images, args.seconds))
        return 0
    found: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(args.rounds):
        for name, values in found.items():
            command = [sys.executable, __file__, "--images", str(args.images), "--program", name]
            done = subprocess.run(
                [*command, "--seconds", str(args.seconds)],
                env=os.environ | memory.environment(),  # as in a training run
                capture_output=True,
                text=True,
                check=True,
            )
            values.append(float(done.stdout.split()[-1]))
    rows = [
        {"program": name}
        | report.spread(values, "images_per_second_per_core", 0)
        | {"best": round(max(values)), "ours_over_this": report.ratio(found["ours"], values)}
        for name, values in found.items()
    ]
    report.write(args.csv, rows, args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
