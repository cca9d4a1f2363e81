"""Our autoencoder as Diffusers' class."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from torch import Tensor, nn

from course import UserError
from course.export.names import rename
from course.models.autoencoder import Gaussian
from course.models.kl import KLDecoder, KLEncoder
from course.models.layers import ResBlock

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

_NAMES = (  # our names, as patterns -> theirs; all of them are tried in this order
    (r"^encoder\.quant\.", "quant_conv."),
    (r"^decoder\.post_quant\.", "post_quant_conv."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"\.down\.(\d+)\.\d+\.conv\.", r".down_blocks.\1.downsamplers.0.conv."),
    (r"\.up\.(\d+)\.\d+\.conv\.", r".up_blocks.\1.upsamplers.0.conv."),
    (r"\.(down|up)\.(\d+)\.(\d+)\.", r".\1_blocks.\2.resnets.\3."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.middle\.1\.attention\.to_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.middle\.1\.attention\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.shortcut\.", ".conv_shortcut."),
)


def autoencoder(model: nn.Module, scale: float, sample_size: int) -> AutoencoderKL:
    """A :func:`course.models.kl.kl_autoencoder` as Diffusers' AutoencoderKL, with equal results.

    Args:
        model: with the Gaussian bottleneck.
        scale: what codes are multiplied by before a denoiser sees them, 1 / (their standard deviation); above 0.
        sample_size: side in pixels of the pictures that it was trained on.

    Returns:
        In evaluation mode, with copies of the weights, in the model's type and on its device.

    Raises:
        UserError: another kind of model, or a scale that is not above 0.
    """
    if not 0 < scale < math.inf:
        raise UserError(f"scale must be above 0, not {scale}: it is 1 / (standard deviation of the codes)")
    parts = [type(getattr(model, part, None)) for part in ("encoder", "bottleneck", "decoder")]
    if parts != [KLEncoder, Gaussian, KLDecoder]:
        names = ", ".join(part.__name__ for part in parts)
        raise UserError(f"AutoencoderKL is a kl_autoencoder with a Gaussian bottleneck, not a model of {names}")

    from diffusers import AutoencoderKL

    levels = [[block for block in level if isinstance(block, ResBlock)] for level in model.encoder.down]
    theirs = AutoencoderKL(
        in_channels=model.encoder.conv_in.in_channels,
        out_channels=model.decoder.conv_out.out_channels,
        down_block_types=["DownEncoderBlock2D"] * len(levels),
        up_block_types=["UpDecoderBlock2D"] * len(levels),
        block_out_channels=[blocks[-1].conv2.out_channels for blocks in levels],
        layers_per_block=len(levels[0]),
        latent_channels=model.decoder.post_quant.in_channels,
        norm_num_groups=model.encoder.norm_out.num_groups,
        sample_size=sample_size,
        scaling_factor=scale,
    )
    copies = {name: tensor.clone() for name, tensor in renamed(model).items()}
    theirs.load_state_dict(copies, assign=True)  # their .to(dtype) warns, whatever the type
    return theirs.eval()


def renamed(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors under Diffusers' names."""
    tensors = rename(model.state_dict(), _NAMES)
    for key, value in list(tensors.items()):
        if re.search(r"\.to_[qkv]\.weight$", key):  # theirs have biases, ours have none
            tensors[key.replace("weight", "bias")] = value.new_zeros(len(value))
    return tensors
