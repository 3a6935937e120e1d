"""The documentation: it builds, its commands can be given, its links and paths lead somewhere, its code runs."""

import ast
import csv
import functools
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

import pytest
from absl import flags
from conftest import ROOT
from ml_collections import config_flags

from experiments.report import mean_and_spread
from squeeze_jax import commands, models
from squeeze_jax import config as config_lib
from squeeze_jax.data import SPLITS
from squeeze_jax.errors import SqueezeJaxError
from squeeze_jax.experiment import network_options

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
README_LINES = 170
LINE = 120

WITHOUT_RUNS = (
    "experiments.compact_costs",
    "experiments.compare",
    "experiments.compression_curve",
    "experiments.compression_sources",
    "experiments.judge",
    "experiments.own_photographs",
)  # commands that are not sweeps; their options are checked

# Commands of the documentation that nothing here can try, and why. All other commands are checked.
NOT_RUN = {
    "source .venv/bin/activate": "of the shell",
    "pip install tensorboard": "downloads",
    "tensorboard --logdir runs": "is not installed here",
    "python3 -m venv .venv": "of Python; .ci/run makes such an environment by the README's test command",
    "pip install torch onnxruntime onnx": "downloads the peers",
    "pip install torch torchvision": "downloads the peers",
    'pip install "squeeze_jax[export]"': "downloads",
    'pip install -e ".[docs]"': "downloads",
    'pip install "squeeze_jax[export]" openvino nncf torch torchao': "downloads the peers",
    "pip install playwright": "downloads",
    "pip install jupyterlab": "downloads",
    "jupyter lab notebooks": "starts a server",
    "python -m venv litert": "of Python",
    "litert/bin/pip install litert-converter==0.5.0 litert-quantizer==0.11.0": "downloads",
    "python -m pytest -n 0 -m browser tests/test_web.py": "needs a browser",
    '.venv/bin/pip install -e ".[prepare]" "jax[cuda13]>=0.10,<0.13"': "downloads, for a GPU",
    '.venv/bin/pip install -e ".[prepare]" "jax[tpu]>=0.10,<0.13"': "downloads, for a TPU",
    ".venv/bin/pip install --no-compile -r requirements.txt -e .": "downloads; .ci/run runs it",
    ".venv/bin/python -m pytest": "is what runs this",
    ".venv/bin/python -m pytest -m slow": "takes minutes",
    ".venv/bin/python tests/fuzz.py --mutants 1000 --seed 7": "tests/test_fuzz.py reads fewer",
    ".venv/bin/ruff check .": "tests/test_repository.py runs it",
    ".venv/bin/ruff format .": "tests/test_repository.py runs it with --check",
}
VARIABLE = re.compile(r"export \w+=\S+")  # tests/test_memory.py compares its value

FLAG_COMMANDS = ("squeeze_jax.main", "squeeze_jax.summary", "squeeze_jax.show_data")
OWN = pathlib.Path(tempfile.gettempdir(), f"squeeze_jax_docs_{os.getpid()}", "own.py")  # the code of docs/extending.md
PLACEHOLDERS = {"HOST:PORT": "localhost:1", "own.py": str(OWN)}

# Asks the parser of each argparse command about its arguments, without running the command.
PARSE = """
import argparse, contextlib, importlib, io, json, sys

class Parsed(BaseException):
    pass

def parse_args(self, *args, **kwargs):
    original(self, *args, **kwargs)
    raise Parsed

original, argparse.ArgumentParser.parse_args = argparse.ArgumentParser.parse_args, parse_args
sys.path[:0] = [".", "benchmarks"]
wrong = []
for module, *arguments in json.load(sys.stdin):
    found = importlib.import_module(module)
    if hasattr(found, "__path__"):  # a package, which `python -m` starts by its __main__
        found = importlib.import_module(f"{module}.__main__")
    main = found.main
    sys.argv = [module, *arguments]
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            main()
        wrong.append(f"{module} {arguments}: does not parse arguments")
    except Parsed:
        pass
    except SystemExit:
        wrong.append(f"{module} {arguments}: {errors.getvalue().splitlines()[-1]}")
print(json.dumps(wrong))
"""


def blocks(path: pathlib.Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", path.read_text(), re.M | re.S)


def split_commands(block: str) -> list[str]:
    """The commands of a bash block, without comments and the breaks of long lines."""
    joined = re.sub(r"\\\n\s*", "", block)
    lines = [re.sub(r"(^|\s+)# .*$", "", line).strip() for line in joined.splitlines()]
    return [command.strip() for line in lines if line for command in line.split(" && ")]


def inline_commands(path: pathlib.Path) -> list[str]:
    """`python ...` within the text of a page."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    return [" ".join(found.split()) for found in re.findall(r"`(python3? [^`]+)`", text)]


@functools.cache
def documented() -> list[tuple[str, str]]:
    """(page, command) of every command, but those within the text that have no arguments."""
    in_blocks = [
        (path, command) for path in PAGES for block in blocks(path, "bash") for command in split_commands(block)
    ]
    in_text = [(path, command) for path in PAGES for command in inline_commands(path) if len(command.split()) > 3]
    return [(path.name, command) for path, command in in_blocks + in_text]


def module_and_arguments(command: str) -> tuple[str, list[str]] | None:
    """A command that starts a module or a benchmark of this project; None for any other."""
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command)]
    if pathlib.Path(words[0]).name not in ("python", "python3"):
        return None
    if words[1] == "-m" and words[2].split(".")[0] in ("squeeze_jax", "experiments", "docs"):
        return words[2], words[3:]
    if words[1].startswith("benchmarks/"):
        assert (ROOT / words[1]).exists(), command
        return pathlib.Path(words[1]).stem, words[2:]
    return None


def commands_of(*modules: str) -> list[tuple[str, list[str]]]:
    found = [module_and_arguments(command) for _, command in documented()]
    return [entry for entry in found if entry and entry[0].startswith(modules)]


def flags_of(module: str) -> flags.FlagValues:
    """The flags that a module of this project defines, without importing it: absl has one table for all modules."""
    values = flags.FlagValues()
    flags.DEFINE_multi_string("import", [], "", flag_values=values)
    for node in ast.walk(ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("DEFINE_"):
            name = ast.literal_eval(node.args[0])
            if node.func.attr == "DEFINE_enum":
                choices = node.args[2]
                known = SPLITS if ast.unparse(choices) == "SPLITS" else ast.literal_eval(choices)
                flags.DEFINE_enum(name, None, known, "", flag_values=values)
            elif node.func.attr == "DEFINE_integer":
                flags.DEFINE_integer(name, None, "", flag_values=values)
            elif node.func.attr != "DEFINE_config_file":
                flags.DEFINE_string(name, None, "", flag_values=values)
    return values


def check_flags(module: str, arguments: list[str]) -> None:
    """Raises a SqueezeJaxError where this command could not be given."""
    names = [argument.partition("=")[0] for argument in arguments]
    if "--config" not in names and any(name.startswith("--config.") for name in names):
        arguments = ["--config=configs/digits.py", *arguments]  # stands for the config in the workdir
    argv, values = [module, *arguments], flags_of(module)
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
    if not any(argument.partition("=")[0] == "--config" for argument in arguments):
        values(argv)
        return
    config = commands.read_config(values, argv)
    config_lib.validate(config)
    if config.model.name is not None:  # else the network of the weights
        models.create(config.model.name, **network_options(config))


def test_the_documentation_builds_without_warnings(tmp_path):
    for package in ("sphinx", "myst_nb", "furo"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; the extra 'docs' has it")
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(tmp_path / "html")]
    done = subprocess.run(build, capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "Loads a network" in (tmp_path / "html" / "api.html").read_text()


def test_every_page_is_in_the_index():
    listed = re.findall(r"^(?:notebooks/)?\w+$", "\n".join(blocks(DOCS / "index.md", "{toctree}")), re.M)
    notebooks = {f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert sorted(listed) == sorted({path.stem for path in DOCS.glob("*.md")} - {"index"} | notebooks)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_lines_are_short(path):
    kept_word_for_word = ("|", "python3 -m venv", "export GLIBC_TUNABLES", "  author")
    lines = [line for line in path.read_text().splitlines() if not line.startswith(kept_word_for_word)]
    assert [line for line in lines if len(line) > LINE] == []


def test_every_command_is_checked_or_said_not_to_be():
    unknown = [
        f"{page}: {command}"
        for page, command in documented()
        if command not in NOT_RUN
        and module_and_arguments(command) is None
        and not VARIABLE.fullmatch(command)
        and not command.startswith("python -m sphinx -W -b html docs ")  # the test above
    ]
    assert unknown == []
    assert set(NOT_RUN) <= {command for _, command in documented()}, "no page has this command any more"


@pytest.fixture
def own_module(own_names):
    OWN.parent.mkdir(exist_ok=True)
    OWN.write_text("".join(block for block in blocks(DOCS / "extending.md", "python") if "register(" in block))
    yield
    sys.modules.pop(OWN.stem, None)
    shutil.rmtree(OWN.parent)


def test_commands_with_a_config_can_be_given(own_module):
    checked = commands_of(*FLAG_COMMANDS)
    assert len(checked) > 15
    for module, arguments in checked:
        check_flags(module, arguments)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("squeeze_jax.main", ["--config", "configs/digits.py", "--config.train.label_smoothing=0.1"]),
        ("squeeze_jax.main", ["--config", "configs/nothing.py"]),
        ("squeeze_jax.main", ["--config", "configs/digits.py", "--config.optimizer.name=adam"]),
        ("squeeze_jax.main", ["--config", "configs/digits.py", "--config.model.stem=5x5/2"]),
        ("squeeze_jax.main", ["--config", "configs/digits.py", "--wordkir", "runs/digits"]),
        ("squeeze_jax.main", ["--workdir", "runs/digits", "--mode=test"]),
        ("squeeze_jax.main", ["--workdir", "runs/digits", "--mode=eval", "--split=val"]),
        ("squeeze_jax.summary", ["--config", "configs/digits.py", "--workdir", "runs/digits"]),
    ],
)
def test_a_wrong_command_would_be_noticed(module, arguments):
    with pytest.raises((SqueezeJaxError, flags.Error)):
        check_flags(module, arguments)


def test_sweeps_and_studies_can_be_given(own_module, monkeypatch, capsys):
    checked = [entry for entry in commands_of("experiments.") if entry[0] not in WITHOUT_RUNS]
    assert len(checked) > 15
    for module, arguments in checked:
        study = importlib.import_module(module)
        monkeypatch.setattr(sys, "argv", [module, *arguments, "--list"])
        status = study.main(*filter(None, [getattr(study, "SETTINGS", None)]))
        output, error = capsys.readouterr()
        assert status == 0, error
        trials = output.splitlines()
        assert trials
        for trial in {re.sub(r"seed=\d+", "seed=0", trial) for trial in trials}:
            check_flags(*module_and_arguments(trial))


def ask_parsers(checked: list[tuple[str, list[str]]]) -> list[str]:
    """What the parsers of these commands complain about."""
    done = subprocess.run(
        [sys.executable, "-c", PARSE],
        input=json.dumps([[module, *arguments] for module, arguments in checked]),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_other_commands_have_the_documented_options(own_module):
    benchmarks = tuple(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
    modules = (
        "squeeze_jax.predict",
        "squeeze_jax.compression",
        "squeeze_jax.export",
        "squeeze_jax.data.prepare",
        "squeeze_jax.data.generate_scans",
        *WITHOUT_RUNS,
    )
    checked = commands_of(*modules, *benchmarks)
    assert len(checked) > 15
    wrong = [("squeeze_jax.predict", ["--cams", "maps", "a.jpg"]), ("networks", ["--case", "training, v9, 224"])]
    complaints = ask_parsers(checked + wrong)
    assert [complaint.split(":")[0].split()[0] for complaint in complaints] == ["squeeze_jax.predict", "networks"], (
        complaints
    )


def test_modules_that_are_named_without_arguments_exist():
    named = {
        words[2] for words in (inline.split() for path in PAGES for inline in inline_commands(path)) if len(words) == 3
    }
    assert {"docs.make_pictures", "squeeze_jax.data.prepare"} <= named
    assert [name for name in named if importlib.util.find_spec(name) is None] == []


@functools.cache
def anchors(path: pathlib.Path) -> set[str]:
    """Of the headings of a page, as GitHub and MyST make them."""
    headings = re.findall(r"^#{1,4} (.+)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text())
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{path.name} links to {link}"
        assert not anchor or anchor in anchors(file), f"{path.name} links to {link}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_paths_that_are_named_exist(path):
    folders = r"squeeze_jax|configs|tests|benchmarks|experiments|docs|notebooks"
    text = path.read_text()
    named = set(re.findall(rf"(?<![\w/.-])((?:{folders})/[\w/.-]+\.(?:py|csv|md|png|svg|ipynb|txt|toml))\b", text))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_config_files_and_tables_that_are_named_alone_exist():
    configs = set(re.findall(r"^\| `(\w+\.py)", (DOCS / "configs.md").read_text(), re.M))
    assert configs == {path.name for path in (ROOT / "configs").glob("*.py")} - {"__init__.py"}
    tables = re.findall(r"`(\w+\.csv)`", (DOCS / "results.md").read_text())
    results = ROOT / "experiments" / "results"
    assert len(tables) > 10
    missing = [name for name in tables if not (results / name).exists() and not (results / f"cifar10_{name}").exists()]
    assert missing == []


def test_the_results_are_the_tables_of_the_studies():
    text = (DOCS / "results.md").read_text()
    found = sorted((ROOT / "experiments" / "results").glob("*.md"))
    tables = [path for path in found if not path.stem.endswith("_judged")]  # those have a test of their own
    assert len(tables) > 5
    assert [path.name for path in tables if path.read_text().strip() not in text] == []


def test_the_accuracies_of_own_photographs_are_those_of_the_table():
    with (ROOT / "experiments" / "results" / "own_photographs.csv").open() as file:
        rows = list(csv.DictReader(file))
    text = (DOCS / "photographs.md").read_text()
    settings = {(row["pictures"], row["side"], row["test_pictures"]) for row in rows}
    assert len(settings) == 6 and len(rows) == 18
    for setting in settings:
        of_seeds = [row for row in rows if (row["pictures"], row["side"], row["test_pictures"]) == setting]
        accuracies = [mean_and_spread([float(row[key]) for row in of_seeds]) for key in ("test_top1", "fresh_top1")]
        seconds = sorted(int(row["seconds"]) for row in of_seeds)
        assert f"| {' | '.join([*setting, *accuracies])} | {seconds[0]} to {seconds[-1]} |" in text


def test_the_figures_that_were_judged_are_those_of_the_tables():
    """Each mean with its spread, and each value with its interval."""
    judged = set()
    for path in (ROOT / "experiments" / "results").glob("*_judged.csv"):
        with path.open() as file:
            rows = list(csv.DictReader(file))
        values = {}
        for row in rows:
            value, low, high = (float(row[key] or "nan") for key in ("value", "low", "high"))
            judged.add(f"{value:.3f} ({low:.3f} to {high:.3f})")
            values.setdefault((row["model"], row["metric"]), []).append(value)
        judged |= {mean_and_spread(seeds) for seeds in values.values() if len(seeds) > 1}
    text = (DOCS / "results.md").read_text()
    for title in ("Lung nodules", "AdrenalMNIST3D", "The operating threshold"):
        section = re.search(rf"^##+ {title}$.*?(?=^## )", text, re.M | re.S)[0]
        figures = re.findall(r"(?<=\| )\d\.\d+ (?:± [\d.]+|\([\d. to]+\))(?= \|)", section)
        assert len(figures) > 5 and set(figures) <= judged


def test_python_code_runs(tmp_path, reference, compilation_cache):
    """Each page's blocks one after the other, where runs/digits is a small run."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(reference)
    pages = {path.name: "".join(blocks(path, "python")) for path in PAGES if blocks(path, "python")}
    assert {"README.md", "training.md", "extending.md"} <= set(pages)
    program = "\n".join(f"exec({code!r}, {{'__name__': '__main__'}})" for code in pages.values())
    # docs/extending.md has defined a model and a task.
    program += "\nfrom squeeze_jax.experiment import build\n"
    program += "from squeeze_jax.config import base_config; config = base_config('robust')\n"
    program += "config.dataset.name = 'fake/32x32x3/10'; config.model.name = 'three_thin_fires'\n"
    program += "config.schedule.name = 'cosine_restarts'; config.optimizer.name = 'lion'\n"
    program += "config.augment.own = ('noise',)\n"
    program += "print(build(config).sums)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "top1" in done.stdout
