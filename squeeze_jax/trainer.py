"""Trains one experiment, from nothing or from where it was stopped, and measures it."""

import contextlib
import dataclasses
import logging
import math
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from squeeze_jax import config as config_lib
from squeeze_jax import metrics, run, workdir, writers
from squeeze_jax.checkpoints import Checkpoints, eval_variables
from squeeze_jax.config import BEST_METRICS, SPLITS, ConfigError, duration_in_steps, parse_class_weights
from squeeze_jax.data import pipeline
from squeeze_jax.data.sources import Dataset, Split
from squeeze_jax.evaluation import Evaluator
from squeeze_jax.fine_tuning import start_from
from squeeze_jax.optimizers import make_optimizer, make_schedule
from squeeze_jax.parallel import Parallel, any_process, compile_once, is_main_process, wait_for_all
from squeeze_jax.state import TrainState, all_finite, create_state, empty_window
from squeeze_jax.steps import make_train_step
from squeeze_jax.stopping import StopRequest
from squeeze_jax.summary import Summary, summarize

logger = logging.getLogger(__name__)

# A run whose loss stays this close to ln(classes) for so many log lines has not left its dead start.
STUCK_TOLERANCE = 0.01
STUCK_LOG_LINES = 3
SHOWN = ("loss", "top1", "top5", "auc", "sensitivity", "specificity")  # in log lines


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says where and what to try."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a call of `train_and_evaluate` ended.

    Attributes:
      step: the last one.
      finished: whether the run is complete; if not, the same call goes on with it.
      best_step: of the best checkpoint on the validation split; None without one.
      metrics: the last values of each split.
    """

    step: int
    finished: bool
    best_step: int | None
    metrics: dict[str, metrics.Values]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The durations of a config in steps; an epoch need not be a whole number of them."""

    epoch: float
    total: int
    warmup: int
    patience: int
    log_every: int
    evaluate_every: int
    checkpoint_every: int

    @classmethod
    def of(cls, config: ConfigDict, num_examples: int) -> "Plan":
        def steps(duration: str) -> int:
            return duration_in_steps(duration, config.train.batch_size, num_examples)

        total = steps(config.train.duration)
        if total < 1:
            raise ConfigError(f"config.train.duration={config.train.duration!r} is less than one step.")
        return cls(
            epoch=num_examples / config.train.batch_size,
            total=total,
            warmup=steps(config.schedule.warmup),
            patience=steps(config.train.patience),
            log_every=max(1, steps(config.run.log_every)),
            evaluate_every=max(1, steps(config.run.evaluate_every)),
            checkpoint_every=max(1, steps(config.run.checkpoint_every)),
        )


def train_and_evaluate(
    config: ConfigDict, folder: str | pathlib.Path, overrides: Mapping[str, Any] | None = None
) -> Result:
    """Trains `config` in a workdir; a run that was stopped there goes on, and ends with the bits of an unbroken one.

    Args:
      config: the experiment, overrides applied.
      folder: the workdir.
      overrides: what the command line changed in the config file; for the log only.

    Raises:
      ConfigError, DataError, WorkdirError, CheckpointError, TrainingError: each names what was wrong and the mend.
    """
    config_lib.validate(config)
    _check_float64(config)
    folder = workdir.create(folder)
    if not is_main_process():
        return _train(config, folder)
    with workdir.Lock(folder), writers.logging_to(folder) as console:
        for key, value in (overrides or {}).items():
            logger.info("changed on the command line: config.%s=%r", key, value)
        try:
            return _train(config, folder, console)
        except Exception as error:
            logger.error("%s: %s", type(error).__name__, error)
            raise


def _train(config: ConfigDict, folder: pathlib.Path, console: Any = None) -> Result:
    # The parts of the run.
    spread = Parallel.create(config.run.backend, config.run.num_devices)
    spread.check_batch_size("train.batch_size", config.train.batch_size, config.train.micro_batches)
    dataset = run.dataset_of(config)
    train_split, validation_split, test_split = (run.split_of(dataset, config, split) for split in SPLITS)
    if train_split is None:
        raise ConfigError("config.dataset.train_split is empty.")
    plan = Plan.of(config, len(train_split))
    model = run.model_of(config, dataset.num_classes)
    preprocessing = run.preprocessing_of(config)
    input_shape = preprocessing.input_shape(dataset.image_shape)
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, plan.total, plan.warmup)
    optimizer = make_optimizer(config.optimizer, schedule)

    # The initial state, or the one that was saved.
    checkpoints = Checkpoints(folder, keep=config.run.keep_checkpoints)
    _settle_config(config, folder, dataset, has_checkpoint=bool(checkpoints.steps()))
    summary = summarize(model, input_shape)

    def init(seed: jax.Array) -> TrainState:
        return create_state(model, optimizer, input_shape, seed, use_ema=config.train.ema_decay > 0)

    seed = spread.replicate(np.int32(config.seed))
    traced = compile_once(init, out_shardings=spread.replicated).trace(seed)
    restored = checkpoints.restore_latest(traced.out_info)
    if restored is None:
        state, best = traced.lower().compile()(seed), {"best_step": None, "best_value": None}
        if config.init_from:
            state, network = start_from(state, config.init_from, new_head=config.init_new_head)
            state = spread.replicate(state)
            _warn_of_other_pixels(config, network.config)
    else:
        state, best = spread.replicate(restored[0]), restored[1]
    step = first_step = int(state.step)

    train_step = spread.compile_train_step(
        make_train_step(
            model,
            optimizer,
            preprocessing.train,
            micro_batches=config.train.micro_batches,
            label_smoothing=config.train.label_smoothing,
            mixup_alpha=config.augment.mixup,
            class_weights=_class_weights(config, train_split),
            ema_decay=config.train.ema_decay,
            axis_name=spread.axis_name,
        )
    )
    measured = [len(split) for split in (validation_split, test_split) if split is not None]
    evaluator = Evaluator(model, config, spread, largest=max(measured, default=1))
    last_step = min(plan.total, config.run.stop_after_steps or plan.total)
    recorder = _Recorder(config, folder, first_step, plan, dataset, schedule, console)
    recorder.announce(spread, summary, train_split, validation_split)

    def save() -> None:
        if not all_finite(state):
            raise TrainingError(recorder.not_finite(step))
        checkpoints.save(step, state, best)

    def out_of_patience(step: int) -> bool:
        """Whether the best value on the validation split is too long ago. It can only turn true with an evaluation,
        which saves a checkpoint, so a restart agrees."""
        if not plan.patience or best["best_step"] is None or step % plan.evaluate_every:
            return False
        return step - best["best_step"] >= plan.patience

    # The loop.
    batches = spread.prefetch(
        pipeline.train_batches(
            train_split,
            batch_size=config.train.batch_size,
            seed=config.seed,
            first_step=first_step,
            num_threads=config.run.num_threads,
            num_workers=config.run.num_workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
    )
    with StopRequest() as stop, recorder:
        while step < last_step and not out_of_patience(step):
            recorder.profile(step)
            batch, batch_on_devices = next(batches)
            recorder.count_unreadable(batch.get("unreadable", ()))
            state = train_step(state, batch_on_devices, seed)
            step += 1
            if step == first_step + 1:
                recorder.first_step_done(state, batch, preprocessing)
            recorder.advance(step)

            logs, evaluates = step % plan.log_every == 0, step % plan.evaluate_every == 0
            if logs or step == plan.total:
                recorder.log_window(step, jax.device_get(state.window))
                state = state.replace(window=spread.replicate(empty_window()))
            if (evaluates or step == plan.total) and validation_split is not None:
                with recorder.paused(state):
                    _, values = evaluator.measure(validation_split, state.eval_variables())
                recorder.write(step, "validation", values)
                best = _better(config, best, step, values)
            # Several processes can only agree where all of them wait for the step.
            stopping = stop.requested if jax.process_count() == 1 else logs and any_process(stop.requested)
            if evaluates or step % plan.checkpoint_every == 0 or step == last_step or stopping:
                with recorder.paused(state):
                    save()
            if stopping:
                break

    # The end: the test split is read once, with the weights that the validation split chose.
    finished = step == plan.total or out_of_patience(step)
    if finished and test_split is not None:
        chosen, leaves = checkpoints.read("best")
        _, values = evaluator.measure(test_split, spread.replicate(eval_variables(leaves)))
        recorder.write(chosen, "test", values)
    checkpoints.close()
    recorder.close(step, finished, best, summary)
    wait_for_all("end of the run")
    return Result(step, finished, best["best_step"], recorder.last_values)


def _check_float64(config: ConfigDict) -> None:
    if config.model.dtype == "float64" and not jax.config.jax_enable_x64:
        raise ConfigError(
            "config.model.dtype='float64' needs jax.config.update('jax_enable_x64', True) before JAX is first used; "
            "`python -m squeeze_jax.main` does it."
        )


def _warn_of_other_pixels(config: ConfigDict, theirs: ConfigDict) -> None:
    """The weights of config.init_from were trained on pixels of one mean and scale."""
    for key in ("dataset.mean", "dataset.std"):
        ours, wanted = config_lib.lookup(config, key), config_lib.lookup(theirs, key)
        if tuple(ours) != tuple(wanted):
            logger.warning("config.%s=%s, but the weights of config.init_from were trained with %s", key, ours, wanted)


def _settle_config(config: ConfigDict, folder: pathlib.Path, dataset: Dataset, *, has_checkpoint: bool) -> None:
    """A run that goes on must be the one that began; then config.json says what this start uses."""
    if has_checkpoint:
        stored, resolved = config_lib.read(folder)
        config_lib.check_same_experiment(stored, config, folder)
        if resolved["dataset_version"] != dataset.version:
            raise ConfigError(
                f"{folder} was trained on {dataset.name} {resolved['dataset_version']}, but {dataset.version} is here."
            )
    if is_main_process():
        config_lib.save(
            folder,
            config,
            {
                "class_names": dataset.class_names,
                "num_classes": dataset.num_classes,
                "image_shape": dataset.image_shape,
                "dataset_version": dataset.version,
            },
        )
        workdir.write_versions(folder)
    wait_for_all("config written")


def _class_weights(config: ConfigDict, train_split: Split) -> tuple[float, ...]:
    """Factors on the loss of each class; empty for none. Balanced ones have a mean of 1 over the training examples."""
    weights = parse_class_weights(config.train.class_weights)
    if weights == "none":
        return ()
    if weights == "balanced":
        counts = np.bincount(train_split.labels(), minlength=train_split.num_classes)
        if not counts.all():
            raise ConfigError(f"config.train.class_weights='balanced', but {train_split.name} lacks a class: {counts}.")
        return tuple((counts.sum() / (len(counts) * counts)).tolist())
    if len(weights) != train_split.num_classes:
        raise ConfigError(
            f"config.train.class_weights has {len(weights)} factors, but the dataset has {train_split.num_classes} "
            f"classes."
        )
    return weights


def _better(config: ConfigDict, best: dict[str, Any], step: int, values: metrics.Values) -> dict[str, Any]:
    value = values[config.evaluation.best_metric]
    sign = 1 if BEST_METRICS[config.evaluation.best_metric] else -1
    if best["best_value"] is None or sign * value > sign * best["best_value"]:
        return {"best_step": step, "best_value": value}
    return best


class _Recorder:
    """What a person sees of a run: log lines, metrics, the bar, speed, pictures. Only the main process writes."""

    def __init__(self, config, folder, first_step, plan, dataset, schedule, console):
        self._config = config
        self._folder = folder
        self._plan = plan
        self._dataset = dataset
        self._schedule = jax.jit(schedule)
        self._first_step = first_step
        self._writes = is_main_process()
        self._writer = writers.MetricsWriter(folder, first_step) if self._writes else None
        self._bar = writers.ProgressBar(console, first_step, plan.total) if console else None
        self._begin = self._timer = time.perf_counter()
        self._timed_from = first_step
        self._window_start = first_step
        self._stuck_lines = 0
        self._profiling = False
        self._unreadable: set[str] = set()
        self.last_values: dict[str, metrics.Values] = {}

    def __enter__(self) -> "_Recorder":
        if self._bar:
            self._bar.__enter__()
        return self

    def __exit__(self, *error) -> None:
        if self._writer and error[0]:
            self._writer.close()
        if self._profiling:
            jax.profiler.stop_trace()
        if self._bar:
            self._bar.__exit__(*error)

    def announce(self, spread, summary, train_split, validation_split) -> None:
        config, plan = self._config, self._plan
        device = spread.mesh.devices.flat[0]
        logger.info("workdir %s", self._folder)
        logger.info(
            "%d %s device(s) (%s), %d process(es), %s",
            spread.num_devices,
            device.platform,
            device.device_kind,
            jax.process_count(),
            spread.backend,
        )
        logger.info(
            "dataset %s %s: %d classes, images %s, %d training examples%s",
            self._dataset.name,
            self._dataset.version,
            self._dataset.num_classes,
            "x".join(map(str, self._dataset.image_shape)),
            len(train_split),
            "" if validation_split else ", no validation split",
        )
        logger.info("model %s at %s: %s", config.model.name, "x".join(map(str, summary.input_shape)), summary.totals())
        logger.info(
            "%d steps of %d examples (%s); log every %d, evaluate every %d, checkpoint every %d steps",
            plan.total,
            config.train.batch_size,
            config.train.duration,
            plan.log_every,
            plan.evaluate_every,
            plan.checkpoint_every,
        )
        if self._first_step:
            logger.info("resumed at step %d", self._first_step)

    def first_step_done(self, state, batch, preprocessing) -> None:
        """Compilation ends here; speed is measured from here on."""
        jax.block_until_ready(state)
        logger.info("first step after %.1f s, compilation included", time.perf_counter() - self._begin)
        if self._writes and self._first_step == 0:
            positions = np.arange(min(32, len(batch["label"])))

            def augment(images: jax.Array, seed: int) -> jax.Array:
                keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), positions)
                return preprocessing.augment(images, keys)

            images = compile_once(augment)(batch["image"][positions], self._config.seed)
            writers.draw_batch(
                self._folder / "first_batch.png", np.asarray(images), batch["label"], self._dataset.class_names
            )
        self._restart_timer(self._first_step + 1)

    def advance(self, step: int) -> None:
        if self._bar:
            self._bar.update(step)

    @contextlib.contextmanager
    def paused(self, state) -> Iterator[None]:
        """A context whose time does not count as training; the steps under way before it do."""
        jax.block_until_ready(state)
        start = time.perf_counter()
        yield
        self._timer += time.perf_counter() - start

    def count_unreadable(self, rows: list[tuple[int, str]]) -> None:
        """Names each example that was replaced because it could not be used, once."""
        for name in {name for _, name in rows} - self._unreadable:
            self._unreadable.add(name)
            logger.warning("replaced by the next example (%d so far): %s", len(self._unreadable), name)

    def log_window(self, step: int, window: dict[str, np.ndarray]) -> None:
        """Writes the means since the last line; stops a run that diverged, warns of one that is stuck."""
        sums = [value for value in window.values() if np.issubdtype(value.dtype, np.inexact)]
        if not all(np.isfinite(value) for value in sums):
            raise TrainingError(self.not_finite(step))
        values = metrics.window_means(window, self._dataset.num_classes) | {"learning_rate": self._learning_rate(step)}
        speed = {"seconds": time.perf_counter() - self._begin}
        if self._unreadable:
            speed["unreadable_examples"] = len(self._unreadable)
        steps = step - self._timed_from
        elapsed = time.perf_counter() - self._timer
        eta = ""
        if steps > 0:
            speed["images_per_second"] = steps * self._config.train.batch_size / elapsed
            left = (self._plan.total - step) * elapsed / steps
            eta = f", {speed['images_per_second']:.0f} images/s, ETA {_clock(left)}"
        self.write(step, "train", values, speed, eta)
        self._warn_if_stuck(values)
        self._restart_timer(step)
        self._window_start = step

    def write(self, step: int, split: str, values: metrics.Values, speed=None, suffix: str = "") -> None:
        self.last_values[split] = values
        if not self._writes:
            return
        self._writer.write(step, split, values, speed)
        shown = {name: values[name] for name in SHOWN if name in values}
        text = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
        epoch = step / self._plan.epoch
        logger.info("step %d/%d, epoch %.2f, %s: %s%s", step, self._plan.total, epoch, split, text, suffix)
        if self._bar and split == "train":
            self._bar.update(step, f"epoch {epoch:.2f}, {text}{suffix}")

    def not_finite(self, step: int) -> str:
        return (
            f"the state is not finite between steps {self._window_start + 1} and {step} (learning rate "
            f"{self._learning_rate(step):g}). The last checkpoint is intact. Try a lower "
            f"config.optimizer.learning_rate, a config.schedule.warmup or config.optimizer.gradient_clip, or "
            f"config.model.use_batch_norm=True."
        )

    def profile(self, step: int) -> None:
        """Starts and ends the trace that config.run.profile_steps asks for."""
        if not self._config.run.profile_steps or not self._writes:
            return
        first, last = self._config.run.profile_steps
        if first <= step < last and not self._profiling:
            jax.profiler.start_trace(str(self._folder / "profile"))
            self._profiling = True
        elif step >= last and self._profiling:
            jax.profiler.stop_trace()
            self._profiling = False
            logger.info("the profile of steps %d to %d is in %s", first, last, self._folder / "profile")

    def close(self, step: int, finished: bool, best: dict[str, Any], summary: Summary) -> None:
        if not self._writes:
            return
        self._writer.close()
        writers.draw_curves(self._folder)
        if finished:
            size = {"parameters": summary.parameters, "macs": summary.macs}
            writers.write_result(self._folder, best["best_step"], size)
        if best["best_step"] is not None:
            name = self._config.evaluation.best_metric
            logger.info("best validation %s %.4f at step %d", name, best["best_value"], best["best_step"])
        if finished:
            logger.info(
                "finished; result.json, metrics.jsonl, curves.png, checkpoints and TensorBoard events are in %s",
                self._folder,
            )
        else:
            logger.info("stopped at step %d of %d; the same command goes on", step, self._plan.total)

    def _learning_rate(self, step: int) -> float:
        """Of the update that led to this step."""
        return float(self._schedule(step - 1))

    def _restart_timer(self, step: int) -> None:
        self._timer, self._timed_from = time.perf_counter(), step

    def _warn_if_stuck(self, values: metrics.Values) -> None:
        chance = math.log(self._dataset.num_classes)
        self._stuck_lines = self._stuck_lines + 1 if abs(values["loss"] - chance) < STUCK_TOLERANCE * chance else 0
        if self._stuck_lines == STUCK_LOG_LINES:
            logger.warning(
                "the loss has stayed at ln(%d) = %.3f for %d log lines: the network may be dead, as SqueezeNet without "
                "batch norm can be from its start. See 'A run that does not learn' in the README.",
                self._dataset.num_classes,
                chance,
                STUCK_LOG_LINES,
            )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
