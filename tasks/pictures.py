"""The pictures of a row: found, opened, and made what a person sees in a viewer, in RGB.

A data set holds a picture as
    the path of a file        relative, absolute, file:///a%20b.png, or with Windows' backslashes
    the file itself           bytes, base64 (also URL-safe, also in lines), a data URI
    a dict around one         {"bytes", "path"}, {"image"}, {"url"}, {"image_url": {"url"}}
    pixels                    a PIL image, or height x width x 3 whole numbers
or several of them as a list, which may be written as a text: '["a.png", "b.png"]'. An address (https://...)
is not fetched: a run must not depend on a server.

Nothing here knows of rows: what is wrong is a ValueError in words, to which data.py adds the row's name.
"""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tasks.answers import is_empty, literal, plain

# Images in one prompt. vLLM wants to know the limit when it starts, and it costs nothing to name a high one.
MAX_IMAGES = 16
# Width * height of one image, checked before it is decoded: phones take 50 million pixels, and a file of 20
# KB can hold 169. Decoded, a pixel takes 4 bytes: 256 MB, in each of up to eight threads.
MAX_IMAGE_PIXELS = 64_000_000
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limits, a warning and an error: ours is lower and names the size
# What may be opened: still pictures that Pillow decodes by itself (for EPS it would run ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
Image.init()
FORMATS = tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF is in newer versions of Pillow only
# By these a column that holds pictures or video is known.
PICTURE_NAME = re.compile("img|image|picture|photo|video|clip|frame", re.IGNORECASE)
PICTURE_FILES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
VIDEO_FILES = (".mp4", ".webm", ".mov", ".avi", ".mkv")
PICTURE_BYTES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
WRAPPERS = ("bytes", "path", "image", "image_url", "url", "data")  # keys of dicts around a picture
ADDRESS = re.compile("(?:https?|ftp|s3|gs|hf)://", re.IGNORECASE)
BASE64 = re.compile("[A-Za-z0-9+/_-]{40,}={0,2}")  # the shortest picture, a GIF, takes 48 characters
ORIENTATION = 0x0112  # the EXIF tag: how a camera was held

# -----------------------------------------------------------------------------
# what a record holds -> RGB images
# -----------------------------------------------------------------------------


def picture_list(value, find: Callable) -> list:
    """The pictures that a column of a record holds, each still as it stands there; [] if it holds none.

    `find(path)` gives the file of a path or None. Raises ValueError for a gap in the list, and for more than
    MAX_IMAGES.
    """
    value = plain(value)
    if isinstance(value, str):
        value = literal(value)
    if is_empty(value):
        return []
    if isinstance(value, str) and re.search("[,;|]", value) and not value.startswith("data:"):
        parts = [part.strip() for part in re.split("[,;|]", value)]
        if find(value) is None and all(map(find, parts)):
            value = parts  # "a.png,b.png", unless that is the name of one file
    if not isinstance(value, list | tuple) or is_pixels(value):
        value = [value]
    if len(value) > MAX_IMAGES:
        raise ValueError(f"{len(value)} images, more than {MAX_IMAGES}")
    for number, source in enumerate(value, 1):
        if is_empty(source):
            raise ValueError(f"image {number} of {len(value)} is missing")
    return list(value)


def open_picture(source, find: Callable, root: Path) -> Image.Image:
    """One picture of a record as a person sees it, in RGB; of an animation the first.

    `find` as above, `root`: the folder that a file which is not found was looked for in. Raises ValueError
    that says what is wrong.
    """
    source = unwrapped(source)
    if is_address(source):
        raise ValueError(not_fetched(source))
    if isinstance(source, str):
        content = file_in_text(source)
        source = source if content is None else content
    if isinstance(source, Image.Image):
        return as_seen(source)
    if isinstance(source, bytes | bytearray | memoryview):
        file = io.BytesIO(source)
    elif isinstance(source, str | Path):
        file = find(source)
        if file is None:
            raise ValueError(
                f"image file {root / source} not found (--image_root is the folder the paths start from)"
            )
    elif not is_pixels(source):
        kind = type(source).__name__
        raise ValueError(f"broken image (a {kind} where a path or the bytes of a file are meant)")
    try:
        if is_pixels(source):
            return Image.fromarray(np.asarray(source, np.uint8)[..., :3])
        with Image.open(file, formats=FORMATS) as image:  # reads the header alone
            if image.width * image.height <= MAX_IMAGE_PIXELS:
                return as_seen(image)
            size = f"{image.width} x {image.height}"
    except UnidentifiedImageError as error:
        raise ValueError(f"broken image (it is none of {', '.join(FORMATS)})") from error
    except Exception as error:  # damaged files make Pillow's decoders raise errors of any kind
        raise ValueError(f"broken image ({type(error).__name__}: {str(error)[:80]})") from error
    raise ValueError(
        f"image of {size} pixels, more than {MAX_IMAGE_PIXELS / 1e6:.0f} million; make a smaller copy of it"
    )


def unwrapped(source):
    """The picture in a dict around it, such as {"bytes", "path"} or {"image_url": {"url": ...}}."""
    for _ in range(3):
        if isinstance(source, dict):
            inside = (source.get(key) for key in WRAPPERS)
            source = next((value for value in inside if not is_empty(value)), None)
    return source


def is_pixels(value) -> bool:
    """Is it height x width x 3 (or 4) whole numbers, as nested lists?"""
    for _ in range(2):
        if not isinstance(value, list) or not value:
            return False
        value = value[0]
    return isinstance(value, list) and len(value) in (3, 4) and all(type(x) is int for x in value)


def is_address(source) -> bool:
    source = unwrapped(source)
    return isinstance(source, str) and ADDRESS.match(source) is not None


def not_fetched(source) -> str:
    """What to do about a picture that is an address."""
    return (
        f"the picture is the address {unwrapped(source)[:200]}; download the pictures first "
        "(wget -i, or img2dataset) and put their paths in the column"
    )


def file_in_text(text: str) -> bytes | None:
    """The file that a data URI or a base64 text holds; None for a text that is neither: a path.

    A path may consist of base64's characters, so what it decodes to must begin like a picture.
    """
    if text[:5].lower() == "data:":
        head, _, content = text.partition(",")
        if not head.lower().endswith(";base64"):
            return unquote_to_bytes(content)
        return from_base64(unquote(content))
    if len(text) < 40 or not BASE64.fullmatch("".join(text.split())):
        return None
    content = from_base64(text)
    return content if begins_like_picture(content) else None


def from_base64(text: str) -> bytes:
    """The bytes of a base64 text, with or without line breaks, with "-_" or "+/"; b"" if it is none."""
    text = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    if len(text) % 4 == 1:  # no number of bytes gives this length: cut off
        text = text[:-1]
    return base64.b64decode(text + "=" * (-len(text) % 4))


def begins_like_picture(content: bytes) -> bool:
    is_bitmap = content[:2] == b"BM" and content[6:10] == bytes(4)
    is_container = content[8:12] in (b"WEBP", b"avif", b"heic")
    return content.startswith(PICTURE_BYTES) or is_bitmap or is_container


def find_file(source: str | Path, roots: list[Path], folder: Path, published: bool) -> Path | None:
    """The image file that a path of a record means, None if it is in no place that it may mean.

    roots: folders that it may start from. folder: that of the data file. published: the paths are of authors
    who had other folders, so their first parts may be left out. A regular file, that is: a device or a pipe
    could be read for ever.
    """
    source = str(source)
    if source.startswith("file:"):
        source = unquote(re.sub("^file:(?://(?:localhost)?)?", "", source))
    places = []
    for name in dict.fromkeys((source, source.replace("\\", "/"))):
        parts = Path(name).parts
        starts = range(len(parts)) if published else [0]
        tails = [Path(*parts[start:]) for start in starts]
        places += [root / tail for tail in tails for root in roots]
    # CLEVR keeps scenes/, questions/ and images/<split>/ side by side and stores bare file names:
    # CLEVR_val_000017.png is of the split val.
    words = source.split("_")
    split = words[-2] if len(words) > 1 else words[0]
    places.append(folder.parent / "images" / split / source)
    try:
        return next((place for place in places if place.is_file()), None)
    except (OSError, ValueError):  # no name that a file can have: too long, or with a NUL
        return None


# -----------------------------------------------------------------------------
# pixels
# -----------------------------------------------------------------------------


def as_seen(image: Image.Image) -> Image.Image:
    """The picture as a viewer shows it, as an RGB image of its own.

    Turned as its EXIF says, over white where it is transparent (as Qwen's own tools do), values of more than
    8 bits scaled.
    """
    if orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas


def orientation(image: Image.Image) -> int:
    """1 to 8, as EXIF counts; 1, as it is stored, also where the EXIF cannot be read: so do viewers."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF makes Pillow's parser raise errors of any kind
        return 1


def eight_bits(image: Image.Image) -> Image.Image:
    """A picture of mode I;16, I or F in 8 bits of grey.

    16 bits: 65535 is white. Whole numbers up to 255 stay, floats from 0 to 1 become 0 to 255; all others are
    stretched between their least and their greatest value. NaN counts as the least. Raises ValueError if all
    are NaN.
    """
    values = np.asarray(image).astype(np.float32)
    finite = values[np.isfinite(values)]
    if not len(finite):
        raise ValueError("no pixel has a value")
    low, high = float(finite.min()), float(finite.max())
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        low, high = 0, 65535
    elif low >= 0 and high <= 255:
        low, high = 0, 1 if image.mode == "F" and high <= 1 else 255
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    grey = ((values - low) * (255 / ((high - low) or 1))).round()
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # a PNG may name one value that is transparent
        grey[values == clear] = 255
    return Image.fromarray(grey.clip(0, 255).astype(np.uint8))


def thumbnail(image: Image.Image, side: int = 160) -> str:
    """The image, at most `side` pixels wide and high, as a JPEG data URI for logs and web pages."""
    small = image.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


# -----------------------------------------------------------------------------
# what a column of unknown name holds
# -----------------------------------------------------------------------------


def picture_kind(value) -> str:
    """What a value holds, by the suffix of a path or the first bytes of a file: "pictures", "video" or ""."""
    value = plain(value)
    if isinstance(value, str):
        value = literal(value)
    if isinstance(value, list | tuple) and value:
        value = value[0]
    value = unwrapped(value)
    if isinstance(value, str):
        content = file_in_text(value)
        value = value if content is None else content
    if isinstance(value, Image.Image):
        return "pictures"
    if isinstance(value, bytes):
        if begins_like_picture(value):
            return "pictures"
        return "video" if value[4:8] == b"ftyp" and value[8:11] != b"M4A" else ""  # MP4, and not its sound
    if not isinstance(value, str) or "\n" in value:
        return ""
    name = value.partition("?")[0].lower() if ADDRESS.match(value) else value.lower()
    if name.endswith(VIDEO_FILES):
        return "video"
    return "pictures" if name.endswith(PICTURE_FILES) else ""
