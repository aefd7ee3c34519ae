"""Names of published networks, which are told by their class, resolution and number of parameters."""

from ersde_lit.networks import DhariwalUNet, EDM2UNet, Network, SongUNet

# Without what the published numbers count beside the network: guided-diffusion's variances, EDM2's 128 of uncertainty.
PUBLISHED: dict[tuple[type[Network], int, int], str] = {
    (SongUNet, 32, 55_735_299): "CIFAR-10, DDPM++",
    (SongUNet, 32, 55_733_891): "CIFAR-10, DDPM++",
    (SongUNet, 32, 56_400_643): "CIFAR-10, NCSN++",
    (SongUNet, 32, 56_397_827): "CIFAR-10, NCSN++",
    (SongUNet, 64, 61_805_571): "FFHQ-64, DDPM++",
    (SongUNet, 64, 62_761_091): "FFHQ-64, NCSN++",
    (DhariwalUNet, 64, 295_899_267): "ImageNet-64, ADM",
    (DhariwalUNet, 128, 421_522_691): "ImageNet-128, ADM",
    (DhariwalUNet, 256, 553_831_171): "ImageNet-256, ADM",
    (EDM2UNet, 64, 124_710_821): "ImageNet-64, EDM2 XS",
    (EDM2UNet, 64, 280_209_253): "ImageNet-64, EDM2 S",
    (EDM2UNet, 64, 497_803_045): "ImageNet-64, EDM2 M",
    (EDM2UNet, 64, 777_492_197): "ImageNet-64, EDM2 L",
    (EDM2UNet, 64, 1_119_276_709): "ImageNet-64, EDM2 XL",
    (EDM2UNet, 64, 124_713_125): "ImageNet-512, EDM2 XS",
    (EDM2UNet, 64, 124_201_125): "ImageNet-512, EDM2 XS",
    (EDM2UNet, 64, 280_212_709): "ImageNet-512, EDM2 S",
    (EDM2UNet, 64, 279_444_709): "ImageNet-512, EDM2 S",
    (EDM2UNet, 64, 497_807_653): "ImageNet-512, EDM2 M",
    (EDM2UNet, 64, 777_497_957): "ImageNet-512, EDM2 L",
    (EDM2UNet, 64, 1_119_283_621): "ImageNet-512, EDM2 XL",
    (EDM2UNet, 64, 1_523_164_645): "ImageNet-512, EDM2 XXL",
}


def published(network: Network, parameters: int) -> str | None:
    """Name of a network of so many parameters; None if it is none of the published ones."""
    return PUBLISHED.get((type(network), network.image_shape[1], parameters))
