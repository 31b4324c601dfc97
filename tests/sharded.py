"""A loss on one of two processes, in a module that a process of its own can import."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from equibench.baselines.sie import sie_loss
from equibench.baselines.vicreg import vicreg_loss
from torch import Tensor

from equibench.data.load import load_dataset
from equibench.pretrain.batches import open_stream
from equibench.pretrain.loop import TrainingStep, build_step
from equibench.pretrain.method import BASELINES, gather
from equibench.profiles import get_profile
from equibench.transforms.transformation import view_spec

Array = np.ndarray


def arrays(count: int, *shape: int, seed: int = 0) -> list[Array]:
    """Some dimensions vary by more than 1 and some by less, so that the variance's hinge is on and off."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) * np.linspace(0.3, 2, shape[-1]) for _ in range(count)]


def losses_of(x: Tensor, y: Tensor) -> Tensor:
    """VICReg and SIE on the same embeddings, as every rank computes them."""
    sie = sie_loss(x[:, :3], y[:, :3], x[:, 3:], y[:, 3:], x[:, 3:].flip(1))
    return vicreg_loss(x, y)["loss"] + sie["loss"]


def sharded(rank: int, folder: str) -> None:
    """One of two processes with half of the batch; gradients are averaged, as DDP does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    x, y, weight = (torch.from_numpy(a) for a in (*arrays(2, 8, 6), *arrays(1, 6, 6, seed=1)))
    weight.requires_grad_()
    rows = slice(4 * rank, 4 * rank + 4)
    loss = losses_of(x[rows] @ weight, y[rows] @ weight)
    loss.backward()
    assert weight.grad is not None
    for tensor in (weight.grad, value := loss.detach().clone()):
        dist.all_reduce(tensor)
        tensor /= 2
    order = gather(torch.arange(4.0)[:, None] + 4 * rank)
    if rank == 0:
        torch.save({"grad": weight.grad, "loss": value, "order": order}, f"{folder}/result.pt")
    dist.barrier()
    dist.destroy_process_group()


def stepped(name: str, start: int, count: int) -> tuple[TrainingStep, Tensor]:
    """A method after the losses and gradients of some pairs, heads without batch statistics; and its loss.

    BatchNorm is synchronised on GPUs alone, so here it takes its running statistics.
    """
    dataset, profile = load_dataset("solids", sizes=(600, 200)), get_profile("tiny")
    step = build_step(BASELINES.get(name), profile, "headline", 0, 10).train()
    for part in step.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.eval()
    stream = open_stream(dataset, "train", step.method, view_spec("headline", 32), seed=0)
    loss = step(step.method.prepare(stream.batch(start, count, step.encoder)))[0]["loss"]
    loss.backward()
    return step, loss.detach()


def sharded_steps(rank: int, folder: str, names: list[str]) -> None:
    """One of two processes with half of the batch of each method; gradients are averaged, as DDP does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for name in names:
        step, loss = stepped(name, 8 * rank, 8)
        gradients = {n: p.grad for n, p in step.named_parameters() if p.grad is not None}
        for tensor in (loss, *gradients.values()):
            dist.all_reduce(tensor)
            tensor /= 2
        buffers = {n: b.clone() for n, b in step.named_buffers() if "center" in n}
        found[name] = {"loss": loss, "gradients": gradients, "buffers": buffers}
    if rank == 0:
        torch.save(found, f"{folder}/result.pt")
    dist.barrier()
    dist.destroy_process_group()
