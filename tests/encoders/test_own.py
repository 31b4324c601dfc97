"""Architectures of one's own: a Python file, transformers, open_clip; what is loaded, what is refused, what is told."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from scored import quick
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

import equibench.evaluation.controls
import equibench.runner.open
from equibench.data.dataset import Dataset
from equibench.encoders.adapter import Preprocessing
from equibench.encoders.open import open_encoder
from equibench.errors import UserError

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
NET = """
import torch
from torch import nn
from torch.nn.functional import avg_pool2d


class Net(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 4, 4), nn.BatchNorm2d(width)

    def forward(self, x):
        return avg_pool2d(self.norm(self.conv(x)), 2)


def build():
    return Net()


def trained():
    net = Net()
    with torch.no_grad():
        net.conv.weight.copy_(torch.linspace(-1, 1, net.conv.weight.numel()).view_as(net.conv.weight))
    return net


def broken():
    return Net(width="wide")


def nothing():
    return {"weights": 1}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(NET)
    return tmp_path / "model.py"


def images(side: int = 32) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def weights(file: Path, **other: Tensor) -> Path:
    """A checkpoint of `Net`, written with PyTorch's own layers under the same names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        net = nn.ModuleDict({"conv": nn.Conv2d(3, 6, 4, 4), "norm": nn.BatchNorm2d(6)})
    torch.save({"model": {f"module.{n}": v for n, v in net.state_dict().items()} | other}, file.with_name("w.pth"))
    return file.with_name("w.pth")


@torch.no_grad()
def test_a_file_of_weights_is_loaded_into_what_a_python_file_builds(file: Path) -> None:
    path = weights(file)
    opened = open_encoder(path, arch=f"{file}:build")
    state = torch.load(path)["model"]
    x = tv.normalize(images(), *IMAGENET)
    expected = (
        nn.functional.conv2d(x, state["module.conv.weight"], state["module.conv.bias"], stride=4) / (1 + 1e-5) ** 0.5
    )
    torch.testing.assert_close(opened.encoder.represent(images()), expected.mean((2, 3)))
    assert opened.coverage is not None
    assert opened.coverage.share == 1.0
    assert any("code was run: model.py:build" in note for note in opened.notes)
    assert opened.fresh is not None
    untrained = opened.fresh(3)
    assert untrained.identity == opened.fresh(3).identity
    assert not torch.equal(untrained.represent(images()), opened.encoder.represent(images()))


def test_weights_that_do_not_fit_what_it_builds_are_refused(file: Path) -> None:
    path = weights(file)
    state = torch.load(path)["model"]
    torch.save({n: v for n, v in state.items() if "norm" not in n}, path)
    with pytest.raises(UserError, match="would stay random"):
        open_encoder(path, arch=f"{file}:build")
    torch.save(state | {"module.conv.gate": torch.rand(2)}, path)
    with pytest.raises(UserError, match="not known to be harmless"):
        open_encoder(path, arch=f"{file}:build")


def test_the_source_is_part_of_the_identity_and_the_path_is_not(file: Path, tmp_path: Path) -> None:
    path = weights(file)
    one = open_encoder(path, arch=f"{file}:build")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/model.py").write_text(NET)
    assert open_encoder(path, arch=f"{tmp_path}/elsewhere/model.py:build").encoder.identity == one.encoder.identity
    file.write_text(NET + "\nSCALE = 2\n")
    other = open_encoder(path, arch=f"{file}:build")
    assert other.architecture != one.architecture
    assert other.encoder.identity != one.encoder.identity


def test_without_weights_the_network_is_scored_as_it_is_built(file: Path) -> None:
    drawn = open_encoder(f"{file}:build", seed=2)
    assert not drawn.pretrained
    assert drawn.fresh is not None
    assert drawn.fresh(2).identity == drawn.encoder.identity
    made = open_encoder(f"{file}:trained")
    assert made.pretrained
    own = made.encoder.model.state_dict()["conv.weight"]
    assert torch.equal(own.flatten(), torch.linspace(-1, 1, own.numel()))
    assert made.fresh is not None  # an untrained twin, though the function gives its network weights
    assert not torch.equal(made.fresh(0).model.state_dict()["conv.weight"], own)
    with pytest.raises(UserError, match="cannot be had untrained"):
        open_encoder(f"{file}:trained", pretrained=False)
    with pytest.raises(UserError, match="leave --arch out"):
        open_encoder(f"{file}:trained", arch="timm:resnet18")


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(NET.splitlines(), 1) if text in line)


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (":biuld", "no function 'biuld'; did you mean 'build'"),
        ("", "which function"),
        (":broken", rf"model.py, line {line_of('nn.Conv2d')}: broken\(\) raised TypeError"),
        (":nothing", "returned a dict, not an nn.Module"),
    ],
)
def test_functions_that_build_no_network(file: Path, function: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        open_encoder(weights(file), arch=f"{file}{function}")


def test_files_that_cannot_be_run(file: Path) -> None:
    with pytest.raises(UserError, match="Python file not found"):
        open_encoder(f"{file.parent}/absent.py:build")
    file.write_text("import torch\n\nraise SystemExit('no')\n")
    with pytest.raises(UserError, match="line 3: raised SystemExit: no"):
        open_encoder(f"{file}:build")
    file.write_text("import torch\ndef build(:\n")
    with pytest.raises(UserError, match="line 2: raised SyntaxError"):
        open_encoder(f"{file}:build")


def test_a_module_beside_the_file_is_found(file: Path) -> None:
    file.with_name("net_beside_it.py").write_text(NET)
    file.write_text("from net_beside_it import Net\n")
    assert open_encoder(f"{file}:Net").encoder.represent(images()).shape == (2, 6)
    assert str(file.parent) not in sys.path


def test_a_score_says_that_code_was_run(
    file: Path, tmp_path: Path, solids_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(equibench.runner.open, "load_dataset", lambda *_, **__: solids_dataset)
    monkeypatch.setattr(equibench.evaluation.controls, "LARGEST_SIDE", 16)
    result = quick(weights(file), tmp_path, tasks=["flip.wahba"], arch=f"{file}:build", controls=False)
    assert any("code was run" in note for note in result.notes)
    assert "model.py:build (Python file, run; sha256 " in (result.records[0].encoder or "")
    assert f"--arch {file}:build" in result.records[0].command
    built = quick(f"{file}:trained", tmp_path, tasks=["flip.wahba"], controls=False)
    assert built.name.startswith("model.py:trained.")
    assert built.records[0].encoder_sha256 != result.records[0].encoder_sha256


# --- libraries that may not be there: a module in their place, and the real one where it is -------------------------


class Tokens(nn.Module):
    """A ViT in transformers' names: `last_hidden_state` is a class token, two registers and 4 x 4 patches."""

    main_input_name = "pixel_values"

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embeddings = nn.Module()
        self.embeddings.cls_token = nn.Parameter(torch.rand(1, 1, width))
        self.embeddings.register_tokens = nn.Parameter(torch.rand(1, 2, width))
        self.project = nn.Conv2d(3, width, 4, 4)
        self.pooler = nn.Linear(width, width)

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> dict[str, Tensor]:
        patches = self.project(pixel_values).flatten(2).transpose(1, 2)
        first = torch.cat([self.embeddings.cls_token, self.embeddings.register_tokens], 1).expand(len(patches), -1, -1)
        tokens = torch.cat([first, patches], 1)
        return {"last_hidden_state": tokens, "pooler_output": self.pooler(tokens)[:, 0]}


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What a stand-in for transformers is asked, and what it answers."""
    state = SimpleNamespace(
        asked=[], missing=set(), model=Tokens, config=SimpleNamespace(image_size=16, model_type="x")
    )
    fake: Any = ModuleType("transformers")

    def from_pretrained(source: str, **_: Any) -> Any:
        state.asked.append(source)
        return state.model(), {"missing_keys": state.missing}

    own = SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.25] * 3, size={"height": 16, "width": 16}, resample=2)
    fake.__version__ = "0.0"
    fake.AutoConfig = SimpleNamespace(from_pretrained=lambda _: state.config)
    fake.AutoModel = SimpleNamespace(from_pretrained=from_pretrained, from_config=lambda _: state.model())
    fake.AutoImageProcessor = SimpleNamespace(from_pretrained=lambda _: own)
    monkeypatch.setitem(sys.modules, "transformers", fake)
    return state


@torch.no_grad()
def test_tokens_of_transformers_are_the_patches(transformers: SimpleNamespace) -> None:
    opened = open_encoder("hf:org/name", seed=1)
    assert transformers.asked == ["org/name"]
    assert opened.encoder.preprocessing == Preprocessing(16, (0.5,) * 3, (0.25,) * 3, "bilinear")
    x = (images(16) - 0.5) / 0.25
    expected = opened.encoder.model.project(x).mean((2, 3))
    torch.testing.assert_close(opened.encoder.represent(images(16)), expected)
    assert opened.encoder.token_sets == ("cls", "grid")
    assert opened.encoder.token_map(images(16)).shape == (2, 8, 4, 4)
    assert opened.pretrained
    assert "pooler.weight" not in opened.encoder.model.state_dict()


@torch.no_grad()
def test_a_file_is_loaded_into_transformers_network(transformers: SimpleNamespace, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = Tokens()
    torch.save({f"vit.{n}": v for n, v in model.state_dict().items()}, tmp_path / "w.pth")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/config.json").write_text("{}")
    opened = open_encoder(tmp_path / "w.pth", arch=f"hf:{tmp_path / 'folder'}")
    assert not transformers.asked  # the weights are the file's alone
    assert opened.architecture == "hf:folder"
    torch.testing.assert_close(
        opened.encoder.represent(images(16)), model.project((images(16) - 0.5) / 0.25).mean((2, 3))
    )
    torch.save({f"vit.{n}": v for n, v in model.state_dict().items() if "project" not in n}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="does not fit"):
        open_encoder(tmp_path / "w.pth", arch="hf:org/name")


def test_what_transformers_cannot_give_is_refused(transformers: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="folder not found"):
        open_encoder(f"hf:{tmp_path}/absent")
    with pytest.raises(UserError, match="no config.json"):
        open_encoder(f"hf:{tmp_path}")
    transformers.missing = {"project.weight", "pooler.weight"}
    with pytest.raises(UserError, match="would stay random: project.weight\n"):
        open_encoder("hf:org/name")
    transformers.config.mask_ratio = 0.75
    with pytest.raises(UserError, match="hides patches at random"):
        open_encoder("hf:org/name")


@pytest.mark.parametrize(("arch", "package"), [("hf:org/name", "transformers"), ("open_clip:RN50", "open-clip-torch")])
def test_a_library_that_is_not_there_is_named(arch: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("transformers", "open_clip"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="which this architecture needs") as caught:
        open_encoder(arch)
    assert caught.value.fix == f"pip install {package}"


class Tower(nn.Module):
    image_size = (16, 16)
    image_mean = (0.5, 0.4, 0.3)
    image_std = (0.2, 0.2, 0.2)

    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.rand(8))
        self.project = nn.Conv2d(3, 8, 4, 4)
        self.ln_post, self.last = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.project(x).flatten(2).transpose(1, 2)
        return self.last(self.ln_post(torch.cat([self.class_embedding.expand(len(x), 1, 8), patches], 1))[:, 0])


@torch.no_grad()
def test_the_image_tower_of_open_clip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake: Any = ModuleType("open_clip")
    fake.__version__, asked = "0.0", []
    fake.list_models = lambda: ["ViT-S"]
    fake.list_pretrained = lambda: [("ViT-S", "tag")]

    def create_model(name: str, pretrained: str | None = None, **_: Any) -> Any:
        asked.append((name, pretrained))
        return SimpleNamespace(visual=Tower())

    fake.create_model = create_model
    monkeypatch.setitem(sys.modules, "open_clip", fake)
    torch.manual_seed(4)
    tower = Tower()
    state = {f"module.visual.{n}": v for n, v in tower.state_dict().items()} | {"module.logit_scale": torch.tensor(1.0)}
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    opened = open_encoder(tmp_path / "w.pt", arch="open_clip:ViT-S")
    assert opened.encoder.preprocessing == Preprocessing(16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "bicubic")
    torch.testing.assert_close(opened.encoder.represent(images(16)), tower(opened.encoder.prepare(images(16))))
    assert opened.encoder.token_sets == ("cls", "grid")
    assert set(asked) == {("ViT-S", None)}  # the weights are the file's alone
    assert open_encoder("open_clip:ViT-S@tag").pretrained
    assert asked[-1] == ("ViT-S", "tag")
    for name, match in (("ViT-T", "did you mean 'ViT-S'"), ("ViT-S", "which of its weights"), ("ViT-S@tug", "'tag'")):
        with pytest.raises(UserError, match=match):
            open_encoder(f"open_clip:{name}")


@torch.no_grad()
def test_real_transformers(tmp_path: Path) -> None:
    library = pytest.importorskip("transformers")
    config = library.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    model = library.ViTModel(config).eval()
    model.save_pretrained(tmp_path / "vit")
    opened = open_encoder(f"hf:{tmp_path / 'vit'}")
    x = opened.encoder.prepare(images())
    torch.testing.assert_close(opened.encoder.represent(images()), model(x).last_hidden_state[:, 1:].mean(1))
    assert opened.encoder.token_sets == ("cls", "grid")
    model.save_pretrained(tmp_path / "again" / "vit")
    assert open_encoder(f"hf:{tmp_path / 'again' / 'vit'}").encoder.identity == opened.encoder.identity
    (tmp_path / "again" / "vit" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        open_encoder(f"hf:{tmp_path / 'again' / 'vit'}")
    torch.save(library.ViTForImageClassification(config).state_dict(), tmp_path / "w.pth")
    loaded = open_encoder(tmp_path / "w.pth", arch=f"hf:{tmp_path / 'vit'}", size=48)
    assert loaded.coverage is not None
    assert loaded.coverage.share == 1.0
    assert loaded.encoder.token_map(images(48)).shape == (2, 16, 6, 6)


@torch.no_grad()
def test_real_open_clip(tmp_path: Path) -> None:
    library = pytest.importorskip("open_clip")
    model = library.create_model("ViT-S-32-alt").eval()
    torch.save({"state_dict": {f"module.{n}": v for n, v in model.state_dict().items()}}, tmp_path / "w.pt")
    opened = open_encoder(tmp_path / "w.pt", arch="open_clip:ViT-S-32-alt", seed=1)
    x = opened.encoder.prepare(images())
    torch.testing.assert_close(opened.encoder.represent(images()), model.encode_image(x))
    assert opened.encoder.token_sets == ("cls", "grid")
