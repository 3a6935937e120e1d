"""What every command does alike: one line for a user's error, the traceback of a bug, silence about what is normal."""

import os
import subprocess
import sys
import textwrap

import pytest
from conftest import ROOT, TIME_LIMIT, main_command

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
        (["--confg=x"], "ConfigError: Unknown command line flag 'confg'"),
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
        ([], "ConfigError: flag --config=None"),
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
    assert done.returncode == 0 and "| state | finished |" in done.stdout
    assert done.stderr.startswith(f"{tmp_path / 'notes.txt'} is passed over: ") and done.stderr.count("\n") == 1
    done = run(*compare, tmp_path / "notes.txt")
    assert done.returncode == 1 and "InputError: none of the arguments is the workdir of a run" in done.stderr
