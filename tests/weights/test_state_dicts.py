"""Files of other training programs hold the network under many names, and much beside it."""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from drsformer_jax import weights
from drsformer_jax.errors import InputError
from drsformer_jax.weights.convert import params_to_torch
from drsformer_jax.weights.state_dict import state_dict
from drsformer_jax.weights.tensor_files import read_tensors


@pytest.fixture(scope="module")
def state(network) -> dict[str, np.ndarray]:
    """Official keys and arrays of the small network."""
    config, params = network
    return params_to_torch(params, config)


@pytest.fixture
def module(state) -> Any:
    """A module of torch with the parameters of the small network."""
    torch = pytest.importorskip("torch")
    root = torch.nn.Module()
    for key, value in state.items():
        *parts, name = key.split(".")
        inner = root
        for part in parts:
            if not hasattr(inner, part):
                inner.add_module(part, torch.nn.Module())
            inner = getattr(inner, part)
        inner.register_parameter(name, torch.nn.Parameter(torch.tensor(value)))
    return root


def profiled(module: Any) -> Any:
    """What thop leaves: two counters in every module."""
    torch = pytest.importorskip("torch")
    for each in module.modules():
        for name in ("total_ops", "total_params"):
            each.register_buffer(name, torch.zeros(1, dtype=torch.float64))
    return module


def compiled_parts(module: Any) -> Any:
    torch = pytest.importorskip("torch")
    module.latent = torch.compile(module.latent)
    return module


def under(module: Any, name: str) -> Any:
    torch = pytest.importorskip("torch")
    outer = torch.nn.Module()
    outer.add_module(name, module)
    return outer


def with_loss(module: Any) -> Any:
    torch = pytest.importorskip("torch")
    outer = under(module, "model")
    outer.add_module("perceptual", torch.nn.Conv2d(3, 4, 3))
    return outer


def torch_of(name: str) -> Any:
    torch = pytest.importorskip("torch")
    return {
        "torch.compile": lambda module: torch.compile(module),
        "DataParallel": lambda module: torch.nn.DataParallel(module),
        "both": lambda module: torch.compile(torch.nn.DataParallel(module)),
        "a compiled part": compiled_parts,
        "net": lambda module: under(module, "net"),
        "net_g in DataParallel": lambda module: torch.nn.DataParallel(under(module, "net_g")),
        "thop": profiled,
        "average": lambda module: torch.optim.swa_utils.AveragedModel(module),
        "a loss beside": with_loss,
    }[name]


IGNORING = ("thop", "average", "a loss beside")
WRAPPED = ("torch.compile", "DataParallel", "both", "a compiled part", "net")
WRAPPED += ("net_g in DataParallel", *IGNORING)


def assert_loaded(path: Path, network: Any) -> None:
    config, params = weights.load(path)
    assert config.architecture() == network[0].architecture()
    jax.tree.map(np.testing.assert_array_equal, params, network[1])


@pytest.mark.parametrize("name", WRAPPED)
def test_network_is_found_in_any_wrapper_of_torch(name, module, network, tmp_path):
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.compile imports what is deprecated.
        wrapped = torch_of(name)(module)
    torch.save(wrapped.state_dict(), tmp_path / "net.pth")
    if name not in IGNORING:
        assert_loaded(tmp_path / "net.pth", network)
        return
    with pytest.warns(UserWarning, match="entries beside the network, which are ignored: '"):
        assert_loaded(tmp_path / "net.pth", network)


@pytest.mark.parametrize(
    "top", ["params", "state_dict", "model", "generator", "model_state_dict", "ema", "net_g"]
)
def test_network_is_found_under_any_top_key(top, module, network, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"epoch": 3, top: module.state_dict()}, tmp_path / "net.pth")
    assert_loaded(tmp_path / "net.pth", network)


def test_tensors_of_a_running_torch_are_arrays(module, network):
    torch = pytest.importorskip("torch")
    config, params = network
    for state in (module.state_dict(), {"params": dict(module.named_parameters())}):
        found = weights.from_torch(state)
        assert found.config.architecture() == config.architecture()
        jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(found)), params)
    half = {key: value.to(torch.bfloat16) for key, value in module.state_dict().items()}
    expected = {key: value.float().numpy() for key, value in half.items()}
    jax.tree.map(np.testing.assert_array_equal, state_dict(half), expected)


class Options(dict):
    """Of a class that is not known: a dict with attributes."""


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_of_any_class_beside_the_network_are_neither_imported_nor_in_the_way(
    protocol, module, network, tmp_path, monkeypatch
):
    torch = pytest.importorskip("torch")
    (tmp_path / "theirs.py").write_text(
        "class Schedule:\n    def __setstate__(self, state):\n        raise SystemExit('was run')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import theirs

    schedule = theirs.Schedule()
    schedule.steps = 3
    options = Options(lr=0.1)
    options.name = "x"
    beside = {
        "args": argparse.Namespace(lr=3e-4, milestones=[1, 2], path=Path("runs")),
        "best_psnr": np.float64(31.5),
        "curve": np.arange(3.0),
        "fixed": frozenset("ab"),
        "kinds": {Options: 1},
        "lr_schedulers": [{"milestones": Counter([3, 5])}],
        "options": options,
        "schedule": schedule,
    }
    torch.save(
        {"state_dict": module.state_dict(), **beside},
        tmp_path / "net.ckpt",
        pickle_protocol=protocol,
    )
    monkeypatch.delitem(sys.modules, "theirs")
    assert_loaded(tmp_path / "net.ckpt", network)
    assert "theirs" not in sys.modules
    found = read_tensors(tmp_path / "net.ckpt")
    assert repr(found["schedule"]) == "theirs.Schedule"
    assert repr(found["args"]) == "argparse.Namespace"
    assert "multiarray.scalar" in repr(found["best_psnr"])


@pytest.mark.filterwarnings("ignore:.*[Qq]uantiz", "ignore:TypedStorage")
@pytest.mark.filterwarnings("default:the checkpoint holds")
def test_tensors_of_other_numbers_are_in_the_way_of_the_network_alone(module, network, tmp_path):
    torch = pytest.importorskip("torch")
    beside = {
        "complex": torch.zeros(3, dtype=torch.complex64),
        "counts": torch.zeros(3, dtype=torch.uint16),
        "quantized": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
        "typed": torch.zeros(3).storage(),
        "untyped": torch.zeros(3).untyped_storage(),
    }
    torch.save({"params": module.state_dict(), **beside}, tmp_path / "net.pth")
    assert_loaded(tmp_path / "net.pth", network)
    state = module.state_dict()
    for name, kind in (
        ("complex", "torch.ComplexFloatStorage"),
        ("counts", "torch._utils._rebuild_tensor_v3"),
    ):
        state["output.weight"] = beside[name]
        torch.save({"params": state}, tmp_path / "wrong.pth")
        with pytest.raises(InputError, match=f"output.weight is {kind}; expected a tensor; save"):
            weights.load(tmp_path / "wrong.pth")


def test_average_is_taken_of_several_networks(state):
    other = {key: value + 1 for key, value in state.items()}
    for content in (
        {"params": other, "params_ema": state},
        {"model": other, "trainer": {"ema_state_dict": state}},
        {f"{name}.{key}": value for name, part in (("net_g", other), ("net_g_ema", state))
         for key, value in part.items()},
    ):  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = state_dict(content)
        assert found.keys() == state.keys()
        assert all(found[key] is state[key] for key in state)


def test_what_is_ignored_is_listed(state):
    content = {**state, "total_ops": np.zeros(1), "latent.total_params": np.zeros(1), "epoch": 3}
    with pytest.warns(
        UserWarning,
        match="^the checkpoint holds 3 entries beside the network, which are ignored: 'total_ops', "
        "'latent.total_params', 'epoch'$",
    ):
        assert state_dict(content).keys() == state.keys()


def test_parameter_of_a_changed_network_is_not_ignored(state):
    with pytest.raises(InputError, match=r"latent\.0\.scale is not used"):
        weights.from_torch({**state, "latent.0.scale": np.ones(3, np.float32)})


def test_several_networks_without_an_average_are_named(state):
    with pytest.raises(InputError, match=r"networks under 'model', 'best\.net'; expected one"):
        state_dict({"model": state, "best": {f"net.{key}": each for key, each in state.items()}})


def test_parameter_that_is_no_tensor_is_named_with_its_class(state, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {key: torch.tensor(value) for key, value in state.items()}
    torch.save({"params": {**tensors, "output.weight": np.ones(3)}}, tmp_path / "net.pth")
    with pytest.raises(InputError, match=r"output\.weight is numpy\..*; expected a tensor; save"):
        weights.load(tmp_path / "net.pth")


def test_module_saved_whole_is_read_once_saved_as_the_error_says(
    module, network, tmp_path, monkeypatch
):
    torch = pytest.importorskip("torch")
    torch.save({"epoch": 1, "model": module}, tmp_path / "whole.pth")
    with pytest.raises(InputError) as error:
        weights.load(tmp_path / "whole.pth")
    assert "'epoch' (a int), 'model' (torch.nn.modules.module.Module)" in str(error.value)
    command = re.search("`(.*)`", str(error.value))
    assert command
    monkeypatch.chdir(tmp_path)
    exec(command[1], {"torch": torch, "model": module})
    assert_loaded(tmp_path / "net.pth", network)


def test_module_that_is_the_whole_file_is_named_and_how_to_save_it(module, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(module, tmp_path / "whole.pth")
    expected = (
        r"whole\.pth holds torch\.nn\.modules\.module\.Module; expected a dict of tensors; "
        r"save it alone with `torch\.save\({'params': model\.state_dict\(\)}, 'net\.pth'\)`$"
    )
    with pytest.raises(InputError, match=expected):
        weights.load(tmp_path / "whole.pth")


def test_keys_of_another_network_are_named():
    content = {"params": OrderedDict({f"conv{i}.weight": np.zeros(3) for i in range(7)})}
    with pytest.raises(InputError) as error:
        state_dict(content)
    assert str(error.value).startswith(
        "patch_embed.proj.weight is missing among 'conv0.weight', 'conv1.weight', 'conv2.weight', "
        "'conv3.weight', 'conv4.weight' and 2 more; expected a state dict of DRSformer or"
    )
