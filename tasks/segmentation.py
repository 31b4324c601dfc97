"""ADE20K (P1 Table 6): semantic segmentation with a head on the frozen encoder's maps at four depths (PROTOCOL 4)."""

from __future__ import annotations

from equibench.task import Task, register_task

ADE20K = register_task(
    Task(
        "ade20k",
        "ADE20K, HyperNet head",
        1,
        "",
        False,
        "every map to a quarter of the image, 5x5 convolution, LRN, concatenation, 3x3, 1x1; needs equibench[seg]",
        family="segmentation",
        data="ade20k",
    )
)
ADE20K_LINEAR = register_task(
    Task(
        "ade20k_linear",
        "ADE20K, linear head",
        1,
        "",
        False,
        "batch normalisation and a 1x1 convolution on the concatenated maps; needs equibench[seg]",
        family="segmentation",
        data="ade20k",
    )
)
