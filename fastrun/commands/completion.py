"""Print what makes a shell complete commands, options and files."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

SHELLS = {
    "bash": 'eval "$(fastrun completion bash)" in ~/.bashrc',
    "zsh": 'eval "$(fastrun completion zsh)" in ~/.zshrc',
    "fish": "fastrun completion fish > ~/.config/fish/completions/fastrun.fish",
}
"""How each shell is told."""


def options(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=tuple(SHELLS))
    parser.epilog = "To switch it on: " + "; ".join(SHELLS.values()) + "."


def run(arguments: Namespace) -> int:
    """Print the shell's code, made by argcomplete."""
    from argcomplete.shell_integration import shellcode

    print(shellcode(["fastrun"], shell=arguments.shell))
    return 0
