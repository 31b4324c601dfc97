"""A small tree in 3DIEBench's layout, with pictures and latents that depend on the view alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from equibench.data.objects import ObjectDataset, load_object_folder

SYNSETS = ("02691156", "02828884", "04530566")
TRAIN = [f"{synset}/{name}" for synset in SYNSETS for name in ("b", "c")]
TEST = [f"{synset}/a" for synset in SYNSETS]
VIEWS = 11  # so that 10 comes before 2 where numbers are sorted as text
LOW = np.array([-np.pi / 2] * 3 + [0.0] * 4)
HIGH = np.array([np.pi / 2] * 3 + [1, np.pi / 4, 2 * np.pi, 1])


def seed_of(path: str, view: int) -> int:
    return sorted(TRAIN + TEST).index(path) * 100 + view


def latent_of(path: str, view: int) -> np.ndarray:
    return np.random.default_rng(seed_of(path, view)).uniform(LOW, HIGH)


def write_view(root: Path, path: str, view: int) -> None:
    coarse = np.random.default_rng(seed_of(path, view)).integers(256, size=(4, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC)
    picture.save(root / path / f"image_{view}.jpg", quality=95)
    np.save(root / path / f"latent_{view}.npy", latent_of(path, view))


def write_lists(folder: Path, train: list[str], test: list[str], labels: tuple[int, ...] = (0, 1, 2)) -> None:
    folder.mkdir(exist_ok=True)
    for name, paths in (("train", train), ("val", test)):
        np.save(folder / f"{name}_images.npy", np.array([f"/{path}/" for path in paths]))
        np.save(folder / f"{name}_labels.npy", np.array([labels[SYNSETS.index(path[:8])] for path in paths]))


def make_tree(root: Path) -> Path:
    for path in TRAIN + TEST:
        (root / path).mkdir(parents=True)
        for view in range(VIEWS):
            write_view(root, path, view)
    write_lists(root, TRAIN, TEST)
    return root


def expected_image(root: Path, path: str, view: int, size: int) -> np.ndarray:
    image = tv.resize(Image.open(root / path / f"image_{view}.jpg"), [size], InterpolationMode.BICUBIC)
    return np.asarray(tv.center_crop(image, [size, size])).transpose(2, 0, 1)


def load(root: Path, **options: object) -> ObjectDataset:
    return load_object_folder(root, **({"size": 16} | options))  # type: ignore[arg-type]
