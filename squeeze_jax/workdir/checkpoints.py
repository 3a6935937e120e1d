"""Saves checkpoints, and restores them with verification. Only this module uses Orbax.

A checkpoint has two items: `state`, the leaves of the training state, and `info`, JSON with the format version and the
SHA-256 of every leaf, because Orbax does not detect flipped bits. A damaged checkpoint is moved aside, and the previous
one is used.
"""

import contextlib
import hashlib
import json
import logging
import pathlib
import shutil
import sys
import threading
from collections.abc import Iterator
from typing import Any

import absl.logging
import flax.serialization
import flax.traverse_util
import numpy as np
import orbax.checkpoint as ocp

from squeeze_jax.errors import CheckpointError
from squeeze_jax.models.variables import differences
from squeeze_jax.runtime import devices

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
DAMAGED = "damaged_checkpoints"
VERSION = 2  # of the checkpoint format; see `_from_version_1`
# Sums since the last log line. A new metric must not make a checkpoint unreadable, so if the sums differ from the
# template's, they restart from zero.
WINDOW = "window/"

BYTES_PER_LEAF = 2048  # of the files of a checkpoint, beside the values; at most

Leaves = dict[str, Any]  # "params/conv1/kernel" -> array


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Hides Orbax's routine absl log messages."""
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        yield
    finally:
        absl.logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Hides what the threads of Orbax print when a save fails; the error itself reaches the caller.

    After a failure absl stays silent, because threads that are left go on printing until the end of the process.
    """
    hooks, verbosity = (sys.unraisablehook, threading.excepthook), absl.logging.get_verbosity()
    sys.unraisablehook = threading.excepthook = lambda *_: None
    absl.logging.set_verbosity(absl.logging.FATAL)
    try:
        yield
        absl.logging.set_verbosity(verbosity)
    finally:
        sys.unraisablehook, threading.excepthook = hooks


class Checkpoints:
    """The checkpoints of a workdir: the latest ones and the best one.

    Args:
      workdir: the workdir of the run.
      keep: the number of latest checkpoints to keep; the best one is always kept too.
      read_only: do not change anything in the folder; for evaluation and notebooks.

    Raises:
      CheckpointError: `read_only` is set and the workdir has no checkpoints.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int = 1, read_only: bool = False):
        self._workdir = pathlib.Path(workdir).absolute()
        self._root = self._workdir / CHECKPOINTS
        self._read_only = read_only
        if read_only and not self._root.is_dir():
            raise CheckpointError(f"{self._workdir} contains no checkpoints; is it the workdir of a run?")
        self._policy = _LatestAndBest(keep)
        self._manager = self._open()

    @_quietly()
    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self._root,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                enable_async_checkpointing=False,
                cleanup_tmp_directories=not self._read_only,
                read_only=self._read_only,
            ),
            item_handlers={"state": ocp.StandardCheckpointHandler(), "info": ocp.JsonCheckpointHandler()},
        )

    def steps(self) -> list[int]:
        """Returns the steps of the stored checkpoints, in increasing order."""
        return sorted(self._manager.all_steps())

    def delete(self, step: int) -> None:
        """Deletes a checkpoint, for all processes."""
        if devices.is_main_process():
            shutil.rmtree(self._root / str(step))
        devices.wait_for_all("checkpoint deleted")
        self.close()
        self._manager = self._open()

    @_without_tracebacks()
    def save(self, step: int, state: Any, info: dict[str, Any]) -> None:
        """Saves a checkpoint, unless this step is already saved.

        Args:
          step: the step of the state.
          state: a pytree of replicated arrays.
          info: JSON values that the run also depends on; the checkpoint of its "best_step" (or None) is never deleted.

        Raises:
          CheckpointError: the checkpoint could not be written (for example, the disk is full); earlier ones are intact.
        """
        if step in self.steps():
            return
        leaves = _flatten(state)
        self._check_space(step, leaves)
        manifest = {name: _describe(np.asarray(leaf)) for name, leaf in leaves.items()}
        content = {"version": VERSION, "run": info, "leaves": manifest}
        self._policy.best_step = info["best_step"]
        try:
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(flax.traverse_util.unflatten_dict(leaves, sep="/")),
                    info=ocp.args.JsonSave({"content": content, "sha256": _hash_json(content)}),
                ),
            )
            self._manager.wait_until_finished()
        except Exception as error:
            self._discard_unfinished()
            raise self._failed(step, _first_line(error)) from error
        if not saved:
            raise CheckpointError(f"Orbax did not save step {step} in {self._root}, which contains {self.steps()}.")

    def _check_space(self, step: int, leaves: Leaves) -> None:
        """Raises CheckpointError if the disk has no room, of which Orbax would leave half-written files."""
        needed = sum(leaf.nbytes + BYTES_PER_LEAF for leaf in leaves.values())
        disk = shutil.disk_usage(self._root)
        if disk.total and disk.free < needed:  # some network file systems say 0 of 0
            raise self._failed(step, f"it needs up to {needed:,} bytes, and the disk has {disk.free:,}.")

    def _failed(self, step: int, reason: str) -> CheckpointError:
        earlier = ", ".join(map(str, self.steps())) or "none"
        return CheckpointError(
            f"the checkpoint of step {step} could not be written to {self._root}: {reason} If the disk is full, free "
            f"some space, then start the run again. Earlier checkpoints are intact (steps: {earlier})."
        )

    def restore_latest(self, template: Any) -> tuple[Any, dict[str, Any]] | None:
        """Restores the newest intact checkpoint as `(state, info)`; returns None if there is no checkpoint.

        Damaged checkpoints are logged and moved to `damaged_checkpoints/`.

        Args:
          template: a state of the same structure, shapes and dtypes; the restored leaves are NumPy arrays.

        Raises:
          CheckpointError: the checkpoint is of another model, or every checkpoint is damaged.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                leaves, info = self._read(step)
            except _Damage as damage:
                logger.warning("checkpoint %d is damaged and will not be used: %s", step, damage)
                damaged.append(step)
                continue
            self._move_aside(damaged)
            self._policy.best_step = info["best_step"]
            return _unflatten(leaves, template, f"{self._root}/{step}"), info
        if damaged:
            raise CheckpointError(
                f"every checkpoint in {self._root} is damaged (steps {damaged}); restore one from a backup, or start "
                f"in a new workdir."
            )
        return None

    def read(self, checkpoint: str | int = "best") -> tuple[int, Leaves]:
        """Reads a checkpoint and returns its step and leaves.

        If it is damaged, this is logged and the newest intact checkpoint is used instead (for a checkpoint given by its
        step, the newest intact one before it).

        Args:
          checkpoint: "best" (the latest if there is no best one), "latest", or a step.

        Raises:
          CheckpointError: there is no such checkpoint, or none is intact.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self._root} contains no checkpoint yet.")
        newest_first = steps[::-1]
        if checkpoint == "latest":
            candidates = newest_first
        elif checkpoint == "best":
            best = self._recorded_best(newest_first)
            candidates = sorted(newest_first, key=lambda step: step != best)
        elif str(checkpoint).isdigit() and int(checkpoint) in steps:
            candidates = [step for step in newest_first if step <= int(checkpoint)]
        else:
            raise CheckpointError(
                f"{self._root} contains no checkpoint {checkpoint!r}; expected 'best', 'latest' or one of "
                f"{', '.join(map(str, steps))}."
            )
        for step in candidates:
            try:
                return step, self._read(step)[0]
            except _Damage as damage:
                logger.warning("checkpoint %d of %s is damaged, using another one: %s", step, self._root, damage)
        raise CheckpointError(f"no checkpoint in {self._root} is intact (tried steps {candidates}).")

    def _recorded_best(self, newest_first: list[int]) -> int | None:
        for step in newest_first:
            try:
                return self._read_info(step)["run"]["best_step"]
            except _Damage:
                continue
        return None

    def close(self) -> None:
        """Releases Orbax's resources."""
        self._manager.close()

    @_quietly()
    def _read_info(self, step: int) -> dict[str, Any]:
        try:
            info = self._manager.restore(step, args=ocp.args.Composite(info=ocp.args.JsonRestore())).info
            content, recorded = info["content"], info["sha256"]
            found = _hash_json(content)
        except Exception as error:  # Orbax raises errors of many kinds for truncated or missing files
            raise _Damage(_first_line(error)) from error
        if found != recorded:
            raise _Damage("the SHA-256 of its info has changed since it was written")
        if not _is_info(content):
            raise _Damage("its info has other values than a run writes")
        return content

    @_quietly()
    def _read(self, step: int) -> tuple[Leaves, dict[str, Any]]:
        content = self._read_info(step)
        version = content.get("version", 1)
        if version > VERSION:
            raise CheckpointError(
                f"checkpoint {step} of {self._root} has version {version} and was written by a newer squeeze_jax; "
                f"update this one."
            )
        try:
            # Restoring to NumPy arrays does not depend on devices, and keeps float64.
            leaves = content["leaves"].items()
            abstract = {name: np.empty(leaf["shape"], np.dtype(leaf["dtype"])) for name, leaf in leaves}
            tree = flax.traverse_util.unflatten_dict(abstract, sep="/")
            state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(tree))).state
        except Exception as error:
            raise _Damage(_first_line(error)) from error
        leaves = {name: np.asarray(leaf) for name, leaf in _flatten(state).items()}
        for name, expected in content["leaves"].items():
            if name not in leaves or _describe(leaves[name]) != expected:
                raise _Damage(f"the SHA-256 of {name} has changed since it was written")
        return _from_version_1(leaves) if version == 1 else leaves, content["run"]

    def _move_aside(self, steps: list[int]) -> None:
        """Moves checkpoints out of Orbax's folder, because it silently refuses to save a step that it still lists."""
        if not steps or self._read_only:
            return
        if devices.is_main_process():
            for step in steps:
                target = self._workdir / DAMAGED / str(step)
                target.parent.mkdir(exist_ok=True)
                if target.exists():
                    shutil.rmtree(target)
                (self._root / str(step)).rename(target)
        devices.wait_for_all("damaged checkpoints moved")
        self.close()
        self._manager = self._open()

    def _discard_unfinished(self) -> None:
        """A failed save leaves a temporary folder, and a manager that waits for it."""
        try:
            self.close()
        except Exception as error:
            logger.debug("closing after a failed save: %s", error)
        self._manager = self._open()


def _is_info(content: Any) -> bool:
    """Returns whether `content` has the form of what `Checkpoints.save` writes; anybody can compute its SHA-256."""
    if not isinstance(content, dict) or type(content.get("version", 1)) is not int:
        return False
    run, leaves = content.get("run"), content.get("leaves")
    if not isinstance(run, dict) or not isinstance(leaves, dict):
        return False
    if not (run.get("best_step") is None or type(run["best_step"]) is int):
        return False
    if not (run.get("best_value") is None or isinstance(run["best_value"], (int, float))):
        return False
    return {"best_step", "best_value"} <= run.keys() and all(
        isinstance(leaf, dict)
        and isinstance(leaf.get("dtype"), str)
        and isinstance(leaf.get("shape"), list)
        and all(type(side) is int and side >= 0 for side in leaf["shape"])
        for leaf in leaves.values()
    )


class _Damage(Exception):
    pass


class _LatestAndBest(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the latest steps and the best one when another step is saved."""

    def __init__(self, keep: int):
        self.keep = keep
        self.best_step: int | None = None

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        latest = sorted(steps)[-self.keep :]
        return [step in latest or step == self.best_step for step in steps]


def eval_variables(leaves: Leaves) -> dict[str, Any]:
    """Returns the variables for evaluation: the averaged weights if the run averages weights, else the trained ones.

    Args:
      leaves: the leaves of a training state, see `Checkpoints.read`.
    """
    prefix = "ema/" if any(name.startswith("ema/") for name in leaves) else ""
    collections = (f"{prefix}params/", f"{prefix}batch_stats/")
    flat = {name.removeprefix(prefix): leaf for name, leaf in leaves.items() if name.startswith(collections)}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _flatten(state: Any) -> Leaves:
    return flax.traverse_util.flatten_dict(flax.serialization.to_state_dict(state), sep="/")


def _unflatten(leaves: Leaves, template: Any, where: str) -> Any:
    """Returns the leaves in the structure of the template; raises CheckpointError with the differences."""
    wanted = flax.traverse_util.flatten_dict(flax.serialization.to_state_dict(template), keep_empty_nodes=True, sep="/")
    expected = {name: f"{leaf.shape} {leaf.dtype}" for name, leaf in wanted.items() if hasattr(leaf, "shape")}
    if _window_names(leaves) != _window_names(expected):
        logger.warning("%s has other metrics than this version; their sums restart from zero at this step", where)
        fresh = {name: np.zeros(wanted[name].shape, wanted[name].dtype) for name in _window_names(expected)}
        leaves = {name: leaf for name, leaf in leaves.items() if not name.startswith(WINDOW)} | fresh
    found = {name: f"{leaf.shape} {leaf.dtype}" for name, leaf in leaves.items()}
    if expected != found:
        lines = differences(expected, found)
        raise CheckpointError(f"{where} does not fit the model of this config (- expected, + found):\n{lines}")
    tree = flax.traverse_util.unflatten_dict({**wanted, **leaves}, sep="/")
    return flax.serialization.from_state_dict(template, tree)


def _window_names(leaves: Leaves) -> set[str]:
    return {name for name in leaves if name.startswith(WINDOW)}


def _from_version_1(leaves: Leaves) -> Leaves:
    """Converts the leaves of version 1, whose window was flat: steps, norms and sums were not in subtrees."""

    def renamed(name: str) -> str:
        kind = "norms" if name.endswith("_norm") else "sums"
        return f"{WINDOW}{kind}/{name.removeprefix(WINDOW)}"

    moved = {name: renamed(name) for name in _window_names(leaves) - {f"{WINDOW}steps"}}
    return {moved.get(name, name): leaf for name, leaf in leaves.items()}


def _describe(leaf: np.ndarray) -> dict[str, Any]:
    content = np.ascontiguousarray(leaf)
    return {
        "shape": list(leaf.shape),
        "dtype": leaf.dtype.name,
        "sha256": hashlib.sha256(content.view(np.uint8) if content.ndim else content.tobytes()).hexdigest(),
    }


def _hash_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
