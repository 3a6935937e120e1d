"""Runs an experiment: `python -m squeeze_jax.main --config configs/digits.py --workdir runs/digits`.

Run the same command again to resume a stopped run. `--mode=eval` evaluates a checkpoint.
"""

from squeeze_jax.runtime.memory import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()  # before the imports below

from absl import flags
from ml_collections import config_flags

from squeeze_jax import commands, console
from squeeze_jax.data import SPLITS
from squeeze_jax.errors import ConfigError

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, e.g. configs/digits.py; default: the config stored in the workdir."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or evaluate a checkpoint.")
SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "Split for --mode=eval.")
WEIGHTS = flags.DEFINE_string("weights", None, "Weight file for --mode=eval, instead of the run in the workdir.")
DATASET = flags.DEFINE_string("dataset", None, "Dataset for --mode=eval; default: the run's own dataset.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "Checkpoint for --mode=eval: best, latest or a step.")
EXTEND = flags.DEFINE_string("extend", None, 'Continue the run in the workdir to a longer duration in all: "6 epochs".')
COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0, for a run with several processes."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes of the run.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, starting at 0.")


def main() -> None:
    """Runs the command."""
    config = CONFIG.value
    if WEIGHTS.value and (config is not None or MODE.value != "eval"):
        raise ConfigError(
            "--weights works with --mode=eval only, and the weights contain their own config; leave --config out."
        )
    if config is None and not WEIGHTS.value:
        raise ConfigError(
            f"{WORKDIR.value} holds no run that could be continued; pass --config for a new one, such as --config "
            f"configs/digits.py."
        )
    if EXTEND.value and (MODE.value != "train" or not commands.is_stored(flags.FLAGS["config"])):
        raise ConfigError("--extend continues the run in the workdir with its config; leave --config and --mode out.")
    hosts = (COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    if None in hosts and any(value is not None for value in hosts):
        raise ConfigError("a run of several processes needs --coordinator_address, --num_processes and --process_id.")
    with console.doing("importing JAX"):
        from squeeze_jax import network
        from squeeze_jax.runtime import compilation_cache, devices
        from squeeze_jax.training import trainer
        from squeeze_jax.validation import validate
    if config is not None:
        validate(config)
    compilation_cache.enable()
    if COORDINATOR.value:
        devices.join_hosts(*hosts)
    else:
        devices.prepare_cpu_devices(config.run.num_devices or 1 if config else 1)
    if MODE.value == "eval":
        with console.logging_to(None):
            network.evaluate(
                WEIGHTS.value or WORKDIR.value,
                split=SPLIT.value,
                checkpoint=CHECKPOINT.value,
                config=config,
                dataset=DATASET.value,
                output=WORKDIR.value,
            )
    else:
        changed = config_flags.get_override_values(flags.FLAGS["config"]) if CONFIG.value else {}
        trainer.train_and_evaluate(config, WORKDIR.value, changed, extend=EXTEND.value)


if __name__ == "__main__":
    commands.run_with_flags(main)
