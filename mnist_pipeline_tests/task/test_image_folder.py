"""A folder of one's own image files: what is read, skipped, and refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_pipeline.files.errors import DataError
from mnist_pipeline.ml.plots import class_grid
from mnist_pipeline.task import image_folder
from mnist_pipeline.task.dataset import Dataset, DatasetSettings
from mnist_pipeline.task.image_folder import load_folder
from mnist_pipeline_tests.task.drawing import encode
from mnist_pipeline_tests.task.others import FORMS, photo, write_photos, write_signs

NAMES = ("Red ball", "box", "cross")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_photos(tmp_path / "Shapes & co", NAMES, 15)
    return tmp_path / "Shapes & co"


def load(folder: Path, **settings) -> Dataset:
    return load_folder(DatasetSettings(dataset="folder", directory=str(folder), **settings))


def test_files_of_any_size_format_and_mode(folder):
    dataset = load(folder)
    assert dataset.spec.name == "shapes_co"
    assert dataset.spec.class_names == NAMES
    assert dataset.spec.pictures == "photos"
    assert dataset.spec.image_shape[2] == 3
    assert np.bincount(dataset.train.labels).tolist() == [12] * 3
    assert np.bincount(dataset.test.labels).tolist() == [3] * 3
    side = dataset.spec.image_shape[0]
    assert side in (48, 64)
    assert f"45 image files in {folder}, as {side}x{side}x3 (IMAGE_SIZE, " in dataset.description
    assert dataset.description.endswith("; 0 skipped")
    middle = dataset.train.images[:, side // 2, side // 2].astype(int)  # in the colour of the class
    assert (middle.argmax(1) == dataset.train.labels).all()


@pytest.mark.parametrize(("ending", "write"), FORMS, ids=lambda value: value if isinstance(value, str) else "")
def test_however_a_picture_is_written_it_looks_the_same(tmp_path, ending, write):
    chance = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "d" / name / f"{number}.png").write_bytes(encode(photo(0, chance, (64, 48))))
    original = photo(1, chance, (64, 48))
    (tmp_path / "d" / "b" / f"9.{ending}").write_bytes(write(original))
    dataset = load(tmp_path / "d", image_size=(48, 64))
    images = np.concatenate([dataset.train.images, dataset.test.images]).astype(int)
    nearest = np.abs(images - np.asarray(original).astype(int)).mean((1, 2, 3)).min()
    assert nearest < 12  # JPEG, palettes and CMYK lose something; another picture or a turned one is further away


def test_size_channels_name_and_kind_by_setting(folder):
    spec = load(folder, image_size=(32, 40), image_channels=1, name="things", pictures="cutouts").spec
    assert (spec.image_shape, spec.name, spec.pictures) == ((32, 40, 1), "things", "cutouts")


def test_grey_pictures_are_found_to_be_grey(tmp_path):
    write_signs(tmp_path / "signs", classes=3, count=8)
    dataset = load(tmp_path / "signs")
    assert dataset.spec.image_shape == (32, 32, 1)
    assert len(dataset.train.labels) == 24
    assert len(dataset.test.labels) == 6  # those of test/


def test_what_is_skipped_is_named(folder):
    (folder / "box" / "broken.png").write_bytes((folder / "box" / "0000.png").read_bytes()[:-200])
    (folder / "box" / "text.jpg").write_bytes(b"no picture")
    (folder / "box" / "notes.txt").write_text("x")
    (folder / "loose.png").write_bytes(encode(photo(0, np.random.default_rng(9))))
    (folder / "box" / "deep").mkdir()
    shutil.copy(folder / "loose.png", folder / "box" / "deep" / "x.png")
    shutil.copy(folder / "box" / "0003.png", folder / "box" / "copy.png")
    (folder / "box" / ".hidden.png").write_bytes(b"x")
    dataset = load(folder)
    assert {name: why.split(":")[0] for name, why in dataset.skipped.items()} == {
        "box/broken.png": "broken image",
        "box/text.jpg": "it cannot be read",
        "box/notes.txt": "it is not an image file",
        "loose.png": "it is misplaced",
        "box/deep/x.png": "it is misplaced",
        "box/copy.png": "it is the same as box/0003.png",
        "box/.hidden.png": "hidden, or not finished",
    }
    assert len(dataset.train.labels) + len(dataset.test.labels) == 45
    assert dataset.description.endswith("7 skipped")


def test_one_image_in_two_classes_is_refused_with_both_names(folder):
    shutil.copy(folder / "box" / "0001.jpg", folder / "cross" / "other.jpg")
    with pytest.raises(DataError, match=r"box/0001\.jpg and cross/other\.jpg are the same image in two classes"):
        load(folder)


def test_a_class_without_images_and_a_single_class_are_refused(folder, tmp_path):
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="no image to train on in the classes empty"):
        load(folder)
    for name in ("box", "cross", "empty"):
        shutil.rmtree(folder / name)
    with pytest.raises(DataError, match=r"has 1 classes with images \(Red ball\)"):
        load(folder)
    with pytest.raises(DataError, match="DATASET=folder needs DATASET_DIR"):
        load(tmp_path / "absent")
    with pytest.raises(DataError, match="it is not set"):
        load_folder(DatasetSettings(dataset="folder"))


def test_few_images_change_sides_when_others_are_added(folder):
    def test_images(dataset: Dataset) -> set[bytes]:
        return {image.tobytes() for image in dataset.test.images}

    before = test_images(load(folder, image_size=(32, 32)))
    chance = np.random.default_rng(5)
    for number in range(15):
        (folder / "box" / f"new{number}.png").write_bytes(encode(photo(1, chance)))
    after = test_images(load(folder, image_size=(32, 32)))
    assert len(after) == len(before) + 3
    assert len(before - after) <= 3


def test_a_class_may_be_called_train(folder):
    (folder / "box").rename(folder / "train")
    (folder / "train" / "old").mkdir()
    (folder / "train" / "0000.png").rename(folder / "train" / "old" / "0000.png")
    dataset = load(folder)
    assert dataset.spec.class_names == ("Red ball", "cross", "train")
    assert list(dataset.skipped) == ["train/old/0000.png"]


def test_other_parts_than_train_and_test_are_named(tmp_path):
    write_signs(tmp_path / "signs", classes=2, count=4)
    shutil.copytree(tmp_path / "signs" / "test", tmp_path / "signs" / "val")
    dataset = load(tmp_path / "signs")
    assert len(dataset.train.labels) == 8
    assert dataset.skipped["val/sign 000/0.png"] == (
        "it is misplaced: not train/<class>/<image> or test/<class>/<image>"
    )


def test_an_image_to_test_with_is_not_trained_on(tmp_path):
    write_signs(tmp_path / "signs", classes=2, count=8)
    test = tmp_path / "signs/test/sign 000/0.png"
    shutil.copy(test, tmp_path / "signs/train/sign 000/again.png")
    dataset = load(tmp_path / "signs")
    assert dataset.skipped == {"train/sign 000/again.png": "it is the same as test/sign 000/0.png"}


def test_a_folder_whose_name_gives_none_asks_for_one(folder):
    target = folder.rename(folder.with_name("2026"))
    with pytest.raises(DataError, match="set DATASET_NAME"):
        load(target)
    assert load(target, name="shapes").spec.name == "shapes"


def test_a_photo_with_transparency_is_laid_on_white(tmp_path):
    for name, colour in (("a", (0, 0, 0, 0)), ("b", (255, 0, 0, 255))):
        (tmp_path / "d" / name).mkdir(parents=True)
        for number in range(2):
            picture = Image.new("RGBA", (40, 40), colour)
            picture.putpixel((0, number), (1, 2, 3, 255))
            (tmp_path / "d" / name / f"{number}.png").write_bytes(encode(picture))
    train = load(tmp_path / "d").train
    assert [image[20, 20].tolist() for image in train.images] == [[255, 255, 255], [255, 0, 0]]


def test_a_class_of_which_nothing_can_be_read_is_an_error(folder):
    for file in (folder / "box").iterdir():
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match=r"no image can be read of the classes box; box/.* is skipped: "):
        load(folder)


def test_pictures_that_look_the_same_are_found_whatever_their_files(folder):
    picture = Image.open(folder / "box" / "0000.png")
    (folder / "box" / "again.bmp").write_bytes(encode(picture, "BMP"))
    dataset = load(folder)
    assert len(dataset.skipped) == 1
    assert "it looks the same as box/" in next(iter(dataset.skipped.values()))
    (folder / "cross" / "again.tif").write_bytes(encode(picture, "TIFF"))
    with pytest.raises(DataError, match="are the same image in two classes"):
        load(folder)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a b", "a_b"), "would share the folder 'a_b'"),
        (("!!!", "x"), "'!!!' has no letter or figure"),
        (("a\nb", "x"), "cannot name classes"),
        (("Foo", "foo"), "share"),
    ],
)
def test_names_of_classes_that_cannot_be_kept_apart_are_refused_by_name(tmp_path, names, message):
    write_photos(tmp_path / "d", names, 4)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "d")


def test_scans_in_colour_become_grey_where_they_are_of_handwriting(folder):
    assert load(folder, pictures="cutouts").spec.image_shape[2] == 1
    with pytest.raises(ValueError, match="image_channels must be 1 for cutouts"):
        load(folder, pictures="cutouts", image_channels=3)


def test_a_few_files_more_change_neither_size_nor_channels(folder):
    before = load(folder).spec.image_shape
    chance = np.random.default_rng(3)
    for number in range(4):
        (folder / "box" / f"grey{number}.png").write_bytes(encode(photo(1, chance, (200 + number, 300)).convert("L")))
    assert load(folder).spec.image_shape == before


def test_names_with_dollars_are_drawn(tmp_path):
    """Two of them begin a formula in a plot."""
    write_photos(tmp_path / "d", ("US$5 ^ $_", "a $x$"), 4)
    dataset = load(tmp_path / "d")
    assert class_grid(dataset.train, dataset.spec).startswith(b"\x89PNG")


def test_links_out_of_the_folder_are_followed_where_that_is_allowed(folder, tmp_path):
    shutil.move(folder / "box", tmp_path / "elsewhere")
    (folder / "box").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"no image to train on in the classes box.*box is skipped"):
        load(folder)
    assert load(folder, links="anywhere").spec.class_names == NAMES


def test_without_training_images_the_reason_is_said(tmp_path):
    write_signs(tmp_path / "signs", classes=2, count=4)
    shutil.rmtree(tmp_path / "signs" / "train")
    with pytest.raises(DataError, match=r"there is no train/<class>/<image> that can be read; test/sign"):
        load(tmp_path / "signs")


@pytest.mark.parametrize("change", ["gone", "another image"])
def test_a_folder_that_changes_while_it_is_read_is_an_error(folder, monkeypatch, change):
    """A label must not be that of another file, and classes must not shrink unnoticed."""
    file = folder / "box" / "0003.png"

    def changed(*arguments):
        file.unlink()
        if change != "gone":
            file.write_bytes((folder / "cross" / "0001.jpg").read_bytes())
        return looked_at(*arguments)

    looked_at = image_folder._spec  # right after all files were looked at
    monkeypatch.setattr(image_folder, "_spec", changed)
    [file.rename(folder / "box" / "0003.png") for file in folder.glob("box/0003.*")]
    with pytest.raises(DataError, match=f"changed while it was read: box/0003.png is {change}"):
        load(folder)


def test_every_image_that_is_put_together_in_a_file_is_the_same(folder, monkeypatch):
    usual = load(folder)
    monkeypatch.setattr("mnist_pipeline.files.tensors.SCRATCH_BYTES", 1)
    large = load(folder)
    assert np.array_equal(large.train.images, usual.train.images)
    assert np.array_equal(large.test.images, usual.test.images)
