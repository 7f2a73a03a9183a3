"""The files of configs/ hold what their docstrings and the papers say, and the ablation runs."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from programs import Programs, rejected
from steps import OFFICIAL_RATES

from drsformer_jax.config import PRESETS, OptimConfig, TrainConfig
from drsformer_jax.config.file import load_config, read_config, to_dict
from drsformer_jax.data.layouts import DATASETS
from drsformer_jax.nn.functional import abstract_params
from drsformer_jax.scoring import published
from drsformer_jax.scoring.complexity import parameters
from drsformer_jax.training.optim import lr_schedule

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs"
PAPER = {
    "rain200l": ("drsformer_no_mefc", "Rain200L"),
    "rain200h": ("drsformer", "Rain200H"),
    "did_data": ("drsformer", "DID-Data"),
    "ddn_data": ("drsformer", "DDN-Data"),
    "spa_data": ("drsformer_no_mefc", "SPA-Data"),
}
"""Preset and benchmark of each published training."""
OFFICIAL = [*PAPER, "restormer_rain13k"]
SHORT = ["quickstart", "rain100l_small", "ablation"]
NAMES = [*OFFICIAL, *SHORT, "pretrained"]
PRESET = {name: preset for name, (preset, _) in PAPER.items()} | {
    "restormer_rain13k": "restormer",
    "rain100l_small": "tiny",
    "quickstart": "tiny",
}
ARMS = {
    "fn": ("fn", "topk", "31.84  0.9275  +0.00"),
    "dfn": ("dfn", "topk", "31.88  0.9279  +0.04"),
    "gdfn": ("gdfn", "topk", "31.97  0.9286  +0.13"),
    "msfn": ("msfn", "topk", "32.18  0.9330  +0.34"),
    "msfn_dense": ("msfn", "dense", ""),
}
"""Feed-forward network, attention and published figures of each arm of the ablation."""


def config_of(name: str) -> TrainConfig:
    return runpy.run_path(str(FOLDER / f"{name}.py"))["get_config"]()


def docstring(name: str) -> str:
    text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text()))
    assert text is not None
    return text


def test_every_configuration_is_tested_here():
    assert {file.stem for file in FOLDER.glob("*.py")} == set(NAMES)


@pytest.mark.parametrize("name", PRESET)
def test_network_has_the_parameters_of_the_readme(name):
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) \|$", (ROOT / "README.md").read_text(), re.M)
    model = config_of(name).model
    assert model.architecture() == PRESETS[PRESET[name]].architecture()
    assert model.remat == (name in OFFICIAL)
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model)))
    assert f"{count:,}" == dict(rows)[PRESET[name]]


@pytest.mark.parametrize("name", OFFICIAL)
def test_learning_rate_is_the_official_one(name):
    config = config_of(name)
    with jax.enable_x64(True):
        for updates, rate in OFFICIAL_RATES.items():
            found = float(lr_schedule(config.optim)(updates))
            assert math.isclose(found, rate, rel_tol=1e-12)


@pytest.mark.parametrize("name", OFFICIAL)
def test_recipe_is_the_official_one(name):
    config = config_of(name)
    assert (config.steps, config.seed) == (300_000, 100)
    assert (config.init_from, config.mesh.device_batch) == ("", 0)
    optim = config.optim
    assert (optim.b1, optim.b2, optim.eps) == (0.9, 0.999, 1e-8)
    assert (optim.weight_decay, optim.clip_norm, optim.ema_decay) == (1e-4, 0.01, 0)
    data = config.data
    assert (data.sources, data.augment, data.mixup, data.small_images) == ((), True, False, "pad")


@pytest.mark.parametrize("name", OFFICIAL)
def test_evaluations_on_a_thousand_images_are_further_apart_than_on_a_hundred(name):
    pairs = DATASETS[config_of(name).data.train].expected
    validated = pairs["test100" if name == "restormer_rain13k" else "test"]
    assert config_of(name).eval_every == (10_000 if validated >= 1000 else 1000)


@pytest.mark.parametrize("name", OFFICIAL)
def test_docstring_says_that_the_projected_hours_are_without_evaluations(name):
    assert "the hours are without evaluations" in " ".join(docstring(name).split())


@pytest.mark.parametrize("name", PAPER)
def test_crops_of_drsformer_are_16_of_128_pixels(name):
    assert config_of(name).data.stages() == ((0, 128, 16),)


def test_patches_of_restormer_grow_as_published():
    data = config_of("restormer_rain13k").data
    assert data.crop_size == 384
    firsts, sides, crops = zip(*data.stages(), strict=True)
    assert firsts == (0, 92_000, 156_000, 204_000, 240_000, 276_000)
    assert sides == (128, 160, 192, 256, 320, 384)
    assert crops == (64, 40, 32, 16, 8, 8)


@pytest.mark.parametrize("name", SHORT)
def test_short_training_ends_with_its_schedule_and_a_score(name):
    config = config_of(name)
    assert config.optim.constant_steps + config.optim.cosine_steps == config.steps
    assert config.optim.clip_norm > OptimConfig().clip_norm, "a short training needs larger steps"
    assert config.steps % config.eval_every == 0


def test_built_in_network_learns_from_synthetic_rain_alone_and_can_be_shipped_at_any_time():
    config = config_of("pretrained")
    assert (config.data.train, config.data.validation) == ("synthetic", "synthetic")
    assert (config.data.sources, config.init_from) == ((), "")
    assert config.optim.constant_steps + config.optim.cosine_steps == config.steps
    assert config.optim.ema_decay > 0
    assert config.data.window >= max(side for _, side, _ in config.data.stages())
    assert 2 * parameters(config.model) < 6e6, "16 bits each"


@pytest.mark.parametrize("name", NAMES)
def test_data_sets_are_those_that_the_builder_makes(name):
    data = config_of(name).data
    for source in (data.train, data.validation):
        known, _, split = source.partition(":")
        assert known == "synthetic" or known in DATASETS
        assert split in ("", *(DATASETS[known].folders if known in DATASETS else ()))
    if data.train != "synthetic":
        assert f"drsformer build-data {data.train} --manual-dir" in docstring(name)


@pytest.mark.parametrize("name", NAMES)
def test_docstring_has_the_command_for_its_own_file(name):
    command = "python train.py --config configs/" if name != "ablation" else "python configs/"
    found = re.findall(rf"{re.escape(command)}(\w+)\.py", docstring(name))
    assert found == [name]


@pytest.mark.parametrize(("name", "benchmark"), [(name, row[1]) for name, row in PAPER.items()])
def test_docstring_and_protocol_are_those_of_the_published_figures(name, benchmark):
    config = config_of(name)
    assert published.dataset(config.data.train).name == benchmark
    assert config.data.validation == config.data.train
    assert config.protocol == published.dataset(name).protocol
    row = next(row for row in published.results(published.dataset(name)) if "DRSf" in row.system)
    assert docstring(name).endswith(
        f"Expected: {row.psnr:.2f} dB, SSIM {row.ssim:.4f} "
        "(published, Table 1 of the paper; not measured here)."
    )
    assert docstring(name).startswith(f"DRSformer on {benchmark},")


@pytest.mark.parametrize(
    ("name", "benchmark"),
    [("restormer_rain13k", "Test100"), ("rain100l_small", "Rain100L"), ("ablation", "Rain200H")],
)
def test_protocol_is_that_of_the_benchmark(name, benchmark):
    assert config_of(name).protocol == published.dataset(benchmark).protocol


STAND_IN = """
import json, sys, time
from pathlib import Path
from drsformer_jax.scoring.complexity import parameters
from drsformer_jax.config.file import to_dict, write_config
sys.path[0] = {root!r}
from train import parse_command

command = parse_command(sys.argv[1:])
config, folder = command.train, command.workdir
if config.data.train == "broken":
    sys.exit("error: broken pairs")
folder.mkdir(parents=True, exist_ok=True)
write_config(folder, to_dict(config))
total = f"Total: {{parameters(config.model):,}} -- bytes"
(folder / "parameters.txt").write_text("| table |\\n" + total)
stopped = folder.name == "dfn" and Path("stop").exists()
gain = {{"fn": 0.1, "dfn": 0.3, "gdfn": 0.2, "msfn": 0.4}}[config.model.feed_forward]
gain -= 0.15 * (config.model.attention == "dense")
with (folder / "metrics.jsonl").open("w") as file:
    for step in range(1, config.steps + 1):
        psnr, ssim = 29 + step + gain, 0.8 + gain / 10
        values = {{"validation/rain200_spa/psnr": psnr, "validation/rain200_spa/ssim": ssim}}
        line = json.dumps({{"step": step, **values}})
        if stopped and step == config.steps:
            print(line[:40], end="", file=file, flush=True)
            time.sleep(600)
        print(line, file=file)
"""
"""Instead of train.py, whose five networks take minutes to compile: it trains nothing."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the ablation, and what stands in for train.py."""
    folder = tmp_path_factory.mktemp("ablation")
    (folder / "configs").mkdir()
    shutil.copy(FOLDER / "ablation.py", folder / "configs")
    (folder / "train.py").write_text(STAND_IN.format(root=str(ROOT)))
    return folder


@pytest.fixture(scope="module")
def ablation(programs: Path, run: Programs) -> Callable[..., subprocess.Popen[str]]:
    """Starts the ablation."""

    def start(*flags: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "configs/ablation.py", *flags],
            text=True,
            cwd=programs,
            env=run.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return start


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    with process:
        output, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@pytest.mark.slow
def test_ablation_continues_where_it_was_stopped_and_trains_nothing_again(ablation, programs):
    flags = ("--workdir", "arms", "--steps", "2", "--eval-every", "1")
    metrics = {arm: programs / "arms" / arm / "metrics.jsonl" for arm in ARMS}
    (programs / "stop").touch()
    with ablation(*flags) as process:
        while not metrics["dfn"].exists() or '{"step": 2' not in metrics["dfn"].read_text():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.terminate()
        process.communicate(timeout=60)  # Else the stand-in would hold the pipes open.
    assert process.returncode == 143
    first = metrics["fn"].stat().st_mtime_ns
    assert not metrics["gdfn"].exists()

    (programs / "stop").unlink()
    whole = ended(ablation(*flags))
    assert whole.returncode == 0, whole.stdout + whole.stderr
    times = {arm: file.stat().st_mtime_ns for arm, file in metrics.items()}
    assert times["fn"] == first
    configs = {arm: read_config(file.parent) for arm, file in metrics.items()}
    base = configs["fn"]
    assert base == dataclasses.replace(
        config_of("ablation"), steps=2, eval_every=1, model=configs["fn"].model
    )
    table = whole.stdout[whole.stdout.index("2 steps on synthetic, seed 100") :].splitlines()
    for (arm, (feed_forward, attention, paper)), line in zip(ARMS.items(), table[2:7], strict=True):
        model = dataclasses.replace(base.model, feed_forward=feed_forward, attention=attention)
        assert configs[arm] == dataclasses.replace(base, model=model)
        psnr, ssim = score(metrics[arm])
        gain = psnr - score(metrics["fn"])[0]
        assert line.split() == [
            *(feed_forward, attention, f"{parameters(model):,}"),
            *(f"{psnr:.2f}", f"{ssim:.4f}", f"{gain:+.2f}", *paper.split()),
        ]
    gain = score(metrics["msfn"])[0] - score(metrics["msfn_dense"])[0]
    assert f"top-k instead of dense attention: {gain:+.2f} dB" in table[7]

    again = ended(ablation(*flags))
    assert (again.returncode, again.stdout.splitlines()) == (0, table), "nothing but the table"
    assert {arm: file.stat().st_mtime_ns for arm, file in metrics.items()} == times
    other = ended(ablation(*flags, "--seed", "5"))
    rejected(other, r"arms was started with other flags .*settings\.json holds; expected the same")


def score(metrics: Path) -> tuple[float, float]:
    """PSNR and SSIM after the last step."""
    last = json.loads(metrics.read_text().splitlines()[-1])
    return last["validation/rain200_spa/psnr"], last["validation/rain200_spa/ssim"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data.train", "broken"), "the arm fn ended with status 1, as reported above"),
        (("--config", "nowhere.py"), r"--config nowhere\.py is no file; expected one such"),
        (("--model.attention=dense",), "--model.attention=dense is what the arms differ in"),
        (("--model.feed_forward", "fn"), "--model.feed_forward is what the arms differ in"),
    ],
)
def test_ablation_that_cannot_go_on_ends_in_one_line(ablation, programs, flags, message):
    rejected(ended(ablation("--workdir", "rejected", *flags)), message)


def test_result_of_an_arm_is_read_from_what_train_py_leaves(trained):
    folder, printed = trained
    found = runpy.run_path(str(FOLDER / "ablation.py"))["result"](folder)
    config = read_config(folder)
    assert found.parameters == f"{parameters(config.model):,}"
    said = f"step {config.steps}: validation PSNR {found.psnr:.2f} dB, SSIM {found.ssim:.4f} "
    assert said in printed
    assert found.config == json.loads(json.dumps(to_dict(config)))


def test_paths_of_a_configuration_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = tmp_path / "config.py"
    path.write_text(
        "from drsformer_jax.config import DataConfig, TrainConfig\n"
        "def get_config():\n"
        "    data = DataConfig(cache_dir='~/cache', validation='~user', "
        "sources=(('~/pairs', 1.0), ('rain200l', 0.5)))\n"
        "    return TrainConfig(data=data, init_from='~/net.pth')\n"
    )
    config, home = load_config(path), tmp_path / "home"
    assert config.data.cache_dir == str(home / "cache")
    assert config.data.sources == ((str(home / "pairs"), 1.0), ("rain200l", 0.5))
    assert (config.data.validation, config.init_from) == ("~user", str(home / "net.pth"))


def test_figures_of_the_ablation_are_those_of_the_reference_material(shared):
    text = (shared / "golden" / "published_results.json").read_text()
    figures = json.loads(text)["ablation"]
    best = figures["FN"]["psnr"]
    for name, row in figures.items():
        gain = row["psnr"] - best
        assert ARMS[name.lower()][2] == f"{row['psnr']:.2f}  {row['ssim']:.4f}  {gain:+.2f}"
