"""Weights by name: the right file, a wrong one, a broken connection, none at all; from a server on this machine."""

import functools
import hashlib
import http.server
import pathlib
import threading

import pytest
from test_importers import assert_same, pth, random_leaves, state_dict

from squeeze_jax import load, pretrained
from squeeze_jax.errors import WeightError
from squeeze_jax.pretrained import downloads
from squeeze_jax.runtime import download

NAME = "torchvision/squeezenet1_1"


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; `broken` announces more bytes than it sends."""

    broken = False
    requests: list[str] = []  # noqa: RUF012

    def log_message(self, *_):
        self.requests.append(self.path)

    def send_header(self, keyword, value):
        if keyword == "Content-Length" and self.broken:
            value = str(int(value) + 10)
        super().send_header(keyword, value)


@pytest.fixture
def publisher(tmp_path, monkeypatch):
    """A server's folder; the cache folder is empty, and the file name has the file's own checksum."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "published"
    folder.mkdir()
    monkeypatch.setattr(Server, "requests", [])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(downloads, "ADDRESS", f"http://127.0.0.1:{server.server_port}")
    yield folder
    server.shutdown()
    server.server_close()


@pytest.fixture
def published(publisher, monkeypatch):
    """The published file, and its variables."""
    leaves = random_leaves("squeezenet_v1_1")
    data = pth(state_dict(leaves, "squeezenet_v1_1"))
    name = f"squeezenet1_1-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    (publisher / name).write_bytes(data)
    monkeypatch.setitem(downloads.FILES, NAME, name)
    return publisher / name, leaves


def cached():
    return sorted(path.name for path in (downloads.cache_folder() / "weights").rglob("*"))


def test_a_name_is_downloaded_once(published, monkeypatch):
    path, leaves = published
    for _ in range(2):
        network = load(NAME)
    assert_same(network, leaves)
    assert Server.requests == [f"/{path.name}"] and cached() == sorted(["torchvision", path.name])
    monkeypatch.setattr(downloads, "ADDRESS", "http://127.0.0.1:1")  # without a connection
    assert_same(load(pathlib.Path(NAME)), leaves)


def test_a_file_of_that_name_comes_first(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = pathlib.Path(NAME)
    path.parent.mkdir()
    path.write_bytes(b"")
    with pytest.raises(WeightError, match="ends in nothing"):
        load(NAME)
    assert Server.requests == []


def test_a_wrong_checksum_keeps_nothing(published):
    path, _ = published
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(WeightError, match="^http.* was received damaged: its SHA-256 begins with .*; try again"):
        load(NAME)
    assert cached() == ["torchvision"]


def test_a_truncated_download_keeps_nothing(published, monkeypatch):
    monkeypatch.setattr(Server, "broken", True)
    with pytest.raises(WeightError, match="10 bytes|broke off|could not be downloaded"):
        load(NAME)
    assert cached() == ["torchvision"]


def test_a_file_that_was_damaged_later_is_named_and_kept(published):
    path = downloads.fetch(NAME)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightError, match=f"{path.name} is damaged"):
        load(NAME)
    assert path.exists() and len(Server.requests) == 1


def test_a_download_has_a_limit_of_size_and_of_time(published, monkeypatch):
    monkeypatch.setattr(downloads, "LARGEST_FILE", 2**20)
    with pytest.raises(WeightError, match="could not be downloaded .the answer has more than 1,048,576 bytes"):
        load(NAME)
    monkeypatch.setattr(downloads, "LARGEST_FILE", 2**30)
    monkeypatch.setattr(download, "LONGEST", 0)
    with pytest.raises(WeightError, match="the answer did not end in 0 seconds"):
        load(NAME)
    assert cached() == ["torchvision"]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("ftp://127.0.0.1:1/x", "unknown url type: ftp"),
        ("file:///etc/passwd", "'file:///etc/passwd' is not allowed"),
        ("data:text/plain,x", "is not allowed"),
        ("gopher://user:secret@127.0.0.1/x", "'gopher://127.0.0.1/x' is not allowed"),
        ("http://user:secret@127.0.0.1/x", "the address, or the one that it redirects to, is not valid"),
    ],
)
def test_redirections_lead_to_http_alone_and_no_password_is_printed(address, reason, published, monkeypatch):
    def redirect(self):
        self.send_response(302)
        self.send_header("Location", address)
        self.end_headers()

    monkeypatch.setattr(Server, "do_GET", redirect)
    with pytest.raises(WeightError, match=reason) as error:
        load(NAME)
    assert "secret" not in str(error.value) and "\n" not in str(error.value) and cached() == ["torchvision"]


@pytest.mark.parametrize("name", [NAME, "torchvision/resnet18"])
def test_without_a_connection_the_error_says_where_to_put_the_file(name, publisher, monkeypatch):
    """Both with a server that does not have the file and without a server."""
    for address, reason in [(downloads.ADDRESS, "File not found"), ("http://127.0.0.1:1", "refused")]:
        monkeypatch.setattr(downloads, "ADDRESS", address)
        place = downloads.cache_folder() / "weights" / "torchvision" / downloads.FILES[name]
        with pytest.raises(WeightError, match=f"{reason}.*Get {address}/{downloads.FILES[name]} on.*put it at {place}"):
            load(name)


def test_the_names_are_the_networks_of_the_importer():
    models = {network.model for network in pretrained.torchvision.NETWORKS}
    of_names = {name.partition("/")[2].replace("squeezenet1", "squeezenet_v1") for name in downloads.FILES}
    assert of_names == models


def test_the_addresses_are_torchvisions():
    torchvision = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    for name, file_name in downloads.FILES.items():
        weights = torchvision.get_model_weights(name.partition("/")[2]).IMAGENET1K_V1
        assert weights.url == f"{downloads.ADDRESS}/{file_name}"
        transforms = weights.transforms()
        assert (transforms.crop_size, transforms.resize_size) == ([224], [256])
        assert transforms.interpolation.value == ("bicubic" if "efficientnet" in name else "bilinear")
