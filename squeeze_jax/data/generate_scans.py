"""Writes generated CT scans with nodules, in LUNA16's layout, to try commands that need scans.

    python -m squeeze_jax.data.generate_scans scans --patients 20
    python -m squeeze_jax.data.generate_scans scans_dicom --patients 20 --dicom

The volumes are in OUTPUT/subset0/ to subset4/; candidates.csv lists nodules (1) and places on vessels (0), nodules.csv
benign and malignant nodules. It needs SimpleITK (the extra `ct`). See squeeze_jax/data/synthetic_nodules.py.
"""

import sys

from squeeze_jax import commands
from squeeze_jax.errors import DataError
from squeeze_jax.files import user_path


def main() -> None:
    """Runs the command."""
    parser = commands.parser(__doc__)
    parser.add_argument("output", type=user_path, help="the folder to write to")
    parser.add_argument("--patients", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dicom", action="store_true", help="write DICOM series instead of .mhd files")
    args = parser.parse_args()
    if args.patients < 1 or args.seed < 0:
        raise DataError("expected --patients of at least 1, and a --seed of zero or more.")
    from squeeze_jax.data import synthetic_nodules

    synthetic_nodules.write(args.output, args.patients, seed=args.seed, dicom=args.dicom)
    print(f"{args.patients} scans, candidates.csv and nodules.csv are in {args.output}")


if __name__ == "__main__":
    sys.exit(commands.run(main))
