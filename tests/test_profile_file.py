"""Profiles from a TOML file: what differs from the base differs, and a mistake is named with what would be right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from equibench.config import RunConfig
from equibench.errors import UserError
from equibench.profiles import PROFILES, RenderedData, get_profile


@pytest.fixture(autouse=True)
def _only_built_in_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equibench.profiles.PROFILES", dict(PROFILES))


def written(folder: Path, text: str, name: str = "mine") -> str:
    (folder / f"{name}.toml").write_text(text)
    return str(folder / f"{name}.toml")


def test_what_differs_differs_and_the_rest_is_the_bases(tmp_path: Path) -> None:
    text = (
        'base = "demo"\nimage_size = 48\nsnapshots = [150]\n[encoder]\nwidth = 192\n[pretraining]\nprojector = [64, 8]'
    )
    config = RunConfig.of(profile=written(tmp_path, text))
    demo = PROFILES["demo"]
    assert config.sizes == replace(
        demo,
        name="mine",
        title="demo with the changes of mine.toml",
        image_size=48,
        snapshots=(150,),
        encoder=replace(demo.encoder, width=192),
        pretraining=replace(demo.pretraining, projector=(64, 8)),
    )
    assert hash(config) == hash(config.with_())
    assert config.flags(["profile"]) == [f"--profile {tmp_path}/mine.toml"]
    assert get_profile("mine") is config.sizes, "its runs can be opened by its name"


def test_a_part_that_the_base_lacks_is_given_whole(tmp_path: Path) -> None:
    text = 'base = "cifar10"\nname = "x"\n[rendered]\nobjects = 3\nviews = 4\nscenes = [5, 6]'
    assert get_profile(written(tmp_path, text)).rendered == RenderedData(3, 4, (5, 6))


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    for width in (64, 128):
        path = written(tmp_path, f'base = "tiny"\n[encoder]\nwidth = {width}')
        assert get_profile(path).encoder.width == width


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('base = "demo"\n[encoder]\nwidht = 1', "encoder: unknown key 'widht'; did you mean 'width'"),
        ('base = "demo"\nencodre = 1', "unknown key 'encodre'; did you mean 'encoder'"),
        ('base = "demmo"', "base = 'demmo' is no profile; did you mean 'demo'"),
        ("[encoder]\nwidth = 1", "base = None is no profile"),
        ('base = "demo"\n[encoder]\nwidth = "wide"', "encoder.width: Input should be a valid integer"),
        ('base = "demo"\n[encoder]\nwidth = 1.5', "encoder.width: Input should be a valid integer"),
        ('base = "demo"\nencoder = 3', "encoder: Input should be an object"),
        ('base = "demo"\n[probing]\npairs = [1, 2]', "probing.pairs"),
        ('base = "demo"\n[encoder]\nwidth = 190', "encoder.heads must divide encoder.width"),
        ('base = "demo"\nimage_size = 30', "encoder.patch must divide image_size"),
        ('base = "demo"\nsnapshots = [7]', "snapshots must be multiples"),
        ('base = "demo"\n[pretraining]\npairs = 3', "pretraining.pairs no fewer"),
        ('base = "demo"\n[pretraining]\nlr = -1.0', "lr and probing.lr must be above 0"),
        ('base = "cifar10"\n[rendered]\nobjects = 3', "rendered: missing key 'views'"),
        ('base = "demo"\nname = "tiny"', "cannot be called 'tiny'"),
        ('base = "demo"\nname = "a/b"', "cannot be called 'a/b'"),
        ("base = ", "is no TOML"),
    ],
)
def test_a_mistake_is_named(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as told:
        RunConfig.of(profile=written(tmp_path, text))
    assert told.value.fix


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone.toml cannot be read"):
        get_profile(str(tmp_path / "gone.toml"))
