"""What the repository promises about itself: layers, versions, commands, figures."""

import ast
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from squeeze_jax import models
from squeeze_jax.models.summary import summarize

PACKAGE = ROOT / "squeeze_jax"
# From the ground up; a module may import from its own floor and those below it. A room stands where its files do.
FLOORS = [
    {"version", "errors", "extensions", "files", "console", "tables", "plotting", "drawing", "runtime"},
    {"models", "data", "compression.rans", "compression.huffman", "compression.on_disk"},
    {
        "metrics",
        "compression.arrays",
        "compression.sharing",
        "compression.rounding",
        "compression.second_order",
        "compression.segments",
        "compression.stage_folder",
        "compression.states",
    },
    {"tasks", "training.optimizers", "training.schedules"},
    {"validation"},
    {"config"},
    {"workdir", "training.state", "training.stopwatch", "training.health", "training.profiler"},
    {"training.pruning", "training.weight_sharing", "training.quantization"},
    {"training.steps"},
    {"training.evaluation"},
    {"experiment", "commands"},
    {"pretrained"},
    {"network"},
    {
        "training.extending",
        "training.fine_tuning",
        "training.recorder",
        "compression.bias_correction",
        "compression.report",
        "compression.sequential",
    },
    {"export"},
    {"training.trainer", "compression.compressor"},
    {
        "main",
        "predict",
        "patches",
        "summary",
        "show_data",
        "data.check",
        "data.prepare",
        "data.generate_scans",
        "compression.__main__",
        "export.__main__",
    },
    {"compression.sensitivity"},
]


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def on_floor(dotted: str) -> str:
    """The entry of FLOORS that a module, named below the package, belongs to: its own, else its package's."""
    named = set().union(*FLOORS)
    return dotted if dotted in named else dotted.split(".")[0]


def module_name(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path: pathlib.Path) -> set[str]:
    """Dotted names that a file imports, at its top and inside its functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def at_the_top(path: pathlib.Path) -> set[str]:
    """Dotted names of modules that importing this file imports."""
    body = ast.parse(path.read_text()).body
    return {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names} | {
        node.module for node in body if isinstance(node, ast.ImportFrom)
    }


def test_imports_run_downward():
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    own = {on_floor(module_name(path)) for path in modules()} - {"__init__", "training", "compression"}
    assert own == set(floor), "every module stands on a floor"
    for path in modules():
        if path == PACKAGE / "__init__.py":  # what it exports lies on all floors, and is imported on demand
            continue
        for name in imports(path):
            package, _, rest = name.partition(".")
            if package == "squeeze_jax" and on_floor(rest) in floor:
                assert floor[on_floor(rest)] <= floor[on_floor(module_name(path))], f"{path} imports {name}"


def test_no_two_modules_import_each_other():
    files = {f"squeeze_jax.{module_name(path)}".removesuffix(".__init__"): path for path in modules()}
    del files["squeeze_jax"]  # imports on demand
    graph = {}
    for name, path in files.items():
        found = imports(path) & files.keys() - {name}
        # `from package import module` is about the module.
        graph[name] = {other for other in found if not any(longer.startswith(f"{other}.") for longer in found)}
    while leaves := [name for name, others in graph.items() if not others & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"these import each other: {sorted(graph)}"


def test_tensorflow_is_imported_by_nothing_but_the_command_that_prepares_datasets():
    importing = [path for path in modules() if any(name.split(".")[0] == "tensorflow" for name in imports(path))]
    assert importing == [PACKAGE / "data" / "prepare.py"]
    assert not any(name.split(".")[0] == "tensorflow" for path in modules() for name in at_the_top(path))


def test_what_only_one_file_knows():
    def knowing(*words):
        return [path.name for path in modules() if any(word in path.read_text() for word in words)]

    assert [path.name for path in modules() if any("orbax" in name for name in imports(path))] == ["checkpoints.py"]
    assert knowing('"conv10"') == ["squeezenet.py"]
    assert knowing("123.675", "123.0, 117.0") == ["registry.py"]
    assert not [path for path in (ROOT / "configs").glob("*.py") if "runpy" in path.read_text()]


TASK_WORDS = re.compile(r"\b(labels?|top-?1|top-?5|confusion|auc|sensitivity|class_weights|label_smoothing)\b", re.I)


def test_only_the_tasks_know_what_is_learned():
    generic = [
        *(PACKAGE / "training").glob("*.py"),
        *(PACKAGE / "workdir").glob("*.py"),
        PACKAGE / "experiment.py",
        ROOT / "experiments" / "report.py",
        ROOT / "experiments" / "compare.py",
    ]
    found = {
        f"{path.name}: {line.strip()}"
        for path in generic
        for line in path.read_text().splitlines()
        if TASK_WORDS.search(
            re.sub(r"label(?==)|\blabel\b(?= = |, |\))", "", line)
        )  # what matplotlib calls a line's name
    }
    assert not found


def test_former_spellings_that_the_api_listed_keep_working():
    from squeeze_jax.compression.sequential import Sequential
    from squeeze_jax.data.augmentation import Preprocessing
    from squeeze_jax.export import onnx_file, stablehlo
    from squeeze_jax.training import quantization

    for home, name in (
        (Preprocessing, "normalize"),
        (Sequential, "quantize"),
        (onnx_file, "serialize"),
        (onnx_file, "serialize_int8"),
        (stablehlo, "serialize"),
        (quantization, "quantized_kernels"),
        (quantization, "quantized_inputs"),
    ):
        assert getattr(home, name.replace("iz", "is")) is getattr(home, name)


def test_importing_the_package_is_light():
    code = "import sys, squeeze_jax; print([m for m in ('tensorflow', 'matplotlib', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("python_version", ["3.11", "3.12", "3.13"])
def test_requirements_lie_in_the_ranges_of_the_package(python_version):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert SpecifierSet(project["requires-python"]).contains(python_version)

    def applicable(lines):
        """(line, name, requirement) of the lines whose marker holds on this machine with that Python."""
        for line in lines:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"python_version": python_version}):
                yield line, canonicalize_name(requirement.name), requirement

    pinned = {}
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    for line, name, requirement in applicable(filter(None, lines)):
        (specifier,) = requirement.specifier
        assert specifier.operator == "==" and name not in pinned, line
        pinned[name] = specifier.version
    extras = project["optional-dependencies"]
    for line, name, requirement in applicable(sum(extras.values(), project["dependencies"])):
        if name == canonicalize_name(project["name"]):
            assert requirement.extras <= extras.keys(), line
        else:
            assert requirement.specifier.contains(pinned[name]), f"{line} excludes the tested {pinned[name]}"


def test_ci_runs_the_readmes_test_command():
    readme = (ROOT / "README.md").read_text()
    command = re.search(r"<!-- test command -->\n```bash\n(.*?)\n```", readme, re.S).group(1)
    extract = "sed -n '/<!-- test command -->/,/^```$/p' README.md | sed '/^<!--/d; /^```/d'"
    found = subprocess.run(["bash", "-c", extract], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert found.strip() == command and extract in (ROOT / ".ci" / "run").read_text()


def test_the_readmes_model_table_is_what_the_models_have():
    pattern = r"^\| (\w+) \| ([\d,]+) \| ([\d.]+) MiB \| ([\d.]+) M \|"
    rows = re.findall(pattern, (ROOT / "README.md").read_text(), re.M)
    assert sorted(row[0] for row in rows) == models.list_models()
    for name, parameters, mebibytes, macs in rows:
        summary = summarize(models.create(name), (224, 224, 3))
        figures = (f"{summary.parameters:,}", f"{summary.mebibytes:.2f}", f"{summary.macs / 1e6:.2f}")
        assert figures == (parameters, mebibytes, macs), name


def test_the_code_is_formatted_and_linted():
    for arguments in (["check", "."], ["format", "--check", "."]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120
        )
        assert done.returncode == 0, done.stdout
