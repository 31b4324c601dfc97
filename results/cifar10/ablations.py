"""The reconstruction method, and SIE, with one choice made differently in each row where the papers are silent.

    equibench table results/cifar10/ablations.csv --baseline results/cifar10/ablations.py --seeds 0,1

λ_recon is P2's sweep (section 4.5) around its 1, and 1000, which the demo had in version 0.1; the query residual, the
token that the invariant loss sees and the depth of the decoder are docs/protocol.md 5.2 and 6.6, SIE's code of the
transformation is 6.5.
"""

from dataclasses import replace

from equibench.baselines.reconstruction import Reconstruction
from equibench.baselines.sie import SIE
from torch import Tensor

from equibench.encoders.vit import Tokens, ViTEncoder
from equibench.pretrain.method import TokenPair, register_baseline
from equibench.profiles import Profile


class ClassToken(Tokens):
    """Tokens of which the class token stands for the picture, instead of the patches' mean."""

    @property
    def mean(self) -> Tensor:
        return self.cls.float()


@register_baseline("ours_lambda_0.1", title="Ours, λ 0.1", lambda_recon=0.1)
@register_baseline("ours_lambda_1", title="Ours, λ 1", lambda_recon=1)
@register_baseline("ours_lambda_5", title="Ours, λ 5", lambda_recon=5)
@register_baseline("ours_lambda_1000", title="Ours, λ 1000", lambda_recon=1000)
@register_baseline("ours_query_residual", title="Ours, query residual", query_residual=True)
@register_baseline("ours_class_token", title="Ours, class token", class_token=True)
@register_baseline("ours_decoder_6", title="Ours, 6 decoder blocks", decoder_depth=6)
class Ablation(Reconstruction):
    """The reconstruction method with one choice made differently."""

    def __init__(
        self,
        profile: Profile,
        encoder: ViTEncoder,
        *,
        lambda_recon: float | None = None,
        query_residual: bool = False,
        class_token: bool = False,
        decoder_depth: int | None = None,
    ) -> None:
        if lambda_recon is not None:
            profile = replace(profile, pretraining=replace(profile.pretraining, lambda_recon=lambda_recon))
        if decoder_depth is not None:
            profile = replace(profile, decoder=replace(profile.decoder, depth=decoder_depth))
        super().__init__(profile, encoder, query_residual=query_residual)
        self.class_token = class_token

    def ssl_terms(self, tokens: TokenPair) -> dict[str, Tensor]:
        if self.class_token:
            tokens = TokenPair(*(ClassToken(t.cls, t.patches) for t in (tokens.v1, tokens.v2)))
        return super().ssl_terms(tokens)


register_baseline(
    "sie_rot_standardised", title="SIE(rot), standardised code", transformations=("rotation",), code="standardised"
)(SIE)
