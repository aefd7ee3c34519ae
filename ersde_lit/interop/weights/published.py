"""Table of published networks with their numbers of parameters, against which imports are checked."""

from typing import Any, NamedTuple

from ersde_lit.networks import DhariwalUNet, EDM2UNet, Network, SongUNet

LEARNED_SIGMA = {192: 5_187, 256: 6_915}  # parameters of guided-diffusion's variances, by channels c: 3 (9 c + 1)


class Published(NamedTuple):
    """A network by those of its constructor's arguments that change its size."""

    name: str
    cls: type[Network]
    arguments: dict[str, Any]
    parameters: int


def _song(name: str, parameters: int, *, size: int, classes: int = 0, ncsnpp: bool = False) -> Published:
    arguments = {
        "img_resolution": size,
        "in_channels": 3,
        "label_dim": classes,
        "augment_dim": 9,
        "model_channels": 128,
        "channel_mult": [2, 2, 2] if size == 32 else [1, 2, 2, 2],
        "channel_mult_emb": 4,
        "num_blocks": 4,
        "attn_resolutions": [16],
        "embedding_type": "fourier" if ncsnpp else "positional",
        "channel_mult_noise": 2 if ncsnpp else 1,
        "encoder_type": "residual" if ncsnpp else "standard",
        "decoder_type": "standard",
    }
    return Published(name, SongUNet, arguments, parameters)


def _adm(name: str, parameters: int, size: int, classes: int, width: int, mult: list[int], blocks: int) -> Published:
    arguments = {
        "img_resolution": size,
        "in_channels": 3,
        "label_dim": classes,
        "augment_dim": 0,
        "model_channels": width,
        "channel_mult": mult,
        "channel_mult_emb": 4,
        "num_blocks": blocks,
        "attn_resolutions": [32, 16, 8],
    }
    return Published(name, DhariwalUNet, arguments, parameters)


def _edm2(name: str, parameters: int, width: int, *, latents: bool = False, classes: int = 1000) -> Published:
    """EDM2's table counts the uncertainty's 128 parameters too."""
    arguments = {
        "img_resolution": 64,
        "img_channels": 4 if latents else 3,
        "label_dim": classes,
        "model_channels": width,
        "channel_mult": [1, 2, 3, 4],
        "channel_mult_noise": None,
        "channel_mult_emb": None,
        "num_blocks": 3,
        "attn_resolutions": [16, 8],
    }
    return Published(name, EDM2UNet, arguments, parameters - 128)


PUBLISHED = (
    _song("CIFAR-10, DDPM++", 55_735_299, size=32, classes=10),
    _song("CIFAR-10, DDPM++", 55_733_891, size=32),
    _song("CIFAR-10, NCSN++", 56_400_643, size=32, classes=10, ncsnpp=True),
    _song("CIFAR-10, NCSN++", 56_397_827, size=32, ncsnpp=True),
    _song("FFHQ-64, DDPM++", 61_805_571, size=64),
    _song("FFHQ-64, NCSN++", 62_761_091, size=64, ncsnpp=True),
    _adm("ImageNet-64, ADM", 295_899_267, 64, 1000, 192, [1, 2, 3, 4], 3),
    _adm("ImageNet-128, ADM", 421_529_606 - LEARNED_SIGMA[256], 128, 1000, 256, [1, 1, 2, 3, 4], 2),
    _adm("ImageNet-256, ADM", 553_838_086 - LEARNED_SIGMA[256], 256, 1000, 256, [1, 1, 2, 2, 4, 4], 2),
    _edm2("ImageNet-64, EDM2 XS", 124_710_949, 128),
    _edm2("ImageNet-64, EDM2 S", 280_209_381, 192),
    _edm2("ImageNet-64, EDM2 M", 497_803_173, 256),
    _edm2("ImageNet-64, EDM2 L", 777_492_325, 320),
    _edm2("ImageNet-64, EDM2 XL", 1_119_276_837, 384),
    _edm2("ImageNet-512, EDM2 XS", 124_713_253, 128, latents=True),
    _edm2("ImageNet-512, EDM2 XS", 124_201_253, 128, latents=True, classes=0),
    _edm2("ImageNet-512, EDM2 S", 280_212_837, 192, latents=True),
    _edm2("ImageNet-512, EDM2 S", 279_444_837, 192, latents=True, classes=0),
    _edm2("ImageNet-512, EDM2 M", 497_807_781, 256, latents=True),
    _edm2("ImageNet-512, EDM2 L", 777_498_085, 320, latents=True),
    _edm2("ImageNet-512, EDM2 XL", 1_119_283_749, 384, latents=True),
    _edm2("ImageNet-512, EDM2 XXL", 1_523_164_773, 448, latents=True),
)


def published(network: Network) -> Published | None:
    """The published network with the architecture of this one, whose spec holds all arguments."""
    given = network.spec["init_args"].items()
    own = {name: list(value) if isinstance(value, tuple) else value for name, value in given}
    for one in PUBLISHED:
        if type(network) is one.cls and all(own[name] == value for name, value in one.arguments.items()):
            return one
    return None
