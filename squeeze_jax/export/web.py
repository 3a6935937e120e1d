"""A page that classifies photographs in the browser: a folder that any static server can serve.

The folder contains the network as an ONNX file, with the head's feature map as a second output, and ONNX Runtime Web
(WebAssembly, one thread). The runtime comes from the npm registry when the first page is written, and is then kept in
the user's cache.
"""

import hashlib
import json
import os
import pathlib
import tarfile
import tempfile

from squeeze_jax.errors import ExportError
from squeeze_jax.export import onnx_file
from squeeze_jax.export.comparison import Comparison, compare, random_images
from squeeze_jax.export.description import describe
from squeeze_jax.files import make_folder, replaced, writing
from squeeze_jax.network import Network
from squeeze_jax.pretrained.imagenet import readable
from squeeze_jax.runtime import download

MODEL, DESCRIPTION = "model.onnx", "network.json"
SOURCE = pathlib.Path(__file__).parent / "web"
PAGE = ("index.html", "style.css", "main.js", "classifier.js", "pixels.js", "onnxruntime-web.LICENSE")

REGISTRY, REGISTRY_VARIABLE = "https://registry.npmjs.org", "NPM_CONFIG_REGISTRY"
ARCHIVE = "onnxruntime-web-1.30.0.tgz"
SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
LARGEST_ARCHIVE = 64 * 2**20  # bytes
# What the page needs of the archive, and the names in the page's folder.
RUNTIME = {
    "package/dist/ort.wasm.bundle.min.mjs": "onnxruntime-web.js",  # not every server knows the type of .mjs
    "package/dist/ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}


def write(network: Network, folder: str | pathlib.Path) -> Comparison:
    """Writes the page; a page that was there is replaced after the new one's ONNX file was compared with the network.

    Args:
      network: a network for 2-D images.
      folder: the folder to write, which must be new, empty or a page that was written before.

    Returns:
      The comparison, in ONNX Runtime on random images.

    Raises:
      ExportError: the network is for 3-D images or cannot be exported, the folder contains something else, the ONNX
        file differs from the network, or the runtime is not in the cache and cannot be downloaded.
      FileError: the folder cannot be written.
    """
    folder = pathlib.Path(folder).resolve()
    if len(network.image_shape) != 3:
        raise ExportError(f"the page shows 2-D images; this network takes images of shape {network.image_shape}.")
    _check_is_page(folder)
    files = {
        MODEL: onnx_file.serialize(network, "uint8", with_head=True),
        DESCRIPTION: json.dumps(description(network)).encode(),
        **{name: (SOURCE / name).read_bytes() for name in PAGE},
        **runtime_files(),
    }
    make_folder(folder.parent)
    # A new folder beside it, which takes its place in one step; what others have there is not touched.
    beside = tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True)
    with writing(folder, " What was there is unchanged."), beside as made:
        new, old = pathlib.Path(made, "new"), pathlib.Path(made, "old")
        new.mkdir()
        for name, data in files.items():
            (new / name).write_bytes(data)
        comparison = compare(network, onnx_file.read(new / MODEL), [random_images(network)])
        comparison.check_float()
        if folder.exists():
            folder.replace(old)
        try:
            new.replace(folder)
        except OSError:
            if old.exists():
                old.replace(folder)
            raise
    return comparison


def _check_is_page(folder: pathlib.Path) -> None:
    """Raises ExportError if a folder has anything but a page, which would be deleted with it."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ExportError(f"{folder} is a file; use a new folder.")
    others = {path.name for path in folder.iterdir()} - {MODEL, DESCRIPTION, *PAGE, *RUNTIME.values()}
    if others:
        raise ExportError(f"{folder} contains something other than a page ({min(others)}); use a new folder.")


def description(network: Network) -> dict:
    """Returns what the page needs to know about the network."""
    described = describe(network, channels_first=True, pixels="uint8")
    return {
        "class_names": readable(network.class_names),
        **{key: json.loads(described[key]) for key in ("image_shape", "crop")},
        "head": network.model.head,
        "head_margin": network.model.head_margin,
    }


def runtime_files() -> dict[str, bytes]:
    """Returns the files of ONNX Runtime Web by their names in the page's folder.

    Raises:
      ExportError: the archive is not in the cache and cannot be downloaded, or has the wrong checksum.
    """
    path = cached_archive()
    if not path.exists():
        _download(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise ExportError(f"{path} has the wrong checksum (SHA-256); expected {SHA256}. Delete it and try again.")
    with tarfile.open(path) as archive:
        return {name: archive.extractfile(member).read() for member, name in RUNTIME.items()}


def cached_archive() -> pathlib.Path:
    """Returns the place of the archive in the user's cache, ~/.cache/squeeze_jax (or $XDG_CACHE_HOME/squeeze_jax)."""
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "squeeze_jax"
    return root / "npm" / ARCHIVE


def _download(path: pathlib.Path) -> None:
    registry = os.environ.get(REGISTRY_VARIABLE) or REGISTRY
    url = f"{registry.rstrip('/')}/onnxruntime-web/-/{ARCHIVE}"
    shown = download.without_password(url)
    make_folder(path.parent)
    with replaced(path) as temporary:
        try:
            download.receive(url, temporary, largest=LARGEST_ARCHIVE)
        except OSError as error:
            raise ExportError(
                f"{shown} cannot be downloaded ({error}). Set ${REGISTRY_VARIABLE} to another registry, or run "
                f"`npm pack {ARCHIVE[:-4].replace('-1', '@1')}` on another machine and put the file at {path}."
            ) from error
        if hashlib.sha256(temporary.read_bytes()).hexdigest() != SHA256:
            raise ExportError(f"{shown} has the wrong checksum (SHA-256); expected {SHA256}.")
