"""Measures how long networks take for one image on this machine, each in the runtime of its file.

    python -m squeeze_jax.export.latency net.onnx int8.onnx runs/cifar10
    python -m squeeze_jax.export.latency net.tflite --threads 1 --batch 32

An exported file runs in its own runtime: `.onnx` in ONNX Runtime, `.tflite` in LiteRT, `.jaxexport` in JAX. A workdir,
a weight file or a network's name runs in JAX, in float32, as it would be exported. A call takes raw pixels of random
images and returns logits; mean and standard deviation are part of it, reading and cropping a photograph are not. The
networks are measured one after the other. No runtime but those of the files is imported.
"""

from squeeze_jax.runtime.memory import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()  # before the imports below

import os
import pathlib
import platform
import sys
from collections.abc import Callable
from typing import Any

from squeeze_jax import commands
from squeeze_jax.errors import InputError
from squeeze_jax.files import user_path

WARM_UP_SECONDS = 0.5
FEWEST_CALLS = 10
JAX = ("JAX", "jax")
RUNTIMES = {".onnx": ("ONNX Runtime", "onnxruntime"), ".tflite": ("LiteRT", "ai-edge-litert"), ".jaxexport": JAX}


def milliseconds(call: Callable[[], Any], seconds: float) -> list[float]:
    """Returns the duration of each call, after a warm-up, in milliseconds.

    Args:
      call: returns when it is done.
      seconds: how long to measure; at least FEWEST_CALLS are made.
    """
    import time

    call()  # compiles
    durations: list[float] = []
    for limit in (WARM_UP_SECONDS, seconds):
        durations, end = [], time.perf_counter() + limit
        while len(durations) < FEWEST_CALLS or time.perf_counter() < end:
            start = time.perf_counter()
            call()
            durations.append(1000 * (time.perf_counter() - start))
    return durations


def open_call(source: pathlib.Path, threads: int, batch: int) -> tuple[Callable[[], Any], tuple[str, str]]:
    """Returns a call of a network on random images, and the name and the package of its runtime.

    Args:
      source: an exported file, a weight file, a workdir or the name of a network.
      threads: of the runtime.
      batch: the number of images.

    Raises:
      SqueezeJaxError: it cannot be opened.
    """
    import numpy as np

    from squeeze_jax.export.formats import FORMATS, is_exported

    def images(shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (batch, *shape), np.uint8).astype(dtype)

    if is_exported(source):
        exported = FORMATS[source.suffix].read(source, threads)
        pixels = images(exported.image_shape, exported.description["pixels"])
        exported.logits(pixels)  # checks the shape of its answer once
        return lambda: exported.run(pixels), RUNTIMES[source.suffix]
    import jax

    from squeeze_jax.export.forward import forward
    from squeeze_jax.network import load
    from squeeze_jax.runtime.devices import compile_often

    network = load(source)
    function, weights = forward(network)
    compiled = compile_often(function)
    placed = jax.device_put((weights, images(network.image_shape, "uint8")))
    return lambda: jax.block_until_ready(compiled(*placed)), JAX


def limit_threads(threads: int) -> None:
    """Limits this process to so many of its cores, because JAX has no other way to limit its threads."""
    if hasattr(os, "sched_setaffinity"):  # not on macOS
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def main() -> None:
    """Runs the command."""
    parser = commands.parser(__doc__)
    parser.add_argument("sources", nargs="+", type=user_path, metavar="FILE", help="exported file, weights or workdir")
    parser.add_argument("--threads", type=int, help="default: the cores of this machine")
    parser.add_argument("--batch", type=int, default=1, help="images of a call; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each network; default: %(default)s")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = cores if args.threads is None else args.threads
    if not 1 <= threads <= cores:
        raise InputError(f"--threads={threads}; expected 1 to {cores}, the cores of this machine.")
    if args.batch < 1:
        raise InputError(f"--batch={args.batch}; expected at least 1.")
    limit_threads(threads)
    from importlib.metadata import version
    from statistics import quantiles

    print(f"{processor()}, {threads} thread{'s' * (threads > 1)}, batch {args.batch}: milliseconds of a call")
    print(f"{'median':>8}  {'quartiles':<18}  {'calls':>5}  file")
    for source in args.sources:
        call, (runtime, package) = open_call(source, threads, args.batch)
        durations = milliseconds(call, args.seconds)
        low, median, high = quantiles(durations, n=4)
        spread = f"{low:.2f} to {high:.2f}"
        text = f"{source} ({runtime} {version(package)})"
        print(f"{median:8.2f}  {spread:<18}  {len(durations):5}  {text}", flush=True)


def processor() -> str:
    """Returns the name of the processor."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(commands.run(main))
