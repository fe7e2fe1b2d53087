"""COCO scores: those of pycocotools on the same detections, and what a detector finds as COCO writes and draws it."""

import contextlib
import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detections import ground_truth_results
from shuffle_attention.errors import DataError, InputError
from shuffle_attention.files import write_json
from shuffle_attention.sanet.data.coco import CocoData
from shuffle_attention.sanet.data.masks import decode_mask, encode_mask
from shuffle_attention.sanet.tasks.detection.coco_scores import (
    coco_results,
    coco_scores,
)
from shuffle_attention.sanet.tasks.detection.predictor import draw_detections
from shuffle_attention.sanet.tasks.detection.samples import digits_coco

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@pytest.fixture(scope="module")
def data() -> CocoData:
    """Digits of all three sizes, every fifth one a crowd."""
    found = digits_coco("val", 12, size=256, seed=1)
    annotations = [{**a, "iscrowd": int(a["id"] % 5 == 0)} for a in found.annotations]
    return CocoData(found.images, found.files, annotations, found.categories, "digits with crowds")


@pytest.fixture(scope="module")
def detections(data) -> list[dict]:
    """The objects, shifted, some of them twice, under another name or not at all, at random scores."""
    rng = np.random.default_rng(0)
    results = []
    for found in data.annotations:
        mask = decode_mask(found["segmentation"], 256, 256)
        for _ in range(int(rng.integers(0, 3))):
            shift = rng.integers(-6, 7, 2)
            category = found["category_id"] if rng.random() < 0.8 else int(rng.integers(1, 11))
            x, y, width, height = found["bbox"]
            results.append(
                {
                    "image_id": found["image_id"],
                    "category_id": category,
                    "bbox": [x + float(shift[0]), y + float(shift[1]), width, height],
                    "score": round(float(rng.random()), 2),
                    "segmentation": encode_mask(np.roll(mask, shift[::-1], (0, 1))),
                }
            )
    return results


def published(data: CocoData, results: list[dict], kind: str, image_ids: list[int] | None = None) -> list[float]:
    """Return the scores of pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(data.to_dict()))
        truth.createIndex()
        field = "bbox" if kind == "bbox" else "segmentation"
        own = [{key: result[key] for key in ("image_id", "category_id", "score", field)} for result in results]
        evaluator = COCOeval(truth, truth.loadRes(own), kind)
        if image_ids is not None:
            evaluator.params.imgIds = image_ids
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return list(evaluator.stats[:6])


@pytest.mark.parametrize("images", [None, [2, 3, 7]], ids=["all", "some"])
def test_the_scores_are_those_of_pycocotools(data, detections, images):
    scores = coco_scores(data, detections, image_ids=images)
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        found = [scores[f"{name}_{figure}"] for figure in FIGURES]
        assert found == pytest.approx(published(data, detections, kind, images), abs=1e-9)
        assert 0 < found[0] < 0.9


def test_the_objects_themselves_score_one(data):
    scores = coco_scores(data, ground_truth_results(data))
    assert {name for name, value in scores.items() if value == 1} >= {"box_AP", "mask_AP", "mask_APs", "mask_APm"}
    assert all(value in (1, -1) for value in scores.values())


def test_no_detections_score_zero(data):
    assert coco_scores(data, [])["box_AP"] == 0
    assert coco_scores(data, [], masks=True)["mask_AP50"] == 0


def test_only_so_many_detections_count(data):
    """Of an image and category, here one for all digits."""
    annotations = [{**found, "category_id": 1} for found in data.annotations]
    data = CocoData(data.images, data.files, annotations, data.categories[:1], "digits")
    right = [result for result in ground_truth_results(data) if result["image_id"] == 1][:1]
    wrong = {**right[0], "bbox": [0.0, 0.0, 1.0, 1.0], "score": 2.0}
    counted, too_many = (coco_scores(data, [wrong] * number + right, masks=False)["box_AP"] for number in (99, 100))
    assert counted > too_many == 0


def test_scoring_leaves_data_and_results_as_they_were(data, detections):
    before = json.dumps([data.to_dict(), detections])
    coco_scores(data, detections)
    assert json.dumps([data.to_dict(), detections]) == before


def test_results_of_other_data_are_refused(data, detections):
    with pytest.raises(DataError, match="of image 77 and category 1,"):
        coco_scores(data, [{**detections[0], "image_id": 77, "category_id": 1}])
    with pytest.raises(DataError, match="and category 11, which"):
        coco_scores(data, [{**detections[0], "category_id": 11}])
    bare = {key: value for key, value in detections[0].items() if key != "segmentation"}
    assert "mask_AP" not in coco_scores(data, [bare])
    with pytest.raises(DataError, match="1 results have no mask"):
        coco_scores(data, [bare], masks=True)


def test_results_have_the_categories_of_the_data_and_survive_a_file(tmp_path):
    categories = [{"id": 4, "name": "a"}, {"id": 90, "name": "b"}]
    images = [{"id": 5, "file_name": "x.png", "width": 8, "height": 6}]
    data = CocoData(images, ["x.png"], [], categories, "two")
    mask = torch.zeros(3, 1, 6, 8)
    mask[:, 0, 1:4, 2:7] = 0.6
    output = {
        "boxes": torch.tensor([[2.0, 1, 7, 4], [0, 0, 1, 1], [1, 1, 3, 2.5]]),
        "labels": torch.tensor([2, 3, 1]),  # the data have no third category
        "scores": torch.tensor([0.75, 0.5, 0.25]),
        "masks": mask,
    }
    results = coco_results(output, 5, data)
    assert [(r["category_id"], r["bbox"], r["score"]) for r in results] == [
        (90, [2, 1, 5, 3], 0.75),
        (4, [1, 1, 2, 1.5], 0.25),
    ]
    np.testing.assert_array_equal(decode_mask(results[0]["segmentation"], 6, 8), mask[0, 0].numpy() > 0.5)
    write_json(tmp_path / "results.json", results)
    assert json.loads((tmp_path / "results.json").read_text()) == results


def test_detections_are_drawn_and_the_rest_is_not():
    masks = torch.zeros(3, 1, 40, 60)
    masks[0, 0, 4:20, 4:24] = masks[1, 0, 8:12, 8:14] = masks[2, 0, 25:35, 30:50] = 1
    output = {
        "boxes": torch.tensor([[4.0, 4, 24, 20], [8, 8, 14, 12], [30, 25, 50, 35]]),
        "labels": torch.tensor([1, 2, 1]),
        "scores": torch.tensor([0.9, 0.6, 0.3]),
        "masks": masks,
    }
    grey = Image.new("L", (60, 40), 128)
    drawn = draw_detections(grey, output, ["one"], scale=4)
    assert (drawn.size, drawn.mode) == ((240, 160), "RGB")
    pixels = np.asarray(drawn).reshape(40, 4, 60, 4, 3)[:, 2, :, 2]
    assert (pixels[22:, 26:] == 128).all()  # the third is not sure enough
    inside, small = pixels[17, 20], pixels[11, 13]
    assert (inside != 128).any()
    assert (inside != small).any()  # the smaller one, inside the other, is seen
    assert np.asarray(draw_detections(grey, output, ["one"], threshold=0.95, scale=1)).std() == 0


def test_a_missing_evaluator_names_its_extra(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(InputError, match=r"pip install 'shuffle-attention\[detection\]'"):
        coco_scores(data, [])
