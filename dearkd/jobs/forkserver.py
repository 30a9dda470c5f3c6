"""A server that has imported torch and forks a process for each job. On a laptop, imports take half of a short
job's time.

`python -m dearkd warm snakemake -c2 …` runs a command in whose jobs `python -m dearkd …` only asks for a fork. Nothing
else changes: a job has its own process, folder, environment, umask, limits, output and exit status, receives signals,
and continues after a hangup under `nohup`. Where the server cannot be reached a job runs by itself. Client and server
talk only to processes of the same user. Standard library only, so that asking is cheap.
"""

import contextlib
import json
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dearkd.stop import stop_requests

SERVER = "DEARKD_WARM"
"""Environment variable with the socket of a server."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGURG, signal.SIGHUP)
LIMITS = sorted({getattr(resource, name): name for name in dir(resource) if name.startswith("RLIMIT_")}.values())


def ask(arguments: Sequence[str]) -> int | None:
    """Exit status of `python -m dearkd ARGUMENTS` run by the server; None when no server answers.

    The request holds the whole environment. Where the socket or the process behind it is not this user's alone, nothing
    is sent, a sentence is printed on stderr, and the status is None.
    """
    path = Path(os.environ.get(SERVER, ""))
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            folder = path.parent.lstat()
            private = stat.S_ISDIR(folder.st_mode) and folder.st_uid == os.geteuid() and not folder.st_mode & 0o077
            connection.connect(str(path))
            if not private or _user(connection) != os.geteuid():
                print(f"{SERVER}={path}: other users can reach this server; the job starts without it", file=sys.stderr)
                return None
            request = json.dumps({"arguments": list(arguments), **_surroundings()}).encode()
            socket.send_fds(connection, [f"{len(request):08d}".encode()], [0, 1, 2])
            connection.sendall(request)
            child = int.from_bytes(_exactly(connection, 4))
        except OSError:
            return None
        for number in FORWARDED:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda number, _: _kill(child, number))
        try:
            return _exactly(connection, 1)[0]
        except OSError:
            return 128 + signal.SIGKILL  # it was killed before it could answer


def run(command: Sequence[str], work: Callable[[list[str]], int]) -> int:
    """Run a command with a server beside it, and return the command's exit status. work: `__main__.main`.

    On any signal it sends the command and its jobs one SIGINT and waits for all of them. After other signals Snakemake
    leaves locks behind or finishes its jobs first. Further signals change nothing.

    The command finds this package from any folder, because `snakemake --logger dearkd` is a plugin beside it.

    Only Linux has a server. On a Mac a fork of a process that has torch imported may crash, so a job runs by itself.
    """
    with contextlib.ExitStack() as stack:
        environment = dict(os.environ)
        end_server: Callable[[], None] | None = None
        paths = [str(Path(__file__).parents[2]), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        if sys.platform == "linux":
            environment[SERVER], end_server = stack.enter_context(_server(work))
        asked = stack.enter_context(stop_requests())
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        told = False
        while process.poll() is None:
            if asked and not told:
                told = True
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.05)
        if not asked:
            return process.returncode if process.returncode >= 0 else 128 - process.returncode
        if end_server is not None:
            end_server()
        with contextlib.suppress(OSError):
            print("Stopped: running jobs have saved; the same command resumes from there.", file=sys.stderr, flush=True)
        return 128 + asked[0]


@contextlib.contextmanager
def _server(work: Callable[[list[str]], int]) -> Iterator[tuple[str, Callable[[], None]]]:
    """(socket of a server, a function that ends the server and waits until its last job has ended)."""
    with tempfile.TemporaryDirectory(prefix="dearkd-") as folder:
        path, starter = Path(folder) / "socket", os.getpid()
        alive, held = os.pipe()  # the server and each of its jobs hold an end of it until they are gone
        server = os.fork()
        if server == 0:
            os.close(alive)
            os.setpgrp()
            _serve(path, work, starter)
        os.close(held)

        def end() -> None:
            os.kill(server, signal.SIGKILL)
            os.read(alive, 1)

        try:
            yield str(path), end
        finally:
            _kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
            os.close(alive)


def _serve(path: Path, work: Callable[[list[str]], int], starter: int) -> None:
    """Fork a job for each connection until the process `starter` is gone, which may be killed. Never returns.

    Nothing here may start a thread or touch a GPU: forks would inherit it.
    """
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(64)
        from dearkd.jobs import image_sets, synthesis, teacher, train  # noqa: F401  what takes seconds

        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        listening.settimeout(1.0)
        while os.getppid() == starter:
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                listening.close()
                _job(connection, work)
            connection.close()
    os._exit(0)


def _job(connection: socket.socket, work: Callable[[list[str]], int]) -> None:
    """Become the requested job. Never returns."""
    status = 1
    try:
        if _user(connection) != os.geteuid():
            os._exit(status)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        size, streams, _, _ = socket.recv_fds(connection, 8, 3)
        request = json.loads(_exactly(connection, int(size)))
        for target, file in enumerate(streams):
            os.dup2(file, target)
            os.close(file)
        _settle(request)
        sys.argv = ["dearkd", *request["arguments"]]
        connection.sendall(os.getpid().to_bytes(4))
        threading.Thread(target=_leave_with_the_client, args=(connection,), daemon=True).start()
        status = work(request["arguments"])
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        with contextlib.suppress(OSError):
            connection.sendall(bytes([status]))
        os._exit(status)


def _surroundings() -> dict[str, Any]:
    """The surroundings that a process inherits from its parent, and that a job needs from its client instead."""
    umask = os.umask(0o077)
    os.umask(umask)
    return {
        "folder": str(Path.cwd()),
        "environment": dict(os.environ),
        "umask": umask,
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in LIMITS},
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "cores": sorted(os.sched_getaffinity(0)),
        "nohup": signal.getsignal(signal.SIGHUP) is signal.SIG_IGN,
    }


def _settle(request: dict[str, Any]) -> None:
    """Take over a client's surroundings. A limit that only root may raise stays as it is."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.umask(request["umask"])
    signal.signal(signal.SIGHUP, signal.SIG_IGN if request["nohup"] else signal.SIG_DFL)
    for name, limits in request["limits"].items():
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(getattr(resource, name), limits)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, request["nice"])
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, request["cores"])


def _leave_with_the_client(connection: socket.socket) -> None:
    """Ask this job to save and stop when the process that waits for it is gone."""
    with contextlib.suppress(OSError):
        if not connection.recv(1):
            os.kill(os.getpid(), signal.SIGTERM)


def _user(connection: socket.socket) -> int:
    """Return the user id of the process on the other side."""
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return user


def _kill(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def _exactly(connection: socket.socket, size: int) -> bytes:
    """Read so many bytes. Raises OSError if the other side closes before."""
    return b"".join(_pieces(connection, size))


def _pieces(connection: socket.socket, size: int) -> Iterator[bytes]:
    while size:
        piece = connection.recv(size)
        if not piece:
            raise ConnectionResetError("the other side has left")
        size -= len(piece)
        yield piece
