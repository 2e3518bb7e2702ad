"""Any file or array becomes the picture that a viewer shows, with a mask of what is valid, or one clear error."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import scipy.io
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageCms
from user_inputs import TURNED, deep_png, photograph, with_orientation

from cause_lite.datasets import picture_files, tiff
from cause_lite.datasets.arrays import Picture, Reading, label_type, parse_bands, to_bytes
from cause_lite.datasets.mat_files import read_array
from cause_lite.datasets.picture_files import as_picture, as_pictures
from cause_lite.runtime.files import UserError


def difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(float) - second.astype(float)).mean())


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("tag", sorted(TURNED))
def test_an_image_is_turned_as_its_tag_says(tmp_path, tag, ending):
    path = with_orientation(photograph(), tag, tmp_path / f"a.{ending}")
    assert difference(as_picture(path).rgb, np.asarray(photograph())) < 6  # JPEG and WebP lose a little
    assert picture_files.header(path)[:2] == photograph().size


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "LAB"])
def test_a_tiff_of_any_mode_is_turned(tmp_path, mode):
    image = Image.frombytes(mode, (3, 5), np.random.default_rng(0).bytes(60)[: 15 * {"L": 1, "LAB": 3}.get(mode, 4)])
    for tag in TURNED:
        wanted = as_picture(image).rgb
        assert np.array_equal(as_picture(with_orientation(image, tag, tmp_path / "a.tif")).rgb, wanted)


def test_the_orientation_of_deep_tiff_and_png(tmp_path):
    levels = np.arange(24, dtype=np.uint16).reshape(2, 4, 3) * 2000
    stored = np.ascontiguousarray(np.rot90(levels))
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extratags=[(274, "H", 1, 6, True)])
    assert np.array_equal(as_picture(tmp_path / "a.tif").rgb, as_picture(levels).rgb)
    for tag, how in TURNED.items():
        picture = Image.fromarray(levels[..., 0].astype(np.uint8))
        turned = picture if how is None else picture.transpose(how)
        assert np.array_equal(tiff.oriented(np.asarray(turned), tag), np.asarray(picture))


@pytest.mark.parametrize("ending, top", [("png", 4095), ("tif", 4095), ("tif", 65535), ("tif", 2**31 - 1)])
def test_deep_grey_keeps_its_levels(tmp_path, ending, top):
    grey = np.asarray(photograph().convert("L")).astype(np.float64)
    levels = (grey / 255 * top).astype(np.uint16 if top < 2**16 else np.int32)
    Image.fromarray(levels).save(tmp_path / f"a.{ending}")
    picture = as_picture(tmp_path / f"a.{ending}")
    assert len(np.unique(picture.rgb)) > 100 and "--window" in picture.notes[0]
    assert np.corrcoef(picture.rgb[..., 0].ravel(), grey.ravel())[0, 1] > 0.999
    asked = as_picture(tmp_path / f"a.{ending}", Reading(window=(0, top)))
    assert difference(asked.rgb[..., 0], grey) < 1 and not asked.notes


def test_all_sixteen_bits_of_colour_are_read(tmp_path):
    levels = (np.asarray(photograph()).astype(np.uint16)) * 8  # 0 to 2040: eight levels of the high byte alone
    tifffile.imwrite(tmp_path / "a.tif", levels, photometric="rgb")
    for path in (deep_png(levels, tmp_path / "a.png"), tmp_path / "a.tif"):
        picture = as_picture(path, Reading(window=(0, 2040)))
        assert difference(picture.rgb, np.asarray(photograph())) < 1
    alpha = np.dstack([levels, np.where(np.arange(128) < 64, 65535, 0)[None].repeat(100, 0)]).astype(np.uint16)
    assert as_picture(deep_png(alpha, tmp_path / "b.png")).valid.mean() == 0.5


def test_what_is_transparent_is_hidden_and_ignored(tmp_path):
    pixels = np.dstack([np.asarray(photograph()), np.full((100, 128), 255, np.uint8)])
    pixels[:, :64, :3] = np.random.default_rng(0).integers(0, 255, (100, 64, 3))
    pixels[:, :64, 3] = 0
    pixels[:, 64:96, 3] = 128
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    for picture in (as_picture(tmp_path / "a.png"), as_picture(pixels), as_picture(Image.fromarray(pixels, "RGBA"))):
        assert (picture.rgb[:, :64] == 255).all() and np.array_equal(picture.valid, pixels[..., 3] > 0)
        half = (pixels[:, 64:96, :3].astype(float) * 128 + 255 * 127) / 255
        assert difference(picture.rgb[:, 64:96], half) < 1
        assert np.array_equal(picture.rgb[:, 96:], pixels[:, 96:, :3])


def test_a_palette_with_a_transparent_colour(tmp_path):
    image = photograph().quantize(16)
    image.save(tmp_path / "a.png", transparency=3)
    with Image.open(tmp_path / "a.png") as stored:
        numbers = np.asarray(stored)
    assert np.array_equal(as_picture(tmp_path / "a.png").valid, numbers != 3)


def test_a_colour_profile_is_applied(tmp_path):
    """The same light in another colour space is the same picture."""
    lab = ImageCms.createProfile("LAB")
    srgb = ImageCms.createProfile("sRGB")
    xyz = ImageCms.ImageCmsProfile(srgb).tobytes()
    image = photograph()
    image.save(tmp_path / "srgb.png", icc_profile=xyz)
    assert np.array_equal(as_picture(tmp_path / "srgb.png").rgb, np.asarray(image))
    other = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    assert difference(as_picture(other).rgb, np.asarray(image)) < 2
    image.save(tmp_path / "broken.png", icc_profile=b"no profile")
    picture = as_picture(tmp_path / "broken.png")
    assert np.array_equal(picture.rgb, np.asarray(image)) and "colour profile" in picture.notes[0]


def test_bands_are_chosen_by_number(tmp_path):
    levels = np.random.default_rng(0).integers(0, 255, (20, 30, 5)).astype(np.uint8)
    for layout in ("contig", "separate"):
        stored = levels if layout == "contig" else np.moveaxis(levels, 2, 0)
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig=layout)
        picture = as_picture(tmp_path / "a.tif", Reading(bands=(3, 2, 1)))
        assert np.array_equal(picture.rgb, levels[..., [2, 1, 0]])
        single = as_picture(tmp_path / "a.tif", Reading(bands=(5,)))
        assert np.array_equal(single.rgb[..., 1], levels[..., 4])
        with pytest.raises(UserError, match=r"a\.tif: has 5 bands; name three of them, such as --bands 3,2,1"):
            as_picture(tmp_path / "a.tif")
        with pytest.raises(UserError, match=r"bands: must be one or three numbers of 1 to 5, not 6,2,1"):
            as_picture(tmp_path / "a.tif", Reading(bands=(6, 2, 1)))
    tifffile.imwrite(tmp_path / "four.tif", levels[..., :4], photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(as_picture(tmp_path / "four.tif").rgb, levels[..., :3])
    tifffile.imwrite(tmp_path / "alpha.tif", levels[..., :4], photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(as_picture(tmp_path / "alpha.tif").valid, levels[..., 3] > 0)
    assert parse_bands("3, 2,1") == (3, 2, 1) and parse_bands(None) is None
    with pytest.raises(UserError, match="such as 3,2,1, not 'red'"):
        parse_bands("red")


def test_pixels_without_data_are_not_valid(tmp_path):
    levels = np.random.default_rng(0).integers(100, 4000, (20, 30)).astype(np.int16)
    levels[:5] = -9999
    tifffile.imwrite(tmp_path / "a.tif", levels, extratags=[(42113, "s", 0, "-9999", True)])
    picture = as_picture(tmp_path / "a.tif")
    assert np.array_equal(picture.valid, levels != -9999) and picture.rgb[5:].std() > 50
    holes = levels.astype(np.float32)
    holes[levels == -9999] = np.nan
    tifffile.imwrite(tmp_path / "b.tif", holes)
    assert np.array_equal(as_picture(tmp_path / "b.tif").valid, levels != -9999)
    masked = np.ma.masked_equal(levels, -9999)
    assert np.array_equal(as_picture(masked).valid, levels != -9999)


@pytest.mark.parametrize("name", ["stack.tif", "animation.gif", "animation.webp", "animation.png"])
def test_one_image_of_several_is_named(tmp_path, name):
    frames = [photograph(number).convert("RGB") for number in range(3)]
    frames[0].save(
        tmp_path / name, save_all=True, append_images=frames[1:], **({} if "tif" in name else {"duration": 9})
    )
    with pytest.raises(UserError, match=rf"{name}: holds 3 images .* name one with --frame 1"):
        as_picture(tmp_path / name)
    for number in range(3):
        picture = as_picture(tmp_path / name, Reading(frame=number + 1))
        assert difference(picture.rgb, np.asarray(frames[number])) < 12
    with pytest.raises(UserError, match="frame: must be 1 to 3, not 4"):
        as_picture(tmp_path / name, Reading(frame=4))


def test_a_deep_stack_and_a_pyramid(tmp_path):
    levels = np.random.default_rng(0).integers(0, 4000, (3, 20, 30)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", levels, photometric="minisblack")
    with pytest.raises(UserError, match="holds 3 images"):
        as_picture(tmp_path / "stack.tif")
    second = as_picture(tmp_path / "stack.tif", Reading(frame=2))
    assert np.array_equal(second.rgb, as_picture(levels[1]).rgb)
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as file:
        file.write(levels[0], photometric="minisblack")
        file.write(levels[0, ::2, ::2], subfiletype=1, photometric="minisblack")
    assert np.array_equal(as_picture(tmp_path / "pyramid.tif").rgb, as_picture(levels[0]).rgb)


def test_the_first_of_a_phones_two_images_is_the_photograph(tmp_path):
    photograph(0).save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[photograph(1)], quality=95)
    assert difference(as_picture(tmp_path / "a.jpg").rgb, np.asarray(photograph(0))) < 6


@pytest.mark.parametrize("ending", ["heic", "avif"])
def test_formats_of_phones(tmp_path, ending):
    if ending == "heic":
        pytest.importorskip("pillow_heif")
        assert picture_files.heic_is_read()
    photograph().save(tmp_path / f"a.{ending}", quality=95)
    assert difference(as_picture(tmp_path / f"a.{ending}").rgb, np.asarray(photograph())) < 8


def test_heic_without_its_plugin_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 200)
    picture_files.heic_is_read.cache_clear()
    picture_files._formats.cache_clear()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    try:
        with pytest.raises(UserError, match=r"a\.HEIC: HEIC is read through pillow-heif"):
            as_picture(tmp_path / "a.HEIC")
    finally:
        monkeypatch.undo()
        picture_files.heic_is_read.cache_clear()
        picture_files._formats.cache_clear()


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "is empty"),
        (b"no image", "is not an image that Pillow can read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image that Pillow can read"),
        (b"II*\0" + b"\0" * 40, "damaged|is not an image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "damaged|is not an image"),
    ],
)
def test_what_is_no_image_is_named(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.png: .*({reason})"):
        as_picture(tmp_path / "a.png")


def test_paths_that_hold_no_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        as_picture(tmp_path / "a.png")
    with pytest.raises(UserError, match="is a folder, not an image"):
        as_picture(str(tmp_path))
    Image.new("1", (20_000, 20_000)).save(tmp_path / "giant.png")
    with pytest.raises(UserError, match=r"giant\.png: .* more than 100,000,000"):
        as_picture(tmp_path / "giant.png")


# ---------------------------------------------------------------- arrays


def test_arrays_and_tensors_mean_the_same():
    pixels = np.asarray(photograph())
    wanted = as_picture(pixels).rgb
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    for source in (photograph(), tensor, tensor.float() / 255, pixels / 255.0, (pixels / 255).astype(np.float32)):
        assert np.array_equal(as_picture(source).rgb, wanted) and as_picture(source).valid is None
    half = as_picture((tensor / 255).to(torch.bfloat16).requires_grad_()).rgb
    assert difference(half, wanted) < 1
    batch = list(as_pictures(torch.stack([tensor, tensor.flip(2)])))
    assert np.array_equal(batch[1].rgb, wanted[:, ::-1]) and len(batch) == 2
    assert np.array_equal(next(as_pictures(pixels[None])).rgb, wanted)
    grey = as_picture(pixels[..., 0])
    assert np.array_equal(grey.rgb, np.repeat(pixels[..., :1], 3, axis=2))
    for source in (pixels[..., :1], tensor[:1], tensor[0]):
        assert np.array_equal(as_picture(source).rgb, grey.rgb)
    assert np.array_equal(as_picture(pixels > 99).rgb, (pixels > 99) * np.uint8(255))


@pytest.mark.parametrize(
    "source, reason",
    [
        (np.zeros((3, 40, 50)), r"has 50 bands.*np\.moveaxis"),
        (torch.zeros(40, 50, 3), r"expected a tensor \(3, H, W\), not \(40, 50, 3\).*permute"),
        (np.zeros((40, 50, 7), np.uint8), "has 7 bands; name three"),
        (np.zeros((0, 50, 3)), r"expected \(H, W\).*not \(0, 50, 3\)"),
        (np.zeros(7), r"not \(7,\)"),
        (np.zeros((2, 2, 2, 2, 2)), r"not \(2, 2, 2, 2, 2\)"),
        (np.array([["a"]]), "expected numbers, not <U1"),
        (np.zeros((4, 4), complex), "expected numbers, not complex128"),
        (None, "expected numbers, not object"),
        ([[1], [2, 3]], "cannot be read"),
        (np.full((4, 4), np.nan), "holds no finite value"),
        (np.zeros((20_000, 20_000), bool), "more than 100,000,000"),
    ],
)
def test_what_is_no_image_gets_one_clear_error(source, reason):
    with pytest.raises(UserError, match=f"image: .*{reason}"):
        as_picture(source)


def test_a_window_is_a_range():
    assert np.array_equal(to_bytes(np.array([[5.0, 10, 15, 20]]), None, (10, 20))[0], [[0, 0, 128, 255]])
    for window in ((2.0, 2.0), (3.0, 1.0), (np.nan, 1.0)):
        with pytest.raises(UserError, match="window: must be two numbers LOW < HIGH"):
            to_bytes(np.zeros((2, 2)), None, window)
    assert (to_bytes(np.full((2, 2), 7000, np.uint16))[0] == 128).all()


def test_label_maps_have_a_value_to_spare():
    assert [label_type(n) for n in (1, 255, 256, 65_535)] == [np.uint8, np.uint8, np.uint16, np.uint16]
    with pytest.raises(UserError, match="65,536 clusters do not fit"):
        label_type(65_536)


# ---------------------------------------------------------------- whatever is drawn

NUMBERS = st.sampled_from(["uint8", "uint16", "int16", "int32", "int64", "float16", "float32", "float64", "bool"])


@given(
    NUMBERS.flatmap(
        lambda kind: hnp.arrays(
            kind,
            st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3, 4])),
            elements=None if kind == "bool" else hnp.from_dtype(np.dtype(kind)),
        )
    )
)
def test_every_array_of_numbers_is_a_picture_or_one_error(array):
    try:
        picture = as_picture(array)
    except UserError as error:
        assert "holds no finite value" in str(error) and not np.isfinite(array[..., :3]).any(axis=-1).all()
        return
    check(picture, array.shape[:2])
    if array.dtype.kind == "f":
        finite = np.isfinite(array[..., :3]).all(axis=-1)
        assert (np.ones(array.shape[:2], bool) if picture.valid is None else picture.valid)[~finite].sum() == 0


def check(picture: Picture, shape: tuple[int, ...]) -> None:
    assert picture.rgb.shape == (*shape, 3) and picture.rgb.dtype == np.uint8
    assert picture.valid is None or (picture.valid.shape == shape and not picture.valid.all())


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int]:
    """Height and width: small, or one side of up to 3,000 pixels."""
    short, long = draw(st.integers(1, 40)), draw(st.one_of(st.integers(1, 40), st.integers(1, 3000)))
    return (short, long) if draw(st.booleans()) else (long, short)


@st.composite
def images(draw: st.DrawFn) -> tuple[Image.Image, str]:
    """An image of any mode, and an ending that can hold it."""
    ends = {
        "1": ["png", "tif", "bmp", "gif"],
        "L": ["png", "jpg", "tif", "webp"],
        "LA": ["png"],
        "P": ["png", "gif", "bmp"],
        "RGB": ["png", "jpg", "tif", "webp", "bmp", "avif"],
        "RGBA": ["png", "tif", "webp", "avif"],
        "CMYK": ["jpg", "tif"],
        "YCbCr": ["jpg"],
        "LAB": ["tif"],
        "I;16": ["png", "tif"],
        "I": ["tif"],
        "F": ["tif"],
    }
    mode = draw(st.sampled_from(sorted(ends)))
    height, width = draw(shapes())
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    if mode in ("I;16", "I", "F"):
        top = draw(st.sampled_from([1, 255, 4095, 65_535]))
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray((rng.random((height, width)) * top).astype(kind))
    elif mode == "LAB":
        image = Image.frombytes("LAB", (width, height), rng.bytes(3 * width * height))
    else:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 4)).astype(np.uint8), "RGBA").convert(mode)
    return image, draw(st.sampled_from(ends[mode]))


@given(images(), st.sampled_from(sorted(TURNED)), st.booleans(), st.booleans())
def test_every_file_is_a_picture_of_its_shape(tmp_path_factory, drawn, tag, tagged, cut):
    image, ending = drawn
    path = tmp_path_factory.mktemp("drawn") / f"a.{ending}"
    with_tag = tagged and ending in ("jpg", "png", "tif", "webp", "avif")
    if with_tag:
        exif = Image.Exif()
        exif[0x0112] = tag
        image.save(path, exif=exif)
    else:
        image.save(path)
    if cut:
        path.write_bytes(path.read_bytes()[: max(1, path.stat().st_size // 2)])
    try:
        picture = as_picture(path)
    except UserError as error:
        assert cut and str(error).startswith(str(path))
        return
    turned = with_tag and tag > 4
    check(picture, image.size if turned else image.size[::-1])
    if not cut and not with_tag:  # in memory and from the file
        held = io.BytesIO(path.read_bytes())
        with Image.open(held) as again:
            assert np.array_equal(as_picture(again).rgb, picture.rgb)


DEPTHS = st.sampled_from(["uint8", "uint16", "int16", "uint32", "int32", "float32", "float64"])


@given(shapes(), st.integers(1, 6), DEPTHS, st.booleans(), st.sampled_from(sorted(TURNED)), st.integers(0, 99))
def test_every_tiff_of_bands_is_a_picture_or_asks_for_bands(tmp_path_factory, shape, bands, depth, planar, tag, seed):
    path = tmp_path_factory.mktemp("drawn") / "a.tif"
    levels = np.random.default_rng(seed).random((*shape, bands)) * (1 if depth.startswith("f") else 100)
    levels = levels.astype(depth)
    if planar and bands > 1:
        stored, layout = np.moveaxis(levels, 2, 0), {"planarconfig": "separate"}
    else:
        stored, layout = levels if bands > 1 else levels[..., 0], {"planarconfig": "contig"} if bands > 1 else {}
    tags = [(274, "H", 1, tag, True)]
    tifffile.imwrite(path, stored, photometric="minisblack", metadata=None, extratags=tags, **layout)
    turned = shape[::-1] if tag > 4 else shape
    for chosen in (None, (1,), tuple(range(bands, 0, -1))[:3]):
        try:
            check(as_picture(path, Reading(bands=chosen)), turned)
        except UserError as error:
            assert str(error).startswith(str(path)) and "bands" in str(error)
            assert (chosen is None and bands not in (1, 3)) or (chosen is not None and len(chosen) == 2)


@given(shapes(), st.integers(2, 4), st.integers(0, 99))
def test_every_deep_png_is_a_picture(tmp_path_factory, shape, bands, seed):
    path = tmp_path_factory.mktemp("drawn") / "a.png"
    levels = np.random.default_rng(seed).integers(0, 65_536, (*shape, bands)).astype(np.uint16)
    picture = as_picture(deep_png(levels, path))
    assert picture.rgb.shape == (*shape, 3)
    assert (np.ones(shape, bool) if picture.valid is None else picture.valid).sum() == (
        (levels[..., -1] > 0).sum() if bands != 3 else shape[0] * shape[1]
    )


# ---------------------------------------------------------------- MATLAB files


def mat_bytes(compressed: bool) -> bytes:
    file = io.BytesIO()
    variables = {"note": "text", "gt": np.arange(12, dtype=np.int32).reshape(3, 4), "more": {"x": 1}}
    scipy.io.savemat(file, variables, do_compression=compressed)
    return file.getvalue()


@given(st.booleans(), st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=6), st.integers(0, 700))
def test_a_damaged_matlab_file_is_read_or_refused(tmp_path_factory, compressed, changes, cut):
    path, data = tmp_path_factory.mktemp("mat") / "a.mat", bytearray(mat_bytes(compressed))
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(data[: len(data) if cut > 600 else cut])
    try:
        assert read_array(path, "gt").size
    except UserError as error:
        assert str(path) in str(error)


def test_a_matlab_file_holds_an_array_of_that_name(tmp_path):
    path = tmp_path / "a.mat"
    for compressed in (True, False):
        path.write_bytes(mat_bytes(compressed))
        assert read_array(path, "gt").tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
        for key, reason in (
            ("img", "no variable of that name"),
            ("note", "no real numbers"),
            ("more", "no real numbers"),
        ):
            with pytest.raises(UserError, match=reason):
                read_array(path, key)
