"""Functions over kept positions have gradients where those of torch have them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxprune.functional.over_kept import var_mean_of_kept, var_of_kept
from tests.shrinking import assert_equal, pruned


def test_a_constant_row_has_a_standard_deviation_with_a_gradient_of_zero() -> None:
    x = torch.randn(3, 6, dtype=torch.float64)
    x[1] = 0
    keep = torch.tensor([1, 1, 0, 1, 0, 1], dtype=torch.int8)
    for function in (var_of_kept, lambda *args: var_mean_of_kept(*args)[0]):
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        found = function(ours, [1], 1.0, True, True, [keep], [1])
        expected = theirs[:, keep.bool()].std(1, keepdim=True)
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)
        found.sum().backward()
        expected.sum().backward()
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, rtol=0, atol=1e-12)


STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "std of rows": lambda w: w / (w.std(1, keepdim=True) + 0.1),
    "std of columns": lambda w: w / (w.std(0, keepdim=True) + 0.1),
    "std_mean": lambda w: w / (torch.std_mean(w, 1, keepdim=True)[0] + 0.1),
}


class Standardised(nn.Module):
    def __init__(self, of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 10), nn.Linear(16, 3)
        self.weight, self.of = nn.Parameter(torch.randn(16, 10)), of

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).tanh()
        return self.last((y @ self.of(self.weight).t()).tanh())


class OuterProduct(nn.Module):
    """Rows and columns of what the statistics are of are those of different layers."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns, self.last = nn.Linear(6, 10), nn.Linear(6, 8), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        product = self.rows(x)[:, :, None] * self.columns(x)[:, None, :]
        return self.last(product.std(2) + product.mean(2))


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{name: lambda of=of: Standardised(of) for name, of in STATISTICS.items()},  # type: ignore[misc]
    "std of activations": OuterProduct,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_masked_graphs_train_on_as_the_smaller_ones_where_masked_rows_are_constant(name: str, frontend: str) -> None:
    x = torch.randn(4, 6).double()
    found = pruned(MODELS[name](), [x], frontend=frontend)
    assert_equal(found, [x])
    results = []
    for graph in (copy.deepcopy(found.masked).train(), copy.deepcopy(found.small).train()):
        optimizer = torch.optim.SGD(graph.parameters(), 0.01, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            graph(x).square().sum().backward()
            optimizer.step()
        results.append(graph(x))
        assert all(parameter.isfinite().all() for parameter in graph.parameters())
    assert torch.allclose(results[0], results[1], rtol=1e-8, atol=1e-10)
