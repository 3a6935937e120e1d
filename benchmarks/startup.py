"""Seconds from the start of a process to its first training step, compared with PyTorch and Keras.

    python benchmarks/startup.py --csv benchmarks/results/startup.csv

In every round, each program is started in turn: `import squeeze_jax` alone; `python -m squeeze_jax.main` on the digits
with an empty compilation cache ("cold") and with the cache filled by the cold start ("warm"), until the log reports the
first step; and PyTorch and Keras on TensorFlow with the same network and batch, from the start of Python to the end of
one step. The digits dataset must already be prepared, for example by an earlier run.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

import report

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent

PEER = """
import sys
sys.path.insert(0, {here!r})
import numpy as np
import networks
case = networks.Case(True, {batch}, {image}, {model!r}, {options})
weights = dict(np.load({weights!r}))
images, labels = np.zeros((case.batch, *case.image), np.float32), np.zeros(case.batch, np.int32)
networks.PROGRAMS[{name!r}](case, weights, images, labels)[1]()
"""
PEERS = ("PyTorch", "Keras on TensorFlow")
IMPORT, COLD, WARM = "import squeeze_jax", "ours, cold", "ours, warm"


def digits_network() -> tuple[int, tuple[int, ...], str, tuple]:
    """Returns batch size, image shape, name and options of the network in configs/digits.py."""
    sys.path.append(str(ROOT))  # where configs is
    from configs import digits

    config = digits.get_config()
    options = {name: value for name, value in config.model.items() if name != "name" and value is not None}
    options["num_classes"] = 10
    return config.train.batch_size, (*config.dataset.image_size, 1), config.model.name, tuple(options.items())


def write_weights(path: pathlib.Path) -> None:
    """Writes the weights for the peers; not timed."""
    import flax
    import jax
    import numpy as np

    from squeeze_jax import models

    _, image, model, options = digits_network()
    variables = jax.jit(models.create(model, **dict(options)).init)(jax.random.key(0), np.zeros((1, *image)))
    np.savez(path, **flax.traverse_util.flatten_dict(variables, sep="/"))


def seconds_of_run(folder: pathlib.Path, cache: pathlib.Path, *, fill_cache: bool) -> float:
    """Returns the seconds until the first step of our run, which is then killed.

    With `fill_cache`, the run first continues until its first evaluation, so that the cache contains all programs.
    """
    command = [sys.executable, "-m", "squeeze_jax.main", "--config", str(ROOT / "configs" / "digits.py")]
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--workdir", str(folder)], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True
    )
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "first step after" in line:
            seconds = time.perf_counter() - start
            if fill_cache:
                next(line for line in process.stderr if "validation" in line)
            process.kill()
            process.wait()
            return seconds
    raise SystemExit("".join(lines))


def seconds_of_script(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    args = report.parser(__doc__).parse_args()
    batch, image, model, options = digits_network()
    found: dict[str, list[float]] = {name: [] for name in (IMPORT, COLD, WARM, *PEERS)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        write_weights(folder / "weights.npz")
        values = {"here": str(HERE), "batch": batch, "image": image, "model": model}
        values |= {"options": options, "weights": str(folder / "weights.npz")}
        for i in range(args.rounds):
            found[IMPORT].append(seconds_of_script("import squeeze_jax"))
            cache = folder / f"cache{i}"
            found[COLD].append(seconds_of_run(folder / f"cold{i}", cache, fill_cache=True))
            found[WARM].append(seconds_of_run(folder / f"warm{i}", cache, fill_cache=False))
            for name in PEERS:
                found[name].append(seconds_of_script(PEER.format(**values, name=name)))
    rows = [
        {"program": name}
        | report.spread(seconds, "seconds", 2)
        | {"this_over_ours_warm": report.ratio(seconds, found[WARM])}
        for name, seconds in found.items()
    ]
    report.write(args.csv, rows, args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
