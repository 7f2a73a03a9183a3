"""PSNR and SSIM against their definitions, written out in plain numpy and scipy."""

from __future__ import annotations

import inspect
import itertools
import json
import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.signal import convolve2d

from drsformer_jax import metrics
from drsformer_jax.errors import InputError

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
PROTOCOLS = ("rain200_spa", "did_ddn")


def reference_luma(image, protocol):
    thousandths = image.astype(np.int64) @ np.array([65481, 128553, 24966])
    if protocol == "rain200_spa":
        return 16.0 + (2 * thousandths + 255_000) // 510_000
    return 16 + thousandths / 255_000


def reference_psnr(restored, target, protocol):
    error = reference_luma(restored, protocol) - reference_luma(target, protocol)
    return 10 * math.log10(1 / np.mean((error / 255) ** 2))


def reference_ssim(restored, target, protocol, factor):
    x, y = reference_luma(restored, protocol), reference_luma(target, protocol)
    before = math.floor((factor - 1) / 2)
    padding = (before, factor - 1 - before)
    box = np.full((factor, factor), 1 / factor**2)
    x, y = (
        convolve2d(np.pad(image, padding, mode="symmetric"), box, "valid")[::factor, ::factor]
        for image in (x, y)
    )
    row, column = np.mgrid[-5:6, -5:6]
    window = np.exp(-(row**2 + column**2) / (2 * 1.5**2))
    window /= window.sum()
    mx, my, xx, yy, xy = (
        convolve2d(image, window, "valid") for image in (x, y, x * x, y * y, x * y)
    )
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
    structure = (2 * (xy - mx * my) + c2) / (xx - mx**2 + yy - my**2 + c2)
    return np.mean(luminance * structure)


def pair(height, width):
    """An image with gradients, edges and texture, and a noisy copy: the same on every machine."""
    row, column, channel = np.ogrid[:height, :width, :3]
    target = 3 * row + 2 * column + 40 * channel + 90 * ((row // 9 + column // 7) % 2)
    target = target + (row * row * 7 + column * column * 13 + row * column * channel) % 31
    noise = (row * 1103 + column * 12345 + channel * 77 + row * column * 11) % 23 - 9
    return np.clip(target % 256 + noise, 0, 255).astype(np.uint8), (target % 256).astype(np.uint8)


def exactly(number, tolerance=1e-10):
    return pytest.approx(number, rel=0, abs=tolerance)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "size", [(11, 11), (11, 40), (37, 12), (121, 90), (64, 64), (139, 65), (129, 128)]
)
def test_both_scores_equal_their_definition(size, protocol):
    restored, target = pair(*size)
    expected = reference_psnr(restored, target, protocol)
    assert metrics.psnr(restored, target, protocol) == exactly(expected)
    expected = reference_ssim(restored, target, protocol, factor=1)
    assert metrics.ssim(restored, target, protocol) == exactly(expected)


@pytest.mark.parametrize(
    ("size", "factor"),
    [
        ((383, 500), 1),  # 1.496
        ((384, 385), 2),  # 1.5 is rounded up
        ((700, 639), 2),
        ((640, 643), 3),  # 2.5 is rounded up
        ((768, 640), 3),  # whole strips
        ((769, 768), 3),
        ((901, 898), 4),
    ],
)
def test_did_ddn_ssim_is_of_the_image_reduced_by_the_factor(size, factor):
    restored, target = pair(*size)
    expected = reference_ssim(restored, target, "did_ddn", factor)
    assert metrics.ssim(restored, target, "did_ddn") == exactly(expected)
    expected = reference_psnr(restored, target, "did_ddn")
    assert metrics.psnr(restored, target, "did_ddn") == exactly(expected)


def test_rain200_spa_ssim_never_reduces_the_image():
    restored, target = pair(400, 390)
    expected = reference_ssim(restored, target, "rain200_spa", factor=1)
    assert metrics.ssim(restored, target, "rain200_spa") == exactly(expected)


@pytest.mark.parametrize(
    ("protocol", "psnr", "ssim"),
    [
        ("rain200_spa", 37.34079425601725, 0.9938505698462022),
        ("did_ddn", 37.398409657893694, 0.9985180076938533),
    ],
)
def test_the_protocols_score_one_pair_differently(protocol, psnr, ssim):
    restored, target = pair(390, 401)
    assert metrics.psnr(restored, target, protocol) == exactly(psnr)
    assert metrics.ssim(restored, target, protocol) == exactly(ssim)


def test_rain200_spa_luma_is_rounded_half_up_exactly_for_every_color():
    red, blue = np.mgrid[:256, :256].astype(np.uint8)
    with jax.enable_x64(True):
        for green in range(256):
            image = np.stack([red, np.full_like(red, green), blue], axis=-1)
            luma = np.asarray(metrics._luma(jax.numpy.asarray(image), "rain200_spa")) / 85000
            np.testing.assert_array_equal(luma, reference_luma(image, "rain200_spa"))


def test_reference_luma_equals_rational_arithmetic_on_ties_and_a_grid():
    coefficients = Fraction("65.481"), Fraction("128.553"), Fraction("24.966")
    colors = [*itertools.product(range(0, 256, 15), repeat=3), (220, 208, 216), (0, 250, 250)]
    ties = 0
    for color in colors:
        luma = 16 + sum(c * v for c, v in zip(coefficients, color, strict=True)) / 255
        ties += luma.denominator == 2
        rounded = reference_luma(np.array(color), "rain200_spa")
        assert rounded == math.floor(luma + Fraction(1, 2)), color
        assert reference_luma(np.array(color), "did_ddn") == exactly(float(luma), 1e-13), color
    assert ties >= 1


def test_psnr_of_one_pixel_one_level_off():
    target = np.full((121, 90, 3), 128, np.uint8)
    restored = target.copy()
    restored[7, 11, 1] += 1
    # Green moves luma by 0.504 levels, here from 125.93 to 126.43: the same integer.
    assert metrics.psnr(restored, target, "rain200_spa") == math.inf
    error = (128.553 / 255) ** 2 / (121 * 90)
    assert metrics.psnr(restored, target, "did_ddn") == exactly(
        10 * math.log10(255**2 / error), 1e-9
    )
    for protocol in PROTOCOLS:
        expected = reference_ssim(restored, target, protocol, factor=1)
        assert metrics.ssim(restored, target, protocol) == exactly(expected, 1e-12)


def test_psnr_where_luma_differs_by_the_least_that_8_bit_colors_can():
    target = np.zeros((20, 30, 3), np.uint8)
    target[3, 4] = (0, 47, 0)
    restored = np.zeros((20, 30, 3), np.uint8)
    restored[3, 4] = (0, 0, 242)
    error = Fraction(47 * 128_553 - 242 * 24_966, 255_000)  # 73/85000 of a level
    expected = 10 * math.log10(255**2 * 20 * 30 / error**2)
    assert metrics.psnr(restored, target, "did_ddn") == exactly(expected, 1e-9)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("size", [(11, 11), (17, 17), (390, 401)])
def test_equal_images_score_infinity_and_exactly_one(size, protocol):
    image, _ = pair(*size)
    assert metrics.psnr(image, image.copy(), protocol) == math.inf
    assert metrics.ssim(image, image.copy(), protocol) == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_black_and_white_score_as_worked_out_by_hand(protocol):
    black, white = np.zeros((30, 20, 3), np.uint8), np.full((30, 20, 3), 255, np.uint8)
    assert metrics.psnr(black, white, protocol) == exactly(20 * math.log10(255 / 219))
    c1 = 2.55**2
    expected = (2 * 16 * 235 + c1) / (16**2 + 235**2 + c1)
    assert metrics.ssim(black, white, protocol) == exactly(expected)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("size", [(10, 50), (50, 10), (1, 1)])
def test_image_smaller_than_the_window_has_psnr_but_no_ssim(size, protocol):
    restored, target = np.full((*size, 3), 7, np.uint8), np.full((*size, 3), 200, np.uint8)
    assert math.isnan(metrics.ssim(restored, target, protocol))
    expected = reference_psnr(restored, target, protocol)
    assert metrics.psnr(restored, target, protocol) == exactly(expected)


def test_images_of_many_sizes_share_compiled_programs(caplog):
    sizes = [(150 + 5 * index, 260 - 7 * index) for index in range(20)]
    with jax.log_compiles():
        for size in sizes:
            assert math.isfinite(sum(metrics.scores(*pair(*size), "rain200_spa")))
    compiled = [text for text in caplog.messages if text.startswith("Compiling jit(_sums)")]
    assert 1 <= len(compiled) <= 4


def test_strided_views_score_as_their_copies():
    restored, target = pair(40, 50)
    turned = restored[::-1].transpose(1, 0, 2), target[::-1].transpose(1, 0, 2)
    copies = [np.ascontiguousarray(image) for image in turned]
    assert metrics.psnr(*turned, "did_ddn") == metrics.psnr(*copies, "did_ddn")
    assert metrics.ssim(*turned, "did_ddn") == metrics.ssim(*copies, "did_ddn")


SCORE_ELSEWHERE = """
import jax, numpy as np
from drsformer_jax import metrics
a, b = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
mesh = jax.make_mesh((2,), ("data",))
with jax.default_device(jax.devices()[1]), jax.set_mesh(mesh), jax.transfer_guard("disallow"):
    print(metrics.psnr(a, b, "did_ddn"), metrics.ssim(a, b, "rain200_spa"))
assert jax.numpy.zeros(1).dtype == "float32"
"""


def test_scores_do_not_depend_on_the_callers_mesh_device_or_transfer_guard():
    environment = dict(
        os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=2", JAX_PLATFORMS="cpu"
    )
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCORE_ELSEWHERE],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    a, b = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    psnr, ssim = map(float, finished.stdout.split())
    assert psnr == exactly(metrics.psnr(a, b, "did_ddn"), 1e-12)
    assert ssim == exactly(metrics.ssim(a, b, "rain200_spa"), 1e-12)


def test_published_outputs_score_as_the_official_programs_print():
    if not SHARED.is_dir():
        pytest.skip("needs ../shared")

    def read(name):
        with Image.open(SHARED / "data" / name) as image:
            return np.asarray(image.convert("RGB"))

    for entry in json.loads((SHARED / "golden/metrics.json").read_text())["pairs"]:
        restored, target = read(entry["restored"]), read(entry["target"])
        for protocol in PROTOCOLS:
            # The official program rounds some exact halves of luma down.
            halves = protocol == "rain200_spa" and any(
                np.any(reference_luma(image, "did_ddn") % 1 == 0.5) for image in (restored, target)
            )
            psnr_tolerance, ssim_tolerance = (1e-4, 1e-6) if halves else (1e-9, 1e-9)
            expected = entry[protocol]
            psnr = metrics.psnr(restored, target, protocol)
            ssim = metrics.ssim(restored, target, protocol)
            assert psnr == exactly(expected["psnr"], psnr_tolerance), (entry, protocol)
            assert ssim == exactly(expected["ssim"], ssim_tolerance), (entry, protocol)


def image(*shape, dtype=np.uint8):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize("score", [metrics.psnr, metrics.ssim])
@pytest.mark.parametrize(
    ("restored", "target", "protocol", "message"),
    [
        (
            image(20, 30, 3),
            image(20, 31, 3),
            "did_ddn",
            "restored is 20x30 (h x w), target is 20x31 (h x w); a pair must have one size",
        ),
        (
            image(20, 30, 3, dtype=np.float32),
            image(20, 30, 3),
            "did_ddn",
            "restored is float32 of shape (20, 30, 3); "
            "expected a numpy array, uint8 of shape (h, w, 3)",
        ),
        (
            image(20, 30, 3),
            image(20, 30),
            "did_ddn",
            "target is uint8 of shape (20, 30); expected a numpy array, uint8 of shape (h, w, 3)",
        ),
        (
            image(1, 20, 30, 3),
            image(1, 20, 30, 3),
            "did_ddn",
            "restored is uint8 of shape (1, 20, 30, 3); "
            "expected a numpy array, uint8 of shape (h, w, 3)",
        ),
        (
            image(20, 30, 4),
            image(20, 30, 3),
            "did_ddn",
            "restored is uint8 of shape (20, 30, 4); "
            "expected a numpy array, uint8 of shape (h, w, 3)",
        ),
        (
            image(0, 30, 3),
            image(0, 30, 3),
            "did_ddn",
            "restored is uint8 of shape (0, 30, 3); "
            "expected a numpy array, uint8 of shape (h, w, 3)",
        ),
        (
            "derained/1.png",
            image(20, 30, 3),
            "did_ddn",
            "restored is of type str; expected a numpy array, uint8 of shape (h, w, 3)",
        ),
        (
            image(20, 30, 3),
            image(20, 30, 3),
            "rain100",
            "protocol is 'rain100'; expected one of rain200_spa, did_ddn",
        ),
    ],
)
def test_wrong_input_is_rejected_in_one_line(score, restored, target, protocol, message):
    score = inspect.unwrap(score)  # past type checks that a test session may have put around it
    with pytest.raises(InputError) as error:
        score(restored, target, protocol)
    assert str(error.value) == message


def test_a_jax_without_its_cpu_backend_is_rejected_in_one_line(monkeypatch):
    def local_devices(backend):
        raise RuntimeError(f"Unknown backend {backend}. Available backends are ['cuda']")

    monkeypatch.setattr(jax, "local_devices", local_devices)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(InputError) as error:
        metrics.psnr(*pair(20, 30), "did_ddn")
    assert str(error.value) == (
        "JAX has no backend but gpu; expected JAX_PLATFORMS=gpu,cpu for the metrics"
    )
