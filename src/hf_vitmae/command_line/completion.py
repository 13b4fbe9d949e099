"""Completion of verbs, recipes and flags in a shell.

tyro completes one command at a time, and a command that imports torch takes seconds to ask: this
writes all there is to complete into one script that asks nobody.
"""

import shlex
from collections.abc import Mapping, Sequence

SHELLS = ("bash", "zsh")


def script(
    program: str, words: Mapping[str, Sequence[str]], flags: Mapping[str, Sequence[str]], shell: str
) -> str:
    """The script to be read by the shell: `eval "$(hf-vitmae completion bash)"`.

    Args:
        words: verb -> recipes and the like, which come next after it.
        flags: verb -> its flags.

    Raises:
        ValueError: for another shell.
    """
    if shell not in SHELLS:
        raise ValueError(f"There is no completion for {shell!r}; choose from {', '.join(SHELLS)}.")
    name = f"_{program.replace('-', '_')}"
    cases = "\n".join(
        f"    {verb}) next={shlex.quote(' '.join(words.get(verb, ())))}; "
        f"flags={shlex.quote(' '.join(flags[verb]))} ;;"
        for verb in flags
    )
    start = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return f"""{start}{name}() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} next='' flags=''
  if [ "$COMP_CWORD" = 1 ]; then
    COMPREPLY=($(compgen -W {shlex.quote(" ".join(flags))} -- "$word"))
    return
  fi
  case ${{COMP_WORDS[1]}} in
{cases}
  esac
  case $word in
    -*) COMPREPLY=($(compgen -W "$flags" -- "$word")) ;;
    *) [ "$COMP_CWORD" = 2 ] && COMPREPLY=($(compgen -W "$next" -- "$word")) ;;
  esac
}}
complete -o default -o bashdefault -F {name} {program}
"""
