"""Published weights: the paper's compressed network on real photographs, our own file, hostile files, `predict`."""

import dataclasses
import hashlib
import json
import os
import struct
import subprocess
import sys
import zlib

import jax
import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT, SHARED, configure, load_config
from fuzz import mutants
from PIL import Image

from squeeze_jax import Network, load, models, pretrained
from squeeze_jax.config import base_config
from squeeze_jax.errors import ConfigError, WeightError
from squeeze_jax.pretrained import deep_compression, own_file, sqz
from squeeze_jax.pretrained.imagenet import imagenet_class_names, imagenet_classes, readable
from squeeze_jax.training import trainer

NET = SHARED / "deep_compression" / "compressed_SqueezeNet.net"
PHOTOGRAPHS = SHARED / "imagenet_sample"
MUTATIONS = int(os.environ.get("SQUEEZE_JAX_MUTATIONS", "100"))  # more of them is a soak
needs_net = pytest.mark.skipif(not NET.exists(), reason=f"{NET} is not there; set SQUEEZE_JAX_SHARED")

# Shares of non-zero weights, counted in the file when it was first decoded (squeeze, 1x1, 3x3 of each Fire module).
NON_ZERO = {
    "conv1": 13_902,
    "fire2": (1_528, 1_020, 3_039),
    "fire3": (2_038, 1_023, 3_039),
    "fire4": (4_085, 4_071, 12_156),
    "fire5": (8_160, 4_067, 12_147),
    "fire6": (12_161, 4_602, 27_325),
    "fire7": (9_205, 9_129, 27_336),
    "fire8": (24_388, 8_187, 44_144),
    "fire9": (16_370, 16_303, 44_173),
    "conv10": 102_323,
}


def test_each_class_of_imagenet_has_a_name_of_its_own():
    import tensorflow_datasets as tfds

    ids = tuple(tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split())
    assert imagenet_class_names() == ids and len({name.casefold() for name in imagenet_classes().values()}) == 1000
    assert [imagenet_classes()[one] for one in ("n01440764", "n03126707", "n02963159", "n03710721", "n13133613")] == [
        "tench",
        "crane (lifting device)",
        "cardigan (sweater)",
        "maillot (swimsuit)",
        "ear",
    ]
    assert readable(("n01443537", "n01440764")) == ("goldfish", "tench")
    assert readable(("n01443537", "cat")) == ("n01443537", "cat")


@pytest.fixture(scope="module")
def paper():
    return load(NET)


@needs_net
def test_the_compressed_file_holds_what_the_paper_says(paper):
    params = paper.variables["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 1_248_424
    kernels = {}
    for name, layer in params.items():
        if name.startswith("fire"):
            counts = [np.count_nonzero(layer[part]["kernel"]) for part in ("squeeze1x1", "expand1x1", "expand3x3")]
            kernels[name] = tuple(map(int, counts))
        else:
            kernels[name] = np.count_nonzero(layer["kernel"])
    assert kernels == NON_ZERO
    assert sum(np.sum(count) for count in kernels.values()) == 415_921
    assert len(paper.class_names) == 1000 and paper.class_names[0] == "n01440764"


@needs_net
def test_it_classifies_photographs_as_an_independent_forward_pass_does(paper):
    """PyTorch's forward pass of the same weights gives these figures: top-1 0.675, top-5 0.875, and the logits."""
    preprocessing = paper.task.preprocessing
    optimized = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}  # unlike other tests
    logits_of = jax.jit(
        lambda variables, x: paper.model.apply(variables, preprocessing.evaluate(x)), compiler_options=optimized
    )
    paths = sorted(PHOTOGRAPHS.glob("*.JPEG"))
    images = np.stack([paper.read_image(path) for path in paths])
    logits = np.concatenate([logits_of(paper.variables, part) for part in np.split(images, 10)])
    labels = np.array([paper.class_names.index(path.name[:9]) for path in paths])
    order = np.argsort(-logits, axis=1)
    assert (order[:, 0] == labels).mean() == 0.675
    assert (order[:, :5] == labels[:, None]).any(1).mean() == 0.875
    largest = {path.name[10:-5]: (row.argmax(), row.max()) for path, row in zip(paths, logits, strict=True)}
    assert largest["tench"] == (0, pytest.approx(23.3411, abs=1e-3))
    assert largest["electric_ray"] == (5, pytest.approx(15.8080, abs=1e-3))


@needs_net
def test_altered_net_files_are_refused_or_give_finite_weights(tmp_path, paper):
    path = tmp_path / "mutant.net"
    refused = 0
    for data in mutants(NET.read_bytes(), MUTATIONS):
        path.write_bytes(data)
        try:
            leaves = deep_compression.decode(path)
        except WeightError as error:
            refused += 1
            assert str(path) in str(error)
            continue
        for name, leaf in leaves.items():
            part = paper.variables["params"]
            for key in name.split("/")[1:]:
                part = part[key]
            assert leaf.shape == part.shape and np.isfinite(leaf).all()
    assert refused > MUTATIONS / 3


@needs_net
def test_code_0_is_the_weight_0(tmp_path):
    data = bytearray(NET.read_bytes())
    data[4 * 26 : 4 * 27] = np.float32(0.5).tobytes()  # the first codebook follows 26 counts
    (tmp_path / "x.net").write_bytes(data)
    with pytest.raises(WeightError, match="the value 0.5 for code 0 of conv1; expected 0"):
        deep_compression.decode(tmp_path / "x.net")


@pytest.fixture(scope="module")
def small():
    """A network that was never trained."""
    config = base_config()
    config.model.name = "squeezenet_v1_1"
    config.model.base_filters = config.model.filter_increment = 8
    config.model.stem_filters = 8
    config.model.use_batch_norm = True
    config.crop.size, config.crop.resize = 32, 36
    model = models.create(
        "squeezenet_v1_1", num_classes=3, base_filters=8, filter_increment=8, stem_filters=8, use_batch_norm=True
    )
    variables = jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32)))
    return Network(model, variables, config, 7, ("ant", "bee", "cow"), (32, 32, 3))


@pytest.mark.parametrize(("save", "name"), [(pretrained.save, "small.safetensors"), (sqz.save, "small.sqz")])
def test_our_own_files_give_the_network_back(small, tmp_path, save, name):
    path = tmp_path / name
    save(small, path)
    again = load(path)
    assert (again.step, again.class_names, again.image_shape) == (7, small.class_names, small.image_shape)
    assert again.config.to_dict() == small.config.to_dict() and again.model == small.model
    jax.tree.map(np.testing.assert_array_equal, again.variables, small.variables)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    np.testing.assert_array_equal(again.predict(images), small.predict(images))
    assert [p.name for p in tmp_path.iterdir()] == [name]


def resealed_sqz(path, **changes):
    """Writes a .sqz file whose header has other values, and a checksum that fits."""
    body = path.read_bytes()[4 + sqz.DIGEST :]
    length = int.from_bytes(body[:4], "little")
    header = changed(json.loads(zlib.decompress(body[4 : 4 + length])), changes)
    deflated = zlib.compress(json.dumps(header).encode())
    body = struct.pack("<I", len(deflated)) + deflated + body[4 + length :]
    path.write_bytes(sqz.MAGIC + bytes([sqz.VERSION]) + hashlib.sha256(body).digest()[: sqz.DIGEST] + body)


def resealed_safetensors(path, **changes):
    """The same for a .safetensors file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][own_file.KEY])
    header = changed({key: value for key, value in header.items() if key != "sha256"}, changes)
    path.write_bytes(own_file._serialize(safetensors.numpy.load(data), header))


def changed(header, changes):
    for key, value in changes.items():
        *place, last = key.split("__")
        inner = header
        for name in place:
            inner = inner[name]
        inner[last] = value
    return header


HEADERS = {
    "class_names": [["a", "b"], ["a", "b", 3], ["a", "b", "\x1b[2J"], [], 7, None, "abc"],
    "image_shape": [[32, 32], [32, 32, 0], [65536, 65536, 3], [32, 32, 1], [33, 32, 3], ["a"], 7, [32.0, 32, 3]],
    "step": [[0], "7", -1, 10**400, True, 1.5],
    "config": [{}, [], "abc", {"task": {"name": "nothing"}}],
    "config__crop__resize": ["abc", -1, -5, 8, [1, 2, 3]],  # 0 is the size of the crop
    "config__crop__size": ["32", [32, 32, 32], 31],
    "config__crop__interpolation": ["evil", 3],
    "config__dataset__image_size": [[50000, 50000], [32], [-32, 32], ["a", "b"]],
    "config__dataset__mean": [["a"], [1.0] * 7, [1e400]],
    "config__dataset__std": [[0.0], [1.0, 1.0]],
    "config__dataset__channels": [1],
    "config__model__dtype": ["complex64", 3],
    "config__model__name": ["nothing", 3],
    "config__model__base_filters": [-1, 2**40],
    "config__task__labels": ["evil"],
}


@pytest.mark.parametrize(("save", "reseal"), [(pretrained.save, resealed_safetensors), (sqz.save, resealed_sqz)])
def test_a_resealed_header_is_checked(save, reseal, small, tmp_path):
    path = tmp_path / ("small.sqz" if save is sqz.save else "small.safetensors")
    save(small, path)
    whole = path.read_bytes()
    reseal(path)
    assert load(path).class_names == small.class_names
    for key, values in HEADERS.items():
        for value in values:
            path.write_bytes(whole)
            reseal(path, **{key: value})
            with pytest.raises(WeightError, match=path.name):
                load(path)


def test_what_does_not_fit_is_listed(small, tmp_path):
    variables = {**small.variables, "params": {**small.variables["params"]}}
    variables["params"]["conv11"] = variables["params"].pop("conv10")
    pretrained.save(dataclasses.replace(small, variables=variables), tmp_path / "x.safetensors")
    with pytest.raises(WeightError) as error:
        load(tmp_path / "x.safetensors")
    assert "  - params/conv10/kernel (1, 1, 32, 3)" in str(error.value)
    assert "  + params/conv11/kernel (1, 1, 32, 3)" in str(error.value)


@pytest.mark.parametrize(("name", "message"), [("absent.net", "is not a file"), ("weights.xyz", "ends in .xyz")])
def test_files_that_are_no_weights_are_named(tmp_path, name, message):
    (tmp_path / "weights.xyz").write_bytes(b"")
    with pytest.raises(WeightError, match=message):
        load(tmp_path / name)


def predict(*arguments):
    command = [sys.executable, "-m", "squeeze_jax.predict", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_predict_names_what_it_cannot_read(small, tmp_path):
    weights = tmp_path / "small.safetensors"
    pretrained.save(small, weights)
    images = tmp_path / "images"
    images.mkdir()
    for i in range(3):
        Image.fromarray(np.full((40, 50, 3), 80 * i, np.uint8)).save(images / f"{i}.png")
    (images / "broken.png").write_bytes(b"no image")
    done = predict("--weights", weights, "--format=json", "--cam", tmp_path / "maps", "--batch_size=2", images)
    assert done.returncode == 1 and f"skipped: {images}/broken.png cannot be read" in done.stderr
    answers = json.loads(done.stdout)
    assert [answer["file"] for answer in answers] == [str(images / f"{i}.png") for i in (0, 1, 2, "broken")]
    assert "cannot be read" in answers.pop()["error"]
    for answer in answers:
        assert sorted(best["label"] for best in answer["top5"]) == ["ant", "bee", "cow"]
        assert sum(best["probability"] for best in answer["top5"]) == pytest.approx(1, abs=1e-5)
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["0.png", "1.png", "2.png"]
    done = predict("--weights", weights, "--format=csv", images / "[01].png")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1 + 2
    done = predict("--weights", weights, tmp_path / "nothing*.png")
    assert done.returncode == 1 and "is not a file, a folder with images or a pattern" in done.stderr


@needs_net
def test_predict_knows_a_tench(tmp_path):
    image = PHOTOGRAPHS / "n01440764_tench.JPEG"
    done = predict("--weights", NET, image)
    assert done.returncode == 0 and "tench (0)" in done.stdout.splitlines()[1], done.stderr
    done = predict("--weights", NET, "--labels", PHOTOGRAPHS / "synsets.txt", "--format=csv", "--top=1", image)
    assert done.stdout.splitlines()[1].split(",")[2:] == ["tench", done.stdout.split(",")[-3], "n01440764", ""]


@needs_net
def test_imported_weights_are_evaluated_on_a_folder_of_some_of_their_classes(tmp_path):
    for path in sorted(PHOTOGRAPHS.glob("*.JPEG"))[::5]:
        link = tmp_path / "photographs" / "val" / path.name[:9] / path.name
        link.parent.mkdir(parents=True)
        link.symlink_to(path)
    command = [sys.executable, "-m", "squeeze_jax.main", "--mode=eval", f"--weights={NET}", "--split=validation"]
    command += [f"--dataset={tmp_path}/photographs", f"--workdir={tmp_path}/out"]
    optimized = {**os.environ, "XLA_FLAGS": ""}  # unlike other tests, for the network is large
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, env=optimized)
    assert done.returncode == 0, done.stderr
    header, row = (tmp_path / "out/evaluation/validation_step_0/metrics.csv").read_text().splitlines()
    values = dict(zip(header.split(","), row.split(","), strict=True))
    assert int(values["examples"]) == 40 and 0.5 < float(values["top1"]) < float(values["top5"]) < 1
    (tmp_path / "photographs" / "val" / "unknown").mkdir()
    (tmp_path / "photographs" / "val" / "unknown" / "1.JPEG").symlink_to(path)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 1 and "has classes that" in done.stderr and "unknown" in done.stderr


def test_a_run_starts_from_weights_with_a_new_head(data_dir, tmp_path):
    # The first step of the warm-up has a rate of zero, so a run of one step ends where it starts.
    trainer.train_and_evaluate(configure(data_dir, **{"run.stop_after_steps": 3}), tmp_path / "first")
    trained = load(tmp_path / "first", "latest")
    pretrained.save(trained, tmp_path / "first.safetensors")
    again = {"init_from": str(tmp_path / "first.safetensors"), "run.stop_after_steps": 1}
    trainer.train_and_evaluate(configure(data_dir, **again), tmp_path / "again")
    started = load(tmp_path / "again", "latest")
    # To rounding only: these are averages, and the average of a value with itself rounds.
    params = started.variables["params"], trained.variables["params"]
    for ours, theirs in zip(*map(jax.tree.leaves, params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    new_head = configure(data_dir, **again, init_new_head=True)
    trainer.train_and_evaluate(new_head, tmp_path / "head")
    head = load(tmp_path / "head", "latest").variables["params"]
    for name, leaf in head["conv1"].items():
        np.testing.assert_allclose(leaf, trained.variables["params"]["conv1"][name], rtol=1e-6)
    assert not np.allclose(head["conv10"]["kernel"], trained.variables["params"]["conv10"]["kernel"])
    wider = configure(data_dir, **again, **{"model.stem_filters": 9})
    with pytest.raises(ConfigError, match=r"- params/conv1/kernel \(3, 3, 1, 9\)"):
        trainer.train_and_evaluate(wider, tmp_path / "wider")


@needs_net
def test_another_number_of_classes_asks_for_a_new_head(data_dir, tmp_path):
    options = {"init_from": str(NET), "dataset.mean": None, "dataset.std": None, "dataset.image_size": (32, 32)}
    options |= {"train.ema_decay": 0.0, "train.batch_size": 8, "run.stop_after_steps": 1, "run.data_dir": data_dir}
    config = load_config("digits")
    for name in config.model:
        if name not in ("name", "dtype", "num_classes"):
            options |= {f"model.{name}": None}
    config.update_from_flattened_dict({**options, "model.name": "squeezenet_v1_0"})
    with pytest.raises(ConfigError, match=r"- params/conv10/kernel \(1, 1, 512, 10\)(.|\n)*init_new_head=True to"):
        trainer.train_and_evaluate(config, tmp_path / "w")
    assert not list((tmp_path / "w").glob("checkpoints/*"))
