"""PyTorch modules as networks, and the backend of `torch.compile`; needs torch and onnxscript."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest

import fastrun

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install '.[torch]'")
from torch import nn  # noqa: E402

from fastrun.graph.core.errors import UnsupportedError  # noqa: E402
from fastrun.tuner.pytorch.backend import backend  # noqa: E402
from tests.support.commands import fresh_cache  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*heuristic", "ignore:.*LeafSpec:FutureWarning"),
]


class Small(nn.Module):
    """A convolution, batch normalisation, a buffer and a dense layer; any batch and size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.dense = nn.Linear(16, 5)
        self.register_buffer("factor", torch.full((1, 3, 1, 1), 0.5))

    def forward(self, image):
        x = torch.relu(self.norm(self.conv(image * self.factor)))
        return self.dense(x.mean((2, 3))), x.amax((1, 2, 3))


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh_cache(tmp_path / "cache", monkeypatch)
    torch._dynamo.reset()
    torch.manual_seed(0)


def close(found, truth) -> None:
    for a, b in zip(found, truth, strict=True):
        # Kernels round at the scale of the output, whatever a single value is.
        size = b.float().square().mean().sqrt().item()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * size + 1e-6)


def test_a_module_becomes_a_network() -> None:
    module, image = Small().eval(), torch.randn(2, 3, 10, 12)
    network = fastrun.from_torch(module, image)
    assert network.inputs == {"image": (2, 3, 10, 12)}
    found = network.run({"image": image.numpy()})
    with torch.no_grad():
        close([torch.from_numpy(found[name]) for name in network.outputs], module(image))


def test_a_module_in_training_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"Small is in training mode.* eval\(\)"):
        fastrun.from_torch(Small(), torch.randn(1, 3, 8, 8))


def test_what_pytorch_cannot_export_is_said_in_one_line() -> None:
    class Branch(nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(UnsupportedError, match="PyTorch cannot export Branch") as refusal:
        fastrun.from_torch(Branch().eval(), torch.randn(1, 3, 8, 8))
    assert "\n" not in str(refusal.value)


def test_compiled_graphs_follow_shapes_and_weights() -> None:
    module = Small().eval()
    compiled = torch.compile(module, backend=backend, options={"threads": 1})
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("error", message="fastrun leaves")
        for n, height in ((1, 8), (2, 8), (3, 12)):
            image = torch.randn(n, 3, height, 9)
            close(compiled(image), module(image))
        before = module(image)
        module.conv.weight.mul_(2)  # in place, as an optimiser or load_state_dict does
        close(compiled(image), module(image))
        module.dense.weight = nn.Parameter(torch.randn(5, 16))
        close(compiled(image), module(image))
    assert (before[0] - module(image)[0]).abs().max() > 0.1


def test_gradients_and_training_stay_with_pytorch() -> None:
    module, image = Small().eval(), torch.randn(1, 3, 8, 8)
    compiled = torch.compile(module, backend=backend)
    with pytest.warns(UserWarning, match="needs gradients.*no_grad"):
        compiled(image)[0].sum().backward()
    assert module.conv.weight.grad is not None
    twin = copy.deepcopy(module.train())
    with torch.no_grad(), pytest.warns(UserWarning, match=r"eval\(\) first"):
        close(compiled(image), twin(image))
    assert torch.equal(module.norm.running_mean, twin.norm.running_mean)


def test_an_unknown_operator_stays_with_pytorch_and_is_named_once() -> None:
    def function(x):
        return torch.linalg.inv(torch.relu(x))

    compiled = torch.compile(function, backend=backend)
    x = torch.eye(4) + torch.rand(4, 4)
    with torch.no_grad(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            torch.testing.assert_close(compiled(x), function(x))
    ours = [str(w.message) for w in said if "fastrun leaves" in str(w.message)]
    assert len(ours) == 1
    assert "test_pytorch.py" in ours[0]


def test_a_misspelled_option_is_an_error() -> None:
    compiled = torch.compile(Small().eval(), backend=backend, options={"thread": 1})
    with torch.no_grad(), pytest.raises(Exception, match="no option 'thread'"):
        compiled(torch.randn(1, 3, 8, 8))


def test_weights_are_shared_with_the_module() -> None:
    from fastrun.tuner.pytorch.conversion import converted

    module = Small().eval()
    model = converted(module, (torch.randn(1, 3, 8, 8),), None, "Small")
    assert np.shares_memory(model.weights["conv.weight"], module.conv.weight.detach().numpy())
    assert not model.proto.graph.initializer[0].raw_data


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_type(dtype) -> None:
    module, image = Small().eval().to(dtype), torch.randn(1, 3, 8, 8, dtype=dtype)
    compiled = torch.compile(module, backend=backend)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("error", message="fastrun leaves")
        found = compiled(image)
        truth = module.float()(image.float())
    for a, b in zip(found, truth, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.float(), b, rtol=1e-2, atol=1e-2)
