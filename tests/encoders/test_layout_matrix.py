"""Every published layout of `layout_matrix`: loaded whole with the writer's output, or refused with the reason."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from layout_matrix import MATRIX, choices_markdown, matrix_markdown
from layout_writers import Layout
from torch import Tensor, nn

from equibench.encoders.open import open_encoder
from equibench.encoders.zoo import build_network
from equibench.errors import UserError

PAGE = Path(__file__).parents[2] / "docs/encoders.md"


@lru_cache
def network(arch: str, seed: int) -> nn.Module:
    """The architecture with weights, statistics and tokens that no initialisation gives."""
    model = build_network(arch, False, None, seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                noise = 0.05 * torch.randn(value.shape, generator=generator)
                value.add_(noise.abs() if "var" in name else noise)
    return model


def state_of(arch: str, seed: int) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network(arch, seed).state_dict().items()}


def features(model: nn.Module, x: Tensor) -> Tensor:
    if hasattr(model, "forward_head"):
        return model.forward_head(model.forward_features(x), pre_logits=True)
    taken: list[Tensor] = []
    handle = model.get_submodule("fc").register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    model(x)
    handle.remove()
    return taken[0]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", MATRIX, ids=lambda layout: layout.name)
def test_a_layout_is_loaded_whole_or_refused_with_the_reason(layout: Layout, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / f"weights{layout.suffix}"
    content = layout.write(state_of(layout.arch, 1), state_of(layout.arch, 2), path)
    if content is not None:
        torch.save(content, path)
    arch = layout.asked or layout.arch
    if layout.refused:
        with pytest.raises(UserError, match=layout.refused):
            open_encoder(path, arch=arch, **layout.options)
        return
    opened = open_encoder(path, arch=arch, **layout.options)
    assert opened.coverage is not None
    assert opened.coverage.share == 1.0
    images = torch.rand(2, 3, 32, 32)
    expected = features(network(layout.arch, 1), opened.encoder.prepare(images))
    torch.testing.assert_close(opened.encoder.represent(images), expected, atol=1e-5, rtol=1e-5)
    other = features(network(layout.arch, 2), opened.encoder.prepare(images))
    assert not torch.allclose(expected, other, atol=1e-2), "the second network can be told from the first"


def test_the_page_shows_the_matrix() -> None:
    assert len(MATRIX) >= 80
    assert len({layout.name for layout in MATRIX}) == len(MATRIX)
    found = re.search(r"<!-- matrix:begin -->\n(.*?)<!-- matrix:end -->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    assert found[1] == matrix_markdown()


def test_the_page_shows_whose_evaluation_takes_what() -> None:
    found = re.search(r"<!-- choices:begin -->\n(.*?)<!-- choices:end -->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    assert found[1] == choices_markdown()
