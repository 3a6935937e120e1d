"""`load`: a trained network from wherever it lies."""

import pathlib

from squeeze_jax import pretrained, run


def load(source: str | pathlib.Path, checkpoint: str | int = "best") -> run.Run:
    """Opens a network from the workdir of a run or from a weight file; writes nothing there.

    Args:
      source: the workdir of a run of `python -m squeeze_jax.main`, or a file that `squeeze_jax.pretrained.read` knows.
      checkpoint: of a workdir: "best" (on the validation split; the latest where none was tracked), "latest" or a step.

    Raises:
      ConfigError: a folder without a config.
      CheckpointError: no such checkpoint, or none intact.
      WeightError: a weight file that cannot be used.
    """
    source = pathlib.Path(source)
    return run.load(source, checkpoint) if source.is_dir() else pretrained.read(source)
