"""DINOv2's vision transformers (Oquab et al. 2023), in whose features FD-DINOv2 is measured (Stein et al. 2023)."""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ersde_lit.errors import UserError
from ersde_lit.metrics.features import Features
from ersde_lit.metrics.weights_file import mismatch, read_state

FILE = "dinov2_vitl14_pretrain.pth"
URL = f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/{FILE}"
SIZE, PATCH = 224, 14
NAMES = {(384, 12): "ViT-S/14", (768, 12): "ViT-B/14", (1024, 24): "ViT-L/14"}  # by width and depth
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class DINOv2(Features):
    """Class token of ViT-L/14 after the last normalisation: 1024 features, which FD-DINOv2 is published in.

    Images of any size are resized to 224x224 as EDM2 does it (Karras et al. 2024); grey ones are repeated to three
    channels. Of ViT-S/14 and ViT-B/14 the weights are read too; their distances compare with no published ones.

    Args:
        weights: the file; None: `FILE` in torch.hub's folder of checkpoints.

    Raises:
        ValueError: no file, or one that does not hold these weights. It is never unpickled unsafely.
    """

    in_edm2_files = "fd_dinov2"
    batch_size = 16

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        path = Path(torch.hub.get_dir(), "checkpoints", FILE) if weights is None else Path(weights).expanduser()
        if weights is None and not path.is_file():
            raise UserError(f"DINOv2's weights are not at {path}: download {URL}, and give the file (--weights)")
        state, self.sha = read_state(path)
        token = state.get("cls_token", torch.zeros(1, 1, 1024))  # of another file, for the message below
        depth = len({match[1] for name in state if (match := re.match(r"blocks\.(\d+)\.", name))})
        self.num_features = token.shape[-1] if token.ndim else 1
        self.name = NAMES.get((self.num_features, depth), f"a transformer of width {self.num_features}, depth {depth}")
        with torch.device("meta"):  # nothing is drawn
            self.net = VisionTransformer(self.num_features, depth)
        try:
            self.net.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise mismatch(path, "DINOv2", error) from None
        self.float().eval().requires_grad_(False)

    @property
    def description(self) -> str:
        other = "" if self.name == "ViT-L/14" else ": compare with no published FD-DINOv2, which is of ViT-L/14"
        return f"DINOv2 {self.name} features, so FD-DINOv2 (weights {self.sha[:8]}){other}"

    @property
    def preprocessing(self) -> str:
        return f"uint8, bicubic to {SIZE}x{SIZE} (antialiased), ImageNet's mean and deviation"

    def forward(self, images: Tensor) -> Tensor:
        self.check_channels(images)
        x = F.interpolate(images.float(), (SIZE, SIZE), mode="bicubic", antialias=True) / 255
        mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        return self.net((x - mean) / std)


class VisionTransformer(nn.Module):
    """Preprocessed images [n, 3, 224, 224] to the normalised class token [n, width]; names are the published ones."""

    def __init__(self, width: int, depth: int, trained_side: int = 37) -> None:
        super().__init__()
        self.trained_side = trained_side  # patches along a side of the images it was trained on
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + trained_side**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of its training
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, PATCH)})
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        patches = rearrange(self.patch_embed["proj"](x), "n c h w -> n (h w) c")
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1) + self.positions(x.shape[-1] // PATCH)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 0])

    def positions(self, side: int) -> Tensor:
        """Embeddings of the positions of side x side patches, [1, 1 + side^2, width].

        Interpolated with the published scale factor, which is 0.1 patches larger than the ratio of the sides.
        """
        of_patches = rearrange(self.pos_embed[:, 1:], "1 (h w) c -> 1 c h w", h=self.trained_side)
        scale = (side + 0.1) / self.trained_side
        resized = F.interpolate(of_patches, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], rearrange(resized, "1 c h w -> 1 (h w) c")], dim=1)


class Block(nn.Module):
    """x + scaled attention, then x + scaled perceptron, each of the normalised x; heads of 64 channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": torch.ones(width)}) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.attn["qkv"](self.norm1(x)), "n t (qkv heads c) -> qkv n heads t c", qkv=3, c=64)
        attended = rearrange(F.scaled_dot_product_attention(q, k, v), "n heads t c -> n t (heads c)")
        x = x + self.ls1["gamma"] * self.attn["proj"](attended)
        return x + self.ls2["gamma"] * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
