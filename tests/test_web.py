"""The page that classifies photographs in the browser.

The tests marked `browser` need playwright and a Chromium, see docs/web_demo.md.
"""

import base64
import contextlib
import dataclasses
import functools
import http.server
import io
import json
import os
import pathlib
import re
import shutil
import socketserver
import struct
import threading
import zlib

import jax
import numpy as np
import pytest
from conftest import SHARED, make_once
from PIL import Image, ImageCms

from squeeze_jax import load, models
from squeeze_jax.config import base_config
from squeeze_jax.data import decoding
from squeeze_jax.errors import ExportError, FileError
from squeeze_jax.export import web
from squeeze_jax.export.forward import forward
from squeeze_jax.network import Network
from squeeze_jax.pretrained.imagenet import readable
from squeeze_jax.runtime import download

NET = SHARED / "deep_compression" / "compressed_SqueezeNet.net"
PHOTOGRAPHS = 20
LOGITS = 1e-2  # the largest difference from JAX
MEGABYTES = 20
CHROMIUM = os.environ.get("SQUEEZE_JAX_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
# As root, and without looking for anything outside this machine.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
TIMEOUT = 60_000  # ms


def make_network(image_shape=(20, 20, 3), **crop):
    config = base_config()
    config.model.name, config.model.stem, config.model.base_filters = "squeezenodule_v1", "3x3/1", 8
    config.dataset.channels = image_shape[-1]
    config.crop.update(crop)
    names = ("a", "b", "c")
    model = models.create(config.model.name, num_classes=3, stem="3x3/1", base_filters=8)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, *image_shape), np.float32))
    return Network(model, variables, config, 0, names, image_shape)


@pytest.fixture
def without_runtime(monkeypatch):
    monkeypatch.setattr(web, "runtime_files", lambda: dict.fromkeys(web.RUNTIME.values(), b""))


def test_the_folder_has_the_page_and_replaces_nothing_but_a_page(tmp_path, without_runtime):
    network, folder = make_network(), tmp_path / "deep" / "demo"
    assert web.write(network, folder).difference < 1e-4
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert files.keys() == {*web.PAGE, *web.RUNTIME.values(), web.MODEL, web.DESCRIPTION}
    written = json.loads((folder / web.DESCRIPTION).read_text())
    assert written["class_names"] == ["a", "b", "c"] and written["image_shape"] == [20, 20, 3]
    assert written["head"] == "conv10" and written["head_margin"] == 0 and written["crop"] is None
    web.write(dataclasses.replace(network, class_names=("n01440764", "n01443537", "n02012849")), folder)
    named = json.loads((folder / web.DESCRIPTION).read_text())["class_names"]
    assert named == ["tench", "goldfish", "crane (wading bird)"]
    assert list(folder.parent.iterdir()) == [folder]
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(ExportError, match="contains something other than a page"):
        web.write(network, other)
    assert (other / "thesis.txt").read_text() == "mine"


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, without_runtime, monkeypatch):
    network, folder = make_network(), tmp_path / "demo"
    web.write(network, folder)
    monkeypatch.setattr("pathlib.Path.write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(FileError, match="demo cannot be written .No space left"):
        web.write(network, folder)
    assert (folder / web.MODEL).stat().st_size > 0 and list(tmp_path.iterdir()) == [folder]


def test_nothing_of_others_is_deleted(tmp_path, without_runtime, monkeypatch):
    network, folder = make_network(), tmp_path / "demo"
    for name in ("demo.old", "demo.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "my_only_backup.txt").write_text("precious")
    web.write(network, folder)
    assert all((tmp_path / name / "my_only_backup.txt").exists() for name in ("demo.old", "demo.tmp"))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="contains something other than a page .notes.txt."):
        web.write(network, folder)
    (folder / "notes.txt").unlink()
    page = (folder / web.MODEL).read_bytes()
    moved = pathlib.Path.replace

    def replace(self, target):
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return moved(self, target)

    monkeypatch.setattr("pathlib.Path.replace", replace)
    with pytest.raises(FileError, match="demo cannot be written .Input/output error"):
        web.write(network, folder)
    assert (folder / web.MODEL).read_bytes() == page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "demo.old", "demo.tmp"]


class Raw(socketserver.StreamRequestHandler):
    """Answers every request with the bytes of the server's attribute `answer`."""

    def handle(self):
        with contextlib.suppress(OSError):
            self.rfile.readline()
            self.wfile.write(self.server.answer)


HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc", "IncompleteRead"),
        (HEAD + b"Content-Length: 50\r\n\r\nabc", "broke off 47 bytes before its end"),
        (b"nonsense\r\n\r\n", "nonsense"),
        (HEAD + b"A: b\r\n" * 200 + b"\r\n", "got more than 100 headers"),
        (HEAD + b"A: " + b"b" * 70_000 + b"\r\n\r\n", "got more than 65536 bytes"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://a:secret@b:port/\r\n\r\n", "is not valid"),
        (b"HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/x\r\n\r\n", "ftp"),
        (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", "not allowed"),
        (HEAD + b"\r\n" + bytes(5000), "more than 4,096 bytes"),
    ],
)
def test_whatever_a_registry_answers_is_one_error(answer, reason, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(web, "LARGEST_ARCHIVE", 4096)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Raw) as server:
        server.answer = answer
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv(web.REGISTRY_VARIABLE, f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(ExportError, match=f"cannot be downloaded .*{reason}") as raised:
            web.runtime_files()
        server.shutdown()
    assert "secret" not in str(raised.value) and "put the file at" in str(raised.value)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("registry", ["http://me:secret@127.0.0.1:9", "http://me:secret@", "ftp://me:secret@127.0.0.1"])
def test_no_password_is_printed(registry, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(web.REGISTRY_VARIABLE, registry)
    with pytest.raises(ExportError, match="cannot be downloaded") as raised:
        web.runtime_files()
    assert "secret" not in str(raised.value)


def test_an_answer_that_never_ends_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "LONGEST", -1)
    (tmp_path / "index.html").write_text("page")
    with serve(tmp_path) as address, pytest.raises(OSError, match="did not end in -1 seconds"):
        download.receive(address, tmp_path / "a", largest=2**20)


def test_the_page_says_by_itself_that_it_needs_a_server():
    """A browser runs no module of a page that was opened as a file, so the text is in the document."""
    page, script = ((web.SOURCE / name).read_text() for name in ("index.html", "main.js"))
    (status,) = re.findall(r'<p id="status" role="status">(.*?)</p>', page, re.DOTALL)
    assert "opened as a file" in status and "<code>python -m http.server</code>" in status
    assert script.index('say("Loading the network ...")') < script.index("await Classifier.open()")


@pytest.mark.browser
def test_a_page_opened_as_a_file_says_what_to_do(browser):
    tab = browser.new_page()
    tab.goto((web.SOURCE / "index.html").as_uri())
    tab.wait_for_timeout(500)
    assert "python -m http.server" in tab.text_content("#status")
    tab.close()


def test_the_page_is_for_2d_images():
    with pytest.raises(ExportError, match="2-D images"):
        web.write(make_network((20, 20, 20, 1)), "demo")


def test_without_the_registry_the_error_says_where_the_file_belongs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(web.REGISTRY_VARIABLE, "http://127.0.0.1:9/")
    with pytest.raises(ExportError) as raised:
        web.runtime_files()
    place = tmp_path / "squeeze_jax" / "npm" / web.ARCHIVE
    assert f"put the file at {place}" in str(raised.value) and "npm pack onnxruntime-web@1" in str(raised.value)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"another file")
    with pytest.raises(ExportError, match="wrong checksum"):
        web.runtime_files()


def test_a_registry_that_sends_another_file_is_not_believed(tmp_path, monkeypatch):
    archive = tmp_path / "onnxruntime-web" / "-" / web.ARCHIVE
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"another file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serve(tmp_path) as address:
        monkeypatch.setenv(web.REGISTRY_VARIABLE, address)
        with pytest.raises(ExportError, match="wrong checksum"):
            web.runtime_files()
    assert not web.cached_archive().exists()


class serve:
    """A static server of a folder, on a port of its own; its address is the context's value."""

    def __init__(self, folder):
        handler = functools.partial(QuietHandler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/"

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if not CHROMIUM:
        pytest.skip("there is no Chromium; set SQUEEZE_JAX_CHROMIUM")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


@contextlib.contextmanager
def open_tab(browser):
    """A page of the browser, whose errors and whose requests to other servers fail the test."""
    opened = browser.new_page()
    opened.set_default_timeout(TIMEOUT)
    wrong = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda request: wrong.append(request.url) if not is_local(request.url) else None)
    yield opened
    opened.close()
    assert not wrong


@pytest.fixture
def tab(browser):
    with open_tab(browser) as opened:
        yield opened


def is_local(url):
    return url.startswith(("http://127.0.0.1:", "blob:", "data:"))


# The pixels: the module alone, without a network

READ = """async ([data, shape, crop]) => {
  const {readImage} = await import("./pixels.js");
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  try {
    const {pixels} = await readImage(new File([bytes], "it"), shape, crop);
    let text = "";
    for (let i = 0; i < pixels.length; i += 8192) text += String.fromCharCode(...pixels.subarray(i, i + 8192));
    return btoa(text);
  } catch (error) {
    if (error.constructor.name !== "ImageError") throw error;
    return {error: error.message};
  }
}"""


@pytest.fixture(scope="module")
def read(browser):
    """read(bytes, shape, crop): the pixels that the browser reads, or the message of its error."""
    with serve(web.SOURCE) as address, open_tab(browser) as tab:
        tab.goto(f"{address}style.css")  # a document of this server that runs no script

        def run(stored, shape, crop=None):
            found = tab.evaluate(READ, [base64.b64encode(stored).decode(), list(shape), crop])
            if isinstance(found, dict):
                return found["error"]
            return np.frombuffer(base64.b64decode(found), np.uint8).reshape(shape)

        yield run


def encode(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def random_image(mode, size=(61, 47), seed=0):
    channels = len(Image.new(mode, (1, 1)).getbands())
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels)).astype(np.uint8)
    return Image.fromarray(noise[..., 0] if channels == 1 else noise, mode)


def smooth(size=(160, 120)):
    """A photograph-like image; JPEG decoders may differ at hard edges."""
    return random_image("RGB", (9, 7)).resize(size, Image.Resampling.BICUBIC)


def turned():
    exif = Image.Exif()
    exif[0x112] = 6
    return exif


def profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


STORED = {
    "RGB PNG": lambda: encode(random_image("RGB"), "PNG"),
    "gray PNG": lambda: encode(random_image("L"), "PNG"),
    "transparent PNG": lambda: encode(random_image("RGBA"), "PNG"),
    "transparent gray PNG": lambda: encode(random_image("LA"), "PNG"),
    "wide transparent PNG": lambda: encode(random_image("RGBA", (2200, 70)), "PNG"),
    "palette PNG": lambda: encode(random_image("RGB").quantize(16), "PNG"),
    "palette PNG with a transparent color": lambda: encode(random_image("RGB").quantize(16), "PNG", transparency=3),
    "black and white PNG": lambda: encode(random_image("L").convert("1"), "PNG"),
    "turned PNG": lambda: encode(random_image("RGB"), "PNG", exif=turned()),
    "PNG with a gamma": lambda: with_gamma(encode(random_image("RGB"), "PNG")),
    "transparent WebP": lambda: encode(random_image("RGBA"), "WEBP", lossless=True, exact=True),
    "GIF": lambda: encode(random_image("L"), "GIF"),
    "BMP": lambda: encode(random_image("RGB"), "BMP"),
    "JPEG": lambda: encode(smooth(), "JPEG"),
    "progressive JPEG": lambda: encode(smooth(), "JPEG", progressive=True),
    "gray JPEG": lambda: encode(smooth().convert("L"), "JPEG"),
    "CMYK JPEG": lambda: encode(smooth().convert("CMYK"), "JPEG"),
    "turned JPEG": lambda: encode(smooth(), "JPEG", exif=turned()),
    "JPEG with a color profile": lambda: encode(smooth(), "JPEG", icc_profile=profile()),
}


def with_gamma(png):
    body = b"gAMA" + struct.pack(">I", 100000)
    return png[:33] + struct.pack(">I", 4) + body + struct.pack(">I", zlib.crc32(body)) + png[33:]


@pytest.mark.browser
@pytest.mark.parametrize("kind", STORED)
def test_pixels_are_read_as_pillow_reads_them(kind, read):
    stored = STORED[kind]()
    expected = decoding.decode(stored, 3)
    np.testing.assert_array_equal(read(stored, expected.shape), expected)


CROPS = {
    "warped": (256, False, (227, 227)),
    "shorter side": (256, True, (224, 224)),
    "height and width": ((90, 70), False, (80, 61)),
    "enlarged": (301, True, (300, 299)),
}


@pytest.mark.browser
@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("size", [(640, 427), (100, 333), (256, 256), (375, 500), (355, 454)])
def test_images_are_resized_and_cropped_as_pillow_does(crop, size, read):
    resize, keep_aspect, out = CROPS[crop]
    for channels, mode in ((3, "RGB"), (1, "L")):
        stored = encode(random_image(mode, size), "PNG")
        expected, _ = decoding.Crop(out, "random", resize, keep_aspect, 1.0).for_evaluation(stored, channels)
        found = read(stored, expected.shape, {"resize": resize, "keep_aspect": keep_aspect})
        np.testing.assert_array_equal(found, expected)


@pytest.mark.browser
def test_images_that_cannot_be_read_are_refused(read):
    assert read(b"a text", (8, 8, 3)) == "it is not an image that this browser can read."
    assert read(b"", (8, 8, 3)) == "it is not an image that this browser can read."
    png = encode(random_image("RGB", (300, 300)), "PNG")
    assert "damaged" in read(png[:2000], (300, 300, 3)) or "not an image" in read(png[:2000], (300, 300, 3))
    assert read(png, (20, 20, 3)) == "The image has 300 x 300 pixels; this network takes 20 x 20."
    assert read(png, (300, 300, 1)) == "The image is in color; this network takes gray images."
    deep = encode(Image.fromarray(np.zeros((8, 8), np.uint16)), "PNG")
    assert read(deep, (8, 8, 1)) == "The image has more than 8 bits per pixel; convert it to 8 bits first."
    bomb = encode(Image.new("1", (12_000, 12_000)), "PNG")
    assert read(bomb, (8, 8, 3)) == "it has 144 megapixels; at most 100 are supported."


@pytest.mark.browser
def test_forty_megapixels_are_read(read):
    stored = encode(smooth((7_300, 5_500)), "JPEG", quality=80)
    expected, _ = decoding.Crop((227, 227), "random", 256, False, 1.0).for_evaluation(stored, 3)
    found = read(stored, expected.shape, {"resize": 256, "keep_aspect": False})
    np.testing.assert_array_equal(found, expected)


# The whole page


@pytest.fixture(scope="module")
def paper():
    if not NET.exists():
        pytest.skip(f"{NET} is not there; set SQUEEZE_JAX_SHARED")
    return load(NET)


@pytest.fixture(scope="module")
def demo(paper, shared):
    try:
        web.runtime_files()
    except ExportError as error:
        pytest.skip(str(error))
    folder = make_once(shared, "demo", lambda path: web.write(paper, path))
    with serve(folder) as address:
        yield folder, address


RESULT = """async () => {
  const {Classifier, activationMap} = await import("./classifier.js");
  window.classifier ??= await Classifier.open();
  const {logits, maps} = await window.classifier.classify(document.getElementById("file").files[0]);
  const best = logits.indexOf(logits.reduce((a, b) => Math.max(a, b)));
  return {logits: Array.from(logits), map: activationMap(maps, best)};
}"""
DONE = "name => document.getElementById('status').textContent.startsWith(`${name}: `)"
COLORS = """() => {
  const canvas = document.getElementById("canvas");
  const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size;
}"""


@pytest.mark.browser
def test_photographs_in_the_browser(paper, demo, tab):
    folder, address = demo
    assert sum(path.stat().st_size for path in folder.iterdir()) < MEGABYTES * 1e6
    paths = sorted((SHARED / "imagenet_sample").glob("*.JPEG"))[:: 200 // PHOTOGRAPHS]
    assert len(paths) == PHOTOGRAPHS
    images = np.stack([paper.read_image(path) for path in paths])
    function, variables = forward(paper)
    expected = np.asarray(jax.jit(function)(variables, images))
    heads = paper.features(images)["conv10"]
    problems = []
    tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    tab.goto(address)
    tab.wait_for_selector("#file:enabled")
    assert not tab.is_visible("#result")
    differences = []
    for path, logits, head in zip(paths, expected, heads, strict=True):
        tab.set_input_files("#file", path)
        tab.wait_for_function(DONE, arg=path.name)
        best = int(logits.argmax())
        assert tab.inner_text("#classes tr:first-child button") == readable(paper.class_names)[best]
        assert tab.get_attribute("#classes tr:first-child button", "aria-pressed") == "true"
        assert tab.locator("#classes tr").count() == 5
        found = tab.evaluate(RESULT)
        differences.append(np.abs(np.array(found["logits"]) - logits).max())
        drawn = np.array(found["map"]["values"]).reshape(found["map"]["rows"], found["map"]["columns"])
        np.testing.assert_allclose(drawn, head[1:-1, 1:-1, best], atol=LOGITS)
        assert tab.inner_text("#caption") == f"Class activation map of {readable(paper.class_names)[best]}"
        assert tab.evaluate(COLORS) > 1000
        assert tab.is_visible("#photograph") and tab.is_visible("#canvas")
    assert not problems  # such as an icon that the page's own policy refuses
    assert max(differences) < LOGITS, differences
    print(f"largest difference of a logit: {max(differences):.2g}")


@pytest.mark.browser
def test_the_page_says_what_is_wrong_and_goes_on(paper, demo, tab, tmp_path):
    _, address = demo
    tab.goto(address)
    tab.wait_for_selector("#file:enabled")
    (tmp_path / "notes.txt").write_text("no image")
    tab.set_input_files("#file", tmp_path / "notes.txt")
    tab.wait_for_selector("#status.error")
    assert tab.inner_text("#status") == "notes.txt is not an image that this browser can read."
    assert not tab.is_visible("#result")
    (tmp_path / "gray.png").write_bytes(encode(random_image("L"), "PNG"))
    drop_file(tab, tmp_path / "gray.png")
    tab.wait_for_selector("#result:visible")
    assert tab.locator("#status.error").count() == 0
    first = tab.evaluate("() => document.getElementById('canvas').toDataURL()")
    tab.click("#classes tr:nth-child(3) button")
    assert tab.get_attribute("#classes tr:nth-child(3) button", "aria-pressed") == "true"
    assert tab.evaluate("() => document.getElementById('canvas').toDataURL()") != first


def drop_file(tab, path):
    """Drops a file on the page as a file manager does."""
    tab.evaluate(
        """([data, name]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name));
          for (const type of ["dragenter", "dragover", "drop"]) {
            document.getElementById("drop").dispatchEvent(
              new DragEvent(type, {dataTransfer: transfer, bubbles: true, cancelable: true}));
          }
        }""",
        [base64.b64encode(path.read_bytes()).decode(), path.name],
    )
