"""The registry of tasks. A new task is a class that implements `task.Task`; add it with `register`."""

from squeeze_jax.errors import ConfigError
from squeeze_jax.tasks.classification import Classification
from squeeze_jax.tasks.task import Likelihood, Task

__all__ = ["Classification", "Likelihood", "Task", "named", "register"]

_TASKS: dict[str, type[Task]] = {}


def register(name: str, task: type[Task]) -> None:
    """Registers a task under a name for `config.task.name`; its OPTIONS become the keys of `config.task`.

    Raises:
      ConfigError: the name is already used by another task.
    """
    # A config file that registers its task may be read more than once.
    known = _TASKS.get(name, task)
    if (known.__module__, known.__qualname__) != (task.__module__, task.__qualname__):
        raise ConfigError(f"another task is already registered as {name!r}; use another name.")
    _TASKS[name] = task


def named(name: str) -> type[Task]:
    """Returns the task class with this name.

    Raises:
      ConfigError: the task is not registered.
    """
    if name not in _TASKS:
        raise ConfigError(
            f"config.task.name={name!r} is unknown; expected one of {', '.join(_TASKS)}. If it is your own task, pass "
            f"the config file that registers it with --config."
        )
    return _TASKS[name]


register("classification", Classification)
