"""What `drsformer export` prints, and how it refuses wrong input."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from drsformer_jax import weights
from drsformer_jax.errors import InputError
from drsformer_jax.exporting import command
from drsformer_jax.exporting.command import Export


def test_summary_says_network_format_type_sizes_and_bytes(model, tmp_path, capsys):
    out = tmp_path / "new" / "a.stablehlo"
    Export(model, out, size="48x40", batch=2, dtype="bfloat16").run()
    printed = capsys.readouterr().out
    assert printed.startswith(f"{model} is ")
    ending = f"bfloat16, 2 images of 48x40, {out.stat().st_size:,} bytes\n"
    assert printed.endswith(f"written to {out}: StableHLO for cpu, cuda, tpu, {ending}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"out": "a.bin"}, r"a.bin ends in '.bin'; expected .stablehlo, .onnx or --format"),
        ({"out": "a"}, r"a ends in ''; expected .stablehlo, .onnx or --format"),
        ({"out": "a.stablehlo", "format": "onnx"}, "ends in '.stablehlo'; expected .onnx$"),
        ({"size": "512"}, "--size is '512'; expected WIDTHxHEIGHT"),
        ({"size": "0x8"}, "--size is '0x8'; expected WIDTHxHEIGHT"),
        ({"batch": 2}, "--batch is given; expected none beside a dynamic size"),
        ({"size": "8x8", "batch": 0}, "--batch is 0; expected at least 1"),
        ({"size": "99999999999x8"}, "799,999,999,992 pixels; expected at most 134,217,728"),
        ({"size": "8192x8192", "batch": 3}, "3 images of 8192x8192, 201,326,592 pixels"),
        ({"checkpoint": "no"}, "no does not exist; expected a run"),
        ({"step": 3}, "is no training run; expected one to take step 3 of"),
    ],
)
def test_wrong_flags_are_one_line_and_nothing_is_written(model, tmp_path, flags, message):
    flags = {"checkpoint": model, "out": "a.stablehlo", **flags}
    checkpoint, out = Path(flags.pop("checkpoint")), tmp_path / flags.pop("out")
    with pytest.raises(InputError, match=message):
        Export(checkpoint, out, **flags).run()
    assert not list(tmp_path.iterdir())


def test_format_is_asked_for_where_the_name_says_nothing(model, tmp_path, capsys):
    Export(model, tmp_path / "a.bin", format="stablehlo", size="8x8").run()
    assert f"written to {tmp_path / 'a.bin'}: StableHLO for cpu" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"a\.onnx ends in '\.onnx'; expected \.stablehlo$"):
        Export(model, tmp_path / "a.onnx", format="stablehlo").run()


def test_a_file_that_is_there_stays(model, tmp_path):
    out = tmp_path / "a.stablehlo"
    out.write_text("mine")
    with pytest.raises(InputError, match="is there already; expected a new name"):
        Export(model, out).run()
    assert out.read_text() == "mine"


def test_folder_is_tried_before_the_program_is_made(model, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "stablehlo", None)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file cannot be written .*; expected a folder that can"):
        Export(model, tmp_path / "file" / "a.stablehlo").run()


def test_float64_is_exported_as_float32_where_asked_for(network, tmp_path, x64):
    config, params = network
    wide = replace(config, dtype="float64", param_dtype="float64")
    folder, out = tmp_path / "wide", tmp_path / "a.stablehlo"
    weights.save(folder, wide, jax.tree.map(lambda leaf: leaf.astype("float64"), params))
    with pytest.raises(InputError, match=r"in float64.*expected --dtype float32 or bfloat16"):
        Export(folder, out).run()
    Export(folder, out, dtype="float32").run()
    assert out.exists()


def test_onnx_without_its_packages_names_the_extra(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "drsformer_jax.exporting.onnx_file", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"is not installed; expected pip install .*\[onnx\]"):
        Export(model, tmp_path / "a.onnx").run()
