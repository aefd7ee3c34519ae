"""Image shape and number of classes of the network, taken from the data where a configuration leaves them out."""

import json
import re
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from ersde_lit.cli.typos import find_class
from ersde_lit.data import ImageDataModule
from ersde_lit.errors import UserError

NUMBER_OF_CLASSES = ("num_classes", "label_dim")


def sizes_of_data(
    arguments: Sequence[str], files: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]
) -> list[str]:
    """Options that set image size and number of classes of the network to the data's, where nothing else sets them.

    Those that are `given` are of the command line and of its configuration files.
    """
    prefix = "model.init_args.network" if is_class(given.get("model")) else "model.network"
    network: Any = given
    for key in prefix.split("."):
        network = network.get(key) if isinstance(network, Mapping) else None
    path = network if isinstance(network, str) else network["class_path"] if is_class(network) else None
    kind = find_class(str(path)) or find_class(f"ersde_lit.networks.{path}")  # jsonargparse takes bare names too
    if kind is None:
        return []
    init_args = network.get("init_args") if isinstance(network, Mapping) else None
    set_already = {*network, *(init_args if isinstance(init_args, Mapping) else ())}
    missing = [name for name in signature(kind).parameters if name not in set_already]
    if not any(name in missing for name in ("image_shape", "img_resolution", "img_channels", *NUMBER_OF_CLASSES)):
        return []
    if (data := _data(arguments, files)) is None:
        return []
    channels, height, _ = data.image_shape
    sizes = {"image_shape": [*data.image_shape], "img_resolution": height, "img_channels": channels}
    sizes |= dict.fromkeys(NUMBER_OF_CLASSES, data.num_classes)
    return [f"--{prefix}.init_args.{name}={json.dumps(sizes[name])}" for name in missing if name in sizes]


def _data(arguments: Sequence[str], files: Mapping[str, Mapping[str, Any]]) -> ImageDataModule | None:
    """The data module of the command; None where its options are wrong, which the command's own parser will say.

    Of missing ones it would name those of the network, which come first and follow from the data.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data", required=True)
    options = [f"--data={json.dumps(content['data'])}" for content in files.values() if "data" in content]
    for k, argument in enumerate(arguments):
        if argument.startswith("--data") and "=" not in argument:
            options += arguments[k : k + 2]
        elif argument.startswith("--data"):
            options.append(argument)
    try:
        made: ImageDataModule = parser.instantiate(parser.parse_args(options)).data
        return made
    except (ArgumentError, ValueError, TypeError, OSError) as error:
        if isinstance(error.__cause__, UserError):  # the data's own
            raise error.__cause__ from None
        if missing := re.search("the following arguments are required: .*", str(error)):
            raise UserError(f"--data: {missing[0]}") from None
        return None


def is_class(value: Any) -> bool:
    """Whether options are of a class that they name."""
    return isinstance(value, str) or (isinstance(value, Mapping) and "class_path" in value)
