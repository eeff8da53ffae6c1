"""What the documentation says to type can be typed, and what the contract's page lists is what a contract holds."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import click
import pytest

from pfld_edge.cli import COMMANDS, cli
from pfld_edge_runtime import Contract, CropRule, Fingerprint, LandmarkScheme

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
LINES = sorted(
    {
        (str(page.relative_to(ROOT)), line.removeprefix("$ pfld-edge ").partition("  #")[0].strip())
        for page in PAGES
        for line in page.read_text().replace("\\\n", " ").splitlines()
        if line.startswith("$ pfld-edge ")
    }
)


@pytest.mark.parametrize(("page", "line"), LINES, ids=[line[:40] for _, line in LINES])
def test_every_command_line_of_the_pages_is_understood(page: str, line: str) -> None:
    arguments = shlex.split(line)
    group: click.Group = cli
    context = click.Context(cli)
    command: click.Command | None = None
    while arguments and isinstance(group, click.Group):
        name = arguments.pop(0)
        command = group.get_command(context, name)
        assert command is not None, f"{page}: no command {name}"
        if not isinstance(command, click.Group):
            break
        group = command
    assert command is not None
    # Parsing alone: options must exist and have values of their type; nothing runs, files need not be there.
    command.make_parser(click.Context(command)).parse_args(arguments)


def test_all_commands_are_in_the_reference() -> None:
    assert set(COMMANDS) == set(cli.list_commands(click.Context(cli)))


def test_the_contract_page_lists_every_field() -> None:
    text = (ROOT / "docs/contract.md").read_text()
    named = set(re.findall(r"`(\w+)`", text))
    for part in (Contract, CropRule, LandmarkScheme, Fingerprint):
        missing = {item.name for item in fields(part)} - named
        assert not missing, f"{part.__name__}: {missing}"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        assert str(page.relative_to(ROOT / "docs")) in navigation


def test_no_help_is_taken_for_a_formula() -> None:
    """The page of commands shows what stands between two dollar signs, outside of code, as mathematics."""

    def helps(command: click.Command) -> list[str]:
        texts = [command.help or ""]
        if isinstance(command, click.Group):
            context = click.Context(command)
            children = [command.get_command(context, name) for name in command.list_commands(context)]
            texts += [text for child in children if child is not None for text in helps(child)]
        return texts

    for text in helps(cli):
        assert re.sub(r"`[^`]*`", "", text).count("$") < 2, text
