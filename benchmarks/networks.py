"""Compares training steps and inference of our networks with PyTorch, Keras and ONNX Runtime, in one run.

    pip install torch onnxruntime onnx        # Keras comes with TensorFlow
    python benchmarks/networks.py --csv benchmarks/results/networks.csv [--case 'training, v1.1, 224'] [--rounds 7]

Every program is a separate process that builds the same network (benchmarks/peers.py), loads our weights, checks that
its logits equal ours within 1e-3 (in evaluation, before anything is timed), warms up, and then waits. The processes run
in turn: in each round, each of them makes as many steps as fit into about a second. A row of the table has a program's
images per second, the median over the rounds with its quartiles; `ours_over_this`, the ratio of the medians; and
`peak_mib`, the peak memory of the process.

A training step is forward, backward and an SGD update with momentum and weight decay, always on the same batch in
memory, with dropout and cross entropy, all in float32. Ours is the step of the trainer, including the normalization of
raw pixels and the metrics; "4 micro-batches" is the same with `--config.train.micro_batches=4`. The programs may use
all cores of this process, and glibc keeps freed memory for their next step (squeeze_jax/runtime/memory.py).
squeeze_jax.main does so by default; for the peers this is a setting that users must know, and without it PyTorch is
slower: see "memory given back".

The cases of the networks outside of SqueezeNet's family are training steps against PyTorch, and need torchvision.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import report
import worker

from squeeze_jax.files import user_path
from squeeze_jax.runtime import memory
from squeeze_jax.tables import read_csv

TURN_SECONDS = 1.0
WARM_UP_STEPS = 10  # the heap grows in the first steps
COMPACT_WARM_UP_STEPS = 3  # of the networks of COMPACT, whose steps take seconds
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-4, 0.9, 2e-4


@dataclasses.dataclass(frozen=True)
class Case:
    training: bool
    batch: int
    image: tuple[int, ...]  # (*spatial, channels)
    model: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def rank(self) -> int:
        return len(self.image) - 1

    def network(self) -> Any:
        from squeeze_jax import models

        return models.create(self.model, **dict(self.options))

    def experiment(self, *, micro_batches: int = 1) -> Any:
        """Builds the case as a training run on random images."""
        from squeeze_jax.config import base_config
        from squeeze_jax.experiment import build

        options = dict(self.options)
        config = base_config()
        config.dataset.name = f"fake/{'x'.join(map(str, self.image))}/{options.pop('num_classes', 1000)}"
        config.dataset.validation_split = config.dataset.test_split = ""
        config.model.update({"name": self.model, **options})
        config.train.batch_size = self.batch
        config.train.micro_batches = micro_batches
        config.optimizer.update({"name": "sgd", "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY})
        config.optimizer.learning_rate = LEARNING_RATE
        config.schedule.name = "constant"
        return build(config)


SMALL = (("num_classes", 10), ("stem", "3x3/1"), ("bypass", "simple"))
VOLUME = (("num_classes", 2), ("stem", "3x3/2"))
NETWORKS = {
    "v1.0, 224": ("squeezenet_v1_0", (224, 224, 3), ()),
    "v1.1, 224": ("squeezenet_v1_1", (224, 224, 3), ()),
    "v1.1, 32": ("squeezenet_v1_1", (32, 32, 3), SMALL),
    "v1.1 with batch norm, 32": ("squeezenet_v1_1", (32, 32, 3), (*SMALL, ("use_batch_norm", True))),
    "nodule v2, 224": ("squeezenodule_v2", (224, 224, 3), ()),
    "nodule v2, 28^3": ("squeezenodule_v2", (28, 28, 28, 1), VOLUME),
    "nodule v2, 64^3": ("squeezenodule_v2", (64, 64, 64, 1), VOLUME),
}
# Training steps against PyTorch only (benchmarks/compact_peers.py).
COMPACT = (
    "alexnet",
    "alexnet_grouped",
    "resnet18",
    "mobilenet_v2",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "efficientnet_b0",
    "squeezenext_1_0_23",
    "squeezenext_1_0_g_23",
    "squeezenext_1_0_23v5",
    "squeezenext_2_0_23",
    "squeezenext_2_0_23v5",
)
SIZES = {32: (("num_classes", 10), ("stem", "3x3/1")), 224: ()}  # of their images, and the options of the networks
BATCHES = {32: 128, 64: 8}  # of a training step, by the side of the images; 32 at other sides
CASES = {
    **{
        f"training, {name}": Case(True, BATCHES.get(image[0], 32), image, model, options)
        for name, (model, image, options) in NETWORKS.items()
    },
    **{
        f"training, {name}, {size}": Case(True, BATCHES.get(size, 32), (size, size, 3), name, options)
        for size, options in SIZES.items()
        for name in COMPACT
    },
    **{
        f"inference, {name}, batch {batch}": Case(False, batch, image, model, options)
        for name, (model, image, options) in NETWORKS.items()
        if "batch norm" not in name and "64^3" not in name
        for batch in (1, 32, 128)
    },
}


# A function from images (batch, *spatial, channels) to logits, and a function that makes one step and waits for it.
Program = tuple[Callable[[np.ndarray], np.ndarray], Callable[[], Any]]


def ours(
    case: Case, weights: dict[str, np.ndarray], images: np.ndarray, labels: np.ndarray, *, micro_batches: int = 1
) -> Program:
    import flax
    import jax

    from squeeze_jax.runtime.devices import DeviceMesh, compile_often

    model = case.network()
    variables = flax.traverse_util.unflatten_dict(weights, sep="/")
    evaluate = compile_often(model.apply)
    variables, placed = jax.device_put((variables, images))
    if not case.training:
        return lambda x: evaluate(variables, x), lambda: evaluate(variables, placed).block_until_ready()

    experiment = case.experiment(micro_batches=micro_batches)
    mesh = DeviceMesh.create()
    fresh = experiment.initial_state(0)
    state = [fresh.replace(params=variables["params"], batch_stats=variables.get("batch_stats", {}))]
    step = mesh.compile_train_step(experiment.train_step())
    batch = mesh.shard({"image": np.zeros(images.shape, np.uint8), "label": labels})

    def train() -> None:
        state[0] = step(state[0], batch, 0)
        jax.block_until_ready(state[0])

    logits = np.asarray(evaluate(variables, images))  # before training, which donates the memory of the weights
    return lambda x: logits, train


def ours_with_xla_defaults(*arguments: Any) -> Program:
    from squeeze_jax.runtime import devices

    devices.CPU_COMPILER_OPTIONS = {}
    return ours(*arguments)


def torch_program(
    case: Case, weights: dict[str, np.ndarray], images: np.ndarray, labels: np.ndarray, *, last: bool, compiled: bool
) -> Program:
    import torch
    from peers import layers_of, torch_network

    network = case.network()
    if case.model in COMPACT:
        import compact_peers

        model = compact_peers.torch_network(case.model, dict(case.options), case.image[-1], weights).eval()
    else:
        model = torch_network(layers_of(network, case.image[-1]), case.rank, network.dropout_rate, weights).eval()
    layout = torch.channels_last_3d if case.rank == 3 else torch.channels_last
    layout = layout if last else torch.contiguous_format
    model = model.to(memory_format=layout)
    called = torch.compile(model) if compiled else model

    def place(x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.moveaxis(x, -1, 1).copy()).contiguous(memory_format=layout)

    @torch.inference_mode()
    def evaluate(x: torch.Tensor) -> torch.Tensor:
        return called(x)

    inputs, targets = place(images), torch.from_numpy(labels.astype(np.int64))
    logits = evaluate(inputs).numpy()
    if not case.training:
        return lambda x: logits, lambda: evaluate(inputs)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(called(inputs), targets).backward()
        optimizer.step()

    return lambda x: logits, train


def keras_program(
    case: Case, weights: dict[str, np.ndarray], images: np.ndarray, labels: np.ndarray, *, compiled: bool
) -> Program:
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    import keras
    import tensorflow as tf
    from peers import keras_network, layers_of

    network = case.network()
    model = keras_network(layers_of(network, case.image[-1]), case.image[:-1], network.dropout_rate, weights)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
    model.compile(optimizer, loss, jit_compile=compiled)
    inputs, targets = tf.constant(images), tf.constant(labels)
    evaluate = tf.function(lambda x: model(x, training=False), jit_compile=compiled)
    step = lambda: model.train_on_batch(inputs, targets)  # noqa: E731
    return lambda x: evaluate(x).numpy(), step if case.training else lambda: evaluate(inputs).numpy()


def onnx_runtime(case: Case, weights: dict[str, np.ndarray], images: np.ndarray, labels: np.ndarray) -> Program:
    import onnxruntime
    from peers import layers_of, onnx_network

    serialized = onnx_network(layers_of(case.network(), case.image[-1]), case.rank, weights)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])

    def evaluate(x: np.ndarray) -> np.ndarray:
        return session.run(None, {"images": x})[0]

    placed = np.ascontiguousarray(np.moveaxis(images, -1, 1))
    return lambda x: evaluate(np.ascontiguousarray(np.moveaxis(x, -1, 1))), lambda: evaluate(placed)


GIVING_BACK = ", memory given back"
OURS: dict[str, Callable[..., Program]] = {
    "ours": ours,
    "ours, 4 micro-batches": lambda *a: ours(*a, micro_batches=4),
    "ours, XLA's defaults": ours_with_xla_defaults,
    "ours" + GIVING_BACK: ours,
}
PROGRAMS = OURS | {
    "PyTorch": lambda *a: torch_program(*a, last=False, compiled=False),
    "PyTorch, channels last": lambda *a: torch_program(*a, last=True, compiled=False),
    "PyTorch, channels last" + GIVING_BACK: lambda *a: torch_program(*a, last=True, compiled=False),
    "PyTorch, channels last, compiled": lambda *a: torch_program(*a, last=True, compiled=True),
    "Keras on TensorFlow": lambda *a: keras_program(*a, compiled=False),
    "Keras on TensorFlow, XLA": lambda *a: keras_program(*a, compiled=True),
    "ONNX Runtime": onnx_runtime,
}


def work(case: Case, name: str, folder: pathlib.Path) -> None:
    """Runs one program, which takes turns with the others."""
    if not name.endswith(GIVING_BACK):
        memory.keep_freed_memory()  # as squeeze_jax.main does
    given = dict(np.load(folder / "given.npz"))
    images, labels, logits = (given.pop(key) for key in ("images", "labels", "logits"))
    evaluate, step = PROGRAMS[name](case, given, images, labels)
    np.testing.assert_allclose(evaluate(images), logits, atol=1e-3 * np.abs(logits).max(), rtol=1e-3)
    warm_up = COMPACT_WARM_UP_STEPS if case.model in COMPACT else WARM_UP_STEPS
    worker.take_turns(step, warm_up, TURN_SECONDS, "ready")


def prepare(case: Case, folder: pathlib.Path) -> None:
    """Writes weights, images, labels and our logits; runs in its own process, so that its memory is free afterward."""
    import flax
    import jax

    model = case.network()
    rng = np.random.default_rng(0)
    images = rng.normal(size=(case.batch, *case.image)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    logits = jax.jit(model.apply)(variables, images)
    flat = flax.traverse_util.flatten_dict(variables, sep="/")
    labels = rng.integers(0, model.num_classes, case.batch).astype(np.int32)
    np.savez(folder / "given.npz", images=images, labels=labels, logits=logits, **flat)


@dataclasses.dataclass
class Turns:
    """The measurements of one program, one value per round."""

    images_per_second: list[float] = dataclasses.field(default_factory=list)
    peak_mib: list[float] = dataclasses.field(default_factory=list)


def turns(case_name: str, names: list[str], rounds: int) -> dict[str, Turns]:
    """Measures programs in turn. A program that fails is reported and skipped."""
    running: dict[str, subprocess.Popen] = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--case", case_name, "--folder", folder]
        subprocess.run([*command, "--work", "prepare"], check=True)
        for name in names:
            log = pathlib.Path(folder, "log")
            options = {"GLIBC_TUNABLES": ""} if name.endswith(GIVING_BACK) else memory.environment()
            with log.open("w") as errors:
                process = subprocess.Popen(
                    [*command, "--work", name],
                    env=os.environ | options,
                    stdin=-1,
                    stdout=-1,
                    stderr=errors,
                    text=True,
                    bufsize=1,
                )
            if any(line == "ready\n" for line in iter(process.stdout.readline, "")):
                running[name] = process
            else:
                print(f"{case_name}: {name} failed: {log.read_text().strip()[-300:]}", file=sys.stderr)
        found = {name: Turns() for name in running}
        for _ in range(rounds):
            for name, process in list(running.items()):
                try:
                    process.stdin.write("turn\n")
                    answer = json.loads(process.stdout.readline())
                except (BrokenPipeError, json.JSONDecodeError):
                    code = running.pop(name).wait()
                    print(f"{case_name}: {name} exited with {code}; -9 usually means out of memory", file=sys.stderr)
                    del found[name]
                    continue
                found[name].images_per_second.append(CASES[case_name].batch / answer["seconds"])
                found[name].peak_mib.append(answer["peak_mib"])
        for process in running.values():
            process.communicate()
    return found


def measure(case_name: str, rounds: int, without: list[str]) -> list[dict[str, Any]]:
    """Returns the rows of a case."""
    case = CASES[case_name]
    unfit = [*without, "ONNX Runtime" if case.training else "ours, 4 micro-batches"]
    if case.model in COMPACT:
        unfit += set(PROGRAMS) - {"ours", "PyTorch", "PyTorch, channels last"}
    found = turns(case_name, [name for name in PROGRAMS if name not in unfit], rounds)
    if "ours" not in found:
        raise SystemExit(f"{case_name}: our own program failed.")
    return [
        {"case": case_name, "batch": case.batch, "program": name}
        | report.spread(its.images_per_second, "images_per_second", 1)
        | {"ours_over_this": report.ratio(found["ours"].images_per_second, its.images_per_second)}
        | {"peak_mib": round(max(its.peak_mib))}
        | versions()
        for name, its in found.items()
    ]


def measured(path: pathlib.Path) -> dict[str, dict[str, dict[str, str]]]:
    """Returns the rows of the CSV by case and program."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for row in read_csv(path, ("case", "program")):
        found.setdefault(row["case"], {})[row["program"]] = row
    return found


def fastest(of_case: dict[str, dict[str, str]], peer: str) -> str:
    """Returns the images per second of a peer's fastest setting and, in brackets, ours over it; "" if there is none."""
    settings = [row for name, row in of_case.items() if name.startswith(peer)]
    best = max(settings, key=lambda row: float(row["images_per_second"]), default=None)
    return f"{best['images_per_second']} ({best['ours_over_this']})" if best else ""


def table(path: pathlib.Path) -> str:
    """Returns the first table of docs/speed.md: the fastest setting of each peer, and our speed over it."""
    peers = ("PyTorch", "Keras on TensorFlow", "ONNX Runtime")
    lines = ["| " + " | ".join(["case", *OURS, *peers]) + " |", "|" + " --- |" * (1 + len(OURS) + len(peers))]
    rows = measured(path)
    for case in CASES:
        if case in rows and CASES[case].model not in COMPACT:
            found = rows[case]
            ours = (found[name]["images_per_second"] if name in found else "" for name in OURS)
            lines.append("| " + " | ".join([case, *ours, *(fastest(found, peer) for peer in peers)]) + " |")
    return "\n".join(lines)


def compact_table(path: pathlib.Path) -> str:
    """Returns the table of the networks outside of SqueezeNet's family: training steps of ours and of PyTorch."""
    columns = ["network", *(f"{program}, {size}" for size in SIZES for program in ("ours", "PyTorch"))]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    rows = measured(path)
    for name in COMPACT:
        cells = [name]
        for found in (rows.get(f"training, {name}, {size}", {}) for size in SIZES):
            cells += [found["ours"]["images_per_second"] if found else "", fastest(found, "PyTorch")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("jax", "torch", "tensorflow-cpu", "keras", "onnxruntime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found


def main() -> int:
    parser = report.parser(__doc__)
    parser.add_argument("--case", action="append", choices=CASES, help="may be repeated; default: all")
    parser.add_argument(
        "--without",
        action="append",
        choices=PROGRAMS,
        default=[],
        help="a program to skip, for example if it needs too much memory; may be repeated",
    )
    parser.add_argument("--table", action="store_true", help="print --csv as Markdown tables, without measuring")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=user_path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.table:
        print(table(args.csv), compact_table(args.csv), sep="\n\n")
        return 0
    if args.work == "prepare":
        prepare(CASES[args.case[0]], args.folder)
        return 0
    if args.work:
        work(CASES[args.case[0]], args.work, args.folder)
        return 0
    for name in args.case or CASES:
        report.write(args.csv, measure(name, args.rounds, args.without), args.rounds, key="case")
    return 0


if __name__ == "__main__":
    sys.exit(main())
