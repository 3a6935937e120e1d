"""Latency of one network in the runtimes that it is exported to, and in PyTorch: float and int8, batch 1 and 32.

    pip install "squeeze_jax[export]" openvino nncf torch torchao
    python benchmarks/latency.py --weights compressed_SqueezeNet.net --calibration photographs \\
        --csv benchmarks/results/latency.csv [--threads 1] [--batch 32] [--program JAX] [--rounds 7]

Files are exported once, as `python -m squeeze_jax.export` does. Then every program is a separate process, limited to
the given number of cores, that opens its file, compares its logits with ours (a float program may differ by 1e-3 of
the largest logit) and warms up. The processes run in turn, and a process is stopped by a signal while others run,
because idle thread pools spin and would take the second core: in each round, each of them makes as many calls as fit
into about a second. A row has the milliseconds of a call, the median over the rounds with its quartiles;
`over_torch`, the throughput relative to PyTorch's fastest float program with the same threads and batch; `bytes`, the
size of its file (for JAX the weights as float32); `peak_mib`, the peak memory of its process; `difference`, the largest
difference of its logits from ours. A program whose package is missing is reported and skipped. Raw uint8 pixels go in,
and mean and standard deviation are part of every program.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import report
import worker

from squeeze_jax.files import user_path
from squeeze_jax.runtime import memory
from squeeze_jax.tables import markdown, read_csv

TURN_SECONDS = 1.0
WARM_UP_CALLS = 5
TOLERANCE = 1e-3  # of the logits of a float program, relative to the largest logit
CALIBRATION_IMAGES = 200
LARGEST_BATCH = 32
PACKAGES = ("jax", "onnxruntime", "ai-edge-litert", "openvino", "nncf", "torch", "torchao")

# A program maps the folder with the files, the images (batch, *spatial, channels) and the number of threads to a
# function that computes the logits of these images, and the path of its file, which may not exist.
Program = Callable[[pathlib.Path, np.ndarray, int], tuple[Callable[[], np.ndarray], pathlib.Path]]


def channels_first(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(images, -1, 1))


def jax_program(folder: pathlib.Path, images: np.ndarray, threads: int) -> tuple[Callable, pathlib.Path]:
    import jax

    from squeeze_jax import load
    from squeeze_jax.export.forward import forward
    from squeeze_jax.runtime.devices import compile_often

    function, variables = forward(load(folder / "net.safetensors"))
    compiled = compile_often(function)
    variables, placed = jax.device_put((variables, images))
    return lambda: np.asarray(compiled(variables, placed)), folder / "net.safetensors"


def exported_program(suffix: str) -> Program:
    """Returns the program of an exported file in the runtime of `squeeze_jax.predict`, which uses all cores."""

    def program(folder: pathlib.Path, images: np.ndarray, threads: int) -> tuple[Callable, pathlib.Path]:
        from squeeze_jax.export.formats import open_exported

        path = folder / f"net{suffix}"
        opened = open_exported(path)
        return lambda: opened.logits(images), path

    return program


def onnx_runtime(name: str) -> Program:
    def program(folder: pathlib.Path, images: np.ndarray, threads: int) -> tuple[Callable, pathlib.Path]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
        placed = channels_first(images)
        return lambda: session.run(["logits"], {"images": placed})[0], folder / name

    return program


def litert(name: str) -> Program:
    def program(folder: pathlib.Path, images: np.ndarray, threads: int) -> tuple[Callable, pathlib.Path]:
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(folder / name), num_threads=threads)
        place = interpreter.get_input_details()[0]
        interpreter.resize_tensor_input(place["index"], images.shape)
        interpreter.allocate_tensors()
        result = interpreter.get_output_details()[0]
        placed = images.astype(place["dtype"])

        def call() -> np.ndarray:
            interpreter.set_tensor(place["index"], placed)
            interpreter.invoke()
            return interpreter.get_tensor(result["index"])

        return call, folder / name

    return program


def openvino(name: str) -> Program:
    def program(folder: pathlib.Path, images: np.ndarray, threads: int) -> tuple[Callable, pathlib.Path]:
        import openvino

        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        request = openvino.Core().compile_model(str(folder / name), "CPU", settings).create_infer_request()
        placed = channels_first(images)
        weights = (folder / name).with_suffix(".bin")  # of an .xml file
        return lambda: request.infer({0: placed}, share_inputs=True)[0], weights if weights.exists() else folder / name

    return program


def pytorch(*, compiled: bool = False, int8: bool = False) -> Program:
    def program(folder: pathlib.Path, images: np.ndarray, threads: int) -> tuple[Callable, pathlib.Path]:
        import torch

        torch.set_num_threads(threads)
        module = torch_module(folder)
        placed = torch.from_numpy(channels_first(images)).contiguous(memory_format=torch.channels_last)
        if int8:
            module = torch_int8(module, channels_first(np.load(folder / "calibration.npy")), placed)
        if compiled or int8:
            module = torch.compile(module)

        @torch.inference_mode()
        def call() -> np.ndarray:
            return module(placed).numpy()

        return call, folder / "net.safetensors"

    return program


def torch_module(folder: pathlib.Path) -> Any:
    """Returns our network as a torch.nn.Module for raw pixels."""
    import flax
    import torch
    from peers import layers_of, torch_network

    from squeeze_jax import load

    network = load(folder / "net.safetensors")
    weights = flax.traverse_util.flatten_dict(network.variables, sep="/")
    layers = layers_of(network.model, network.image_shape[-1])
    trunk = torch_network(layers, 2, 0.0, {name: np.asarray(leaf) for name, leaf in weights.items()})
    preprocessing = network.task.preprocessing

    class Normalized(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = trunk
            for name in ("mean", "std"):
                self.register_buffer(name, torch.tensor(getattr(preprocessing, name)).reshape(1, -1, 1, 1))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.trunk((pixels.float() - self.mean) / self.std)

    return Normalized().eval().to(memory_format=torch.channels_last)


def torch_int8(module: Any, images: np.ndarray, placed: Any) -> Any:
    """Quantizes by PyTorch's own means for x86: PT2E with the inductor's quantizer (torchao)."""
    import torch
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    captured = torch.export.export(module, (placed,)).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(captured, quantizer)
    batch = len(placed)
    with torch.no_grad():
        for first in range(0, len(images) - batch + 1, batch):
            prepared(torch.from_numpy(images[first : first + batch]))
    converted = convert_pt2e(prepared)
    move_exported_model_to_eval(converted)
    return converted


FLOAT, INT8 = "float32", "int8"
PROGRAMS: dict[str, tuple[str, Program]] = {
    "JAX": (FLOAT, jax_program),
    "jax.export": (FLOAT, exported_program(".jaxexport")),
    "ONNX Runtime": (FLOAT, onnx_runtime("net.onnx")),
    "LiteRT": (FLOAT, litert("net.tflite")),
    "OpenVINO": (FLOAT, openvino("net.onnx")),
    "PyTorch": (FLOAT, pytorch()),
    "PyTorch, compiled": (FLOAT, pytorch(compiled=True)),
    "ONNX Runtime, int8": (INT8, onnx_runtime("int8.onnx")),
    "LiteRT, int8": (INT8, litert("int8.tflite")),
    "OpenVINO, int8": (INT8, openvino("int8.xml")),
    "PyTorch, int8, compiled": (INT8, pytorch(int8=True)),
}


def prepare(folder: pathlib.Path, weights: pathlib.Path, calibration: pathlib.Path) -> None:
    """Writes the weights, the exported files, images and our logits; in its own process."""
    import jax

    from squeeze_jax import load
    from squeeze_jax.export.forward import forward
    from squeeze_jax.predict import find_images
    from squeeze_jax.pretrained import own_file

    network = load(weights)
    own_file.save(network, folder / "net.safetensors")
    paths = find_images([str(calibration)])[:CALIBRATION_IMAGES]
    images = np.stack([network.read_image(path) for path in paths])
    np.save(folder / "calibration.npy", images)
    images = np.resize(images, (LARGEST_BATCH, *images.shape[1:]))
    function, variables = forward(network)
    np.savez(folder / "given.npz", images=images, logits=jax.jit(function)(variables, images))
    write_files(network, np.load(folder / "calibration.npy"), folder)


def write_files(network: Any, images: np.ndarray, folder: pathlib.Path) -> None:
    """Writes net.onnx, int8.onnx and so on, which take uint8 pixels; a missing package is reported.

    Args:
      network: the `squeeze_jax.Network`.
      images: raw images for calibration, uint8 (images, *image_shape).
      folder: an existing folder.
    """
    from squeeze_jax.errors import ExportError
    from squeeze_jax.export.formats import FORMATS

    for suffix, form in FORMATS.items():
        try:
            (folder / f"net{suffix}").write_bytes(form.serialize(network, "uint8"))
            if hasattr(form, "serialize_int8"):
                (folder / f"int8{suffix}").write_bytes(form.serialize_int8(network, images, "uint8"))
        except ExportError as error:
            print(f"{suffix}: {error}", file=sys.stderr)
    try:
        quantize_by_nncf(images, folder)
    except ImportError as error:
        print(f"OpenVINO, int8: {error}", file=sys.stderr)


def quantize_by_nncf(images: np.ndarray, folder: pathlib.Path) -> None:
    """Writes int8.xml and int8.bin, the files of docs/export.md, from net.onnx."""
    import nncf
    import openvino

    images = channels_first(images)
    model = openvino.Core().read_model(folder / "net.onnx")
    quantized = nncf.quantize(model, nncf.Dataset([image[None] for image in images]), subset_size=len(images))
    openvino.save_model(quantized, folder / "int8.xml", compress_to_fp16=False)


def work(name: str, folder: pathlib.Path, threads: int, batch: int) -> None:
    """Runs one program, which takes turns with the others."""
    memory.keep_freed_memory()
    given = np.load(folder / "given.npz")
    images, expected = given["images"][:batch], given["logits"][:batch]
    precision, program = PROGRAMS[name]
    call, file = program(folder, images, threads)
    difference = float(np.abs(call() - expected).max())
    if precision == FLOAT and difference > TOLERANCE * np.abs(expected).max():
        raise SystemExit(f"its logits differ from ours by {difference:.2g}.")
    ready = json.dumps({"difference": difference, "bytes": file.stat().st_size})
    worker.take_turns(call, WARM_UP_CALLS, TURN_SECONDS, ready)


@dataclasses.dataclass
class Running:
    """A program in its process, and what was measured, one value per round."""

    process: subprocess.Popen
    difference: float
    bytes: int
    milliseconds: list[float] = dataclasses.field(default_factory=list)
    peak_mib: float = 0.0

    def turn(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)
        self.process.stdin.write("turn\n")
        answer = json.loads(self.process.stdout.readline())
        os.killpg(self.process.pid, signal.SIGSTOP)
        self.milliseconds.append(1000 * answer["seconds"])
        self.peak_mib = answer["peak_mib"]

    def end(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)  # a stopped process takes no other signal
        self.process.wait()


def start(name: str, folder: pathlib.Path, threads: int, batch: int) -> Running | None:
    """Starts a program and stops it when it has warmed up; a program that fails is reported, and None returned."""
    command = [sys.executable, __file__, "--folder", str(folder), "--work", name]
    cores = sorted(os.sched_getaffinity(0))[:threads]
    log = folder / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, "--threads", str(threads), "--batch", str(batch)],
            env=os.environ | memory.environment(),
            stdin=-1,
            stdout=-1,
            stderr=errors,
            text=True,
            bufsize=1,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    for line in iter(process.stdout.readline, ""):
        if line.startswith('{"difference"'):
            os.killpg(process.pid, signal.SIGSTOP)
            return Running(process, **json.loads(line))
    print(f"{name}: skipped: {log.read_text().strip()[-300:]}", file=sys.stderr)
    return None


def measure(folder: pathlib.Path, names: list[str], threads: int, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Returns the rows of one number of threads and one batch size."""
    running: dict[str, Running] = {}
    try:
        for name in names:
            if (found := start(name, folder, threads, batch)) is not None:
                running[name] = found
        for _ in range(rounds):
            for its in running.values():
                its.turn()
    finally:
        for its in running.values():
            its.end()
    torch = [its.milliseconds for name, its in running.items() if name.startswith("PyTorch") and "int8" not in name]
    fastest = min(torch, key=np.median, default=None)
    return [
        {"case": f"{threads} thread{'s' * (threads > 1)}, batch {batch}", "threads": threads, "batch": batch}
        | {"program": name, "precision": PROGRAMS[name][0]}
        | report.spread(its.milliseconds, "milliseconds", 2)
        | {"over_torch": report.ratio(fastest, its.milliseconds) if fastest else ""}
        | {"bytes": its.bytes, "peak_mib": round(its.peak_mib), "difference": float(f"{its.difference:.2g}")}
        | {package: installed(package) for package in PACKAGES}
        for name, its in running.items()
    ]


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def table(path: pathlib.Path) -> str:
    """Returns the table of docs/export.md from the CSV: milliseconds of a call, and the throughput over PyTorch's."""
    rows = read_csv(path)
    cases = list(dict.fromkeys(row["case"] for row in rows))
    cells = {(row["program"], row["case"]): f"{row['milliseconds']} ({row['over_torch']})" for row in rows}
    lines = []
    for row in rows:
        if row["case"] == cases[0]:
            sizes = [f"{int(row['bytes']) / 1e6:.2f}", row["peak_mib"]]
            lines.append([row["program"], *(cells.get((row["program"], case), "") for case in cases), *sizes])
    return markdown(["program", *cases, "file, MB", "peak memory, MiB"], lines)


def main() -> int:
    """Runs the benchmark."""
    parser = report.parser(__doc__)
    parser.add_argument("--weights", type=user_path, help="weight file or workdir of a 2-D SqueezeNet")
    parser.add_argument("--calibration", type=user_path, metavar="FOLDER", help="photographs")
    parser.add_argument("--threads", type=int, action="append", help="may be repeated; default: 1 and 2")
    parser.add_argument("--batch", type=int, action="append", help="at most 32; may be repeated; default: 1 and 32")
    parser.add_argument("--program", action="append", choices=PROGRAMS, help="may be repeated; default: all")
    parser.add_argument("--table", action="store_true", help="print --csv as a Markdown table, without measuring")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=user_path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.table:
        print(table(args.csv))
        return 0
    if args.work == "prepare":
        prepare(args.folder, args.weights, args.calibration)
        return 0
    if args.work:
        work(args.work, args.folder, args.threads[0], args.batch[0])
        return 0
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--work", "prepare", "--folder", folder, "--weights", str(args.weights)]
        subprocess.run([*command, "--calibration", str(args.calibration)], check=True)
        for threads in args.threads or (1, 2):
            for batch in args.batch or (1, LARGEST_BATCH):
                rows = measure(pathlib.Path(folder), args.program or list(PROGRAMS), threads, batch, args.rounds)
                report.write(args.csv, rows, args.rounds, key="case")
    return 0


if __name__ == "__main__":
    sys.exit(main())
