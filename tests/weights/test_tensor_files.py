"""Files of tensors come back bit for bit, from us and from torch."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import warnings
import zipfile
from collections import OrderedDict
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from drsformer_jax.errors import InputError
from drsformer_jax.weights.tensor_files import read_tensors, write_pth, write_safetensors

DTYPES = ["float32", "float64", "float16", "bfloat16"]
DTYPES += ["int64", "int32", "int16", "int8", "uint8", "bool"]
PROTOCOLS = (2, 3, 4, 5)


def numbers(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random bits, so also NaN, infinities and denormals; a bool has two patterns alone."""
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    size = int(np.prod(shape)) * kind.itemsize
    content = np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 256, size, np.uint8)
    return content.view(kind).reshape(shape)


def assert_same(found: Any, expected: Any) -> None:
    """Types of containers, order of keys, shapes, types of numbers and bits are equal."""
    if isinstance(expected, np.ndarray):
        assert isinstance(found, np.ndarray)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert type(found) is type(expected)
        assert found == expected


TENSORS = {dtype: numbers(dtype, (2, 3, 4)) for dtype in DTYPES}
TENSORS |= {
    "scalar": numbers("float32", ()),
    "empty": numbers("float32", (0, 3)),
    "transposed": numbers("float32", (3, 5)).T,
    "sliced": numbers("bfloat16", (9, 4))[1::2, ::-1],
    "name with blanks, \N{GREEK SMALL LETTER ALPHA}": numbers("float32", (300, 70)),
}


class StandIn(pickle.Unpickler):
    """Python's own unpickler over one archive, with torch's parts as tuples of their arguments."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        super().__init__(io.BytesIO(archive.read("archive/data.pkl")))
        self.archive = archive

    def find_class(self, module: str, name: str) -> Any:
        return OrderedDict if name == "OrderedDict" else lambda *arguments: (name, *arguments)

    def persistent_load(self, pid: Any) -> Any:
        kind, storage, key, location, count = pid
        assert (kind, location) == ("storage", "cpu")
        return storage()[0], count, self.archive.read(f"archive/data/{key}")


@pytest.mark.parametrize("write", [write_pth, write_safetensors])
def test_written_tensors_are_read_bit_for_bit(write, tmp_path):
    write(tmp_path / "new" / "x", TENSORS)
    found = read_tensors(tmp_path / "new" / "x")
    if write is write_pth:
        assert_same(found, {"params": TENSORS})
    else:
        assert_same(found, dict(sorted(TENSORS.items())))
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "x"]


def test_written_pickle_says_to_python_what_torch_is_to_do(tmp_path):
    write_pth(tmp_path / "x.pth", {"w": TENSORS["transposed"], "n": TENSORS["int64"]}, top="ema")
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        found = StandIn(archive).load()
        assert archive.testzip() is None
        assert archive.read("archive/byteorder") == sys.byteorder.encode()
    content = TENSORS["transposed"].tobytes(), TENSORS["int64"].tobytes()
    kinds = ("FloatStorage", 15, content[0]), ("LongStorage", 24, content[1])
    name, rest = "_rebuild_tensor_v2", (False, OrderedDict())
    assert found == {
        "ema": OrderedDict(
            w=(name, kinds[0], 0, (5, 3), (3, 1), *rest),
            n=(name, kinds[1], 0, (2, 3, 4), (12, 4, 1), *rest),
        )
    }


def test_written_storages_are_aligned_and_the_bytes_repeat(tmp_path):
    for name in ("one", "two"):
        write_pth(tmp_path / name, TENSORS)
    content = (tmp_path / "one").read_bytes()
    assert content == (tmp_path / "two").read_bytes()
    with zipfile.ZipFile(tmp_path / "one") as archive:
        for info in archive.infolist():
            name, extra = struct.unpack_from("<HH", content, info.header_offset + 26)
            start = info.header_offset + 30 + name + extra
            assert start % 64 == 0
            assert content[start : start + info.file_size] == archive.read(info)


def test_safetensors_of_others_are_read_and_others_read_ours(tmp_path):
    tensors = {key: TENSORS[key] for key in TENSORS if TENSORS[key].dtype != ml_dtypes.bfloat16}
    write_safetensors(tmp_path / "ours", tensors)
    assert_same(dict(sorted(safetensors.numpy.load_file(tmp_path / "ours").items())),
                dict(sorted(tensors.items())))  # fmt: skip
    contiguous = {key: np.asarray(value, order="C") for key, value in tensors.items()}
    safetensors.numpy.save_file(contiguous, tmp_path / "theirs", {"format": "pt"})
    assert_same(read_tensors(tmp_path / "theirs"), dict(sorted(tensors.items())))


@pytest.mark.parametrize("write", [write_pth, write_safetensors])
def test_big_endian_arrays_are_written_as_the_same_numbers(write, tmp_path):
    write(tmp_path / "x", {"w": np.arange(5, dtype=">f4")})
    found = read_tensors(tmp_path / "x")
    assert_same(found.get("params", found)["w"], np.arange(5, dtype=np.float32))


@pytest.mark.parametrize("write", [write_pth, write_safetensors])
def test_unknown_numbers_are_rejected_and_leave_the_old_file(write, tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(InputError, match=r"x: w is complex64; expected one of float32, float64"):
        write(tmp_path / "x", {"v": np.zeros(3), "w": np.zeros(3, np.complex64)})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def torch_tensors() -> dict[str, Any]:
    """The same numbers as `TENSORS`, by way of their bits: torch reads no bfloat16 of numpy."""
    torch = pytest.importorskip("torch")
    tensors = {}
    for key, value in TENSORS.items():
        bits = np.array(value, order="C").reshape(-1).view(np.uint8)
        kind = getattr(torch, value.dtype.name)
        tensors[key] = torch.from_numpy(bits).view(kind).reshape(value.shape)
    return tensors


def as_numpy(tensor: Any) -> np.ndarray:
    torch = pytest.importorskip("torch")
    bits = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    kind = str(tensor.dtype).removeprefix("torch.")
    dtype = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    return bits.view(dtype).reshape(tuple(tensor.shape))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_state_of_torch_is_read_bit_for_bit(protocol, tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    base = torch.randn(6, 5)
    value = {
        "params": module.state_dict(),
        "tensors": torch_tensors(),
        "views": [base, base.T, base[1::2, 2:], base[3], base[:, :1].expand(6, 7), base[2, 3]],
        "parameter": torch.nn.Parameter(base[0].clone()),
        "other": torch.nn.Parameter(torch.arange(3.0), requires_grad=False),
        "optimizer": torch.optim.AdamW(module.parameters()).state_dict(),
        "iter": 5,
        "best": 31.2,
        "names": ("a", b"b", None, True, {1, 2}),
    }
    assert hasattr(value["params"], "_metadata")
    place = {"dtype": torch.bfloat16, "device": torch.device("cuda:1"), "size": base.shape}
    torch.save({**value, "place": place}, tmp_path / "x", pickle_protocol=protocol)
    found = read_tensors(tmp_path / "x")
    assert found.pop("place") == {"dtype": "torch.bfloat16", "device": "cuda:1", "size": (6, 5)}

    def expected(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return as_numpy(item)
        if isinstance(item, dict):
            return {key: expected(each) for key, each in item.items()}
        return type(item)(map(expected, item)) if isinstance(item, (list, tuple)) else item

    assert_same(found, expected(value))
    assert_same(found["tensors"], TENSORS)
    for view in found["views"]:
        assert np.shares_memory(view, found["views"][0])
    assert found["views"][4].strides == (20, 0)


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_what_is_written_bit_for_bit(mmap, tmp_path):
    torch = pytest.importorskip("torch")
    write_pth(tmp_path / "x.pth", TENSORS, top="params_ema")
    [(top, found)] = torch.load(tmp_path / "x.pth", mmap=mmap).items()
    assert (top, type(found)) == ("params_ema", OrderedDict)
    if mmap:
        assert all(value.data_ptr() % 64 == 0 for value in found.values())
    assert all(value.is_contiguous() for value in found.values())
    assert_same({key: as_numpy(value) for key, value in found.items()}, TENSORS)


def test_module_of_torch_loads_what_is_written_and_saves_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    modules = [torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)) for _ in range(2)]
    state = {key: as_numpy(value) for key, value in modules[0].state_dict().items()}
    write_pth(tmp_path / "x.pth", state)
    modules[1].load_state_dict(torch.load(tmp_path / "x.pth")["params"], strict=True)
    torch.save({"params": modules[1].state_dict()}, tmp_path / "again.pth")
    assert_same(read_tensors(tmp_path / "again.pth"), {"params": state})


def test_old_format_of_torch_is_rejected_and_read_once_saved_as_the_refusal_says(tmp_path):
    torch = pytest.importorskip("torch")
    value = {"w": torch.arange(3.0)}
    torch.save(value, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"is in the format of torch before 1\.6") as error:
        read_tensors(tmp_path / "x.pth")
    exec(str(error.value).split("`")[1], {"torch": torch})
    assert_same(read_tensors(tmp_path / "x.pth"), {"w": np.arange(3, dtype=np.float32)})


def test_script_of_torch_is_rejected(tmp_path):
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated.
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"x\.pt is a TorchScript archive"):
        read_tensors(tmp_path / "x.pt")


def test_module_saved_whole_is_a_name_alone(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"params": torch.nn.Linear(2, 2)}, tmp_path / "x.pth")
    assert repr(read_tensors(tmp_path / "x.pth")["params"]) == "torch.nn.modules.linear.Linear"


@pytest.mark.parametrize("write", [write_pth, write_safetensors])
def test_note_is_read_back_and_changes_no_tensor(write, tmp_path):
    write(tmp_path / "x", {"w": TENSORS["float32"]}, notes={"drsformer_jax": '{"\N{DEGREE SIGN}"}'})
    expected = {"params": {"w": TENSORS["float32"]}, "drsformer_jax": '{"\N{DEGREE SIGN}"}'}
    assert_same(read_tensors(tmp_path / "x"), expected)


def test_torch_and_others_read_a_file_with_a_note(tmp_path):
    torch = pytest.importorskip("torch")
    notes = {"drsformer_jax": "note"}
    write_pth(tmp_path / "x.pth", {"w": TENSORS["float32"]}, notes=notes)
    found = torch.load(tmp_path / "x.pth", weights_only=True)
    assert found.pop("drsformer_jax") == "note"
    assert_same(as_numpy(found["params"]["w"]), TENSORS["float32"])
    write_safetensors(tmp_path / "x.safetensors", {"w": TENSORS["float32"]}, notes=notes)
    assert_same(safetensors.numpy.load_file(tmp_path / "x.safetensors"), {"w": TENSORS["float32"]})


def test_safetensors_of_torch_are_read_and_torch_reads_ours(tmp_path):
    pytest.importorskip("torch")
    theirs = pytest.importorskip("safetensors.torch")
    theirs.save_file(torch_tensors(), tmp_path / "theirs")
    assert_same(read_tensors(tmp_path / "theirs"), dict(sorted(TENSORS.items())))
    write_safetensors(tmp_path / "ours", TENSORS)
    found = theirs.load_file(tmp_path / "ours")
    assert found.keys() == TENSORS.keys()
    assert_same({key: as_numpy(found[key]) for key in TENSORS}, TENSORS)
