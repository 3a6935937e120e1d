"""What every command does alike: one line for a user's error, the traceback of a bug, silence about what is normal."""

import errno
import os
import re
import subprocess
import sys
import textwrap

import pytest
from absl import flags
from conftest import ROOT, TIME_LIMIT, main_command
from ml_collections import config_flags

from squeeze_jax import commands
from squeeze_jax.config import lookup
from squeeze_jax.errors import ConfigError
from squeeze_jax.extensions import import_module
from squeeze_jax.files import user_path

DIGITS = ROOT / "configs" / "digits.py"


def run(*command, **options):
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, cwd=ROOT, timeout=TIME_LIMIT, **options
    )


def config_file(tmp_path, body):
    path = tmp_path / "config_file.py"
    path.write_text(textwrap.dedent(body))
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.model.nme=x"], "ConfigError: unknown key 'nme' Did you mean \"name\""),
        (["--config.model.name=squeezenet_v11"], "ModelError: the model 'squeezenet_v11' is unknown; did you mean"),
        (["--config.seed=abc"], "ConfigError: flag --config.seed=abc: invalid literal for int()"),
        (["--config.run.backends=pmap"], "ConfigError: "),
        (["--confg=x"], "ConfigError: the flag --confg is unknown; did you mean '--config'?"),
        (
            ["--config.optimizer=x"],
            "ConfigError: flag --config.optimizer=x: Failed to parse 'x' as a ConfigDict: expected",
        ),
        (["extra"], "InputError: unknown arguments: extra"),
        (["--config.dataset.name=dgits"], "DataError: the dataset 'dgits' is unknown"),
    ],
)
def test_a_users_error_is_one_line(arguments, message, data_dir):
    done = run(
        sys.executable, "-m", "squeeze_jax.summary", "--config", DIGITS, f"--config.run.data_dir={data_dir}", *arguments
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith(message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, "ConfigError: the config file cannot be loaded: No such file or directory: "),
        ("c = base_config(); c.train.durations = 1; return c", 'line 5: Key "durations" does not exist'),
        ("return (", "line 5: '(' was never closed"),
    ],
)
def test_a_wrong_config_file_is_one_line(tmp_path, body, message):
    path = tmp_path / "absent.py"
    if body:
        path = config_file(tmp_path, f"from squeeze_jax.config import base_config\n\n\ndef get_config():\n    {body}\n")
    done = run(sys.executable, "-m", "squeeze_jax.main", "--config", path, "--workdir", tmp_path / "w")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and message in line and str(path) in line
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/cifar10.py:foo"], "ConfigError: configs/cifar10.py has no recipe 'foo'"),
        (
            ["--config=configs/cifar100.py:foo"],
            "ConfigError: get_config() takes 0 positional arguments but 1 was given",
        ),
        ([], "ConfigError: pass --config"),
    ],
)
def test_a_wrong_recipe_is_one_line(arguments, message):
    done = run(sys.executable, "-m", "squeeze_jax.summary", *arguments)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith(message)


def test_a_run_of_several_processes_needs_all_of_its_flags(tmp_path):
    command = [sys.executable, "-m", "squeeze_jax.main", "--config", DIGITS, "--workdir", tmp_path / "w"]
    done = run(*command, "--coordinator_address=localhost:1")
    assert done.returncode == 1 and "ConfigError: a run of several processes needs" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_bug_keeps_its_traceback_on_the_console_and_in_the_log(tmp_path, data_dir):
    path = config_file(
        tmp_path,
        """
        from configs import digits
        from squeeze_jax.tasks import Classification

        def loss(self, outputs, batch):
            raise ValueError("a bug of the user's")

        Classification.loss = loss
        get_config = digits.get_config
        """,
    )
    command = main_command(data_dir, tmp_path / "w")
    command = [path if word == str(DIGITS) else word for word in command]
    done = run(*command)
    for text in (done.stderr, (tmp_path / "w" / "log.txt").read_text()):
        assert "Traceback (most recent call last)" in text and "in loss" in text
        assert "ValueError: a bug of the user's" in text
    assert done.returncode == 1
    bug = config_file(tmp_path, "def get_config():\n    return {}['a bug']\n")
    done = run(sys.executable, "-m", "squeeze_jax.summary", "--config", bug)
    assert "Traceback" in done.stderr and "KeyError: 'a bug'" in done.stderr


def test_a_reader_that_has_gone_away_ends_a_command_silently(data_dir):
    command = f"{sys.executable} -m squeeze_jax.summary --config {DIGITS} --config.run.data_dir={data_dir}"
    done = run("bash", "-c", f"{command} | head -n 2; exit ${{PIPESTATUS[0]}}")
    assert done.stdout == "squeezenet_v1_1\ninput 32x32x1\n" and done.stderr == ""
    # A pipe that is closed before anything is written.
    done = run("bash", "-c", f"{command} | true")
    assert done.stdout == done.stderr == ""


def test_home_is_expanded_in_the_flags_that_are_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config_file(tmp_path, "from configs.digits import get_config\n")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    keys = ("init_from", "dataset.name", "run.data_dir")
    words = ["main", "--config=~/config_file.py", "--workdir", "~/runs/d", *(f"--config.{key}=~/a b" for key in keys)]
    monkeypatch.setattr(sys, "argv", words)
    config = commands.read_config(values, words)
    assert [lookup(config, key) for key in keys] == [f"{tmp_path}/a b"] * 3
    assert values.workdir == f"{tmp_path}/runs/d"
    words = ["main", f"--config={DIGITS}", "--config.optimizer.name=~/x", "--workdir=runs/~"]
    monkeypatch.setattr(sys, "argv", words)
    values.unparse_flags()
    assert commands.read_config(values, words).optimizer.name == "~/x" and values.workdir == "runs/~"
    assert user_path("~/a") == tmp_path / "a" and user_path("~nobody_of_this_name/a").parts[0] == "~nobody_of_this_name"


def test_a_section_is_not_a_value(monkeypatch):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    words = ["main", f"--config={DIGITS}", "--config.optimizer=x"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(ConfigError, match="--config.optimizer=x: .* a section of the config is changed key by key"):
        commands.read_config(values, words)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_takes_no_more_is_one_line(number, capsys):
    def fails(filename):
        raise OSError(number, os.strerror(number), filename)

    assert commands.run(lambda: fails("a.png")) == 1
    assert capsys.readouterr().err == (
        f"FileError: a.png cannot be written ({os.strerror(number)}); make room or name another place.\n"
    )
    assert commands.run(lambda: fails(None)) == 1
    assert capsys.readouterr().err.startswith("FileError: a file cannot be written (")
    with pytest.raises(OSError, match="Input/output error"):  # not of a full disk: a bug, or a broken one
        commands.run(lambda: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))


def test_a_full_standard_output_is_one_line():
    script = "import sys; from squeeze_jax import commands; sys.exit(commands.run(lambda: print('x' * 100)))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("FileError: a file cannot be written (No space left on device)")


def test_nothing_is_said_of_what_is_normal(reference, data_dir, tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": ""}  # JAX looks for accelerators, as it does for a user
    done = run(
        sys.executable, "-c", f"import squeeze_jax; print(squeeze_jax.load({str(reference)!r}).step)", env=environment
    )
    assert done.stderr == "" and done.stdout.strip().isdigit()
    summary = [sys.executable, "-m", "squeeze_jax.summary", "--config", DIGITS, f"--config.run.data_dir={data_dir}"]
    done = run(*summary, env=environment)
    assert done.stderr == "" and done.returncode == 0


def test_compare_passes_over_what_is_not_a_run(reference, tmp_path):
    (tmp_path / "notes.txt").touch()
    compare = [sys.executable, "-m", "experiments.compare"]
    done = run(*compare, reference, tmp_path / "notes.txt")
    assert done.returncode == 0 and "| reference | finished |" in done.stdout
    assert done.stderr == "skipped, because they are not runs: notes.txt\n"
    done = run(*compare, tmp_path / "notes.txt")
    assert done.returncode == 1 and "InputError: none of the arguments is the workdir of a run" in done.stderr


def test_modules_that_are_imported_are_named_if_they_fail(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").touch()
    for name, text in {
        "nets": "import own_package",
        "wrong": "import absent_one",
        "broken": "return (",
        "json": "",
    }.items():
        (tmp_path / "own_package" / f"{name}.py").write_text(text)
        (tmp_path / f"{name}.py").write_text(text)
    import_module(str(tmp_path / "own_package" / "nets.py"))
    import_module("own_package.nets")
    assert "own_package.nets" in sys.modules
    for name, message in [
        ("absent_module", "--import=absent_module: there is no such module in"),
        (f"{tmp_path}/absent.py", "the file does not exist"),
        (f"{tmp_path}/own_package/broken.py", "broken.py, line 1: '\\(' was never closed"),
        (f"{tmp_path}/json.py", "json/__init__.py has the same name, json; rename the file"),
    ]:
        with pytest.raises(ConfigError, match=message):
            import_module(name)
    with pytest.raises(ModuleNotFoundError, match="absent_one"):  # a bug of the module
        import_module(f"{tmp_path}/wrong.py")


COMMANDS = (
    *("main", "predict", "summary", "show_data", "compression", "compression.sensitivity", "export", "export.latency"),
    *("data.prepare", "data.check", "data.generate_scans"),
)
STUDIES = ("sweep", "compare", "judge", "squeeze_ratio", "bypass", "dead_start", "compact_networks", "nodule_vs_fire")
HEAVY = {"jax", "flax", "optax", "orbax", "grain", "tensorflow", "tensorflow_datasets", "matplotlib", "scipy", "rich"}
HELP = """
import runpy, sys
sys.argv = ["", "--help"]
try:
    runpy.run_module(MODULE, run_name="__main__", alter_sys=True)
except SystemExit as end:
    print("status", end.code, *sorted(HEAVY & {name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize(
    "module", [*(f"squeeze_jax.{name}" for name in COMMANDS), *(f"experiments.{name}" for name in STUDIES)]
)
def test_help_needs_no_heavy_import(module):
    code = HELP.replace("MODULE", repr(module)).replace("HEAVY", repr(HEAVY))
    done = run(sys.executable, "-c", code, env=os.environ | {"GLIBC_TUNABLES": ""})  # or it would start once more
    assert done.stdout.splitlines()[-1].strip() == "status 0", done.stdout + done.stderr
    assert f"usage: python -m {module} " in done.stdout and len(done.stdout.splitlines()) < 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdri=x"], "ConfigError: the flag --workdri is unknown; did you mean '--workdir'?"),
        ([f"--config={DIGITS}"], "ConfigError: pass --workdir: Folder of the run."),
        (["-workdir=/nowhere"], "ConfigError: /nowhere holds no run that could be continued; pass --config"),
        (["--workdir=/nowhere", "--config=nosuch.py"], "ConfigError: the config file cannot be loaded: No such file"),
    ],
)
def test_what_is_wrong_with_flags_is_said_without_heavy_imports(arguments, message):
    done = run(sys.executable, "-X", "importtime", "-m", "squeeze_jax.main", *arguments)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and any(line.startswith(message) for line in lines)
    assert not [line for line in lines if re.search(r"\| +(jax|flax)$", line)]
