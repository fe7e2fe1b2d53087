"""Scores of detections by class, against counts by hand and the evaluator's own means."""

import numpy as np
import pytest

from detections import ground_truth_results
from shuffle_attention.sanet.data.coco import CocoData
from shuffle_attention.sanet.tasks.detection.class_scores import scores_by_class
from shuffle_attention.sanet.tasks.detection.coco_scores import coco_scores
from shuffle_attention.sanet.tasks.detection.samples import digits_coco

NAMES = ["cat", "dog", "owl"]


def data_of(*objects: tuple[int, list[int], int]) -> CocoData:
    """Return one image of 100 x 100 pixels with objects of a label, a box and a crowd flag."""
    annotations = [
        {"id": number, "image_id": 1, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
        for number, (label, box, crowd) in enumerate(objects, 1)
    ]
    images = [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}]
    return CocoData(images, ["a.png"], annotations, [{"id": n, "name": s} for n, s in enumerate(NAMES, 1)], "boxes")


def detection(label: int, box: list[int], score: float) -> dict:
    return {"image_id": 1, "category_id": label, "bbox": box, "score": score}


def test_every_object_and_detection_has_its_place_in_the_matrix():
    data = data_of((1, [0, 0, 20, 20], 0), (2, [40, 0, 20, 20], 0), (1, [0, 40, 20, 20], 0), (2, [60, 60, 40, 40], 1))
    results = [
        detection(1, [0, 0, 20, 18], 0.9),  # right
        detection(1, [1, 1, 20, 20], 0.9),  # the same again
        detection(1, [40, 0, 20, 20], 0.9),  # a dog taken for a cat
        detection(3, [60, 60, 10, 10], 0.9),  # in a crowd
        detection(3, [80, 0, 10, 10], 0.9),  # nothing there
    ]
    scores = scores_by_class(data, results)
    assert scores.confusion == [[1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]]
    assert [each.objects for each in scores.classes] == [2, 1, 0]
    cat, dog, owl = scores.classes
    assert cat.recall == pytest.approx(0.5)
    assert dog.AP == dog.recall == 0
    assert owl.AP is owl.recall is None
    assert scores.to_dict()["confusion"]["rows"] == [*NAMES, "background"]
    assert set(scores.precision) == {"cat", "dog"}


def test_the_threshold_is_that_of_the_highest_f1():
    boxes = [[20 * number, 0, 15, 15] for number in range(5)]
    data = data_of(*((1, box, 0) for box in boxes))
    right = [detection(1, box, 0.62) for box in boxes]
    wrong = [detection(1, [20 * number, 50, 15, 15], 0.41) for number in range(5)]
    scores = scores_by_class(data, right + wrong)
    assert 0.41 < scores.threshold <= 0.62
    assert (scores.classes[0].recall, scores.classes[0].precision) == (1, 1)
    assert scores.confusion[3] == [0, 0, 0, 0]


def test_means_of_the_classes_are_coco_s_scores():
    data = digits_coco("val", 8, size=96)
    rng = np.random.default_rng(0)
    results = []
    for record in ground_truth_results(data):
        shift = rng.integers(-4, 5, 2)
        x, y, width, height = record["bbox"]
        results.append({**record, "bbox": [x + int(shift[0]), y + int(shift[1]), width, height], "score": rng.random()})
    for masks, kind in ((False, "box"), (True, "mask")):
        scores, expected = scores_by_class(data, results, masks=masks), coco_scores(data, results)
        for name in ("AP", "AP50"):
            values = [getattr(each, name) for each in scores.classes if each.AP is not None]
            assert np.mean(values) == pytest.approx(expected[f"{kind}_{name}"], abs=1e-9)
    assert np.sum(scores.confusion) >= len(data.annotations)


def test_no_detections_and_no_objects():
    scores = scores_by_class(data_of((1, [0, 0, 20, 20], 0)), [])
    assert (scores.classes[0].AP, scores.confusion[0]) == (0, [0, 0, 0, 1])
    empty = scores_by_class(data_of(), [detection(1, [0, 0, 9, 9], 0.9)])
    assert [each.AP for each in empty.classes] == [None] * 3
