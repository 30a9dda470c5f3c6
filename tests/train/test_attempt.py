"""An attempt at a long job: one at a time, on from the newest checkpoint, and gone with everything saved when asked."""

import os
import signal

import pytest
import torch

from dearkd.errors import InputError
from dearkd.stop import Interrupted
from dearkd.train.attempt import Attempt

STEPS = 6


def count(folder, recipe="r", stop_at=None, identity=None, save_seconds=1000.0, active=True):
    """A job that sums up its steps, asked to stop after step `stop_at`; returns (sum, steps that it did)."""
    done = 0
    with Attempt(folder, "count", recipe, save_seconds, active=active) as attempt:
        state = attempt.resume(identity) or {"step": 0, "sum": torch.zeros(())}
        while state["step"] < STEPS:
            state["step"], state["sum"], done = state["step"] + 1, state["sum"] + state["step"], done + 1
            if state["step"] == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            attempt.checkpoint(state["step"], STEPS, lambda: state)
    return int(state["sum"]), done


def saved(folder):
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("step-*.pt"))


def test_asked_to_stop_it_saves_and_the_next_attempt_goes_on(tmp_path):
    for stop in (2, 5):
        with pytest.raises(Interrupted, match=rf"^count: stopped at step {stop} of 6 and saved; the same command"):
            count(tmp_path, stop_at=stop)
        assert saved(tmp_path)[-1] == stop and not (tmp_path / "lease.json").exists()
    assert count(tmp_path) == (15, 1)


def test_asked_at_its_last_step_it_saves_that_too(tmp_path):
    with pytest.raises(Interrupted):
        count(tmp_path, stop_at=STEPS)
    assert count(tmp_path) == (15, 0)


def test_it_saves_when_due_and_the_end_is_left_to_the_job(tmp_path):
    assert count(tmp_path, save_seconds=0.0) == (15, STEPS)
    assert saved(tmp_path) == [STEPS - 2, STEPS - 1]


@pytest.mark.parametrize(
    "first, second, said",
    [
        ({"recipe": "a"}, {"recipe": "b"}, "what it is made from has changed"),
        ({"identity": {"fingerprint": "a"}}, {"identity": {"fingerprint": "b"}}, "the recipe has changed"),
        (
            {"identity": {"fingerprint": "a", "made_from": "x"}},
            {"identity": {"fingerprint": "a", "made_from": "y"}},
            "what it learns or starts from has changed",
        ),
    ],
)
def test_a_checkpoint_of_something_else_is_named_and_removed(tmp_path, capsys, first, second, said):
    with pytest.raises(Interrupted):
        count(tmp_path, stop_at=3, **first)
    assert count(tmp_path, **second) == (15, STEPS)
    assert said in capsys.readouterr().out and saved(tmp_path) == []


def test_the_signals_of_before_are_back_afterwards(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    count(tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_job_is_refused_and_the_other_processes_of_a_batch_write_nothing(tmp_path):
    with Attempt(tmp_path, "one", "r", 0.0), pytest.raises(InputError, match="in use by process"):
        count(tmp_path)
    assert count(tmp_path / "other", save_seconds=0.0, active=False) == (15, STEPS)
    assert not (tmp_path / "other").exists()


def test_seconds_and_attempts_add_up(tmp_path):
    with pytest.raises(Interrupted):
        count(tmp_path, stop_at=3)
    before = torch.load(next(tmp_path.glob("step-*.pt")), weights_only=True)["seconds"]
    with Attempt(tmp_path, "count", "r", 0.0) as attempt:
        attempt.resume()
        costs = attempt.costs()
    assert before > 0 and attempt.seconds > before
    assert costs["attempts"] == 2 and costs["seconds"] == pytest.approx(attempt.seconds, abs=0.5)


def test_a_finished_file_is_known_again_and_only_while_it_is_whole(tmp_path, capsys):
    path = tmp_path / "out.bin"
    for recipe, content, found in (("r", None, None), ("r", b"whole", {"n": 1}), ("other", b"whole", None)):
        with Attempt(tmp_path / "state", "job", recipe, 0.0) as attempt:
            if content is None:
                path.write_bytes(b"whole")
                attempt.resume()
                attempt.keep(path, {"n": 1})
            else:
                assert attempt.made(path) == found
    assert capsys.readouterr().out.count("it was finished before, and only its record is written now") == 1
    path.write_bytes(b"cut off")
    with Attempt(tmp_path / "state", "job", "r", 0.0) as attempt:
        assert attempt.made(path) is None
