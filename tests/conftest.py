"""Shapes of arrays are checked at run time in every test; fixtures that several files share."""

from __future__ import annotations

import contextlib
import gc
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import pytest
import typechecker
from jaxtyping import install_import_hook
from programs import UNOPTIMIZED

# The parts whose signatures name shapes, before anything imports them.
CHECKED = ("metrics", "nn", "ops", "restoring.restorer", "training.step")
install_import_hook([f"drsformer_jax.{part}" for part in CHECKED], "typechecker.check")
typechecker.skip_functions_in_functions()

if TYPE_CHECKING:
    from programs import Programs

    from drsformer_jax.config import ModelConfig
    from drsformer_jax.nn.functional import Params


def pytest_configure(config: pytest.Config) -> None:
    # Tracing makes objects that stay; looking through them again and again takes a tenth of it.
    gc.set_threshold(100_000, 50, 50)
    flags = ["--xla_force_host_platform_device_count=8"]
    # Small networks compile for far longer than they run, so the compiler need not optimize. The
    # full-size comparison runs what users run.
    if config.getoption("markexpr") != "golden":
        flags.append(UNOPTIMIZED)
    os.environ.setdefault("XLA_FLAGS", " ".join(flags))
    share_compiled()


def pytest_collection_finish() -> None:
    gc.freeze()  # What was imported stays too.


def share_compiled() -> None:
    """Keeps what is compiled: for other workers, programs that tests start, and the next run.

    With a limit on its size JAX locks the folder, so that nobody reads what is half written.
    """
    from drsformer_jax.restoring.compile_cache import delete_unfinished

    folder = Path(__file__).parents[1] / ".compiled"
    # A worker has all from the process that started it; a user's folder is left as it is.
    writable = os.access(folder if folder.exists() else folder.parent, os.W_OK)
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or not writable:
        return
    folder.mkdir(exist_ok=True)
    delete_unfinished(folder)  # Tests kill programs.
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": 2**29,
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    for name, value in settings.items():
        os.environ[name.upper()] = str(value)  # Of processes that begin from now on.
        jax.config.update(name, value)


@pytest.fixture
def x64() -> Iterator[None]:
    """Runs a test with arrays of 64 bits."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def one_platform() -> Iterator[None]:
    """Traces a test's networks and operations for this platform alone, as our programs do."""
    from drsformer_jax.ops.implementations import traced_for

    with traced_for(jax.default_backend()):
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the project; tests that need it skip without it."""
    folder = Path(__file__).parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip("../shared is not here")
    return folder


@pytest.fixture(scope="session")
def official_shapes(shared: Path) -> Callable[[str], dict[str, tuple[int, ...]]]:
    """Keys and shapes of a published network's official state dict, by the preset's name."""

    def read(preset: str) -> dict[str, tuple[int, ...]]:
        text = (shared / "golden" / f"{preset}_keys.json").read_text()
        return {key: tuple(shape) for key, shape in json.loads(text).items()}

    return read


@pytest.fixture(scope="session")
def network() -> tuple[ModelConfig, Params]:
    """A network that compiles in a moment, and drawn parameters."""
    from recipe import SMALL

    from drsformer_jax.nn.functional import init_params

    return SMALL, init_params(SMALL, jax.random.key(0))


@pytest.fixture(scope="session")
def model(network: tuple[ModelConfig, Params], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that network."""
    from drsformer_jax import weights

    folder = tmp_path_factory.mktemp("model") / "small"
    weights.save(folder, *network)
    return folder


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs of one size, and a configuration that trains on them."""
    from programs import CONFIG

    from drsformer_jax.data.synthetic import SyntheticRain, photographs
    from drsformer_jax.images.pixels import write_image

    folder = tmp_path_factory.mktemp("programs")
    rain = SyntheticRain(photographs("skimage")[0], 1, 0)
    for index in range(2):
        pair = rain[index]
        for part, image in (("input", pair["rainy"]), ("target", pair["clean"])):
            write_image(folder / "pairs" / part / f"{index}.png", image[100:140, 100:148])
    (folder / "config.py").write_text(CONFIG.format(pairs=folder / "pairs"))
    return folder


@pytest.fixture(scope="session")
def run(place: Path) -> Iterator[Programs]:
    """Runs a program in that folder."""
    from programs import Programs

    with contextlib.closing(Programs(place)) as programs:
        yield programs


@pytest.fixture(scope="session")
def trained(run: Programs, place: Path) -> tuple[Path, str]:
    """The folder of a run that was trained with that configuration, and what was printed."""
    result = run("train", "--config", "config.py", "--workdir", "run")
    assert result.returncode == 0, result.stderr
    return place / "run", result.stdout + result.stderr
