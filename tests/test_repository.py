"""What the repository promises about itself: layers, versions, commands, figures."""

import ast
import pathlib
import re
import subprocess
import sys

from conftest import ROOT

from squeeze_jax import models
from squeeze_jax.summary import summarize

PACKAGE = ROOT / "squeeze_jax"
# From the ground up; a module may import from its own floor and those below it.
FLOORS = [
    {"config", "version", "leaves", "models", "data", "writers", "workdir", "stopping", "compilation_cache", "memory"},
    {"optimizers", "state", "parallel", "summary"},
    {"steps", "checkpoints"},
    {"metrics", "run"},
    {"pretrained", "data.show"},
    {"loading"},
    {"evaluation", "fine_tuning"},
    {"trainer"},
    {"main", "predict"},
]


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def on_floor(dotted: str) -> str:
    """The entry of FLOORS that a module, named below the package, belongs to: its own, else its package's."""
    named = set().union(*FLOORS)
    return dotted if dotted in named else dotted.split(".")[0]


def module_name(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path: pathlib.Path, top_level_only: bool = False) -> set[str]:
    """Dotted names that a file imports."""
    tree = ast.parse(path.read_text())
    names = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_imports_run_downward():
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    own = {on_floor(module_name(path)) for path in modules()} - {"__init__"}
    assert own == set(floor), "every module stands on a floor"
    for path in modules():
        if path == PACKAGE / "__init__.py":
            continue
        for name in imports(path, top_level_only=True):
            package, _, rest = name.partition(".")
            if package == "squeeze_jax" and on_floor(rest) in own:
                assert floor[on_floor(rest)] <= floor[on_floor(module_name(path))], f"{path} imports {name}"


def test_tensorflow_is_imported_by_nothing_but_the_command_that_prepares_datasets():
    importing = [path for path in modules() if any(name.split(".")[0] == "tensorflow" for name in imports(path))]
    assert importing == [PACKAGE / "data" / "prepare.py"]
    assert not any(
        "tensorflow" in name
        for path in modules()
        for name in imports(path, top_level_only=True)
        if "tensorflow_datasets" not in name
    )


def test_orbax_is_known_to_one_file():
    assert [p.name for p in modules() if any("orbax" in name for name in imports(p))] == ["checkpoints.py"]


def test_importing_the_package_is_light():
    code = "import sys, squeeze_jax; print([m for m in ('tensorflow', 'matplotlib', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_requirements_lie_in_the_ranges_of_the_package():
    from packaging.requirements import Requirement

    pinned = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        line = line.split("#")[0].strip()
        if line:
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            pinned[requirement.name.lower().replace("_", "-")] = specifier.version
    text = (ROOT / "pyproject.toml").read_text()
    ranges = re.findall(r'^    "([^"]+)",', text, re.M) + re.findall(r'"(pytest[^"]*|ruff[^"]*)"', text)
    assert len(ranges) > 15
    for line in ranges:
        requirement = Requirement(line)
        version = pinned[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(version), f"{line} excludes the tested {version}"


def test_ci_runs_the_readmes_test_command():
    readme = (ROOT / "README.md").read_text()
    command = re.search(r"<!-- test command -->\n```bash\n(.*?)\n```", readme, re.S).group(1)
    extract = "sed -n '/<!-- test command -->/,/^```$/p' README.md | sed '/^<!--/d; /^```/d'"
    found = subprocess.run(["bash", "-c", extract], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert found.strip() == command and extract in (ROOT / ".ci" / "run").read_text()


def test_the_readmes_model_table_is_what_the_models_have():
    pattern = r"^\| (squeeze\w+) \| ([\d,]+) \| ([\d.]+) MiB \| ([\d.]+) M \|"
    rows = re.findall(pattern, (ROOT / "README.md").read_text(), re.M)
    assert sorted(row[0] for row in rows) == models.list_models()
    for name, parameters, mebibytes, macs in rows:
        summary = summarize(models.create(name), (224, 224, 3))
        figures = (f"{summary.parameters:,}", f"{summary.mebibytes:.2f}", f"{summary.macs / 1e6:.2f}")
        assert figures == (parameters, mebibytes, macs), name


def test_every_path_in_the_readme_exists():
    text = (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    paths = set(re.findall(r"\b(?:squeeze_jax|configs|tests|benchmarks|experiments)/[\w/]+\.(?:py|csv)", text))
    assert len(paths) > 5
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_code_is_formatted_and_linted():
    for arguments in (["check", "."], ["format", "--check", "."]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120
        )
        assert done.returncode == 0, done.stdout
