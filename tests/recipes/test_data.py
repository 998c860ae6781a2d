"""Image data sets: decoding, splits, and errors of damaged data."""

from __future__ import annotations

import io
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.commands import prunus, settings, summary
from prunus.errors import DataError, PrunusError
from prunus.recipes.data.images import Images, load_digits, load_hub_images
from prunus.recipes.registry import RECIPES

datasets = pytest.importorskip("datasets")
Pillow = pytest.importorskip("PIL.Image")

from recipes.images import Pixels, noise, write  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 training and 20 test images of noise, in the layout of the Hub."""
    write(tmp_path / "set", "train", noise(40, seed=1))
    write(tmp_path / "set", "test", noise(20, seed=2))
    return tmp_path / "set"


def load(
    folder: Path | str, *, size: tuple[int, int] = (28, 28), validation: float = 0.25, seed: int = 0
) -> Images:
    return load_hub_images(str(folder), size=size, validation=validation, seed=seed)


def flat(inputs: torch.Tensor) -> Counter[bytes]:
    """Count images that are equal bit for bit."""
    return Counter(image.numpy().tobytes() for image in inputs)


def test_pixels_are_decoded_exactly_and_normalized_by_training_images(
    folder: Path,
) -> None:
    images = load(folder)
    train, test = noise(40, seed=1), noise(20, seed=2)
    # The seed's permutation chooses the validation images; the others give mean and deviation.
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).numpy()
    held, rest = train[order[:10]], train[order[10:]]
    mean, deviation = (rest / 255).mean(), (rest / 255).std(ddof=1)
    for split, expected in ((images.train, rest), (images.validation, held), (images.test, test)):
        assert split.inputs.dtype == torch.float32
        assert split.inputs.shape == (len(expected), 1, 28, 28)
        recovered = (split.inputs.double().numpy()[:, 0] * deviation + mean) * 255
        assert np.array_equal(np.rint(recovered), expected)
        np.testing.assert_allclose(recovered, expected, rtol=0, atol=1e-3)
    assert images.train.inputs.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.train.inputs.std().item() == pytest.approx(1, abs=1e-5)
    # Noise differs, so that a normalization over other images is detected here.
    assert abs(images.test.inputs.mean().item()) > 1e-5


def test_color_pixels_are_normalized_by_channel(tmp_path: Path) -> None:
    scale = np.array([1.0, 0.5, 0.25])  # so that the channels differ in mean and deviation
    pixels = {
        split: (noise(count, seed=count, size=(4, 6, 3)) * scale).astype(np.uint8)
        for split, count in (("train", 12), ("test", 8))
    }
    for split, images in pixels.items():
        write(tmp_path / "set", split, images, columns=("img", "label"))
    loaded = load_hub_images(
        str(tmp_path / "set"),
        size=(4, 6),
        color=True,
        columns=("img", "label"),
        validation=0.25,
        seed=0,
    )
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0)).numpy()
    held, rest = pixels["train"][order[:3]], pixels["train"][order[3:]]
    mean, deviation = rest.mean(axis=(0, 1, 2)), rest.std(axis=(0, 1, 2), ddof=1)
    parts = ((loaded.train, rest), (loaded.validation, held), (loaded.test, pixels["test"]))
    for part, images in parts:
        expected = torch.from_numpy((images - mean) / deviation).movedim(-1, 1)
        assert part.inputs.is_contiguous()
        torch.testing.assert_close(part.inputs, expected.float(), rtol=1e-5, atol=1e-5)


def test_channel_of_a_single_value_is_rejected(tmp_path: Path) -> None:
    pixels = noise(8, seed=1, size=(4, 4, 3))
    pixels[..., 1] = 7
    for split in ("train", "test"):
        write(tmp_path / "set", split, pixels)
    with pytest.raises(
        DataError, match="channel 1 of the images of the train split has a single value everywhere"
    ):
        load_hub_images(str(tmp_path / "set"), size=(4, 4), color=True, validation=0.25, seed=0)


def test_labels_match_their_images(tmp_path: Path) -> None:
    pixels = noise(40, seed=1)
    for split in ("train", "test"):
        write(tmp_path / "set", split, pixels, [int(image.sum()) % 10 for image in pixels])
    images = load(tmp_path / "set")
    expected = {image.tobytes(): int(image.sum()) % 10 for image in pixels}
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).numpy()
    mean = (pixels[order[10:]] / 255).mean()
    deviation = (pixels[order[10:]] / 255).std(ddof=1)
    for part in (images.train, images.validation, images.test):
        assert part.labels.dtype == torch.int64
        for inputs, label in zip(part.inputs, part.labels, strict=True):
            image = np.rint((inputs[0].double().numpy() * deviation + mean) * 255).astype(np.uint8)
            assert expected[image.tobytes()] == label.item()


def test_validation_is_disjoint_from_training(folder: Path) -> None:
    images = load(folder, validation=0.2)
    assert (len(images.train), len(images.validation), len(images.test)) == (32, 8, 20)
    train, validation = flat(images.train.inputs), flat(images.validation.inputs)
    assert len(train) == 32
    assert len(validation) == 8
    assert not train & validation
    assert not (train | validation) & flat(images.test.inputs)


def test_seed_chooses_the_validation_images(folder: Path) -> None:
    one, again, other = (load(folder, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.validation.inputs, again.validation.inputs)
    assert torch.equal(one.train.inputs, again.train.inputs)
    assert one.validation.labels.tolist() != other.validation.labels.tolist()
    # The test images do not depend on the seed.
    assert torch.equal(one.test.labels, other.test.labels)


def test_labels_beyond_the_classes_are_rejected(tmp_path: Path) -> None:
    kinds = (datasets.Image(), datasets.Value("int64"))
    for split, labels in (("train", [*range(7), 39, -1, 10]), ("test", range(10))):
        write(tmp_path / "set", split, noise(10, seed=1), list(labels), features=kinds)
    with pytest.raises(
        DataError, match=r"from 0 to 9, but holds int64 values such as \[39, -1, 10"
    ):
        load(tmp_path / "set")


def test_labels_of_integer_type_are_accepted(tmp_path: Path) -> None:
    kinds = (datasets.Image(), datasets.Value("int8"))
    for split in ("train", "test"):
        write(tmp_path / "set", split, noise(8, seed=1), features=kinds)
    assert load(tmp_path / "set").test.labels.tolist() == list(range(8))


def test_images_that_are_not_square_are_accepted(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / "set", split, noise(8, seed=1, size=(4, 6)))
    assert load(tmp_path / "set", size=(4, 6)).test.inputs.shape == (8, 1, 4, 6)
    with pytest.raises(DataError, match="image 0 of the train split of .* is 4×6, .* reads 6×4"):
        load(tmp_path / "set", size=(6, 4))


def test_relative_folder_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    for name in ("set", "./set"):
        assert len(load(name).test) == 20


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_validation_fraction_that_leaves_no_images_is_rejected(folder: Path, share: float) -> None:
    with pytest.raises(
        DataError, match=rf"validation={share} leaves no images .* 40 training images"
    ):
        load(folder, validation=share)


def test_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data folder .*/absent does not exist or is not a folder"):
        load(tmp_path / "absent")


def test_file_instead_of_the_data_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(DataError, match="file does not exist or is not a folder"):
        load(tmp_path / "file")


def test_empty_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "set" / "inner").mkdir(parents=True)
    with pytest.raises(DataError, match=r"data folder .*set is empty; expected parquet files"):
        load(tmp_path / "set")


def test_folder_without_data_files_is_reported(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.xyz").write_text("x")
    with pytest.raises(
        DataError, match=r"cannot load .*set: a file may be empty, truncated, or of"
    ):
        load(tmp_path / "set")


def test_unreachable_hub_name_is_reported() -> None:
    with pytest.raises(
        DataError, match="cannot load none/such: there is no such folder here; and the Hub"
    ):
        load("none/such")


def test_missing_columns_are_listed_with_existing_ones(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / "set", split, noise(8, seed=1), columns=("img", "target"))
    with pytest.raises(
        DataError,
        match=(
            "the train split of .* lacks the columns image, label; expected image, label, "
            "found img, target"
        ),
    ):
        load(tmp_path / "set")


def test_missing_test_split_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "set", "train", noise(8, seed=1))
    with pytest.raises(DataError, match="no test split; expected train and test, found train"):
        load(tmp_path / "set")


@pytest.mark.parametrize("empty", ["train", "test"])
def test_split_without_rows_is_reported(tmp_path: Path, empty: str) -> None:
    for split in ("train", "test"):
        write(tmp_path / "set", split, noise(0 if split == empty else 8, seed=1))
    with pytest.raises(DataError, match=rf"\b{empty}\b.*(is empty|no data)"):
        load(tmp_path / "set")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file_is_reported(folder: Path, share: float) -> None:
    path = folder / "data" / "train-00000-of-00001.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=r"cannot load .*set: a file may be empty, truncated"):
        load(folder)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (list(range(8)), "int64"),
        ([0.5] * 8, "float32"),
        ([True] * 8, "bool"),
        (["a cat"] * 8, "string"),
        ([{"x": 1}] * 8, {"x": "int32"}),
    ],
    ids=["integers", "numbers", "booleans", "texts", "records"],
)
def test_column_without_images_is_reported(tmp_path: Path, cells: list[Any], kind: Any) -> None:
    feature = (
        {name: datasets.Value(value) for name, value in kind.items()}
        if isinstance(kind, dict)
        else datasets.Value(kind)
    )
    kinds = (feature, datasets.Value("int64"))
    for split in ("train", "test"):
        write(tmp_path / "set", split, cells, features=kinds)
    with pytest.raises(DataError, match="image.*(not images|cannot be decoded)"):
        load(tmp_path / "set")


def test_image_of_another_size_is_reported_with_both_sizes(tmp_path: Path) -> None:
    cells = [*noise(5, seed=1), *noise(1, seed=2, size=(28, 30))]
    write(tmp_path / "set", "train", cells)
    write(tmp_path / "set", "test", noise(8, seed=3))
    with pytest.raises(
        DataError, match="image 5 of the train split of .* is 28×30, but this recipe reads 28×28"
    ):
        load(tmp_path / "set")


def png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, "png")
    return file.getvalue()


def with_one_bad(tmp_path: Path, cell: Any) -> Path:
    write(tmp_path / "set", "train", noise(8, seed=1))
    write(tmp_path / "set", "test", [*noise(2, seed=3), cell])
    return tmp_path / "set"


@pytest.mark.parametrize(
    "cell",
    [
        None,
        {"bytes": b"", "path": None},
        {"bytes": b"not an image", "path": None},
        {"bytes": png(noise(1, seed=1)[0])[:200], "path": None},
    ],
    ids=["missing", "empty", "text", "cut short"],
)
def test_undecodable_image_is_reported(tmp_path: Path, cell: Any) -> None:
    with pytest.raises(DataError, match="image 2 of the test split of .*set cannot be decoded"):
        load(with_one_bad(tmp_path, cell))


@pytest.mark.slow
def test_png_with_an_altered_byte_decodes_or_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes include lengths, names and checksums of PNG chunks, and the compressed stream."""
    whole = png(noise(1, seed=1, size=(5, 5))[0])
    good = {"bytes": whole, "path": None}
    kinds = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    train = datasets.Dataset.from_dict({"image": [good] * 4, "label": [0] * 4}, features=kinds)
    refused = 0
    for position in range(len(whole)):
        altered = bytearray(whole)
        altered[position] ^= 1 << position % 8
        cell = {"bytes": bytes(altered), "path": None}
        test = datasets.Dataset.from_dict({"image": [cell], "label": [0]}, features=kinds)
        monkeypatch.setattr(datasets, "load_dataset", lambda _, t=test: {"train": train, "test": t})
        try:
            loaded = load("some/set", size=(5, 5))
        except DataError as error:
            assert "image 0 of the test split" in str(error)  # noqa: PT017
            refused += 1
        else:
            assert loaded.test.inputs.shape == (1, 1, 5, 5)
    assert refused > len(whole) / 2


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["cat", "dog"] * 4, "string"),
        ([None, *range(7)], "int64"),
        ([0.5] * 8, "float32"),
    ],
    ids=["texts", "missing", "fractions"],
)
def test_labels_that_are_not_integers_are_reported(
    tmp_path: Path, labels: list[Any], kind: str
) -> None:
    for split in ("train", "test"):
        write(
            tmp_path / "set",
            split,
            noise(8, seed=1),
            labels,
            features=(datasets.Image(), datasets.Value(kind)),
        )
    with pytest.raises(DataError, match="label"):
        load(tmp_path / "set")


def test_training_images_of_a_single_color_are_rejected(tmp_path: Path) -> None:
    """Their deviation is zero, and a division by it would turn every input into NaN."""
    for split in ("train", "test"):
        write(tmp_path / "set", split, np.full((8, 28, 28), 7, dtype=np.uint8))
    with pytest.raises(DataError, match="train"):
        load(tmp_path / "set")


@pytest.mark.parametrize("absent", [["datasets"], ["PIL", "PIL.Image"], ["datasets", "PIL"]])
def test_missing_extra_is_reported(monkeypatch: pytest.MonkeyPatch, absent: list[str]) -> None:
    for name in absent:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PrunusError, match=r"needs the extra 'hub': pip install 'prunus\[hub\]'"):
        load("some/set")


def test_missing_scikit_learn_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PrunusError, match=r"needs? .*pip install 'prunus\[cli\]'"):
        load_digits(0.2, 0)


def test_digits_match_scikit_learn_and_every_fifth_is_for_testing() -> None:
    from sklearn import datasets as embedded

    pixels, labels = embedded.load_digits(return_X_y=True)
    images = load_digits(0.2, seed=5)
    assert (len(images.train), len(images.validation), len(images.test)) == (1150, 288, 359)
    assert images.test.labels.tolist() == labels[4::5].tolist()
    # Undo the normalization: pixels are whole numbers from 0 to 16, 0 among them.
    low, high = images.train.inputs.min().double(), images.train.inputs.max().double()

    def recovered(inputs: torch.Tensor) -> list[tuple[int, ...]]:
        scaled = ((inputs.double() - low) / (high - low) * 16).round()
        return [tuple(row) for row in scaled.to(torch.int64).reshape(-1, 64).tolist()]

    assert recovered(images.test.inputs) == [tuple(row) for row in pixels[4::5].astype(int)]
    kept = [tuple(row) for i, row in enumerate(pixels.astype(int).tolist()) if i % 5 != 4]
    assert Counter(recovered(images.train.inputs) + recovered(images.validation.inputs)) == Counter(
        kept
    )
    assert images.train.inputs.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.train.inputs.std().item() == pytest.approx(1, abs=1e-5)


def test_seed_chooses_the_validation_digits() -> None:
    one, again, other = (load_digits(0.2, seed) for seed in (0, 0, 1))
    assert torch.equal(one.validation.inputs, again.validation.inputs)
    assert flat(one.validation.inputs) != flat(other.validation.inputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name for name, recipe in RECIPES.items() if "28×28" in recipe.columns],
)
def test_image_recipe_runs_from_a_folder(tmp_path: Path, name: str) -> None:
    """The images are bright in a place that depends on their class."""
    for split, count in (("train", 200), ("test", 60)):
        images = noise(count, seed=count) // 4
        for index, image in enumerate(images):
            image[3 * (index % 10 // 2) :][:3, 14 * (index % 2) :][:, :14] = 255
        write(tmp_path / "set", split, images)
    # The automatic strength is meant for longer epochs than these of eight steps.
    chosen = settings(
        dense_epochs=4,
        epochs=8,
        batch_size=20,
        warmup=0.1,
        shift=0,
        validation=0.2,
        ratio=20,
        strength=0.05,
    )
    out = tmp_path / "run"
    outcome = prunus("run", name, *chosen, "--data", tmp_path / "set", "--out", out)
    assert outcome.code == 0, outcome.err
    done = summary(out)
    assert done["compression_ratio"] >= 20
    assert done["dense"]["test"] > 0.9
    assert done["sparse"]["test"] > 0.9
