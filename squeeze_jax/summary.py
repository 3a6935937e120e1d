"""Prints a table of a network's layers: `python -m squeeze_jax.summary --config configs/digits.py`."""

from absl import flags
from ml_collections import config_flags

from squeeze_jax import commands, console


def main() -> None:
    """Runs the command."""
    with console.doing("building the network"):
        from squeeze_jax.experiment import build
        from squeeze_jax.training.fine_tuning import with_weights

        experiment = build(with_weights(flags.FLAGS.config))
    print(experiment.config.model.name)
    print(experiment.summary.table())


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/digits.py.")
    flags.mark_flag_as_required("config")
    commands.run_with_flags(main)
