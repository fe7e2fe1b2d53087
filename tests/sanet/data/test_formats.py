"""YOLO and Pascal VOC as tools write them, conversion between the formats, and data without a split."""

import json
import time
from pathlib import Path

import pytest
from PIL import Image

from conftest import sanet_here
from shuffle_attention.errors import DataError, InputError
from shuffle_attention.sanet.data.coco import CocoData
from shuffle_attention.sanet.data.formats import find_data, format_named, formats, read_data, require_data
from shuffle_attention.sanet.data.masks import decode_mask

WIDTH, HEIGHT = 40, 20
# The same two objects in each notation: a box, and a polygon with the box 4, 2, 12, 8.
BOX, HULL, POLYGON = [20.0, 5.0, 10.0, 10.0], [4.0, 2.0, 12.0, 8.0], [4.0, 2.0, 16.0, 2.0, 10.0, 10.0]
LABELS = "0 0.625 0.5 0.25 0.5\n1 0.1 0.1 0.4 0.1 0.25 0.5\n"
XML = """<annotation><filename>{name}</filename><size><width>40</width><height>20</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult><bndbox>
<xmin>21</xmin><ymin>6</ymin><xmax>30</xmax><ymax>15</ymax></bndbox></object>
<object><name>dog</name><difficult>{difficult}</difficult><part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin>
<xmax>2</xmax><ymax>2</ymax></bndbox></part>
<bndbox><xmin>5</xmin><ymin>3</ymin><xmax>16</xmax><ymax>10</ymax></bndbox></object></annotation>"""


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (90, 60, 30)).save(path)


def tree(root: Path, files: dict[str, str]) -> Path:
    """Write files by their names: images, and texts."""
    for name, text in files.items():
        if text:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        else:
            picture(root / name)
    return root


def read(root: Path, split: str = "train", **options) -> CocoData:
    return read_data(require_data(root, split), **options)


def objects(data: CocoData, index: int = 0) -> list[tuple[str, list[float]]]:
    names = {category["id"]: category["name"] for category in data.categories}
    return [(names[each["category_id"]], each["bbox"]) for each in data.objects(index)]


MIRRORED = {"images/train/a.jpg": "", "labels/train/a.txt": LABELS, "images/val/b.jpg": "", "labels/val/b.txt": LABELS}
ROBOFLOW = {
    "train/images/a.jpg": "",
    "train/labels/a.txt": LABELS,
    "valid/images/b.jpg": "",
    "valid/labels/b.txt": LABELS,
}
YOLO = {
    "ultralytics": (
        MIRRORED,
        "path: {root}\ntrain: images/train\nval: images/val\ntest:\nnames:\n  0: cat\n  1: dog\n",
    ),
    "another-machine": (MIRRORED, "path: /datasets/pets\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n"),
    "absolute": (MIRRORED, "train: {root}/images/train\nval: {root}/images/val\nnames: [cat, dog]\n"),
    "colab": (MIRRORED, "train: /content/pets/images/train\nval: /content/pets/images/val\nnames: [cat, dog]\n"),
    "roboflow": (
        ROBOFLOW,
        "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\nroboflow:\n  version: 1\n",
    ),
    "windows": (MIRRORED, "train: images\\train\nval: images\\val\nnames: [cat, dog]\n"),
    "lists": (MIRRORED, "train: [images/train]\nval: [images/val]\nnames: {{'0': cat, '1': dog}}\n"),
    "text-files": (
        MIRRORED | {"train.txt": "./images/train/a.jpg\n", "val.txt": "/content/pets/images/val/b.jpg\n\n"},
        "train: train.txt\nval: val.txt\nnames: [cat, dog]\n",
    ),
    "beside": (
        {"train/a.jpg": "", "train/a.txt": LABELS, "val/b.jpg": "", "val/b.txt": LABELS},
        "train: train\nval: val\nnames: [cat, dog]\n",
    ),
}


@pytest.mark.parametrize("name", YOLO)
def test_yolo_is_read_wherever_its_paths_point(name, tmp_path, caplog):
    files, config = YOLO[name]
    root = tree(tmp_path / "pets", files | {"data.yaml": config.format(root=tmp_path / "pets")})
    for data in (read(root), read(root / "data.yaml"), read(root, "val")):
        assert objects(data) == [("cat", pytest.approx(BOX)), ("dog", pytest.approx(HULL))]
        assert data.objects(0)[1]["segmentation"] == [pytest.approx(POLYGON)]
        assert not data.has_masks
    assert not caplog.records


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("0 0.5 0.5 0.2", "lines that are not a class and a box or polygon .1: a.txt, line 1: '0 0.5 0.5 0.2'"),
        ("0 0.5 0.5 0.2 0.2 0.9", "lines that are not"),
        ("0 20 5 10 10", "lines that are not"),
        ("0 nan 0.5 0.2 0.2", "lines that are not"),
        ("0 0.5 0.5 0.2 0", "boxes without area"),
        ("2 0.5 0.5 0.2 0.2", "unknown category .1: annotation a.txt, line 1, category 2"),
        ("0.5 0.5 0.5 0.2 0.2", "lines that are not"),
        ("1e300 0.5 0.5 0.2 0.2", "unknown category"),
        ("cat 0.5 0.5 0.2 0.2", "lines that are not"),
        ("0 " + "0.1 " * 200_001, "lines that are not"),
        ("\0" * 1000, "lines that are not"),
    ],
)
def test_broken_lines_are_named(labels, message, tmp_path):
    root = tree(
        tmp_path, {"images/a.jpg": "", "labels/a.txt": labels, "data.yaml": "train: images\nnames: [cat, dog]\n"}
    )
    with pytest.raises(DataError, match=message) as refused:
        read(root)
    assert len(str(refused.value)) < 2000


def test_missing_empty_and_repeated_labels(tmp_path, caplog):
    files = {
        "images/a.jpg": "",
        "images/b.jpg": "",
        "images/c.jpg": "",
        "images/._a.jpg": "",
        "data.yaml": "train: images\nnames: [cat, dog]\n",
    }
    root = tree(tmp_path, files)
    with pytest.raises(
        DataError, match=r"none of 3 images of train has a label file; that of .*a.jpg would be .*labels"
    ):
        read(root)
    tree(root, {"labels/a.txt": LABELS * 2, "labels/b.txt": "\n"})
    data = read(root)
    assert [len(objects(data, index)) for index in range(3)] == [2, 0, 0]
    assert "1 of 3 images have no label file, and no objects: c.jpg" in caplog.text
    assert "lines that are there twice, of which one counts (2: a.txt, line 3, a.txt, line 4)" in caplog.text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("names: [a\ntrain: x", "is not YAML"),
        ("train: images\nnames: 2", "'names' as a list, or as a mapping"),
        ("train: images\nnames: {a: 1}", "'names' as a list, or as a mapping"),
        ("train: nowhere\nnames: [a]", "names 'nowhere' for train, which is not in"),
        ("train: /etc\nnames: [a]", "names '/etc' for train"),
        ("train: ../../secret\nnames: [a]", "for train, which is not in"),
        ("train: list.txt\nnames: [a]", "lists 1 image not in .*secret.jpg"),
        ("train: data.yaml\nnames: [a]", "neither a folder of images nor a .txt"),
        ("path: /\ntrain: .\nnames: [a]", "label file"),
        (f"path: {'a' * 5000}\ntrain: nowhere\nnames: [a]", "names 'nowhere' for train"),
        (f"train: {'a' * 5000}\nnames: [a]", "names 'aaa.*' for train"),
        (f"train: images\nnames: {'[' * 3000}", "nested too deeply"),
        ("train: &a [*a]\nnames: [a]", "data.yaml"),
        ("train: images\nnames: &a [*a, *a]", "data.yaml|label file"),
    ],
)
def test_a_data_yaml_that_cannot_be_used_says_why(config, message, tmp_path):
    tree(tmp_path / "secret", {"secret.jpg": ""})
    root = tree(tmp_path / "a/data", {"images/a.jpg": "", "list.txt": "../../secret/secret.jpg\n", "data.yaml": config})
    with pytest.raises(InputError, match=message):
        read(root)


def test_labelling_tools_export_yolo_without_a_split(tmp_path):
    root = tree(tmp_path, {"images/a.jpg": "", "labels/a.txt": LABELS, "classes.txt": "cat\ndog\n", "notes.json": "{}"})
    with pytest.raises(DataError, match="no train images with annotations; --val-fraction"):
        require_data(root, "train")
    location = find_data(root, None)
    assert location is not None
    assert objects(read_data(location)) == [("cat", pytest.approx(BOX)), ("dog", pytest.approx(HULL))]


DEVKIT = {"JPEGImages/a.jpg": "", "JPEGImages/b.jpg": ""}
VOC = {
    "devkit": {**DEVKIT, "ImageSets/Main/train.txt": "a\n", "ImageSets/Main/val.txt": "b  1\n"}
    | {f"Annotations/{name}.xml": XML.format(name=f"{name}.jpg", difficult=0) for name in "ab"},
    "roboflow": {
        "train/a.jpg": "",
        "valid/b.jpg": "",
        "train/a.xml": XML.format(name="a.jpg", difficult=0),
        "valid/b.xml": XML.format(name="b.jpg", difficult=0),
    },
    "renamed": {
        "train/images/a.jpg": "",
        "val/images/b.jpg": "",
        "train/annotations/a.xml": XML.format(name="IMG_0001.JPG", difficult=0),
        "val/annotations/b.xml": XML.format(name="IMG_0001.JPG", difficult=0),
    },
}


@pytest.mark.parametrize("name", VOC)
def test_voc_is_read(name, tmp_path, caplog):
    root = tree(tmp_path, VOC[name])
    for split, stem in (("train", "a"), ("val", "b")):
        data = read(root, split)
        assert [Path(str(file)).stem for file in data.files] == [stem]
        assert objects(data) == [("cat", BOX), ("dog", HULL)]
    assert not caplog.records


def test_corners_that_begin_at_0_are_not_counted_from_1(tmp_path):
    root = tree(tmp_path, VOC["devkit"])
    text = (root / "Annotations/a.xml").read_text().replace("<xmin>5", "<xmin>0")
    (root / "Annotations/a.xml").write_text(text)
    assert objects(read(root)) == [("cat", [21, 6, 9, 9]), ("dog", [0, 3, 16, 7])]


def test_difficult_objects_are_neither_learnt_nor_counted(tmp_path, caplog):
    root = tree(tmp_path, {"a.jpg": "", "a.xml": XML.format(name="a.jpg", difficult=1)})
    location = find_data(root, None)
    assert location is not None
    assert [each["iscrowd"] for each in read_data(location).annotations] == [0, 1]
    assert "difficult objects, which are neither learnt nor counted (1: " in caplog.text


BOMB = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
BROKEN_XML = {
    "bomb": (BOMB + "]><annotation><filename>&j;</filename></annotation>", "has a document type"),
    "file": ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>', "document type"),
    "utf-16": ("ÿþ<\0a\0", "a.xml: "),
    "cut": ("<annotation><object>", "a.xml: no element found|a.xml: unclosed"),
    "page": ("<html></html>", "an element 'html' and not 'annotation'"),
    "deep": ("<annotation>" * 50_000 + "</annotation>" * 50_000, None),
    "words": (
        XML.format(name="a", difficult=0).replace("<xmin>21", "<xmin>left"),
        "without the numbers xmin, ymin, xmax, ymax in bndbox .[12]: a.xml, 1",
    ),
    "infinite": (XML.format(name="a", difficult=0).replace("<xmax>30", "<xmax>1e999"), "boxes without area"),
    "rotated": (
        XML.format(name="a", difficult=0).replace("bndbox", "robndbox"),
        "without the numbers xmin, ymin, xmax, ymax in bndbox .[12]: a.xml, 1",
    ),
}


@pytest.mark.parametrize("name", BROKEN_XML)
def test_xml_is_read_safely(name, tmp_path):
    text, message = BROKEN_XML[name]
    root = tree(tmp_path, VOC["devkit"] | {"Annotations/a.xml": text})
    began = time.monotonic()
    if message is None:
        assert objects(read(root, categories=[{"id": 1, "name": "cat"}])) == []
    else:
        with pytest.raises(DataError, match=message) as refused:
            read(root)
        assert len(str(refused.value)) < 2000
    assert time.monotonic() - began < 5


def test_a_list_of_images_stays_in_its_folder(tmp_path):
    root = tree(tmp_path, VOC["devkit"] | {"ImageSets/Main/train.txt": "../../a\n"})
    with pytest.raises(DataError, match=r"train.txt lists 1 image without an XML file: ../../a"):
        read(root)


def test_two_formats_in_a_folder_are_not_chosen_between(tmp_path):
    root = tree(tmp_path, VOC["devkit"] | MIRRORED | {"data.yaml": "train: images/train\nnames: [cat, dog]\n"})
    with pytest.raises(DataError, match="annotations in 2 formats, voc's .* and yolo's .*data.yaml"):
        require_data(root, "train")
    assert len(read(root / "data.yaml")) == 1


def coco(root: Path, count: int = 1) -> Path:
    """Write COCO data with a polygon, a mask in two parts, a box, a crowd and an image without objects."""
    for split in ("train", "val"):
        images, annotations = [], []
        for number in range(1, count + 2):
            picture(root / split / f"{split}-{number}.png")
            images.append({"id": number, "file_name": f"{split}-{number}.png", "width": WIDTH, "height": HEIGHT})
        for number in range(1, count + 1):
            parts = [[1, 1, 9, 1, 9, 9, 1, 9], [20, 11, 30, 11, 30, 19, 20, 19]]
            crowd = {"size": [HEIGHT, WIDTH], "counts": [400, 400]}
            for box, mask, kind in (
                (HULL, [POLYGON], 3),
                ([1, 1, 29, 18], parts, 8),
                ([20.4, 5.2, 9.9, 10.3], None, 8),
                ([20, 0, 20, 20], crowd, 3),
            ):
                annotation = {"image_id": number, "category_id": kind, "bbox": box, "iscrowd": int(mask is crowd)}
                annotations.append(annotation | ({"segmentation": mask} if mask else {}))
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "ein Hund"}],
        }
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("kind", ["coco", "yolo", "voc"])
def test_conversion_there_and_back(kind, tmp_path, capsys):
    source, there, back = coco(tmp_path / "source"), tmp_path / kind, tmp_path / "back"
    assert sanet_here("detect", "convert", source, "--to", kind, "--output", there) == 0
    assert "train: 2 images with 4 objects, val: 2 images with 4 objects" in capsys.readouterr().out
    assert find_data(there, "train").format == kind  # pyright: ignore[reportOptionalMemberAccess]
    assert sanet_here("detect", "convert", there, "--to", "coco", "--output", back) == 0
    for split in ("train", "val"):
        before, after = read(source, split), read(back, split)
        assert before.names == after.names
        assert [Path(str(file)).name for file in after.files] == [f"{split}-1.png", f"{split}-2.png"]
        kept = [each for each in before.objects(0) if kind != "yolo" or not each["iscrowd"]]
        for old, new in zip(kept, after.objects(0), strict=True):
            assert new["bbox"] == pytest.approx(old["bbox"], abs={"coco": 0, "yolo": 1e-4, "voc": 1}[kind])
            assert before.labels[old["category_id"]] == after.labels[new["category_id"]]
            assert old["iscrowd"] == new["iscrowd"]
            assert ("segmentation" in new) == ("segmentation" in old and kind != "voc")
            if "segmentation" in new:
                masks = [decode_mask(each["segmentation"], HEIGHT, WIDTH) for each in (old, new)]
                assert (masks[0] != masks[1]).sum() <= (12 if kind == "yolo" else 0)  # the line between two parts
        assert after.objects(1) == []


def test_images_of_the_same_name_stay_apart(tmp_path):
    root = coco(tmp_path / "source")
    content = json.loads((root / "train.json").read_text())
    (root / "train/inside").mkdir()
    (root / "train/train-2.png").rename(root / "train/inside/train-1.jpg")
    content["images"][1]["file_name"] = "inside/train-1.jpg"
    (root / "train.json").write_text(json.dumps(content))
    assert sanet_here("detect", "convert", root, "--to", "yolo", "--output", tmp_path / "yolo") == 0
    assert sorted(path.name for path in (tmp_path / "yolo/images/train").iterdir()) == ["train-1-2.jpg", "train-1.png"]
    assert [len(objects(read(tmp_path / "yolo"), index)) for index in range(2)] == [0, 3]


def test_conversion_refuses_to_mix_or_overwrite(tmp_path, capsys):
    source = coco(tmp_path / "source")
    for output, message in ((source, "not an empty folder"), (source / "yolo", "lies in the source")):
        assert sanet_here("detect", "convert", source, "--to", "yolo", "--output", output) == 2
        assert message in capsys.readouterr().err
    assert sanet_here("detect", "convert", tmp_path / "none", "--to", "yolo", "--output", tmp_path / "yolo") == 2
    assert not (tmp_path / "yolo").exists()


def test_a_fraction_is_drawn_by_category(tmp_path):
    root = coco(tmp_path / "source", 10)
    data = read(root)
    parts = data.parted(0.3)
    assert [len(parts[split]) for split in ("train", "val")] == [8, 3]
    assert len(parts["val"].annotations) == 12
    assert not {*map(str, parts["train"].files)} & {*map(str, parts["val"].files)}
    assert parts["val"].files == data.parted(0.3)["val"].files


def test_a_format_is_one_file_of_the_folder():
    assert list(formats()) == ["coco", "voc", "yolo"]
    with pytest.raises(InputError, match="no format 'kitti'"):
        format_named("kitti")
