"""Fixtures of several operations' tests."""

import pytest

from drsformer_jax.ops import strips


@pytest.fixture
def small_strips(monkeypatch):
    """Strips of 8 rows, so that small images have several, the last of them not full."""
    monkeypatch.setattr(strips, "STRIP_ELEMENTS", 1)
