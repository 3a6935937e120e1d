"""Trains an experiment, from the start or from its last checkpoint, and evaluates it."""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from squeeze_jax import config as config_lib
from squeeze_jax import console
from squeeze_jax.data import pipeline
from squeeze_jax.data.identity import Identity
from squeeze_jax.data.splits import UNREADABLE
from squeeze_jax.errors import ConfigError, DataError, TrainingError
from squeeze_jax.experiment import Experiment, build, stored_splits
from squeeze_jax.files import user_path
from squeeze_jax.runtime.devices import DeviceMesh, any_process, compile_once, is_main_process, wait_for_all
from squeeze_jax.runtime.signals import StopRequest
from squeeze_jax.tasks.task import Batch, Values
from squeeze_jax.training.evaluation import Evaluator
from squeeze_jax.training.extending import extended, rewind
from squeeze_jax.training.fine_tuning import start_from, with_weights
from squeeze_jax.training.health import Health
from squeeze_jax.training.profiler import Profiler
from squeeze_jax.training.pruning import PruningState
from squeeze_jax.training.recorder import Recorder, window_means
from squeeze_jax.training.state import empty_window
from squeeze_jax.training.stopwatch import Stopwatch
from squeeze_jax.workdir import folder as folder_lib
from squeeze_jax.workdir.checkpoints import Checkpoints, eval_variables

logger = logging.getLogger(__name__)

FIRST_BATCH = 32  # number of examples that are drawn


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of `train_and_evaluate`.

    Attributes:
      step: the last step.
      finished: whether the run is complete; if not, the same call resumes it.
      best_step: the step of the best checkpoint on the validation split; None without a validation split.
      metrics: the last metrics of each split.
    """

    step: int
    finished: bool
    best_step: int | None
    metrics: dict[str, Values]


def train_and_evaluate(
    config: ConfigDict,
    folder: str | pathlib.Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    extend: str | None = None,
) -> Result:
    """Trains an experiment in a workdir, and evaluates the best checkpoint on the test split.

    If the workdir contains a stopped run, it is resumed; the final result is bitwise the same as without the stop.

    Args:
      config: the config of the experiment, with overrides applied.
      folder: the workdir.
      overrides: the values that were overridden on the command line; for the log only.
      extend: a longer duration of the run in the workdir, whose config is `config`; see `extending.extended`.

    Raises:
      ConfigError, ModelError, DataError, WorkdirError, CheckpointError, TrainingError: the message says what is wrong
        and how to fix it.
    """
    _check_float64(config)
    if config.sharing.bits and not config.init_from:
        raise ConfigError("config.sharing.bits needs trained weights to share: set config.init_from.")
    with console.doing("opening the dataset"):
        config = with_weights(config, folder)
        experiment = build(config)  # fails before the folder is changed
    before = experiment
    if extend:
        config = extended(config, extend, len(experiment.splits["train"]))
        experiment = build(config, before.dataset)
    if not (user_path(folder) / config_lib.CONFIG_FILE).exists():  # a run of an earlier version may be resumed
        experiment.dataset.check_learnable(stored_splits(experiment.dataset, config, "train"))
    mesh = DeviceMesh.create(config.run.backend, config.run.num_devices)
    mesh.check_batch_size("train.batch_size", config.train.batch_size, config.train.micro_batches)
    folder = folder_lib.create(folder)
    if not is_main_process():
        with StopRequest() as stop:
            return _train(experiment, before, mesh, folder, stop)
    with folder_lib.Lock(folder), console.logging_to(folder), StopRequest() as stop:
        for key, value in (overrides or {}).items():
            logger.info("changed on the command line: config.%s=%r", key, value)
        return _train(experiment, before, mesh, folder, stop)


def _train(
    experiment: Experiment, before: Experiment, mesh: DeviceMesh, folder: pathlib.Path, stop: StopRequest
) -> Result:
    config = experiment.config
    task, plan, splits = experiment.task, experiment.plan, experiment.splits
    checkpoints = Checkpoints(folder, keep=config.run.keep_checkpoints)
    identity = _identity(experiment)
    former = _check_same_run(before, identity, folder) if checkpoints.steps() else []
    schedule = jax.jit(experiment.schedule)
    seed = mesh.replicate(np.int32(config.seed))
    with console.doing("tracing the network"):
        traced = compile_once(experiment.initial_state, out_shardings=mesh.replicated).trace(seed)

    if experiment.plan.total > before.plan.total:
        rewind(before, experiment, checkpoints, folder)
        former.append(before.config.train.duration)
    _write_config(experiment, former, identity, folder)

    # The initial state, or the state of the last checkpoint.
    restored = checkpoints.restore_latest(traced.out_info)
    if restored is None:
        best = {"best_step": None, "best_value": None}
        with console.doing("compiling the initial state"):
            state = traced.lower().compile()(seed)
        if config.init_from:
            state = start_from(
                state,
                experiment.model,
                experiment.optimizer,
                config.init_from,
                new_head=config.init_new_head,
                sharing=config.sharing,
            )
            state = mesh.replicate(state)
    else:
        state, best = mesh.replicate(restored[0]), restored[1]
    step = first_step = int(state.step)
    new_window = jax.device_get(empty_window(experiment.sums))

    train_step = mesh.compile_train_step(experiment.train_step(mesh.axis_name))
    measured = [len(split) for name, split in splits.items() if name != "train"]
    evaluator = Evaluator(experiment.model, task, config, mesh, largest=max(measured, default=1))
    last_step = min(plan.total, config.run.stop_after_steps or plan.total)

    recorder = Recorder(experiment, folder, first_step)
    recorder.announce(mesh)
    stopwatch = Stopwatch(first_step)
    health = Health(first_step, task.chance_loss)
    profiler = Profiler(config.run.profile_steps if is_main_process() else (), folder / "profile")

    def learning_rate(step: int) -> float:
        """Returns the learning rate of the update that led to this step."""
        return float(schedule(step - 1))

    def out_of_patience(step: int) -> bool:
        """Returns whether the best value on the validation split is too long ago.

        It can only become true at an evaluation, which also saves a checkpoint, so a resumed run decides the same.
        """
        if not plan.patience or best["best_step"] is None or step % plan.evaluate_every:
            return False
        return step - best["best_step"] >= plan.patience

    # The training loop.
    batches = mesh.prefetch(
        pipeline.train_batches(
            splits["train"],
            batch_size=config.train.batch_size,
            seed=config.seed,
            first_step=first_step,
            balanced=config.train.sampling == "balanced",
            num_threads=config.run.num_threads,
            num_workers=config.run.num_workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
    )
    stopping = stop.requested and jax.process_count() == 1
    with recorder, profiler:
        while step < last_step and not out_of_patience(step) and not stopping:
            profiler.before(step)
            batch, batch_on_devices = next(batches)
            recorder.count_unreadable(batch.pop(UNREADABLE, ()))
            state = train_step(state, batch_on_devices, seed)
            step += 1
            if step == first_step + 1:
                jax.block_until_ready(state)
                logger.info("first step after %.1f s, including compilation", stopwatch.seconds)
                if step == 1 and is_main_process():
                    recorder.first_batch(_augmented(experiment, batch))
                stopwatch.restart(step)
            recorder.advance(step, stopwatch.seconds_per_step(step))

            logs, evaluates = step % plan.log_every == 0, step % plan.evaluate_every == 0
            if logs or step == plan.total:
                window = jax.device_get(state.window)
                health.check_finite(window, step, learning_rate(step))
                values = window_means(window, task) | {"learning_rate": learning_rate(step)}
                if isinstance(state.opt_state, PruningState):
                    values["density"] = state.opt_state.density()
                recorder.training(step, values, stopwatch.seconds, stopwatch.seconds_per_step(step))
                health.warn_if_stuck(values["loss"])
                state = state.replace(window=mesh.replicate(new_window))
                stopwatch.restart(step)
            if (evaluates or step == plan.total) and "validation" in splits:
                with stopwatch.paused(state):
                    health.check_finite(state, step, learning_rate(step))  # metrics of NaN are errors without a fix
                    values = evaluator.measure(splits["validation"], state.eval_variables()).values
                recorder.write(step, "validation", values)
                if step >= plan.first_candidate:
                    best = _better(experiment, best, step, values)
            # Several processes can only agree to stop where all of them wait for the same step.
            stopping = stop.requested if jax.process_count() == 1 else logs and any_process(stop.requested)
            if evaluates or step % plan.checkpoint_every == 0 or step == last_step or stopping:
                with stopwatch.paused(state):
                    health.check_finite(state, step, learning_rate(step))
                    checkpoints.save(step, state, best)

    # The test split is evaluated once, at the end, with the weights that were best on the validation split. The report
    # is about it, or about the validation split if there is no test split.
    finished = step == plan.total or out_of_patience(step)
    reported = next((name for name in ("test", "validation") if name in splits), None)
    if finished and reported:
        chosen, leaves = checkpoints.read("best")
        fit_on = splits["validation"] if task.fits_on_validation and reported == "test" else None
        with console.doing(f"evaluating the {reported} split"):
            evaluation = evaluator.measure(splits[reported], mesh.replicate(eval_variables(leaves)), fit_on=fit_on)
        if reported == "test":
            recorder.write(chosen, "test", evaluation.values)
        recorder.report(chosen, reported, evaluation)
    checkpoints.close()
    recorder.close(step, finished, best)
    if finished:
        health.warn_at_end(recorder.last_values)
    wait_for_all("end of the run")
    return Result(step, finished, best["best_step"], recorder.last_values)


def _check_float64(config: ConfigDict) -> None:
    if config.model.dtype == "float64" and not jax.config.jax_enable_x64:
        raise ConfigError(
            "config.model.dtype='float64' needs jax.config.update('jax_enable_x64', True) before JAX is first used; "
            "`python -m squeeze_jax.main` does this automatically."
        )


def _identity(experiment: Experiment) -> Identity:
    """Returns what tells the dataset, in the splits that the experiment uses, from a changed one."""
    dataset, config = experiment.dataset, experiment.config
    used = (split for name in experiment.splits for split in stored_splits(dataset, config, name))
    return dataset.identity(dict.fromkeys(used))


def _check_same_run(experiment: Experiment, identity: Identity, folder: pathlib.Path) -> list[str]:
    """Checks that a run that is resumed has the same config and dataset, and returns its former durations.

    Raises:
      ConfigError: the config differs.
      DataError: the dataset differs; the message says in what.
    """
    config = experiment.config
    stored, resolved = config_lib.read(folder)
    before = Identity.read(folder)
    if before is None:
        logger.warning(
            "%s was begun by an earlier version, which did not record its dataset: whether other files are used now "
            "cannot be told. docs/data.md says which files of a folder count.",
            folder,
        )
    changes = _changes(resolved, before, experiment, identity)
    if before and not changes and all(split.digest for split in before.splits.values()):
        stored.dataset.name = config.dataset.name  # the same data may lie elsewhere
    config_lib.check_same_experiment(stored, config, folder)
    if changes:
        raise DataError(
            f"{experiment.dataset.name} is not what the run in {folder} was trained on: {changes}. Restore it, or use "
            f"another --workdir."
        )
    former = resolved.get("extended_from")
    return former if isinstance(former, list) else []


def _write_config(experiment: Experiment, former: list[str], identity: Identity, folder: pathlib.Path) -> None:
    """Writes config.json, dataset.json and versions.json, which a later start compares.

    A run that was extended has its former durations in config.json, as "extended_from".
    """
    if is_main_process():
        dataset = experiment.dataset
        resolved = {
            "class_names": dataset.class_names,
            "num_classes": dataset.num_classes,
            "image_shape": dataset.image_shape,
            "dataset_version": dataset.version,
            **({"extended_from": former} if former else {}),
            **({"preparation": dict(dataset.preparation)} if dataset.preparation else {}),
        }
        identity.write(folder)
        config_lib.save(folder, experiment.config, resolved)
        folder_lib.write_versions(folder)
    wait_for_all("config written")


def _changes(resolved: Mapping[str, Any], before: Identity | None, experiment: Experiment, now: Identity) -> str:
    """Returns how a dataset differs from that of a run, in words; "" if it does not.

    Args:
      resolved: what config.json says of the run's dataset.
      before: the identity of the run's dataset; None if an earlier version made the workdir.
      experiment: the experiment with the dataset as it is now.
      now: its identity.
    """
    dataset = experiment.dataset
    if resolved["dataset_version"] != dataset.version:
        return f"it was version {resolved['dataset_version']}, and is version {dataset.version} now"
    before = before or Identity(tuple(resolved["class_names"]), {})
    changes = before.changes(now, now.splits)
    if tuple(resolved["image_shape"]) != dataset.image_shape:
        shapes = f"images of {tuple(resolved['image_shape'])} then, {dataset.image_shape} now"
        changes = f"{changes}; {shapes}" if changes else shapes
    return changes


def _augmented(experiment: Experiment, batch: Batch) -> Batch:
    """Returns the first examples of a batch, augmented as in training, with pixels in 0..255."""

    def augment(batch: Batch, seed: int) -> Batch:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), np.arange(len(batch["image"])))
        return experiment.task.augment(batch, keys)

    count = min(FIRST_BATCH, len(batch["image"])) // 2 * 2  # even, because mixup pairs examples
    shown = {name: values[:count] for name, values in batch.items()}
    return jax.device_get(compile_once(augment)(shown, experiment.config.seed))


def _better(experiment: Experiment, best: dict[str, Any], step: int, values: Values) -> dict[str, Any]:
    metric = experiment.config.evaluation.best_metric
    if metric not in values:
        raise TrainingError(
            f"config.evaluation.best_metric={metric!r} cannot be computed on this validation split (see the log), so "
            f"it selects no checkpoint; use another metric or another split."
        )
    sign = 1 if experiment.task.higher_is_better[metric] else -1
    if best["best_value"] is None or sign * values[metric] > sign * best["best_value"]:
        return {"best_step": step, "best_value": values[metric]}
    return best
