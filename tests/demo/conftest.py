"""A server that several tests visit."""

from __future__ import annotations

import pytest
from demo_server import Server


@pytest.fixture(scope="module")
def served(run, model, tmp_path_factory):
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    server = Server(run, model, tmp_path_factory.mktemp("served"))
    yield server
    server.end()
    assert "Traceback" not in server.errors()
