"""The one place where any image file becomes a square of RGB bytes."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

from t2i_ray.data.record import Rejected

# What photographs and drawings come in. Pillow knows more, some of which run other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")


def load_square(content: bytes, size: int) -> np.ndarray:
    """An image file: upright, short side scaled to ``size``, centre cut. uint8 [size, size, 3].

    Transparent places become white. Raises Rejected with the reason if it cannot be read, is
    damaged, or is larger than Pillow's guard against decompression bombs allows.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                # A JPEG is decoded at a half, quarter or eighth where that is large enough.
                image.draft(None, (2 * size, 2 * size))
                _require_known_range(image)
                return square(ImageOps.exif_transpose(image), size)
        except UnidentifiedImageError:
            raise Rejected(f"not an image in one of the formats {', '.join(FORMATS)}") from None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise Rejected(f"more than {Image.MAX_IMAGE_PIXELS} pixels") from None
        except Rejected:
            raise
        except Exception as error:  # a damaged file may raise anything
            raise Rejected(f"damaged image: {error}") from None


def _require_known_range(image: Image.Image) -> None:
    """Raises Rejected if nothing says which value is white."""
    if image.mode == "F":
        raise Rejected("floating-point pixels, whose range is unknown")
    # Of other formats "I" is of 16 bits, all of them used. Of TIFF not, and "I;16" may be of 12.
    if isinstance(image, TiffImageFile):
        bits = image.tag_v2.get(BITSPERSAMPLE, (1,))
        if image.mode == "I" or bits[0] not in (1, 2, 4, 8, 16):
            raise Rejected(f"pixels of {bits[0]} bits or with signs, whose range is unknown")


def square(image: Image.Image, size: int) -> np.ndarray:
    """Short side scaled to ``size`` (Lanczos), centre cut, as uint8 [size, size, 3]."""
    fitted = ImageOps.fit(rgb(image), (size, size), Image.Resampling.LANCZOS)
    return np.asarray(fitted)


def rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: transparency over white, 16 bits by their upper 8."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        return Image.alpha_composite(white, coloured).convert("RGB")
    return image.convert("RGB")
