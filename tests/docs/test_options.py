"""Every command and option of `fastglow` that a Markdown file names exists."""

import re
import shlex

import click
import pytest

from bench.voice.command import command as bench_voice
from fastglow.cli import cli

from .markdown import FILES, blocks, code_spans, name_of

_OPTION = re.compile(r"(?<![\w-])--?[a-zA-Z][\w-]*")
# Options of other programs that the pages name: pytest's, pip's, this project's benchmarks', mkdir's and the like.
OTHERS = {"--benchmark-disable", "--peer-dle", "--rounds", "--busy", "--limit", "--backend"}


def commands(group: click.Group, context: click.Context, prefix: str = "") -> dict[str, set[str]]:
    """The options of every command, by its words: `train tacotron2`."""
    found = {prefix: options_of(group, context)}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        words = f"{prefix} {name}".strip()
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            found |= commands(command, inner, words)
        else:
            found[words] = options_of(command, inner)
    return found


def options_of(command: click.Command, context: click.Context) -> set[str]:
    return {name for option in command.get_params(context) for name in (*option.opts, *option.secondary_opts)}


COMMANDS = commands(cli, click.Context(cli, info_name="fastglow", help_option_names=["-h", "--help"]))
EVERY_OPTION = set().union(*COMMANDS.values(), options_of(bench_voice, click.Context(bench_voice)))


def unknown(words: list[str]) -> list[str]:
    """What a call of `fastglow` names and no such command has."""
    name, words = "", words[1:]
    while words and f"{name} {words[0]}".strip() in COMMANDS:
        name = f"{name} {words.pop(0)}".strip()
    if not name and words and not words[0].startswith("-") and words[0] != "COMMAND":
        return [words[0]]
    known = set().union(*(options for command, options in COMMANDS.items() if command.startswith(name)))
    options = {word.partition("=")[0] for word in words}
    return sorted(option for option in options - known if _OPTION.fullmatch(option))


def calls(text: str) -> list[list[str]]:
    """The words of every call of `fastglow` in a shell script."""
    found: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        parts: list[list[str]] = [[]]
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        for word in lexer if "fastglow " in line else ():
            if set(word) <= set("|&;"):
                parts.append([])
            else:
                parts[-1].append(word)
        found += [part for part in parts if part[:1] == ["fastglow"]]
    return found


def test_the_command_line_is_seen():
    assert {"synth", "inspect", "convert", "prepare", "train tacotron2", "train waveglow"} <= set(COMMANDS)
    assert {"plot", "export-voice"} <= set(COMMANDS)
    assert "--wn-channels" in COMMANDS["train waveglow"]
    assert calls("echo a | fastglow synth -o 'x | y' --dtype=float16  # no --comment\n") == [
        ["fastglow", "synth", "-o", "x | y", "--dtype=float16"]
    ]
    assert unknown(["fastglow", "synth", "-o", "x.wav", "--nonsense", "-z"]) == ["--nonsense", "-z"]
    assert unknown(["fastglow", "nonsense"]) == ["nonsense"]
    assert unknown(["fastglow", "train", "--resume", "--plot"]) == ["--plot"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_commands_and_options_exist(path):
    missing = []
    for block in blocks(path):
        for words in calls(block.text) if block.language == "sh" else ():
            missing += unknown(words)
    for span in code_spans(path):
        if span.startswith("fastglow "):
            missing += unknown(span.split())
        elif span.startswith("--"):
            missing += set(_OPTION.findall(span)) - EVERY_OPTION - OTHERS
    assert missing == []
