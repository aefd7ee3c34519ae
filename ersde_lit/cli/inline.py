"""Choices written in one word, `NAME:option=value:option=value`, or as plain data in YAML; and objects made of them."""

import re
from collections.abc import Mapping
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from ersde_lit.errors import UserError

READABLE = {
    r"Expected a typing\.Literal\[(.*?)\]": r"expected one of \1",
    r"Type collections\.abc\.Callable\S*( typing\.Any\])? expects a function or a callable class: ": "",
    r"\. Got value: Namespace\(.*": "",
    r"\. Got value: ": ", got ",
}
Given = str | Mapping[str, Any]


def split(text: str | int | list[Any]) -> list[str]:
    """The entries of "a,b,c", or of a list of such, in order; empty ones left out."""
    parts = text if isinstance(text, list) else [text]
    return [entry.strip() for part in parts for entry in str(part).split(",") if entry.strip()]


def read_inline(option: str, text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of "NAME:option=value:flag"; values are read as YAML has them.

    Raises:
        ValueError: an option without a name, or a value that cannot be read.
    """
    name, *parts = text.split(":")
    options: dict[str, Any] = {}
    for part in parts:
        key, given, value = part.partition("=")
        try:
            options[key.strip()] = yaml.safe_load(value) if given else True
        except yaml.YAMLError:
            raise UserError(f"--{option} {text}: {value!r} is no value") from None
    if not name.strip() or "" in options:
        raise UserError(f"--{option} {text!r}: write it as in NAME or NAME:option=value:option=value")
    return name.strip(), options


def make(option: str, kind: Any, choice: Given) -> tuple[Any, dict[str, Any]]:
    """An object of this kind, and the choice in full, as plain data.

    Args:
        option: that it was given by.
        choice: "package.Class:argument=value", or {class_path, init_args}; importing a class runs its module's code.

    Raises:
        ValueError: no such class, not of this kind, or other arguments than it takes.
    """
    if isinstance(choice, str):
        name, arguments = read_inline(option, choice)
        choice = {"class_path": name, "init_args": arguments}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{option}", type=kind)
    try:
        config = parser.parse_object({option: dict(choice)})
        plain = yaml.safe_load(parser.dump(config))[option]
        return getattr(parser.instantiate(config), option), plain
    except ArgumentError as error:
        raise UserError(f"--{option} {choice.get('class_path', '')}: {_reason(error)}") from None


def options_of(option: str, group: Any, choice: Mapping[str, Any], skip: set[str]) -> Any:
    """The options `group`, a dataclass, with these of its fields given, each checked by its type.

    Raises:
        ValueError: an unknown field, or a value it does not take.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(group, skip=skip)
    try:
        return group(**parser.parse_object(dict(choice)).as_dict())
    except ArgumentError as error:
        raise UserError(f"--{option}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What matters of jsonargparse's account: the key, what was expected there, and what was given."""
    text = str(error)
    key = re.match(r'Parser key "(\S+)"', text)
    lines = [line.strip() for line in text.splitlines()]
    wrong = [line[2:] for line in lines if line.startswith("- ") and "NoneType" not in line]
    reason = " or ".join(wrong) or lines[-1]
    for pattern, words in READABLE.items():
        reason = re.sub(pattern, words, reason)
    given = [line.removeprefix("Given value: ") for line in lines if line.startswith("Given value: ")]
    named = f"{key[1]}: " if key and wrong else ""
    return named + reason + (f", got {given[-1]}" if given and wrong else "")
