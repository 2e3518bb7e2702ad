"""Scores and matching of a run: names are a description, other folders are matched anew, tiles see whole images."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_commands import call
from user_inputs import classes, labelled_folder, photograph

from cause_lite import checkpoints, datasets
from cause_lite.checkpoints.export import export
from cause_lite.checkpoints.matching import MATCHING_FILE, read_matching
from cause_lite.lab.agreement import many_to_one_accuracy
from cause_lite.lab.evaluating import Evaluating, evaluate_run, matching_of, tiled_scores
from cause_lite.lab.recipes import recipe
from cause_lite.lab.runs import fit_to
from cause_lite.lab.segmenting import Segmenting, segment_files
from cause_lite.metrics import ClusterMetrics
from cause_lite.runtime.files import UserError, read_json

SMALL = {"data.size": 64, "clusterbook.concepts": 16, "head.projection_dim": 16, "head.epochs": 1, "probe.epochs": 1}


def grey(number: int) -> Image.Image:
    return Image.fromarray(classes(number))


def two_classes(number: int) -> Image.Image:
    """Air and all the rest."""
    return Image.fromarray((classes(number) > 0).astype(np.uint8))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Photographs with eight classes."""
    return labelled_folder(tmp_path_factory.mktemp("labelled") / "streets", grey, count=6)


@pytest.fixture(scope="module")
def fitted(labelled, tmp_path_factory):
    """A run of ten clusters on them."""
    out = tmp_path_factory.mktemp("run") / "run"
    fit_to(recipe(str(labelled), "mlp", backbone="scenes", changes=SMALL | {"data.clusters": 10}), out, "cpu")
    return out


@pytest.fixture
def run(fitted, tmp_path):
    """A run of its own for each test: without any evaluation yet."""
    shutil.copytree(fitted, tmp_path / "run")
    return tmp_path / "run"


# ---------------------------------------------------------------- the matching


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_a_matching_says_what_the_confusion_holds(clusters, count, seed):
    rng = np.random.default_rng(seed)
    metrics = ClusterMetrics(count, clusters)
    metrics.confusion = torch.from_numpy(rng.integers(0, 3, (clusters, count)) * rng.integers(0, 50, (clusters, count)))
    names = tuple(f"class {number}" for number in range(count))
    test = datasets.Split("folder", "train", names, np.zeros((3, 8, 8, 3), np.uint8), None)
    matching, confusion = matching_of(metrics, test), metrics.confusion.numpy()
    assert [each.cluster for each in matching.clusters] == list(range(clusters)) and matching.images == 3
    matched = [each.one_to_one for each in matching.clusters if each.one_to_one]
    assert len(set(matched)) == len(matched)
    right = sum(confusion[each.cluster, names.index(each.one_to_one)] for each in matching.clusters if each.one_to_one)
    if confusion.sum():
        assert 100 * right / confusion.sum() == pytest.approx(metrics.compute()["pacc"])
        most = sum(confusion[c, names.index(each.most)] for c, each in enumerate(matching.clusters) if each.most)
        assert 100 * most / confusion.sum() == pytest.approx(many_to_one_accuracy(confusion))
    for each, row in zip(matching.clusters, confusion, strict=True):
        assert each.pixels == row.sum() and (each.most is None) == (row.sum() == 0)
        assert each.one_to_one is None or row[names.index(each.one_to_one)] > 0


def test_scores_hold_names_matching_and_confusion(run, labelled):
    record = evaluate_run(run, device="cpu")
    assert read_json(run / "scores.json") == record
    assert record["data"] == str(labelled) and record["images"] == 6 and record["clusters"] == 10
    confusion = np.array(record["confusion"])
    assert confusion.shape == (10, 8) and record["classes"] == [f"class {number}" for number in range(8)]
    assert confusion.sum() == 6 * 64 * 64
    score = record["scores"]["cluster"]
    assert score["many_to_one_pacc"] == pytest.approx(100 * confusion.max(1).sum() / confusion.sum(), abs=1e-3)
    assert score["many_to_one_pacc"] >= score["pacc"] and "many_to_one_pacc" not in record["scores"]["linear"]
    assert len(record["unmatched_clusters"]) >= 2
    matched = {each["one_to_one"] for each in record["matching"]} - {None}
    assert matched.isdisjoint(record["unmatched_classes"])
    assert matched | set(record["unmatched_classes"]) == set(record["classes"])


def test_names_change_no_label(run, labelled, tmp_path):
    """The same bytes before and after; the legend alone differs."""
    before = checkpoints.load(run).segment(photograph())
    with pytest.raises(UserError, match=r"keeps no matching.*cause-lite evaluate"):
        list(segment_files([labelled / "0.jpg"], str(run), tmp_path / "none", "cpu", Segmenting(named=True)))
    assert not (tmp_path / "none").exists()
    list(segment_files([labelled / "0.jpg"], str(run), tmp_path / "plain", "cpu"))
    evaluate_run(run, device="cpu")
    segmenter = checkpoints.load(run)
    assert np.array_equal(segmenter.segment(photograph()), before)
    list(segment_files([labelled / "0.jpg"], str(run), tmp_path / "named", "cpu", Segmenting(named=True)))
    for name in ("0.labels.png", "0.overlay.png"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "named" / name).read_bytes()
    with (tmp_path / "named" / "legend.csv").open(encoding="utf-8", newline="") as file:
        legend = list(csv.DictReader(file))
    matching = read_matching(run, 10)
    assert matching is not None and matching.data == "streets" and matching.images == 6
    assert tuple(line["name"] for line in legend) == segmenter.cluster_names == matching.names
    assert set(segmenter.cluster_names) <= {f"class {number}" for number in range(8)}
    plain = (tmp_path / "plain" / "legend.csv").read_text().splitlines()
    assert plain[1].startswith("0,cluster 0,#")
    assert [line.rsplit(",", 1)[1] for line in plain[1:]] == [line["colour"] for line in legend]


def test_another_folder_is_matched_anew(run, labelled, tmp_path):
    other = labelled_folder(tmp_path / "other", two_classes, count=4)
    (other / "labels.csv").write_text("id,name\n0,air\n1,rest\n")
    own = evaluate_run(run, device="cpu")
    record = evaluate_run(run, Evaluating(data=str(other)), "cpu")
    assert record["classes"] == ["air", "rest"] and np.array(record["confusion"]).shape == (10, 2)
    assert record["images"] == 4 and "linear" not in record["scores"]
    assert read_json(run / "scores-other.json") == record and read_json(run / "scores.json") == own
    names = tuple(each["most"] or f"cluster {each['cluster']}" for each in record["matching"])
    assert checkpoints.load(run).cluster_names == names
    with pytest.raises(UserError, match="no data set named 'atlantis'"):
        evaluate_run(run, Evaluating(data="atlantis"), "cpu")


def test_two_folders_of_one_name_have_scores_of_their_own(run, tmp_path):
    files = {"scores.json"}
    for number, parent in enumerate(("here", "there")):
        other = labelled_folder(tmp_path / parent / "other", two_classes, count=3 + number)
        for _ in range(2):
            evaluate_run(run, Evaluating(data=str(other)), "cpu")
    evaluate_run(run, device="cpu")
    found = {file.name: read_json(file)["images"] for file in run.glob("scores*.json")}
    assert len(found) == 3 and files < found.keys() and found["scores-other.json"] == 3
    assert sorted(found.values()) == [3, 4, 6]


def test_a_linear_probe_of_other_classes_is_not_scored(run, tmp_path):
    """As many classes, but other ones."""
    other = labelled_folder(tmp_path / "other", grey, count=6)
    (other / "labels.csv").write_text("id,name\n" + "".join(f"{n},kind {n}\n" for n in range(8)))
    assert "linear" in evaluate_run(run, device="cpu")["scores"]
    assert "linear" not in evaluate_run(run, Evaluating(data=str(other)), "cpu")["scores"]


def test_a_run_is_scored_on_a_named_data_set(run):
    record = evaluate_run(run, Evaluating(data="scenes-coarse"), "cpu")
    assert record["split"] == "val" and len(record["classes"]) == 8 and record["images"] == 200


def test_a_folder_without_labels_is_sent_to_its_contact_sheet(tmp_path, monkeypatch, capsys):
    (tmp_path / "photographs").mkdir()
    for number in range(3):
        photograph(number).save(tmp_path / "photographs" / f"{number}.jpg")
    small = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    words = ["fit", "--data", tmp_path / "photographs", "--head", "mlp", "--out", tmp_path / "run", *small]
    status, printed = call(monkeypatch, capsys, *words, "--clusters", 4, "--device", "cpu")
    printed = "".join(printed.split())  # a long path is broken over lines
    assert status == 0 and "contact.png" in printed and "evaluate" not in printed
    status, printed = call(monkeypatch, capsys, "evaluate", tmp_path / "run", "--device", "cpu")
    printed = "".join(printed.split())  # a long path is broken over lines
    assert status == 1 and "contact.png" in printed and "--data" in printed and "Traceback" not in printed
    other = labelled_folder(tmp_path / "other", two_classes, count=3)
    status, printed = call(monkeypatch, capsys, "evaluate", tmp_path / "run", "--data", other, "--device", "cpu")
    assert status == 0 and "class 1" in printed and (tmp_path / "run" / "scores-other.json").exists()


def test_a_fit_takes_away_what_was_said_of_the_one_before(run, labelled):
    evaluate_run(run, device="cpu")
    assert (run / MATCHING_FILE).exists()
    fit_to(recipe(str(labelled), "mlp", backbone="scenes", changes=SMALL | {"data.clusters": 3}), run, "cpu")
    assert not (run / MATCHING_FILE).exists() and not (run / "scores.json").exists()


@pytest.mark.parametrize(
    "content, reason",
    [
        ("{}", "`data`"),
        ("[", "not valid JSON"),
        ('{"data": "a", "split": "b", "images": 1, "classes": [], "clusters": [], "date": ""}', "clusters 0 to 9"),
    ],
)
def test_a_damaged_matching_is_named(run, content, reason):
    (run / MATCHING_FILE).write_text(content)
    with pytest.raises(UserError, match=rf"matching\.json.*{reason}"):
        checkpoints.load(run)


# ---------------------------------------------------------------- tiles


def test_tiles_score_whole_images(run, labelled):
    """What `segment` gives, against the label maps at their own size."""
    segmenter = checkpoints.load(run)
    test = datasets.load_split(str(labelled), "train", 64)
    wanted = ClusterMetrics(8, 10)
    for number in range(6):
        found = torch.from_numpy(segmenter.segment(labelled / f"{number}.jpg").astype(np.int64))
        wanted.update(found, torch.from_numpy(classes(number).astype(np.int64)))
    scores = tiled_scores(segmenter, test)
    assert torch.equal(scores["cluster"].confusion, wanted.confusion)
    record = evaluate_run(run, Evaluating(tiled=True), "cpu")
    assert record["view"] == "tiles" and np.array(record["confusion"]).sum() == 6 * 100 * 128
    assert 0 < record["scores"]["linear"]["pacc"] <= 100
    with pytest.raises(UserError, match=r"scenes-coarse: its images are squares.*--tiled"):
        evaluate_run(run, Evaluating(data="scenes-coarse", tiled=True), "cpu")


def test_tiles_are_scored_after_the_crf(run, labelled):
    pytest.importorskip("pydensecrf")
    plain = evaluate_run(run, Evaluating(tiled=True), "cpu")["scores"]
    both = evaluate_run(run, Evaluating(tiled=True, crf=True), "cpu")["scores"]
    assert both["cluster"] == plain["cluster"] and both["crf"]["pacc"] != plain["cluster"]["pacc"]


def test_label_maps_of_another_size_are_scored_at_theirs(run, tmp_path):
    def small(number: int) -> Image.Image:
        return grey(number).resize((64, 50), Image.Resampling.NEAREST)

    other = labelled_folder(tmp_path / "small", small, count=6)
    record = evaluate_run(run, Evaluating(data=str(other), tiled=True), "cpu")
    assert np.array(record["confusion"]).sum() == 6 * 50 * 64


# ---------------------------------------------------------------- the model card


def test_a_card_says_how_to_load_what_it_learned_from_and_its_scores(run, tmp_path):
    export(run, tmp_path / "bare")
    bare = (tmp_path / "bare" / "README.md").read_text()
    assert "cause_lite.load(" in bare and "streets, 6 images" in bare and "MIT (made by cause-lite)" in bare
    assert "## Scores" not in bare and "--named" not in bare and not (tmp_path / "bare" / MATCHING_FILE).exists()
    score = evaluate_run(run, device="cpu")["scores"]["cluster"]
    export(run, tmp_path / "model", licence="cc-by-4.0")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "license: cc-by-4.0" in card and "--named" in card and "segmenter.cluster_names" in card
    assert f"| cluster | {score['miou']:.1f} | {score['pacc']:.1f} |" in card and "## Clusters" in card
    assert checkpoints.load(tmp_path / "model").cluster_names == checkpoints.load(run).cluster_names
    assert str(tmp_path) not in card + (tmp_path / "model" / MATCHING_FILE).read_text()
    (run / "scores.json").write_text("{}")
    with pytest.raises(UserError, match=r"scores\.json: is no record of an evaluation"):
        export(run, tmp_path / "third")
