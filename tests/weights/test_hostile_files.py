"""No file makes the reader do anything but read tensors: not run, not hang, not fill the memory."""

from __future__ import annotations

import contextlib
import copy
import json
import pickle
import re
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from torch_files import call, number, passed, pickled_tuple, saved, tensor, text, zipped

from drsformer_jax.errors import InputError
from drsformer_jax.weights.tensor_files import read_tensors, write_pth, write_safetensors
from drsformer_jax.weights.torch_pickle import Inert

PROTOCOLS = (2, 3, 4, 5)
FOUR = np.arange(4, dtype=np.float32).tobytes()


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_tensors(path)
    message = str(error.value)
    assert message.startswith(f"{path} ")
    assert message.isprintable()
    assert len(message) < len(str(path)) * 3 + 300
    return message


@contextlib.contextmanager
def memory_below(most: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_of_every_protocol_are_read(protocol, tmp_path):
    value = {
        "params": OrderedDict(a=1, b=[True, False, None]),
        "numbers": [0, -1, 255, 65535, -(2**31), 2**40, -(2**200), 31.25, float("inf")],
        "texts": ("", "\N{GREEK SMALL LETTER ALPHA}", "x" * 300, b"", b"\xff\x00", b"y" * 300),
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "sets": [set(), {1, 2, 3}],
        7: {None: 1, True: 2, b"k": 3},
    }
    value["again"] = value["tuples"]
    found = read_tensors(zipped(tmp_path / "x", pickle.dumps(value, protocol)))
    assert found == value
    assert repr(found) == repr(value | {"params": dict(value["params"])})
    assert found["again"] is found["tuples"]


def test_keys_up_to_the_limit_and_devices_are_read(tmp_path):
    value = {"k" * 1000: 1, b"k" * 1000: 2, 2**32 - 1: 3}
    assert read_tensors(zipped(tmp_path / "x", pickle.dumps(value, 4))) == value
    for arguments, name in ((text("cpu"), "cpu"), (text("cuda") + number(1), "cuda:1")):
        data = saved(b"ctorch\ndevice\n" + pickled_tuple(arguments) + b"R")
        assert read_tensors(zipped(tmp_path / "x", data)) == {"w": name}


def test_big_endian_files_are_read_as_the_same_numbers(tmp_path):
    content = np.arange(4, dtype=">f4").tobytes()
    path = zipped(tmp_path / "x", tensor(), content, byteorder=b"big")
    np.testing.assert_array_equal(
        read_tensors(path)["w"], np.arange(4, dtype=np.float32), strict=True
    )


def test_expanded_tensor_takes_no_memory_and_cannot_be_written(tmp_path):
    path = zipped(tmp_path / "x", tensor((2**30, 2**29, 2), (0, 0, 1), 1), FOUR)
    with memory_below(2**20):
        found = read_tensors(path)["w"]
    assert found.shape == (2**30, 2**29, 2)
    assert found[2**29, 2**28].tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0, 0] = 3


BAD_TENSORS = {
    "reaches beyond its storage": tensor((5,), (1,)),
    "beyond by its offset": tensor((4,), (1,), 1),
    "beyond by its stride": tensor((2, 2), (3, 1)),
    "beyond by far": tensor((2**62,), (2**62,)),
    "no count": tensor((4,), (-1,), 3),
    "no count of size": tensor((-4,), (1,)),
    "no count of offset": tensor((4,), (1,), -1),
    "is damaged": tensor((4, 1), (1,)),
    "is damaged (too large)": tensor((2**62,), (0,)),
    "is damaged (too many axes)": tensor((1,) * 65, (1,) * 65),
    "16 bytes of float32 in storage 0; expected 5": tensor(count=5),
    "16 bytes of float32 in storage 0; expected -4": tensor(count=-4),
    "16 bytes of float32 in storage 0; expected 4611686018427387908": tensor(count=2**62 + 4),
    "lacks the storage ../../../etc/passwd": tensor(key="../../../etc/passwd"),
    "lacks the storage 1;": tensor(key="1"),
    "as a key; expected a printable name of at most 1000": tensor(key="k" * 1001),
    "storage, offset, size and stride alone": tensor(last=pickle.NEWTRUE),
}


@pytest.mark.parametrize("expected", BAD_TENSORS)
def test_tensor_that_its_storage_cannot_hold_is_rejected(expected, tmp_path):
    message = refusal(zipped(tmp_path / "x", BAD_TENSORS[expected], FOUR))
    assert re.sub(r" (\(|by |of size|of offset).*", "", expected) in message


def test_storage_of_two_types_is_rejected(tmp_path):
    other = tensor().replace(b"FloatStorage", b"IntStorage")
    data = tensor()[:-1] + b"0" + other[2:]
    assert "opcode POP" in refusal(zipped(tmp_path / "x", data, FOUR))
    data = b"\x80\x02]" + tensor()[2:-1] + b"a" + other[2:-1] + b"a."
    assert "expected 4 of int32" in refusal(zipped(tmp_path / "x", data, FOUR))


DOUBLED = b"q\x00h\x00\x86"
BYTES = pickle.BINBYTES + struct.pack("<I", 100_000) + bytes(100_000)
EXPANDED = tensor((2**30, 2**29, 2), (0, 0, 1), 1)[len(saved(b"")) - 2 : -2]
COLLIDING = b"".join(number(n * (2**61 - 1)) + b"N" for n in range(50_000))
INTEGERS = b"".join(map(number, range(20_000)))
LONG_LIST = b"](" + b"K\x01" * 100_000 + b"e"
REFERRED = pickled_tuple(EXPANDED, *[pickle.NONE] * 4) + b"Q"
LARGE_DEVICE = b"ctorch\ndevice\n" + text("cuda") + number(2**32) + b"\x86R"
NAME = text("m") + b"q\x00" + text("n" * 400) + b"q\x01\x93"
ATTACKS = {
    "names a class of over 1000": call("m", "\x1b[31m" + "n" * 100_000, "x"),
    "names a class of over 1000 (joined)": b"\x80\x04" + text("m" * 999) + text("n") + b"\x93.",
    "passes too many arguments (names)": b"\x80\x04](" + NAME + b"h\x00h\x01\x93" * 10_000 + b"e.",
    "makes an object of what is no class": b"\x80\x02})\x81.",
    "takes more than it holds (object)": b"\x80\x02)\x81.",
    "holds collections.OrderedDict;": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "opcode INST": b"\x80\x02(ios\nsystem\n.",
    "opcode OBJ": b"\x80\x02(o.",
    "opcode EXT1": b"\x80\x02\x82\x01.",
    "opcode PERSID": b"\x80\x02Px\n.",
    "opcode LONG4": b"\x80\x02\x8b" + struct.pack("<i", 2**20) + b"\x7f" * 2**20 + b".",
    "opcode INT": b"I1\n.",
    "is damaged (digits)": b"L" + b"9" * 10**6 + b"L\n.",
    "is damaged (claimed text)": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "is damaged (no memo)": b"\x80\x02h\x05.",
    "is damaged (no mark)": b"\x80\x02t.",
    "is damaged (no end)": b"\x80\x02}",
    "is damaged (nothing)": b"\x80\x02.",
    "takes more than it holds": b"\x80\x02\x86.",
    "nested over 32 deep (lists)": saved(b"]" * 100_000 + b"a" * 99_999),
    "nested over 32 deep (tuples)": saved(b")" + b"\x85" * 100_000),
    "nested over 32 deep (itself)": b"\x80\x02}q\x00" + text("w") + b"h\x00s.",
    "holds over 1048576 values": saved(b")" + DOUBLED * 30),
    "has a tuple as a key (deep)": b"\x80\x02})" + b"\x85" * 100_000 + b"Ns.",
    "has a int as a key (colliding)": b"\x80\x02}(" + COLLIDING + b"u.",
    "has a\\nb as a key": b"\x80\x02}" + text("a\nb") + b"Ns.",
    "has a list as a key": b"\x80\x04\x8f(]\x90.",
    "kkk... as a key; expected a printable name of": b"\x80\x02}" + text("k" * 1001) + b"Ns.",
    "has a bytes as a key": b"\x80\x03}" + BYTES + b"Ns.",
    "passes too many arguments": passed(LONG_LIST, "__builtin__\nset", 21),
    "passes too many arguments (bytes)": passed(BYTES, "torch\nSize", 21),
    "passes too many arguments (set)": passed(b"\x8f(" + INTEGERS + b"\x90", "torch\nSize", 105),
    "passes too many arguments (dict)": passed(b"}(" + INTEGERS + b"u", "torch\nSize", 210),
    "makes a set of a bytes": passed(BYTES, "__builtin__\nset", 1),
    "makes a set of a dict": passed(b"}", "builtins\nset", 1),
    "has a device that is (doubled)": passed(b")" + DOUBLED * 20, "torch\ndevice", 1),
    "has a device that is (large)": saved(LARGE_DEVICE),
    "sets attributes": b"\x80\x02}}" + text("a") + b"Nsb.",
    "sets attributes (of a tensor)": tensor()[:-2] + b"Nbs.",
    "calls what is no function": b"\x80\x02})R.",
    "holds torch.FloatStorage; expected a dict of": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "fills a tuple": b"\x80\x02)Na.",
    "refers to something outside": b"\x80\x02}Q.",
    "refers to something outside (a large tensor)": saved(REFERRED),
    "holds a list;": b"\x80\x02].",
    "refers to something outside (a class)": saved(b"cm\nn\nQ"),
    "expected at most 2097152": b"\x80\x02" + b"}" * 2**21 + b".",
}  # fmt: skip


@pytest.mark.parametrize("expected", ATTACKS)
def test_hostile_pickle_is_rejected_cheaply(expected, tmp_path):
    path = zipped(tmp_path / "x", ATTACKS[expected], FOUR)
    with memory_below(64 * 2**20):
        message = refusal(path)
    assert re.sub(r" \(.*", "", expected) in message


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_call_in_a_pickle_becomes_a_name_and_has_no_effect(protocol, tmp_path):
    class Attack:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            import os

            return os.system, (f"touch {tmp_path / 'effect'}",)

    path = zipped(tmp_path / "x", pickle.dumps({"w": Attack()}, protocol))
    found = read_tensors(path)["w"]
    assert type(found) is Inert
    assert re.fullmatch(r"(posix|nt)\.system", repr(found))
    assert not (tmp_path / "effect").exists()
    with zipfile.ZipFile(path) as archive:
        pickle.loads(archive.read("x/data.pkl"))
    assert (tmp_path / "effect").exists(), "the attack is none"


INERT = {
    "builtins.eval": call("builtins", "eval", "1"),
    "builtins.getattr": pickle.dumps({"w": getattr}, 4),
    "torch.load": call("torch", "load", "x"),
    "torch._utils._rebuild_tensor": call("torch._utils", "_rebuild_tensor", "x"),
    "m.\\x1b[31m": call("m", "\x1b[31m", "x"),
    "torch.FloatStorage": saved(b"ctorch\nFloatStorage\n"),
    "torch.EvalStorage": tensor().replace(b"FloatStorage", b"EvalStorage"),
    "no_such_module.Kind": saved(b"cno_such_module\nKind\n)\x81}" + text("a") + b"Nsb"),
    "m.Dict": saved(b"cm\nDict\n)\x81(" + text("k") + b"Nu"),
    "m.List": saved(b"cm\nList\n)\x81(" + text("k") + b"Ne"),
    "m.Keywords": b"\x80\x04}" + text("w") + b"cm\nKeywords\n)}\x92s.",
}


@pytest.mark.parametrize("name", INERT)
def test_class_or_function_that_is_not_known_is_a_name_alone(name, tmp_path):
    found = read_tensors(zipped(tmp_path / "x", INERT[name]))["w"]
    assert type(found) is Inert
    assert repr(found) == name
    assert not hasattr(found, "__dict__")


def test_many_calls_take_little_memory(tmp_path):
    data = passed(pickle.NONE, "m\nf", 200_000)
    with memory_below(64 * 2**20):
        assert len(read_tensors(zipped(tmp_path / "x", data))["w"]) == 200_001


def test_huge_memo_index_takes_no_memory(tmp_path):
    path = zipped(tmp_path / "x", b"\x80\x02}r\xff\xff\xff\x7f0}r\xff\xff\xff\xff.")
    with memory_below(2**20):
        assert "opcode POP" in refusal(path)
        assert read_tensors(zipped(path, b"\x80\x02}r\xff\xff\xff\x7f.")) == {}


def test_zip_that_claims_more_than_it_has_is_rejected(tmp_path):
    def changed(change: Callable[[zipfile.ZipFile], None], method: int = zipfile.ZIP_STORED) -> str:
        with zipfile.ZipFile(tmp_path / "x", "w", method) as archive:
            archive.writestr("x/data.pkl", tensor())
            archive.writestr("x/data/0", FOUR * 1000)
            change(archive)
        with memory_below(40 * 2**20):
            return refusal(tmp_path / "x")

    def terabytes(archive: zipfile.ZipFile) -> None:
        archive.filelist[1].file_size = archive.filelist[1].compress_size = 2**42

    def overlapping(archive: zipfile.ZipFile) -> None:
        for key in range(1000):
            archive.filelist.append(copy.copy(archive.filelist[1]))
            archive.filelist[-1].filename = f"x/data/{key + 1}"

    def twice(archive: zipfile.ZipFile) -> None:
        archive.filelist.append(archive.filelist[1])

    assert f"claims {2**42 + len(tensor())} bytes of entries" in changed(terabytes)
    assert "bytes of entries; expected at most its own" in changed(overlapping)
    assert "has entries of one name" in changed(twice)
    assert "has x/data.pkl compressed" in changed(lambda _: None, zipfile.ZIP_DEFLATED)


def test_directory_of_millions_of_entries_is_rejected_before_it_is_read(tmp_path):
    size = 17 * 2**20
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 65535, 65535, size, 0, 0)
    (tmp_path / "x").write_bytes(b"PK\x03\x04".ljust(size, b"\0") + end)
    with memory_below(2**20):
        assert f"claims a directory of {size} bytes" in refusal(tmp_path / "x")


STRANGERS = {
    "is empty": b"",
    "is a web page that starts with <!DOCTYPE html>": b"\n<!DOCTYPE html><title>Sign in",
    "is Git LFS's pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "is in the format of torch before 1.6": pickle.dumps(0x1950A86A20F9469CFC6C, 2),
    "torch before 1.6; expected": pickle.dumps(0x1950A86A20F9469CFC6C, 4),
    "is a tar, as of torch before 0.2": b"storages".ljust(257, b"\0") + b"ustar\x0000",
    "starts with \\x1f\\x8b": b"\x1f\x8b\x08\x00",
    "starts with \\x80\\x02}": pickle.dumps({}, 2),
    "is damaged or cut off (BadZipFile": b"PK\x03\x04 and no more",
    "SafetensorError": struct.pack("<Q", 2) + b"{]",
    "cut off (SafetensorError: Error": struct.pack("<Q", 2**62) + b"{}",
}


def test_what_is_no_file_or_no_file_of_tensors_is_rejected(tmp_path):
    assert refusal(tmp_path / "absent").endswith("absent cannot be read: No such file or directory")
    assert refusal(tmp_path).endswith(" cannot be read: Is a directory")
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("image.png", b"")
    assert "x is a zip without the data.pkl of torch.save" in refusal(tmp_path / "x")
    zipped(tmp_path / "x", tensor(), FOUR, byteorder=b"middle")
    assert "x has byte order middle; expected little or big" in refusal(tmp_path / "x")


@pytest.mark.parametrize(
    ("key", "dtype", "expected"),
    [
        ("w", "F8_E4M3", "has w as F8_E4M3; expected one of F32, F64,"),
        ("w\n", "U8", "has w\\n as a key; expected a printable name"),
        ("w", "\n", "SafetensorError: "),
        ("w", "F64", "SafetensorError: "),
    ],
)
def test_safetensors_of_other_contents_are_rejected(key, dtype, expected, tmp_path):
    entry = {"dtype": dtype, "shape": [4], "data_offsets": [0, 4]}
    header = json.dumps({key: entry}).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
    assert expected in refusal(tmp_path / "x")


@pytest.mark.parametrize("expected", STRANGERS)
def test_file_of_another_kind_is_reported_by_its_content(expected, tmp_path):
    (tmp_path / "x.pth").write_bytes(STRANGERS[expected])
    message = refusal(tmp_path / "x.pth")
    assert expected in message.replace("\\n<", "<")
    assert "expected a" in message
    if "torch before 1.6" in message:
        path = repr(str(tmp_path / "x.pth"))
        assert f"`torch.save(torch.load({path}, weights_only=True), {path})`" in message


SMALL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.arange(3)}


def read_or_reject(path: Path) -> dict | None:
    """What is in a damaged file; every refusal is one line."""
    try:
        return read_tensors(path)
    except InputError:
        refusal(path)
        return None


@pytest.mark.parametrize("write", [write_pth, write_safetensors])
def test_file_cut_off_anywhere_is_rejected(write, tmp_path):
    write(tmp_path / "x", SMALL)
    content = (tmp_path / "x").read_bytes()
    for length in range(0, len(content), 3):
        (tmp_path / "x").write_bytes(content[:length])
        refusal(tmp_path / "x")


@pytest.mark.parametrize("write", [write_pth, write_safetensors])
def test_flipped_bit_is_rejected_or_harmless(write, tmp_path):
    write(tmp_path / "x", SMALL)
    content = (tmp_path / "x").read_bytes()
    rejected = 0
    for bit in np.random.default_rng(0).integers(0, 8 * len(content), 300):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / "x").write_bytes(changed)
        found = read_or_reject(tmp_path / "x")
        rejected += found is None
        # A zip has checksums; without, the numbers may be others.
        if found is not None and write is write_pth:
            np.testing.assert_equal(found, {"params": SMALL})
    assert rejected > 30


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pickle_of_random_damage_is_rejected_or_read(protocol, tmp_path):
    plain = pickle.dumps({"a": [1, 2.5, "b", (3, 4)], "c": {5}, "d": b"e"}, protocol)
    random = np.random.default_rng(protocol)
    opcodes = b"().0NR]Q\x85\x86\x87\x88\x8f\x90\x94abehjloqrstu}" + bytes(8)
    found = 0
    for data in [plain, tensor()] * 150:
        changed = bytearray(data)
        for place in random.integers(0, len(data), random.integers(1, 5)):
            changed[place] = opcodes[random.integers(len(opcodes))]
        found += read_or_reject(zipped(tmp_path / "x", bytes(changed), FOUR)) is not None
    assert found > 5
