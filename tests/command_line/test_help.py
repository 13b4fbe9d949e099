"""The short help says only what is true, and completion offers what there is."""

import re
import shlex
import subprocess
from collections.abc import Sequence

import pytest

from hf_vitmae.cli import PARSERS, PROGRAM, VERBS, main
from hf_vitmae.command_line.flags import first_sentence, flags_of
from hf_vitmae.command_line.short_help import PAGES, WIDEST
from hf_vitmae.recipes import FINETUNE, PRETRAIN
from hf_vitmae.tasks.push import PushRequest

MOST_LINES = 42


def printed(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    capsys.readouterr()
    assert main(arguments) == 0
    return capsys.readouterr().out


def all_flags(capsys: pytest.CaptureFixture, *command: str) -> set[str]:
    """Those of tyro's own page."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main([*command, "--help-all"])
    assert not exit_info.value.code
    return set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", capsys.readouterr().out))


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_fits_a_screen(verb: str, capsys: pytest.CaptureFixture):
    lines = printed(capsys, verb, "--help").splitlines()
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= WIDEST
    assert "examples" in lines
    flags = [line.split() for line in lines if line.startswith("  --")]
    assert len(flags) == len(PAGES[verb].flags)
    assert all(len(words) > 2 for words in flags)  # each says what it is


@pytest.mark.parametrize("verb", VERBS)
def test_every_example_is_a_command_that_parses(verb: str):
    for example in PAGES[verb].examples:
        program, *arguments = shlex.split(example)
        if program == "accelerate":
            arguments = [verb, *arguments[2:]]
        assert arguments[0] == verb
        assert PARSERS[verb](f"{PROGRAM} {verb}", arguments[1:]) is not None


@pytest.mark.parametrize(
    ("command", "owner"),
    [
        (("pretrain", "smoke"), PRETRAIN["smoke"]()),
        (("finetune", "smoke"), FINETUNE["smoke"]()),
        (("push",), PushRequest),
    ],
)
def test_the_flags_are_those_that_are_parsed(command, owner, capsys: pytest.CaptureFixture):
    own = flags_of(owner)
    parsed = all_flags(capsys, *command)
    missing = {name for name in own if name not in parsed} - {"--folder", "--repo"}  # positional
    assert not missing
    negative = {name for name in parsed if re.match(r"--(.*\.)?no-", name)}
    assert parsed - negative - set(own) <= {"--help"} | mentioned(parsed, own)


def mentioned(parsed: set[str], own: Sequence[str] | dict) -> set[str]:
    """What help texts name: flags of other verbs, and flags with a full stop behind them."""
    return {name for name in parsed if name.rstrip(".") in {*own, "--data.source", "--resume-from"}}


def test_a_recipe_has_a_page_with_its_values(capsys: pytest.CaptureFixture):
    text = printed(capsys, "pretrain", "mae-cpu", "--help")
    assert "--batch-size" in text and "(32)" in text and "runs/mae-cpu" in text
    assert f"all {len(flags_of(PRETRAIN['mae-cpu']()))} flags" in text


def test_the_first_sentence_ends_at_its_end():
    assert first_sentence("A share of 0.5 images; more\nfollows.") == "A share of 0.5 images"
    assert first_sentence("Such as\nphotos (many). More.") == "Such as photos (many)"


def complete(script: str, *words: str) -> list[str]:
    """What bash offers for the last word."""
    line = " ".join(shlex.quote(word) for word in words)
    program = (
        f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _hf_vitmae; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_verbs_recipes_and_flags(capsys: pytest.CaptureFixture):
    script = printed(capsys, "completion", "bash")
    assert complete(script, PROGRAM, "") == list(VERBS)
    assert complete(script, PROGRAM, "re") == [verb for verb in VERBS if verb.startswith("re")]
    assert complete(script, PROGRAM, "pretrain", "mae-c") == ["mae-cpu"]
    assert complete(script, PROGRAM, "finetune", "x", "--optim.base") == ["--optim.base-lr"]
    assert complete(script, PROGRAM, "push", "run", "repo", "--q") == ["--quiet"]
    assert complete(script, PROGRAM, "look", "model", "--kind", "a") == ["attention", "anomaly"]
    assert complete(script, PROGRAM, "look", "") == complete(script, PROGRAM, "look", "m", "") == []
    assert "--model" not in complete(script, PROGRAM, "look", "--")  # it has a place, no name
    assert "--model" in complete(script, PROGRAM, "knn", "--")


def test_other_shells(capsys: pytest.CaptureFixture):
    assert "bashcompinit" in printed(capsys, "completion", "zsh")
    assert main(["completion", "fish"]) == 2
    assert "choose from bash, zsh" in capsys.readouterr().err
