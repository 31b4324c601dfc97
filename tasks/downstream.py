"""Linear transfer (P1 Table 5): logistic regression on frozen features of seven data sets (PROTOCOL 5).

The penalty is chosen among 45 on the validation images, the fit repeated on training and validation images together,
and tested once. As in the literature, Pets and Aircraft are scored by the mean over classes, the others by top-1; both
are in every record.
"""

from __future__ import annotations

from equibench.task import Task, register_task

for _name, _title, _metric in [
    ("cifar10", "CIFAR-10", "top1"),
    ("cifar100", "CIFAR-100", "top1"),
    ("food101", "Food101", "top1"),
    ("sun397", "SUN397", "top1"),
    ("dtd", "DTD", "top1"),
    ("pets", "Pets", "mean_per_class"),
    ("aircraft", "Aircraft", "mean_per_class"),
]:
    register_task(
        Task(
            f"linear_{_name}",
            _title,
            1,
            "",
            False,
            f"logistic regression on frozen features of {_title}, {_metric.replace('_', ' ').replace('top1', 'top-1')}",
            family="classification",
            data=_name,
            headline=_metric,
        )
    )

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
