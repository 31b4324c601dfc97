"""Dense tasks on frozen token maps: masks carried through DAVIS-2017 (P2 Table 7), homographies of COCO (P2 Table 6).

Both bring their data along (docs/protocol.md 7.7 and 7.8): they run where they are named, or their evaluator is.
"""

from equibench.task import Task, register_task

_CARRIED = "the first frame's mask, carried on by the likeness of patch tokens; the floor leaves it where it is"

register_task(
    Task(name="davis2017", title="DAVIS-2017", version=1, note=_CARRIED, evaluator="propagation", data="davis2017",
         reference="Pont-Tuset et al., arXiv 1704.00675")
)  # fmt: skip

_HEAD = "corner error of a 3-layer convolutional head on both token maps, px of 128 px; the floor predicts no movement"

register_task(
    Task(name="homography", title="S-COCO", version=1, note=_HEAD, evaluator="homography", data="coco2017",
         reference="DeTone, Malisiewicz, Rabinovich, arXiv 1606.03798")
)  # fmt: skip
