"""Sweeps and studies: their trials, two processes at one sweep, kills, failures, the report."""

import csv
import importlib
import json
import re
import shlex
import signal
import sys
import textwrap

import numpy as np
import pytest
from conftest import ROOT, TINY, Child

from experiments import compare, report, sweep
from experiments.trials import Sweep, SweepError, Trial, check, check_runs, claim, status
from squeeze_jax import load, models
from squeeze_jax.models.summary import summarize
from squeeze_jax.tables import write_csv
from squeeze_jax.workdir.folder import Lock

STUDIES = ("squeeze_ratio", "fraction_3x3", "bypass", "nodule_vs_fire", "dead_start", "compact_networks")

# A sweep of twelve trials that take a moment and leave what a finished run leaves. Every start is a line in `starts`.
FAKE = """
    import json, pathlib, sys, time

    def run(folder, name, seed):
        with open(folder.parent / "starts", "a") as file:
            file.write(name + "\\n")
        time.sleep(0.2)
        if "x=2" in name and {broken!r}:
            sys.exit("ValueError: two is not allowed")
        top1 = 0.5 + 0.01 * seed + 0.001 * int(name[2])
        write = lambda file, value: (folder / file).write_text(json.dumps(value))
        resolved = dict(class_names=["a", "b"], image_shape=[8, 8, 1])
        write("config.json", dict(config=dict(train=dict(batch_size=10)), resolved=resolved))
        write("versions.json", dict(versions=dict(jax="1", flax="2"), commit="c", cpu_cores=2, devices=["cpu"]))
        write("metrics.jsonl", dict(step=5, split="train", values=dict(), speed=dict(images_per_second=25.0)))
        write("result.json", dict(step=5, parameters=2**18, macs=3, test=dict(top1=top1)))

    if "--fake" in sys.argv:
        folder, name, seed = sys.argv[-3:]
        run(pathlib.Path(folder), name, int(seed))
    else:
        sys.path.insert(0, {root!r})
        from experiments import sweep, trials

        trials.Trial.command = lambda self, workdir: [
            sys.executable, __file__, "--fake", str(workdir / self.name), self.name, str(self.seed)]
        sweep.check = lambda trials, workdir: None
        points = [{{"model.x": x}} for x in range(4)]
        sys.exit(sweep.main({{"only": trials.Sweep("fake", "none.py", points)}}))
"""


@pytest.fixture
def fake(tmp_path):
    """The command of the fake sweep; fake(broken=True) is one with a point that fails."""

    def write(broken=False):
        path = tmp_path / "fake.py"
        path.write_text(textwrap.dedent(FAKE.format(root=str(ROOT), broken=broken)))
        return [sys.executable, str(path), f"--workdir={tmp_path / 'w'}"]

    return write


def starts(tmp_path):
    path = tmp_path / "w" / "starts"
    return path.read_text().split() if path.exists() else []


def rows(tmp_path):
    with (tmp_path / "w" / "fake.csv").open() as file:
        return list(csv.DictReader(file))


def test_two_processes_never_run_a_trial_twice_and_lose_none(fake, tmp_path):
    children = [Child(fake(), tmp_path / f"{i}.log") for i in range(2)]
    for child in children:
        child.succeed()
    assert sorted(starts(tmp_path)) == sorted({row["trial"] for row in rows(tmp_path)}) and len(rows(tmp_path)) == 12
    assert {row["status"] for row in rows(tmp_path)} == {"finished"}
    assert rows(tmp_path)[0]["training_seconds"] == "2"  # 5 steps of 10 examples at 25 a second
    table = (tmp_path / "w" / "fake.md").read_text()
    assert "| 3 | 262,144 | 1.00 | 0.0 | 0.5130 ± 0.0100 | 3 | +0.0030" in table
    assert (tmp_path / "w" / "fake.svg").exists()


def test_a_killed_sweep_goes_on_and_reports_the_same(fake, tmp_path):
    first = Child(fake(), tmp_path / "first.log")
    assert first.wait_until(lambda: len(starts(tmp_path)) >= 3)
    first.kill()
    text = Child([*fake(), "--jobs=2"], tmp_path / "second.log").succeed()
    # The trial that was under way outlived its runner, still claimed; it is not started again.
    assert len(starts(tmp_path)) == 12 and "Not in the table" not in text
    Child([*fake(), f"--workdir={tmp_path / 'unbroken'}", "--jobs=2"], tmp_path / "unbroken.log").succeed()
    assert (tmp_path / "unbroken" / "fake.csv").read_text() == (tmp_path / "w" / "fake.csv").read_text()


def test_trials_of_an_earlier_report_are_used_and_not_run_again(fake, tmp_path):
    Child([*fake(), "--jobs=2"], tmp_path / "whole.log").succeed()
    whole = (tmp_path / "w" / "fake.csv").read_text()
    first = [*fake(), f"--workdir={tmp_path / 'first'}", "--seeds=0,2"]
    Child([*first, "--jobs=2"], tmp_path / "first.log").succeed()
    elsewhere = [*fake(), f"--workdir={tmp_path / 'elsewhere'}", f"--reuse={tmp_path / 'first' / 'fake.csv'}"]
    Child(elsewhere, tmp_path / "elsewhere.log").succeed()
    assert len((tmp_path / "elsewhere" / "starts").read_text().split()) == 4  # seed 1
    assert (tmp_path / "elsewhere" / "fake.csv").read_text() == whole
    other = [*elsewhere, "--config.train.batch_size=7"]
    assert "x=0,seed=0 has train.batch_size=None; this sweep has '7'" in Child(other, tmp_path / "other.log").fail()
    wrong = [*fake(), f"--reuse={tmp_path / 'first' / 'fake.md'}"]
    assert "this is not the CSV of a report" in Child(wrong, tmp_path / "wrong.log").fail()


def test_sigterm_stops_a_sweep_and_its_trials(fake, tmp_path):
    child = Child(fake(), tmp_path / "log")
    assert child.wait_until(lambda: len(starts(tmp_path)) >= 2)
    child.process.send_signal(signal.SIGTERM)
    assert child.wait() == 1
    assert "stopping; checkpoints are saved" in child.text() and "Not in the table" in child.text()
    last = child.text().splitlines()[-2:]
    assert re.fullmatch(r"Stopped with \d+ of 12 trials finished. The same command continues:", last[0])
    assert last[1].endswith(shlex.join(fake()[1:]))
    assert not list((tmp_path / "w").glob("*/failure.json")) and len(starts(tmp_path)) < 12


def test_a_trial_that_fails_is_in_the_report_and_the_others_finish(fake, tmp_path):
    assert Child(fake(broken=True), tmp_path / "log").wait() == 1
    failed = [row for row in rows(tmp_path) if row["status"] != "finished"]
    assert [row["status"] for row in failed] == ["failed: ValueError: two is not allowed"] * 3
    assert "- x=2,seed=1: failed: ValueError: two is not allowed" in (tmp_path / "w" / "fake.md").read_text()
    retried = Child([*fake(), "--index=2", "--retry"], tmp_path / "retry.log").succeed()
    assert re.fullmatch(r"x=2,seed=0: started\n\[1/1\] x=2,seed=0: test_top1 0.5020, \d s\n", retried)
    assert (
        "--index=12 is not one of the 12 trials; expected 0 to 11, in the order of --list"
        in Child([*fake(), "--index=12"], tmp_path / "wrong.log").fail()
    )


def test_the_console_has_one_line_per_event_with_count_metric_and_time(fake, tmp_path):
    text = Child([*fake(), "--seeds=0", "--jobs=2"], tmp_path / "log").succeed()
    events = text[: text.index("| x |")].splitlines()
    assert len(events) == 8 and sum(event.endswith(": started") for event in events) == 4
    ends = [event for event in events if event.startswith("[")]
    assert [end.split("]")[0] for end in ends] == ["[1/4", "[2/4", "[3/4", "[4/4"]
    assert all(re.search(r"x=\d,seed=0: test_top1 0.50\d0, \d s(; \d s left)?$", end) for end in ends)
    assert "left" in ends[0] and "left" not in ends[-1]
    again = Child([*fake(), "--seeds=0"], tmp_path / "again.log").succeed()
    assert again.startswith("4 of 4 trials are done already\n| x |")


def test_trials_that_another_process_ran_meanwhile_are_counted(capsys):
    done = {"a"}
    events = sweep.Events("abcd", done.__contains__, jobs=1)
    events.start("b")
    done |= {"b", "c"}  # c elsewhere
    events.done("b", "finished", 3)
    assert capsys.readouterr().out.splitlines() == [
        "1 of 4 trials are done already",
        "b: started",
        "[3/4] b: finished, 3 s; 3 s left",
    ]


def test_a_line_fits_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    name = ",".join(f"key{i}=0.125" for i in range(9))
    assert sweep.fitting(name, "started") == f"{name}: started"  # of a file, whole
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert sweep.fitting("short", "started") == "short: started"
    line = sweep.fitting(f"[1/2] {name}", "test_top1 0.5000, 3 min; 3 min left")
    assert len(line) < 60 and line.startswith("[1/2] key") and line.endswith("test_top1 0.5000, 3 min; 3 min left")
    assert len(sweep.fitting(name, "failed: " + "x" * 99)) < 60
    durations = [sweep.duration(seconds) for seconds in (0.4, 59, 60, 3599, 4800)]
    assert durations == ["0 s", "59 s", "1 min", "1 h 0 min", "1 h 20 min"]


def test_a_trial_killed_from_outside_is_a_failure_with_its_signal():
    assert sweep._reason(-signal.SIGKILL, "") == "killed by SIGKILL; did it run out of memory?"
    assert sweep._reason(1, "Traceback\nXlaRuntimeError: RESOURCE_EXHAUSTED: x\n  note") == (
        "XlaRuntimeError: RESOURCE_EXHAUSTED: x"
    )


def test_the_listed_commands_run_and_a_run_that_diverges_saves_nothing(data_dir, tmp_path, monkeypatch, capsys):
    """The one that ends well is the reference's run, so that it is not compiled again."""
    arguments = [f"--config.{key}={value}" for key, value in {**TINY, "run.data_dir": data_dir}.items()]
    command = [sys.executable, "-m", "experiments.sweep", f"--config={ROOT / 'configs' / 'digits.py'}", "--seeds=0"]
    command += [f"--workdir={tmp_path / 'w'}", *arguments, "--config.optimizer.learning_rate=1e30,0.05"]
    monkeypatch.setattr(sys, "argv", [*command[2:], "--list"])
    assert sweep.main() == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 2
    Child(shlex.split(listed[1]), tmp_path / "listed.log").succeed()
    assert Child(command, tmp_path / "log").wait() == 1
    with (tmp_path / "w" / "digits.csv").open() as file:
        diverged, finished = csv.DictReader(file)
    assert diverged["status"].startswith(
        "failed: TrainingError: the state is not finite between steps 1 and 5 (learning rate"
    )
    assert "lower config.optimizer.learning_rate" in diverged["status"]
    assert not [p for p in (tmp_path / "w" / diverged["trial"] / "checkpoints").iterdir() if p.name.isdigit()]
    assert finished["status"] == "finished" and float(finished["test_top1"]) > 0 and finished["seed"] == "0"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.model.squeeze_rato=0.1,0.2", "Did you mean"),
        ("--config.model.squeeze_ratio=0.1,x", "squeeze_ratio.*x"),
        ("--config.model.squeeze_ratio=0.5,2.0", "more than its"),
        ("--config.optimizer.name=sgd,sgdd", "did you mean 'sgd'"),
        ("--config.dataset.name=digits,dgits", "dgits"),
        ("--config.dataset.image_size=(32, 32),(12, 12)", "smallest legal value"),
        ("--config.dataset.test_split=test,tests", "tests"),
        ("--config.train.duration=0 steps", "less than one step"),
        ("--config.train.duration=2 steps", "schedule.warmup is"),
        ("--config.model.squeeze_ratio=0.5,0.5", "two trials have this name"),
        ("--config.seed=1", "use --seeds=1"),
        ("--config.optimizer.momentum=0.5", "varies optimizer.momentum itself"),
        ("--workdirs=x", "unknown argument"),
    ],
)
def test_a_wrong_argument_is_named_before_the_first_trial(argument, message, data_dir, tmp_path):
    base = Sweep("digits", str(ROOT / "configs" / "digits.py"), [{"optimizer.momentum": 0.9}], seeds=[0])
    with pytest.raises(SweepError, match=message):
        made = sweep._with_arguments(base, None, [argument, f"--config.run.data_dir={data_dir}"])
        check(made.trials(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_sweep_in_the_workdir_is_refused(reference, data_dir, tmp_path):
    base = Sweep("digits", str(ROOT / "configs" / "digits.py"), [{}], seeds=[0])
    folder = tmp_path / base.trials()[0].name
    folder.mkdir()
    (folder / "config.json").write_text((reference / "config.json").read_text())
    made = sweep._with_arguments(base, None, [f"--config.run.data_dir={data_dir}"])
    for checked in (check, check_runs):  # before trials and before a report
        with pytest.raises(SweepError, match="model.base_filters: 8 in the workdir"):
            checked(made.trials(), tmp_path)


def test_a_run_without_a_claim_is_running_and_not_claimed(tmp_path):
    with Lock(tmp_path):
        assert status(tmp_path) == "running"
        with claim(tmp_path) as file:
            assert file is None
    with claim(tmp_path) as file:
        assert file is not None and status(tmp_path) == "running"
    assert status(tmp_path) == "stopped" and status(tmp_path / "none") == "not run"


def test_keys_whose_last_parts_are_alike_are_whole_in_the_name():
    point = {"optimizer.name": "sgd", "schedule.name": "step", "train.batch_size": "8"}
    assert Trial("c.py", point, point, 1).name == "optimizer.name=sgd,schedule.name=step,batch_size=8,seed=1"


def test_values_split_at_commas_outside_brackets():
    assert sweep.split_values("(1, 2),(3,),'a,b'") == ["(1, 2)", "(3,)", "'a,b'"]
    base = Sweep("s", "c.py", [{"a.x": 1}, {"a.x": 2}], published={"paper": ["one", "two"]})
    made = sweep._with_arguments(base, "4", ["--config.b.y=5,6", "--config.c=7"])
    assert [trial.name for trial in made.trials()] == [f"x={x},y={y},seed=4" for x in (1, 2) for y in (5, 6)]
    assert made.trials()[0].overrides == {"c": "7", "a.x": "1", "b.y": "5"}
    assert made.published == {"paper": ["one", "one", "two", "two"]}


def study(name):
    return importlib.import_module(f"experiments.{name}").SETTINGS


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_trials_that_differ(name):
    for setting in (setting for setting in study(name).values() if not callable(setting)):
        names = [trial.name for trial in setting.trials()]
        assert len(set(names)) == len(names) == len(setting.points) * len(setting.seeds)
        assert all(len(column) == len(setting.points) for column in setting.published.values())


@pytest.mark.parametrize("name", ["squeeze_ratio", "fraction_3x3"])
def test_the_points_have_the_parameters_of_the_paper(name):
    setting = study(name)["imagenet"]
    for point, published in zip(setting.points, setting.published["paper: parameters"], strict=True):
        values = {key.removeprefix("model."): value for key, value in {**setting.overrides, **point}.items()}
        model = models.create("squeezenet_v1_0", **values)
        assert f"{summarize(model, (224, 224, 3)).parameters:,}" == published


def test_the_compact_networks_are_all_of_the_registry_and_get_their_best_rate(tmp_path, monkeypatch):
    from experiments import compact_networks

    monkeypatch.setattr(compact_networks, "RESULTS", tmp_path)
    assert sorted(compact_networks.QUOTED) == models.list_models()
    tuning, final = (compact_networks.SETTINGS[name] for name in ("cifar10_tuning", "cifar10"))
    rows = [
        {"trial": trial.name, "config": trial.config, **tuning.overrides, **tuning.points[i], "seed": 0}
        | {"status": "finished", "validation_top1": 0.5 + 0.1 * (i % 3 == 1)}
        for i, trial in enumerate(tuning.trials())
    ]
    path = tmp_path / "compact_networks_tuning.csv"

    def write(rows):
        columns = dict.fromkeys(key for row in rows for key in row)
        write_csv(path, [{key: row.get(key, "") for key in columns} for row in rows])

    write(rows[:-1])
    with pytest.raises(SweepError, match="no result of 1 trial.* run the tuning first"):
        final()
    write([*rows[:-1], {**rows[-1], "status": "failed: the loss is NaN", "validation_top1": ""}])
    assert final() and len(final().plots) == 2
    write([*rows[:-3], *({**row, "status": "failed: the loss is NaN"} for row in rows[-3:])])
    with pytest.raises(SweepError, match="no rate of efficientnet_b0 has a finished trial"):
        final()
    write(rows)
    trials = final().trials()
    assert {point["optimizer.learning_rate"] for point in final().points} == {3e-3}
    assert len(trials) == 3 * len(models.list_models()) and not final().overrides
    measured = [
        {"trial": trial.name, "step": 7, "test_top1": 0.5, "sqz_bytes": 5}
        for trial in trials[: len(models.list_models())]
    ]
    write_csv(tmp_path / "compact_networks_costs.csv", measured[1:])
    assert len(final().plots) == 2
    write_csv(tmp_path / "compact_networks_costs.csv", measured)  # of one seed
    assert len(final().plots) == 6
    row = {"trial": trials[0].name, "step": 7, "test_top1": 0.5}
    assert final().derived(row) == {"sqz_bytes": 5.0}
    for other in ({"step": 8}, {"test_top1": 0.6}):  # a shorter run, and one on other images
        assert final().derived({**row, **other}) == {}


def test_the_costs_of_a_trained_network(reference):
    from experiments import compact_costs

    row = compact_costs.measure(reference)
    assert 0 < row["sqz_bytes"] < 0.7 * row["float_bytes"]  # the tiny network has many values per weight
    assert all(row[f"{name}_milliseconds"] > 0 for name in ("jax", "onnx", "onnx_int8"))
    top1 = load(reference).evaluate("test").values["top1"]
    assert abs(row["sqz_top1"] - top1) < 0.05 and abs(row["int8_top1"] - top1) < 0.05


def test_the_costs_of_another_checkpoint_are_measured_again(tmp_path, monkeypatch):
    from experiments import compact_costs

    def run():
        monkeypatch.setattr("sys.argv", ["", f"--workdir={tmp_path}", f"--csv={tmp_path / 'costs.csv'}"])
        compact_costs.main()

    measured = []
    result = {"step": 7, "test": {"top1": 0.5}}
    monkeypatch.setattr(
        compact_costs,
        "measure",
        lambda folder: measured.append(folder.name) or {"trial": folder.name, **compact_costs.checkpoint(folder)},
    )
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    run()
    (tmp_path / "b" / "result.json").write_text(json.dumps({**result, "step": 8}))
    run()
    assert measured == ["a", "b", "b"]
    assert (tmp_path / "costs.csv").read_text().splitlines()[1:] == ["a,7,0.5", "b,8,0.5"]


def test_the_costs_are_calibrated_on_all_classes():
    from experiments import compact_costs

    class Sorted:
        def __len__(self):
            return 1000

        def read(self, i):
            return {"image": np.full((1, 1, 1), i // 100)}

    assert len(np.unique(compact_costs.calibration_images(Sorted()))) == 10


def test_points_that_differ_in_the_plots_x_alone_are_one_line():
    dead_start = study("dead_start")["digits"]
    rows = [{"trial": trial.name, "status": "finished"} for trial in dead_start.trials()]
    rows[0]["status"] = "not run"
    lines = report._lines(dead_start, rows, "optimizer.learning_rate")
    assert {label: len(line) for label, line in lines.items()} == {
        ("False", "True"): 3,
        ("False", "False"): 3,
        ("True", "True"): 3,
        ("True", "False"): 3,
    }
    assert len(report._lines(dead_start, rows, "parameters")) == len(dead_start.points) == 12
    assert [len(trials) for trials in lines["False", "True"]] == [4, 5, 5]
    both = [{"model.name": "a", "train.seed": 1}, {"model.name": "b", "train.ema_decay": 0.5, "train.seed": 1}]
    rows = [{"status": "finished"}] * 2
    assert list(report._lines(Sweep("", "", both, seeds=(0,)), rows, "parameters")) == [("a",), ("b",)]


def test_folds_are_one_row_and_plots_without_a_range_are_left_out():
    points = [{"model.name": name, "dataset.fold": fold} for name in ("a", "b") for fold in (0, 1, 2)]
    published = {"paper": ["x"] * 3 + ["y"] * 3}
    folds = Sweep("folds", "c.py", points, seeds=(0, 1), metric="auc", published=published)
    rows = [
        {"status": "finished", "seed": trial.seed, "auc": 0.5 + 0.1 * fold + 0.05 * (name == "b"), **size, **point}
        for trial, point in zip(folds.trials(), [*points, *points], strict=True)
        for name, fold in [point.values()]
        for size in [{"parameters": 7, "mebibytes": 0.0, "macs": 10**6 * (1 + (name == "b"))}]
    ]
    _, _, first, second = report._table(folds, rows).splitlines()
    assert first == "| a | 7 | 0.00 | 1.0 | 0.6000 ± 0.0894 | 6 |  |  | x |"
    assert second == "| b | 7 | 0.00 | 2.0 | 0.6500 ± 0.0894 | 6 | +0.0500, no p: folds |  | y |"
    assert report._plots(folds, rows) == [("macs", "")]  # not over the parameters, which are equal
    fixed = [{**row, "macs": 1} for row in rows]
    assert report._plots(folds, fixed) == []
    rates = Sweep("rates", "c.py", [{"optimizer.learning_rate": rate} for rate in ("0.1", "0.2")], seeds=(0,))
    rows = [{"status": "finished", "parameters": 7, "macs": 1, **point} for point in rates.points]
    assert report._plots(rates, rows) == [("optimizer.learning_rate", "")]


def test_a_column_that_only_some_trials_have_is_their_mean(tmp_path):
    shared = {"status": "finished", "parameters": 1, "mebibytes": 0.0, "macs": 1}
    points = [{"model.name": name} for name in ("a", "b")]
    sweep = Sweep("s", "", points, seeds=(0, 1), metric="top1", columns=("cost",), plots=[("cost", "")])
    rows = [
        shared | {"trial": f"{point} {seed}", "seed": seed, "top1": 0.5} | ({} if seed else {"cost": 1000.0 + i})
        for seed in sweep.seeds
        for i, point in enumerate(points)
    ]
    assert [line.split("|")[-2].strip() for line in report._table(sweep, rows).splitlines()[2:]] == ["1,000", "1,001"]
    report._plot(sweep, rows, tmp_path)
    assert (tmp_path / "s.png").stat().st_size > 1000


DAMAGED = {"empty": "", "half": '{"parameters": 1, "rea', "other": "[]", "without a key": "{}", "deep": "[" * 100_000}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_of_a_trial_is_named_and_the_others_go_on(text, tmp_path, monkeypatch):
    sweep_ = Sweep("s", "none.py", [{"model.x": x} for x in (0, 1)], seeds=(0,))
    for trial in sweep_.trials():
        folder = tmp_path / trial.name
        folder.mkdir()
        resolved = {"class_names": ["a", "b"], "image_shape": [8, 8, 1]}
        values = {"config": {"train": {"batch_size": 10}}, "resolved": resolved}
        (folder / "config.json").write_text(json.dumps(values))
        made = {"versions": {"jax": "1", "flax": "2"}, "commit": "c", "cpu_cores": 2, "devices": ["cpu"]}
        (folder / "versions.json").write_text(json.dumps(made))
        result = {"step": 5, "parameters": 2**18, "macs": 3, "test": {"top1": 0.5}}
        (folder / "result.json").write_text(json.dumps(result))
        record = {"step": 5, "split": "train", "values": {}, "speed": {"images_per_second": 25.0}}
        (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    broken = tmp_path / "x=1,seed=0"
    (broken / "result.json").write_text(json.dumps({**result, "parameters": None}))
    table = report.write(sweep_, tmp_path, tmp_path / "report")
    assert (
        "| 0 | 262,144 |" in table and f"finished, but result.json, metrics.jsonl or versions.json in {broken}" in table
    )
    (broken / "result.json").write_text(json.dumps(result))
    (broken / "versions.json").write_text(text)
    table = report.write(sweep_, tmp_path, tmp_path / "report")
    assert "| 0 | 262,144 |" in table and f"- x=1,seed=0: finished, but {broken / 'versions.json'} cannot be" in table
    (broken / "result.json").write_text(text)
    assert status(broken) == "stopped"
    (broken / "failure.json").write_text(text)
    assert status(broken).startswith(f"failed: for an unknown reason, because {broken / 'failure.json'} cannot be read")
    report.write(sweep_, tmp_path, tmp_path / "report")
    # A trial without a readable result is run again, and one that failed with --retry.
    started = []
    monkeypatch.setattr(sweep.Runner, "_train", lambda self, trial, folder, file: started.append(trial.name))
    for retry in (False, True):
        for trial in sweep_.trials():
            sweep.Runner(tmp_path, retry=retry).run(trial)
    assert started == ["x=1,seed=0"]


def test_a_report_that_was_cut_is_not_reused(tmp_path):
    """Cut at every byte of its last row: refused, or without the row."""
    trials = Sweep("s", "c.py", [{"model.x": "1"}, {"model.x": "2"}], seeds=(0,)).trials()
    rows = [
        {"trial": trial.name, "config": "c.py", "model.x": trial.point["model.x"], "seed": 0, "status": "finished"}
        | {"test_top1": 0.98666}
        for trial in trials
    ]
    path = write_csv(tmp_path / "s.csv", rows)
    assert [row["test_top1"] for row in report.read_rows(path, trials).values()] == [0.98666] * 2
    whole = path.read_bytes()
    start = whole.index(b'"x=2')
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        if end == start:
            assert list(report.read_rows(path, trials)) == ["x=1,seed=0"]
        else:
            with pytest.raises(SweepError, match="s.csv"):
                report.read_rows(path, trials)
    path.write_bytes(whole[:-2])
    with pytest.raises(SweepError, match=r"s.csv, line 3, has no end, so the file was cut"):
        report.read_rows(path, trials)
    path.write_bytes(whole[:-10] + b"\r\n")
    with pytest.raises(SweepError, match="s.csv, line 3, has 5 cells; expected 6"):
        report.read_rows(path, trials)
    write_csv(path, [*rows, rows[0]])
    with pytest.raises(SweepError, match=r"has 1 trial\(s\) twice"):
        report.read_rows(path, trials)
    for text in ("", "trial,status\n", "a,b\n1,2\n", "\0"):
        path.write_text(text)
        with pytest.raises(SweepError, match="this is not the CSV of a report"):
            report.read_rows(path, trials)


def test_a_run_with_a_damaged_result_is_passed_over_in_a_comparison(reference, tmp_path, capsys, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text((reference / "config.json").read_text())
    (other / "result.json").write_text("")
    monkeypatch.setattr(sys, "argv", ["compare", str(other), str(reference)])
    compare.main()
    found = capsys.readouterr()
    assert f"{other} is skipped: {other / 'result.json'} cannot be read" in found.err
    assert "| 1 | reference | finished |" in found.out


def test_runs_are_compared(reference, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    stored = json.loads((reference / "config.json").read_text())
    stored["config"]["optimizer"]["learning_rate"] = 0.5
    (other / "config.json").write_text(json.dumps(stored))
    (other / "metrics.jsonl").write_text((reference / "metrics.jsonl").read_text().splitlines()[0] + "\n")
    (tmp_path / "ratios" / "x=1,seed=0").mkdir(parents=True)  # a sweep beside runs, with its report
    (tmp_path / "ratios" / "x=1,seed=0" / "config.json").write_text((reference / "config.json").read_text())
    for name in ("ratios/ratios.csv", "notes.txt", "b.png", "c.png", "d.png"):
        (tmp_path / name).touch()
    command = [sys.executable, "-m", "experiments.compare", f"--plot={tmp_path / 'a.png'}", str(reference)]
    text = Child([*command, *map(str, sorted(tmp_path.iterdir()))], tmp_path / "log").succeed()
    assert "skipped, because they are not runs: b.png, c.png, d.png and 1 more\n" in text
    assert "optimizer.learning_rate: 0.05 (1, 3); 0.5 (2)\n" in text and "model.stem" not in text
    assert "| 1 | " in text and "reference | finished | " in text and "test top1 |" in text
    assert "other | not finished | " in text and "ratios/x=1,seed=0 | not finished | 0 |" in text
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert "of a run, or a folder of" in Child([*command[:3], str(tmp_path / "b.png")], tmp_path / "wrong.log").fail()


def test_a_difference_has_a_p_value_where_the_seeds_differ():
    def trials(*values):
        return [{"seed": seed, "test_top1": value} for seed, value in enumerate(values)]

    # t = 0.2 / (0.1414 / sqrt(2)) = 2 with one degree of freedom: p = 1 - 2 atan(2) / pi.
    assert report.difference(trials(0.5, 0.5), trials(0.6, 0.8), "test_top1") == "+0.2000, p = 0.295"
    alike = "no p: all seeds differ alike"
    assert report.difference(trials(0.5, 0.5), trials(1.0, 1.0), "test_top1") == f"+0.5000, {alike}"
    assert report.difference(trials(0.7, 0.8), trials(0.8, 0.9), "test_top1") == f"+0.1000, {alike}"  # but for rounding
    assert report.difference(trials(0.5), trials(0.6), "test_top1") == "+0.1000, no p: one seed"
    assert report.difference(trials(0.5)[:0], trials(1.0), "test_top1") == ""


def test_a_trial_without_the_metric_is_named_and_left_out(tmp_path, monkeypatch):
    sweep = Sweep("s", "none.py", [{"model.x": x} for x in (0, 1)], seeds=(0,))
    size = {"status": "finished", "parameters": 1, "mebibytes": 0.0, "macs": 1, "metric": "test_auc"}
    monkeypatch.setattr(
        report,
        "_row",
        lambda sweep, trial, folder: {
            "trial": trial.name,
            **size,
            **({"test_auc": 0.5} if "0" in trial.name[:3] else {}),
        },
    )
    text = report.write(sweep, tmp_path, tmp_path)
    assert "- x=1,seed=0: finished, but has no test_auc" in text and "| 0 | 1 | 0.00 | 0.0 | 0.5000 | 1 |" in text
