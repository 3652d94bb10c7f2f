"""Pictures: found wherever a record may keep them, and seen as a person sees them in a viewer.

What a viewer shows is written here as colours of single pixels, from the specifications of the formats.

    python -m pytest tests/test_pictures.py
"""

import base64
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data
from tasks import pictures
from tasks.pictures import as_seen, open_picture, picture_kind, picture_list

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)
NAN = float("nan")


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(source, folder="."):
    """The picture of a record as the product reads it; relative paths start from `folder`."""
    return data.Rows([{"problem": "p", "solution": "s", "image": source}], "x", folder=str(folder))[0]


def only(source, folder="."):
    (image,) = opened(source, folder)["images"]
    return image


SQUARE = Image.new("RGB", (6, 4), RED)


# -----------------------------------------------------------------------------
# where a picture may be
# -----------------------------------------------------------------------------


def sources(folder):
    """The same red picture in every spelling that data sets use."""
    (folder / "a dir").mkdir()
    path = folder / "a dir" / "red.png"
    SQUARE.save(path)
    content = path.read_bytes()
    text = base64.b64encode(content).decode()
    uri = f"data:image/png;base64,{text}"
    return {
        "relative": "a dir/red.png",
        "absolute": str(path),
        "backslashes": "a dir\\red.png",
        "file URI": path.as_uri(),  # file:///tmp/.../a%20dir/red.png
        "bytes": content,
        "memory": bytearray(content),
        "base64": text,
        "base64 in lines": base64.encodebytes(content * 1).decode(),
        "base64 for URLs": base64.urlsafe_b64encode(content).decode().rstrip("="),
        "data URI": uri,
        "data URI with parameters": f"data:image/png;charset=utf-8;base64,{text}",
        "struct": {"bytes": content, "path": "elsewhere.png"},
        "struct of a path": {"bytes": None, "path": "a dir/red.png"},
        "struct of text": {"bytes": text, "path": None},
        "image part": {"type": "image", "image": "a dir/red.png"},
        "image_url part": {"type": "image_url", "image_url": {"url": uri}},
        "url": {"url": str(path)},
        "list": ["a dir/red.png"],
        "JSON list": json.dumps(["a dir/red.png"]),
        "Python list": "['a dir/red.png']",
        "PIL": SQUARE,
        "pixels": np.asarray(SQUARE),
        "nested lists": np.asarray(SQUARE).tolist(),
    }


def test_every_spelling_of_a_picture(tmp_path):
    for name, source in sources(tmp_path).items():
        image = only(source, tmp_path)
        assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (6, 4), RED), name


def test_jpeg_and_webp_in_base64():
    """/9j/ and UklGR are how they begin; a path may begin so, too."""
    for kind, start in (("JPEG", "/9j/"), ("WEBP", "UklGR"), ("GIF", "R0lGOD"), ("BMP", "Qk")):
        text = base64.b64encode(encoded(SQUARE, kind)).decode()
        assert text.startswith(start) and only(text).size == (6, 4)
    assert pictures.file_in_text("images/" * 20 + "001") is None
    noise = encoded(Image.effect_noise((32, 32), 90))
    plain, for_urls = base64.b64encode(noise).decode(), base64.urlsafe_b64encode(noise).decode()
    assert "+" in plain and "/" in plain and "-" in for_urls and "_" in for_urls
    assert pictures.file_in_text(plain) == pictures.file_in_text(for_urls) == noise


def test_several_pictures_in_one_text(tmp_path):
    for name in ("a.png", "b.png", "c,d.png"):
        SQUARE.save(tmp_path / name)
    for source, count in (
        ("a.png,b.png", 2),
        ("a.png; b.png", 2),
        ("['a.png' 'b.png']", 2),  # as numpy writes a list
        ('["a.png", "b.png", "a.png"]', 3),
        ("c,d.png", 1),  # the name of one file
        (["a.png", "b.png"], 2),
    ):
        assert len(opened(source, tmp_path)["images"]) == count
    with pytest.raises(data.BadRow, match=r"image file .*a.png,gone.png not found"):
        opened("a.png,gone.png", tmp_path)


@pytest.mark.parametrize("nothing", [None, "", NAN, [], np.array([]), "[]", np.float32("nan")])
def test_no_picture(nothing):
    assert opened(nothing)["images"] == []


def test_addresses_are_refused_with_the_remedy(tmp_path):
    """All of the first rows: at once. One of them: as a bad row."""
    SQUARE.save(tmp_path / "a.png")
    words = r"the picture is the address https?://.*/0.png; download .*\(wget -i, or img2dataset\)"
    for address in (
        "https://a.b/0.png",
        "HTTP://a.b/0.png",
        {"url": "http://a.b/0.png"},
        ["https://a.b/0.png"],
    ):
        records = [{"problem": "p", "solution": "s", "image": address}] * 3
        with pytest.raises(SystemExit, match=f"(?i)^data: 'x': {words}"):
            data.Rows(records, "x", folder=str(tmp_path))
        rows = data.Rows(
            [*records, {"problem": "p", "solution": "s", "image": "a.png"}], "x", folder=str(tmp_path)
        )
        with pytest.raises(data.BadRow, match=f"(?i)^row x:0: {words}"):
            rows[0]
        assert len(rows[3]["images"]) == 1


def test_text_that_only_looks_like_a_picture():
    cut = base64.b64encode(encoded(Image.effect_noise((64, 64), 50)))[:300].decode()
    for source, why in {
        "data:image/png;base64,!!!": "broken image",
        cut: "broken image",
        "data:image/svg+xml;utf8,<svg/>": "broken image .it is none of PNG, JPEG",
        "x" * 400: "image file .* not found",
    }.items():
        with pytest.raises(data.BadRow, match=f"^row x:0: {why}"):
            opened(source)


def test_pictures_in_other_columns_are_seen():
    content = encoded(SQUARE)
    text = base64.b64encode(content).decode()
    for value in (
        content,
        text,
        f"data:image/png;base64,{text}",
        {"bytes": content, "path": None},
        {"image_url": {"url": "a.jpg"}},
        ["a.JPG"],
        '["a.jpg"]',
        "https://a.b/c.png?size=2",
        encoded(SQUARE, "BMP"),
        SQUARE,
    ):
        assert picture_kind(value) == "pictures"
    for value in ("a.mp4", ["a.mkv"], b"\0\0\0\x18ftypmp42", "https://a.b/c.mp4?x=1"):
        assert picture_kind(value) == "video"
    for value in (
        "a word",
        "[1, 2]",
        "a" * 400,
        b"RIFF....WAVE",
        b"\0\0\0\x18ftypM4A ",
        None,
        3,
        {"x": 1},
        [],
        {},
    ):
        assert picture_kind(value) == ""
    with pytest.raises(SystemExit, match="has pictures in the column 'scan', .*--columns=images=scan"):
        data.Rows([{"problem": "p", "solution": "s", "scan": text}], "x")


# -----------------------------------------------------------------------------
# what a person sees
# -----------------------------------------------------------------------------

# Where the upper left corner of the stored picture is to be shown (EXIF 2.3, tag 0x0112): column, row.
CORNERS = {
    1: ("left", "top"),
    2: ("right", "top"),
    3: ("right", "bottom"),
    4: ("left", "bottom"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", CORNERS)
def test_turned_as_the_camera_was_held(orientation, kind):
    image = Image.new("RGB", (32, 16), "white")
    image.paste(RED, (0, 0, 8, 8))  # the upper left corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = only(encoded(image, kind, exif=exif))
    assert seen.size == ((16, 32) if orientation >= 5 else (32, 16))
    side, end = CORNERS[orientation]
    x = 3 if side == "left" else seen.width - 4
    y = 3 if end == "top" else seen.height - 4
    r, g, b = seen.getpixel((x, y))
    assert r > 200 and max(g, b) < 80
    reds = (np.asarray(seen)[..., 1] < 128).sum()
    assert 50 <= reds <= 80  # 64 pixels, and nowhere else
    assert seen.getexif().get(0x0112, 1) == 1  # nobody turns it once more


def test_boxes_belong_to_the_turned_picture(tiny_folder):
    import qwen

    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.new("RGB", (120, 80)), "JPEG", exif=exif)
    record = {"problem": "Where?", "solution": [1, 2, 30, 100], "task": "grounding", "image": content}
    prompt = data.encode_prompt(data.Rows([record], "x")[0], qwen.load_processor(tiny_folder()))
    assert prompt["row"]["image_size"] == (80, 120)


def test_broken_exif_leaves_the_picture_as_it_is():
    content = encoded(SQUARE, "JPEG", exif=b"Exif\0\0XX*\0broken")
    assert only(content).size == (6, 4)


def black_cross(mode):
    """A black drawing on clear ground, whose clear pixels are black, too: without alpha, all is black."""
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 3, 8, 5))
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_white(mode):
    image = black_cross(mode)
    for source in (image, encoded(image, "TIFF" if mode == "PA" else "PNG")):
        seen = only(source)
        assert seen.mode == "RGB"
        assert seen.getpixel((0, 0)) == WHITE and seen.getpixel((4, 4)) == BLACK
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    assert as_seen(half).getpixel((0, 0)) == (127, 127, 127)  # 255 * (1 - 128 / 255)


def test_transparency_of_palettes_and_single_colours():
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((1, 1), 1)
    for kind in ("PNG", "GIF"):
        seen = only(encoded(palette, kind, transparency=0))
        assert seen.getpixel((0, 0)) == WHITE and seen.getpixel((1, 1)) == RED
    assert only(encoded(palette)).getpixel((0, 0)) == BLACK  # no transparency, no white
    bitmap = Image.new("1", (4, 4), 0)
    bitmap.putpixel((1, 1), 1)
    seen = only(encoded(bitmap, transparency=0))
    assert seen.getpixel((0, 0)) == WHITE
    colour = Image.new("RGB", (4, 4), BLACK)
    colour.putpixel((1, 1), RED)
    seen = only(encoded(colour, transparency=BLACK))
    assert seen.getpixel((0, 0)) == WHITE and seen.getpixel((1, 1)) == RED
    deep = Image.fromarray(np.array([[500, 65535], [0, 500]], np.uint16))
    assert np.asarray(only(encoded(deep, transparency=500)))[..., 0].tolist() == [[255, 255], [0, 255]]


def test_sixteen_bits_are_scaled_and_not_clipped():
    """65535 is white (PNG, section 4.6), so a value v is v / 257 in eight bits."""
    values = np.array([[0, 257, 128 * 257, 65535], [100, 1000, 40000, 65534]], np.uint16)
    expected = (values / 257).round().astype(int)
    for image in (Image.fromarray(values), Image.fromarray(values.astype(">u2"))):
        for seen in (as_seen(image), only(encoded(image, "TIFF")), only(encoded(Image.fromarray(values)))):
            assert np.asarray(seen)[..., 0].tolist() == expected.tolist()
    pgm = b"P5\n4 2\n65535\n" + values.astype(">u2").tobytes()
    assert np.asarray(only(pgm))[..., 2].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.25, 0.5, 1.0], [0, 64, 128, 255]),  # 0 to 1: black to white
        ([0.5, 0.5, 0.5, 0.5], [128, 128, 128, 128]),
        ([0.0, 10.0, 200.0, 255.0], [0, 10, 200, 255]),  # eight bits, stored as floats
        ([-1.0, 0.0, 1.0, 3.0], [0, 64, 128, 255]),  # any other range: stretched
        ([1000.0, 1500.0, 2000.0, 3000.0], [0, 64, 128, 255]),
        ([NAN, 0.0, 1.0, math.inf], [0, 0, 255, 255]),
        ([7000.0, 7000.0, 7000.0, 7000.0], [0, 0, 0, 0]),
    ],
)
def test_floats_are_scaled(values, expected):
    image = Image.fromarray(np.array([values], np.float32))
    assert image.mode == "F"
    for seen in (as_seen(image), only(encoded(image, "TIFF"))):
        assert np.asarray(seen)[0, :, 1].tolist() == expected


def test_a_picture_of_nothing_but_nan():
    image = Image.fromarray(np.full((2, 2), NAN, np.float32))
    with pytest.raises(data.BadRow, match="broken image .*no pixel has a value"):
        only(encoded(image, "TIFF"))


def test_whole_numbers_of_32_bits():
    for values, expected in (
        ([0, 7, 200, 255], [0, 7, 200, 255]),
        ([0, 1000, 2000, 4000], [0, 64, 128, 255]),
    ):
        image = Image.fromarray(np.array([values], np.int32))
        assert image.mode == "I" and np.asarray(as_seen(image))[0, :, 0].tolist() == expected


def test_other_colour_spaces():
    """Pure red in each, as far as eight bits and their conversions go."""
    for image in (
        Image.new("CMYK", (4, 4), (0, 255, 255, 0)),
        SQUARE.convert("HSV"),
        SQUARE.convert("YCbCr"),
        SQUARE.convert("P"),
        Image.new("LAB", (4, 4), (136, 208, 195)),  # L* 53.2, a* 80.1, b* 67.2; Pillow adds 128 to a and b
    ):
        r, g, b = as_seen(image).getpixel((0, 0))
        assert r > 235 and max(g, b) < 40, image.mode
    seen = only(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert seen.getpixel((4, 4))[0] > 235 and max(seen.getpixel((4, 4))[1:]) < 40
    assert as_seen(Image.new("1", (2, 2), 1)).getpixel((0, 0)) == WHITE
    assert as_seen(Image.new("L", (2, 2), 77)).getpixel((0, 0)) == (77, 77, 77)


def test_plain_pictures_stay_byte_for_byte():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    seen = as_seen(noise)
    assert seen is not noise and seen.tobytes() == noise.tobytes()
    assert only(encoded(noise)).tobytes() == noise.tobytes()
    assert only(encoded(noise.convert("RGBA"))).tobytes() == noise.tobytes()  # nothing is clear


def test_lists_that_are_no_pictures():
    def find(path):
        return None

    with pytest.raises(ValueError, match="image 2 of 3 is missing"):
        picture_list(["a.png", None, "b.png"], find)
    with pytest.raises(ValueError, match="17 images, more than 16"):
        picture_list(["a.png"] * 17, find)
    with pytest.raises(ValueError, match="a int where a path"):
        open_picture(5, find, Path("."))
