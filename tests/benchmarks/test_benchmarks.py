"""The benchmarks compare what they say: ratios by hand, equal losses on both sides, a table and plots from records."""

import argparse

import pytest
import torch
from torch import nn

from benchmarks import NAMES, compare, stage1, summary, synthesis
from dearkd import record

pytestmark = pytest.mark.slow


def result(**changes):
    values = {
        "name": "step",
        "setting": "small",
        "kind": "speed",
        "ratio": 2.1,
        "low": 1.9,
        "high": 2.2,
        "bound": "at least",
        "target": 2.0,
        "ours": 4.0,
        "peer": 2.0,
        "unit": "images/s",
        "peer_name": "theirs",
    }
    return compare.Result(**{**values, **changes})


def test_ratios_by_hand():
    ours, peer = [1.0, 2.0, 1.0, 4.0, 1.0], [2.0, 2.0, 3.0, 4.0, 5.0]
    assert compare.ratio(ours, peer, "speed") == (2.0, 1.0, 3.0)
    assert compare.ratio(ours, peer, "time") == (0.5, pytest.approx(1 / 3), 1.0)
    assert result().met and not result(ratio=1.99).met
    assert result(bound="at most", ratio=1.5).met and not result(bound="at most", ratio=2.01).met


def test_both_sides_take_turns_and_the_first_call_does_not_count():
    calls = []
    mine, theirs = compare.in_turns(lambda: calls.append("o"), lambda: calls.append("p"), rounds=3)
    assert "".join(calls) == "op" + "op" + "po" + "op" and len(mine) == len(theirs) == 3


def test_peak_memory_sees_what_a_side_allocates():
    idle = compare.peak_mb(lambda: None)
    busy = compare.peak_mb(lambda: bytearray(b"x" * 300_000_000))
    assert 250 < busy - idle < 700


def test_the_table_and_the_plots_come_from_records(tmp_path):
    lines = [result(), result(name="memory", kind="memory", bound="at most", target=1.0, ratio=1.2, low=1.2, high=1.2)]
    values = [{**line.__dict__, "met": line.met} for line in lines]
    record.write(tmp_path / "one.json", {"threads": 1, **record.provenance(), "peak_mb": 9.0, "results": values})
    text = summary.write(tmp_path)
    assert (
        "| step | small | 2.10 times as fast | 1.90 to 2.20 | at least 2 | yes | 4 images/s | 2 images/s (theirs) |"
        in text
    )
    assert "1.20 times the memory" in text and "**no**" in text
    assert (tmp_path / "table.md").read_text() == text and (tmp_path / "ratios.png").stat().st_size > 10_000


def test_the_committed_table_is_made_of_the_committed_records(tmp_path):
    from pathlib import Path

    folder = Path("benchmarks/results")
    assert {path.stem for path in folder.glob("*.json")} == set(NAMES)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert summary.write(tmp_path) == (folder / "table.md").read_text()


def test_synthesis_minimises_the_peers_losses():
    torch.manual_seed(0)
    ours, peer = synthesis._ours(synthesis._network()), synthesis._peer(synthesis._network(), None)
    for mine, theirs in zip(ours(), peer(), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_deits_own_loss_is_taken_from_a_checkout(tmp_path):
    (tmp_path / "losses.py").write_text(
        "class DistillationLoss:\n"
        "    def __init__(self, criterion, teacher, kind, alpha, tau):\n"
        "        self.given = (criterion, teacher, kind, alpha, tau)\n"
    )
    net = nn.Linear(3, 4)
    found = stage1._deit_loss(tmp_path, net)
    assert found.given[1:] == (net, "hard", 0.5, 1.0)
    plain = stage1._deit_loss(None, net)
    images, logits, targets = torch.randn(5, 3), torch.randn(5, 4), torch.eye(4)[[0, 1, 2, 3, 0]]
    decided = net(images).argmax(1)
    expected = (nn.functional.cross_entropy(logits, targets) + nn.functional.cross_entropy(logits, decided)) / 2
    assert plain(images, (logits, logits), targets).item() == pytest.approx(expected.item(), rel=1e-6)


def test_an_unknown_benchmark_is_named(capsys):
    from benchmarks import __main__ as command

    with pytest.raises(SystemExit) as stop:
        command.main(["atention"])
    assert stop.value.code == 2 and "no benchmark atention; there are attention" in capsys.readouterr().err
    assert isinstance(command.options([]), argparse.Namespace)
