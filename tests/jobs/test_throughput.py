"""Sizes against published ones and sums by hand; that passes are timed as the docstrings say."""

import pytest
import torch
from torch import nn

from dearkd.errors import InputError
from dearkd.jobs import throughput
from dearkd.plan.scale import Throughput

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def vit_macs(width, tokens=197, depth=12, patch=16, wider=0):
    """Patches, qkv, projection, MLP, attention's two products and the classifier; `wider`: dimensions of the fold."""
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    return (tokens - 1) * 3 * patch**2 * width + depth * block + 8 * 2 * tokens**2 * wider + 1000 * width


@pytest.mark.parametrize(
    "name, parameters, gmacs, side",
    [
        ("resnet18.tv_in1k", 11_689_512, 1.814, 224),
        ("tf_efficientnet_b3.aa_in1k", 12_233_232, 1.827, 300),
        ("deit_tiny_patch16_224.fb_in1k", 5_717_416, vit_macs(192) / 1e9, 224),
        ("dearkd_tiny_patch16_224", 5_717_704, vit_macs(192, wider=4 * 12) / 1e9, 224),
        ("dearkd_base_patch16_224", 86_568_040, vit_macs(768, wider=4 * 16) / 1e9, 224),
    ],
)
def test_size(name, parameters, gmacs, side):
    found = throughput.size(name)
    assert (found["parameters"], found["input_size"]) == (parameters, side)
    assert found["gmacs"] == pytest.approx(gmacs, abs=5e-4)


def test_deit_has_1_25_gmacs_and_so_has_dearkd_with_its_bias_as_a_matrix():
    assert throughput.size("deit_tiny_patch16_224.fb_in1k")["gmacs"] == pytest.approx(1.2537, abs=1e-4)
    assert throughput.size("dearkd_tiny_patch16_224")["gmacs_dense"] == pytest.approx(1.2537, abs=1e-4)


def test_an_unknown_architecture_is_named():
    with pytest.raises(InputError, match="resnet19"):
        throughput.size("resnet19")


def test_measuring_on_a_cpu(capsys):
    precision = torch.get_float32_matmul_precision()
    spec = Throughput(batch=2, warmup=1, repeats=3)
    found = throughput.measure(["deit_tiny_patch16_224.fb_in1k", "dearkd_tiny_patch16_224"], spec, CPU)
    deit, dearkd = found.values()
    assert set(deit) == {"fp32"} and set(dearkd) == {"fp32", "fp32_dense"}
    assert set(deit["fp32"]) == {"batch", "median", "q1", "q3"} and deit["fp32"]["batch"] == 2
    assert all(0 < r["q1"] <= r["median"] <= r["q3"] for r in (*deit.values(), *dearkd.values()))
    assert "throughput: dearkd_tiny_patch16_224: images/s fp32 " in capsys.readouterr().out
    assert torch.get_float32_matmul_precision() == precision


def test_the_dense_path_is_another_path():
    name = "dearkd_tiny_patch16_224"
    nets = [throughput._build(name, path) for path in throughput._paths(name).values()]
    queries = torch.empty(1, 12, 197, 16)
    assert [net.blocks[0].attn.path(queries) == "folded" for net in nets] == [True, False]
    assert not any(net.training for net in nets)


class Counting(nn.Module):
    """Counts its passes and images; refuses more than `most` at once, as a full GPU does."""

    pretrained_cfg = {"input_size": (3, 4, 4)}  # noqa: RUF012

    def __init__(self, most=1000):
        super().__init__()
        self.most, self.seen = most, []

    def forward(self, images):
        assert torch.is_inference_mode_enabled() and images.shape[1:] == (3, 4, 4)
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.seen.append(len(images))


def test_warm_up_passes_are_not_timed(monkeypatch):
    durations = [9.0, 9.0, 1.0, 2.0, 4.0]
    monkeypatch.setattr(throughput, "_seconds", lambda net, images, half: durations.pop(0))
    rate = throughput._rate(Counting(), Throughput(batch=8, warmup=2, repeats=3), CPU, False)
    assert rate == {"batch": 8, "median": 4.0, "q1": 3.0, "q3": 6.0} and not durations


def test_the_largest_batch_is_the_last_doubling_that_fits():
    net = Counting(most=70)
    assert throughput._largest(net, 8, CPU, False) == 64 and net.seen == [16, 32, 64]
    assert throughput._largest(Counting(most=10), 8, CPU, False) == 8


def test_a_batch_that_does_not_fit_is_the_settings_fault(monkeypatch):
    monkeypatch.setattr(throughput, "_build", lambda name, path: Counting(most=4))
    with pytest.raises(
        InputError, match=r"throughput.batch: 8 images do not fit into the GPU's memory with resnet18; lower it"
    ):
        throughput.measure(["resnet18"], Throughput(batch=8), CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_measuring_on_a_gpu(monkeypatch):
    monkeypatch.setattr(throughput, "_fits", lambda net, batch, device, half: batch <= 8)
    found = throughput.measure(["dearkd_tiny_patch16_224"], Throughput(batch=4, warmup=2, repeats=5), CUDA)
    rates = found["dearkd_tiny_patch16_224"]
    assert set(rates) == {f"{p}{k}" for p in ("fp32", "bf16") for k in ("", "_dense", "_largest")}
    assert [rates[k]["batch"] for k in ("fp32", "bf16_largest")] == [4, 8]
    assert all(rate["peak_mb"] > 4 * 5.7 for rate in rates.values()), "the weights alone are 22.9 MB"
