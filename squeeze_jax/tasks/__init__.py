"""The registry of tasks. A new task is a class that implements `task.Task`; add it with `register`."""

from squeeze_jax.extensions import Registry
from squeeze_jax.tasks.classification import Classification
from squeeze_jax.tasks.task import Likelihood, Task

__all__ = ["Classification", "Likelihood", "Task", "named", "register"]

TASKS: Registry[type[Task]] = Registry("task")


def register(name: str, task: type[Task]) -> None:
    """Registers a task under a name for `config.task.name`; its OPTIONS become the keys of `config.task`.

    Raises:
      ConfigError: the name is already used by another task.
    """
    TASKS.add(name, task, task.__qualname__)


def named(name: str) -> type[Task]:
    """Returns the task class with this name.

    Raises:
      ConfigError: the task is not registered.
    """
    return TASKS[name]


register("classification", Classification)
