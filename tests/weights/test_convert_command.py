"""The names that `drsformer convert` writes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from drsformer_jax.errors import InputError
from drsformer_jax.weights.command import Convert


@pytest.mark.parametrize("name", ["out.pt", "out.ckpt", "out.PTH"])
def test_name_of_a_file_of_torch_makes_no_folder(name, tmp_path):
    expected = r"expected --to-torch and one of \.pth \.safetensors for a file, or a folder's name$"
    with pytest.raises(InputError, match=expected):
        Convert(Path("builtin"), tmp_path / name).run()
    with pytest.raises(InputError, match=r"expected one of \.pth \.safetensors$"):
        Convert(Path("builtin"), tmp_path / name, to_torch=True).run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "to_torch"), [("link", False), ("link.pth", True)])
def test_link_that_leads_nowhere_is_there_already(name, to_torch, tmp_path):
    (tmp_path / name).symlink_to("missing")
    with pytest.raises(InputError, match=r"link[.pth]* is there already; expected a new name$"):
        Convert(Path("builtin"), tmp_path / name, to_torch=to_torch).run()
