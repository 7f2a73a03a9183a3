"""The page: its parts, what happens on a click, and the server."""

from __future__ import annotations

import html
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
import httpx
import jax
from fastapi import Depends, HTTPException, Request
from gradio import processing_utils

from drsformer_jax.config import RainConfig
from drsformer_jax.config.rain import Kind
from drsformer_jax.data.synthetic import SyntheticRain, photographs
from drsformer_jax.demo.comparison import comparison, progress
from drsformer_jax.demo.visits import Visits
from drsformer_jax.errors import InputError
from drsformer_jax.images.pixels import EXTENSIONS, image_size, write_image
from drsformer_jax.restoring import Restorer
from drsformer_jax.restoring.buckets import Size, padded
from drsformer_jax.restoring.files import restore_file
from drsformer_jax.restoring.jobs import Job, plan_jobs

_TILE = 256
WHOLE, TILES = "Full image", f"Tiles of {_TILE} pixels"
_KEPT = 3600
"""Seconds after which files are deleted, also of a visit that goes on."""
_SWEEP = 60
"""Seconds between two searches for such files."""
_FORMATS = "PNG, JPEG, WebP, AVIF, TIFF, BMP or GIF"
_PROGRAMS = 16
"""Compiled programs that are kept in memory, of about 50 MB each; all are on disk, too."""
_POSTS = {f"/gradio_api/{name}" for name in ("upload", "queue/join", "cancel", "reset")}
"""Routes that the page sends something to."""
_DOWNLOAD = "Download at full resolution"
_PLACEHOLDER = "The image before and after appears here, under a slider."
_RAINS: tuple[Kind, ...] = ("light", "heavy")

Result = TypeVar("Result")
Update = tuple[str, Any]
"""HTML of the result, and the button that downloads it."""


@dataclass(frozen=True)
class Limits:
    """What a visitor may ask for."""

    megabytes: int
    pixels: int
    waiting: int
    """Images that wait while one is computed."""


def serve(
    networks: Mapping[str, Restorer],
    limits: Limits,
    folder: Path,
    host: str,
    port: int,
    *,
    share: bool,
) -> None:
    """Serves the page until an exception, such as that of a signal, ends it.

    Args:
        networks: by the names that visitors see; at least one.
        limits: what a visitor may ask for.
        folder: a temporary folder, whose empty folder `files`, for uploads and results, was in
            GRADIO_TEMP_DIR when Gradio was imported. It is deleted if the process has to end here.
        host: address or name of this machine.
        port: a free one.
        share: whether Gradio's servers lead others to it.

    Raises:
        InputError: if the server cannot start, or is not reached by Gradio's.
    """
    page = _Page(networks, limits)
    try:
        _serve(page, folder, limits, host, port, share)
    except (KeyboardInterrupt, SystemExit) as end:
        if page.computing.locked():
            # Python would end the thread inside of XLA, which aborts then.
            print("interrupted; one image was not finished", file=sys.stderr, flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(130 if isinstance(end, KeyboardInterrupt) else int(end.code or 0))
        raise


def _serve(page: _Page, folder: Path, limits: Limits, host: str, port: int, share: bool) -> None:
    blocks = page.blocks(_examples(folder / "examples"))
    # Gradio has put there what the page shows.
    page.visits = Visits(folder / "files")
    try:
        _launch(blocks, limits, host, port, share)
        while True:
            time.sleep(_SWEEP)
            page.visits.sweep(_KEPT)
    finally:
        blocks.close(verbose=False)


def _check_route(request: Request) -> None:
    """Rejects requests for files of other servers, which Gradio would fetch, and what takes data.

    Of all that Gradio has for the latter, such as a recording of the screen, the page needs four.
    """
    named = any("://" in str(value) for value in request.path_params.values())
    if named or (request.method == "POST" and _posted(request) not in _POSTS):
        raise HTTPException(404)


def _posted(request: Request) -> str:
    """The route of a request; Gradio's page asks some with a slash behind."""
    return str(request.scope["route"].path).rstrip("/")


async def _no_download(*_: Any, **__: Any) -> str:
    """In place of what Gradio downloads, of any size, where a visitor sends an address."""
    raise _error("an address was sent; expected an uploaded file")


def _without_proxy(host: str) -> None:
    """Lets Gradio ask its own server for a sign of life without a proxy of the environment."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if given.strip() != "*":  # Of all hosts, where it stands alone.
        names = ",".join(filter(None, [given, host, "localhost", "127.0.0.1", "::1"]))
        os.environ.update(no_proxy=names, NO_PROXY=names)


def _launch(blocks: Any, limits: Limits, host: str, port: int, share: bool) -> None:
    _without_proxy(host)
    processing_utils.async_ssrf_protected_download = _no_download  # There is no setting for it.
    # Gradio's own fonts come from Google.
    theme = gr.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    try:
        _, local, public = blocks.launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=port,
            share=share,
            max_file_size=limits.megabytes * 10**6,
            prevent_thread_lock=True,
            quiet=True,
            # The page needs none of these, and some are on by default or by the environment.
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            app_kwargs={"dependencies": [Depends(_check_route)]},
            theme=theme,
            css=Path(__file__).with_suffix(".css").read_text(encoding="utf-8"),
        )
    except (OSError, httpx.HTTPError) as error:
        raise InputError(f"{host} port {port} cannot be served ({error})") from error
    if share and not public:
        raise InputError("--share reached no server of Gradio; expected the internet")
    print(f"the page is at {local}" + (f" and {public}" if public else ""), flush=True)


def _examples(folder: Path) -> list[Path]:
    """Photographs of scikit-image under synthetic rain, which no network was trained on."""
    paths = []
    for kind in _RAINS:
        pairs = SyntheticRain(photographs("skimage")[1], 1, 0, RainConfig.only(kind))
        for index in range(len(pairs)):
            pair = pairs[index]
            path = folder / f"{pair['name'].rpartition('_')[0]}-{kind}-rain.png"
            write_image(path, pair["rainy"])
            paths.append(path)
    return paths


class _Page:
    """What the page does; one image at a time is restored.

    Args:
        networks: by the names that visitors see.
        limits: what they may ask for.

    Attributes:
        visits: folders of uploads and results.
        computing: locked while an image is computed.
    """

    visits: Visits

    def __init__(self, networks: Mapping[str, Restorer], limits: Limits) -> None:
        self._networks = {
            (name, way): restorer if way == WHOLE else restorer.in_tiles(_TILE)
            for name, restorer in networks.items()
            for way in (WHOLE, TILES)
        }
        self._names = list(networks)
        self._limits = limits
        self.computing = threading.Lock()
        self._compiled: set[tuple[Restorer, Size]] = set()

    def blocks(self, examples: list[Path]) -> Any:
        """The parts of the page, and what they call."""
        with gr.Blocks(title="drsformer: remove rain", analytics_enabled=False) as blocks:
            gr.Markdown(
                "# Remove rain from an image\n"
                f"{_FORMATS}, up to {self._limits.megabytes} MB and "
                f"{self._limits.pixels / 1e6:.3g} megapixels. Uploads and results are deleted when "
                f"you leave the page, or after {_KEPT // 60} minutes."
            )
            with gr.Row():
                with gr.Column(scale=1, min_width=300):
                    upload = gr.File(label="Rainy image", file_types=list(EXTENSIONS), height=140)
                    samples = gr.Gallery(
                        [(str(path), path.stem.replace("-", " ")) for path in examples],
                        label="Or an example",
                        columns=2,
                        object_fit="cover",
                        elem_id="examples",
                        allow_preview=False,
                        interactive=False,
                        buttons=[],
                    )
                    network = gr.Dropdown(self._names, value=self._names[0], label="Network")
                    way = gr.Radio(
                        [WHOLE, TILES],
                        value=WHOLE,
                        label="Computed as",
                        info="Tiles need less memory and approximate the full image's result.",
                    )
                    button = gr.Button("Remove rain", variant="primary")
                with gr.Column(scale=2, min_width=300):
                    shown = gr.HTML(_PLACEHOLDER, label="Before and after", elem_id="shown")
                    download = gr.DownloadButton(_DOWNLOAD, interactive=False)
            private: dict[str, Any] = {"api_visibility": "private"}
            now = {**private, "show_progress": "hidden", "concurrency_limit": None}

            def pick(event: gr.SelectData) -> str:
                return str(examples[event.index])

            samples.select(pick, None, upload, **now)
            upload.change(_nothing, None, [shown, download], **now)
            upload.change(self.accept, upload, None, **now)
            button.click(self.ask, None, None, **now)
            button.click(
                self.restore,
                [upload, network, way],
                [shown, download],
                concurrency_limit=1,
                show_progress_on=shown,
                scroll_to_output=True,
                **private,
            )
            blocks.unload(self.leave)
        return blocks.queue(max_size=self._limits.waiting)

    def accept(self, upload: str | None, request: gr.Request) -> None:
        """Says at once what is wrong with an upload, and keeps it until the visit ends."""
        if upload is not None:
            self.visits.hold(str(request.session_hash), Path(upload).parent)
            self._size(Path(upload))

    def ask(self, request: gr.Request) -> None:
        """Keeps the files of a visit, however long its image waits for others."""
        self.visits.keep(str(request.session_hash))

    def leave(self, request: gr.Request) -> None:
        """Deletes the files of a visit."""
        self.visits.end(str(request.session_hash))

    def restore(
        self, upload: str | None, network: str, way: str, request: gr.Request
    ) -> Iterator[Update]:
        """How far it is, and at last the comparison and the button that downloads the result."""
        if upload is None:
            raise _error("no image is chosen; expected an upload or an example")
        source, visit = Path(upload), str(request.session_hash)
        try:
            size = self._size(source)
        except gr.Error:
            self.visits.done(visit)
            raise
        folder = self.visits.new(visit)
        try:
            (job,), _ = plan_jobs([source], folder, is_folder=True)
            lines = yield from self._run(visit, job, size, self._networks[network, way])
            shown = comparison(source, job.target, [f"{network}, {way.lower()}", *lines])
        except InputError as error:
            self.visits.done(visit, folder)
            yield _nothing()
            raise _error(str(error), source, folder / source.name) from None
        label = f"Download {job.target.name} at full resolution"
        yield shown, gr.DownloadButton(label, value=str(job.target), interactive=True)

    def _size(self, source: Path) -> Size:
        """(height, width) by the file's head."""
        try:
            height, width = image_size(source)
        except InputError as error:
            raise _error(str(error), source) from None
        if height * width > self._limits.pixels:
            raise _error(
                f"{source.name} has {width}x{height} pixels; expected at most "
                f"{self._limits.pixels:,}"
            )
        return height, width

    def _run(
        self, visit: str, job: Job, size: Size, restorer: Restorer
    ) -> Generator[Update, None, list[str]]:
        """Restores an image; gives HTML of how far that is, and returns what is said of it.

        It may end at any `yield`, in the thread that serves all visitors: an image that is being
        computed then is computed to its end in the background.
        """
        text = f"Removing rain from {size[1]}x{size[0]} pixels; a new size takes longer."
        tiling = restorer.tiling(size)
        total = None if tiling is None else tiling.tiles(padded(size))[1]
        before: list[int] = []

        def compute() -> list[str]:
            with self.computing:
                if not self.visits.holds(visit, job.target.parent):
                    return []  # The visitor has left.
                started = time.monotonic()
                before.append(restorer.programs.total())
                try:
                    said = restore_file(job, restorer)
                finally:
                    self._remember(restorer, size)
                    self.visits.done(visit, job.target.parent)
                seconds = time.monotonic() - started
                return [f"{size[1]}x{size[0]} pixels, {seconds:.1f} s", *said]

        future, shown = _in_background(compute), -1
        while not wait([future], 0.2).done:
            done = restorer.programs.total() - before[0] if before else 0
            if done != shown:
                shown = done
                yield progress(text, done, total), gr.skip()
        return future.result()

    def _remember(self, restorer: Restorer, size: Size) -> None:
        """Frees all compiled programs, of which each size of images has one, once they add up."""
        self._compiled.add((restorer, padded(size)))
        if len(self._compiled) >= _PROGRAMS:
            jax.clear_caches()
            self._compiled.clear()


def _in_background(work: Callable[[], Result]) -> Future[Result]:
    """Calls in a thread that the end of the program does not wait for, as a pool's would."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _nothing() -> Update:
    """The page without a result."""
    return _PLACEHOLDER, gr.DownloadButton(_DOWNLOAD, value=None, interactive=False)


def _error(message: str, *paths: Path) -> Exception:
    """What the page says, which tells nothing of the server's folders."""
    for path in paths:
        message = message.replace(f"{path.parent}{os.sep}", "")
    return gr.Error(html.escape(message), duration=None, print_exception=False)
