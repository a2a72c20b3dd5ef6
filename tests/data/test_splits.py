"""The splits and classes in the names of files and folders, which are not opened."""

from pathlib import Path

import pytest

from cae_jax.data.sources import File, Listing, folder, named_split


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (
            "train Train TRAINING training_set train_images train2017 train1 seg_train trainA "
            "my_train_file.parquet mnist_train TrainImages dataTrain xtrain X_train x-train "
            "train-00000-of-00002.parquet trainval VOC2007_trainval images.train",
            "train",
        ),
        (
            "test test_set testB Testing seg_test my_test_file.parquet xtest t10k t10k-images",
            "test",
        ),
        ("val val2017 valid validation dev x_val imagenet_val_1", "validation"),
        ("eval evaluation eval_set", "evaluation"),
        (
            "trainers testudo valley contest latest constrain evaluated interval device extrain "
            "skytrain étrain trainset traindata 2017 cat",
            None,
        ),
    ],
)
def test_words_in_a_name(names, split):
    for name in names.split():
        assert named_split(name) == split, name


def opened(caplog, *keys):
    """The keys of the files of each split, the classes, and the log."""
    caplog.clear()
    files = [File(key, 1, 1) for key in sorted(keys)]
    source = folder.open_folder(Listing(Path("/data"), files, {}))
    splits = {split: sorted(x.key for x in items()) for split, items in source.items.items()}
    return splits, source, caplog.text


# Folders as data sets have them, the first two parts of which are of training and test images.
LAYOUTS = [
    ("training_set", "test_set"),  # Kaggle's cats and dogs
    ("training_set/training_set", "test_set/test_set"),
    ("seg_train/seg_train", "seg_test/seg_test"),  # Kaggle's Intel images
    ("images/train", "images/val"),  # of YOLO
    ("Brain/Training", "Brain/Testing"),  # one outer folder
    ("a/b/train", "a/b/test"),
    ("train_images", "test_images"),
    ("train2017", "val2017"),  # COCO
    ("trainA", "testA"),  # CycleGAN
    ("mnist_train", "mnist_test"),
    ("train1", "eval"),
    ("X_train", "X_dev"),
    ("chest_xray\\train", "chest_xray\\val"),  # unpacked from Windows
    ("data/xtrain", "data/xtest"),
]


@pytest.mark.parametrize(("train", "test"), LAYOUTS)
def test_layouts_of_data_sets(caplog, train, test):
    sep = "\\" if "\\" in train else "/"
    ours, theirs = (
        [f"{top}{sep}{c}{sep}{i}.png" for i in "12" for c in "ab"] for top in (train, test)
    )
    splits, source, log = opened(caplog, *ours, *theirs)
    assert splits == {"train": sorted(ours), "test": sorted(theirs)}
    assert source.classes == ("a", "b")
    assert "/data: train images of " in log
    labels = {item.key: item.label for item in source.items["train"]()}
    assert labels == {key: "ab".index(key.split(sep)[-2]) for key in ours}


def test_splits_below_classes_and_in_the_names_of_files(caplog):
    splits, source, _ = opened(caplog, *(f"{x}/{s}/1.png" for x in "XY" for s in ("train", "test")))
    assert splits == {
        "train": ["X/train/1.png", "Y/train/1.png"],
        "test": ["X/test/1.png", "Y/test/1.png"],
    }
    assert source.classes == ("X", "Y")
    names = [f"{split}_{i}.png" for split in ("train", "val") for i in range(5)]
    splits, source, log = opened(caplog, *names)
    assert splits == {"train": names[:5], "test": names[5:]}
    assert source.classes == ()
    assert "train images of train_0.png, train_1.png, train_2.png and 2 more, test images" in log


@pytest.mark.parametrize(
    ("folders", "roles"),
    [
        ("train val test", "train validation test"),
        ("train eval test", "train validation test"),
        ("train val eval", "train validation test"),
        ("train val", "train test"),
        ("train eval", "train test"),
        ("training dev testing", "train validation test"),
    ],
)
def test_validation_images_beside_test_images(caplog, folders, roles):
    splits, _, _ = opened(caplog, *(f"{name}/1.png" for name in folders.split()))
    expected = {
        role: [f"{name}/1.png"] for name, role in zip(folders.split(), roles.split(), strict=True)
    }
    assert splits == (
        expected
        if folders != "train val eval"
        else {**expected, "test": ["eval/1.png"], "validation": ["val/1.png"]}
    )


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ("train/1.png car/1.png boat/1.png", "names such as train do not tell"),
        ("testudo/1.png chelonia/1.png", "names such as testudo do not tell"),
        ("trainset/1.png testset/1.png", "names such as testset, trainset do not tell"),
        (
            "train_station/1.png test_tube/1.png tree/1.png zoo/1.png",
            "names such as test_tube, train_station do not tell",
        ),
        ("train_1.png test_1.png logo.png", "names such as test_1.png, train_1.png do not tell"),
        ("train/cat/1.png train/dog/1.png", "names such as train do not tell"),
        ("test/cat/1.png val/dog/1.png", "names such as test, val do not tell"),
        ("cat/1.png dog/latest_2/1.png", ""),
        ("cat/1.png valley/1.png device/1.png", ""),
    ],
)
def test_names_that_are_not_taken_are_said(caplog, names, line):
    splits, _, log = opened(caplog, *names.split())
    assert splits == {"all": sorted(names.split())}
    assert bool(log) == bool(line)
    assert line in log


def test_images_beside_the_splits_are_left_out_and_counted(caplog):
    ours = ["train/1.png", "test/1.png"]
    for others in (["extra/1.png", "extra/2.png"], ["cover.png", "logo.png"]):
        splits, source, _ = opened(caplog, *ours, *others)
        assert splits == {"train": ["train/1.png"], "test": ["test/1.png"]}
        assert source.notes["ignored"] == {".png": 2}
    for other in ("cover.png", "seg_pred/1.png"):  # the latter in Kaggle's Intel images
        splits, source, _ = opened(caplog, "seg_train/1.png", "seg_test/1.png", other)
        assert splits == {"train": ["seg_train/1.png"], "test": ["seg_test/1.png"]}
        assert source.notes["ignored"] == {".png": 1}


MVTEC = [
    *("train/good/000.png", "test/good/000.png", "test/broken/000.png"),
    "ground_truth/broken/000_mask.png",
]


@pytest.mark.parametrize("tops", [("",), ("bottle/",), ("bottle/", "cable/")])
def test_the_layout_of_mvtec(caplog, tops):
    splits, source, log = opened(
        caplog, *(top + key for top in tops for key in MVTEC), "license.txt"
    )
    assert splits["train"] == [f"{top}train/good/000.png" for top in tops]
    assert splits["test"] == [f"{top}test/{k}/000.png" for top in tops for k in ("broken", "good")]
    assert source.classes == (("bottle", "cable") if len(tops) > 1 else ("broken", "good"))
    assert source.notes["ignored"] == {".txt": 1, "masks in ground_truth": len(tops)}
    assert "look like masks" not in log


def test_masks_are_warned_about(caplog):
    for masks in (["a/1_mask.png"], ["masks/1.png"], ["train_masks/1.gif"], ["a/2_Mask_1.PNG"]):
        _, _, log = opened(caplog, "a/1.png", "a/2.png", "b/masked.png", *masks)
        assert f"1 of 4 images look like masks and are used: {masks[0]}; leave them out" in log
    _, _, log = opened(caplog, "with_mask/1.png", "without_mask/1.png")
    assert "look like masks" not in log
