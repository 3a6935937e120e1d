"""The config of a run as a config file, `--config stored_config.py:WORKDIR`, which takes overrides like any other."""

from ml_collections import ConfigDict

from squeeze_jax import config as config_lib


def get_config(workdir: str) -> ConfigDict:
    """Returns the config that is stored in a workdir; errors are those of `config.read`."""
    return config_lib.read(workdir)[0]
