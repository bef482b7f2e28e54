"""A user's images: how they are read, and every way in which they can be wrong."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import InterpolationMode, center_crop, resize

from robustbench_sparse import run_benchmark
from robustbench_sparse.config.plugins import settings_of
from robustbench_sparse.data.decode import Fitting, Interpolation
from robustbench_sparse.data.image_folder import ImageFolder
from robustbench_sparse.data.layout import arrange, natural_key
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.errors import UserError
from tests.helpers.picture_files import (
    Files,
    error,
    load,
    noise,
    pets,
    picture,
    without,
    write_folder,
    write_zip,
)


@pytest.mark.parametrize(("kind", "around"), [("folder", ""), ("zip", ""), ("zip", "my pets/")])
def test_images_are_read_in_order(tmp_path: Path, kind: str, around: str) -> None:
    files = {f"{around}{name}": content for name, content in pets().items()}
    path = (
        write_folder(tmp_path / "pets", files)
        if kind == "folder"
        else write_zip(tmp_path / "pets.zip", files)
    )
    data = load(path)
    assert data.classes == ("cat", "dog")
    assert data.label == "pets"
    assert data.train_x[:, 0, 0, 0].tolist() == [10, 20, 30, 40, 50, 60]
    assert data.train_x[:, 1, 7, 7].tolist() == [5, 10, 15, 20, 25, 30]
    assert data.train_y.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test_x[:, 0, 0, 0].tolist() == [70, 80]
    assert data.test_y.tolist() == [0, 1]


def test_rows_and_columns_keep_their_places(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "BMP")
    files = {
        name: out.getvalue() for name in ("train/a/x.bmp", "train/b/x.bmp", "test/a/x.bmp", "test/b/x.bmp")
    }
    data = load(write_zip(tmp_path / "x.zip", files))
    assert np.array_equal(data.train_x[1].numpy(), pixels.transpose(2, 0, 1))


def test_an_absolute_path_needs_no_root(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "pets.zip", pets())
    data = ImageFolder(path=str(path), label="My pets").load(tmp_path / "elsewhere", tmp_path / "cache")
    assert (len(data.train_y), data.label) == (6, "My pets")


def test_numbers_in_names_count_as_numbers() -> None:
    names = ["b.jpg", "10.jpg", "9.jpg", "a2b10.jpg", "a2b9.jpg", "A1.jpg", "2.png", "2.jpg", "02.jpg"]
    ordered = ["02.jpg", "2.jpg", "2.png", "9.jpg", "10.jpg", "A1.jpg", "a2b9.jpg", "a2b10.jpg", "b.jpg"]
    assert sorted(names, key=natural_key) == ordered


def test_arrange_orders_classes_by_name_and_images_by_number() -> None:
    names = [f"{part}/{label}/{i}.JPG" for part in ("test", "train") for label in ("b", "a") for i in (10, 9)]
    assert arrange(names, "x") == {
        part: {label: [f"{part}/{label}/9.JPG", f"{part}/{label}/10.JPG"] for label in ("a", "b")}
        for part in ("train", "test")
    }


def test_all_formats_and_leftovers_of_systems(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {
        "train/a/1.jpg": picture(0, kind="JPEG"),
        "train/a/2.JPEG": picture(0, kind="JPEG"),
        "train/b/3.Png": picture(0),
        "train/b/4.bmp": picture(0, kind="BMP"),
        "test/a/5.webp": picture(0, kind="WEBP"),
        "test/b/6.png": picture(0, mode="L"),
        **{"train/a/._1.jpg": b"", "train/.DS_Store": b"", "__MACOSX/train/a/1.jpg": b"", "README": b""},
        **{"train/a/notes.txt": b"", "test/a/b.gif": b""},
    }
    for path in (write_folder(tmp_path / "x", files), write_zip(tmp_path / "x.zip", files)):
        caplog.clear()
        data = load(path)
        assert (len(data.train_y), len(data.test_y)) == (4, 2)
        assert "2 files are no images and left out" in caplog.text


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK"])
def test_kinds_of_pixels_become_rgb_or_grey(tmp_path: Path, mode: str) -> None:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(out, "TIFF" if mode == "CMYK" else "PNG")
    path = write_zip(tmp_path / "x.zip", pets(**{"train/cat/0.png": out.getvalue()}))
    assert (load(path).train_x[0] == 255).all()
    grey = load(path, grayscale=True)
    assert grey.train_x.shape == (6, 1, 8, 8)
    assert (grey.train_x[0] == 255).all()
    # ITU-R 601: 0.299 R + 0.587 G + 0.114 B
    assert grey.train_x[1, 0, 0, 0] == round(0.299 * 20 + 0.587 * 10)


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_pixels_that_would_be_clipped_are_an_error(tmp_path: Path, mode: str) -> None:
    odd = picture(200, kind="TIFF", mode=mode)
    message = error(write_zip(tmp_path / "x.zip", pets(**{"train/dog/1.png": odd})))
    assert f"train/dog/1.png: not a readable image: pixels of type {mode} are not supported" in message


def test_size_resizes_and_without_it_sizes_must_agree(tmp_path: Path) -> None:
    odd = {"train/dog/1.png": picture(50, (8, 12)), "test/cat/0.png": picture(70, (20, 20))}
    path = write_zip(tmp_path / "x.zip", pets(**odd))
    message = error(path)
    assert "train/dog/1.png has 8 x 12 pixels, but train/cat/0.png has 8 x 8; set `data.size`" in message
    data = load(path, size=10)
    assert (data.size, data.train_x.shape) == (10, (6, 3, 10, 10))
    assert (data.train_x[4, 0] == 50).all()


def test_images_that_are_no_squares_need_a_size(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {name: picture(9, (8, 6)) for name in pets()})
    assert "train/cat/0.png has 8 x 6 pixels, which is no square; set `data.size`" in error(path)
    assert load(path, size=8).size == 8


def test_resizing_equals_pillows(tmp_path: Path) -> None:
    jpeg = noise(0)
    path = write_zip(tmp_path / "x.zip", dict.fromkeys(pets(), jpeg))
    expected = np.asarray(Image.open(io.BytesIO(jpeg)).resize((12, 12), Image.Resampling.BILINEAR))
    assert np.array_equal(load(path, size=12).test_x[1].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {},
            "no class folders in train/: expected train/<class>/<image> and "
            "test/<class>/<image>, test/ alone, or <class>/<image>, found nothing",
        ),
        (without(pets(), "test/"), "no class folders in test/"),
        ({**without(pets(), "train/"), "Train/cat/0.png": b""}, "found Train, test"),
        (without(pets(), "test/dog/"), "classes of train/ and test/ differ: dog is in train/ only"),
        (
            {**pets(), "test/cow/1.png": picture(1)},
            "classes of train/ and test/ differ: cow is in test/ only",
        ),
        (without(without(pets(), "test/dog/"), "train/dog/"), "only one class, cat: expected at least two"),
        ({**pets(), "train/cow/x/1.png": picture(1)}, "is out of place"),
        ({**pets(), "train/1.png": picture(1)}, "train/1.png is out of place"),
        ({**pets(), "train/dog/1.png": b""}, "train/dog/1.png: not a readable image"),
        ({**pets(), "test/cat/0.png": b"not an image"}, "test/cat/0.png: not a readable image"),
        ({**pets(), "test/dog/0.png": picture(80)[:-30]}, "test/dog/0.png: not a readable image"),
    ],
)
def test_errors_of_layout_and_images(tmp_path: Path, kind: str, files: Files, expected: str) -> None:
    if kind == "folder":
        (tmp_path / "x").mkdir()
        path = write_folder(tmp_path / "x", files)
    else:
        path = write_zip(tmp_path / "x.zip", files)
    assert expected in error(path)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_class_without_images_is_named(tmp_path: Path, kind: str) -> None:
    files = {**pets(), "train/cow/readme.txt": b"", "test/cow/1.png": picture(1)}
    if kind == "folder":
        path = write_folder(tmp_path / "x", without(files, "train/cow"))
        (path / "train/cow").mkdir()
    else:
        path = write_zip(tmp_path / "x.zip", {**without(files, "train/cow"), "train/cow/": b""})
    assert "no images in train/cow/ (taken are .jpg, .jpeg, .png, .bmp, .webp)" in error(path)


def test_a_jpeg_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    whole = noise(0)
    header = whole.index(b"\xff\xda")  # the pixels start behind this marker
    for i, length in enumerate(
        (2, header // 2, header + 20, len(whole) // 2, len(whole) * 9 // 10, len(whole) - 40)
    ):
        files = pets(**{"train/dog/2.jpg": whole[:length]})
        path = write_zip(
            tmp_path / f"{i}.zip", {n: c if n.endswith("2.jpg") else whole for n, c in files.items()}
        )
        assert "train/dog/2.jpg: not a readable image" in error(path), length


@pytest.mark.parametrize("small_file", [0, 10**9], ids=["threads", "one thread"])
def test_the_first_of_many_faults_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_file: int
) -> None:
    monkeypatch.setattr("robustbench_sparse.data.decode.SMALL_FILE", small_file)
    good, bad = picture(1), b"bad"
    files = {f"train/a/{i}.png": bad if i in (613, 290, 2999) else good for i in range(3000)}
    files.update({"train/b/0.png": bad, "test/a/0.png": good, "test/b/0.png": bad})
    assert "train/a/290.png" in error(write_zip(tmp_path / "x.zip", files))


def test_threads_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        f"{part}/{label}/{i}.jpg": noise(i, 16)
        for part in ("train", "test")
        for label in "ab"
        for i in range(40)
    }
    path = write_zip(tmp_path / "x.zip", files)
    monkeypatch.setattr("robustbench_sparse.data.decode.BLOCK", 3)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    prints = set()
    for small_file in (0, 10**9):
        monkeypatch.setattr("robustbench_sparse.data.decode.SMALL_FILE", small_file)
        prints.add(load(path, tmp_path / f"cache {small_file}").fingerprint)
    assert len(prints) == 1


def test_a_file_that_is_no_zip(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(b"PK\x03\x04 this is no zip")
    assert "expected a readable folder or .zip, got: " in error(path)


def test_a_zip_that_was_cut(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", pets())
    path.write_bytes(path.read_bytes()[:-100])
    assert "expected a readable folder or .zip, got: " in error(path)


def test_a_zip_with_a_flipped_bit(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", pets())
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 1
    path.write_bytes(content)
    assert "train/cat/0.png: not a readable image: Bad CRC-32" in error(path)


def test_a_folder_with_a_dead_link(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "x", pets())
    (path / "train/cat/9.png").symlink_to(tmp_path / "nowhere")
    assert "train/cat/9.png not found" in error(path)


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"path": ""}, "path"), ({"path": "x", "size": 0}, "size"), ({"path": "x", "label": ""}, "label")],
)
def test_image_folder_rejects_settings(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        ImageFolder(**settings)


@pytest.mark.data
def test_real_zip_has_all_images_in_order(data_root: Path, tmp_path: Path) -> None:
    path = data_root / "cifar10-jpeg.zip"
    with zipfile.ZipFile(path) as archive:
        found = arrange(archive.namelist(), str(path))
        assert {p: [len(images) for images in c.values()] for p, c in found.items()} == {
            "train": [5000] * 10,
            "test": [1000] * 10,
        }
        classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
        assert list(found["train"]) == list(found["test"]) == classes
        names = [name for part in found.values() for images in part.values() for name in images[::100]]
        small = write_zip(tmp_path / "part.zip", {name: archive.read(name) for name in names})
    data = load(small, label="CIFAR-10 (JPEG)")
    assert data.label == "CIFAR-10 (JPEG)"
    assert (data.train_x.shape, data.test_x.shape) == ((500, 3, 32, 32), (100, 3, 32, 32))
    # The means of CIFAR-10 are 0.4914, 0.4822, 0.4465; 500 images of standard deviation ~0.12 in their means.
    means = data.train_x.double().mean((0, 2, 3)) / 255
    assert (means - torch.tensor([0.4914, 0.4822, 0.4465], dtype=torch.float64)).abs().max() < 0.025
    pixels = np.asarray(Image.open(io.BytesIO(zipfile.ZipFile(small).read(names[7]))))
    assert np.array_equal(data.train_x[7].permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("around", ["", "test/"])
def test_images_that_are_only_judged_need_no_training_part(tmp_path: Path, kind: str, around: str) -> None:
    files = {
        f"{around}{label}/{i}.png": picture(v) for label, i, v in [("b", 10, 4), ("b", 9, 3), ("a", 1, 2)]
    }
    files["README"] = b"mine"
    write, name = (write_folder, "x") if kind == "folder" else (write_zip, "x.zip")
    data = load(write(tmp_path / name, files))
    assert (data.classes, len(data.train_y), tuple(data.train_x.shape)) == (("a", "b"), 0, (0, 3, 8, 8))
    assert data.test_x[:, 0, 0, 0].tolist() == [2, 3, 4]
    assert data.test_y.tolist() == [0, 1, 1]
    assert load(tmp_path / name).fingerprint == data.fingerprint  # from the cache
    prepared = PreparedData(data, validation=0)
    assert (prepared.count("train"), prepared.count("test")) == (0, 3)
    with pytest.raises(ValueError, match="validation: expected 0 to 0 of the 0 training images"):
        PreparedData(data, validation=1)


def test_plain_folders_hold_images_and_nothing_else(tmp_path: Path) -> None:
    files = {"a/1.png": picture(1), "b/1.png": picture(2)}
    deeper = write_zip(tmp_path / "x.zip", {**files, "b/more/1.png": picture(3)})
    assert "b/more/1.png is out of place: expected <class>/<image>" in error(deeper)
    empty = write_zip(tmp_path / "y.zip", {**files, "c/": b""})
    assert "no images in c/ " in error(empty)


def test_the_current_folder_comes_before_the_data_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, root = tmp_path / "here", tmp_path / "root"
    for place, value in ((here, 1), (root, 2)):
        write_folder(place / "x", {"a/1.png": picture(value), "b/1.png": picture(value)})
    monkeypatch.chdir(here)
    spec = ImageFolder(path="x")
    assert int(spec.load(root, tmp_path / "cache").test_x[0, 0, 0, 0]) == 1
    monkeypatch.chdir(tmp_path)
    assert int(spec.load(root, tmp_path / "cache").test_x[0, 0, 0, 0]) == 2


@pytest.mark.parametrize(("width", "height"), [(23, 31), (31, 23), (16, 16), (20, 200)])
@pytest.mark.parametrize(("crop", "interpolation"), [(0.875, "bicubic"), (1.0, "bilinear"), (0.9, "nearest")])
def test_images_are_cut_as_torchvision_does(
    width: int, height: int, crop: float, interpolation: Interpolation
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    mode = getattr(InterpolationMode, interpolation.upper())
    expected = center_crop(resize(image, int(16 / crop), mode), [16, 16])
    assert np.array_equal(np.asarray(Fitting(16, crop, interpolation)(image)), np.asarray(expected))


def test_cut_images_have_a_record_and_a_name_of_their_own(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {name: noise(i) for i, name in enumerate(pets())})
    whole, cut = load(path, size=8), load(path, size=8, crop=0.5)
    assert whole.fingerprint != cut.fingerprint
    assert load(path, size=8).fingerprint == whole.fingerprint
    spec = ImageFolder(path="x", size=8, crop=0.5, interpolation="bicubic")
    assert {"crop", "interpolation"} <= settings_of(spec).keys()
    assert not {"crop", "interpolation"} & settings_of(ImageFolder(path="x", size=8)).keys()
    assert spec.said() == (
        "images resized to 16 pixels on their shorter side (bicubic), of which the 8 x 8 at the centre are kept"
    )
    assert ImageFolder(path="x", size=8).said() == "images resized to 8 x 8 pixels (bilinear)"
    assert ImageFolder(path="x").said() == ""


def test_what_a_crop_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"crop: expected a share in \(0, 1\]"):
        ImageFolder(path="x", size=8, crop=1.5)
    with pytest.raises(ValueError, match="crop: expected `size` with it"):
        ImageFolder(path="x", crop=0.5)
    with pytest.raises(ValueError, match="once resized, are more than"):
        Fitting(224, 0.875)(Image.new("RGB", (1, 10_000)))


def test_nothing_is_trained_on_a_test_part_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBS_CACHE", str(tmp_path / "cache"))
    path = write_folder(tmp_path / "x", {"a/1.png": picture(1), "b/1.png": picture(2)})
    config = {
        "name": "t",
        "data": {"name": "image_folder", "path": str(path)},
        "model": "mlp",
        "train": {"epochs": 1, "selection": "last"},
        "runs": {"r": {}},
    }
    with pytest.raises(
        UserError, match=r"runs\.r: expected training images, got a data set with a test part alone"
    ):
        run_benchmark(config, out=tmp_path, jobs=1)
