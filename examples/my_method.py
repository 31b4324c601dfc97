"""A new row in one file: tell from both views' features where the picture was moved to.

Run it in Table 2 beside the rest:  equibench table table2 --baseline examples/my_method.py
"""

from equibench.baselines.vicreg import vicreg_loss
from torch import cat, nn

from equibench import Baseline, register_baseline
from equibench.pretrain.modules import projector


@register_baseline("my_method", title="My method")
class MyMethod(Baseline):
    """VICReg on the invariant half, regression of the translation on the equivariant half."""

    splits_features = True

    def __init__(self, profile, encoder):
        super().__init__(profile, encoder)
        equivariant = self.features - self.invariant
        self.projector = projector(self.invariant, profile.pretraining.projector)
        self.regressor = nn.Sequential(nn.Linear(2 * equivariant, 256), nn.ReLU(), nn.Linear(256, 2))

    def loss(self, views, tokens):
        inv1, inv2 = (self.projector(t.mean[:, : self.invariant]) for t in (tokens.v1, tokens.v2))
        equi1, equi2 = (t.mean[:, self.invariant :] for t in (tokens.v1, tokens.v2))
        ssl = vicreg_loss(inv1, inv2)
        moved = (self.regressor(cat([equi1, equi2], dim=1)) - views.theta["translation"]).square().mean()
        return {**ssl, "loss": ssl["loss"] + 10 * moved, "moved": moved}
