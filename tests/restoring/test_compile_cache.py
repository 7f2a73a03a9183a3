"""Compiled programs are kept in the user's folder, within a limit."""

from __future__ import annotations

import filelock
import jax
import jax.numpy as jnp
import platformdirs
import pytest
from jax.experimental.compilation_cache import compilation_cache

from drsformer_jax.restoring import compile_cache

NAMES = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
    "jax_raise_persistent_cache_errors",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder that a user has who sets nothing."""
    before = {name: getattr(jax.config, name) for name in NAMES}
    values = (None, -1, 0, -1, True)
    for name, value in zip(NAMES, values, strict=True):
        jax.config.update(name, value)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_MAX_SIZE", raising=False)
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_, **__: tmp_path)
    compilation_cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def restart() -> None:
    """What the next process does; what this one compiled is not forgotten, but see below."""
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    compile_cache.use_compile_cache()


def compile_some(*numbers: int) -> None:
    """Compiles functions that are new to JAX each time, though their programs are not."""
    for number in numbers:
        jax.jit(lambda x, number=number: x + number)(jnp.zeros(number))


def test_cache_is_kept_below_its_limit_also_with_entries_of_no_known_use(folder, monkeypatch):
    (folder / "jit_old-1234-cache").write_bytes(bytes(50_000))
    monkeypatch.setattr(compile_cache, "MAX_BYTES", 40_000)
    compile_cache.use_compile_cache()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    compile_some(*range(1, 12))
    kept = list(folder.glob("*-cache"))
    assert kept
    assert 20_000 < sum(path.stat().st_size for path in kept) <= 40_000
    assert not (folder / "jit_old-1234-cache").exists()


def test_entry_whose_writing_was_interrupted_is_written_anew(folder):
    compile_cache.use_compile_cache()
    compile_some(1)
    (entry,) = folder.glob("jit__lambda*-cache")
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])
    entry.with_name(entry.name.replace("-cache", "-atime")).unlink()
    restart()
    compile_some(1)
    assert len(entry.read_bytes()) > 0.9 * len(whole), "but for the time that compiling took"


def test_entry_that_another_process_writes_is_left_alone(folder):
    entry = folder / "jit_new-1234-cache"
    entry.write_bytes(b"half")
    with filelock.FileLock(folder / ".lockfile", thread_local=False):
        compile_cache.use_compile_cache()
    assert entry.exists()


def test_whole_entries_stay_and_where_the_user_sets_no_limit_all_do(folder, monkeypatch):
    compile_cache.use_compile_cache()
    compile_some(1, 2)
    before = sorted(folder.iterdir())
    restart()
    assert sorted(folder.iterdir()) == before
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "-1")
    entries = sorted(folder.glob("*-cache"))
    for used in folder.glob("*-atime"):
        used.unlink()
    jax.config.update("jax_compilation_cache_max_size", -1)
    restart()
    assert sorted(folder.glob("*-cache")) == entries


def test_folder_that_cannot_be_written_is_not_used(folder, monkeypatch):
    monkeypatch.setattr(compile_cache.os, "access", lambda *_: False)
    compile_cache.use_compile_cache()
    assert jax.config.jax_compilation_cache_dir is None


def test_limit_of_2_gib_is_set_where_the_user_sets_none(folder):
    compile_cache.use_compile_cache()
    assert jax.config.jax_compilation_cache_max_size == 2**31


@pytest.mark.parametrize("limit", ["-1", "12345"])
def test_limit_of_the_user_wins(folder, monkeypatch, limit):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", limit)
    jax.config.update("jax_compilation_cache_max_size", int(limit))  # as JAX does at its import
    compile_cache.use_compile_cache()
    assert jax.config.jax_compilation_cache_max_size == int(limit)


def test_folder_of_the_user_is_left_without_a_limit(folder, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    compile_cache.use_compile_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    assert jax.config.jax_compilation_cache_max_size == -1
