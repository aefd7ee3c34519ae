"""Parsers of options: errors in one line, flags that need no value, choices written in one word."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from inspect import signature
from typing import Any, NoReturn

import docstring_parser
import yaml
from jsonargparse import ArgumentError, ArgumentParser

from ersde_lit.cli import fail
from ersde_lit.errors import UserError
from ersde_lit.renamed import hint

Given = str | Mapping[str, Any]
# Lines of jsonargparse's messages that tell its types to programmers.
INTERNAL = ("Does not validate", "Subtypes:", "Errors:", "Given value type:", "- Expected a <class 'NoneType'>")
COLONS = "noise_scale"  # the option whose values have colons of their own, as in eta:NAME:S
FLAGS = ("relative", "paper", "add_mean")  # end such a value


def one_line(message: str) -> str:
    """Shortens a message of jsonargparse to one line for users."""
    lines = [line.strip() for line in message.splitlines()]
    first, *rest = [line.removeprefix("- ") for line in lines if not line.startswith(INTERNAL)]
    text = f"{first} {'; '.join(rest)}".replace('Parser key "', "--").replace('":', ":").replace("typing.Literal", "")
    return text.strip() + hint(text)


class Parser(ArgumentParser):
    """Parser of a command that reports errors in one line.

    Args:
        groups: dataclasses of options, which a YAML file (--config) may give too. An option of two groups is described
            by the first.
        skip: options of the groups that the command does not have.
    """

    def __init__(self, command: str, description: str, *groups: Any, skip: Sequence[str] = ()) -> None:
        name = f"python -m ersde_lit {command}"
        super().__init__(prog=name, usage=f"{name} [options]", description=description)
        self.command, self.dataclasses = command, groups
        self.arguments: Sequence[str] = ()  # that are read
        if groups:
            self.add_argument("--config", action="config", help="YAML file of options")
        for group in groups:
            self.add_options(group, skip)
            skip = [*skip, *(field.name for field in fields(group))]

    def parse_args(self, args: Any = None, *others: Any, **how: Any) -> Any:
        self.arguments = args
        return super().parse_args(args, *others, **how)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise SystemExit(fail(f"{self.command}: {self._misspelt() or one_line(message)}"))

    def _misspelt(self) -> str | None:
        """Line about the first option that there is not, or that is short for several; None without one."""
        known = [option for option in self._option_string_actions if option.startswith("--")]
        for argument in self.arguments:
            name = argument.partition("=")[0]
            if not name.startswith("--") or name in known or sum(option.startswith(name) for option in known) == 1:
                continue
            if near := get_close_matches(name, known, 1, 0.75):
                return f"there is no {name}; did you mean {near[0]}?"
        return None

    def add_options(self, of: Callable[..., Any], skip: Sequence[str] = ()) -> None:
        """Adds the fields of a dataclass, or the parameters of a function with its positional ones as such."""
        flags = [name for name, kind in of.__annotations__.items() if kind is bool and name not in skip]
        docstring = docstring_parser.parse(of.__doc__ or "")
        texts = {one.arg_name: one.description for one in docstring.params}
        group: Any = self
        if isinstance(of, type):
            group = self.add_argument_group(str(docstring.short_description).rstrip("."))
            group.add_class_arguments(of, skip={*flags, *skip}, as_group=False)
        else:
            given = [p for p in signature(of).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
            maybe = [p for p in given if p.default is not p.empty]
            for parameter in maybe:
                self.add_argument(parameter.name, nargs="?", type=parameter.annotation, help=texts[parameter.name])
            self.add_function_arguments(of, skip={*flags, *skip, *(p.name for p in maybe)}, as_positional=True)
            self.usage = " ".join([self.prog, *(p.name.upper() for p in given), "[options]"])
        for flag in flags:
            group.add_argument(f"--{flag}", action="store_true", help=texts[flag])

    def read(self, arguments: Sequence[str]) -> tuple[dict[str, Any], list[Any]]:
        """Parses all options by name, and makes each group from its fields."""
        options = self.parse_args([*arguments]).as_dict()
        named = [(of, [field.name for field in fields(of) if field.name in options]) for of in self.dataclasses]
        return options, [of(**{name: options[name] for name in names}) for of, names in named]


def split(text: str | int | list[Any]) -> list[str]:
    """Splits "a,b,c", or a list of such, into its entries, without empty ones."""
    parts = text if isinstance(text, list) else [text]
    return [entry.strip() for part in parts for entry in str(part).split(",") if entry.strip()]


def read_inline(option: str, text: str) -> tuple[str, dict[str, Any]]:
    """Parses "NAME:option=value:flag" into name and options; values are YAML."""
    name, *parts = text.split(":")
    options: dict[str, Any] = {}
    last = ""
    for part in parts:
        key, given, value = (word.strip() for word in part.partition("="))
        if not given and last == COLONS and key not in FLAGS:
            options[last] = f"{options[last]}:{part}"
            continue
        try:
            options[key] = yaml.safe_load(value) if given else True
        except yaml.YAMLError:
            raise UserError(f"--{option} {text}: {value!r} is no value") from None
        last = key
    if not name.strip() or "" in options:
        raise UserError(f"--{option} {text!r}: write it as in NAME or NAME:option=value:option=value")
    return name.strip(), options


def make(option: str, kind: Any, choice: Given) -> tuple[Any, dict[str, Any]]:
    """Makes an object of a kind, and describes it in full as plain data.

    Args:
        option: its name on the command line.
        choice: "package.Class:argument=value", or {class_path, init_args}; importing a class runs its module's code.
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
        raise UserError(f"--{option} {choice.get('class_path', '')}: {one_line(str(error))}") from None


def options_of(option: str, group: Any, choice: Mapping[str, Any], skip: Sequence[str] = ()) -> Any:
    """Makes the dataclass `group` from these fields, checked by type; those in `skip` may not be given."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(group, skip={*skip})
    try:
        return group(**parser.parse_object(dict(choice)).as_dict())
    except ArgumentError as error:
        raise UserError(f"--{option}: {one_line(str(error))}") from None


def merged_options(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options of both, those of `other` where both have one; beside options a text is their class_path."""
    merged = dict(one)
    for name, value in other.items():
        before = merged.get(name)
        if isinstance(before, str) and isinstance(value, Mapping):
            before = {"class_path": before}
        elif isinstance(before, Mapping) and "class_path" in before and isinstance(value, str):
            value = {"class_path": value}
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = merged_options(before, value)
        merged[name] = value
    return merged


def with_arguments(options: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Nested options, updated by those of the command line, whose values stay texts."""
    merged = dict(options)
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument.startswith("--"):
            key, given, text = argument[2:].partition("=")
            value: Any = text if given else following
            for name in reversed(key.split(".")):
                value = {name.removesuffix("+"): value}
            merged = merged_options(merged, value)
    return merged
