"""Shared fixtures: the embedded dataset, prepared once, and experiments in child processes with a time limit."""

import fcntl
import importlib
import importlib.metadata
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from packaging.version import Version

# The tests are the same on a machine with an accelerator.
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling takes most of the time; these cut it by two thirds. The numbers are those of one program, optimized or not.
XLA_FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=2",
]
# XLA aborts the process at a flag that it does not know; jaxlib 0.11.1 removed this one.
if Version(importlib.metadata.version("jaxlib")) < Version("0.11.1"):
    XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(XLA_FLAGS)
# Lowering need not know the lines of Python, which takes 7 % of a short run.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
# Hundreds of imports in child processes: what pip did not compile is compiled once.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

ROOT = pathlib.Path(__file__).parents[1]
SHARED = pathlib.Path(os.environ.get("SQUEEZE_JAX_SHARED", ROOT.parent / "shared")) / "data"
LONG_FILES = ("test_devices", "test_sweeps"), ("test_pretrained", "test_trainer", "test_notebooks")
TIME_LIMIT = 300  # seconds for a child process, so that a hang is a named failure

# A network small enough to compile and train in seconds, with everything that a resumed run could get wrong switched
# on: batch norm, dropout, augmentation, averaged weights, momentum, a schedule. SqueezeNodule-Net has two thirds of
# SqueezeNet's convolutions, and compiling them is what the tests wait for.
TINY = {
    "model.name": "squeezenodule_v1",
    "model.base_filters": 8,
    "model.filter_increment": 8,
    "model.stem": "3x3/1",
    "model.stem_filters": 8,
    "model.dropout_rate": 0.3,
    "dataset.image_size": (20, 20),
    "augment.flip": ("width",),
    "train.batch_size": 32,
    "train.duration": "40 steps",
    "schedule.warmup": "4 steps",
    "evaluation.batch_size": 100,
    "run.log_every": "5 steps",
    "run.evaluate_every": "20 steps",
    "run.checkpoint_every": "10 steps",
    "run.keep_checkpoints": 4,
}


def pytest_collection_modifyitems(items):
    """Each of the two workers, which get half of the tests each, begins with long ones of its own fixtures."""
    groups = [[item for item in items if item.path.stem in files] for files in LONG_FILES]
    short = [item for item in items if item.path.stem not in sum(LONG_FILES, ())]
    middle = len(items) // 2 - len(groups[0])
    items[:] = [*groups[0], *short[:middle], *groups[1], *short[middle:]]


@pytest.fixture(scope="session")
def shared(tmp_path_factory, worker_id):
    """A folder that all workers of one test run share."""
    base = tmp_path_factory.getbasetemp()
    path = (base if worker_id == "master" else base.parent) / "shared"
    path.mkdir(exist_ok=True)
    return path


def make_once(folder, name, make):
    """`folder/name`, made by the first worker that needs it."""
    path = folder / name
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            make(path)
    return path


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(shared):
    """Child processes compile the same steps again and again."""
    import jax

    cache = str(shared / "compilation_cache")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(scope="session")
def data_dir(shared):
    """Where the digits lie; prepared by the project's own child process."""
    from squeeze_jax.data.sources import open_dataset

    return str(make_once(shared, "tfds", lambda path: open_dataset("digits", str(path))))


@pytest.fixture(scope="session")
def reference(shared, data_dir):
    """The workdir of a tiny run that nobody interrupts, in a process where importing TensorFlow leaves a trace."""
    package = shared / "packages" / "tensorflow"

    def make(workdir):
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text("import pathlib; pathlib.Path(__file__).with_name('imported').touch()")
        Child(main_command(data_dir, workdir), f"{workdir}.log", {"PYTHONPATH": str(package.parent)}).succeed()

    return make_once(shared, "reference", make)


def configure(data_dir, **overrides):
    config = load_config("digits")
    config.update_from_flattened_dict({**TINY, "run.data_dir": data_dir, **overrides})
    return config


def load_config(name, *argument):
    return importlib.import_module(f"configs.{name}").get_config(*argument)


def main_command(data_dir, workdir, *arguments, config="digits", **overrides):
    """The command of a tiny experiment."""
    values = {**TINY, "run.data_dir": data_dir, **{k.replace("__", "."): v for k, v in overrides.items()}}
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    script = [sys.executable, "-m", "squeeze_jax.main", "--config", str(ROOT / "configs" / f"{config}.py")]
    return [*script, "--workdir", str(workdir), *flags, *map(str, arguments)]


class Child:
    """A child process in a group of its own, whose output can be read when it has ended."""

    def __init__(self, command, output, env=None):
        self.output_path = pathlib.Path(output)
        self._output = self.output_path.open("a")
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )

    def wait(self, timeout=TIME_LIMIT):
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"hung for {timeout} s: {self.process.args}\n{self.text()[-3000:]}")
        self._output.close()
        return code

    def succeed(self, timeout=TIME_LIMIT):
        code = self.wait(timeout)
        assert code == 0, f"exit status {code}: {self.process.args}\n{self.text()[-3000:]}"
        return self.text()

    def fail(self, timeout=TIME_LIMIT):
        code = self.wait(timeout)
        assert code == 1, f"exit status {code}: {self.process.args}\n{self.text()[-3000:]}"
        return self.text()

    def wait_until(self, condition, timeout=TIME_LIMIT):
        """Polls; True when the condition held while the process lived."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if condition():
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.001)
        self.kill()
        pytest.fail(f"waited {timeout} s in vain\n{self.text()[-3000:]}")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def has_survivors(self):
        """Whether a process of this child's group outlived it."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def text(self):
        return self.output_path.read_text()


def options_of(name, **options):
    """Those of the options that a network has."""
    from squeeze_jax import models

    known = models.registered(name).overrides()
    return {key: value for key, value in options.items() if key in known}


# Few and narrow blocks of SqueezeNext and ShuffleNetV2, whose tracing and compiling is what tests wait for.
SHORT = {"depths": (2, 1, 1, 1), "stage_filters": (8, 12, 16)}


@pytest.fixture
def short_networks(monkeypatch):
    """The same for the networks whose blocks are not options."""
    narrow = (8, 8, 12, 8, 8)
    monkeypatch.setattr("squeeze_jax.models.alexnet.FILTERS", {False: narrow, True: narrow})
    monkeypatch.setattr("squeeze_jax.models.alexnet.HIDDEN", 16)
    monkeypatch.setattr("squeeze_jax.models.resnet.STAGES", ((8, 1), (12, 2)))
    monkeypatch.setattr("squeeze_jax.models.shufflenet.BLOCKS", (2, 1, 1))
    for network in ("mobilenet.MobileNetV2", "efficientnet.EfficientNetB0"):
        monkeypatch.setattr(f"squeeze_jax.models.{network}.table", ((1, 3, 8, 1, 1), (6, 5, 12, 2, 2)))


@pytest.fixture
def start(tmp_path, data_dir):
    """Starts a tiny experiment in a child process: start(workdir, *arguments, **overrides with __ for dots)."""
    children = []

    def run(workdir, *arguments, env=None, config="digits", **overrides):
        command = main_command(data_dir, workdir, *arguments, config=config, **overrides)
        children.append(Child(command, tmp_path / f"child{len(children)}.log", env))
        return children[-1]

    yield run
    for child in children:
        if child.process.poll() is None:
            child.kill()


@pytest.fixture
def own_names(monkeypatch):
    """Forgets at the end of a test the networks, tasks and so on that it registered."""
    from squeeze_jax.validation import registries

    for registry in registries().values():
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
