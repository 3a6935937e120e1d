"""Whole runs in child processes, as a user starts them: killed, stopped, damaged, evaluated, opened elsewhere."""

import csv
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import ROOT, Child, configure, main_command
from PIL import Image

from squeeze_jax import config as config_lib
from squeeze_jax import load, network
from squeeze_jax.errors import ConfigError, DataError, WorkdirError
from squeeze_jax.training import trainer
from squeeze_jax.workdir.checkpoints import Checkpoints
from squeeze_jax.workdir.records import MetricsWriter, read_metrics

KILLS = int(os.environ.get("SQUEEZE_JAX_KILLS", "2"))  # more of them is a soak


def ending(workdir):
    """What two runs must share to the last bit: the state, and the metrics but for their speed."""
    step, leaves = Checkpoints(workdir, read_only=True).read("latest")
    records = [{key: value for key, value in record.items() if key != "speed"} for record in read_metrics(workdir)]
    return step, {name: leaf.tobytes() for name, leaf in leaves.items()}, records


def last_step(workdir):
    records = read_metrics(workdir)
    return records[-1]["step"] if records else 0


def snapshot(path):
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(path.rglob("*"))}


def stopped_at(step, reference, workdir):
    """The reference's workdir as it was when its checkpoint of this step had been written; a start cuts the metrics."""
    shutil.copytree(reference, workdir)
    for path in (workdir / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)
    return workdir


def test_a_run_leaves_what_the_readme_says(reference):
    names = {path.name for path in reference.iterdir()}
    assert names >= {
        "config.json",
        "versions.json",
        "metrics.jsonl",
        "result.json",
        "log.txt",
        "checkpoints",
        "tensorboard",
        "curves.png",
        "first_batch.png",
    }
    records = read_metrics(reference)
    assert [r["step"] for r in records if r["split"] == "train"] == list(range(5, 41, 5))
    assert [r["step"] for r in records if r["split"] == "validation"] == [20, 40]
    assert [r["split"] for r in records].count("test") == 1 and records[-1]["split"] == "test"
    expected = {"loss", "top1", "top5", "learning_rate", "gradient_norm", "parameter_norm", "update_norm"}
    train = [r for r in records if r["split"] == "train"]
    assert set(train[-1]["values"]) == expected and train[-1]["speed"]["images_per_second"] > 0
    result = json.loads((reference / "result.json").read_text())
    assert result["test"] == records[-1]["values"] and result["step"] == records[-1]["step"]
    (report,) = (reference / "evaluation").iterdir()
    assert report.name == f"test_step_{result['step']}"
    assert {path.name for path in report.iterdir()} >= {"metrics.csv", "confusion.csv", "confusion.png"}
    assert result["validation"]["top1"] == max(r["values"]["top1"] for r in records if r["split"] == "validation")
    assert result["parameters"] > 0 and result["macs"] > 0
    resolved = json.loads((reference / "config.json").read_text())["resolved"]
    assert resolved["image_shape"] == [8, 8, 1] and resolved["dataset_version"] == "1.0.0"
    assert json.loads((reference / "versions.json").read_text())["versions"]["jax"]
    for phrase in ("changed on the command line", "parameters", "images/s", " left", "finished"):
        assert phrase in (reference / "log.txt").read_text()
        assert phrase in reference.with_name("reference.log").read_text()


def test_killed_at_random_moments_and_in_the_middle_of_saves_ends_with_the_same_bits(reference, start, tmp_path):
    workdir = tmp_path / "w"
    rng = random.Random(0)

    def kill_when(condition, delay):
        child = start(workdir)
        held = child.wait_until(condition)
        time.sleep(delay)
        child.kill()
        assert not child.has_survivors()
        return held

    def reached(step):
        return lambda: last_step(workdir) >= step and (workdir / "log.txt").exists()

    def saving():
        return list(workdir.glob("checkpoints/*.orbax-checkpoint-tmp*"))

    in_time = [kill_when(saving, delay) for delay in (0, 0.01)]
    assert any(in_time)
    for _ in range(KILLS):
        kill_when(reached(last_step(workdir) + rng.randrange(10)), delay=rng.random() * 0.3)
    start(workdir).succeed()
    assert ending(workdir) == ending(reference)
    assert not list(workdir.glob("checkpoints/*tmp*"))


def test_a_suspended_run_goes_on_and_sigterm_inside_a_logging_window_saves(reference, start, tmp_path):
    workdir = tmp_path / "w"
    child = start(workdir)
    child.wait_until(lambda: last_step(workdir) >= 5)
    child.process.send_signal(signal.SIGSTOP)
    time.sleep(float(os.environ.get("SQUEEZE_JAX_SUSPEND", "1")))
    suspended = last_step(workdir)
    child.process.send_signal(signal.SIGCONT)
    assert child.wait_until(lambda: last_step(workdir) > suspended)
    child.process.send_signal(signal.SIGTERM)
    text = child.succeed()
    assert "saving, then stopping" in text and "the same command resumes" in text
    stopped = max(Checkpoints(workdir, read_only=True).steps())
    assert suspended < stopped < 40
    start(workdir).succeed()
    assert ending(workdir) == ending(reference)


def test_sigterm_before_and_after_the_training_loop(reference, data_dir, tmp_path, monkeypatch):
    def terminated(*arguments, method=trainer.Recorder.announce):
        os.kill(os.getpid(), signal.SIGTERM)
        return method(*arguments)

    monkeypatch.setattr(trainer.Recorder, "announce", terminated)
    before = trainer.train_and_evaluate(configure(data_dir), tmp_path / "new")
    assert (before.step, before.finished) == (0, False)
    assert not any((tmp_path / "new" / "checkpoints").iterdir()) and not (tmp_path / "new" / "result.json").exists()
    workdir = tmp_path / "w"  # all steps are done: only the test split is measured
    subprocess.run(["cp", "-r", str(reference), str(workdir)], check=True)
    (workdir / "result.json").unlink()
    after = trainer.train_and_evaluate(configure(data_dir), workdir)
    assert after.finished and ending(workdir) == ending(reference)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_stop_after_steps_inside_a_window_and_without_a_config(reference, start, tmp_path):
    workdir = tmp_path / "w"
    assert "stopped at step 13 of 40" in start(workdir, run__stop_after_steps=13).succeed()
    assert Checkpoints(workdir, read_only=True).steps()[-1] == 13
    config = json.loads((workdir / "config.json").read_text())
    config["config"]["run"]["stop_after_steps"] = None
    (workdir / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "squeeze_jax.main", "--workdir", str(workdir)]
    assert "resumed at step 13" in Child(command, tmp_path / "resumed.log").succeed()
    assert ending(workdir) == ending(reference)


def test_a_second_run_in_the_workdir_is_refused_and_a_second_signal_ends_at_once(start, tmp_path):
    workdir = tmp_path / "w"
    options = {"train__duration": "100000 steps", "run__evaluate_every": "100000 steps"}
    child = start(workdir, **options)
    child.wait_until(lambda: last_step(workdir) >= 5)
    text = start(workdir, **options).fail()
    assert f"another run (process {child.process.pid} on " in text and "use another --workdir" in text
    child.process.send_signal(signal.SIGSTOP)  # so that both signals arrive before the run can act on the first
    child.process.send_signal(signal.SIGINT)
    child.process.send_signal(signal.SIGCONT)
    child.wait_until(lambda: "a second signal stops immediately" in child.text())
    child.process.send_signal(signal.SIGINT)
    assert child.wait(30) in (-signal.SIGINT, 0)  # 0 where the save was faster than the second signal


def test_a_finished_run_started_again_changes_nothing(reference, start, tmp_path):
    workdir = tmp_path / "w"
    subprocess.run(["cp", "-r", str(reference), str(workdir)], check=True)
    assert "finished" in start(workdir).succeed()
    assert ending(workdir) == ending(reference)


def test_another_config_in_the_workdir_is_refused(reference, start):
    before = ending(reference)
    text = start(reference, optimizer__learning_rate=0.3, seed=1).fail()
    assert "optimizer.learning_rate: 0.05 in the workdir, 0.3 now" in text and "seed: 0 in the workdir, 1 now" in text
    assert ending(reference) == before


@pytest.mark.parametrize("checkpoint", ["best", "20"])
def test_eval_counts_every_example(reference, tmp_path, checkpoint):
    """300 examples at batch 100 as well as at a batch that leaves a remainder."""
    workdir = tmp_path / "w"
    subprocess.run(["cp", "-r", str(reference), str(workdir)], check=True)
    before = snapshot(workdir / "checkpoints")
    command = [sys.executable, "-m", "squeeze_jax.main", "--workdir", str(workdir), "--mode=eval"]
    text = Child([*command, "--split=validation", f"--checkpoint={checkpoint}"], tmp_path / "eval.log").succeed()
    assert "validation of digits" in text and "300 examples" in text
    assert snapshot(workdir / "checkpoints") == before
    (folder,) = (workdir / "evaluation").glob("validation_*")
    step = int(folder.name.rsplit("_", 1)[1])
    with (folder / "metrics.csv").open() as file:
        row = next(csv.DictReader(file))
    trained = next(r for r in read_metrics(workdir) if r["split"] == "validation" and r["step"] == step)["values"]
    assert float(row["top1"]) == trained["top1"] and float(row["loss"]) == pytest.approx(trained["loss"], rel=1e-6)
    with (folder / "confusion.csv").open() as file:
        confusion = np.array([[int(row[str(k)]) for k in range(10)] for row in csv.DictReader(file)])
    assert confusion.sum() == 300 and np.trace(confusion) == round(trained["top1"] * 300)
    with (folder / "per_class.csv").open() as file:
        assert sum(int(row["correct"]) for row in csv.DictReader(file)) == np.trace(confusion)
    assert (folder / "confusion.png").stat().st_size > 1000


def test_load_in_another_process_without_dataset_or_config(reference, tmp_path, data_dir):
    workdir = tmp_path / "moved"
    subprocess.run(["cp", "-r", str(reference), str(workdir)], check=True)
    before = snapshot(workdir)
    code = f"""
import sys
import jax
import numpy as np
from squeeze_jax import load
run = load({str(workdir)!r})
images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
probabilities = run.predict(images)
assert probabilities.shape == (5, 10) and probabilities.dtype == np.float32
np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
np.testing.assert_allclose(probabilities, run.predict(images.astype(float)), rtol=1e-6)
maps = run.model.apply(run.variables, np.zeros((1, 20, 20, 1)), method="features")
assert "fire9" in maps and run.class_names[3] == "3" and run.config.seed == 0
assert "tensorflow" not in sys.modules
print(run.step)
"""
    env = {"TFDS_DATA_DIR": "/nonexistent", "JAX_NUM_CPU_DEVICES": "4"}  # on one device: the next test
    child = Child([sys.executable, "-c", code], tmp_path / "load.log", env)
    best = max((r["values"]["top1"], -r["step"]) for r in read_metrics(workdir) if r["split"] == "validation")
    assert child.succeed().split()[-1] == str(-best[1])
    assert snapshot(workdir) == before


def test_predict_agrees_with_the_evaluation_and_names_wrong_images(reference, data_dir):
    from squeeze_jax.data.sources import open_dataset

    run = load(reference, "latest")
    data = open_dataset("digits", data_dir).split("validation").batch(np.arange(300))
    accuracy = (run.predict(data["image"]).argmax(1) == data["label"]).mean()
    recorded = [r for r in read_metrics(reference) if r["split"] == "validation"][-1]["values"]
    assert accuracy == pytest.approx(recorded["top1"], abs=1e-9)
    with pytest.raises(ValueError, match=r"expected \(batch, 8, 8, 1\)"):
        run.predict(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="expected 0..255"):
        run.predict(np.full((1, 8, 8, 1), -0.5))
    with pytest.raises(ValueError, match="not finite"):
        run.predict(np.full((1, 8, 8, 1), np.nan))
    with pytest.warns(UserWarning, match="no pixel is above 1"):
        run.predict(np.full((1, 8, 8, 1), 0.5))


def test_training_never_imports_tensorflow(reference):
    package = reference.parent / "packages" / "tensorflow"
    assert [path.name for path in package.iterdir()] == ["__init__.py"]


def test_damage_in_the_newest_checkpoint_is_reported_and_the_run_ends_the_same(reference, start, tmp_path):
    workdir = stopped_at(30, reference, tmp_path / "w")
    newest, before = workdir / "checkpoints" / "30", workdir / "checkpoints" / "20"
    path = max((p for p in (newest / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    subprocess.run(["rm", "-r", str(before / "info")], check=True)
    text = start(workdir).succeed()
    assert (
        "checkpoint 30 is damaged and will not be used" in text
        and "checkpoint 20 is damaged and will not be used" in text
    )
    assert "resumed at step 10" in text
    assert ending(workdir) == ending(reference)


def test_a_full_disk_is_named_and_a_later_start_finishes(reference, start, tmp_path, data_dir):
    workdir = stopped_at(30, reference, tmp_path / "w")
    command = main_command(data_dir, workdir)
    script = f"""
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000,) * 2)  # of the files of a checkpoint some are always larger
sys.argv = {command[2:]!r}
runpy.run_module("squeeze_jax.main", run_name="__main__")
"""
    # Through a pipe, for the limit would cut the log as well.
    shell = f"{shlex.join([sys.executable, '-c', script])} 2>&1 | cat; exit ${{PIPESTATUS[0]}}"
    text = Child(["bash", "-c", shell], tmp_path / "full.log").fail()
    assert "CheckpointError: the checkpoint of step 40 could not be written" in text
    assert "If the disk is full, free some space" in text and "intact (steps: 10, 20, 30)" in text
    assert "Traceback" not in text and len(text.partition("CheckpointError")[2].splitlines()) < 4
    assert load(workdir, "latest").step == 30
    start(workdir).succeed()
    assert ending(workdir) == ending(reference)


NAN_DATASET = """
import numpy as np, sys, tensorflow_datasets as tfds
class Broken(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        features = {"image": tfds.features.Tensor(shape=(20, 20, 1), dtype=np.float32),
                    "label": tfds.features.ClassLabel(num_classes=3)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features),
                                     supervised_keys=("image", "label"))
    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        for i in range(64):
            image = np.full((20, 20, 1), float(i), np.float32)
            image[3, 4] = np.nan if i == 17 else 0
            yield i, {"image": image, "label": i % 3}
Broken(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""


def test_nan_in_the_data_names_the_example(start, tmp_path):
    (tmp_path / "broken.py").write_text(NAN_DATASET)
    Child([sys.executable, str(tmp_path / "broken.py"), str(tmp_path)], tmp_path / "prepare.log").succeed()
    folder = tmp_path / "broken" / "1.0.0"
    options = {"dataset__name": folder, "dataset__validation_split": "", "dataset__test_split": ""}
    text = start(tmp_path / "w", **options).fail()
    assert "DataError: example " in text and "contains NaN or infinite pixels; repair or remove it" in text


def test_a_workdir_that_cannot_be_used_is_named(start, tmp_path, data_dir):
    (tmp_path / "file").touch()
    config = configure(data_dir)
    for folder, message in (
        (tmp_path / "file", "is a file or inside a file; expected a folder, use another --workdir"),
        (tmp_path / "file" / "w", "is a file or inside a file"),
        ("/proc/squeeze_jax", "is not writable"),
    ):
        with pytest.raises(WorkdirError, match=message):
            trainer.train_and_evaluate(config, folder)
    assert "did you mean 'sgd'" in start(tmp_path / "w", optimizer__name="sgdd").fail()
    assert not (tmp_path / "w").exists()
    missing = [sys.executable, "-m", "squeeze_jax.main", "--workdir", str(tmp_path / "nowhere")]
    assert "pass --config for a new one" in Child(missing, tmp_path / "missing.log").fail()


def test_a_dead_run_is_warned_of_and_nothing_is_compiled_twice(data_dir, tmp_path, capfd, monkeypatch):
    """Splits of different sizes, log lines, checkpoints and all later steps use what the first ones compiled."""
    compiled, records = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    write = MetricsWriter.write

    def count(self, step, split, *rest):
        records.append((split, len(compiled)))
        return write(self, step, split, *rest)

    monkeypatch.setattr(MetricsWriter, "write", count)
    dead = {"optimizer.learning_rate": 0.0, "model.head_relu": True, "train.duration": "20 steps"}
    unequal = {"dataset.validation_split": "", "dataset.held_out": 97, "run.evaluate_every": "10 steps"}
    result = trainer.train_and_evaluate(configure(data_dir, **dead, **unequal), tmp_path / "w")
    assert result.finished and result.step == 20
    said = capfd.readouterr().err
    assert "the loss has stayed at chance level (2.303) for 3 log lines" in said
    assert "this run ended at chance level" in said.partition("finished; ")[2], "the last line"
    splits, counts = zip(*records, strict=True)
    assert splits == ("train", "train", "validation", "train", "train", "validation", "test")
    assert len(set(counts[2:])) == 1 and counts[0] > 0


def test_the_summary_is_a_command(data_dir, tmp_path):
    flags = ["--config", str(ROOT / "configs" / "digits.py"), f"--config.run.data_dir={data_dir}"]
    text = Child([sys.executable, "-m", "squeeze_jax.summary", *flags], tmp_path / "summary.log").succeed()
    assert "input 32x32x1" in text and "fire9/expand3x3" in text and "729,418 parameters" in text


def test_early_stopping_auc_and_balanced_classes(data_dir, tmp_path):
    """Nothing improves at a learning rate of zero, so the run ends `patience` after its first evaluation."""
    options = {
        "optimizer.learning_rate": 0.0,
        "schedule.warmup": "0 steps",
        "train.patience": "10 steps",
        "task.class_weights": "balanced",
        "train.ema_decay": 0.0,
        "model.use_batch_norm": False,
        "task.auc": True,
        "evaluation.best_metric": "auc",
        "run.evaluate_every": "5 steps",
        "task.mixup": 0.2,
        "dataset.validation_split": "",
        "dataset.held_out": 97,
    }
    broken = trainer.train_and_evaluate(configure(data_dir, **options, **{"run.stop_after_steps": 7}), tmp_path)
    assert (broken.step, broken.finished) == (7, False) and not (tmp_path / "result.json").exists()
    result = trainer.train_and_evaluate(configure(data_dir, **options), tmp_path)
    assert (result.step, result.finished, result.best_step) == (15, True, 5)
    assert 0 <= result.metrics["test"]["auc"] <= 1 and "sensitivity" not in result.metrics["test"]
    again = trainer.train_and_evaluate(configure(data_dir, **options), tmp_path)
    assert (again.step, again.finished) == (15, True)
    assert again.metrics["test"] == result.metrics["test"]
    records = [r for r in read_metrics(tmp_path) if r["split"] == "validation"]
    assert [r["step"] for r in records] == [5, 10, 15]


def photographs(root):
    """Two classes of 40 bright or dark pictures a split; one training file is cut short."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for label, name in enumerate(("dark", "bright")):
            for i in range(20):
                pixels = rng.integers(0, 100, (24 + i, 30, 3)) + 120 * label
                path = root / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    broken = root / "train" / "dark" / "3.png"
    broken.write_bytes(broken.read_bytes()[:400])
    return broken


def test_a_folder_of_photographs_trains_and_an_unreadable_one_stops_it_or_is_counted(data_dir, tmp_path, capfd):
    broken = photographs(tmp_path / "data")
    options = {
        "dataset.name": str(tmp_path / "data"),
        "dataset.image_size": (),
        "dataset.mean": (127.0,),
        "crop.size": 20,
        "crop.resize": 22,
        "augment.flip": ("height", "width"),
        "train.batch_size": 10,
        "train.duration": "30 steps",
        "model.dropout_rate": 0.0,
        "task.auc": True,
        "task.threshold": "youden",
    }
    with pytest.raises(DataError, match=f"{broken} cannot be read"):
        trainer.train_and_evaluate(configure(data_dir, **options), tmp_path / "stops")
    options["dataset.skip_unreadable"] = True
    result = trainer.train_and_evaluate(configure(data_dir, **options), tmp_path / "skips")
    assert f"replaced by the next example (1 so far): {broken}" in capfd.readouterr().err
    assert read_metrics(tmp_path / "skips")[-3]["speed"]["unreadable_examples"] == 1
    measured = {"loss", "top1", "auc", "sensitivity", "specificity"}
    assert set(result.metrics["validation"]) == set(result.metrics["test"]) == measured | {"threshold", "temperature"}
    assert result.metrics["validation"]["threshold"] == 0.5, "chosen and judged on the same data"

    mirrored = configure(data_dir, **options, **{"task.mirror": ("width",)})
    values = network.evaluate(tmp_path / "skips", config=mirrored).values
    assert set(values) == set(result.metrics["test"]) and values["loss"] != result.metrics["test"]["loss"]
    folders = {folder.name for folder in (tmp_path / "skips" / "evaluation").iterdir()}
    assert folders == {f"test_step_{result.best_step}", f"test_step_{result.best_step}_mirror-width"}
    full = configure(data_dir, **options, **{"task.metrics": "full", "task.calibrate": True})
    evaluation = network.evaluate(tmp_path / "skips", config=full)
    assert evaluation.task.point.temperature != 1 and len(evaluation.values) == 14
    (folder,) = (tmp_path / "skips" / "evaluation").glob("*metrics-full*")
    assert {"scores.csv", "cases.csv", "curves.png", "confusion.png"} <= {path.name for path in folder.iterdir()}
    with pytest.raises(ConfigError, match="chooses a threshold or a temperature on the validation split, but there is"):
        trainer.train_and_evaluate(
            configure(data_dir, **options, **{"dataset.validation_split": ""}), tmp_path / "no_validation"
        )
    mirrored.seed += 1
    with pytest.raises(ConfigError, match=r"seed: 0 in the workdir, 1 now(.|\n)*config.run.\* and config.evaluation"):
        network.evaluate(tmp_path / "skips", config=mirrored)


def test_the_look_at_the_data_is_a_command(tmp_path, data_dir):
    command = [sys.executable, "-m", "squeeze_jax.show_data", "--config", str(ROOT / "configs" / "digits.py")]
    command += ["--output", str(tmp_path / "report"), "--seconds=0.2", f"--config.run.data_dir={data_dir}"]
    text = Child(command, tmp_path / "show.log").succeed()
    assert "mean [77.9], standard deviation [95.9]" in text
    assert "images/s in batches of 64" in text
    rows = list(csv.DictReader((tmp_path / "report" / "counts.csv").open()))
    assert sum(int(row["train"]) for row in rows) == 1197 and len(rows) == 10
    assert (tmp_path / "report" / "before.png").exists() and (tmp_path / "report" / "after.png").exists()
    assert "DataError" in Child([*command, "--config.dataset.name=dgits"], tmp_path / "wrong.log").fail()


def extended(data_dir, workdir, before, after, caplog=None, **overrides):
    """A run that is finished and extended, and a run of the longer duration from the start."""
    config = configure(data_dir, **{"train.duration": before, "schedule.name": "constant", **overrides})
    trainer.train_and_evaluate(config, workdir / "extended")
    stored = config_lib.read(workdir / "extended")[0]
    trainer.train_and_evaluate(stored, workdir / "extended", extend=after)
    config.train.duration = after
    trainer.train_and_evaluate(config, workdir / "whole")
    return workdir / "extended", workdir / "whole"


def test_an_extended_run_has_the_bits_of_a_longer_one(data_dir, tmp_path, compilation_cache):
    """Also if the last step of the shorter run lies between two measurements."""
    overrides = {"run.log_every": "5 steps", "run.evaluate_every": "4 steps", "schedule.warmup": "2 steps"}
    first, second = extended(data_dir, tmp_path, "11 steps", "16 steps", **overrides)
    assert ending(first) == ending(second)
    assert (first / "result.json").read_text() == (second / "result.json").read_text()
    stored = json.loads((first / "config.json").read_text())
    assert stored["config"]["train"]["duration"] == "16 steps"
    assert stored["resolved"]["extended_from"] == ["11 steps"]
    text = (first / "log.txt").read_text()
    assert "extended from 11 steps (11 steps) to 16 steps (16 steps), continuing from step 10; the test split" in text
    assert "and so are the weights and metrics" in text
    config = config_lib.read(first)[0]
    for duration in ("3 steps", "1 %", "long"):  # nothing changes
        with pytest.raises(ConfigError, match=f"--extend={duration}"):
            trainer.train_and_evaluate(config, first, extend=duration)
    assert ending(first) == ending(second)
    trainer.train_and_evaluate(config, first, extend="16 steps")  # the same command again
    assert ending(first) == ending(second)
    assert json.loads((first / "config.json").read_text())["resolved"]["extended_from"] == ["11 steps"]


def test_what_depends_on_the_duration_is_said_when_a_run_is_extended(data_dir, tmp_path, compilation_cache):
    workdir = tmp_path / "w"
    overrides = {"train.duration": "10 steps", "schedule.name": "polynomial", "schedule.warmup": "20 %"}
    trainer.train_and_evaluate(configure(data_dir, **overrides), workdir)
    trainer.train_and_evaluate(config_lib.read(workdir)[0], workdir, extend="15 steps")
    text = (workdir / "log.txt").read_text()
    assert "config.schedule.warmup='20 %' remains 2 steps" in text
    assert "the schedule 'polynomial' depends on the duration: the learning rate was" in text
    (rate,) = [r["values"]["learning_rate"] for r in read_metrics(workdir) if r["step"] == 15 and r["split"] == "train"]
    assert rate == pytest.approx(config_lib.read(workdir)[0].optimizer.learning_rate / 13)


def test_without_a_config_file_overrides_apply_to_the_config_in_the_workdir(reference, tmp_path):
    workdir = shutil.copytree(reference, tmp_path / "w")
    command = [sys.executable, "-m", "squeeze_jax.main", "--workdir", str(workdir)]
    flags = ["--mode=eval", "--split=validation", "--config.task.auc=True"]
    assert "auc" in Child([*command, *flags], tmp_path / "eval.log").succeed()
    before = snapshot(workdir / "checkpoints")
    for flag, message in [
        ("--config.train.duration=50 steps", '--extend "50 steps" and no --config'),
        ("--config.run.log_evry=3", 'Did you mean "log_every"'),
        ("--extend=3 steps", "expected a longer duration"),
    ]:
        assert message in Child([*command, flag], tmp_path / "refused.log").fail()
    assert snapshot(workdir / "checkpoints") == before
    (tmp_path / "new").mkdir()
    command[-1] = str(tmp_path / "new")
    assert "pass --config for a new one" in Child(command, tmp_path / "new.log").fail()
