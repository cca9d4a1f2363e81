"""Real pictures: digits, idx files placed by hand, CelebA's layout, folders; and every complaint."""

import gzip
import socket
import time
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image

from course import UserError, data
from course.data import real


def idx(array, kind=8):
    return bytes((0, 0, kind, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def place(folder, images, labels, prefix="train", pack=lambda data: data, ending=""):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{prefix}-images-idx3-ubyte{ending}").write_bytes(pack(idx(images)))
    (folder / f"{prefix}-labels-idx1-ubyte{ending}").write_bytes(pack(idx(labels)))


def fails(words, *arguments, **options):
    with pytest.raises(UserError) as caught:
        dataset = data.load(*arguments, **options)
        dataset.batch(range(len(dataset)))
    message = str(caught.value)
    assert "\n" not in message
    for word in [words] if isinstance(words, str) else words:
        assert word in message, message


@pytest.fixture
def tiny(tmp_path):
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (12, 28, 28), np.uint8), np.arange(12, dtype=np.uint8) % 10
    place(tmp_path / "MNIST" / "raw", images, labels)
    place(tmp_path / "MNIST" / "raw", images[:5], labels[:5], "t10k", gzip.compress, ".gz")
    return tmp_path, images, labels


@pytest.fixture
def offline(monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("no route")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


# digits


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    found = load_digits()
    sets = [data.load("digits", split) for split in ("train", "test")]
    batches = [dataset.batch(range(len(dataset))) for dataset in sets]
    assert len(sets[0]) + len(sets[1]) == len(found.images) == 1797
    assert sets[0].size == (8, 8)
    ours = torch.cat([(batch["image"] + 1) * 8 for batch in batches])[:, 0].numpy()
    labels = torch.cat([batch["label"] for batch in batches]).numpy()
    both = {(image.tobytes(), label) for image, label in zip(ours.astype(np.uint8), labels)}
    assert both == {
        (image.astype(np.uint8).tobytes(), label) for image, label in zip(found.images, found.target)
    }
    assert len(both) == 1797  # no picture comes twice, so train and test share none


def test_digits_split_is_stratified():
    train, test = (data.load("digits", split) for split in ("train", "test"))
    share = np.bincount(test.labels) / (np.bincount(test.labels) + np.bincount(train.labels))
    assert (abs(share - 0.2) < 0.01).all()


def test_digits_resized():
    small = data.load("digits").batch(range(20))["image"]
    large = data.load("digits", size=(16, 24)).batch(range(20))["image"]
    assert large.shape == (20, 1, 16, 24) and large.min() >= -1 and large.max() <= 1
    assert (torch.nn.functional.interpolate(large, (8, 8), mode="area") - small).abs().mean() < 0.2


# MNIST


def test_mnist_by_hand(tiny):
    root, images, labels = tiny
    train, test = data.load("mnist", root=root), data.load("mnist", "test", root=str(root))
    assert (len(train), len(test), train.size, train.channels) == (12, 5, (28, 28), 1)
    batch = train.batch([3, 11])
    assert torch.equal(batch["image"][:, 0], torch.from_numpy(images[[3, 11]]) / 127.5 - 1)
    assert batch["label"].tolist() == [3, 1]
    assert torch.equal(test.batch(range(5))["image"], train.batch(range(5))["image"])
    assert len(data.load("mnist", root=root, count=4)) == 4
    assert data.load("mnist", root=root, size=32).batch([0])["image"].shape == (1, 1, 32, 32)


def test_mnist_reads_what_torchvision_reads(tiny):
    from torchvision.datasets.mnist import read_image_file, read_label_file

    raw = tiny[0] / "MNIST" / "raw"
    images, labels = raw / "train-images-idx3-ubyte", raw / "train-labels-idx1-ubyte"
    assert np.array_equal(real.read_idx(images, 3), read_image_file(str(images)))
    assert np.array_equal(real.read_idx(labels, 1), read_label_file(str(labels)))


def test_mnist_where_the_environment_says(tiny, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(tiny[0]))
    assert len(data.load("mnist")) == 12
    monkeypatch.delenv("COURSE_DATA")
    monkeypatch.setenv("HOME", str(tiny[0]))
    assert real.data_root() == tiny[0] / ".cache" / "course"


def test_fashion_mnist_by_hand(tmp_path):
    images = np.full((3, 10, 12), 255, np.uint8)
    place(tmp_path / "FashionMNIST" / "raw", images, np.array([9, 0, 5], np.uint8))
    dataset = data.load("fashion_mnist", root=tmp_path)
    assert dataset.size == (10, 12) and dataset.name == "fashion_mnist"
    assert [dataset.classes[i] for i in dataset.batch([0, 1, 2])["label"]] == [
        "ankle boot",
        "t-shirt",
        "sandal",
    ]
    assert (dataset.batch([0])["image"] == 1).all()


@pytest.mark.parametrize(
    "file, content, words",
    [
        ("images", b"", "is not in MNIST's idx format with 3 axes"),
        ("images", b"<html>not found</html>", "is not in MNIST's idx format"),
        ("images", idx(np.zeros((3, 2, 2), np.uint8), kind=13), "is not in MNIST's idx format"),
        (
            "images",
            idx(np.zeros((12, 2, 2), np.uint8))[:-1],
            "should hold 48 values by its header (at least 1), but",
        ),
        ("images", idx(np.zeros((12, 2, 2), np.uint8)) + b"x", "but holds 49"),
        ("images", idx(np.zeros((12, 0, 2), np.uint8)), "should hold 0 values"),
        (
            "images",
            idx(np.zeros((11, 2, 2), np.uint8)),
            "holds 11 pictures, but train-labels-idx1-ubyte 12 labels",
        ),
        ("labels", idx(np.zeros((12, 1, 1), np.uint8)), "is not in MNIST's idx format with 1 axes"),
        ("labels", idx(np.full(12, 10, np.uint8)), "holds the label 10; labels are 0 to 9"),
    ],
)
def test_damaged_idx(tiny, file, content, words):
    name = {"images": "train-images-idx3-ubyte", "labels": "train-labels-idx1-ubyte"}[file]
    (tiny[0] / "MNIST" / "raw" / name).write_bytes(content)
    fails([words, name], "mnist", root=tiny[0])


@pytest.mark.parametrize("cut", [5, 40, -4])
def test_damaged_gzip(tiny, cut):
    path = tiny[0] / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:cut])
    fails(["cannot read", str(path), "delete it"], "mnist", "test", root=tiny[0])
    path.write_bytes(b"no gzip at all")
    fails(["cannot read", str(path)], "mnist", "test", root=tiny[0])


# no network


@pytest.mark.parametrize(
    "name, words",
    [
        (
            "mnist",
            ["put train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz into", "MNIST/raw", "glyphs"],
        ),
        ("fashion_mnist", ["put train-images-idx3-ubyte.gz", "FashionMNIST/raw", "glyphs"]),
        ("celeba", ["list_eval_partition.txt", "img_align_celeba", "celeba, or use the data set shapes"]),
    ],
)
def test_without_network(tmp_path, offline, name, words):
    began = time.monotonic()
    fails([f"{name} is not in {tmp_path}", "no network", *words], name, root=tmp_path)
    assert time.monotonic() - began < 15  # most of it is the import of torchvision
    assert list(tmp_path.iterdir()) == []


def test_without_network_the_split_is_named(tmp_path, offline):
    fails("put t10k-images-idx3-ubyte.gz and t10k-labels", "mnist", "test", root=tmp_path)


def test_a_silent_server_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(real, "PATIENCE", 0.2)

    def silent(*arguments, **options):
        time.sleep(5)
        raise OSError("timed out")

    monkeypatch.setattr(urllib.request, "urlopen", silent)
    began = time.monotonic()
    with pytest.raises(UserError, match="no server answers"):
        real.download("mnist", tmp_path, ["http://silent.invalid"], lambda: None, "do something else")
    assert time.monotonic() - began < 2


def test_a_failing_download_is_one_line(tmp_path, monkeypatch):
    def fetch():
        assert socket.getdefaulttimeout() is not None
        raise RuntimeError("Error downloading x:\nTried a\nTried b\n")

    monkeypatch.setattr(real, "_answers", lambda servers: True)
    with pytest.raises(UserError) as caught:
        real.download("mnist", tmp_path, ["http://somewhere.invalid"], fetch, "do something else")
    assert str(caught.value) == (
        "mnist could not be downloaded (Error downloading x: Tried a Tried b): do something else"
    )
    assert socket.getdefaulttimeout() is None


def test_a_download_fills_the_root(tmp_path, monkeypatch):
    from torchvision import datasets

    def fetch(self):
        for prefix in ("train", "t10k"):
            place(
                tmp_path / "new" / "MNIST" / "raw",
                np.zeros((2, 4, 4), np.uint8),
                np.zeros(2, np.uint8),
                prefix,
            )

    monkeypatch.setattr(real, "_answers", lambda servers: servers == datasets.MNIST.mirrors)
    monkeypatch.setattr(datasets.MNIST, "download", fetch)
    assert len(data.load("mnist", root=tmp_path / "new")) == 2


@pytest.mark.parametrize(
    "answer", [None, urllib.request.HTTPError("http://x", 403, "no", {}, None), OSError("no")]
)
def test_any_answer_is_an_answer(monkeypatch, answer):
    class Reply:
        __enter__ = __exit__ = lambda *arguments: None

    def urlopen(request, timeout):
        if answer:
            raise answer
        return Reply()

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert real._answers(["http://x"]) == (type(answer) is not OSError)


def test_root_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    fails(["cannot write in", "choose another root"], "mnist", root=tmp_path / "file" / "below")


# CelebA


def test_celeba_in_torchvisions_layout(tmp_path, monkeypatch):
    from torchvision import datasets

    place = tmp_path / "celeba"
    (place / "img_align_celeba").mkdir(parents=True)
    for i, split in enumerate((0, 0, 1, 2, 2)):
        picture = np.zeros((218, 178, 3), np.uint8)
        picture[109:] = (60 * i, 255, 0)
        Image.fromarray(picture).save(place / "img_align_celeba" / f"{i}.jpg", quality=100, subsampling=0)
        with open(place / "list_eval_partition.txt", "a") as file:
            file.write(f"{i}.jpg {split}\n")
    rows = "".join(f"{i}.jpg 1 -1\n" for i in range(5))
    (place / "identity_CelebA.txt").write_text(rows)
    for name in ("list_attr_celeba", "list_bbox_celeba", "list_landmarks_align_celeba"):
        (place / f"{name}.txt").write_text(f"5\na b\n{rows}")
    files = [(key, None, name) for key, _, name in datasets.CelebA.file_list]  # None: no checksum
    monkeypatch.setattr(datasets.CelebA, "file_list", files)

    train, test = data.load("celeba", root=tmp_path), data.load("celeba", "test", root=tmp_path, size=16)
    assert (len(train), len(test), train.channels, train.size, test.size) == (2, 2, 3, (64, 64), (16, 16))
    image = test.batch([0])["image"]
    assert image.shape == (1, 3, 16, 16)
    assert (image[0, :, :7] < -0.9).all()  # the cut is from the middle: half dark, half bright
    assert (image[0, :, 9:] - torch.tensor([180 / 127.5 - 1, 1, -1])[:, None, None]).abs().max() < 0.05
    assert train.classes is None and "label" not in train.batch([0])


# folders


def save(path, colour, size=(20, 20), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def pictures(tmp_path):
    for i in range(30):
        ending = ("png", "webp", "bmp")[i % 3]
        save(tmp_path / f"{'abc'[i % 3]}" / f"{i:02}.{ending}", (8 * i, 255 - 8 * i, 128))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_text("no picture")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.png").write_text("no picture")
    return tmp_path


def test_folder(pictures):
    train, test = data.load("folder", root=pictures), data.load("folder", "test", root=pictures)
    names = [[file.relative_to(pictures).as_posix() for file in each.files] for each in (train, test)]
    assert len(train) + len(test) == 30 and 1 <= len(test) <= 8
    assert set(names[0]).isdisjoint(names[1])
    assert names[0] == sorted(names[0]) and names[1] == sorted(names[1])
    assert train.size == (20, 20) and train.channels == 3
    for dataset in (train, test):
        images = dataset.batch(range(len(dataset)))["image"]
        for file, image in zip(dataset.files, images):
            i = int(file.stem)
            wanted = torch.tensor([8 * i, 255 - 8 * i, 128]) / 127.5 - 1
            tolerance = 0.05 if file.suffix == ".webp" else 1e-6
            assert (image - wanted[:, None, None]).abs().max() < tolerance
        assert torch.equal(dataset.batch([0, 0])["image"][1], images[0])


def test_folder_split_stays_when_files_are_added(pictures):
    before = set(data.load("folder", "test", root=pictures).files)
    for i in range(30, 60):
        save(pictures / "new" / f"{i}.png", "red")
    after = data.load("folder", "test", root=pictures)
    assert before == {file for file in after.files if file.parent.name != "new"}


def test_folder_middle_and_size(tmp_path):
    for i in range(12):
        picture = Image.new("RGB", (60, 20), "black")
        picture.paste("white", (20, 0, 40, 20))
        picture.save(tmp_path / f"{i}.png")
    square = data.load("folder", root=tmp_path, size=10).batch([0])["image"]
    assert square.shape == (1, 3, 10, 10) and square.min() > 0.8
    wide = data.load("folder", root=tmp_path, size=(10, 30)).batch([0])["image"][0, 0]
    assert wide.shape == (10, 30) and wide[:, :8].max() < -0.9 and wide[:, 12:18].min() > 0.9


def test_folder_without_memory_is_the_same(pictures, monkeypatch):
    kept = data.load("folder", root=pictures)
    monkeypatch.setattr(real, "KEEP", 0)
    read = data.load("folder", root=pictures)
    assert read._kept is None
    assert torch.equal(kept.batch([4, 2])["image"], read.batch([4, 2])["image"])
    assert read.batch([])["image"].shape == kept.batch([])["image"].shape == (0, 3, 20, 20)


def test_folder_kinds_of_pictures(tmp_path):
    wide = np.full((9, 9), 0x8080, np.uint16)
    Image.fromarray(wide).save(tmp_path / "a_16_bits.png")
    save(tmp_path / "b_clear.png", (0, 0, 0, 0), (9, 9), "RGBA")
    save(tmp_path / "c_palette.gif", 0, (9, 9), "P")
    save(tmp_path / "d_ink.jpg", (0, 0, 0, 0), (9, 9), "CMYK")
    save(tmp_path / "e_bit.png", 1, (9, 9), "1")
    save(tmp_path / "f_both.png", (255, 0), (9, 9), "LA")
    grey = {path.name: real.read_head(path)[0] for path in tmp_path.iterdir()}
    assert sorted(name[0] for name in grey if grey[name]) == ["a", "e", "f"]
    wanted = {"a": 128, "b": 255, "c": 0, "d": 255, "e": 255, "f": 255}
    for path in tmp_path.iterdir():
        for channels in (1, 3):
            levels = real.read_picture(path, channels, (9, 9))
            assert levels.shape == (9, 9, channels) and levels.dtype == np.uint8
            assert abs(levels.astype(int) - wanted[path.name[0]]).max() <= 1, path


def test_folder_turns_what_the_camera_turned(tmp_path):
    picture = Image.new("RGB", (40, 20), "black")
    picture.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise: left becomes top
    picture.save(tmp_path / "a.png", exif=exif)
    assert real.read_head(tmp_path / "a.png") == (False, (40, 20))
    levels = real.read_picture(tmp_path / "a.png", 3, (40, 20))
    assert (levels[:20] == 255).all() and (levels[20:] == 0).all()


def test_folder_grey_and_colour(tmp_path):
    for i in range(10):
        save(tmp_path / f"colour{i}.png", (200, 0, 0))
    save(tmp_path / "drawing.png", 100, mode="L")
    fails(
        ["grey and colour mixed (drawing.png is grey, colour0.png in colour)", "channels=1", "channels=3"],
        "folder",
        root=tmp_path,
    )
    colour = data.load("folder", root=tmp_path, channels=3)
    grey = data.load("folder", root=tmp_path, channels=1)
    assert colour.channels == 3 and grey.channels == 1
    place = [file.name for file in colour.files].index("drawing.png")
    assert torch.equal(colour.batch([place])["image"][0, 2:], grey.batch([place])["image"][0])


def test_folder_of_grey(tmp_path):
    for i in range(5):
        save(tmp_path / f"{i}.png", 100, mode="L")
    assert data.load("folder", root=tmp_path).channels == 1


def test_folder_errors(tmp_path, pictures):
    fails("say which folder, by root=", "folder")
    fails("is not a folder", "folder", root=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    fails(["no pictures in", "empty", ".png"], "folder", root=tmp_path / "empty")
    fails("channels must be 1 (grey) or 3 (colour), got 2", "folder", root=pictures, channels=2)
    fails("size must be 8 to 1024", "folder", root=pictures, size=4)
    fails("count must be a whole number, 1 to", "folder", root=pictures, count=31)
    fails("folder has no split", "folder", "valid", root=pictures)


def test_folder_mixed_sizes(pictures):
    save(pictures / "odd.png", "red", (30, 20))
    fails(["different sizes", "a/00.png is 20 x 20, odd.png 30 x 20", "size=64"], "folder", root=pictures)
    assert data.load("folder", root=pictures, size=16).batch([0])["image"].shape == (1, 3, 16, 16)


def test_folder_with_a_broken_head(pictures):
    (pictures / "a" / "zz.png").write_bytes(b"\x89PNG, not really")
    fails(["cannot read the picture", "zz.png", "mend or remove it"], "folder", root=pictures)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_folder_with_a_truncated_picture(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    for i in range(3):
        Image.fromarray(noise).save(tmp_path / f"{i}.{ending}")
    last = data.load("folder", root=tmp_path).files[-1]
    last.write_bytes(last.read_bytes()[:-300])
    fails(["cannot read the picture", last.name], "folder", root=tmp_path)


def test_folder_with_an_empty_side(tmp_path):
    save(tmp_path / "0.png", "red")
    splits = [split for split in ("train", "test") if _loads(tmp_path, split)]
    assert len(splits) == 1
    fails("none of the 1 pictures", "folder", "test" if splits == ["train"] else "train", root=tmp_path)


def _loads(root, split):
    try:
        return data.load("folder", split, root=root)
    except UserError:
        return None


# a training from one's own files


def trains(capsys, tmp_path, *settings):
    from course.__main__ import main

    given = ["T=4", "steps=2", "batch=4", "precision=no", *settings]
    status = main(["train", "ddpm", "--profile", "smoke", "--out", str(tmp_path / "runs"), "--set", *given])
    return status, capsys.readouterr()


@pytest.mark.parametrize("name, folder", [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_a_diffusion_model_trains_on_idx_files(tmp_path, offline, monkeypatch, capsys, name, folder):
    random = np.random.default_rng(0)
    levels, labels = random.integers(0, 256, (40, 28, 28), np.uint8), np.arange(40, dtype=np.uint8) % 10
    place(tmp_path / folder / "raw", levels, labels)
    place(tmp_path / folder / "raw", levels[:20], labels[:20], "t10k", gzip.compress, ".gz")
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    status, said = trains(capsys, tmp_path, f"dataset={name}", "condition=class")
    assert status == 0, said.err
    assert "frechet " in said.out and ("recognised" in said.out) == (name == "mnist")  # no judge knows clothes


def test_a_diffusion_model_trains_on_a_folder_of_colour_pictures(tmp_path, offline, capsys):
    random = np.random.default_rng(0)
    for i in range(120):
        path = tmp_path / "faces" / f"{i:06}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    for size in ((), ("size=32",)):
        status, said = trains(capsys, tmp_path, "dataset=folder", f"root={tmp_path / 'faces'}", *size)
        assert status == 0 and "frechet " in said.out and "recall " in said.out, said.err


@pytest.mark.parametrize(
    "settings, words",
    [
        (["dataset=mnist"], "mnist is not in"),
        (["dataset=fashion_mnist"], "fashion_mnist is not in"),
        (["dataset=folder"], "say which folder, by root="),
        (["dataset=glyphs", "root=x"], "glyphs reads no files"),
    ],
)
def test_without_files_a_training_ends_in_one_line(tmp_path, offline, monkeypatch, capsys, settings, words):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "none"))
    status, said = trains(capsys, tmp_path, *settings)
    assert status == 2 and words in said.err and said.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_too_few_test_pictures_are_noticed_before_the_training(tiny, offline, capsys):
    status, said = trains(capsys, tiny[0], "dataset=mnist", f"root={tiny[0]}")
    assert status == 2 and "fewer than 8 test pictures" in said.err
