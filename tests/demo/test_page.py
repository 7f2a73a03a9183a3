"""The page of `drsformer demo`, in Chromium: what a visitor sees, and what stays on the server."""

from __future__ import annotations

import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from demo_server import Server
from image_files import chunk, noise, phone, smooth
from PIL import Image

from drsformer_jax.images.image import LoadedImage, save_image

pytestmark = pytest.mark.slow
PATIENCE = 60_000
"""Milliseconds in which a small network compiles and restores."""
BUTTON = "Remove rain"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with playwright.sync_playwright() as driver:
        options = {"executable_path": CHROMIUM, "args": ["--no-sandbox", offline]}
        with driver.chromium.launch(**options) as browser:
            yield browser


@pytest.fixture
def visit(browser, served):
    """Opens the page as another visitor; in the end nobody may have asked another server."""
    contexts, foreign, alerts = [], [], []

    def open_page(**options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        own = (served.url, "data:", "blob:")
        context.on("request", lambda r: r.url.startswith(own) or foreign.append(r.url))
        page.on("dialog", lambda dialog: alerts.append(dialog.message))
        with page.expect_request("**/heartbeat/*"):
            page.goto(served.url)
        page.get_by_role("button", name=BUTTON).wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert foreign == []
    assert alerts == []


def upload(page, path):
    clear = page.get_by_role("button", name="Clear").first  # That of an error comes behind.
    if clear.count():
        clear.click()
    page.locator("input[type=file]").set_input_files(path)
    page.get_by_role("row", name=re.compile("B")).wait_for()


def restored(page):
    page.get_by_role("button", name=BUTTON).click()
    page.get_by_role("slider").wait_for()


def download(page, target):
    with page.expect_download() as waiting:
        page.get_by_role("button", name="at full resolution").click()
    waiting.value.save_as(target / waiting.value.suggested_filename)
    return target / waiting.value.suggested_filename


def derained(run, model, source, target, *flags):
    result = run("drsformer", "derain", source, f"{target}/", "--checkpoint", model, *flags)
    assert result.returncode == 0, result.stderr
    (path,) = target.iterdir()
    return path


def error(page):
    """What the page says of what is wrong."""
    message = page.locator(".toast-message-item.error")
    message.first.wait_for()
    return message.first.inner_text()


def write_phone(path):
    Image.fromarray(smooth(60, 84)).save(path, exif=phone(6), quality=90)


def write_deep(path):
    save_image(path, LoadedImage(noise((40, 52, 3), deep=True), noise((40, 52), deep=True)))


def write_gif(path):
    Image.fromarray(smooth(40, 44)).convert("P").save(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [("phone.jpg", write_phone), ("deep 16.tif", write_deep), ("few.gif", write_gif)],
)
def test_download_is_the_file_that_derain_writes(visit, run, model, tmp_path, name, write):
    source = tmp_path / name
    write(source)
    page = visit()
    upload(page, source)
    restored(page)
    found = download(page, tmp_path / "page")
    expected = derained(run, model, source, tmp_path / "derain")
    assert found.name.replace("_", " ") == expected.name
    assert found.read_bytes() == expected.read_bytes()


def test_tiles_are_those_of_derain(visit, run, model, tmp_path):
    Image.fromarray(noise((200, 400, 3))).save(tmp_path / "wide.png")
    page = visit()
    upload(page, tmp_path / "wide.png")
    page.get_by_text("Tiles of 256 pixels").click()
    restored(page)
    found = download(page, tmp_path / "page")
    flags = ("--tile", "256")
    expected = derained(run, model, tmp_path / "wide.png", tmp_path / "derain", *flags)
    assert found.read_bytes() == expected.read_bytes()


def test_example_is_restored_and_the_slider_moves_by_mouse_and_keyboard(visit):
    page = visit(viewport={"width": 390, "height": 844})
    page.get_by_role("button", name="Thumbnail 1").click()
    page.get_by_role("row", name="chelsea-light-rain").wait_for()
    restored(page)
    slider, before = page.get_by_role("slider"), page.locator(".compare .before")

    def cut():
        """Share of the image before that is hidden, from the right."""
        hidden = before.evaluate("e => getComputedStyle(e).clipPath")
        return float(re.search(r"calc\(100% - ([\d.]+)%\)|([\d.]+)%", hidden)[0].strip("%")) / 100

    assert before.evaluate("e => [e.naturalWidth, e.naturalHeight]") == [451, 300]
    assert cut() == pytest.approx(0.5)
    box = slider.bounding_box()
    slider.click(position={"x": box["width"] * 0.25, "y": box["height"] / 2})
    assert cut() == pytest.approx(0.75, abs=0.02)
    slider.press("ArrowLeft")
    assert cut() == pytest.approx(0.76, abs=0.02)
    slider.press("Home")
    assert cut() == pytest.approx(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_network_that_is_chosen_restores(visit, run, tmp_path):
    Image.fromarray(noise((40, 40, 3))).save(tmp_path / "noise.png")
    page = visit()
    upload(page, tmp_path / "noise.png")
    page.get_by_role("combobox", name="Network").click()
    page.get_by_role("option", name="built-in: tiny").click()
    restored(page)
    found = download(page, tmp_path / "page")
    expected = derained(run, "builtin", tmp_path / "noise.png", tmp_path / "derain")
    assert found.read_bytes() == expected.read_bytes()


def test_two_visitors_at_once_get_their_own_results(visit, run, model, tmp_path):
    pages = [visit(), visit()]
    for index, page in enumerate(pages):
        Image.fromarray(noise((200 + 8 * index, 240, 3), seed=index)).save(
            tmp_path / f"{index}.png"
        )
        upload(page, tmp_path / f"{index}.png")
    for page in pages:
        page.get_by_role("button", name=BUTTON).click()
    for index, page in enumerate(pages):
        page.get_by_role("slider").wait_for()
        found = download(page, tmp_path / "page")
        expected = derained(run, model, tmp_path / f"{index}.png", tmp_path / f"derain{index}")
        assert found.read_bytes() == expected.read_bytes()


def huge_head():
    head = chunk(b"IHDR", bytes([0, 1, 0, 0, 0, 0, 2, 0, 8, 2, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def cut_short(tmp_path):
    Image.fromarray(noise((40, 40, 3))).save(tmp_path / "whole.png")
    return (tmp_path / "whole.png").read_bytes()[:2000]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.png", lambda _: b"<script>alert(1)</script>", "no.png is no image that can be read"),
        ("huge.png", lambda _: huge_head(), "huge.png has 65536x512 pixels; expected at most 200,"),
        ("cut.png", cut_short, "cut.png is no image that can be read"),
        ("<img src=x onerror=alert(1)>.png", lambda _: b"x", "is no image that can be read"),
    ],
)
def test_hostile_file_is_one_line_and_the_next_one_is_restored(
    visit, served, tmp_path, name, content, message
):
    hostile = {"name": name, "mimeType": "image/png", "buffer": content(tmp_path)}
    page = visit()
    upload(page, hostile)
    page.get_by_role("button", name=BUTTON).click()
    said = error(page)
    assert message in said
    assert "\n" not in said
    assert str(served.folder) not in said
    Image.fromarray(smooth(40, 40)).save(tmp_path / "good.png")
    upload(page, tmp_path / "good.png")
    restored(page)


def test_file_of_too_many_bytes_is_refused(visit):
    page = visit()
    hostile = {"name": "large.png", "mimeType": "image/png", "buffer": bytes(1_100_000)}
    page.locator("input[type=file]").set_input_files(hostile)
    assert "exceed" in error(page)


def test_no_image_chosen_is_one_line(visit):
    page = visit()
    page.get_by_role("button", name=BUTTON).click()
    assert error(page) == "no image is chosen; expected an upload or an example"


def test_files_are_deleted_when_the_visitor_leaves(visit, served, tmp_path):
    Image.fromarray(smooth(40, 40)).save(tmp_path / "secret.png")
    page = visit()
    upload(page, tmp_path / "secret.png")
    restored(page)
    assert served.files().count("secret.png") == 2
    page.close()
    deadline = time.monotonic() + 30
    while "secret.png" in served.files():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert {name.partition("-")[0] for name in served.files()} == {"chelsea", "coffee"}


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signal_ends_the_server_while_an_image_is_computed(
    browser, run, model, tmp_path, number, status
):
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    Image.fromarray(np.tile(noise((40, 40, 3)), (10, 12, 1))).save(tmp_path / "large.png")
    server = Server(run, model, tmp_path)
    with browser.new_context() as context:
        page = context.new_page()
        with page.expect_request("**/heartbeat/*"):
            page.goto(server.url)
        upload(page, tmp_path / "large.png")
        page.get_by_role("combobox", name="Network").click()
        page.get_by_role("option", name="built-in: tiny").click()
        page.get_by_role("button", name=BUTTON).click()
        page.get_by_role("progressbar").wait_for()
        assert server.end(number) == status
    assert "Traceback" not in server.errors()
    assert "terminate" not in server.errors()
    assert not list(Path(tmp_path).glob("drsformer-page-*"))
