"""Picture files to pixels, with Pillow.

What any format, bit depth or rotation means is settled here: the orientation that EXIF gives is
applied; grey is repeated where colours are wanted; palettes are looked up; 16-bit grey v becomes
v / 257 and keeps its precision; what is transparent lies on white. Only the first frame of an
animation is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np

from cmsolvers import checks as check

if TYPE_CHECKING:
    from PIL.Image import Image

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What is opened; never formats that start other programs (EPS)."""
_ENDINGS = "avif bmp gif j2k jp2 jpeg jpg pbm pgm png pnm ppm tif tiff webp"
ENDINGS = frozenset(f".{ending}" for ending in _ENDINGS.split())
LARGEST = 89_478_485
"""Pixels of the largest picture that is decoded: Pillow's limit against decompression bombs."""
CHANNELS = (1, 3, 4)
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class View:
    """How pictures become samples of one size.

    Attributes:
        height: rows of a sample.
        width: columns of a sample.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        grey: turn colours into grey (luma of ITU-R BT.601) where channels is 1; False refuses them.
    """

    height: int
    width: int
    channels: int = 3
    grey: bool = False

    def __post_init__(self) -> None:
        check.count("size", self.height)
        check.count("size", self.width)
        check.flag("grey", self.grey)
        if check.count("channels", self.channels) not in CHANNELS:
            raise ValueError(f"channels must be 1 (grey), 3 (RGB) or 4 (RGBA); got {self.channels}")

    def pixels(self, file: IO[bytes], name: str, u: tuple[float, float] = (0.5, 0.5)) -> Array:
        """A picture, scaled so that it just covers the sample and cut to it.

        Args:
            file: open for reading.
            name: for errors.
            u: where to cut, in (0, 1): of the places there are in rows and in columns, the first
                for 0; 1/2 is the middle.

        Returns:
            uint8 [C, height, width], or float32 in [0, 255] for 16-bit grey.

        Raises:
            ValueError: no picture, a damaged or too large one, or one of other channels; the text
                begins with its name.
        """
        try:
            image, kind = _opened(file, 2 * max(self.height, self.width))
            image = _of_channels(image, kind, self)
            bands = np.asarray(self._cut(image, u))
        except _UnusableError as error:
            raise ValueError(f"{name} {error}") from error
        except MemoryError:
            raise
        except Exception as error:  # Pillow's readers raise errors of ten kinds
            raise ValueError(f"{name} is no whole picture: {_reason(error)}") from error
        if bands.ndim == 3:
            return np.ascontiguousarray(bands.transpose(2, 0, 1))
        if self.channels == 1:
            return bands[None]
        full = np.full_like(bands, 255)
        return np.stack((bands, bands, bands, full)[: self.channels])

    def _cut(self, image: Image, u: tuple[float, float]) -> Image:
        from PIL.Image import Resampling

        sides, wanted = (image.height, image.width), (self.height, self.width)
        factor = min(side / want for side, want in zip(sides, wanted, strict=True))
        starts, ends = [], []
        for side, want, where in zip(sides, wanted, u, strict=True):
            places = max(round(side / factor), want) - want + 1
            place = min(int(where * places), places - 1)
            start = min(place * factor, max(side - want * factor, 0.0))
            starts.append(start)
            ends.append(min(start + want * factor, float(side)))
        (top, left), (bottom, right) = starts, ends
        if factor == 1:
            return image.crop((int(left), int(top), int(right), int(bottom)))
        # Only what is seen is scaled: a picture of 1 x 10,000,000 pixels needs no more memory.
        return image.resize(
            (self.width, self.height), Resampling.BICUBIC, box=(left, top, right, bottom)
        )


class _UnusableError(Exception):
    """A whole picture that is not what was asked for."""


def _opened(file: IO[bytes], enough: int) -> tuple[Image, str | None]:
    """The picture, turned as its EXIF entry says, and its format."""
    import PIL.Image
    from PIL import ImageOps

    try:
        image: Image = PIL.Image.open(file, formats=_formats())
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise _UnusableError(f"must have at most {LARGEST} pixels: {error}") from error
    if image.width * image.height > LARGEST:
        raise _UnusableError(
            f"must have at most {LARGEST} pixels; it has {image.width} x {image.height}"
        )
    # JPEG can leave out detail while decoding; twice as much as is needed stays.
    image.draft(image.mode, (enough, enough))
    image.load()
    try:
        return ImageOps.exif_transpose(image), image.format
    except Exception:  # an unreadable entry says nothing of how to turn the picture
        return image, image.format


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    import PIL.Image

    PIL.Image.init()
    return tuple(name for name in FORMATS if name in PIL.Image.OPEN)


def _of_channels(image: Image, kind: str | None, view: View) -> Image:
    """In mode RGB, RGBA or L, or F for 16-bit grey."""
    import PIL.Image

    deep = image.mode in _DEEP or (image.mode == "I" and kind in ("PNG", "PPM"))
    if deep:
        return PIL.Image.fromarray(np.asarray(image).astype(np.float32) / np.float32(257.0))
    if image.mode in ("I", "F"):
        raise _UnusableError(
            f"must have pixels of 8 bits, or of 16 in grey; it has mode {image.mode}, whose range "
            "is unknown: give such data as .npy"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if view.channels == 4:
            return image
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image).convert("RGB")
    if view.channels > 1:
        return image.convert("RGB" if view.channels == 3 else "RGBA")
    if image.mode in ("1", "L"):
        return image.convert("L")
    image = image.convert("RGB")
    if not view.grey:
        red, green, blue = (np.asarray(band) for band in image.split())
        if not (np.array_equal(red, green) and np.array_equal(green, blue)):
            raise _UnusableError(
                "must be grey where channels is 1; it has colours: give channels=3, or grey=True "
                "to turn colours into grey"
            )
        return image.getchannel(0)
    return image.convert("L")


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "its content is of no format that is read"
    return str(error) or type(error).__name__
