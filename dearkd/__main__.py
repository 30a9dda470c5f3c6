"""python -m dearkd VERB runs one verb, such as a job of the workflow, by hand, in a test or on a cluster."""

import argparse
import contextlib
import errno
import os
import signal
import sys

if sys.platform == "win32":
    sys.exit("dearkd runs on Linux and macOS; on Windows, install and run it inside WSL 2")

import resource

from dearkd import arithmetic
from dearkd.command_line import VERBS, parser
from dearkd.errors import InputError, unknown
from dearkd.jobs import forkserver
from dearkd.jobs.gpus import claimed, given
from dearkd.stop import Interrupted

AGAIN = 75
"""Exit status of a job that was asked to stop and has saved: run it again (EX_TEMPFAIL)."""


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""Errors of a full disk, a spent quota, a read-only place and missing permissions."""

SETTINGS = ("--set", "--epochs", "--image-size", "--student")
"""Options of the verbs that write a scale themselves. In all others they are keys of the scale."""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return the exit status. An error that ends the verb early becomes one sentence on stderr.

    Status 2 is an InputError or a disk that refuses. 75 is a request to stop, after everything was saved. 130 is Ctrl-C
    with nothing to save. 141 is an output whose reader has left, as in `| head`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        args = _parsed(arguments)
    except InputError as error:
        _say(f"dearkd{error}")
        return 2
    verb = VERBS[args.verb]
    args.gpu = given(args.gpu, args.gpu_percent) if verb.heavy else 0
    try:
        arithmetic.ask()
        with claimed(args.gpu):
            status = verb.run(args) or 0
        if verb.heavy and os.environ.get("RANK", "0") == "0":
            _say(f"dearkd {args.verb}: {_spent()}")
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        status, said = 128 + signal.SIGPIPE, ""
    except Interrupted as stop:
        status, said = AGAIN, str(stop)
    except InputError as error:
        status, said = 2, f"dearkd {args.verb}: {error}"
    except KeyboardInterrupt:
        status, said = 128 + signal.SIGINT, f"dearkd {args.verb}: stopped by Ctrl-C; nothing finished was lost"
    except OSError as error:
        if error.errno not in DISK:
            raise
        place = error.filename or "a file"
        status, said = 2, f"dearkd {args.verb}: {place}: {error.strerror}; nothing finished was lost"
    _say(said)
    return status


def _parsed(arguments: list[str]) -> argparse.Namespace:
    """The verb and its arguments. Raises InputError with the nearest name for a verb or an option that is not there.

    Its sentence begins with what comes after `dearkd`.
    """
    whole = parser()
    if not arguments:
        whole.print_help(sys.stderr)
        sys.exit(2)
    name = arguments[0]
    if not name.startswith("-") and name not in VERBS:
        raise InputError(unknown(name, VERBS, "verb", ""))
    args, rest = whole.parse_known_args(arguments, argparse.Namespace(arguments=arguments, main=main))
    if not rest:
        return args
    option, verb = rest[0].partition("=")[0], VERBS[args.verb]
    if not option.startswith("-"):
        raise InputError(f" {args.verb}: {rest[0]!r} is one argument too many; a name with spaces needs quotes")
    if option == "--set" and vars(args).get("teacher"):
        raise InputError(f" {args.verb}: no option --set; write the key, as in `r_bn: 0.5`, into a file for --recipe")
    if option in SETTINGS and verb.scale:
        raise InputError(
            f" {args.verb}: no option {option}; settings are keys of a scale: write a file `mine.yaml` with `extends: "
            f"{args.scale}`, `name: mine` and the key, and say --scale mine.yaml"
        )
    raise InputError(unknown(option, verb.options, "option", f" {args.verb}"))


def _say(sentence: str) -> None:
    """Print a sentence on stderr, which may have no reader."""
    with contextlib.suppress(OSError):
        if sentence:
            print(sentence, file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _spent() -> str:
    """Processor time and peak memory of this process. Under `warm`, Snakemake's benchmarks measure only the client."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    gigabytes = used.ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
    return f"took {used.ru_utime + used.ru_stime:.1f} s of processor time and {gigabytes:.2f} GB of memory at most"


def start() -> int:
    """Run `main`, in a fork of the server where there is one.

    A job for several GPUs runs by itself, because it becomes torchrun, which starts its own processes.
    """
    if forkserver.SERVER in os.environ and sys.argv[1:2] and sys.argv[1] in VERBS and VERBS[sys.argv[1]].heavy:
        several = given(parser().parse_args().gpu) > 1
        status = None if several else forkserver.ask(sys.argv[1:])
        if status is not None:
            return status
    return main()


if __name__ == "__main__":
    try:
        sys.exit(start())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
