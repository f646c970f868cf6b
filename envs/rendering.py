"""Drawing of plants: an anti-aliased canvas in numpy and a window that shows its images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled

__all__ = ["Canvas", "Window"]

Color = tuple[int, int, int]
Point = tuple[float, float]


class Canvas:
    """Square white image with the origin in its middle, x to the right and y up.

    Every shape is a thick line with round ends: a pixel is covered by `1/2 + r - d`, cut to [0, 1], where `d`
    is its distance in pixels to the line's axis and `r` the half thickness.

    Args:
        size: Height and width in pixels.
        half_width: Distance from the middle to an edge, in the unit of the drawing (m).

    Example:
        >>> canvas = Canvas(64, half_width=1.0)
        >>> canvas.line((0.0, 0.0), (0.0, 0.5), width=0.2, color=(200, 0, 0))
        >>> canvas.image().shape
        (64, 64, 3)
    """

    def __init__(self, size: int, half_width: float) -> None:
        """Start with a white image."""
        self._pixels = np.full((size, size, 3), 255.0, dtype=np.float32)
        self._scale = size / (2.0 * half_width)
        self._middle = (size - 1) / 2.0

    def line(self, start: Point, end: Point, *, width: float, color: Color) -> None:
        """Draw a line with round ends.

        Args:
            start: One end (x, y), m.
            end: The other end (x, y), m; equal to `start` for a disc.
            width: Thickness, m.
            color: Red, green, blue in 0..255.
        """
        a, b = self._to_pixels(start), self._to_pixels(end)
        radius = 0.5 * width * self._scale
        size = self._pixels.shape[0]
        low = np.clip(np.floor(np.minimum(a, b) - radius - 1.0), 0, size).astype(int)
        high = np.clip(np.ceil(np.maximum(a, b) + radius + 2.0), 0, size).astype(int)
        columns = np.arange(low[0], high[0])[None, :] - a[0]
        rows = np.arange(low[1], high[1])[:, None] - a[1]
        axis = b - a
        along = (columns * axis[0] + rows * axis[1]) / max(float(axis @ axis), 1e-12)
        along = np.clip(along, 0.0, 1.0)
        distance = np.hypot(columns - along * axis[0], rows - along * axis[1])
        cover = np.clip(0.5 + radius - distance, 0.0, 1.0)[..., None]
        window = self._pixels[low[1] : high[1], low[0] : high[0]]
        window += cover * (np.asarray(color, dtype=np.float32) - window)

    def disc(self, center: Point, *, diameter: float, color: Color) -> None:
        """Draw a filled disc.

        Args:
            center: Its middle (x, y), m.
            diameter: Its diameter, m.
            color: Red, green, blue in 0..255.
        """
        self.line(center, center, width=diameter, color=color)

    def turn_arrow(self, radius: float, sweep: float, *, width: float, color: Color) -> None:
        """Draw an arc about the origin that starts at the top and ends in an arrow head.

        Args:
            radius: Radius of the arc, m.
            sweep: Angle of the arc, rad, positive counter-clockwise.
            width: Thickness, m.
            color: Red, green, blue in 0..255.
        """
        angles = np.linspace(0.0, sweep, 2 + int(abs(sweep) / 0.15))
        points = [(-radius * math.sin(angle), radius * math.cos(angle)) for angle in angles]
        for start, end in zip(points, points[1:], strict=False):
            self.line(start, end, width=width, color=color)
        tip_angle = sweep + math.copysign(2.0 * width / radius, sweep)
        tip = (-radius * math.sin(tip_angle), radius * math.cos(tip_angle))
        for side in (radius - 2.5 * width, radius + 2.5 * width):
            barb = (-side * math.sin(sweep), side * math.cos(sweep))
            self.line(tip, barb, width=width, color=color)

    def image(self) -> np.ndarray:
        """Return a copy of the picture, shape (size, size, 3), uint8."""
        return np.rint(self._pixels).astype(np.uint8)

    def _to_pixels(self, point: Point) -> np.ndarray:
        """Column and row of a point, as fractions of pixels."""
        return np.array([self._middle + point[0] * self._scale, self._middle - point[1] * self._scale])


class Window:
    """Window on the screen that shows images, made by pygame.

    Args:
        title: Text of the title bar.
        fps: Images per second; `show` waits to keep this rate.

    Raises:
        gymnasium.error.DependencyNotInstalled: If pygame is missing.
    """

    def __init__(self, title: str, fps: int) -> None:
        """Load pygame; the window opens with the first image."""
        try:
            import pygame  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise DependencyNotInstalled(
                "render_mode: 'human' needs pygame, which is not installed. Run `pip install pygame`, "
                "or use render_mode='rgb_array'."
            ) from error
        self._pygame = pygame
        self._title = title
        self._fps = fps
        self._screen: Any = None
        self._clock: Any = None

    def show(self, image: np.ndarray) -> None:
        """Show an image and wait until it is due.

        Args:
            image: RGB image (height, width, 3), uint8.
        """
        pygame = self._pygame
        if self._screen is None:
            pygame.display.init()
            pygame.display.set_caption(self._title)
            self._screen = pygame.display.set_mode((image.shape[1], image.shape[0]))
            self._clock = pygame.time.Clock()
        self._screen.blit(pygame.surfarray.make_surface(image.swapaxes(0, 1)), (0, 0))
        pygame.event.pump()
        self._clock.tick(self._fps)
        pygame.display.flip()

    def close(self) -> None:
        """Close the window; harmless when it is closed already."""
        if self._screen is not None:
            self._pygame.display.quit()
            self._screen = None
