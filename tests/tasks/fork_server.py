"""Runs of the command line, each in a process of its own that needs no seconds to import torch.

As a program it imports everything, and then forks for each line of standard input:
{"start": [ARGUMENT, ...], "output": FILE, "batches": FILE or null} answers the process's id, and
{"wait": ID} its exit status. A file of batches gets a line with the number and a hash of each batch
that a run was trained on.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType


class ForkServer:
    """Starts runs, and says how they ended; a negative exit status is a signal's."""

    def __enter__(self) -> "ForkServer":
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.kill()
        self._server.wait()
        for pipe in (self._server.stdin, self._server.stdout):
            if pipe is not None:
                pipe.close()

    def start(self, arguments: list[str], output: Path, batches: Path | None = None) -> int:
        """Begin a run, leader of its own process group: -> the process's id."""
        recorded = None if batches is None else str(batches)
        return self._ask({"start": arguments, "output": str(output), "batches": recorded})

    def wait(self, process: int) -> int:
        """The exit status of a run when it has ended."""
        return self._ask({"wait": process})

    def _ask(self, question: dict) -> int:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def serve() -> None:
    """Answer the lines of standard input."""
    import hf_vitmae.recipes
    import hf_vitmae.tasks.finetune  # noqa: F401
    import hf_vitmae.tasks.pretrain  # noqa: F401
    from hf_vitmae.cli import main
    from hf_vitmae.tasks import fit

    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            status = os.waitpid(question["wait"], 0)[1]
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        process = os.fork()
        if process == 0:
            os.setpgid(0, 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # not that of a shell's "&"
            output = os.open(question["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for descriptor in (1, 2):
                os.dup2(output, descriptor)
            if question["batches"]:
                fit.train_batches = recorded(fit.train_batches, Path(question["batches"]))
            os._exit(main(question["start"]))
        with suppress(PermissionError):  # who of the two comes first is open
            os.setpgid(process, process)
        print(process, flush=True)


def recorded(train_batches, path: Path):
    """The same batches, each noted when it is handed out."""

    def batches(*arguments, start_step: int, **options) -> Iterator[dict]:
        with path.open("a") as file:
            stream = train_batches(*arguments, start_step=start_step, **options)
            for number, batch in enumerate(stream, start_step):
                digest = hashlib.sha256(batch["pixel_values"].numpy().tobytes()).hexdigest()
                file.write(f"{number} {digest}\n")
                file.flush()
                yield batch

    return batches


if __name__ == "__main__":
    serve()
