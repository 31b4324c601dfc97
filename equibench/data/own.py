"""Data sets of one's own: a function that gives four arrays, registered by a file (`--plugin`) or an entry point.

    from equibench import OwnImages, register_dataset

    @register_dataset("cells", "Cells under a microscope")
    def load(data_root):
        ...
        return OwnImages(train_images, train_labels, test_images, test_labels, ("round", "long"))

`equibench score timm:resnet18 --data cells --plugin cells.py` then scores on them, and a profile may name them. A
package names the module that registers them as an entry point of the group "equibench.data".
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from equibench.data.dataset import DATASETS, Dataset, ImageSet, check_size
from equibench.errors import UserError
from equibench.registry import Registry
from equibench.utils.arrays import content_digest


@dataclass(frozen=True)
class OwnImages:
    """What the function behind a data set returns; labels are indices into the class names, or 0 where none are."""

    train_images: np.ndarray  # (N, 3, S, S) uint8
    train_labels: np.ndarray  # (N,) whole numbers
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...] = ()


OwnLoader = Callable[[Path | None], OwnImages]


@dataclass(frozen=True)
class OwnDataset:
    """A registered data set: its name, its title in print, and what loads it from `--data-root`."""

    name: str
    title: str
    load: OwnLoader


OWN_DATASETS: Registry[OwnDataset] = Registry("dataset", "equibench.data")


def register_dataset(name: str, title: str) -> Callable[[OwnLoader], OwnLoader]:
    """Decorator that registers a function as a data set; it gets the folder of `--data-root`, or None.

    A UserError if the name is taken, or no plain word.
    """
    if name in DATASETS or not name.replace("_", "").replace("-", "").isalnum():
        raise UserError(f"a data set cannot be called {name!r}", "choose another name of letters, digits, _ and -")

    def register(load: OwnLoader) -> OwnLoader:
        OWN_DATASETS.add(name, OwnDataset(name, title, load))
        return load

    return register


def load_own(name: str, data_root: Path | None) -> Dataset:
    """A registered data set; known by the content of its arrays.

    Raises:
        UserError: it is not registered, its function fails, or what this returns is no data set.
    """
    own = OWN_DATASETS.get(name)
    try:
        found = own.load(data_root)
    except UserError:
        raise
    except Exception as error:
        problem = f"the data set {name!r} could not be loaded: {type(error).__name__}: {error}"
        raise UserError(problem, "mend the function that registers it") from error
    train, test = (_checked(name, half, found) for half in ("train", "test"))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise _wrong(name, f"test images are {test.images.shape[1:]}, training images {train.images.shape[1:]}")
    arrays = {"train_images": train.images, "train_labels": train.labels}
    sha256 = content_digest({**arrays, "test_images": test.images, "test_labels": test.labels})
    side = train.images.shape[-1]
    description = f"{own.title} ({len(train.labels):,} + {len(test.labels):,} images, {side} px)"
    return Dataset(name, description, train, test, tuple(found.class_names), sha256)


def _checked(name: str, half: str, found: OwnImages) -> ImageSet:
    if not isinstance(found, OwnImages):
        raise _wrong(name, f"the function returned {type(found).__name__}")
    images, labels = np.asarray(getattr(found, f"{half}_images")), np.asarray(getattr(found, f"{half}_labels"))
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise _wrong(name, f"{half}_images are {images.dtype} {images.shape}, not uint8 (N, 3, S, S)")
    check_size(images.shape[-1])
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or len(labels) < 2:
        raise _wrong(name, f"{half}_labels are {labels.dtype} {labels.shape} for {len(images):,} images, 2 or more")
    if labels.min() < 0 or labels.max() >= max(len(found.class_names), 1):
        raise _wrong(name, f"{half}_labels go to {labels.max()}, and there are {len(found.class_names)} class names")
    return ImageSet(images, labels.astype(np.int64))


def _wrong(name: str, problem: str) -> UserError:
    return UserError(f"the data set {name!r}: {problem}", "return equibench.OwnImages of arrays like CIFAR-10's")
