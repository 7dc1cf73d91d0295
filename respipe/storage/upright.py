"""Images of any kind as the upright RGB pixels that respipe trains on, or the reason why there are none.

The verdict is given here and nowhere else: conversion, verification, class folders and the backends ask
:func:`decode`, so that they agree on what is damaged, which way is up, and what the colours are.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from respipe.checks import check_int
from respipe.jpeg.header import JpegError, JpegHeader, is_complete, read_header

# The formats images are accepted in, whatever their file name says. Pillow knows more, some of which run programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")

# Names of files with images in class folders, in lower case: those of torchvision's ``ImageFolder``, and more.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),
    *(".jpe", ".jfif", ".apng", ".gif", ".pbm", ".pnm", ".dib", ".avif", ".jp2", ".j2k", ".jpf", ".jpx"),
)

# What else may be found under an image's name: a pattern for its first bytes.
_OTHERS = {
    "a HEIC image": rb"....ftyp(hei|hev|mif|msf)",
    "an AVIF image, which this Pillow was built without": rb"....ftypavi",
    "a JPEG 2000 image, which this Pillow was built without": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "a JPEG XL image": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "a JPEG XR image": rb"II\xbc",
    "a video": rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI ",
    "a Photoshop file": rb"8BPS",
    "an OpenEXR image": rb"\x76\x2f\x31\x01",
    "a QOI image": rb"qoif",
    "an icon": rb"\x00\x00[\x01\x02]\x00",
    "a PDF or PostScript file": rb"%PDF|%!PS",
    "an archive": rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!",
    "a Git LFS pointer, whose file was not fetched": rb"version https://git-lfs",
    "a text, perhaps a web page": rb"\s*<[!?a-zA-Z]",
    "a file of zeros": rb"\0{16}",
}
_OTHER_CODINGS = {
    0xC3: "a lossless JPEG",
    0xC5: "a hierarchical JPEG",
    0xC6: "a hierarchical JPEG",
    0xC7: "a hierarchical JPEG",
    0xC9: "a JPEG with arithmetic coding",
    0xCA: "a JPEG with arithmetic coding",
    0xCB: "a lossless JPEG with arithmetic coding",
    0xF7: "a JPEG-LS image",
}

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = ExifTags.Base.Orientation
_XMP_ORIENTATION = re.compile(r"""tiff:Orientation\s*(?:=\s*["']|>\s*)([1-8])""")

# libjpeg's words for a scan that ends before the image does; the rest would be gray.
_LOST = "premature end of data"
# Its words for what follows the last row, as where a header gives too small a height.
_EXTRA = re.compile(r"extraneous bytes before marker 0xd9")
_TOO_MUCH = "there is more coded data than its"


class BrokenImageError(ValueError):
    """The bytes are no image, or not all of one. The message is the reason alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedImage:
    """An image as pixels.

    Args:
        image: upright RGB.
        traits: properties that made it differ from a plain RGB JPEG, for reports: "CMYK", "EXIF-rotated", "PNG", ...
        warnings: complaints of the decoder, which went on all the same.
        keepable: whether the bytes are a JPEG that any decoder, also one in hardware, shows as these pixels.
    """

    image: Image.Image
    traits: tuple[str, ...]
    warnings: tuple[str, ...]
    keepable: bool


def most_pixels() -> int:
    """Pixels that an encoded image may have at most, by Pillow's limit: a few bytes can claim to become gigabytes."""
    limit = Image.MAX_IMAGE_PIXELS
    return 2 * limit if limit is not None else 1 << 62


@contextmanager
def pixel_limit(max_pixels: int | None) -> Generator[None, None, None]:
    """Let images have so many pixels, in the whole process; with None leave Pillow's limit as it is.

    Raises:
        ValueError: it is not positive.
    """
    if max_pixels is not None:
        check_int("max_pixels", max_pixels, least=1)
    before = Image.MAX_IMAGE_PIXELS
    if max_pixels is not None:
        Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2  # Pillow refuses twice as many
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@contextmanager
def blamed_on_image(data: bytes = b"") -> Generator[None, None, None]:
    """Turn whatever the body raises into a :class:`BrokenImageError`.

    Decoders raise anything on bytes that their authors did not think of: ``struct.error``, ``TypeError``,
    ``AttributeError``, ``RecursionError``. None of it may end a job over a million images, and no list of types would
    be complete. So this one ``except`` takes all, around nothing but the decoding of a single image, and each caller
    counts and names the image. Running out of memory says nothing of the image and goes on as it is.
    """
    try:
        yield
    except (BrokenImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BrokenImageError(
            f"{str(error).partition(',')[0]}. If it is genuine, allow as many: max_pixels (--max-pixels) for "
            "conversion and verification, PIL.Image.MAX_IMAGE_PIXELS elsewhere"
        ) from error
    except UnidentifiedImageError as error:
        # Pillow's own message names an object in memory, another one in every run.
        raise BrokenImageError(f"it is {_kind(data)}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = str(error) or type(error).__name__
        if data.startswith(b"\xff\xd8") and (unusual := _unusual_jpeg(data)):
            reason = f"it is {unusual} ({reason})"
        raise BrokenImageError(reason) from error
    except Exception as error:
        raise BrokenImageError(f"its decoder fails with {type(error).__name__}: {error}") from error


def decode(data: bytes, *, collect_warnings: bool = False) -> DecodedImage:
    """Decode a whole image, strictly.

    JPEGs go through libjpeg-turbo with its warnings turned into findings: damage inside a scan is no error to libjpeg,
    and Pillow does not tell of it. Alpha is dropped, not blended, as torchvision's image folder does; 16-bit samples
    keep their upper eight bits (Pillow's own conversion would clip them to white). Of several frames the first counts.

    Args:
        data: the encoded image.
        collect_warnings: add Pillow's to the result's. Python's way to collect warnings is for processes in which no
            other thread does the same.

    Raises:
        BrokenImageError: it is empty, cut off, damaged beyond decoding, or no image.
    """
    if not data:
        raise BrokenImageError("the file is empty")
    with blamed_on_image(data):
        if not collect_warnings:
            return _decode(data)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what is allowed is no complaint
            decoded = _decode(data)
        texts = (*decoded.warnings, *(str(warning.message) for warning in caught))
        return DecodedImage(
            image=decoded.image,
            traits=decoded.traits,
            warnings=tuple(dict.fromkeys(texts)),
            keepable=decoded.keepable and not texts,
        )


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of an undamaged, upright, usual JPEG, baseline or progressive; None for anything else.

    Every decoder makes the same of its bytes; of other images each would make what it thinks right. Finding out takes a
    quarter of the time of decoding it.

    Raises:
        BrokenImageError: it is no image.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    with blamed_on_image(data):
        try:
            header = read_header(data)
        except JpegError:
            return None
        with _open(io.BytesIO(data), pixels=False)[0] as opened:
            upright = _orientation(opened, []) == 1
        usual = header.usual and header.coding in ("baseline", "progressive") and is_complete(data, header)
        plain = upright and usual and not isinstance(_with_turbo(data, scale=8), str)
        return (header.height, header.width) if plain else None


def stored_damage(data: bytes) -> str | None:
    """What is wrong with an image that was stored to be trained on, where a decoder's complaint is damage too; or None.

    Costs a quarter of decoding it where it is a usual JPEG.
    """
    try:
        complaints = () if plain_size(data) is not None else decode(data).warnings
    except BrokenImageError as error:
        return str(error)
    return complaints[0] if complaints else None


def upright_size(file: BinaryIO) -> tuple[int, int]:
    """Height and width in pixels of the upright image, from its header alone.

    Raises:
        BrokenImageError: there is no image, or none of a known format.
    """
    with blamed_on_image(), _open(file, pixels=False)[0] as image:
        width, height = _stored_size(image)
        return (width, height) if _orientation(image, []) >= 5 else (height, width)


def _decode(data: bytes) -> DecodedImage:
    found: list[str] = []
    opened, traits = _open(io.BytesIO(data), pixels=True)
    with opened:
        orientation = _orientation(opened, found)
        header = _strict_header(data, found) if data.startswith(b"\xff\xd8") else None
        image = None if header is None else _decode_strictly(data, header, found)
        if header is not None and image is not None:
            traits = _jpeg_traits(header)
        else:
            traits = (*_traits(opened), *traits)
            image = _to_rgb(opened)
    if orientation != 1:
        image = image.transpose(_TURNS[orientation])
        traits = (*traits, "EXIF-rotated")
    keepable = header is not None and header.plain and orientation == 1 and not found
    return DecodedImage(image=image, traits=traits, warnings=tuple(found), keepable=keepable)


def _strict_header(data: bytes, found: list[str]) -> JpegHeader | None:
    try:
        header = read_header(data)
    except JpegError as error:
        found.append(str(error))
        return None
    if not is_complete(data, header):
        found.append("the end marker is missing")
    return header


def _decode_strictly(data: bytes, header: JpegHeader, found: list[str]) -> Image.Image | None:
    """Decode a JPEG unless libjpeg-turbo complains or cannot convert it to RGB; its complaint goes to ``found``.

    Raises:
        BrokenImageError: part of the image is missing.
    """
    if header.precision != 8 or header.coding == "other":
        return None
    if header.colour == "cmyk":
        # Pillow's colours are meant, but damage is told of here.
        pixels = _with_turbo(data, scale=8, colours="CMYK")
    elif header.colour in ("gray", "ycbcr", "rgb") and header.common_sampling:
        pixels = _with_turbo(data)
    else:
        return None
    if isinstance(pixels, np.ndarray):
        return Image.fromarray(pixels) if header.colour != "cmyk" else None
    if _LOST in pixels:
        raise BrokenImageError(pixels)
    found.append(f"{pixels} ({_TOO_MUCH} {header.height} rows need)" if _EXTRA.search(pixels) else pixels)
    return None


def _with_turbo(data: bytes, *, scale: int = 1, colours: str = "RGB") -> NDArray[np.uint8] | str:
    """A JPEG's pixels by libjpeg-turbo, or its complaint. With a ``scale`` of 8 they are few, and found much faster."""
    reduced = {"min_height": 1, "min_width": 1, "min_factor": scale} if scale > 1 else {}
    try:
        return cast("Any", simplejpeg.decode_jpeg)(data, colorspace=colours, **reduced)
    except ValueError as error:
        return str(error)


def _open(file: BinaryIO, *, pixels: bool) -> tuple[Image.Image, tuple[str, ...]]:
    """Open an image with Pillow, after its PNG chunks were sorted; returns it and what only these chunks tell."""
    more: tuple[str, ...] = ()
    if _beginning(file).startswith(b"\x89PNG"):
        file, animated = _essential_chunks(file, pixels=pixels)
        more = ("several frames",) if animated else ()
    return Image.open(file, formats=FORMATS), more


def _beginning(file: BinaryIO) -> bytes:
    data = file.read(64)
    file.seek(0)
    return data


def _essential_chunks(file: BinaryIO, *, pixels: bool) -> tuple[io.BytesIO, bool]:
    """A PNG of nothing but the pixels and the orientation of another, and whether that one has several frames.

    Pillow refuses images for texts and profiles that it deems too large, and finds an orientation that follows the
    pixels only by decoding them.

    Args:
        file: the PNG.
        pixels: whether its pixels are wanted, not only its header.
    """
    head, body, animated = [file.read(8)], list[bytes](), False
    while len(start := file.read(8)) == 8:
        length, kind = int.from_bytes(start[:4], "big"), start[4:]
        if kind == b"IDAT" and not pixels:
            file.seek(length + 4, io.SEEK_CUR)
            continue
        critical = not kind[0] & 0x20
        if not critical and kind not in (b"tRNS", b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            animated |= kind == b"acTL"
            file.seek(length + 4, io.SEEK_CUR)
            continue
        rest = file.read(length + 4)
        if critical or kind == b"tRNS":
            (head if kind == b"IHDR" else body).append(start + rest)
        elif _tells_orientation(kind, rest[:length]) and zlib.crc32(kind + rest[:length]) == _number(rest[length:]):
            head.append(start + rest)
    if not pixels:
        body.append(b"\0\0\0\0IDAT" + zlib.crc32(b"IDAT").to_bytes(4, "big"))
    return io.BytesIO(b"".join(head + body + [start])), animated


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _tells_orientation(kind: bytes, body: bytes) -> bool:
    """Whether an ancillary chunk may hold an orientation, and Pillow reads it."""
    if kind == b"eXIf":
        return True
    keyword, _, text = body.partition(b"\0")
    if keyword not in (b"Raw profile type exif", b"XML:com.adobe.xmp") or len(text) > 1 << 20:
        return False
    if kind == b"tEXt":
        return True
    compressed = text[1:] if kind == b"zTXt" else text[2:].split(b"\0", 2)[-1] if text[:1] == b"\1" else b""
    decompressor = zlib.decompressobj()
    try:
        decompressor.decompress(compressed, 1 << 20)
    except zlib.error:
        return False
    return not decompressor.unconsumed_tail


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height before any rotation: of a TIFF Pillow tells those after."""
    tags = getattr(image, "tag_v2", None)
    return image.size if tags is None else (int(tags[256]), int(tags[257]))


def _orientation(image: Image.Image, found: list[str]) -> int:
    """An image's orientation, 1 to 8, by its EXIF tags, else by XMP.

    Pillow compares the tag as it is, so that a BYTE, which it reads as bytes, turns nothing. Tags that it cannot read
    are no damage: the pixels are all there. It goes to ``found``.
    """
    tags: Any = None
    try:
        # PngImageFile.getexif would decode the image to find tags that follow the pixels, which are in front here.
        tags = Image.Image.getexif(image)
        value = tags.get(_ORIENTATION)
    except Exception as error:  # noqa: BLE001 - as in blamed_on_image
        found.append(f"its EXIF tags cannot be read ({type(error).__name__}: {error})")
        value = None
    if value is None:
        xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or ""
        match = _XMP_ORIENTATION.search(xmp.decode("latin-1") if isinstance(xmp, bytes) else str(xmp))
        value = match[1] if match else 1
    elif image.format == "TIFF":
        del tags[_ORIENTATION]  # or Pillow turns the image itself, and writes its tags anew
    if isinstance(value, (tuple, bytes)) and value:
        value = cast("tuple[Any, ...] | bytes", value)[0]
    try:
        number = float(cast("Any", value))
    except (TypeError, ValueError, ZeroDivisionError):
        return 1
    return int(number) if number in _TURNS else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    image = image.copy()  # of a TIFF it is only the copy that tells its size before rotation
    if image.mode.startswith("I;16") or image.mode == "I":
        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the direct way warns
    return image.convert("RGB")


def _kind(data: bytes) -> str:
    """What bytes are that Pillow does not know, and what to do."""
    if data.startswith(b"\xff\xd8"):
        unusual = _unusual_jpeg(data)
        return f"{unusual}; save it anew as a baseline JPEG" if unusual else "a JPEG that is damaged"
    for name, pattern in _OTHERS.items():
        if re.match(pattern, data, re.DOTALL):
            image = "image" in name or "video" in name
            return f"{name}; convert it to JPEG or PNG" if image else f"no image of a known format but {name}"
    return "no image of a known format"


def _unusual_jpeg(data: bytes) -> str | None:
    """What makes Pillow refuse a JPEG that may be sound, or None."""
    try:
        header = read_header(data)
    except JpegError as error:
        return f"a JPEG that cannot be read: {error}"
    if header.marker in _OTHER_CODINGS:
        return _OTHER_CODINGS[header.marker]
    return None if header.precision == 8 else f"a JPEG with {header.precision} bits per sample"


def _jpeg_traits(header: JpegHeader) -> tuple[str, ...]:
    traits = {
        "grayscale": header.colour == "gray",
        "RGB JPEG": header.colour == "rgb",
        "progressive": header.coding == "progressive",
    }
    return tuple(trait for trait, has in traits.items() if has)


def _traits(opened: Image.Image) -> tuple[str, ...]:
    mode = opened.mode
    traits = {
        opened.format or "other": opened.format not in ("JPEG", "MPO"),
        "CMYK": mode == "CMYK",
        "grayscale": mode in ("1", "L", "LA") or mode.startswith("I"),
        "16-bit": mode.startswith("I") or ";16" in str(getattr(opened, "tile", "")),
        "alpha": mode in ("LA", "PA", "RGBA") or "transparency" in opened.info,
        "palette": mode in ("P", "PA"),
        "progressive": bool(opened.info.get("progressive")),
        "several frames": opened.format != "MPO" and bool(getattr(opened, "is_animated", False)),
    }
    return tuple(trait for trait, has in traits.items() if has)
