"""The server of `drsformer demo`, by requests as a browser sends them."""

from __future__ import annotations

import json
import secrets
import signal
import socket
import time
import urllib.error
import urllib.request

import pytest
from image_files import noise
from PIL import Image
from programs import rejected

pytestmark = pytest.mark.slow


class Visit:
    """A visitor's page: its uploads, its clicks and what it is told, until it is closed."""

    def __init__(self, served):
        self._api, self.session = f"{served.url}gradio_api/", secrets.token_hex(5)
        config = json.load(urllib.request.urlopen(f"{served.url}config"))
        self._numbers = {each["api_name"]: each["id"] for each in config["dependencies"]}
        props = (each["props"] for each in config["components"])
        (choices,) = (each["choices"] for each in props if each.get("label") == "Network")
        self.networks = [value for _, value in choices]
        self._open = urllib.request.urlopen(f"{self._api}heartbeat/{self.session}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._open.close()

    def upload(self, path):
        """What Gradio calls the file from then on."""
        end = secrets.token_hex(9)
        head = f'--{end}\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"'
        body = f"{head}\r\n\r\n".encode() + path.read_bytes() + f"\r\n--{end}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={end}"}
        request = urllib.request.Request(f"{self._api}upload", body, kind)
        (name,) = json.load(urllib.request.urlopen(request))
        return {"path": name, "meta": {"_type": "gradio.FileData"}}

    def call(self, name, *values):
        """Messages of the server until the call is done."""
        body = {"fn_index": self._numbers[name], "data": values, "session_hash": self.session}
        head = {"Content-Type": "application/json"}
        join = urllib.request.Request(f"{self._api}queue/join", json.dumps(body).encode(), head)
        urllib.request.urlopen(join).close()
        address = f"{self._api}queue/data?session_hash={self.session}"
        with urllib.request.urlopen(address) as answers:
            for line in answers:
                if line.startswith(b"data: "):
                    message = json.loads(line.removeprefix(b"data: "))
                    yield message
                    if message["msg"] == "process_completed":
                        return

    def restore(self, path, way="Full image", network=0):
        """The same, of a file that is uploaded and restored."""
        file = self.upload(path)
        for name, values in (("accept", [file]), ("ask", [])):
            for message in self.call(name, *values):
                assert message.get("success", True), message
        yield from self.call("restore", file, self.networks[network], way)


def waited_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_download_is_what_derain_writes_and_is_deleted_after_the_visit(
    served, run, model, tmp_path
):
    source = tmp_path / "mine.png"
    Image.fromarray(noise((40, 52, 3))).save(source)
    with Visit(served) as visit:
        *_, last = visit.restore(source)
        assert last["success"], last
        contents = {path.read_bytes() for path in served.folder.rglob(source.name)}
        result = run("drsformer", "derain", source, tmp_path / "a.png", "--checkpoint", model)
        assert result.returncode == 0, result.stderr
        assert contents == {source.read_bytes(), (tmp_path / "a.png").read_bytes()}
    waited_for(lambda: source.name not in served.files())


def test_click_without_an_image_is_one_line_and_the_next_one_restores(served, tmp_path):
    Image.fromarray(noise((40, 40, 3))).save(tmp_path / "late.png")
    with Visit(served) as visit:
        assert [each["success"] for each in visit.call("ask") if "success" in each] == [True]
        *_, last = visit.call("restore", None, visit.networks[0], "Full image")
        assert last["output"]["error"] == "no image is chosen; expected an upload or an example"
        *_, last = visit.restore(tmp_path / "late.png")
        assert last["success"], last


def test_visitor_who_leaves_while_an_image_is_computed_leaves_no_file_and_stops_nobody(
    served, tmp_path
):
    for name, width in (("wide.png", 400), ("next.png", 40)):
        Image.fromarray(noise((200, width, 3))).save(tmp_path / name)
    with Visit(served) as visit:
        for message in visit.restore(tmp_path / "wide.png", "Tiles of 256 pixels", network=1):
            if "<progress" in json.dumps(message):
                break
    with Visit(served) as visit:
        *_, last = visit.restore(tmp_path / "next.png")
        assert last["success"], last
    waited_for(lambda: {"wide.png", "next.png"}.isdisjoint(served.files()))


def test_page_is_served_at_ipv6_and_beside_a_proxy(run, model, tmp_path):
    """The proxy is none: whatever is sent there fails."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as free:
            port = free.getsockname()[1]
    except OSError:
        pytest.skip("this machine has no address of IPv6")
    proxy = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    server = run.start(
        *("drsformer", "demo", "--checkpoint", model, "--host", "::1", "--port", port),
        environment={**run.environment, **proxy, "TMPDIR": str(tmp_path)},
    )
    with server:
        assert server.stdout.readline() == f"the page is at http://[::1]:{port}/\n"
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert b"drsformer" in direct.open(f"http://[::1]:{port}/", timeout=60).read()
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 143


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_hosts_without_a_proxy_stay_so(monkeypatch, name):
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    from drsformer_jax.demo.page import _without_proxy

    for each in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "*")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    _without_proxy("192.168.0.7")
    assert urllib.request.proxy_bypass_environment("example.org")
    monkeypatch.setenv(name, "example.org")
    _without_proxy("192.168.0.7")
    for host in ("192.168.0.7", "example.org"):
        assert urllib.request.proxy_bypass_environment(host)
    assert not urllib.request.proxy_bypass_environment("example.com")


def test_taken_port_is_one_line(run, served):
    rejected(run("drsformer", "demo", "--port", served.port), "expected .* a free --port")


@pytest.mark.parametrize("route", ["reset", "reset/", "cancel"])
def test_server_takes_what_the_page_sends_when_it_is_reset(served, route):
    request = urllib.request.Request(f"{served.url}gradio_api/{route}", b"{}")
    request.add_header("Content-Type", "application/json")
    with pytest.raises(urllib.error.HTTPError, match="422"):  # It is read, and found too short.
        urllib.request.urlopen(request)


@pytest.mark.parametrize("route", ["process_recording", "component_server", "run/accept"])
def test_server_takes_only_what_the_page_sends(served, route):
    request = urllib.request.Request(f"{served.url}gradio_api/{route}", b"{}")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(request)


def test_server_fetches_nothing_that_a_visitor_names(served):
    api = f"{served.url}gradio_api/"
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"http://127.0.0.1:{other.getsockname()[1]}/a.png"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{api}file={address}")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{api}file/{address}")
    file = {"path": address, "meta": {"_type": "gradio.FileData"}}
    config = json.load(urllib.request.urlopen(f"{served.url}config"))
    (number,) = [each["id"] for each in config["dependencies"] if each["api_name"] == "accept"]
    body = {"fn_index": number, "data": [file], "session_hash": "a"}
    head = {"Content-Type": "application/json"}
    join = urllib.request.Request(f"{api}queue/join", json.dumps(body).encode(), head)
    urllib.request.urlopen(join).close()
    with urllib.request.urlopen(f"{api}queue/data?session_hash=a") as answers:
        assert "an address was sent; expected an uploaded file" in answers.read().decode()
