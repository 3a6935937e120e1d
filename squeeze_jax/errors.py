"""The errors of this project. Commands print them as a single line; any other exception keeps its traceback."""


class SqueezeJaxError(Exception):
    """An error that the user can fix; the message says what is wrong, what was expected and how to fix it."""


class ConfigError(SqueezeJaxError, ValueError):
    """An invalid config."""


class ModelError(SqueezeJaxError, ValueError):
    """An invalid attribute of a network, or an input that it does not accept."""


class DataError(SqueezeJaxError, ValueError):
    """An unusable dataset or example."""


class MetricError(SqueezeJaxError, ValueError):
    """A metric that is not defined for these labels, or ids of cases and patients that contradict each other."""


class WeightError(SqueezeJaxError, ValueError):
    """An unusable weight file."""


class ExportError(SqueezeJaxError, ValueError):
    """A network that cannot be exported, or a missing package for the exported file."""


class InputError(SqueezeJaxError, ValueError):
    """An invalid argument of a command, or an image that a trained network does not accept."""


class FileError(SqueezeJaxError, OSError):
    """A file that cannot be written, for example because the disk is full."""


class WorkdirError(SqueezeJaxError, RuntimeError):
    """A folder that cannot be used as a workdir."""


class CheckpointError(SqueezeJaxError, RuntimeError):
    """A checkpoint that cannot be written, found or read."""


class TrainingError(SqueezeJaxError, RuntimeError):
    """A run that cannot continue."""


def shown(text: str, most: int = 60) -> str:
    """Returns a text from outside, such as a name in a file, for a message: short, without control characters."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= most else f"{text[:most]}..."
