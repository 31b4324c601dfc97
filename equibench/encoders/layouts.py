"""The names under which public releases keep their weights, and the steps that turn them into a network's own.

A rule applies to a name only if its result is a name that the network has, so it does no harm where it is not meant.
What timm reads by itself is left to timm: its filter of the architecture is run on the names, as for its own downloads.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from equibench.errors import UserError

State = Mapping[str, Tensor]
Names = dict[str, Tensor]

WRAPPERS = (
    "module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_fpw_module",
)  # fmt: skip
"""Names that DataParallel, torch.compile, Lightning Fabric, FSDP and activation checkpointing put anywhere in a key."""
_INNER = ("model", "backbone", "encoder", "network", "net", "trunk", "base_model", "body", "features_extractor")
"""Names of a container that may stand in the middle of a key, too."""


class Rule(NamedTuple):
    """One name of a published layout: `pattern` matches the whole beginning of a name, `text` takes its place.

    In `text`, <\\1+1> is a group's number plus one.
    """

    pattern: str
    text: str
    source: str


_HF, _MM, _OPEN, _TV = (
    "transformers",
    "mmpretrain, mmsegmentation",
    "open_clip, OpenAI CLIP",
    "torchvision, older files",
)
_BLOCK, _HF_BLOCK = r"(?:layers|blocks)\.(\d+)\.", r"(?:encoder\.)?layers?\.(\d+)\."
_STAGE = r"encoder\.stages\.(\d+)\.layers\.(\d+)\."
_SWIN = r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."
RULES = tuple(
    Rule(*row)
    for row in (
        (r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2.", _TV),
        (r"(.*)\.mlp\.linear_1\.", r"\1.mlp.0.", _TV),
        (r"(.*)\.mlp\.linear_2\.", r"\1.mlp.3.", _TV),
        (r"(.*)gamma_(\d)$", r"\1ls\2.gamma", "DeiT III"),
        (r"blocks\.\d+\.(\d+)\.", r"blocks.\1.", "DINOv2, iBOT with FSDP: blocks in chunks"),
        # lightly and others: nn.Sequential(*resnet.children())
        (r"0\.(weight)$", r"conv1.\1", "nn.Sequential of a ResNet's children"),
        (r"1\.(weight|bias|running_mean|running_var|num_batches_tracked)$", r"bn1.\1", "nn.Sequential of children"),
        (r"([4-7])\.(\d+)\.", r"layer<\1-3>.\2.", "nn.Sequential of a ResNet's children"),
        # ViT, DeiT, DINO, MAE, MSN
        (r"embeddings\.(?:cls_token|class_embedding)$", "cls_token", _HF),
        (r"embeddings\.distillation_token$", "dist_token", _HF),
        (r"embeddings\.register_tokens$", "reg_token", _HF),
        (r"embeddings\.(?:position_embeddings|position_embedding\.weight)$", "pos_embed", _HF),
        (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj.", _HF),
        (r"embeddings\.patch_embedding\.", "patch_embed.proj.", _HF + " CLIP"),
        (rf"{_HF_BLOCK}attention\.attention\.(q|k|v)(?:uery|ey|alue)\.", r"blocks.\1.attn.\2.", _HF),
        (rf"{_HF_BLOCK}self_attn\.(q|k|v)_proj\.", r"blocks.\1.attn.\2.", _HF + " CLIP"),
        (rf"{_HF_BLOCK}self_attn\.out_proj\.", r"blocks.\1.attn.proj.", _HF + " CLIP"),
        (rf"{_HF_BLOCK}attention\.output\.dense\.", r"blocks.\1.attn.proj.", _HF),
        (rf"{_HF_BLOCK}intermediate\.dense\.", r"blocks.\1.mlp.fc1.", _HF),
        (rf"{_HF_BLOCK}output\.dense\.", r"blocks.\1.mlp.fc2.", _HF),
        (rf"{_HF_BLOCK}mlp\.fc(\d)\.", r"blocks.\1.mlp.fc\2.", _HF + " DINOv2, CLIP"),
        (rf"{_HF_BLOCK}(?:layernorm_before|norm1|layer_norm1)\.", r"blocks.\1.norm1.", _HF),
        (rf"{_HF_BLOCK}(?:layernorm_after|norm2|layer_norm2)\.", r"blocks.\1.norm2.", _HF),
        (rf"{_HF_BLOCK}layer_scale(\d)\.lambda1$", r"blocks.\1.ls\2.gamma", _HF + " DINOv2"),
        (r"(?:layernorm|post_layernorm)\.", "norm.", _HF),
        (r"pre_layrnorm\.", "norm_pre.", _HF + " CLIP"),
        # Swin
        (r"embeddings\.norm\.", "patch_embed.norm.", _HF + " Swin"),
        (rf"{_SWIN}attention\.self\.(q|k|v)(?:uery|ey|alue)\.", r"layers.\1.blocks.\2.attn.\3.", _HF + " Swin"),
        (rf"{_SWIN}attention\.self\.relative_", r"layers.\1.blocks.\2.attn.relative_", _HF + " Swin"),
        (rf"{_SWIN}attention\.output\.dense\.", r"layers.\1.blocks.\2.attn.proj.", _HF + " Swin"),
        (rf"{_SWIN}intermediate\.dense\.", r"layers.\1.blocks.\2.mlp.fc1.", _HF + " Swin"),
        (rf"{_SWIN}output\.dense\.", r"layers.\1.blocks.\2.mlp.fc2.", _HF + " Swin"),
        (rf"{_SWIN}layernorm_before\.", r"layers.\1.blocks.\2.norm1.", _HF + " Swin"),
        (rf"{_SWIN}layernorm_after\.", r"layers.\1.blocks.\2.norm2.", _HF + " Swin"),
        (r"encoder\.layers\.(\d+)\.downsample\.", r"layers.<\1+1>.downsample.", _HF + " Swin"),
        # ConvNeXt
        (r"embeddings\.patch_embeddings\.", "stem.0.", _HF + " ConvNeXt"),
        (r"embeddings\.layernorm\.", "stem.1.", _HF + " ConvNeXt"),
        (r"encoder\.stages\.(\d+)\.downsampling_layer\.", r"stages.\1.downsample.", _HF + " ConvNeXt"),
        (rf"{_STAGE}dwconv\.", r"stages.\1.blocks.\2.conv_dw.", _HF + " ConvNeXt"),
        (rf"{_STAGE}layernorm\.", r"stages.\1.blocks.\2.norm.", _HF + " ConvNeXt"),
        (rf"{_STAGE}pwconv(\d)\.", r"stages.\1.blocks.\2.mlp.fc\3.", _HF + " ConvNeXt"),
        (rf"{_STAGE}layer_scale_parameter$", r"stages.\1.blocks.\2.gamma", _HF + " ConvNeXt"),
        (rf"{_STAGE}grn\.weight$", r"stages.\1.blocks.\2.mlp.grn.weight", _HF + " ConvNeXt V2"),
        (rf"{_STAGE}grn\.bias$", r"stages.\1.blocks.\2.mlp.grn.bias", _HF + " ConvNeXt V2"),
        (r"layernorm\.", "head.norm.", _HF + " ConvNeXt"),
        # ResNet
        (r"embedder\.embedder\.convolution\.", "conv1.", _HF + " ResNet"),
        (r"embedder\.embedder\.normalization\.", "bn1.", _HF + " ResNet"),
        (rf"{_STAGE}layer\.(\d+)\.convolution\.", r"layer<\1+1>.\2.conv<\3+1>.", _HF + " ResNet"),
        (rf"{_STAGE}layer\.(\d+)\.normalization\.", r"layer<\1+1>.\2.bn<\3+1>.", _HF + " ResNet"),
        (rf"{_STAGE}shortcut\.convolution\.", r"layer<\1+1>.\2.downsample.0.", _HF + " ResNet"),
        (rf"{_STAGE}shortcut\.normalization\.", r"layer<\1+1>.\2.downsample.1.", _HF + " ResNet"),
        # OpenMMLab's ViT
        (r"patch_embed\.projection\.", "patch_embed.proj.", _MM),
        (rf"{_BLOCK}ln(\d)\.", r"blocks.\1.norm\2.", _MM),
        (rf"{_BLOCK}norm(\d)\.", r"blocks.\1.norm\2.", _MM),
        (rf"{_BLOCK}attn\.(qkv|proj)\.", r"blocks.\1.attn.\2.", _MM),
        (rf"{_BLOCK}attn\.attn\.in_proj_", r"blocks.\1.attn.qkv.", _MM),
        (rf"{_BLOCK}attn\.attn\.out_proj\.", r"blocks.\1.attn.proj.", _MM),
        (rf"{_BLOCK}ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1.", _MM),
        (rf"{_BLOCK}ffn\.layers\.1\.", r"blocks.\1.mlp.fc2.", _MM),
        (rf"{_BLOCK}gamma(\d)\.weight$", r"blocks.\1.ls\2.gamma", _MM),
        (r"(?:ln1|norm1)\.", "norm.", _MM),
        (r"pre_norm\.", "norm_pre.", _MM),
        # a CLIP tower on its own, without the prefix by which timm knows it
        (r"conv1\.(weight)$", r"patch_embed.proj.\1", _OPEN),
        (r"class_embedding$", "cls_token", _OPEN),
        (r"positional_embedding$", "pos_embed", _OPEN),
        (r"ln_pre\.", "norm_pre.", _OPEN),
        (r"ln_post\.", "norm.", _OPEN),
        (r"transformer\.resblocks\.(\d+)\.ln_(\d)\.", r"blocks.\1.norm\2.", _OPEN),
        (r"transformer\.resblocks\.(\d+)\.attn\.in_proj_", r"blocks.\1.attn.qkv.", _OPEN),
        (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.", r"blocks.\1.attn.proj.", _OPEN),
        (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"blocks.\1.mlp.fc1.", _OPEN),
        (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"blocks.\1.mlp.fc2.", _OPEN),
    )
)
"""Own rules, only for what no library reads: tried in this order, the first whose result the network has counts."""
_COMPILED = [(re.compile(rule.pattern), rule.text) for rule in RULES]

EXTRAS: tuple[tuple[str, str], ...] = (
    (r"(.*\.)?(mask_token|masked_embed|mask_embedding|mask_emb)(\.weight)?", "mask token"),
    (r"(.*_)?decoder(s|_\w+)?(\..*)?", "decoder"),
    (r"(.*[._])?(projectors?|projection(_\w+)?|proj_head|predictors?|prediction_head|contrastive_head|necks?|mlp_head)"
     r"(\..*)?", "projection or prediction head"),
    (r"(proj|projs|embed_proj|visual_proj\w*|text_proj\w*)(\..*)?", "projection head"),
    (r"((dino|ibot|koleo|ssl|momentum|online|teacher|student|cls|lm|rot|aux|pred|moco|moby)_?)?heads?(_\w+)?(\..*)?",
     "head"),
    (r"(.*_)?(classifiers?|linear_classifier|linear|fc|logits|probe)(\..*)?", "classifier"),
    (r"(.*\.)?(prototypes?|prototype\w*|queue\w*|memory_?bank\w*|centers?|centroids?|bank)(\..*)?",
     "prototypes, queue or memory"),
    (r"(.*\.)?(logit_scale|logit_bias|temperature|temp|teacher_temp\w*|sigma|log_sigma|momentum|tau)", "temperature"),
    (r"(.*[._])?(loss|losses|criterion|dino_loss|ibot_loss|metrics?)(_\w+)?(\..*)?", "loss"),
    (r"pooler\..*", "pooler, which is no part of the features"),
    (r"(.*\.)?(total_ops|total_params)", "profiler's counters"),
    (r"(.*\.)?(attn_mask|relative_position_index|relative_coords_table)", "buffers that are computed again"),
    (r"(.*\.)?(pixel_(mean|std)|data_preprocessor\.\w+|normali[sz]er?\..*|image_(mean|std)|mean|std)",
     "pixel normalisation of its own: see --mean and --std"),
    (r"(.*\.)?(optimizers?|optimizer_\w+|lr_schedulers?|scaler|ema_decay|n_averaged)(\..*)?", "training state"),
)  # fmt: skip
"""What pretraining leaves beside an encoder: (pattern of a whole name, what it is). It is left out and said so."""
_EXTRAS = [(re.compile(pattern), what) for pattern, what in EXTRAS]

FORWARD: tuple[tuple[str, str, str], ...] = (
    (r"reg_token|register_tokens|storage_tokens", "register tokens", "reg_tokens={count}"),
    (r"fc_norm\.(weight|bias)", "a norm behind average pooling, as fine-tuned MAE and BEiT have", "global_pool=avg"),
    (r"blocks\.\d+\.(ls\d\.gamma|gamma_\d|layer_scale\d\..*)", "layer scale", "init_values=1e-5"),
    (r"blocks\.\d+\.attn\.[qk]_norm\..*", "norms of queries and keys", "qk_norm=True"),
    (r"(norm_pre|ln_pre)\..*", "a norm before the blocks", "pre_norm=True"),
    (r"dist_token|head_dist\..*", "a distillation token", ""),
    (r"norm\.(weight|bias)", "a norm before pooling", ""),
    (r"blocks\.(\d+)\..*", "more blocks", "depth={blocks}"),
)
"""What changes the forward pass: (pattern of a whole left-over name, what it is, the option of timm's that has it)."""
_FORWARD = [(re.compile(pattern), what, option) for pattern, what, option in FORWARD]

UNREADABLE: tuple[tuple[str, str], ...] = (
    (r"(.*\.)?_?flat_param(_\d+)?", "FSDP's flattened parameters: gather a full state dict and save that"),
    (r".*\.lora_(A|B|embedding_[AB])(\..*)?", "low-rank adapters (LoRA): merge them into the weights and save those"),
    (r".*\.parametrizations\..*", "parametrised weights: torch.nn.utils.parametrize.remove_parametrizations first"),
    (r".*\.weight_(orig|mask)", "pruned weights: torch.nn.utils.prune.remove first"),
    (
        r".*\.(_packed_params.*|qweight|qzeros|weight_scale(_inv)?|SCB)",
        "quantised weights: give those of full precision",
    ),
)
"""Forms of weights that need a computation which belongs to their own library: (pattern, what they are)."""


def without_wrappers(state: State, own: State) -> tuple[Names, int]:
    """The names without `WRAPPERS` anywhere, and how many of them changed; as they were where two would be one."""
    strip = set(WRAPPERS) - {part for name in own for part in name.split(".")}
    short = {name: ".".join(part for part in name.split(".") if part not in strip) for name in state}
    if len(set(short.values())) < len(short):
        return dict(state), 0
    return {short[name]: tensor for name, tensor in state.items()}, sum(new != name for name, new in short.items())


def renamed(state: State, own: State) -> Names:
    """The names that the network has, where a rule leads to one; queries, keys and values are joined."""
    made: Names = {}
    for name, tensor in state.items():
        new = name if name in own else _by_rule(name, own)
        made[new if new not in made else name] = tensor
    return _class_position(_joined(made, own), own)


def timm_filter(module: nn.Module) -> Callable[[Names], Names] | None:
    """What timm does to the names and shapes of this architecture's published files; None where it does nothing."""
    function = getattr(sys.modules.get(type(module).__module__), "checkpoint_filter_fn", None)
    if function is None or not type(module).__module__.startswith("timm."):
        return None

    def run(state: Names) -> Names:
        try:
            with torch.no_grad(), _quiet():
                made = function(dict(state), module)
        except Exception:  # it is written for its own files, and raises all sorts on others
            return {}
        made = {name: value for name, value in made.items() if isinstance(value, Tensor)}
        for name, value in made.items():
            # a kernel of another patch size would be resampled: that is another network
            if name.endswith("patch_embed.proj.weight") and name in state and state[name].shape[2:] != value.shape[2:]:
                made[name] = state[name] if state[name].ndim == 4 else value
        return made

    return run


def extra(name: str) -> str:
    """What a left-over name is, if it is one that pretraining leaves beside an encoder; else ""."""
    return next((what for pattern, what in _EXTRAS if pattern.fullmatch(name)), "")


def changes_forward(names: State, own: State) -> list[tuple[str, str]]:
    """What left-over names say of the network that they belong to: (what it has, timm's option for it or "")."""
    found: dict[str, str] = {}
    for name, tensor in names.items():
        for pattern, what, option in _FORWARD:
            if match := pattern.fullmatch(name):
                count, blocks = tensor.shape[-2] if tensor.ndim > 1 else 1, 0
                if "{blocks}" in option:
                    if any(one.startswith(f"blocks.{match[1]}.") for one in own):
                        continue  # the network has the block, and not this part of it
                    blocks = max(_numbers(pattern, names)) + 1
                found.setdefault(what, option.format(count=count, blocks=blocks))
                break
    return list(found.items())


def unreadable(names: State) -> str:
    """Why these weights cannot be read, if they are in one of the forms of `UNREADABLE`; else ""."""
    return next((why for pattern, why in UNREADABLE if any(re.fullmatch(pattern, name) for name in names)), "")


def parse_rename(text: str | None) -> tuple[tuple[re.Pattern[str], str], ...]:
    """--rename's rules, 'regex=>text' separated by semicolons; a UserError if one is malformed."""
    rules = []
    for one in (text or "").split(";") if text else ():
        pattern, arrow, new = one.partition("=>")
        try:
            compiled = re.compile(pattern.strip())
            re.sub(compiled, new.strip(), "")
        except (re.error, IndexError) as error:
            problem = f"--rename {one!r} is no rule: {error}"
            raise UserError(problem, r"--rename '^encoder\.=>' or --rename 'blk(\d+)=>blocks.\1'") from error
        if not arrow:
            raise UserError(f"--rename {one!r} has no =>", r"--rename '^encoder\.=>' or --rename 'blk(\d+)=>blocks.\1'")
        rules.append((compiled, new.strip()))
    return tuple(rules)


def apply_rename(state: State, rules: tuple[tuple[re.Pattern[str], str], ...]) -> Names:
    """The names after the user's rules; one that becomes empty is left out. A UserError if two become one."""
    made: Names = {}
    for name, tensor in state.items():
        new = name
        for pattern, text in rules:
            try:
                new = pattern.sub(text, new)
            except (re.error, IndexError) as error:
                raise UserError(f"--rename {pattern.pattern}=>{text}: {error}", "count its groups again") from error
        if new in made:
            raise UserError(f"--rename gives {new!r} to two of the file's names, one is {name!r}", "make it narrower")
        if new:
            made[new] = tensor
    if not made:
        raise UserError("--rename leaves none of the file's names", "make its patterns narrower")
    return made


def _numbers(pattern: re.Pattern[str], names: State) -> Iterator[int]:
    return (int(match[1]) for name in names if (match := pattern.fullmatch(name)))


def _by_rule(name: str, own: State) -> str:
    for pattern, text in _COMPILED:
        if match := pattern.match(name):
            new = re.sub(r"<(\d+)([+-]\d+)>", lambda m: str(int(m[1]) + int(m[2])), match.expand(text))
            new += name[match.end() :]
            if new in own or (re.search(r"\.attn\.[qkv]\.", new) and re.sub(r"\.[qkv]\.", ".qkv.", new) in own):
                return new
    parts = name.split(".")
    if inner := [part for part in parts if part in _INNER]:
        short = [".".join(part for part in parts if part not in {one}) for one in inner]
        short.append(".".join(part for part in parts if part not in _INNER))
        return next((one for one in short if one in own), name)
    return name


def _joined(state: Names, own: State) -> Names:
    """Queries, keys and values that are kept apart, as the one matrix that the network has."""
    made = dict(state)
    for name in state:
        if (match := re.fullmatch(r"(.*\.attn\.)q\.(weight|bias)", name)) and name not in own:
            parts = [f"{match[1]}{part}.{match[2]}" for part in "qkv"]
            shapes = {state[part].shape for part in parts if part in state}
            if all(part in state for part in parts) and len(shapes) == 1:
                made[f"{match[1]}qkv.{match[2]}"] = torch.cat([made.pop(part) for part in parts])
    return made


def _class_position(state: Names, own: State) -> Names:
    """DINOv2 with registers: timm adds the class token's position to the token, and keeps those of the patches."""
    theirs, ours = state.get("pos_embed"), own.get("pos_embed")
    if "reg_token" not in own or theirs is None or ours is None or "cls_token" not in state or theirs.ndim != 3:
        return state
    if theirs.shape[1] != ours.shape[1] + 1:
        return state
    return state | {"cls_token": state["cls_token"] + theirs[:, :1], "pos_embed": theirs[:, 1:]}


@contextmanager
def _quiet() -> Iterator[None]:
    """timm's filters print what they resample; it stands in the notes."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
