"""Checkpoints: the only file that knows Orbax. Saving and verified restoring.

A step holds two items: `state`, the leaves of the training state, and `info`, JSON with the SHA-256 of every leaf,
for Orbax restores flipped bits without a word. A damaged step is moved aside and the one before it is used.
"""

import hashlib
import json
import logging
import pathlib
import shutil
from typing import Any

import flax.serialization
import flax.traverse_util
import numpy as np
import orbax.checkpoint as ocp

from squeeze_jax import parallel
from squeeze_jax.leaves import differences

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
DAMAGED = "damaged_checkpoints"

Leaves = dict[str, Any]  # "params/conv1/kernel" -> array


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, found or read; the message says what is there and how to go on."""


class Checkpoints:
    """The checkpoints of a workdir: the latest ones and the best.

    Args:
      workdir: of the run.
      keep: how many of the latest steps stay; the best stays besides.
      read_only: nothing in the folder is changed; for evaluation and notebooks.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int = 1, read_only: bool = False):
        self._workdir = pathlib.Path(workdir).absolute()
        self._root = self._workdir / CHECKPOINTS
        self._read_only = read_only
        if read_only and not self._root.is_dir():
            raise CheckpointError(f"{self._workdir} holds no checkpoints; is it the workdir of a run?")
        self._policy = _LatestAndBest(keep)
        self._manager = self._open()

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
        """The steps that are there, rising."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, info: dict[str, Any]) -> None:
        """Writes a step, unless it is there.

        Args:
          step: of the state.
          state: a pytree of replicated arrays.
          info: what else the course of the run depends on, as JSON; its "best_step" (or None) is kept for good.

        Raises:
          CheckpointError: it could not be written (a full disk, say); earlier steps are intact.
        """
        if step in self.steps():
            return
        leaves = _flatten(state)
        manifest = {name: _describe(np.asarray(leaf)) for name, leaf in leaves.items()}
        content = {"run": info, "leaves": manifest}
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
            earlier = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self._root}: {_first_line(error)} If the disk "
                f"is full, make room; then start the run again. Earlier checkpoints are intact (steps: {earlier})."
            ) from error
        if not saved:
            raise CheckpointError(f"Orbax did not save step {step} in {self._root}, which holds {self.steps()}.")

    def restore_latest(self, template: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest intact step as `(state, info)`, or None where there is no checkpoint.

        Damaged steps are moved to `damaged_checkpoints/` and reported.

        Args:
          template: a state of the same structure, shapes and dtypes; the restored leaves are NumPy arrays.

        Raises:
          CheckpointError: the checkpoint is of another model, or every step is damaged.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                leaves, info = self._read(step)
            except _Damage as damage:
                logger.warning("checkpoint %d is damaged and is not used: %s", step, damage)
                damaged.append(step)
                continue
            self._move_aside(damaged)
            self._policy.best_step = info["best_step"]
            return _unflatten(leaves, template, f"{self._root}/{step}"), info
        if damaged:
            raise CheckpointError(
                f"every checkpoint in {self._root} is damaged (steps {damaged}); restore one from a copy, or start in "
                f"a new workdir."
            )
        return None

    def read(self, checkpoint: str | int = "best") -> tuple[int, Leaves]:
        """The step and the leaves of "best" (latest where none was tracked), "latest", or a step.

        A damaged one is reported, and the newest intact one (before it, where it was asked for by its step) is used.

        Raises:
          CheckpointError: no such checkpoint, or none that is intact.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self._root} holds no checkpoint yet.")
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
                f"{self._root} holds no checkpoint {checkpoint!r}; expected 'best', 'latest' or one of "
                f"{', '.join(map(str, steps))}."
            )
        for step in candidates:
            try:
                return step, self._read(step)[0]
            except _Damage as damage:
                logger.warning("checkpoint %d of %s is damaged, another is used: %s", step, self._root, damage)
        raise CheckpointError(f"no checkpoint in {self._root} is intact (tried steps {candidates}).")

    def _recorded_best(self, newest_first: list[int]) -> int | None:
        for step in newest_first:
            try:
                return self._read_info(step)["run"]["best_step"]
            except _Damage:
                continue
        return None

    def close(self) -> None:
        self._manager.close()

    def _read_info(self, step: int) -> dict[str, Any]:
        try:
            info = self._manager.restore(step, args=ocp.args.Composite(info=ocp.args.JsonRestore())).info
            content, recorded = info["content"], info["sha256"]
        except Exception as error:  # Orbax raises many kinds for a truncated or missing file
            raise _Damage(_first_line(error)) from error
        if _hash_json(content) != recorded:
            raise _Damage("its info has another SHA-256 than when it was written")
        return content

    def _read(self, step: int) -> tuple[Leaves, dict[str, Any]]:
        content = self._read_info(step)
        abstract = {
            # Restored as NumPy arrays: no devices to agree on, and float64 stays what it is.
            name: np.empty(leaf["shape"], np.dtype(leaf["dtype"]))
            for name, leaf in content["leaves"].items()
        }
        tree = flax.traverse_util.unflatten_dict(abstract, sep="/")
        try:
            state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(tree))).state
        except Exception as error:
            raise _Damage(_first_line(error)) from error
        leaves = {name: np.asarray(leaf) for name, leaf in _flatten(state).items()}
        for name, expected in content["leaves"].items():
            if name not in leaves or _describe(leaves[name]) != expected:
                raise _Damage(f"{name} has another SHA-256 than when it was written")
        return leaves, content["run"]

    def _move_aside(self, steps: list[int]) -> None:
        """Out of Orbax's sight: it silently refuses to save a step that it still lists."""
        if not steps or self._read_only:
            return
        if parallel.is_main_process():
            for step in steps:
                target = self._workdir / DAMAGED / str(step)
                target.parent.mkdir(exist_ok=True)
                if target.exists():
                    shutil.rmtree(target)
                (self._root / str(step)).rename(target)
        parallel.wait_for_all("damaged checkpoints moved")
        self.close()
        self._manager = self._open()

    def _discard_unfinished(self) -> None:
        """A failed save leaves a temporary folder, and a manager that waits for it."""
        try:
            self.close()
        except Exception as error:
            logger.debug("closing after a failed save: %s", error)
        self._manager = self._open()


class _Damage(Exception):
    pass


class _LatestAndBest(ocp.checkpoint_managers.PreservationPolicy):
    """Which steps stay when another one is saved."""

    def __init__(self, keep: int):
        self.keep = keep
        self.best_step: int | None = None

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        latest = sorted(steps)[-self.keep :]
        return [step in latest or step == self.best_step for step in steps]


def eval_variables(leaves: Leaves) -> dict[str, Any]:
    """What `model.apply` evaluates: the averaged weights where the run averages, else the trained ones."""
    prefix = "ema/" if any(name.startswith("ema/") for name in leaves) else ""
    collections = (f"{prefix}params/", f"{prefix}batch_stats/")
    flat = {name.removeprefix(prefix): leaf for name, leaf in leaves.items() if name.startswith(collections)}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _flatten(state: Any) -> Leaves:
    return flax.traverse_util.flatten_dict(flax.serialization.to_state_dict(state), sep="/")


def _unflatten(leaves: Leaves, template: Any, where: str) -> Any:
    """Leaves in the structure of the template, or a CheckpointError that lists the differences."""
    wanted = flax.traverse_util.flatten_dict(flax.serialization.to_state_dict(template), keep_empty_nodes=True, sep="/")
    expected = {name: f"{leaf.shape} {leaf.dtype}" for name, leaf in wanted.items() if hasattr(leaf, "shape")}
    found = {name: f"{leaf.shape} {leaf.dtype}" for name, leaf in leaves.items()}
    if expected != found:
        lines = differences(expected, found)
        raise CheckpointError(f"{where} does not fit the model of this config (- expected, + found):\n{lines}")
    tree = flax.traverse_util.unflatten_dict({**wanted, **leaves}, sep="/")
    return flax.serialization.from_state_dict(template, tree)


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
