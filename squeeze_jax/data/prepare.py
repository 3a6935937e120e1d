"""Downloads and prepares a dataset: `python -m squeeze_jax.data.prepare NAME`. The only place that needs TensorFlow.

It is stored once, as array_record, which gives the training process random access without TensorFlow.
"""

import argparse
import fcntl
import os
import pathlib
import sys


def prepare(name: str, data_dir: str | None = None) -> pathlib.Path:
    """Prepares a dataset of this project or of TFDS, and returns its folder; one that is there stays as it is.

    Several processes may prepare at once: the others wait for the first.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow_datasets as tfds

    from squeeze_jax.data.builders import BUILDERS, builder_class

    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folder = pathlib.Path(data_dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name.replace('/', '_').replace(':', '_')}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if name in BUILDERS:
            builder = builder_class(name)(data_dir=folder, file_format="array_record")
        else:
            builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a dataset of this project or of TFDS")
    parser.add_argument("--data_dir", help="default: $TFDS_DATA_DIR, else ~/tensorflow_datasets")
    args = parser.parse_args()
    print(prepare(args.name, args.data_dir))
    return 0


if __name__ == "__main__":
    sys.exit(main())
