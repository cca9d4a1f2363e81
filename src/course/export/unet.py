"""Our text-conditioned U-Net as Diffusers' class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from course import UserError
from course.export.names import rename
from course.models.unet import UNet

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

_BLOCK = r"(\.attentions\.\d+)\."
_NAMES = (  # our names, as patterns -> theirs; all of them are tried in this order
    (r"^time\.0\.", "time_embedding.linear_1."),
    (r"^time\.2\.", "time_embedding.linear_2."),
    (r"^norm_out\.", "conv_norm_out."),
    (r"^(down|up)\.(\d+)\.", r"\1_blocks.\2."),
    (r"^middle\.", "mid_block."),
    (r"^(down_blocks\.\d+)\.resize\.", r"\1.downsamplers.0.conv."),
    (r"^(up_blocks\.\d+)\.resize\.", r"\1.upsamplers.0."),
    (r"\.blocks\.(\d+)\.", r".resnets.\1."),
    (r"\.time\.", ".time_emb_proj."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (_BLOCK + r"conv_(in|out)\.", r"\1.proj_\2."),
    (_BLOCK + r"norm([123])\.", r"\1.transformer_blocks.0.norm\2."),
    (_BLOCK + r"self_attention\.", r"\1.transformer_blocks.0.attn1."),
    (_BLOCK + r"cross_attention\.", r"\1.transformer_blocks.0.attn2."),
    (r"\.(attn[12])\.to_out\.", r".\1.to_out.0."),
    (_BLOCK + r"feed\.to_gated\.", r"\1.transformer_blocks.0.ff.net.0.proj."),
    (_BLOCK + r"feed\.to_out\.", r"\1.transformer_blocks.0.ff.net.2."),
)


def unet(model: UNet, sample_size: int) -> UNet2DConditionModel:
    """A U-Net with context as Diffusers' UNet2DConditionModel, with equal results.

    Args:
        model: with ``context``, ``patch=1`` and the same number of groups in all its group norms.
        sample_size: height and width of the latents that it was trained on.

    Returns:
        In evaluation mode, with copies of the weights, in the model's type and on its device.

    Raises:
        UserError: another structure.
    """
    if not model.context or model.patch != 1:
        wrong = f"context={model.context} and patch={model.patch}"
        raise UserError(f"UNet2DConditionModel is a U-Net with context > 0 and patch=1, not with {wrong}")
    groups = {module.num_groups for module in model.modules() if isinstance(module, nn.GroupNorm)}
    if groups != {model.groups}:
        wanted = f"build the U-Net with widths that are multiples of 8 * groups, not {model.widths}"
        raise UserError(f"UNet2DConditionModel has {model.groups} groups in all its norms: {wanted}")

    from diffusers import UNet2DConditionModel

    attention = [level in model.attention for level in range(len(model.widths))]
    theirs = UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=model.channels,
        out_channels=model.out_channels,
        down_block_types=["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attention],
        up_block_types=["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)],
        block_out_channels=model.widths,
        layers_per_block=model.depth,
        norm_num_groups=model.groups,
        cross_attention_dim=model.context,
        attention_head_dim=model.heads,  # in spite of its name the number of heads, as in Stable Diffusion 1's own file
    )
    copies = {name: tensor.clone() for name, tensor in renamed(model).items()}
    theirs.load_state_dict(copies, assign=True)  # their .to(dtype) warns, whatever the type
    return theirs.eval()


def renamed(model: UNet) -> dict[str, Tensor]:
    """The model's tensors under Diffusers' names."""
    return rename(model.state_dict(), _NAMES)
