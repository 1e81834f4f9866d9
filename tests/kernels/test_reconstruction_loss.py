"""reconstruction_loss in plain torch against NumPy in fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from camae.errors import CamaeError
from camae.kernels.patches import plane_statistics_reference
from camae.kernels.reconstruction_loss import reconstruction_loss, reconstruction_losses, registration

DTYPES = [torch.uint8, torch.uint16, torch.float32]


def independent(case) -> tuple[np.ndarray, np.ndarray]:
    """Per patch MSE (Eq. 1) and Fourier L1 (Eq. 2) with numpy.fft.fft2."""
    planes = case.planes_KHW.numpy().astype(np.float64)
    P = round(case.pred_MP2.shape[1] ** 0.5)
    mse, fourier = [], []
    pairs = zip(case.plane_M.tolist(), case.patch_M.tolist(), strict=True)
    for pred, (k, n) in zip(case.pred_MP2.detach().double().numpy(), pairs, strict=True):
        x = (planes[k] - planes[k].mean()) / np.sqrt(planes[k].var() + case.eps**2)
        i, j = divmod(n, planes.shape[2] // P)
        y = x[i * P : (i + 1) * P, j * P : (j + 1) * P]
        guess = pred.reshape(P, P)
        mse.append(np.mean((y - guess) ** 2))
        fourier.append(np.mean(np.abs(np.abs(np.fft.fft2(y)) - np.abs(np.fft.fft2(guess)))))
    return np.array(mse), np.array(fourier)


def arguments(case, alpha=0.3):
    return case.pred_MP2, case.planes_KHW, case.plane_M, case.patch_M, alpha


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("patch", [4, 8, 16])
def test_equals_definition(loss_case, dtype, patch):
    case = loss_case(dtype, patch)
    mse, fourier = independent(case)
    total, got_mse, got_fourier = reconstruction_losses(*arguments(case), eps=case.eps)
    # fp64; a transform adds 256 values of order 1: 1e-13 relative.
    np.testing.assert_allclose(got_mse, mse.mean(), rtol=1e-12)
    np.testing.assert_allclose(got_fourier, fourier.mean(), rtol=1e-12)
    np.testing.assert_allclose(total, 0.7 * mse.mean() + 0.3 * fourier.mean(), rtol=1e-12)


def test_weights_express_any_mean(loss_case):
    case = loss_case(torch.uint8, 8)
    mse, fourier = independent(case)
    weight = case.weight_M.numpy()
    loss = reconstruction_loss(*arguments(case), eps=case.eps, weight_M=case.weight_M)
    np.testing.assert_allclose(loss, (weight * (0.7 * mse + 0.3 * fourier)).sum(), rtol=1e-12)


def test_silent_frequencies_have_gradient_zero(loss_case):
    """A prediction of 0 has |F| = 0 everywhere: only the squared error pulls. A constant one has one frequency."""
    case = loss_case(torch.uint8, 16, M=2)
    pred = torch.zeros(2, 256, dtype=torch.float64)
    pred[1] = 0.7
    pred.requires_grad_()
    reconstruction_loss(pred, *arguments(case)[1:-1], 1.0, eps=case.eps).backward()
    assert torch.equal(pred.grad[0], torch.zeros(256, dtype=torch.float64))
    # d mean| |F0| - |F0'| | / dx = sign / 256 for every pixel, over the mean of two patches.
    assert torch.allclose(pred.grad[1].abs(), torch.full((256,), 1 / 512, dtype=torch.float64), atol=1e-12)


def test_gradient(loss_case):
    case = loss_case(torch.uint16, 8, M=3)

    def f(pred):
        return reconstruction_loss(pred, *arguments(case)[1:], eps=case.eps, weight_M=case.weight_M)

    assert torch.autograd.gradcheck(f, (case.pred_MP2.requires_grad_(),))


@pytest.mark.parametrize("patch", [8, 16])
def test_gradient_by_formula_equals_autograd(loss_case, patch):
    """The adjoint that the kernel computes in its forward pass, against the chain rule through torch.fft."""
    case = loss_case(torch.uint8, patch)
    pred = case.pred_MP2.requires_grad_()
    loss = reconstruction_loss(*arguments(case), eps=case.eps, weight_M=case.weight_M)
    (by_autograd,) = torch.autograd.grad(loss, pred)
    statistics = plane_statistics_reference(case.planes_KHW)
    total, _, by_formula = registration.reconstruction_loss_op(
        pred, case.planes_KHW, case.plane_M, case.patch_M, case.weight_M, *statistics, case.eps, 0.3
    )
    torch.testing.assert_close(total, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(by_formula, by_autograd, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("patch", [8, 16])
def test_bf16_predictions(loss_case, patch):
    """bf16 in, fp32 inside: the loss within 1e-3 and the gradient within 2e-3 of fp64 on the same bf16 values."""
    case = loss_case(torch.uint8, patch, M=200)
    low = case.pred_MP2.to(torch.bfloat16).requires_grad_()
    exact = low.detach().double().requires_grad_()
    options = {"eps": case.eps, "weight_M": case.weight_M}
    loss = reconstruction_loss(low, *arguments(case)[1:-1], 0.01, **options)
    truth = reconstruction_loss(exact, *arguments(case)[1:-1], 0.01, **options)
    loss.backward()
    truth.backward()
    assert loss.dtype == torch.float32
    assert abs(loss.item() / truth.item() - 1) < 1e-5
    # The gradient is rounded once to bf16: at most 2^-9 of each value, 2^-9 / sqrt(3) in the mean.
    error = (low.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error < 2e-3


def test_no_masked_patch_gives_zero(loss_case):
    case = loss_case(torch.uint8, 8, M=0)
    loss = reconstruction_loss(case.pred_MP2.requires_grad_(), *arguments(case)[1:])
    loss.backward()
    assert loss.item() == 0
    assert case.pred_MP2.grad.shape == (0, 64)


def test_float_planes_need_their_unit(loss_case):
    case = loss_case(torch.float32, 8)
    with pytest.raises(CamaeError, match="float planes need eps"):
        reconstruction_loss(*arguments(case))


def test_indices_must_fit(loss_case):
    case = loss_case(torch.uint8, 8)
    with pytest.raises(CamaeError, match="21 predicted patches need 21"):
        reconstruction_loss(case.pred_MP2, case.planes_KHW, case.plane_M[:3], case.patch_M, 0.1)
