"""Downstream tasks: linear transfer (P1 Table 5, P2 Table 5) and segmentation of ADE20K (P1 Table 6).

Linear transfer is logistic regression on frozen features (docs/protocol.md 7.3): the penalty is chosen among 45 on the
validation images, the fit repeated on training and validation images together, and tested once. As in the literature,
Pets and Aircraft are scored by the mean over classes, the others by top-1; both are in every record. Segmentation
trains a head on the frozen encoder's maps at four depths (docs/protocol.md 7.5).
"""

from equibench.task import Task, register_task

for _name, _title, _metric, _said in [
    ("cifar10", "CIFAR-10", "top1", "top-1"),
    ("cifar100", "CIFAR-100", "top1", "top-1"),
    ("food101", "Food101", "top1", "top-1"),
    ("sun397", "SUN397", "top1", "top-1"),
    ("dtd", "DTD", "top1", "top-1"),
    ("pets", "Pets", "mean_per_class", "mean per class"),
    ("aircraft", "Aircraft", "mean_per_class", "mean per class"),
    ("inaturalist18", "iNaturalist18", "top1", "top-1"),
    ("imagenet", "ImageNet", "top1", "top-1"),
]:
    _note = f"logistic regression on frozen features of {_title}, {_said}"
    register_task(
        Task(name=f"linear_{_name}", title=_title, version=1, note=_note, evaluator="classification", data=_name,
             main_metric=_metric, reference="Kornblith, Shlens, Le, CVPR 2019")
    )  # fmt: skip

_HYPERNET = "every map to a quarter of the image, 5x5 convolution, LRN, concatenation, 3x3, 1x1; needs equibench[seg]"
_LINEAR = "batch normalisation and a 1x1 convolution on the concatenated maps; needs equibench[seg]"

for _name, _title, _note in [
    ("ade20k", "ADE20K, HyperNet head", _HYPERNET),
    ("ade20k_linear", "ADE20K, linear head", _LINEAR),
]:
    register_task(
        Task(name=_name, title=_title, version=1, note=_note, evaluator="segmentation", data="ade20k",
             reference="Zhou et al., CVPR 2017")
    )  # fmt: skip
