"""Leakage: what is kept with the tasks holds their claims, and the measurement sees a leak where there is one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from equibench.audit import leakage
from equibench.audit.leakage import INPUTS, SmallCNN, certify, leakage_of, leakage_path, noise_pictures, outer_ring
from equibench.data import load as datasets
from equibench.data.dataset import Dataset, ImageSet
from equibench.errors import UserError
from equibench.pretrain.method import BASELINES
from equibench.registry import load_file
from equibench.task import CLEAN_LEAK, TASKS, Task, regression_tasks
from equibench.transforms.operations import warp
from equibench.transforms.transformation import TRANSFORMATIONS, visible_disc

KEPT = json.loads(leakage_path().read_text())
EXAMPLE = Path(__file__).parents[2] / "examples" / "my_task.py"
TINY = (64, 16, 16)


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Whatever a test registers or imports is forgotten after it; files go to its own folder; the solids are few."""
    TASKS.discover()
    BASELINES.discover()
    kept = [(d, dict(d)) for d in (TASKS._entries, BASELINES._entries, TRANSFORMATIONS)]
    modules = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "SOLIDS_SIZES", (600, 200))
    yield
    for entries, before in kept:
        entries.clear()
        entries.update(before)  # type: ignore[arg-type]
    for name in set(sys.modules) - modules:
        if name.startswith("equibench_user_"):
            del sys.modules[name]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training just long enough to see a strong leak."""
    monkeypatch.setattr(leakage, "EPOCHS", 8)
    monkeypatch.setattr(leakage, "STEPS", 0)
    monkeypatch.setattr(leakage, "BATCH", 32)


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly any training: for what is done with the numbers, not for the numbers."""
    monkeypatch.setattr(leakage, "EPOCHS", 1)
    monkeypatch.setattr(leakage, "STEPS", 0)


def read(path: str | Path) -> dict[str, Any]:
    return json.loads(Path(path).read_text())


@pytest.mark.parametrize("name", regression_tasks())
def test_each_task_has_a_leakage_of_its_version_that_bears_out_its_claim(name: str) -> None:
    task, facts = TASKS.get(name), KEPT[name]
    assert facts["task_version"] == task.version
    assert facts["view2_alone_low"] <= facts["view2_alone_r2"] <= facts["view2_alone_high"]
    if task.claims_clean:
        assert facts["view2_alone_r2"] <= CLEAN_LEAK


def test_blur_is_seen_from_view_two_alone_and_flip_is_not(solids_dataset: Dataset, quick: None) -> None:
    blur, flip = (
        leakage_of(TASKS.get(name), solids_dataset, (500, 50, 150), ["view2_alone"]) for name in ("blur", "flip")
    )
    assert blur["view2_alone_r2"] > 0.3
    assert flip["view2_alone_r2"] < CLEAN_LEAK
    assert blur["both_views_r2"] is None


def test_black_corners_give_the_rotation_away_at_the_border(solids_dataset: Dataset, quick: None) -> None:
    black, mirrored = (
        leakage_of(TASKS.get("rotation"), solids_dataset, (500, 50, 150), ["border"], variant=variant)
        for variant in ("paper_like", "headline")
    )
    assert black["border_r2"] > 0.5
    assert mirrored["border_r2"] < black["border_r2"] - 0.3


def test_noise_tells_how_far_it_was_magnified_but_not_where_it_was_moved_to(
    solids_dataset: Dataset, quick: None
) -> None:
    moved, cropped = (
        leakage_of(TASKS.get(name), solids_dataset, (500, 50, 150), ["interpolation"])
        for name in ("translation", "crop")
    )
    assert abs(moved["interpolation_r2"]) < CLEAN_LEAK
    assert cropped["interpolation_r2"] > 0.2


def test_noise_pictures_depend_on_their_pair_alone() -> None:
    some, more = noise_pictures(np.array([3, 0]), 8, "train"), noise_pictures(np.arange(5), 8, "train")
    np.testing.assert_array_equal(some, more[[3, 0]])
    assert (some.dtype, some.shape) == (np.uint8, (2, 3, 8, 8))
    assert len({picture.tobytes() for picture in more}) == 5
    assert not np.array_equal(noise_pictures(np.array([3]), 8, "val"), some[:1])
    many = noise_pictures(np.arange(200), 9, "x")
    assert abs(many.mean() - 127.5) < 1
    assert abs(many.std() - 73.9) < 1
    correlation = np.corrcoef(many[..., 1:].flatten(), many[..., :-1].flatten())[0, 1]
    assert abs(correlation) < 0.02


def test_the_outer_ring() -> None:
    radius = 11.5
    ring = outer_ring(32, radius)
    assert torch.equal(ring + visible_disc(32, radius - 2), visible_disc(32, radius))
    assert ring[16].nonzero().flatten().tolist() == [5, 6, 25, 26], "two pixels on either side"
    frame = outer_ring(32, None)
    assert frame.sum() == 32**2 - 28**2
    assert outer_ring(224, None).sum() == 224**2 - 196**2


@pytest.mark.parametrize(("side", "grid"), [(32, 32), (64, 64), (65, 32), (96, 48), (224, 56), (512, 64)])
def test_the_cnn_strides_over_large_images_and_sees_every_pixel(side: int, grid: int) -> None:
    model = SmallCNN(3, 1, side)
    first = model.body[0]
    assert isinstance(first, torch.nn.Conv2d)
    image = torch.rand(1, 3, side, side, requires_grad=True)
    out = first(image)
    assert out.shape[-1] == grid
    out.abs().sum().backward()
    assert image.grad is not None
    seen = image.grad[0].abs().sum(dim=0) > 0
    assert seen[: side - side % grid, : side - side % grid].all()
    assert model.eval()(image.detach()).shape == (1, 1)


def test_what_is_on_file_is_kept_and_what_is_missing_is_added(instant: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    measure = leakage.measure_leak

    def noting(source: str, *rest: Any) -> tuple[float, float, float]:
        asked.append(source)
        return measure(source, *rest)

    monkeypatch.setattr(leakage, "measure_leak", noting)
    Path("c.json").write_text(json.dumps({"other": {"kept": 1}}))
    settings: dict[str, Any] = {"data": "solids", "out": "c.json", "pairs": TINY}
    assert certify(["rotation"], inputs=["both_views"], **settings) == [Path("c.json")]
    first = read("c.json")
    assert first["other"] == {"kept": 1}
    assert first["rotation"]["view2_alone_r2"] is None
    certify(["rotation"], inputs=("border", "interpolation"), **settings)
    certify(["rotation"], **settings)
    certify(["rotation"], **settings)
    assert asked == ["both_views", "border", "interpolation", "view2_alone"]
    last = read("c.json")
    numbers = [f"{source}_{end}" for source in INPUTS for end in ("r2", "low", "high")]
    assert [key for key in last["rotation"] if key in numbers] == numbers
    assert all(isinstance(last["rotation"][key], float) for key in numbers)
    assert last["rotation"]["both_views_r2"] == first["rotation"]["both_views_r2"]
    assert last["other"] == {"kept": 1}
    certify(["rotation"], inputs=["border"], again=True, **settings)
    assert asked[4:] == ["border"]
    assert read("c.json") == last, "the same recipe gives the same numbers"
    certify(["rotation"], inputs=["border"], **{**settings, "pairs": (65, 16, 16)})
    assert asked[5:] == ["border"]
    assert read("c.json")["rotation"]["both_views_r2"] is None, "numbers of another recipe are not kept"


def test_an_interruption_keeps_what_was_measured(instant: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(source: str, *rest: Any) -> tuple[float, float, float]:
        if source == "border":
            raise KeyboardInterrupt
        return 0.5, 0.25, 0.75

    monkeypatch.setattr(leakage, "measure_leak", measure)
    with pytest.raises(KeyboardInterrupt):
        certify(["flip"], data="solids", out="c.json", pairs=TINY)
    facts = read("c.json")["flip"]
    assert (facts["view2_alone_r2"], facts["view2_alone_high"], facts["border_r2"]) == (0.5, 0.75, None)


def test_only_geometric_transformations_are_measured_on_noise(instant: None) -> None:
    certify(["color", "flip"], data="solids", out="c.json", pairs=TINY)
    facts = read("c.json")
    assert facts["color"]["interpolation_r2"] is None
    assert facts["color"]["border_r2"] is not None
    assert facts["flip"]["interpolation_r2"] is not None


def test_the_file_of_the_package_is_for_its_own_recipe_alone(instant: None) -> None:
    before = leakage_path().read_bytes()
    assert certify(["flip"], data="solids", pairs=TINY, inputs=["border"]) == [Path("leakage.json")]
    assert list(read("leakage.json")) == ["flip"]
    assert leakage_path().read_bytes() == before


def test_the_file_of_the_package_is_added_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The package's own recipe, without CIFAR-10 and without training."""
    own = tmp_path / "package.json"
    own.write_text(leakage_path().read_text())
    monkeypatch.setattr(leakage, "leakage_path", lambda: own)
    count, small = 50_000, np.zeros((1, 3, 32, 32), np.uint8)
    train = ImageSet(np.broadcast_to(small, (count, 3, 32, 32)), np.arange(count) % 10)
    test = ImageSet(np.broadcast_to(small, (10_000, 3, 32, 32)), np.arange(10_000) % 10)
    cifar = Dataset("cifar10", "", train, test, tuple("0123456789"), datasets.CIFAR10_SHA256)
    # the official data's labels decide which images are for validation, and with that the digest of the pairs
    digests = {name: facts["pairs_sha256"] for name, facts in KEPT.items()}
    draw = leakage.draw_pairs

    def drawn(dataset: Dataset, name: str, *rest: Any, **options: Any) -> Any:
        pairs = draw(dataset, name, *rest, **options)
        object.__setattr__(pairs, "sha256", digests[name])
        return pairs

    monkeypatch.setattr(leakage, "draw_pairs", drawn)
    monkeypatch.setattr(leakage, "load_dataset", lambda *args, **options: cifar)
    monkeypatch.setattr(leakage, "measure_leak", lambda *args: (0.5, 0.25, 0.75))
    assert certify(["translation", "blur"], inputs=("border", "interpolation")) == [own]
    for name, facts in read(own).items():
        added = {k: v for k, v in facts.items() if KEPT[name].get(k) != v}
        if name not in ("translation", "blur"):
            assert added == {}
            continue
        kept = {k: v for k, v in KEPT[name].items() if k.startswith(("both_views", "view2_alone"))}
        assert kept.items() <= facts.items()
        assert (facts["pairs"], facts["validation_pairs"], facts["test_pairs"], facts["epochs"]) == (*leakage.PAIRS, 5)


def test_few_images_are_used_several_times_and_trained_on_as_long(
    solids_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leakage, "measure_leak", lambda *args: (0.0, 0.0, 0.0))
    facts = leakage_of(TASKS.get("flip"), solids_dataset, leakage.PAIRS)
    assert (facts["pairs"], facts["validation_pairs"], facts["test_pairs"]) == (4 * 540, 4 * 60, 200)
    assert facts["epochs"] * (4 * 540 // leakage.BATCH) >= leakage.STEPS > 700
    assert leakage.STEPS == 5 * (20_000 // 128)


def test_a_folder_of_images_larger_than_64_px(instant: None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for n in range(30):
        image = Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8)).resize((100, 90))
        image.save(tmp_path / "photos" / f"{n:02}.png")
    (written,) = certify(["rotation"], data=tmp_path / "photos", size=80)
    facts = read(written)["rotation"]
    assert written == Path("leakage.json")
    assert facts["data"] == "photos"
    assert facts["pairs"] < 4 * 30
    assert facts["test_pairs"] < 10
    assert all(facts[f"{source}_r2"] is not None for source in INPUTS)


def test_a_task_of_ones_own(instant: None) -> None:
    before = leakage_path().read_bytes()
    assert certify([str(EXAMPLE)], data="solids", pairs=TINY) == [Path("leakage.json")]
    facts = read("leakage.json")["shear"]
    assert facts["data"] == "solids"
    assert all(isinstance(facts[f"{source}_r2"], float) for source in INPUTS)
    certify([EXAMPLE, "flip"], data="solids", pairs=TINY, out="both.json", inputs=["border"])
    assert list(read("both.json")) == ["shear", "flip"]
    assert leakage_path().read_bytes() == before


def test_the_example_shears_and_shows_no_filled_pixel() -> None:
    assert load_file(EXAMPLE, "task") == ["shear"]
    shear = TRANSFORMATIONS["shear"]
    theta = torch.tensor([[0.3], [-0.3]])
    ones = torch.ones(2, 1, 32, 32)
    disc = visible_disc(32, 11.5)
    assert torch.allclose(warp(ones, shear.matrix(theta, 32), "black") * disc, disc)  # type: ignore[misc]
    image = torch.zeros(2, 1, 32, 32)
    image[:, :, 26, 16] = 1  # 10.5 px below the centre
    moved = warp(image, shear.matrix(theta, 32), "black")[:, 0, 26]  # type: ignore[misc]
    place = (moved * torch.arange(32)).sum(dim=1) / moved.sum(dim=1)
    assert torch.allclose(place, torch.tensor([16 + 3.15, 16 - 3.15]), atol=0.01)
    theta64 = np.array([[0.2]])
    assert shear.inverse is not None
    both = shear.matrix(torch.from_numpy(theta64), 32) @ shear.matrix(torch.from_numpy(shear.inverse(theta64)), 32)  # type: ignore[misc]
    assert torch.allclose(both, torch.eye(3).double()[None])


def test_a_file_of_tasks_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    good = EXAMPLE.read_text()
    path.write_text(good + "\nraise RuntimeError('after')\n")
    with pytest.raises(UserError, match="raised RuntimeError: after"):
        load_file(path, "task")
    assert "shear" not in TRANSFORMATIONS
    path.write_text("x = 1\n")
    with pytest.raises(UserError, match="registers no task.*\n.*register_task") as caught:
        load_file(path, "task")
    assert "docs/" in caught.value.fix
    path.write_text(good)
    assert load_file(path, "task") == load_file(path, "task") == ["shear"]
    assert "shear" in TRANSFORMATIONS
    with pytest.raises(UserError, match="registers no baseline"):
        load_file(path, "baseline")
    assert "shear" in TASKS.names(), "it was loaded before"
    with pytest.raises(UserError, match="'shear' is registered twice"):
        load_file(EXAMPLE, "task")
    assert load_file(path, "task") == ["shear"]


def test_a_file_may_register_tasks_and_baselines(tmp_path: Path) -> None:
    path = tmp_path / "both.py"
    baseline = Path(EXAMPLE).with_name("my_method.py").read_text()
    path.write_text(baseline + EXAMPLE.read_text())
    assert load_file(path, "baseline") == ["my_method"]
    assert load_file(path, "task") == ["shear"]


def test_what_is_built_in() -> None:
    load_file(EXAMPLE, "task")
    assert set(regression_tasks()) - {"shear"} <= set(TASKS.built_in)
    assert "shear" not in TASKS.built_in


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"tasks": ["rotatoin"]}, "did you mean 'rotation'"),
    ({"tasks": ["nothing.py"]}, "task file not found: nothing.py"),
    ({"inputs": ["boarder"]}, "unknown input 'boarder'; did you mean 'border'"),
    ({"pairs": (100, 10)}, "pairs=.* cannot be drawn"),
    ({"pairs": (100, 10, 0)}, "pairs=.* cannot be drawn"),
    ({"data": "cifar100"}, "no dataset named"),
    ({"data": "./nowhere"}, "nowhere does not exist"),
    ({"out": "broken.json"}, "broken.json cannot be read"),
    ({"out": "list.json"}, "list.json holds no measured leakage"),
    ({"tasks": ["other.evaluator"]}, "is a task of evaluator_x, whose leakage is not measured"),
]


@pytest.mark.parametrize(("wrong", "problem"), WRONG)
def test_mistakes(wrong: dict[str, Any], problem: str, instant: None) -> None:
    Path("broken.json").write_text("{")
    Path("list.json").write_text("[]")
    other = Task(name="other.evaluator", title="", version=1, transformation="flip", evaluator="evaluator_x")
    TASKS.add(other.name, other)
    with pytest.raises(UserError, match=problem):
        certify(**{"tasks": ["flip"], "data": "solids", "out": "c.json", "pairs": TINY, **wrong})


def test_a_parameter_that_does_not_vary(tmp_path: Path, instant: None) -> None:
    path = tmp_path / "mine.py"
    path.write_text(EXAMPLE.read_text().replace("MOST * (2 * u - 1)", "0 * u"))
    with pytest.raises(UserError, match="θ of 'shear' does not vary"):
        certify([path], data="solids", pairs=TINY, out="c.json")
