"""Completion of verbs, recipes and flags in a shell.

tyro completes one command at a time, and a command that imports torch takes seconds to ask: this
writes all there is to complete into one script that asks nobody.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence

SHELLS = ("bash", "zsh")


def script(
    program: str,
    words: Mapping[str, Sequence[str]],
    flags: Mapping[str, Mapping[str, Sequence[str]]],
    shell: str,
) -> str:
    """The script to be read by the shell: `hf-vitmae completion bash >> ~/.bashrc`.

    Args:
        words: verb -> recipes and the like, which come next after it.
        flags: verb -> its flags, each with the words that it takes, where these are few.

    Raises:
        ValueError: for another shell.
    """
    if shell not in SHELLS:
        raise ValueError(f"There is no completion for {shell!r}; choose from {', '.join(SHELLS)}.")
    name = f"_{program.replace('-', '_')}"
    cases = "\n".join(_case(verb, words.get(verb, ()), flags[verb]) for verb in flags)
    start = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return f"""{start}{name}() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} next='' flags=''
  if [ "$COMP_CWORD" = 1 ]; then
    COMPREPLY=($(compgen -W {_quoted(flags)} -- "$word"))
    return
  fi
  case ${{COMP_WORDS[1]}} in
{cases}
  esac
  case $word in
    -*) COMPREPLY=($(compgen -W "$flags" -- "$word")) ;;
    *) COMPREPLY=($(compgen -W "$next" -- "$word")) ;;
  esac
}}
complete -o default -o bashdefault -F {name} {program}
"""


def _case(verb: str, words: Sequence[str], flags: Mapping[str, Sequence[str]]) -> str:
    """What comes next in a verb: after it, after a flag of few words, and else its flags."""
    choices = "".join(
        f"\n        {flag}) next={_quoted(few)} ;;" for flag, few in flags.items() if few
    )
    return f"""    {verb})
      flags={_quoted(flags)}
      case $before in{choices}
        {verb}) next={_quoted(words)} ;;
      esac ;;"""


def _quoted(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))
