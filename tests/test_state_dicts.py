"""State dicts as people save them, by PyTorch where it is installed; pickles that ask for more, and bombs."""

import argparse
import io
import pickle
import struct
import time
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from test_importers import old_pth, pickled, pth, random_leaves, state_dict

from squeeze_jax import load, pretrained
from squeeze_jax.errors import WeightError
from squeeze_jax.pretrained import pickles, torchvision
from squeeze_jax.pretrained.pth import read_tensors

NAME = "squeezenet_v1_1"


@pytest.fixture(scope="module")
def leaves():
    return random_leaves(NAME)


@pytest.fixture(scope="module")
def state(leaves):
    return state_dict(leaves, NAME)


# A small state dict, as bytes of opcodes, for checkpoints that are not tested against a network.
SMALL = {"features.0.weight": np.ones((4, 1, 3, 3), np.float32), "features.0.bias": np.arange(4, dtype=np.float32)}


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def body(state):
    """The opcodes of a state dict, without the first and last."""
    return pickled(state)[2:-1]


def archive(instructions, state=SMALL, **members):
    """The bytes of a zip file with these instructions as its pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as zipped:
        zipped.writestr("net/data.pkl", b"\x80\x02" + instructions + b".")
        for i, value in enumerate(state.values()):
            zipped.writestr(f"net/data/{i}", value.tobytes())
        for name, content in members.items():
            zipped.writestr(f"net/{name}", content)
    return out.getvalue()


def read(data, tmp_path, name="net.pth"):
    (tmp_path / name).write_bytes(data)
    return read_tensors(tmp_path / name)


def dict_of(**values):
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


# What pickle writes for a Namespace, with the name that a pickle of another process would have.
NAMESPACE = pickle.dumps(argparse.Namespace(lr=0.1, names=["a"], betas=(0.9, 0.999)), 2)[2:-1]
SCALAR = pickle.dumps(np.float64(58.1), 2)[2:-1]


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", "state_dict_ema", "model_ema"])
def test_a_checkpoint_is_opened(key, tmp_path):
    values = {"epoch": b"K\x03", "lr": b"G" + struct.pack(">d", 0.1), "args": NAMESPACE, "best": SCALAR, "none": b"N"}
    found = read(archive(dict_of(**values, **{key: body(SMALL)})), tmp_path)
    assert found.keys() == SMALL.keys()
    for name, value in SMALL.items():
        np.testing.assert_array_equal(found[name], value)


def test_raw_weights_come_before_averaged_ones(tmp_path, caplog):
    caplog.set_level("INFO")
    other = {name: value + 1 for name, value in SMALL.items()}
    data = archive(dict_of(state_dict_ema=body(other).replace(b"X\x01\x00\x00\x000", text("2")), model=body(SMALL)))
    np.testing.assert_array_equal(read(data, tmp_path)["features.0.bias"], SMALL["features.0.bias"])
    assert "under 'model' are used, not those under 'state_dict_ema'" in caplog.text


@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [("module.", "pth"), ("model.", "pth"), ("_orig_mod.module.", "safetensors"), ("backbone.", "safetensors")],
)
def test_a_prefix_is_taken_away(prefix, suffix, state, leaves, tmp_path):
    prefixed = {prefix + name: value for name, value in state.items()}
    prefixed["n_averaged"] = np.array([7.0], np.float32)
    path = tmp_path / f"net.{suffix}"
    path.write_bytes(pth(prefixed) if suffix == "pth" else safetensors.numpy.save(prefixed))
    read_any = torchvision.read_pth if suffix == "pth" else torchvision.read_safetensors
    np.testing.assert_array_equal(
        read_any(path).variables["params"]["conv10"]["kernel"], leaves["params/conv10/kernel"]
    )


def test_a_name_without_the_prefix_is_left_over(state, tmp_path):
    prefixed = {f"module.{name}": value for name, value in state.items()} | {"loss.weight": np.ones(3, np.float32)}
    (tmp_path / "net.pth").write_bytes(pth(prefixed))
    with pytest.raises(WeightError, match=r"\+ params/loss/scale \(3,\)"):
        load(tmp_path / "net.pth")


@pytest.mark.parametrize("name", ["net.pt", "net.bin", "net.ckpt", "net.pth.tar", "net.PTH", "net.safetensors", "net"])
def test_contents_decide_not_the_suffix(name, tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision, "read_pth", read_tensors)
    for data in (pth(SMALL), old_pth(SMALL)):
        (tmp_path / name).write_bytes(data)
        assert pretrained.read(tmp_path / name).keys() == SMALL.keys()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("net.h5", b"\x89HDF\r\n\x1a\n", "is an HDF5 file, such as Keras writes"),
        ("net.pth", b"\x1f\x8b\x08", "is compressed with gzip"),
        ("net.pth", b"<!DOCTYPE html>", "is a web page, not weights"),
        ("net.onnx", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        ("net.pth.tar", b"a" * 257 + b"ustar", "is a tar archive"),
        ("net.xyz", b"xyz", "ends in .xyz; expected one of .net"),
        ("net.pth", b"", "is not a readable state dict: it is not an intact zip file"),
    ],
)
def test_other_files_are_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightError, match=f"^{tmp_path}/{name} {message}"):
        pretrained.read(tmp_path / name)


def test_another_number_of_classes_is_numbered(state, tmp_path):
    few = {name: value[:3] if name.startswith("classifier") else value for name, value in state.items()}
    (tmp_path / "net.pth").write_bytes(pth(few))
    network = load(tmp_path / "net.pth")
    assert network.class_names == ("0", "1", "2") and network.model.num_classes == 3


def with_strides(value, strides, dtype="<f4", storage=b"FloatStorage"):
    """A file of one tensor whose storage is read with these strides."""
    shape = b"(" + b"".join(b"K" + bytes([side]) for side in value.shape) + b"t"
    steps = b"(" + b"".join(b"K" + bytes([step]) for step in strides) + b"t"
    place = b"((" + text("storage") + b"ctorch\n" + storage + b"\n" + text("0") + text("cpu") + b"K\x01tQK\x00"
    call = b"ctorch._utils\n_rebuild_tensor\n" + place + shape + steps + b"tR"  # as before PyTorch 0.4
    return b"ccollections\nOrderedDict\n)R" + text("a") + call + b"s"


def test_strides_and_types_are_read(tmp_path):
    value = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    last = np.ascontiguousarray(value.transpose(0, 2, 3, 1))  # channels_last
    found = read(archive(with_strides(value, (12, 1, 6, 3)), {"a": last}), tmp_path)
    np.testing.assert_array_equal(found["a"], value)
    half = np.float32([1.5, -2, 2**-10]).view(np.uint32) >> 16
    found = read(archive(with_strides(half, (1,), storage=b"BFloat16Storage"), {"a": half.astype("<u2")}), tmp_path)
    np.testing.assert_array_equal(found["a"].astype(np.float32), np.float32([1.5, -2, 2**-10]))
    for strides in ((200, 1, 6, 3), (12, 12, 12, 12)):
        with pytest.raises(WeightError, match="values; 24 are stored|needs"):
            read(archive(with_strides(value, strides), {"a": last[:1]}), tmp_path)


def test_safetensors_of_other_types_are_read(tmp_path):
    import jax.numpy as jnp

    values = {"half": np.float16([1.5, 2]), "brain": np.asarray(jnp.array([1.5, 2], jnp.bfloat16))}
    header = {
        "half": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]},
        "brain": {"dtype": "BF16", "shape": [2], "data_offsets": [4, 8]},
    }
    write_safetensors(tmp_path / "a.safetensors", header, values["half"].tobytes() + values["brain"].tobytes())
    for name, found in torchvision.from_safetensors(tmp_path / "a.safetensors").items():
        np.testing.assert_array_equal(found.astype(np.float32), [1.5, 2], err_msg=name)
    write_safetensors(tmp_path / "b.safetensors", {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"\0")
    with pytest.raises(WeightError, match="has values of U8 in a; expected one of F64"):
        torchvision.from_safetensors(tmp_path / "b.safetensors")


def write_safetensors(path, header, data):
    import json

    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def test_whole_numbers_are_no_weights(state, tmp_path):
    quantized = {**state, "features.0.weight": state["features.0.weight"].astype(np.int32)}
    (tmp_path / "net.safetensors").write_bytes(safetensors.numpy.save(quantized))
    with pytest.raises(WeightError, match="features.0.weight holds int32 values"):
        load(tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"constants.pkl": b"", "code/a.py": b""}, "it is a TorchScript program"),
        ({"byteorder": b"big"}, "written on a big-endian machine"),
    ],
)
def test_archives_of_another_kind_are_named(members, message, tmp_path):
    with pytest.raises(WeightError, match=message):
        read(archive(body(SMALL), **members), tmp_path)


def test_a_member_of_two_meanings_is_refused(tmp_path):
    """PyTorch reads the first of two members of one name, zipfile the last one."""
    whole = archive(body(SMALL))
    for name in ("net/data/0", "other/data/0"):
        out = io.BytesIO(whole)
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(out, "a") as zipped:
            zipped.writestr(name, bytes(100))
        with pytest.raises(WeightError, match="two members of one name, or more than one folder"):
            read(out.getvalue(), tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("features.0.weight", "names with and without module., which mean the same weights"),
        ("module.conv1.weight", "another tensor are both params/conv1/kernel"),
    ],
)
def test_two_tensors_of_one_layer_are_refused(name, message, state, tmp_path):
    prefixed = {f"module.{key}": value for key, value in state.items()}
    (tmp_path / "net.pth").write_bytes(pth(prefixed | {name: np.zeros_like(state["features.0.weight"])}))
    with pytest.raises(WeightError, match=message):
        load(tmp_path / "net.pth")


def nested(depth):
    """Tuples of two equal tuples, to this depth: 2 ** depth values when they are counted."""
    out = b")q\x00"
    for i in range(depth):
        out += b"h" + bytes([i]) + b"\x86q" + bytes([i + 1])
    return out


EMPTY = b"ccollections\nOrderedDict\n)R"
STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04tQ"


def tensor(shape=b"K\x04\x85", strides=b"K\x01\x85", storage=STORAGE, count=1):
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + shape + strides + b"\x89" + EMPTY + b"tR"
    return EMPTY + b"(" + b"".join(text(f"t{i}") + call for i in range(count)) + b"u"


def negated():
    return tensor().replace(EMPTY + b"tR", EMPTY + b"}" + text("neg") + b"\x88stR")


HUGE = b"\x8a\x08" + b"\xff" * 7 + b"\x7f"
HOSTILE = {
    "a key of tuples": (EMPTY + nested(60) + b"K\x01s", "a key that is neither a string nor a number"),
    "a deep key": (EMPTY + b")" + b"\x85" * 20_000 + b"K\x01s", "a key that is neither a string nor a number"),
    "a shape of tuples": (tensor(shape=b"(" + nested(40) + b"t"), "strides"),
    "strides of tuples": (tensor(strides=b"(" + nested(40) + b"t"), "strides"),
    "a storage key of tuples": (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + nested(40) + text("cpu") + b"K\x04tQ",
        "a storage of an unknown kind",
    ),
    "a kind of tuples": (STORAGE.replace(text("storage"), nested(40)), "a storage of an unknown kind"),
    "a huge shape": (tensor(shape=b"(" + HUGE + HUGE + b"t", strides=b"(" + HUGE + b"K\x01t"), "out of range"),
    "nothing times much": (tensor(shape=HUGE + b"K\x00\x86", strides=b"K\x00K\x01\x86"), "out of range"),
    "a negated view": (negated(), "a negated or conjugated view"),
    "a list that is copied again and again": (
        b"]q\x00(" + (text("a") + b"N\x86") * 20_000 + b"e" + b"ccollections\nOrderedDict\nh\x00\x85R" * 20 + EMPTY,
        "copies more than a state dict has",
    ),
    "an empty tensor": (tensor(shape=b"K\x00\x85"), "is empty"),
    "a negative side": (tensor(shape=b"J\xff\xff\xff\xff\x85"), "out of range"),
    "values that repeat": (tensor(shape=b"K\xff\x85", strides=b"K\x00\x85"), "its tensors take|values"),
    "a storage that is not there": (tensor(storage=STORAGE.replace(text("0"), text("../../x"))), "it has no data/"),
    "part of a storage": (tensor(storage=STORAGE.replace(b"tQ", b")tQ")), "a part of another one"),
    "complex numbers": (
        tensor(storage=STORAGE.replace(b"FloatStorage", b"ComplexFloatStorage")),
        "its tensors lie in a torch.ComplexFloatStorage",
    ),
    "many instructions": (b"(" + b"N" * 300_000 + b"t", "more than 262,144 instructions"),
    "a whole model": (b"c__main__\nNet\n)\x81", "uses __main__.Net, which no state dict needs.*state_dict"),
    "os.system": (b"cos\nsystem\n" + text("touch owned") + b"\x85R", "uses os.system"),
    "os.system beside weights": (
        dict_of(model=body(SMALL), x=b"cos\nsystem\n" + text("touch owned") + b"\x85R"),
        "uses os.system",
    ),
    "eval": (b"cbuiltins\neval\n" + text("1") + b"\x85R", "uses builtins.eval"),
    "a dotted name": (b"ccollections\nOrderedDict.__init__.__globals__\n", "uses collections.OrderedDict.__init__"),
    "STACK_GLOBAL": (b"\x8c\x02os\x8c\x06system\x93", "uses os.system"),
    "INST": (b"(" + text("1") + b"ios\nsystem\n", "uses INST"),
    "OBJ": (b"(cos\nsystem\n" + text("1") + b"o", "uses os.system"),
    "EXT1": (b"\x82\x01", "uses EXT1"),
    "a call of a string": (text("a") + b")R", "calls something that is not a function"),
    "a call of what is inert": (NAMESPACE + b")R", "calls something that is not a function"),
    "only settings": (NAMESPACE, "does not contain a state dict"),
    "no tensors": (dict_of(epoch=b"K\x01", loss=b"N"), "it has the keys epoch, loss and no tensors"),
    "a dict in itself": (b"}q\x00" + text("model") + b"h\x00s", "has the keys model and no tensors"),
    "an empty stack": (b"0", "uses POP"),
    "more taken than made": (b"\x85", "takes more values than it makes"),
    "a list that never began": (b"t", "ends a list that it never began"),
    "a memo of nothing": (b"h\x07", "recalls what it never stored"),
    "an item of a number": (b"K\x01" + text("a") + b"K\x01s", "an item of something that is not a dict"),
    "cut off": (b"X\xff\xff\xff\x7f", "its pickle is damaged"),
    "control characters": (b"c\x1b]0;x\x07\nos\n", r"uses \\x1b\]0;x\\x07"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_pickle_ends_in_one_short_line(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    instructions, message = HOSTILE[case]
    tracemalloc.start()
    start = time.monotonic()
    with pytest.raises(WeightError, match=message) as error:
        read(archive(instructions, {"0": np.zeros(4, np.float32)}), tmp_path)
    assert time.monotonic() - start < 10 and tracemalloc.get_traced_memory()[1] < 100 * 2**20
    tracemalloc.stop()
    assert len(str(error.value)) < len(str(tmp_path)) + 300 and str(error.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]


def test_one_storage_many_times_takes_no_memory(tmp_path):
    four = b"J" + struct.pack("<i", 25_000) + b"\x85"
    data = archive(tensor(shape=four, count=300), {"0": np.zeros(25_000, np.float32)})
    with pytest.raises(WeightError, match="its tensors take 30000000 bytes, but the file has"):
        read(data, tmp_path)


def test_many_names_are_counted_not_listed(state, tmp_path):
    many = {**state, **{f"layer{i}.weight": np.zeros(1, np.float32) for i in range(300)}}
    (tmp_path / "net.pth").write_bytes(pth(many))
    with pytest.raises(WeightError, match="and 280 more$") as error:
        load(tmp_path / "net.pth")
    assert str(error.value).count("\n") == 21


def test_old_files_are_cut_off_by_name(tmp_path):
    whole = old_pth(SMALL)
    assert read(whole, tmp_path).keys() == SMALL.keys()
    with pytest.raises(WeightError, match="its storage '1' is cut off"):
        read(whole[:-1], tmp_path)


def test_python_2_wrote_the_items_of_an_ordered_dict():
    pair = b"(lp0\nU\x01ap1\naK\x07a"
    with pytest.raises(WeightError, match="uses LIST"):  # protocol 0, which torch.save does not write
        pickles.load(io.BytesIO(b"ccollections\nOrderedDict\n(" + pair + b"tR."))
    items = b"](](U\x01aK\x07e](U\x01bK\x08ee"
    assert pickles.load(io.BytesIO(b"\x80\x02ccollections\nOrderedDict\n" + items + b"\x85R.")) == {"a": 7, "b": 8}


def test_pytorch_writes_what_is_read(state, leaves, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    last = {
        name: value.to(memory_format=torch.channels_last) if value.ndim == 4 else value
        for name, value in tensors.items()
    }
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
    saved = {
        "last": last,
        "beside": {"state_dict": tensors, "optimizer": optimizer.state_dict(), "args": argparse.Namespace(lr=0.1)},
        "brain": {name: value.bfloat16() for name, value in tensors.items()},
    }
    for name, value in saved.items():
        for new in (True, False):
            torch.save(value, tmp_path / "net.pth", _use_new_zipfile_serialization=new)
            found = torchvision.read_pth(tmp_path / "net.pth").variables["params"]["fire5"]["expand3x3"]["kernel"]
            wanted = leaves["params/fire5/expand3x3/kernel"]
            np.testing.assert_allclose(found, wanted, atol=0 if name != "brain" else 1e-3)
