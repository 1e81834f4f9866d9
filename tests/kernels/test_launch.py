"""The one launcher of Triton kernels: guard, checks, observers, and that nothing goes around it."""

from __future__ import annotations

import ast
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from camae.errors import CamaeError
from camae.kernels import _launch
from camae.kernels._launch import Launch, launch

KERNELS = Path(__file__).parents[2] / "kernels"


class FakeKernel:
    """Notes what it was started with; takes a strided tensor, a contiguous one, and an integer."""

    __name__ = "fake_kernel"
    arg_names = ("x", "y", "x_row", "BLOCK")

    def __init__(self):
        self.calls, self.before = [], lambda: None

    def __getitem__(self, grid):
        def start(*arguments, **constants):
            self.before()
            self.calls.append((grid, arguments, constants))

        return start


@pytest.fixture
def kernel():
    return FakeKernel()


def subscripted_calls(source: str) -> list[int]:
    """Lines of calls of the form `name[...](...)`."""
    nodes = ast.walk(ast.parse(source))
    return [n.lineno for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Subscript)]


def jitted(source: str) -> set[str]:
    """Names of functions under @triton.jit that are launched: those named *_kernel."""
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
    return {n.name for n in nodes if n.decorator_list and n.name.endswith("_kernel")}


def test_no_kernel_is_launched_around_the_launcher():
    files = [f for f in KERNELS.rglob("*.py") if f.name != "_launch.py" and "triton" in f.read_text()]
    assert len(files) > 8
    found = {str(f): subscripted_calls(f.read_text()) for f in files}
    assert {f: lines for f, lines in found.items() if lines} == {}
    assert subscripted_calls("some_kernel[(4,)](x, BLOCK=4)") == [1]


def test_every_kernel_goes_through_the_launcher():
    launched, defined = set(), set()
    for file in KERNELS.rglob("*triton*.py"):
        source = file.read_text()
        defined |= {f"{file.parent.name}.{name}" for name in jitted(source)}
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "launch":
                launched.add(f"{file.parent.name}.{node.args[0].id}")
    assert len(defined) >= 13
    assert launched == defined


def test_guard_surrounds_the_start(kernel, monkeypatch):
    """A mocked CUDA device: current while the kernel starts, and only then."""
    current = []

    @contextmanager
    def device(index):
        current.append(index)
        yield
        current.pop()

    inside = []
    kernel.before = lambda: inside.extend(current)
    monkeypatch.setattr(torch.cuda, "device", device)
    with torch.device("meta"):
        x = torch.empty(4, 4)
    monkeypatch.setattr(_launch, "_checked", lambda *_: torch.device("cuda", 1))
    launch(kernel, (2,), x, x, 4, BLOCK=16)
    assert inside == [torch.device("cuda", 1)]
    assert current == []


def test_passes_arguments_on(kernel):
    x = torch.zeros(4, 4)
    launch(kernel, (2, 3), x[:, :2], x, 4, BLOCK=16, num_warps=4)
    ((grid, arguments, constants),) = kernel.calls
    assert grid == (2, 3)
    assert arguments[2] == 4
    assert constants == {"BLOCK": 16, "num_warps": 4}


def test_an_empty_grid_starts_nothing(kernel):
    launch(kernel, (0,), torch.zeros(0), torch.zeros(0), 4)
    assert kernel.calls == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(4), torch.zeros(4, device="meta"), 1), "y is on meta, the tensors before it on cpu"),
        ((torch.zeros(4), torch.zeros(4, 4).t(), 1), r"y has strides \(1, 4\) and must be contiguous"),
        ((torch.zeros(4, 4).t(), None, 1), r"x has strides \(1, 4\), its last must be 1"),
        ((torch.zeros(4), None, 2**31), "x_row = 2147483648 is beyond int32"),
        ((None, None, 1), "no argument is a tensor"),
    ],
)
def test_refuses(kernel, arguments, message):
    with pytest.raises(CamaeError, match=f"fake_kernel: {message}"):
        launch(kernel, (1,), *arguments)
    assert kernel.calls == []


def test_refuses_a_grid_no_device_takes(kernel):
    with pytest.raises(CamaeError, match="grid of"):
        launch(kernel, (1, 65_536), torch.zeros(1), None, 1)


def test_observers_see_launches_and_can_stop_them(kernel, monkeypatch):
    seen: list[Launch] = []
    answers = iter((False, True))

    def observe(event):
        seen.append(event)
        return next(answers)

    monkeypatch.setattr(_launch, "observers", [observe])
    x = torch.zeros(4)
    for _ in range(2):
        launch(kernel, (1,), x, None, 7, BLOCK=8, num_warps=2, num_stages=3)
    assert len(kernel.calls) == 1
    event = seen[0]
    assert (event.kernel, event.grid) == (kernel, (1,))
    assert event.arguments == {"x": x, "y": None, "x_row": 7}
    assert event.constants == {"BLOCK": 8}
    assert event.options == {"num_warps": 2, "num_stages": 3}
