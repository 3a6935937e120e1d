"""Patches of new CT scans, cut exactly as those that a network was trained on."""

import dataclasses
import io
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from squeeze_jax.data import decoding, dicom
from squeeze_jax.data.candidates import COORDINATES, Candidate, read_candidates
from squeeze_jax.data.scans import Assume, Cut, check_inside, grid
from squeeze_jax.data.volumes import UNDIVIDED, Stored, find_scans, is_volume, read_scan, scan_name
from squeeze_jax.errors import DataError, InputError
from squeeze_jax.experiment import make_crop
from squeeze_jax.files import user_path


@dataclasses.dataclass(frozen=True)
class Patch:
    """A place in a scan.

    Attributes:
      scan: the series instance UID.
      center: world coordinates in mm; None if the scan could not be read.
      image: what the network takes, uint8 (*spatial, channels); None if there is an error.
      error: why there is no image.
    """

    scan: str
    center: tuple[float, float, float] | None
    image: np.ndarray | None
    error: str = ""

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of a list of candidates that say where the patch lies."""
        place = self.center or ("",) * 3
        return {"seriesuid": self.scan, **dict(zip(COORDINATES, place, strict=True))}

    @property
    def title(self) -> str:
        """The scan and the place as a text."""
        return f"{self.scan} at ({', '.join(f'{value:.1f}' for value in self.center or ())}) mm"


def choose_cut(network: Any, given: Cut | None) -> Cut:
    """Returns how the patches of a network's training data were cut.

    Args:
      network: a `Network`, or an exported file.
      given: the cut that the user names; None to use the one that the workdir records.

    Raises:
      InputError: nothing is recorded or given, the user names another one than is recorded, or the network takes
        images of another shape.
    """
    recorded = getattr(network, "preparation", {}).get("cut")
    if recorded is not None:
        try:
            cut = Cut.from_values(recorded)
        except DataError as error:
            raise InputError(f"{network.workdir / 'config.json'}: {error} Restore the file.") from error
        if given not in (None, cut):
            raise InputError(f"the network was trained on patches {cut}, not {given}; leave these options out.")
    elif given is None:
        raise InputError(
            "the network does not record how its patches were cut (it is a file, or the run is of an earlier version); "
            "name what its dataset was prepared with: --cut, --size, --spacing and --window, at least --cut."
        )
    else:
        cut = given
    made = as_image(np.zeros(cut.shape, np.uint8), network).shape
    if made != network.image_shape:
        raise InputError(
            f"the network takes images of shape {network.image_shape}, but patches {cut} give {made}; name the --cut "
            f"and the --size that its dataset was prepared with."
        )
    return cut


def as_image(patch: np.ndarray, network: Any) -> np.ndarray:
    """Returns what evaluation would make of a stored patch, uint8: slices are stored as pictures, and may be cropped.

    Args:
      patch: uint8 (*spatial, channels).
      network: the network.
    """
    if patch.ndim != 3:
        return patch
    stored = io.BytesIO()
    Image.fromarray(patch[..., 0] if patch.shape[-1] == 1 else patch).save(stored, "PNG")
    crop, channels = make_crop(network.config), network.image_shape[-1]
    try:
        if crop is None:
            return decoding.decode(stored.getvalue(), channels)
        return crop.for_evaluation(stored.getvalue(), channels)[0]
    except decoding.Unsuitable as error:
        raise InputError(f"patches do not suit the network: {error}") from error


def find_volumes(arguments: Sequence[str | os.PathLike]) -> tuple[dict[str, Stored], list[str]]:
    """Finds scans in files and folders.

    Args:
      arguments: .mhd, .mha and NIfTI files, a file of a DICOM series, and folders of such files.

    Returns:
      The scans by series instance UID, and remarks about files that were left out.

    Raises:
      DataError: two scans have one UID, or a folder cannot be read as scans.
      InputError: an argument is not a scan or holds none.
    """
    found: dict[str, Stored] = {}
    remarks = []
    for argument in arguments:
        path = user_path(argument)
        if path.is_dir():
            below = find_scans(path)
            here, remarks = below.scans, remarks + below.remarks()
        elif is_volume(path):
            here = {scan_name(path): Stored((str(path),), UNDIVIDED)}
        elif path.is_file():
            here = _series_of(path)
        else:
            raise InputError(f"{argument} does not exist; expected a scan, or a folder of scans.")
        if not here:
            raise InputError(f"{argument} has no scan; expected .mhd, .mha, NIfTI or DICOM files.")
        for uid, stored in here.items():
            if found.setdefault(uid, stored).files != stored.files:
                raise DataError(f"{found[uid].files[0]} and {stored.files[0]} are both the scan {uid}; name one.")
    return found, remarks


def _series_of(path: pathlib.Path) -> Mapping[str, Stored]:
    """Returns the series that a DICOM file belongs to, with its other files beside it."""
    try:
        uid = dicom.series_uid(str(path))
    except DataError as error:
        raise InputError(f"{path} is not a scan: {error}; expected .mhd, .mha, NIfTI or DICOM.") from error
    return {uid: find_scans(path.parent).scans[uid]}


def listed_candidates(path: pathlib.Path, scans: Mapping[str, Stored]) -> tuple[dict[str, list[Candidate]], str]:
    """Returns the candidates of each scan, and a remark about rows of other scans.

    Args:
      path: the list, see `candidates.read_candidates`; the column class may be missing.
      scans: the scans.

    Raises:
      DataError: the list cannot be read, or has no candidate of a scan.
    """
    listed = read_candidates(path, classified=False)
    by_scan: dict[str, list[Candidate]] = {uid: [] for uid in scans}
    for candidate in listed:
        by_scan.get(candidate.scan, []).append(candidate)
    if empty := [uid for uid, candidates in by_scan.items() if not candidates]:
        names = list(dict.fromkeys(candidate.scan for candidate in listed))
        raise DataError(
            f"{path} has no candidate of the scan {empty[0]}, but of {', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''}. A file that is not DICOM must be named by its seriesuid; rename the "
            f"file, or leave the scan out."
        )
    others = len(listed) - sum(map(len, by_scan.values()))
    return by_scan, f"{others} of {len(listed)} candidates are of other scans" if others else ""


def cut_patches(
    network: Any,
    cut: Cut,
    scans: Mapping[str, Stored],
    candidates: Mapping[str, Sequence[Candidate]] | None,
    step: float | None = None,
    assume: Assume | None = None,
) -> Iterator[Patch]:
    """Yields the patches of scans, one scan at a time.

    Args:
      network: the network that takes them.
      cut: see `choose_cut`.
      scans: the scans by series instance UID.
      candidates: the candidates of each scan; None for a grid.
      step: mm between the points of the grid.
      assume: what is known of scans that do not say it.
    """
    for uid, stored in scans.items():
        try:
            scan = read_scan(stored.files, assume or Assume())
        except DataError as error:
            yield Patch(uid, None, None, str(error))
            continue
        if candidates is None:
            places = [Candidate("", uid, tuple(point), "", uid, "") for point in grid(scan, step).tolist()]
        else:
            places = candidates[uid]
        for place in places:
            try:
                check_inside(scan, place)
            except DataError as error:
                yield Patch(uid, place.center, None, str(error))
            else:
                yield Patch(uid, place.center, as_image(cut(scan, np.array(place.center)), network))
