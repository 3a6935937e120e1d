"""Launches an experiment: `python -m squeeze_jax.main --config configs/digits.py --workdir runs/digits`.

Run the same command again to go on with a run that was stopped. `--mode=eval` evaluates a checkpoint.
"""

from squeeze_jax.memory import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()  # before what follows is imported

import pathlib
import sys

import absl.logging
import jax
from absl import app, flags
from ml_collections import config_flags

from squeeze_jax import compilation_cache, evaluation, parallel, trainer, workdir, writers
from squeeze_jax import config as config_lib
from squeeze_jax.checkpoints import CheckpointError
from squeeze_jax.data.sources import DataError
from squeeze_jax.pretrained import WeightError

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, e.g. configs/digits.py; a workdir keeps its own.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or evaluate a checkpoint.")
SPLIT = flags.DEFINE_enum("split", "test", config_lib.SPLITS, "What --mode=eval evaluates.")
WEIGHTS = flags.DEFINE_string("weights", None, "A weight file that --mode=eval evaluates instead of the workdir's run.")
DATASET = flags.DEFINE_string("dataset", None, "What --mode=eval evaluates on, if not on the run's own dataset.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "What --mode=eval opens: best, latest or a step.")
COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0, for a run of several processes."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "This process, from 0.")

ERRORS = (
    config_lib.ConfigError,
    DataError,
    CheckpointError,
    WeightError,
    trainer.TrainingError,
    workdir.WorkdirError,
    ValueError,
)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        return _run()
    except ERRORS as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _run() -> int:
    source = WEIGHTS.value or WORKDIR.value
    config = CONFIG.value
    if WEIGHTS.value and (config is not None or MODE.value != "eval"):
        raise config_lib.ConfigError("--weights is for --mode=eval and brings its own config; leave --config out.")
    if config is None and not WEIGHTS.value:
        config, _ = config_lib.read(pathlib.Path(WORKDIR.value))
    if config is not None:
        config_lib.validate(config)
        jax.config.update("jax_enable_x64", config.model.dtype == "float64")
    compilation_cache.enable()
    if COORDINATOR.value:
        parallel.join_hosts(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    else:
        parallel.prepare_cpu_devices(config.run.num_devices or 1 if config else 1)
    if MODE.value == "eval":
        with writers.logging_to(None):
            evaluation.evaluate(
                source,
                split=SPLIT.value,
                checkpoint=CHECKPOINT.value,
                config=config,
                dataset_name=DATASET.value,
                output=WORKDIR.value,
            )
    else:
        changed = config_flags.get_override_values(flags.FLAGS["config"]) if CONFIG.value else {}
        trainer.train_and_evaluate(config, WORKDIR.value, changed)
    return 0


if __name__ == "__main__":
    app.run(main)
