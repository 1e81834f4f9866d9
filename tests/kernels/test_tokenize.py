"""tokenize in plain torch against NumPy in fp64."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from camae.errors import CamaeError, MissingBackendError
from camae.kernels.patches import gather_patches
from camae.kernels.tokenize import backends, plane_statistics, token_cu_seqlens, tokenize

DTYPES = [torch.uint8, torch.uint16, torch.float32]


def independent(case) -> np.ndarray:
    """Token by token in NumPy: the definition, written out."""
    planes = case.planes_KHW.numpy().astype(np.float64)
    weight, bias, pos, cls = (p.detach().numpy() for p in case.parameters)
    P, N = round(weight.shape[1] ** 0.5), len(pos)
    keep = range(len(planes) * N) if case.keep_index is None else case.keep_index.tolist()
    samples = case.sample_K.tolist()
    rows = []
    for b in range(case.n_samples):
        rows.append(cls)
        for index in keep:
            k, n = divmod(index, N)
            if samples[k] != b:
                continue
            x = (planes[k] - planes[k].mean()) / np.sqrt(planes[k].var() + case.eps**2)
            i, j = divmod(n, planes.shape[2] // P)
            rows.append(weight @ x[i * P : (i + 1) * P, j * P : (j + 1) * P].ravel() + bias + pos[n])
    return np.array(rows)


def run(case, dtype=torch.float64, **options):
    parameters = [p.to(dtype) for p in case.parameters]
    return tokenize(
        case.planes_KHW,
        case.sample_K,
        case.keep_index,
        *parameters,
        eps=case.eps,
        n_samples=case.n_samples,
        **options,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("patch", [8, 16])
@pytest.mark.parametrize("keep", ["all", "random", "one", "none"])
def test_equals_definition(tokenize_case, dtype, patch, keep):
    case = tokenize_case(dtype, patch, keep)
    # fp64, 256 products of order 1: 256 * 1e-16 * values of order 10.
    np.testing.assert_allclose(run(case).numpy(), independent(case), atol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fp32_keeps_digits(tokenize_case, dtype):
    case = tokenize_case(dtype, 16)
    truth = independent(case)
    # 256 additions to a running sum of up to 12, each rounded by 6e-8 / sqrt(3) of it at random: 7e-6; times 4.
    np.testing.assert_allclose(run(case, torch.float32).numpy(), truth, atol=2.8e-5)


def test_bright_flat_planes_keep_their_digits():
    """uint16 with mean 60,000 and std 5, where sums of squares in fp32 lose everything."""
    rng = np.random.default_rng(0)
    x = np.round(60_000 + 5 * rng.normal(size=(3, 64, 64)))
    x[1, 0, 0] = 0  # a dead first pixel: the pivot of the one-pass formula is far from the mean
    mean_K, var_K = plane_statistics(torch.from_numpy(x.astype(np.uint16)))
    np.testing.assert_allclose(mean_K.numpy(), x.mean((1, 2)), rtol=1e-15)
    np.testing.assert_allclose(var_K.numpy(), x.var((1, 2)), rtol=1e-12)


def test_constant_plane_gives_bias_and_position(tokenize_case):
    case = tokenize_case(torch.uint16, 8, "all")
    case.planes_KHW = torch.full_like(case.planes_KHW, 65535)
    _, bias, pos, _ = case.parameters
    tokens = run(case)
    torch.testing.assert_close(tokens[1], bias + pos[0], rtol=0, atol=1e-14)


def test_cu_seqlens_counts_class_tokens(tokenize_case):
    case = tokenize_case(torch.uint8, 8, "random")
    cu = token_cu_seqlens(case.sample_K, case.keep_index, 6, case.n_samples)
    kept = np.bincount(case.sample_K.numpy()[case.keep_index.numpy() // 6], minlength=case.n_samples)
    assert cu.dtype == torch.int32
    np.testing.assert_array_equal(cu.numpy(), np.concatenate([[0], np.cumsum(kept + 1)]))


def test_patches_of_uint16_are_the_stored_values():
    planes = torch.arange(2 * 8 * 8, dtype=torch.int32).reshape(2, 8, 8).mul(500).to(torch.uint16)
    patches = gather_patches(planes, torch.tensor([1]), torch.tensor([2]), 4)
    assert patches.dtype == torch.uint16
    np.testing.assert_array_equal(patches.numpy()[0], planes.numpy()[1, 4:8, 0:4].ravel())


def test_gradients(tokenize_case):
    case = tokenize_case(torch.uint8, 8, width=3)
    parameters = [p.requires_grad_() for p in case.parameters]

    def f(*p):
        return tokenize(
            case.planes_KHW, case.sample_K, case.keep_index, *p, eps=case.eps, n_samples=case.n_samples
        )

    assert torch.autograd.gradcheck(f, parameters)


def test_autocast_gives_low_precision_tokens(tokenize_case):
    case = tokenize_case(torch.uint8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = run(case, torch.float32)
    assert tokens.dtype == torch.bfloat16
    # bf16 keeps 8 bits: products and sums of 64 terms rounded at 2^-9 of values up to 10.
    np.testing.assert_allclose(tokens.float().numpy(), independent(case), atol=0.15)


def test_errors_name_the_problem(tokenize_case):
    case = tokenize_case(torch.uint8, 8)
    w, b, pos, c = case.parameters
    with pytest.raises(CamaeError, match="position table has 5 rows"):
        tokenize(case.planes_KHW, case.sample_K, None, w, b, pos[:5], c, eps=1e-3)
    with pytest.raises(CamaeError, match="not a multiple of the patch"):
        tokenize(case.planes_KHW[:, :7], case.sample_K, None, *case.parameters, eps=1e-3)
    with pytest.raises(CamaeError, match="no back-end 'cuda'"):
        run(case, backend="cuda")
    if not backends("cpu")[0].usable:
        with pytest.raises(MissingBackendError, match="need a CUDA device"):
            run(case, backend="triton")


@pytest.mark.parametrize("planes", [0, 1, 3])
def test_sequence_bounds_search_in_contiguous_memory(planes):
    """One plane with all patches visible: torch warns of a search in an expanded tensor."""
    sample_K = torch.arange(planes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bounds = token_cu_seqlens(sample_K, None, 5, planes)
    assert bounds.tolist() == [6 * i for i in range(planes + 1)]
