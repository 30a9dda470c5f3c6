"""One process that has torch imported and forks a job for each request: half of a short job on a laptop is imports.

`python -m dearkd warm snakemake -c2 …` runs a command in whose jobs `python -m dearkd …` only asks for a fork. Nothing
else changes: a job has its own process, folder, environment, output and exit status, and a signal reaches it. Where the
server cannot be reached a job runs by itself. Standard library only, so that asking is cheap. Run layer.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

SERVER = "DEARKD_WARM"
"""Environment variable with the socket of a server."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGURG)


def ask(arguments: Sequence[str]) -> int | None:
    """Exit status of `python -m dearkd ARGUMENTS` run by the server; None when there is none that answers."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.socket(socket.AF_UNIX))
        try:
            connection.connect(os.environ[SERVER])
            request = json.dumps(
                {"arguments": list(arguments), "folder": str(Path.cwd()), "environment": dict(os.environ)}
            )
            socket.send_fds(connection, [f"{len(request.encode()):08d}".encode()], [0, 1, 2])
            connection.sendall(request.encode())
            child = int.from_bytes(_exactly(connection, 4))
        except (KeyError, OSError):
            return None
        for number in FORWARDED:
            signal.signal(number, lambda number, _: os.kill(child, number))
        try:
            return _exactly(connection, 1)[0]
        except OSError:
            return 128 + signal.SIGKILL  # it died without a word


def run(command: Sequence[str], work: Callable[[list[str]], int]) -> int:
    """Run a command with a server beside it; returns its exit status. `work`: what a job does, `__main__.main`.

    On Linux only: on a Mac a fork of a process that has torch imported may crash, so there jobs start by themselves.
    """
    if sys.platform != "linux":
        return subprocess.run(command, check=False).returncode
    with tempfile.TemporaryDirectory(prefix="dearkd-") as folder:
        path, starter = Path(folder) / "socket", os.getpid()
        server = os.fork()
        if server == 0:
            os.setpgrp()
            _serve(path, work, starter)
        try:
            return subprocess.run(command, env={**os.environ, SERVER: str(path)}, check=False).returncode
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)


def _serve(path: Path, work: Callable[[list[str]], int], starter: int) -> None:
    """Fork a job per connection until the process `starter` is gone, which may have been killed; never returns.

    Nothing here may start a thread or touch a GPU: forks would inherit it.
    """
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(64)
        from dearkd import datafree, describe, jobs  # noqa: F401  what takes seconds

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
    """Become the job that is asked for; never returns."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        size, streams, _, _ = socket.recv_fds(connection, 8, 3)
        request = json.loads(_exactly(connection, int(size)))
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = ["dearkd", *request["arguments"]]
        connection.sendall(os.getpid().to_bytes(4))
        threading.Thread(target=_leave_with_the_client, args=(connection,), daemon=True).start()
        status = work(request["arguments"])
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(OSError):
            connection.sendall(bytes([status]))
        os._exit(status)


def _leave_with_the_client(connection: socket.socket) -> None:
    """Ask this job to save and stop when the process that waits for it is gone."""
    with contextlib.suppress(OSError):
        if not connection.recv(1):
            os.kill(os.getpid(), signal.SIGTERM)


def _exactly(connection: socket.socket, size: int) -> bytes:
    """So many bytes; OSError when the other side leaves before."""
    return b"".join(_pieces(connection, size))


def _pieces(connection: socket.socket, size: int) -> Iterator[bytes]:
    while size:
        piece = connection.recv(size)
        if not piece:
            raise ConnectionResetError("the other side has left")
        size -= len(piece)
        yield piece
