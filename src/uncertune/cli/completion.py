"""``uncertune completion``: a script that completes commands, options and their values in a shell."""

from __future__ import annotations

from dataclasses import dataclass

from uncertune.cli.options import Command
from uncertune.settings import option

SHELLS = ("bash", "zsh")
EVERYWHERE = ("--help", "--config", "--quiet", "--log_level", "--debug")


@dataclass(frozen=True, kw_only=True)
class CompletionOptions:
    """Options of ``uncertune completion``."""

    shell: str = option(help="the shell to complete in", choices=SHELLS, positional=True, example="bash")


def script(shell: str) -> str:
    """The script, for ``eval`` or a file that the shell reads at its start."""
    from uncertune.cli.main import COMMANDS, command_of
    from uncertune.cli.recipes import names
    from uncertune.cli.terminal import LEVELS

    flags, values = [], []
    for name in COMMANDS:
        specs = command_of(name).specs.values()
        words = [f"--{one.name}" for one in specs if not one.positional] + list(EVERYWHERE)
        flags.append(f'    {name}) _uncertune_words "{" ".join(words)}" ;;')
        for one in specs:
            if one.choices:
                before = name if one.positional else f"--{one.name}"
                values.append(f'    "{name} {before}") _uncertune_words "{" ".join(map(str, one.choices))}"; return ;;')
    lines = [
        *(["autoload -Uz bashcompinit && bashcompinit"] if shell == "zsh" else []),
        '_uncertune_words() { COMPREPLY=($(compgen -W "$1" -- "${COMP_WORDS[COMP_CWORD]}")); }',
        "_uncertune() {",
        "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}",
        f'  if [ "$COMP_CWORD" -eq 1 ]; then _uncertune_words "{" ".join(COMMANDS)}"; return; fi',
        '  case "${COMP_WORDS[1]} $before" in',
        *values,
        f'    *" --log_level") _uncertune_words "{" ".join(LEVELS)}"; return ;;',
        '    *" --config") COMPREPLY=($(compgen -f -- "$word") $(compgen -W '
        f'"{" ".join(names())}" -- "$word")); return ;;',
        "  esac",
        '  case "$word" in -*) ;; *) COMPREPLY=($(compgen -f -- "$word")); return ;; esac',
        '  case "${COMP_WORDS[1]}" in',
        *flags,
        "  esac",
        "}",
        "complete -o filenames -F _uncertune uncertune",
    ]
    return "\n".join(lines)


def call(given: CompletionOptions) -> None:
    """Print the script."""
    print(script(given.shell))


COMMAND = Command(
    "completion",
    "print a script that completes commands, options and values in bash or zsh",
    CompletionOptions,
    call,
    "Print a script that completes commands, options and their values. In bash or zsh, add to the file that the shell "
    'reads at its start: eval "$(uncertune completion bash)", or zsh.',
)
