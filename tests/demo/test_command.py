"""`drsformer demo` without a browser: its flags, and the files of visitors."""

from __future__ import annotations

import os
import socket
import sys
import time

import pytest

from drsformer_jax.demo.command import Demo
from drsformer_jax.demo.visits import Visits
from drsformer_jax.errors import InputError


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"port": 0}, "--port is 0; expected 1 to 65535"),
        ({"max_megabytes": 0}, "--max-megabytes is 0; expected at least 1"),
        ({"max_pixels": 2**27 + 1}, "--max-pixels is 134217729; expected 1 to 134217728"),
        ({"max_waiting": 0}, "--max-waiting is 0; expected at least 1"),
        ({"checkpoint": ()}, "--checkpoint is empty; expected at least one network"),
    ],
)
def test_impossible_flag_is_one_line(flags, message):
    with pytest.raises(InputError) as error:
        Demo(**flags).run()
    assert str(error.value) == message


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "drsformer_jax.demo.page", raising=False)
    with pytest.raises(InputError, match=r"gradio is missing.*pip install 'drsformer_jax\[demo\]'"):
        Demo().run()


def test_taken_port_and_foreign_host_are_one_line_each():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"127.0.0.1 port {port} cannot be served"):
            Demo(port=port).check_address()
        with pytest.raises(InputError, match="no such address"):
            Demo(host="no.such.host.invalid", port=port).check_address()


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no address of IPv6")
@pytest.mark.parametrize("host", ["::1", "[::1]", "::"])
def test_addresses_of_ipv6_may_have_brackets(host):
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match="Address already in use"):
            Demo(host=host, port=port).check_address()
    Demo(host=host, port=port).check_address()


@pytest.fixture
def visits(tmp_path):
    (tmp_path / "example").mkdir()
    return Visits(tmp_path)


def names(visits):
    return {path.name for path in visits.root.iterdir()}


def test_end_of_a_visit_deletes_what_no_other_visit_holds(visits):
    own, shared = visits.new("a"), visits.new("a")
    visits.hold("b", shared)
    visits.hold("a", visits.root / "example")
    visits.end("a")
    assert names(visits) == {shared.name, "example"} != {own.name}
    visits.end("b")
    assert names(visits) == {"example"}


def test_visit_of_any_name_leaves_what_the_page_shows(visits):
    for visit in ("", "None"):  # Names are what browsers send.
        visits.end(visit)
        visits.sweep(0)
    assert names(visits) == {"example"}


def test_folder_outside_is_never_deleted(visits, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    visits.hold("a", other)
    visits.end("a")
    assert other.is_dir()


def test_sweep_deletes_what_is_old_but_what_the_page_shows(visits):
    old, new = visits.new("a"), visits.new("a")
    part = visits.root / "part of an upload"
    part.touch()
    for path in (old, part, visits.root / "example"):
        os.utime(path, (0, 0))
    visits.sweep(3600)
    assert names(visits) == {new.name, "example"}
    visits.end("a")
    assert names(visits) == {"example"}


def test_sweep_leaves_what_an_image_that_waits_or_is_computed_needs(visits):
    upload = visits.new("a")
    visits.keep("a")
    result = visits.new("a")
    for path in (upload, result):
        os.utime(path, (0, 0))
    visits.sweep(3600)
    assert names(visits) == {upload.name, result.name, "example"}
    visits.done("a", result)
    visits.sweep(3600)
    assert names(visits) == {"example"}


def test_what_waits_for_longer_than_a_day_is_old(visits, monkeypatch):
    upload = visits.new("a")
    visits.keep("a")
    visits.keep("of no folder")
    os.utime(upload, (0, 0))
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 25 * 3600)
    visits.sweep(3600)
    assert names(visits) == {"example"}
    visits.sweep(3600)


def test_result_of_a_visit_that_has_ended_is_deleted_when_it_is_done(visits):
    result = visits.new("a")
    visits.keep("a")
    assert visits.holds("a", result)
    visits.end("a")
    assert not visits.holds("a", result)
    result.mkdir()  # As writing it does.
    visits.done("a", result)
    assert names(visits) == {"example"}
