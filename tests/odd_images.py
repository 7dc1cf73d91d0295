"""Images as people really have them: turned by their tags in many ways, unusual, or damaged where it does no harm."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, PngImagePlugin, TiffImagePlugin, features

from tests.memory_dataset import smooth_image

HEIGHT, WIDTH = 40, 64
HAS_AVIF, HAS_JPEG_2000 = features.check("avif"), features.check("jpg_2000")

# The types that a number in a TIFF directory may have: code, and how it is packed.
TYPES = {
    "BYTE": (1, "B"),
    "SHORT": (3, "H"),
    "LONG": (4, "I"),
    "RATIONAL": (5, "II"),
    "SBYTE": (6, "b"),
    "SSHORT": (8, "h"),
    "SLONG": (9, "i"),
    "SRATIONAL": (10, "ii"),
    "FLOAT": (11, "f"),
    "DOUBLE": (12, "d"),
}
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description %s</x:xmpmeta>'
XMP_FORMS = ('tiff:Orientation="%d"/>', "tiff:Orientation = '%d'/>", "><tiff:Orientation>%d</tiff:Orientation>")


def picture(height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    return smooth_image(height, width, seed=3)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, 3) pixels as they are to be seen, by the table in the EXIF standard."""
    mirrored = {2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1]}
    columns = pixels.transpose(1, 0, 2)
    sideways = {5: columns, 6: columns[:, ::-1], 7: columns[::-1, ::-1], 8: columns[::-1]}
    return (mirrored | sideways).get(orientation, pixels)


def tiff_tags(orientation: int, kind: str = "SHORT", order: str = "<") -> bytes:
    """EXIF tags that hold an orientation of any type, and nothing else."""
    code, form = TYPES[kind]
    packed = struct.pack(order + form, *(orientation, 1)[: len(form)])
    inline = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(order + "I", 26)
    head = b"II*\0" if order == "<" else b"MM\0*"
    tags = head + struct.pack(order + "IHHHI", 8, 1, 0x0112, code, 1) + inline + bytes(4)
    return tags + (packed if len(packed) > 4 else b"")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunks(png: bytes, *chunks: bytes, after_pixels: bool = False) -> bytes:
    place = png.rindex(b"IEND") - 4 if after_pixels else 33
    return png[:place] + b"".join(chunks) + png[place:]


def raw_profile(tags: bytes) -> str:
    return f"\nexif\n{len(tags):8}\n{tags.hex()}\n"


def orientation_carriers(orientation: int) -> Iterator[tuple[str, bytes]]:
    """The same picture in every lossless format and with every place for its orientation; JPEGs are lossy."""
    image = picture()
    png = encoded(image, "PNG")
    for order in "<>":
        for kind in TYPES:
            tags = tiff_tags(orientation, kind, order)
            yield f"PNG {kind} {order}", with_chunks(png, chunk(b"eXIf", tags))
        tags = b"Exif\0\0" + tiff_tags(orientation, "RATIONAL", order)
        yield f"WebP RATIONAL {order}", encoded(image, "WEBP", lossless=True, exif=tags)
    tags = tiff_tags(orientation)
    yield "PNG eXIf after the pixels", with_chunks(png, chunk(b"eXIf", tags), after_pixels=True)
    profile = b"Raw profile type exif\0"
    text = raw_profile(b"Exif\0\0" + tags).encode()
    yield "PNG tEXt", with_chunks(png, chunk(b"tEXt", profile + text))
    yield "PNG zTXt", with_chunks(png, chunk(b"zTXt", profile + b"\0" + zlib.compress(text)))
    yield "PNG zTXt after", with_chunks(png, chunk(b"zTXt", profile + b"\0" + zlib.compress(text)), after_pixels=True)
    for form in XMP_FORMS:
        xmp = XMP % (form % orientation)
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp, zip=True)
        yield f"PNG XMP {form}", encoded(image, "PNG", pnginfo=info)
        yield f"WebP XMP {form}", encoded(image, "WEBP", lossless=True, xmp=xmp.encode())
        yield f"TIFF XMP {form}", encoded(image, "TIFF", tiffinfo={700: xmp.encode()})
    for kind in ("SHORT", "LONG", "RATIONAL", "DOUBLE"):
        directory = TiffImagePlugin.ImageFileDirectory_v2()
        directory.tagtype[0x0112] = TYPES[kind][0]
        directory[0x0112] = Fraction(orientation) if kind == "RATIONAL" else orientation
        yield f"TIFF {kind}", encoded(image, "TIFF", tiffinfo=directory)
    if 1 <= orientation <= 8:  # libtiff writes no others
        yield "TIFF LZW", encoded(image, "TIFF", tiffinfo={0x0112: orientation}, compression="tiff_lzw")


def jpeg_carriers(orientation: int) -> Iterator[tuple[str, bytes]]:
    """The same JPEG with every place for its orientation."""
    for kind in TYPES:
        yield f"JPEG {kind}", encoded(picture(), exif=b"Exif\0\0" + tiff_tags(orientation, kind))
    for form in XMP_FORMS:
        yield f"JPEG XMP {form}", encoded(picture(), xmp=(XMP % (form % orientation)).encode())
    # Tags that Pillow reads, but cannot write again.
    odd = tiff_tags(orientation)
    odd = odd[:8] + struct.pack("<H", 2) + odd[10:22] + struct.pack("<HHI4s", 0x8769, 3, 1, b"\x08\0\0\0") + odd[22:]
    yield "JPEG with odd tags", encoded(picture(), exif=b"Exif\0\0" + odd)


def cmyk_without_adobe() -> bytes:
    data = encoded(picture().convert("CMYK"))
    place = data.index(b"\xff\xee")
    return data[:place] + data[place + 2 + int.from_bytes(data[place + 2 : place + 4], "big") :]


def ycck() -> bytes:
    """Adobe's CMYK whose first three components are coded as YCbCr: here only said to be."""
    data = bytearray(encoded(picture().convert("CMYK")))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def with_sampling(horizontal: int, vertical: int) -> bytes:
    """A JPEG of even gray whose brightness has these sampling factors, which Pillow does not write."""
    data = bytearray(encoded(Image.new("RGB", (16 * horizontal, 24 * vertical), (128, 128, 128)), subsampling=0))
    data[data.index(b"\xff\xc0") + 11] = horizontal << 4 | vertical
    scan = data.index(b"\xff\xda")
    # Each block is "no difference" and "end of block", of the standard tables for brightness and for colour.
    bits = 6 * ("001010" * horizontal * vertical + "0000" * 2)
    bits += "1" * (-len(bits) % 8)
    return bytes(data[: scan + 14]) + int(bits, 2).to_bytes(len(bits) // 8, "big") + b"\xff\xd9"


def shorter_by(rows: int, data: bytes) -> bytes:
    """A JPEG whose header tells fewer rows than there are."""
    changed = bytearray(data)
    place = changed.index(b"\xff\xc0") + 5
    changed[place : place + 2] = (int.from_bytes(changed[place : place + 2], "big") - rows).to_bytes(2, "big")
    return bytes(changed)


def harmless() -> Iterator[tuple[str, bytes]]:
    """Files with some fault or oddity that leaves all pixels there. Pillow's pixels are meant."""
    jpeg = encoded(picture())
    png = encoded(picture(), "PNG")
    text = b"Comment\0" + b"A" * (2 << 20)
    scan = jpeg.index(b"\xff\xda")
    yield "comment of length one", jpeg[:2] + b"\xff\xfe\0\1" + jpeg[2:]
    yield "bytes before a marker", jpeg[:scan] + b"\0\1\2" + jpeg[scan:]
    yield "zeros for an end", jpeg[:-2] + bytes(60)
    yield "bytes after the last row", jpeg[:-2] + b"extra" + jpeg[-2:]
    yield "fewer rows in the header", shorter_by(8, jpeg)
    yield "restart marker in the header", jpeg[:20] + b"\xff\xd0" + jpeg[20:]
    yield "CMYK without Adobe", cmyk_without_adobe()
    yield "CMYK", encoded(picture().convert("CMYK"))
    yield "YCCK", ycck()
    yield "RGB JPEG", encoded(picture(), keep_rgb=True)
    yield "RGB by Adobe, YCbCr by JFIF", jpeg[:2] + b"\xff\xee\0\x0eAdobe\0\x64" + bytes(5) + jpeg[2:]
    yield "sampling 1 x 3", with_sampling(1, 3)
    yield "sampling 2 x 4", with_sampling(2, 4)
    yield "no IEND", png[:-12]
    yield "large text", with_chunks(png, chunk(b"tEXt", text))
    yield "large compressed text", with_chunks(png, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"A" * (2 << 20))))
    yield "large profile", with_chunks(png, chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(3 << 20))))
    yield "unreadable tags", with_chunks(png, chunk(b"eXIf", b"abcdefgh"))
    yield "text with a wrong checksum", with_chunks(png, chunk(b"tEXt", b"Comment\0text")[:-1] + b"?")
    yield "GIF", encoded(picture().quantize(), "GIF")
    frames = [picture().filter(ImageFilter.GaussianBlur(radius)) for radius in (2, 5)]
    yield "animated GIF", encoded(picture(), "GIF", save_all=True, append_images=frames)
    yield "animated PNG", encoded(picture(), "PNG", save_all=True, append_images=frames)
    yield "TIFF of pages", encoded(picture(), "TIFF", save_all=True, append_images=frames)
    for kind in ("TIFF", "PPM", "BMP"):
        yield kind, encoded(picture(), kind)
    if HAS_AVIF:
        yield "AVIF", encoded(picture(), "AVIF")
        yield "AVIF turned", encoded(picture(), "AVIF", exif=b"Exif\0\0" + tiff_tags(6))
    if HAS_JPEG_2000:
        yield "JPEG 2000", encoded(picture(), "JPEG2000")


def broken() -> Iterator[tuple[str, bytes, str]]:
    """Files that have no image, or not all of it, with a pattern for the reason."""
    jpeg = encoded(picture())
    scan = jpeg.index(b"\xff\xda")
    middle = (scan + len(jpeg)) // 2

    def frame(marker: int, precision: int = 8) -> bytes:
        changed = bytearray(jpeg)
        place = changed.index(b"\xff\xc0")
        changed[place + 1], changed[place + 4] = marker, precision
        return bytes(changed)

    yield "empty", b"", "the file is empty"
    yield "cut in its scan", jpeg[:middle], "."
    yield "gap in its scan", jpeg[:middle] + b"\xff\xd9", "premature end"
    yield "gap in a CMYK scan", (ink := cmyk_without_adobe())[: len(ink) // 2 + 200] + b"\xff\xd9", "premature end"
    yield "height after the scan", shorter_by(HEIGHT, jpeg), "DNL marker"
    yield "12 bits", frame(0xC1, 12), "a JPEG with 12 bits per sample; save it"
    yield "JPEG-LS", frame(0xF7), "a JPEG-LS image; save it"
    yield "hierarchical", frame(0xC5), "a hierarchical JPEG"
    yield "HEIC", b"\0\0\0\x18ftypheic" + bytes(40), "a HEIC image; convert it to JPEG or PNG"
    yield "JPEG XL", b"\xff\x0a" + bytes(40), "a JPEG XL image; convert"
    yield "JPEG XL in a box", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "a JPEG XL image; convert"
    yield "JPEG XR", b"II\xbc\1" + bytes(40), "a JPEG XR image; convert"
    yield "video", b"\0\0\0\x18ftypisom" + bytes(40), "a video; convert"
    yield "web page", b"<html>not found</html>", "no image of a known format but a text"
    yield "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known format but"
    yield "archive", b"PK\3\4" + bytes(40), "no image of a known format but an archive"
    yield "pointer", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"
    yield "zeros", bytes(5000), "a file of zeros"
    yield "noise", b"no image at all", "no image of a known format"
