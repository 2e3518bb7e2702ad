"""The command line on good and bad input: one clear line, a non-zero exit, and no half file."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import quick_config
from PIL import Image

from cause_lite import checkpoints, datasets
from cause_lite.cli import main
from cause_lite.methods.as_released import fit
from cause_lite.runtime import files
from cause_lite.runtime.files import UserError, write_whole


def call(monkeypatch, capsys, *words: object) -> tuple[int, str]:
    """Run `cause-lite words...` -> exit status and everything it printed."""
    monkeypatch.setattr("sys.argv", ["cause-lite", *map(str, words)])
    status, message = 0, ""
    try:
        main()
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
        message = exit.code if isinstance(exit.code, str) else ""
    printed = capsys.readouterr()
    return status, printed.out + printed.err + message


@pytest.fixture(scope="module")
def model(few_scenes, small_backbone, tmp_path_factory):
    """A folder with a small fitted segmenter and its backbone."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("model")
    save_file(small_backbone.vit.state_dict(), folder / "vit.safetensors")
    shape = {"grid": 16, "patch": 8, "width": 32, "depth": 1, "heads": 2}
    files.write_json(folder / "vit.json", {"name": "small", "architecture": shape, "window": None})
    small = {"clusterbook.concepts": 16, "head.reduced_dim": 8, "head.projection_dim": 16, "head.bank_capacity": 2}
    config = quick_config(small | {"head.kind": "mlp", "head.epochs": 1, "probe.epochs": 5, "probe.halve_every": 2})
    checkpoints.save(fit(config, few_scenes, small_backbone).segmenter, folder, backbone=str(folder))
    return folder


def saved(path: Path, mode: str, shape: tuple[int, ...], dtype=np.uint8, top: int = 255) -> Path:
    pixels = np.random.default_rng(0).integers(0, top, shape).astype(dtype)
    Image.fromarray(pixels, mode=None if mode == "I;16" else mode).save(path)
    return path


@pytest.mark.parametrize(
    "name, mode, shape, dtype",
    [
        ("rgb.png", "RGB", (40, 60, 3), np.uint8),
        ("grey.png", "L", (40, 60), np.uint8),
        ("clear.png", "RGBA", (40, 60, 4), np.uint8),
        ("print.jpg", "CMYK", (40, 60, 4), np.uint8),
        ("deep.png", "I;16", (40, 60), np.uint16),
        ("dot.png", "RGB", (1, 1, 3), np.uint8),
        ("wide.png", "RGB", (3, 20000, 3), np.uint8),
        ("näme mit Leerzeichen.png", "RGB", (9, 9, 3), np.uint8),
    ],
)
def test_images_of_every_kind_are_segmented(model, tmp_path, monkeypatch, capsys, name, mode, shape, dtype):
    image = saved(tmp_path / name, mode, shape, dtype, top=65535 if dtype == np.uint16 else 255)
    status, printed = call(monkeypatch, capsys, "segment", image, "--model", model, "--out", tmp_path / "out")
    assert status == 0, printed
    stem = Path(name).stem
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {f"{stem}.labels.png", f"{stem}.overlay.png", "legend.csv"}
    with Image.open(tmp_path / "out" / f"{stem}.labels.png") as labels:
        assert labels.size == (shape[1], shape[0]) and labels.mode == "L"


def bad_inputs(folder: Path) -> dict[str, Path]:
    (folder / "text.png").write_text("not an image")
    (folder / "empty.png").write_bytes(b"")
    whole = saved(folder / "whole.png", "RGB", (50, 50, 3))
    content = whole.read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    whole.unlink()
    return {name: folder / f"{name}.png" for name in ("text", "empty", "cut", "absent")} | {"folder": folder}


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "absent", "folder"])
def test_bad_images_get_one_line_and_leave_nothing(model, tmp_path, monkeypatch, capsys, kind):
    image = bad_inputs(tmp_path)[kind]
    status, printed = call(monkeypatch, capsys, "segment", image, "--model", model, "--out", tmp_path / "out")
    assert status == 1 and str(image.name) in printed and "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_a_giant_image_is_refused_before_it_is_decoded(model, tmp_path, monkeypatch, capsys):
    Image.new("1", (20000, 20000)).save(tmp_path / "giant.png")
    status, printed = call(
        monkeypatch, capsys, "segment", tmp_path / "giant.png", "--model", model, "--out", tmp_path / "out"
    )
    assert status == 1 and "giant.png" in printed and "scale it down" in printed


@pytest.mark.parametrize(
    "words, named",
    [
        (["data", "atlantis"], "atlantis"),
        (["fit", "--data", "atlantis"], "atlantis"),
        (["fit", "--head", "cnn"], "cnn"),
        (["fit", "--device", "abacus"], "abacus"),
        (["fit", "--backbone", "no_such_vit"], "no_such_vit"),
        (["evaluate", "/nowhere"], "/nowhere"),
        (["segment", "x.png", "--model", "nothing"], "nothing"),
        (["pretrain", "atlantis"], "atlantis"),
        (["fit", "--seed", "many"], "--seed"),
        (["verify", "--expected", "/nowhere.json"], "/nowhere.json"),
        (["verify", "--accept", "--records", "nothing", "--expected", "e.json"], "holds no record of a number"),
        (["reproduce", "typo/row", "--rehearse"], "leave out 'typo/row'"),
        (["reproduce", "scenes", "--as-released"], "are for published rows"),
        (["reproduce", "scenes", "--device", "cpu"], "leave --device out"),
        (
            ["reproduce", "scenes-coarse"],
            "no data set 'scenes-coarse' in this study; must be one of scenes, msrc, camvid",
        ),
        (["study", "leak", "scenes", "--only", "typo"], "study leak: no arm named typo; must be one of clean"),
        (["pretrain", "scenes", "--steps", "0"], "--steps"),
        (["pretrain", "scenes", "--device", "abacus"], "abacus"),
    ],
)
def test_unknown_names_get_one_line(monkeypatch, capsys, tmp_path, words, named):
    monkeypatch.chdir(tmp_path)
    status, printed = call(monkeypatch, capsys, *words)
    assert status != 0 and named in printed and "Traceback" not in printed
    assert not list(tmp_path.rglob("*.part*")) and not (tmp_path / "e.json").exists()


def test_a_full_disk_leaves_no_half_file(tmp_path):
    def write(part: Path) -> None:
        part.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"map\.png.*No space left"):
        write_whole(tmp_path / "map.png", write)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_gets_one_line(monkeypatch, capsys, tmp_path, model):
    image = saved(tmp_path / "a.png", "RGB", (9, 9, 3))
    status, printed = call(monkeypatch, capsys, "segment", image, "--model", model, "--out", image / "out")
    assert status == 1 and "could not be written" in printed and "Traceback" not in printed
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def miniature_camvid(root: Path) -> None:
    """CamVid's layout with three small frames a split; class 11 is unlabelled."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for kind in ("", "annot"):
            (root / f"{split}{kind}").mkdir(parents=True)
        for number in range(3):
            frame = rng.integers(0, 255, (36, 48, 3)).astype(np.uint8)
            Image.fromarray(frame).save(root / split / f"{number}.png")
            Image.fromarray(rng.integers(0, 12, (36, 48)).astype(np.uint8)).save(
                root / f"{split}annot" / f"{number}.png"
            )


def test_camvid_is_read_from_its_layout(tmp_path, monkeypatch):
    miniature_camvid(tmp_path / "CamVid")
    monkeypatch.setenv("CAUSE_DATA", str(tmp_path))
    split = datasets.load_split("camvid", "test", size=36)
    assert split.images.shape == (3, 36, 36, 3)
    with Image.open(tmp_path / "CamVid" / "testannot" / "1.png") as annotation:
        wanted = np.asarray(annotation).astype(int)[:, 6:42]
    wanted[wanted == 11] = -1
    assert np.array_equal(split.labels[1], wanted)


def test_a_damaged_camvid_frame_is_named(tmp_path, monkeypatch):
    miniature_camvid(tmp_path / "CamVid")
    (tmp_path / "CamVid" / "trainannot" / "2.png").write_bytes(b"broken")
    monkeypatch.setenv("CAUSE_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"2\.png"):
        datasets.load_split("camvid", "train", size=36)


def test_other_frames_are_not_taken_for_camvid(tmp_path, monkeypatch, capsys):
    miniature_camvid(tmp_path / "CamVid")
    monkeypatch.setenv("CAUSE_DATA", str(tmp_path))
    status, printed = call(monkeypatch, capsys, "data", "camvid")
    assert status == 1 and "differ" in printed


def test_help_names_every_command(monkeypatch, capsys):
    status, printed = call(monkeypatch, capsys, "--help")
    assert status == 0
    for command in ("data", "pretrain", "fit", "evaluate", "segment", "verify"):
        assert command in printed
    assert sys.argv == ["cause-lite", "--help"]


def test_two_processes_may_make_the_same_folder(tmp_path):
    """Whoever comes second keeps what the first made."""

    def write(part: Path) -> None:
        part.mkdir()
        (part / "a").write_text("second")
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "a").write_text("first")

    write_whole(tmp_path / "made", write)
    assert [(p.name, (p / "a").read_text()) for p in tmp_path.iterdir()] == [("made", "first")]


def test_help_does_without_torch():
    code = "import sys; from cause_lite import cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
