"""Pixels of eight bits, whatever a file holds: the same for training, evaluation, the smaller copy and archives."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from dearkd.data import image_archive, loader, presize
from dearkd.data.augment import Transform
from dearkd.data.images import MODES, Images, check, eight_bit, named, opened
from dearkd.errors import InputError
from dearkd.keys import seed_cpu
from dearkd.plan.stage import Augment, Data

RAMP = np.add.outer(np.arange(24) * 5, np.arange(40) * 3).astype(np.uint8)  # 24 x 40, 0 to 232: turned, it differs
COLOUR = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], -1)


def turned(number):
    """A picture stored as a camera held in that way stores it; COLOUR once it is upright."""
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[number]
    exif = Image.Exif()
    exif[0x0112] = number
    image = Image.fromarray(COLOUR)
    return (image if back is None else image.transpose(Image.Transpose(back))), {"exif": exif}


def grey(pixels):
    return np.repeat(pixels[..., None], 3, -1)


LEFT = np.broadcast_to(np.arange(40) < 20, (24, 40))
OPAQUE, LEFT_ONLY = np.full((24, 40), 255, np.uint8), np.where(LEFT, 255, 0).astype(np.uint8)
ON_WHITE, BESIDE_KEY = (np.where(LEFT[..., None], COLOUR, other).astype(np.uint8) for other in (255, (1, 2, 3)))
DEEP = RAMP.astype(np.uint16) * 257
KINDS = {
    **{f"orientation {n}": (*turned(n), COLOUR) for n in range(1, 9)},
    "grey of 16 bits": (Image.fromarray(DEEP), {}, grey(RAMP)),
    "grey of 16 bits as TIFF": (Image.fromarray(DEEP), {"format": "TIFF"}, grey(RAMP)),
    "grey of 32 bits, 16 used": (Image.fromarray(DEEP.astype(np.int32)), {"format": "TIFF"}, grey(RAMP)),
    "opaque": (Image.fromarray(np.dstack([COLOUR, OPAQUE])), {}, COLOUR),
    "half transparent": (Image.fromarray(np.dstack([COLOUR, LEFT_ONLY])), {}, ON_WHITE),
    "drawn in alpha alone": (Image.fromarray(np.dstack([0 * COLOUR, 255 - RAMP])), {}, grey(RAMP)),
    "grey with alpha": (Image.fromarray(np.dstack([RAMP, LEFT_ONLY])), {}, grey(np.where(LEFT, RAMP, OPAQUE))),
    "a colour that is transparent": (Image.fromarray(BESIDE_KEY), {"transparency": (1, 2, 3)}, ON_WHITE),
    "black and white": (Image.fromarray(LEFT), {}, grey(LEFT_ONLY)),
    "palette": (Image.fromarray(RAMP // 64).convert("P"), {}, grey(RAMP // 64)),
}
DATA = {
    3: Data(kind="folder", classes=2, image_size=16),
    1: Data(kind="folder", classes=2, image_size=16, channels=1, mean=(0.5,), std=(0.2,)),
}


def saved(folder, kind):
    image, options, pixels = KINDS[kind]
    image.save(folder / "a.png", **{"format": "PNG", **options})
    return Images(["a.png"], np.zeros(1, np.int64), root=folder), pixels


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_becomes_the_pixels_that_a_viewer_shows(tmp_path, kind):
    """Exact in colour; grey by PIL's weights."""
    images, expected = saved(tmp_path, kind)
    np.testing.assert_array_equal(np.asarray(images.open(0, 3)), expected)
    np.testing.assert_array_equal(np.asarray(images.open(0, 1)), np.asarray(Image.fromarray(expected).convert("L")))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_path_sees_those_pixels(tmp_path, kind, channels):
    """A crop of everything, at evaluation, in the smaller copy, and out of an archive, against a plain PNG of them."""
    images, expected = saved(tmp_path, kind)
    plain = Images(["p.png"], np.zeros(1, np.int64), root=tmp_path)
    Image.fromarray(expected).convert(MODES[channels]).save(tmp_path / "p.png")
    spec = DATA[channels]
    np.testing.assert_array_equal(loader.whole_pixels(images, [0], spec), loader.whole_pixels(plain, [0], spec))
    for decode in ("full", "reduced"):
        seen = []
        for each in (images, plain):
            transform = Transform(spec, Augment(auto="", erasing=0.0, crop_scale=(0.5, 1.0), decode=decode))
            seed_cpu(3)
            out = loader.torch.empty(channels, 16, 16)
            transform(each, 0, out)
            seen.append(out)
        np.testing.assert_array_equal(*seen)
    half = Data(**{**spec.__dict__, "image_size": 12, "presize": 12})
    (tmp_path / "small.png").write_bytes(presize._resized(tmp_path / "a.png", half))
    small = np.asarray(Images(["small.png"], np.zeros(1, np.int64), root=tmp_path).open(0, channels))
    asked = Image.fromarray(expected).convert(MODES[channels])
    np.testing.assert_array_equal(small, np.asarray(asked.resize((20, 12), Image.Resampling.BICUBIC)))
    kept = image_archive.write(tmp_path / "shard-0000.zip", np.asarray(asked).reshape(1, 24, 40, channels), ["0.png"])
    read = image_archive.read([tmp_path / "shard-0000.zip"], ["shard-0000.zip/0.png"], np.zeros(1, np.int64), channels)
    np.testing.assert_array_equal(np.asarray(read.open(0, channels)), np.asarray(asked))
    assert len(kept) == 64


@pytest.mark.parametrize("number", range(1, 9))
def test_a_camera_jpeg_is_upright_however_it_is_decoded(tmp_path, number):
    """Large enough that `reduced` decodes a half or less where it may."""
    image, options = turned(number)
    image.resize((image.width * 8, image.height * 8)).save(tmp_path / "a.jpg", quality=95, **options)
    images = Images(["a.jpg"], np.zeros(1, np.int64), root=tmp_path)
    with Image.open(tmp_path / "a.jpg") as file:
        expected = np.asarray(ImageOps.exif_transpose(file)).astype(int)
    assert np.abs(np.asarray(images.open(0, 3)).astype(int) - expected).max() == 0 and expected.shape == (192, 320, 3)
    seen = []
    for decode in ("full", "reduced"):
        transform = Transform(DATA[3], Augment(auto="", erasing=0.0, decode=decode, crop_scale=(0.9, 1.0)))
        seed_cpu(1)
        seen.append(loader.torch.empty(3, 16, 16))
        transform(images, 0, seen[-1])
    assert (seen[0] - seen[1]).abs().max() < 0.3  # a wrong side up is off by 1 and more


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of the very damage
def test_damaged_exif_data_count_as_none():
    raw = io.BytesIO()
    Image.fromarray(COLOUR).save(raw, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    with opened(raw) as image:
        assert eight_bit(image, 3).size == (40, 24)


@pytest.mark.parametrize(
    "image, said",
    [
        (Image.fromarray(RAMP.astype(np.float32)), "its pixels are floats"),
        (Image.fromarray(RAMP.astype(np.int32) - 1), "its pixels run from -1 to 231"),
        (Image.fromarray(RAMP.astype(np.int32) * 100_000), "its pixels run from 0 to 23200000"),
    ],
)
def test_what_has_no_eight_bits_is_refused_before_training_and_in_it(tmp_path, image, said):
    image.save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=rf"a\.tif: not a readable image \({said}"):
        Images(["a.tif"], np.zeros(1, np.int64), root=tmp_path).open(0, 3)
    with pytest.raises(InputError, match=said):
        check(tmp_path / "a.tif", (tmp_path / "a.tif").read_bytes(), 3)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.slow
def test_postscript_called_jpg_starts_no_ghostscript(tmp_path):
    """The interpreter would be found on PATH; it is not even looked for."""
    tool = tmp_path / "gs"
    tool.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    tool.chmod(0o755)
    (tmp_path / "a.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    )
    code = f"""
from pathlib import Path
import numpy as np
from PIL import Image
from dearkd.data.images import Images, check
from dearkd.errors import InputError
path = Path({str(tmp_path / "a.jpg")!r})
for use in (lambda: Images(["a.jpg"], np.zeros(1, np.int64), root=path.parent).open(0, 3),
            lambda: check(path, path.read_bytes(), 3)):
    try: use()
    except InputError as error: print(error)
"""
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count("a.jpg: not a readable image (it is none of JPEG, PNG, ") == 2
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of the very damage
def test_damage_of_any_kind_is_a_sentence_that_names_the_file(tmp_path):
    """Every format, cut at many lengths and with bytes overwritten: whatever its decoder raises."""
    random = np.random.default_rng(0)
    for name in ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF"):
        raw = io.BytesIO()
        Image.fromarray(COLOUR).save(raw, name)
        whole = np.frombuffer(raw.getvalue(), np.uint8)
        for _ in range(60):
            hurt = whole[: random.integers(len(whole))] if random.random() < 0.5 else whole.copy()
            if len(hurt) == len(whole):
                hurt[random.integers(len(hurt), size=8)] = random.integers(256, size=8)
            try:
                check(tmp_path / "a", hurt.tobytes(), 3)
            except InputError as error:
                assert str(error).startswith(f"{tmp_path}/a: not a readable image (")


def test_a_mistake_in_what_is_given_keeps_its_own_sentence(tmp_path):
    with pytest.raises(InputError, match=r"^another$"), named(tmp_path):
        raise InputError("another")


def test_channels_of_images_in_memory(monkeypatch):
    """Asked of three channels in one, or of one in three, every path gets as many as the network has."""
    from dearkd.data import datasets

    pixels = COLOUR[None]
    for given, channels in ((pixels, 1), (pixels[..., :1], 3)):
        images = datasets._in_channels(Images(["a"], np.zeros(1, np.int64), given), channels)
        assert images.pixels.shape == (1, 24, 40, channels)
        expected = np.asarray(Image.fromarray(given[0].squeeze()).convert(MODES[channels]))
        np.testing.assert_array_equal(images.pixels[0].squeeze(), expected)
