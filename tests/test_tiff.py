"""TIFF of any type, compression, layout and byte order is one picture: overviews, masks, thumbnails are none."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from user_inputs import classes, photograph

from cause_lite.datasets import tiff
from cause_lite.datasets.arrays import Reading
from cause_lite.datasets.label_table import UNLABELLED, read_codes
from cause_lite.datasets.picture_files import as_picture, header
from cause_lite.runtime.files import UserError

NODATA, PROFILE = 42113, 34675


@st.composite
def geotiffs(draw: st.DrawFn) -> dict:
    """What a GIS, a camera or a microscope may write."""
    kind = draw(st.sampled_from(["u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8"]))
    compression = draw(st.sampled_from([None, "lzw", "zlib", "zstd", "lzma", "packbits"]))
    predicts = compression in ("lzw", "zlib", "zstd") and kind not in ("f2", "f8")
    return {
        "kind": kind,
        "bands": draw(st.sampled_from([1, 3])),
        "shape": (draw(st.integers(16, 60)), draw(st.integers(16, 60))),
        "compression": compression,
        "predictor": predicts and draw(st.booleans()),
        "tile": draw(st.sampled_from([None, (16, 16)])),
        "planar": draw(st.booleans()),
        "byteorder": draw(st.sampled_from(["<", ">"])),
        "overviews": draw(st.integers(0, 2)),
        "mask": draw(st.booleans()),
        "nodata": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }


def written(path, how: dict, labels: bool = False) -> np.ma.MaskedArray:
    """Write such a file, and return its levels, masked where they are declared to be none."""
    rng = np.random.default_rng(how["seed"])
    levels = rng.integers(0, 7 if labels else 100, (*how["shape"], how["bands"]))
    levels = (levels / 100 if how["kind"][0] == "f" and not labels else levels).astype(how["kind"])
    hidden = np.zeros(how["shape"], bool)
    tags = []
    if how["nodata"]:
        levels[:3], hidden[:3] = 101, True
        tags = [(NODATA, "s", 0, "101", True)]
    plain = {"compression": how["compression"], "predictor": how["predictor"] or None, "metadata": None}
    plain |= {"photometric": "rgb" if how["bands"] == 3 else "minisblack", "tile": how["tile"]}
    planar = how["planar"] and how["bands"] == 3
    with tifffile.TiffWriter(path, byteorder=how["byteorder"]) as file:
        for step in range(how["overviews"] + 1):
            view = levels[:: 2**step, :: 2**step]
            stored = np.moveaxis(view, 2, 0) if planar else view if how["bands"] == 3 else view[..., 0]
            layout = {"planarconfig": "separate" if planar else "contig"} if how["bands"] == 3 else {}
            file.write(stored, subfiletype=int(step > 0), extratags=[] if step else tags, **plain, **layout)
        if how["mask"]:
            hidden[:, :4] = True
            kept = np.ones(how["shape"], bool)
            kept[:, :4] = False
            file.write(kept, photometric="mask", subfiletype=4, metadata=None)
    return np.ma.masked_array(levels, np.repeat(hidden[..., None], how["bands"], axis=2))


@given(geotiffs())
def test_a_geotiff_is_one_picture(tmp_path_factory, how):
    path = tmp_path_factory.mktemp("drawn") / "a.tif"
    levels = written(path, how)
    wanted, found = as_picture(levels), as_picture(path)
    assert np.array_equal(found.rgb, wanted.rgb)
    assert header(path)[:2] == how["shape"][::-1]
    assert (found.valid is None) == (wanted.valid is None)
    assert found.valid is None or np.array_equal(found.valid, wanted.valid)


@given(geotiffs())
def test_a_geotiff_of_labels_is_one_map(tmp_path_factory, how):
    path = tmp_path_factory.mktemp("drawn") / "a.tif"
    ids = written(path, how | {"bands": 1}, labels=True)
    assert np.array_equal(read_codes(path), ids.astype(int).filled(UNLABELLED)[..., 0])


@pytest.mark.parametrize("kind", ["grey", "palette", "palette of several", "colours", "alpha"])
def test_what_a_png_declares_to_be_transparent_is_ignored_in_labels(tmp_path, kind):
    ids = classes()
    image, hidden, options = Image.fromarray(ids), ids == 0, {"transparency": 0}
    if kind.startswith("palette"):
        image.putpalette(np.arange(768, dtype=np.uint8).tolist())
    if kind == "palette of several":
        hidden, options = ids < 2, {"transparency": b"\0\0\xff"}
    if kind == "colours":
        image, options = Image.fromarray(np.repeat(ids[..., None], 3, 2)), {"transparency": (0, 0, 0)}
    if kind == "alpha":
        image, options = Image.fromarray(np.dstack([ids, np.where(hidden, 0, 255).astype(np.uint8)]), "LA"), {}
    image.save(tmp_path / "a.png", **options)
    assert np.array_equal(read_codes(tmp_path / "a.png"), np.where(hidden, UNLABELLED, ids.astype(int)))


@pytest.mark.parametrize("inside", [False, True])
def test_a_thumbnail_is_not_the_picture(tmp_path, inside):
    full = np.asarray(photograph())
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(full[::4, ::4], photometric="rgb", subfiletype=1, subifds=int(inside), metadata=None)
        file.write(full, photometric="rgb", metadata=None)
    assert np.array_equal(as_picture(tmp_path / "a.tif").rgb, full)
    with tifffile.TiffWriter(tmp_path / "raw.tif") as file:
        file.write(full[::4, ::4], photometric="rgb", subfiletype=1, subifds=int(inside), metadata=None)
        file.write(full[..., 1].astype(np.uint16), photometric="cfa", metadata=None)
    with pytest.raises(UserError, match=r"raw\.tif: is a camera's raw file; develop it"):
        as_picture(tmp_path / "raw.tif")


@pytest.mark.parametrize("height, width", [(600, 800), (1000, 1001), (1500, 1200)])
def test_all_bands_are_scaled_by_one_range_of_all(tmp_path, height, width):
    rng = np.random.default_rng(0)
    levels = rng.integers(1000, 60_000, (height, width, 3)).astype(np.uint16)
    levels[..., 0] = rng.integers(100, 2000, (height, width))
    levels[3, 5] = (7, 65_000, 9)
    low, high = np.percentile(levels, (0.1, 99.9))
    wanted = np.clip((levels - low) / (high - low), 0, 1) * 255
    tifffile.imwrite(tmp_path / "a.tif", levels, photometric="rgb")
    picture = as_picture(tmp_path / "a.tif")
    assert np.abs(picture.rgb - wanted).mean() < 1 and "values of 7 to 65000" in picture.notes[0]


def swapped_profile() -> bytes:
    """sRGB whose red and green primaries are swapped."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", content[128:132])[0]
    at = {bytes(content[132 + 12 * i : 136 + 12 * i]): 136 + 12 * i for i in range(count)}
    red, green = at[b"rXYZ"], at[b"gXYZ"]
    content[red : red + 8], content[green : green + 8] = content[green : green + 8], content[red : red + 8]
    return bytes(content).replace("sRGB".encode("utf-16-be"), "Wide".encode("utf-16-be"))


def test_a_profile_counts_whatever_the_depth(tmp_path):
    image, profile = photograph(), swapped_profile()
    image.save(tmp_path / "8.png", icc_profile=profile)
    for kind, times in ((np.uint8, 1), (np.uint16, 257)):
        tifffile.imwrite(
            tmp_path / "a.tif", np.asarray(image).astype(kind) * times, photometric="rgb", iccprofile=profile
        )
        found, wanted = (as_picture(tmp_path / name).rgb for name in ("a.tif", "8.png"))
        assert np.abs(found.astype(int) - wanted).max() <= 1 and not np.array_equal(found, np.asarray(image))


@pytest.mark.parametrize("kind", ["cielab", "icclab", "cielab with an offset"])
@pytest.mark.parametrize("deep", [False, True])
def test_lab_is_the_photograph(tmp_path, kind, deep):
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    levels = np.array(ImageCms.profileToProfile(photograph(), srgb, lab, outputMode="LAB"))  # a and b with a sign
    if kind != "cielab":
        levels[..., 1:] ^= 128
    stored = levels.astype(np.uint16) << 8 if deep else levels
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric=kind.split()[0])
    picture = as_picture(tmp_path / "a.tif")
    assert np.abs(picture.rgb.astype(int) - np.asarray(photograph())).mean() < 2
    assert bool(picture.notes) == kind.endswith("offset")


@pytest.mark.parametrize("extra, shown", [("unspecified", None), ("unassalpha", "opacity"), ("assocalpha", "opacity")])
@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_a_fourth_band_is_opacity_only_where_the_file_says_so(tmp_path, extra, shown, kind):
    colours = np.asarray(photograph())
    fourth = np.full((*colours.shape[:2], 1), 255, np.uint8)
    fourth[:, :40] = 0
    stored = np.dstack([colours * (fourth > 0) if extra == "assocalpha" else colours, fourth]).astype(kind)
    stored = stored * np.array(257 if kind == "u2" else 1, kind)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=[extra])
    picture = as_picture(tmp_path / "a.tif", Reading(window=(0, np.iinfo(kind).max)))
    assert (picture.valid is not None) == (shown == "opacity")
    assert np.array_equal(picture.rgb[:, 40:], colours[:, 40:])
    assert (picture.rgb[:, :40] == 255).all() == (shown == "opacity")


@pytest.mark.parametrize("photometric, full", [("minisblack", 255), ("miniswhite", 255)])
def test_white_may_be_the_lowest_value(tmp_path, photometric, full):
    grey = np.asarray(photograph().convert("L"))
    tifffile.imwrite(tmp_path / "a.tif", grey if photometric == "minisblack" else full - grey, photometric=photometric)
    assert np.array_equal(as_picture(tmp_path / "a.tif").rgb[..., 0], grey)


def test_signed_bytes_are_their_levels(tmp_path):
    grey = np.asarray(photograph().convert("L"))
    tifffile.imwrite(tmp_path / "a.tif", (grey.astype(int) - 128).astype(np.int8), photometric="minisblack")
    picture = as_picture(tmp_path / "a.tif")
    assert np.array_equal(picture.rgb[..., 0], grey) and "-128 to 127" in picture.notes[0]


@pytest.mark.parametrize("compression", ["group3", "group4", "jpeg", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_what_pillow_writes_is_read(tmp_path, compression):
    image = photograph().convert("1") if compression.startswith("group") else photograph()
    image.save(tmp_path / "a.tif", compression=compression)
    difference = as_picture(tmp_path / "a.tif").rgb.astype(int) - np.asarray(image.convert("RGB"))
    assert np.abs(difference).mean() < (6 if compression == "jpeg" else 1e-9)


def test_a_georeference_of_a_damaged_file_is_said(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\0" + b"\xff" * 40)
    with pytest.raises(UserError, match=r"a\.tif"):
        tiff.read_georeference(tmp_path / "a.tif")
