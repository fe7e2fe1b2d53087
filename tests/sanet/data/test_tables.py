"""Tables of image paths and labels, as spreadsheets, pandas, Kaggle and people write them."""

from pathlib import Path

import pytest
from PIL import Image

from conftest import QUICK, sanet_here
from shuffle_attention.checkpoints import read_checkpoint
from shuffle_attention.errors import DataError
from shuffle_attention.sanet.data.tables import read_table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the images 0.png to 7.png, and photos/0.png to photos/7.png."""
    (tmp_path / "photos").mkdir()
    for number, place in [(number, place) for number in range(8) for place in (tmp_path, tmp_path / "photos")]:
        Image.new("L", (8, 8), 20 * number).save(place / f"{number}.png")
    return tmp_path


def pairs(folder: Path, text: str | bytes, split: str = "val", name: str = "data.csv", **options) -> list[tuple]:
    """Write a table, and return the images with their class names."""
    content = text.encode() if isinstance(text, str) else text
    (folder / name).write_bytes(content)
    tree = read_table(folder / name, split, **options)
    assert tree is not None
    return [(str(Path(path).relative_to(folder)), tree.classes[label]) for path, label in tree.images]


CATS = [("0.png", "cat"), ("1.png", "dog")]


@pytest.mark.parametrize(
    "text",
    [
        "path,label\n0.png,cat\n1.png,dog\n",
        "label,path\ncat,0.png\ndog,1.png\n",
        "Image Name;Class\r\n0.png;cat\r\n1.png;dog\r\n",
        "sep=;\nfile;target\n0.png;cat\n1.png;dog\n",
        "filename\tcategory\n0.png\tcat\n1.png\tdog\n",
        "image|class|width\n0.png|cat|8\n1.png|dog|8\n",
        ",file_name,label\n0,0.png,cat\n1,1.png,dog\n",  # pandas with its index
        "filename,species\n0.png,cat\n1.png,dog\n",  # one column that is not known, and one that is missing
        "0.png,cat\n1.png,dog\n",  # without a header
        'path,label\n"0.png","cat"\n"1.png", dog \n\n,\n',
        "\ufeffpath,label\n0.png,cat\n1.png,dog\n",
        "path;label\n./0.png;cat\n.\\1.png;dog\n".encode("utf-16"),
        "id,label\n0,cat\n1,dog\n",  # Kaggle's ids have no ending
        b"path,label\n0.png,cat\n1.png,dog\n0.png,cat\n",
    ],
)
def test_tables_as_people_write_them(folder, text):
    assert pairs(folder, text) == CATS


def test_images_are_looked_for_beside_the_table_and_in_the_folders_of_its_name(folder, caplog):
    text = "path,label\n0.png,cat\n1.png,dog\n"
    assert pairs(folder, text, root=folder / "photos") == [("photos/0.png", "cat"), ("photos/1.png", "dog")]
    (folder / "photos").rename(folder / "train")
    for number in range(8):
        (folder / f"{number}.png").unlink()
    assert pairs(folder, text, name="train.csv") == [("train/0.png", "cat"), ("train/1.png", "dog")]
    with pytest.raises(DataError, match=r"none of its first images exists, such as 0.png in .*--data-dir DIR names"):
        pairs(folder, text, name="other.csv")
    assert not caplog.text
    # Absolute paths, and those that lead out of the folder, are used and reported.
    (folder / "lists").mkdir()
    text = f"path,label\n../train/0.png,cat\n{folder}/train/1.png,dog\n"
    assert pairs(folder, text, name="lists/data.csv") == [("train/0.png", "cat"), ("train/1.png", "dog")]
    assert "2 of 2 paths of" in caplog.text
    assert "lead out of" in caplog.text


@pytest.mark.parametrize(
    ("labels", "classes"),
    [("0 1 2 10", "0 1 2 10"), ("0.0 1.0 2.0 10.0", "0 1 2 10"), ("01 1 2 10", "01 1 2 10"), ("0 1 x 10", "0 1 10 x")],
)
def test_numeric_labels_are_ordered_by_value(folder, labels, classes):
    rows = "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels.split()))
    (folder / "data.csv").write_text(f"path,label\n{rows}")
    tree = read_table(folder / "data.csv", "val")
    assert tree is not None
    assert tree.classes == classes.split()


ROWS = "".join(f"{number}.png,{'cat' if number < 4 else 'dog'}\n" for number in range(8))
BAD = "path,label\n0.png,cat\n,cat\n2.png,\n3.png,dog\n3.png,cat\n"


def test_rows_that_cannot_be_used_are_named_or_left_out(folder, caplog):
    message = (
        r"1 row without a path \(line 3\); 1 row without a label \(line 4\); 2 rows with another label than the same "
        r"image elsewhere \(line 5: 3.png, line 6: 3.png\); correct them, or leave them out with --skip-bad-images"
    )
    with pytest.raises(DataError, match=message):
        pairs(folder, BAD)
    assert pairs(folder, BAD, skip_bad=True) == [("0.png", "cat")]
    assert "left out are 1 row without a path" in caplog.text
    pairs(folder, "path,label\n0.png,cat\n./0.png,cat\n1.png,dog\n")
    assert "left out 1 row of repeated images: line 3: ./0.png" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("path,label\n", "has no rows to use"),
        ("a,b,c\n1,2,3\n", r"no column of paths \(such as path, .*\) and labels \(such as label, .*\); it has a, b, c"),
        ("path,cat,dog\n0.png,1,0\n", r"has no column of labels .*; it has path, cat, dog"),
        (b"path,label\n0.png,\xe9\n", "cannot be read as a table, such as a CSV file in UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0\0", "cannot be read as a table"),
        ("path,label\n0.png," + "x" * 200_000 + "\n", "cannot be read as a table.*field larger"),
    ],
)
def test_files_that_are_not_tables_of_images(folder, text, message):
    with pytest.raises(DataError, match=message):
        pairs(folder, text)


def test_splits_of_tables(folder):
    named = f"path,label\n{ROWS}".replace("path,label", "path,label,split").splitlines()
    parts = ["train", "Train", "valid", "test", "train", "train", "VALID", "test"]
    text = "\n".join([named[0], *(f"{row},{part}" for row, part in zip(named[1:], parts, strict=True))])
    assert [path for path, _ in pairs(folder, text, "train")] == ["0.png", "1.png", "4.png", "5.png"]
    assert [path for path, _ in pairs(folder, text, "val")] == ["2.png", "6.png"]
    with pytest.raises(DataError, match=r"has rows of 'valid', and --val-fraction is for data without a split"):
        pairs(folder, text, "train", val_fraction=0.2)
    with pytest.raises(DataError, match=r"has no split but the parts a, b: give --val-fraction 0.2"):
        pairs(folder, "path,label,split\n0.png,cat,a\n1.png,dog,b\n", "train")


def test_a_table_without_split_is_divided(folder):
    text = f"path,label\n{ROWS}"
    with pytest.raises(DataError, match=r"has no split: give --val-fraction 0.2"):
        pairs(folder, text, "train")
    train, val = (pairs(folder, text, split, val_fraction=0.25) for split in ("train", "val"))
    assert [sorted(label for _, label in part) for part in (train, val)] == [["cat"] * 3 + ["dog"] * 3, ["cat", "dog"]]
    assert not {*train} & {*val}
    assert len(pairs(folder, text)) == 8  # for an evaluation, it is taken whole
    with pytest.raises(DataError, match="has the single class cat, and a classifier needs two"):
        pairs(folder, "path,label\n0.png,cat\n", "train", val_fraction=0.5)


def test_folders_of_tables(folder):
    """A folder with train.csv alone is divided, and never evaluated on the images of train.csv."""
    (folder / "train.csv").write_text("path,label\n0.png,cat\n1.png,dog\n2.png,cat\n3.png,dog\n")
    for split in ("train", "val"):
        with pytest.raises(DataError, match="has no split"):
            read_table(folder, split)
    halves = [read_table(folder, split, val_fraction=0.5) for split in ("train", "val")]
    assert [len(half.images) for half in halves if half] == [2, 2]
    (folder / "valid.csv").write_text("path,label\n4.png,dog\n")
    tree = read_table(folder, "val", ["cat", "dog"])
    assert tree is not None
    assert tree.images == [(str(folder / "4.png"), 1)]
    with pytest.raises(DataError, match=r"has .*valid.csv, and --val-fraction is for data without a split"):
        read_table(folder, "train", val_fraction=0.5)
    with pytest.raises(DataError, match="classes that the model was not trained on: dog; known are 1: cat"):
        read_table(folder, "val", ["cat"])
    (folder / "train/cat").mkdir(parents=True)  # class folders come before tables
    (folder / "val/cat").mkdir(parents=True)
    assert read_table(folder, "train") is None


def test_a_run_on_a_table(folder, capsys):
    (folder / "data.csv").write_text(f"image,label\n{ROWS}7.png,dog\nmissing.png,dog\n")
    options = [*QUICK, "--data", folder / "data.csv", "--val-fraction", 0.25, "--batch-size", 4, "--epochs", 1]
    assert sanet_here("train", *options, "--output", folder / "run") == 2
    assert "1 of 7 images cannot be read: " in (errors := capsys.readouterr().err)
    assert "missing.png (No such file or directory)" in errors
    assert sanet_here("train", *options, "--skip-bad-images", "--output", folder / "run") == 0
    content = read_checkpoint(folder / "run/best.pt")
    assert (content["classes"], content["recipe"]["data"]) == (["cat", "dog"], str(folder / "data.csv"))
