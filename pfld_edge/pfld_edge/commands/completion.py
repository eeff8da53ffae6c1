"""`pfld-edge completion`: lets a shell complete commands, options and files."""

import click

_VARIABLE = "_PFLD_EDGE_COMPLETE"
"""Where click looks for what the shell asks."""


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    r"""Print a script that lets SHELL complete what you type.

    \b
    bash: put `eval "$(pfld-edge completion bash)"` into ~/.bashrc
    zsh:  put `eval "$(pfld-edge completion zsh)"` into ~/.zshrc
    fish: `pfld-edge completion fish > ~/.config/fish/completions/pfld-edge.fish`
    """
    from click.shell_completion import get_completion_class

    root = ctx.find_root().command
    found = get_completion_class(shell)
    assert found is not None  # noqa: S101 - tells the type checker
    script = found(root, {}, "pfld-edge", _VARIABLE)
    # Not `script.source()`: of bash it asks the version of whatever bash is first in the path, which may be another.
    click.echo(script.source_template % script.source_vars())
