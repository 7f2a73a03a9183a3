"""Renders rain on a photograph: samples the rain, its effect on light, and the camera's effects."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from drsformer_jax.config import KINDS, DropRanges, NoiseRanges, RainConfig, Range
from drsformer_jax.data.synthetic.layers import (
    Noise,
    Streaks,
    Window,
    draw_noise,
    draw_streaks,
    smooth_field,
)
from drsformer_jax.images.pixels import decode_image, encode_image

GENERATOR_VERSION = 1
"""Increase it whenever the same seed gives other pixels: cached pairs are then written again."""

_GAMMA = 2.2
_LARGEST_LEAN = 45.0


def add_rain(
    photograph: np.ndarray,
    rng: np.random.Generator,
    config: RainConfig = RainConfig(),  # noqa: B008 - frozen
    window: Window | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Renders rain of a random kind, wind, density, size and brightness on a photograph.

    Light and heavy rain add the light of their streaks, as in O = t (B + S) + (1 - t) A (Yang et
    al., CVPR 2017; Li et al., "Heavy Rain Image Restoration", CVPR 2019), or cover what is behind
    them; fine rain adds it in linear light. Gray skies and the fog of fine rain are in the target
    too, because the network should keep them; noise and JPEG are in the rainy image alone.

    Args:
        photograph: uint8 of shape (h, w, 3), of any size: the clean image.
        rng: everything is sampled from it.
        config: the mix and the ranges.
        window: the window of a larger photograph that this is; default: the whole.

    Returns:
        (rainy, clean), each uint8 of shape (h, w, 3).

    Raises:
        InputError: if a side is too long for JPEG.
    """
    window = window or Window.whole(*photograph.shape[:2])
    kind = KINDS[rng.choice(len(KINDS), p=config.weights())]
    target = photograph.astype(np.float32) / 255
    if rng.random() < config.overcast_share:
        target = _overcast(target, rng)
    if kind == "none":
        clean = _to_8_bits(target)
        return clean, clean.copy()
    wind = _Wind(config, window, rng)
    if kind == "fine":
        if rng.random() < config.fog_share:
            target = _foggy(target, config, window, rng)
        rainy = _in_linear_light(target, _fine(config, wind, window, rng), rng)
    else:
        light = (_light if kind == "light" else _heavy)(config, wind, window, rng)
        way = rng.random() - config.linear_share
        if way < 0:
            rainy = _in_linear_light(target, light, rng)
        elif way < config.opaque_share:
            share = np.minimum(light, 0.85)[..., None]
            rainy = target * (1 - share) + share * np.float32(rng.uniform(0.75, 1))
        else:
            rainy = target + light[..., None]
        if kind == "light" and _happens(config.veil_share, rng):
            veil = smooth_field(window, 0.5, 1, rng) * (config.veil * rng.random() ** 2)
            rainy += veil[..., None] * (np.float32(rng.uniform(0.6, 0.9)) - rainy)
    return _photographed(rainy, kind == "fine", config, rng), _to_8_bits(target)


# Rain with the settings of older versions is the same to the pixel, so that older runs continue:
# for what these had not, no number is drawn where there is no choice.


def _happens(share: float, rng: np.random.Generator) -> bool:
    return share > 0 and (share >= 1 or bool(rng.random() < share))


def _within(span: Range, rng: np.random.Generator) -> float:
    return span[0] if span[0] == span[1] else rng.uniform(*span)


class _Wind:
    """The direction of one image's rain, shared by its layers."""

    def __init__(self, config: RainConfig, window: Window, rng: np.random.Generator) -> None:
        self._lean = config.lean * rng.normal()
        # A window has its part of the photograph's change, about the lean at its center.
        change = rng.uniform(-config.perspective, config.perspective)
        self._change = change * window.w / window.width
        self._lean += change * ((2 * window.left + window.w) / window.width - 1)

    def lean(self, spread: float, rng: np.random.Generator) -> float:
        """Lean of a layer in degrees; `spread` is the standard deviation about the wind's."""
        return float(np.clip(rng.normal(self._lean, spread), -_LARGEST_LEAN, _LARGEST_LEAN))

    def layer(
        self, ranges: DropRanges, rng: np.random.Generator, lean: float, scale: float = 1
    ) -> Streaks:
        """A layer of drops with this lean; `scale` is a factor on lengths and widths."""
        return Streaks(
            angle=lean,
            length=scale * rng.uniform(*ranges.length),
            width=scale * rng.uniform(*ranges.width),
            coverage=rng.uniform(*ranges.coverage),
            brightness=rng.uniform(*ranges.brightness),
            scatter=ranges.scatter,
            perspective=self._change,
        )

    def noise(
        self, ranges: NoiseRanges, rng: np.random.Generator, spread: float, scale: float = 1
    ) -> Noise:
        """A layer of noise; `spread` is as for `lean`, `scale` is a factor on the length."""
        return Noise(
            angle=self.lean(spread, rng),
            length=scale * rng.uniform(*ranges.length),
            blur=rng.uniform(*ranges.blur),
            density=rng.uniform(*ranges.density),
            contrast=rng.uniform(*ranges.contrast),
            dark=_within(ranges.dark, rng),
            taper=_within(ranges.taper, rng),
        )


def _light(config: RainConfig, wind: _Wind, window: Window, rng: np.random.Generator) -> np.ndarray:
    if _happens(config.ragged_share, rng):
        light = np.zeros((window.h, window.w), np.float32)
        for _ in range(rng.integers(*config.ragged_layers, endpoint=True)):
            layer = wind.noise(config.ragged_noise, rng, config.lean_of_layers)
            light += draw_noise(layer, window.h, window.w, rng)
        return light
    near = wind.layer(config.light_near, rng, wind.lean(0, rng))
    distant = wind.layer(config.light_distant, rng, wind.lean(config.lean_of_layers, rng))
    first = draw_streaks(near, window.h, window.w, rng)
    return first + draw_streaks(distant, window.h, window.w, rng)


def _heavy(config: RainConfig, wind: _Wind, window: Window, rng: np.random.Generator) -> np.ndarray:
    light = np.zeros((window.h, window.w), np.float32)
    hard = bool(rng.random() < config.hard_share)
    for _ in range(rng.integers(*config.heavy_layers, endpoint=True)):
        lean = wind.lean(config.heavy_lean_of_layers, rng)
        layer = wind.layer(config.heavy_drops, rng, lean)
        light += draw_streaks(dataclasses.replace(layer, hard=hard), window.h, window.w, rng)
    return light * smooth_field(window, *config.unevenness, rng)


def _fine(config: RainConfig, wind: _Wind, window: Window, rng: np.random.Generator) -> np.ndarray:
    h, w = window.h, window.w
    least, greatest = config.fine_scale
    scale = math.exp(rng.uniform(math.log(least), math.log(greatest)))
    light = np.zeros((h, w), np.float32)
    for _ in range(rng.integers(*config.fine_layers, endpoint=True)):
        far = wind.noise(config.fine_noise, rng, config.lean_of_layers, scale)
        light += draw_noise(far, h, w, rng)
    light *= smooth_field(window, *config.unevenness, rng)
    light += draw_streaks(wind.layer(config.fine_drops, rng, wind.lean(0, rng), scale), h, w, rng)
    if rng.random() < config.blurred_share:
        light += draw_streaks(wind.layer(config.blurred_drops, rng, wind.lean(0, rng)), h, w, rng)
    return light


def _overcast(target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Less color and contrast, and another gamma, as under a gray sky."""
    saturation, contrast = (np.float32(rng.uniform(*span)) for span in ((0.5, 1), (0.7, 1)))
    gray = target.mean(2, keepdims=True)
    graded = np.float32(0.5) + (gray + (target - gray) * saturation - np.float32(0.5)) * contrast
    return np.clip(graded, 0, 1) ** np.float32(rng.uniform(0.8, 1.4))


def _foggy(
    target: np.ndarray, config: RainConfig, window: Window, rng: np.random.Generator
) -> np.ndarray:
    """Fog t B + (1 - t) A with t = exp(-density depth), the depth a ramp up the photograph."""
    rows = np.arange(window.top, window.top + window.h, dtype=np.float32) + np.float32(0.5)
    depth = (1 - rows / window.height) ** np.float32(rng.uniform(0.5, 2))
    density = rng.uniform(*config.fog_density) * smooth_field(window, 0.6, 1, rng)
    transmission = np.exp(-density * depth[:, None])[..., None]
    blue = rng.uniform(0, 0.03)
    air = np.clip(rng.uniform(*config.fog_light) + np.array([-blue, 0, blue]), 0, 1)
    return transmission * target + (1 - transmission) * air.astype(np.float32)


def _in_linear_light(target: np.ndarray, light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """O = ((1 - 0.3 S) B^g + U S)^(1/g): a drop adds light and covers part of what is behind it.

    The same light is visible over dark areas and hardly over bright ones ("Vision and Rain", IJCV
    2007).
    """
    light = light[..., None]
    behind = target**_GAMMA * (1 - np.float32(0.3) * np.minimum(light, 1))
    linear = behind + light * np.float32(rng.uniform(0.6, 1))
    return np.clip(linear, 0, 1) ** np.float32(1 / _GAMMA)


def _photographed(
    rainy: np.ndarray, fine: bool, config: RainConfig, rng: np.random.Generator
) -> np.ndarray:
    """The camera's effects on the rainy image: noise, 8 bits and JPEG."""
    if fine or rng.random() < config.noise_share:
        noise = rng.standard_normal(rainy.shape, np.float32)
        rainy = rainy + np.float32(rng.uniform(0, config.noise)) * noise
    image = _to_8_bits(rainy)
    if rng.random() < (config.fine_jpeg_share if fine else config.jpeg_share):
        quality = int(rng.integers(*config.jpeg_quality, endpoint=True))
        content = encode_image(image, ".jpg", quality=quality, subsampling="4:2:0")
        image = decode_image(content, "synthetic rain")
    return image


def _to_8_bits(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
