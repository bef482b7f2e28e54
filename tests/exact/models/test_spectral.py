"""Spectral and spatial convolution against the definitions of Roith's thesis, section 1.4, and its lemmas.

Written anew here: the convolution as a sum of shifted images, F and its inverse as matrices over I_N and J_N with any
lambda, zero-padding by index. Everything is in float64.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from robustbench_sparse.foundation.interpolation import interpolated
from robustbench_sparse.models.cnn import CNN
from robustbench_sparse.models.fno import FNO
from robustbench_sparse.models.spectral import (
    SpectralConv2d,
    centred,
    circular_convolution,
    from_hartley,
    hartley,
    spatial_padding,
    spectral_convolution,
    spectral_padding,
    to_frequency,
    to_space,
    trigonometric,
)

ODD = [(3, 3), (3, 7), (5, 9), (7, 7)]  # M <= N, both odd
MIXED = [(3, 4), (3, 8), (5, 6), (7, 12)]  # odd M, even N
EVEN = [(4, 7), (4, 8), (6, 9)]  # even M < N


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def indices(n: int) -> list[int]:
    """I_N along one axis."""
    return list(range(-math.ceil((n - 1) / 2), math.floor((n - 1) / 2) + 1))


def fourier(n: int, factor: float) -> tuple[Tensor, Tensor]:
    """F from J_N to I_N and its inverse, as matrices over flattened indices, with lambda = ``factor``."""
    k = torch.tensor(list(itertools.product(indices(n), repeat=2)), dtype=torch.float64)
    j = torch.tensor(list(itertools.product(range(n), repeat=2)), dtype=torch.float64)
    phase = 2 * math.pi * (k @ j.T) / n
    forward = torch.exp(-1j * phase) / factor
    inverse = torch.exp(1j * phase).T * factor / n**2
    return forward, inverse


def on_i(theta_hat: Tensor) -> Tensor:
    """Coefficients (..., M, M) in the order of I_M, flattened."""
    at = torch.tensor(indices(theta_hat.shape[-1])) % theta_hat.shape[-1]
    return theta_hat[..., at, :][..., at].flatten(-2)


def literally_padded(theta_hat: Tensor, n: int) -> Tensor:
    """theta^^{M -> N} as the thesis writes it, over I_N, flattened: zero where I_M has no such index."""
    m = theta_hat.shape[-1]
    out = torch.zeros(*theta_hat.shape[:-2], n * n, dtype=theta_hat.dtype)
    for place, (a, b) in enumerate(itertools.product(indices(n), repeat=2)):
        if a in indices(m) and b in indices(m):
            out[..., place] = theta_hat[..., a % m, b % m]
    return out


def literal_k(theta_hat: Tensor, v: Tensor, factor: float = 1.0) -> Tensor:
    """F^{-1}(theta^^{M -> N} F v), complex (B, O, N, N)."""
    n = v.shape[-1]
    forward, inverse = fourier(n, factor)
    seen = v.to(torch.complex128).flatten(-2) @ forward.T
    given = torch.einsum("bix,oix->box", seen, literally_padded(theta_hat, n))
    return (given @ inverse.T).unflatten(-1, (n, n))


def literal_c(theta: Tensor, v: Tensor) -> Tensor:
    """sum_k theta_k v_{j-k}, indices mod N."""
    out = torch.zeros(len(v), len(theta), *v.shape[-2:], dtype=v.dtype)
    for a, b in itertools.product(range(theta.shape[-1]), repeat=2):
        out += torch.einsum("bixy,oi->boxy", v.roll((a, b), (-2, -1)), theta[..., a, b])
    return out


def hermitian(m: int, seed: int = 1) -> Tensor:
    """Coefficients in C_sym, (2, 3, M, M)."""
    return to_frequency(normal(2, 3, m, m, seed=seed))


# The definitions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n"), [*ODD, *MIXED, *EVEN])
def test_circular_convolution_is_its_sum(m: int, n: int) -> None:
    theta, v = normal(2, 3, m, m), normal(4, 3, n, n, seed=1)
    torch.testing.assert_close(circular_convolution(theta, v), literal_c(theta, v))


@pytest.mark.parametrize(("m", "n"), [*ODD, *MIXED, (4, 4), (8, 8)])
@pytest.mark.parametrize("normalisation", ["1", "root", "all"])
def test_spectral_convolution_is_its_definition_whatever_lambda(m: int, n: int, normalisation: str) -> None:
    factor = {"1": 1.0, "root": float(n), "all": float(n * n)}[normalisation]
    theta_hat, v = hermitian(m), normal(4, 3, n, n, seed=2)
    expected = literal_k(theta_hat, v, factor)
    assert expected.imag.abs().max() < 1e-10
    torch.testing.assert_close(spectral_convolution(theta_hat, v), expected.real)


@pytest.mark.parametrize(("m", "n"), [(7, 3), (9, 5)])
def test_smaller_images_of_odd_size_leave_frequencies_out(m: int, n: int) -> None:
    theta_hat, v = hermitian(m), normal(2, 3, n, n, seed=2)
    expected = literal_k(theta_hat, v)
    assert expected.imag.abs().max() < 1e-10
    torch.testing.assert_close(spectral_convolution(theta_hat, v), expected.real)


@pytest.mark.parametrize(("m", "n"), [(7, 4), (9, 8), (5, 2)])
def test_smaller_images_of_even_size_take_the_real_part_but_at_one_frequency(m: int, n: int) -> None:
    """At (N / 2, N / 2) four coefficients meet: their mean is taken, where the real part has that of two."""
    theta_hat, v = hermitian(m), normal(2, 3, n, n, seed=2)
    expected = literal_k(theta_hat, v)
    assert expected.imag.abs().max() > 0.01
    got = torch.fft.fft2(spectral_convolution(theta_hat, v))
    gap = got - torch.fft.fft2(expected.real)
    half = n // 2
    corner = [theta_hat[..., a % m, b % m] for a in (-half, half) for b in (-half, half)]
    seen = torch.fft.fft2(v)[..., half, half]
    torch.testing.assert_close(got[..., half, half], seen @ (sum(corner) / 4).mT)
    gap[..., half, half] = 0
    assert gap.abs().max() < 1e-10


def test_images_need_not_be_square() -> None:
    theta_hat, v = hermitian(5), normal(2, 3, 8, 11, seed=2)
    tall = spectral_convolution(theta_hat.mT, v.mT)
    torch.testing.assert_close(spectral_convolution(theta_hat, v), tall.mT)
    kernel = normal(2, 3, 5, 5)
    padded = torch.nn.functional.pad(kernel, (0, 6, 0, 3))
    expected = torch.einsum("bixy,oixy->boxy", torch.fft.fft2(v), torch.fft.fft2(padded))
    torch.testing.assert_close(circular_convolution(kernel, v), torch.fft.ifft2(expected).real)


@pytest.mark.parametrize(("m", "n"), [*ODD, *MIXED])
def test_spectral_padding_is_its_definition_and_interpolates_the_kernel(m: int, n: int) -> None:
    theta_hat = hermitian(m)
    padded = spectral_padding(theta_hat, n)
    torch.testing.assert_close(on_i(padded), literally_padded(theta_hat, n))
    torch.testing.assert_close(to_space(padded), trigonometric(to_space(theta_hat), n) * (m / n) ** 2)


@pytest.mark.parametrize("m", [3, 4, 5, 8])
def test_hartleys_numbers_keep_lengths_and_can_be_undone(m: int) -> None:
    theta_hat = hermitian(m)
    torch.testing.assert_close(from_hartley(hartley(theta_hat)), theta_hat)
    torch.testing.assert_close(hartley(theta_hat).square().sum(), theta_hat.abs().square().sum())
    free = from_hartley(normal(2, 3, m, m, seed=4))  # any numbers are Hermitian coefficients
    turned = free.flip(-2, -1).roll((1, 1), (-2, -1))
    torch.testing.assert_close(turned, free.conj())


# Lemma 1.29 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n"), [*ODD, *MIXED, *EVEN, (4, 4)])
def test_lemma_1_29_space_as_frequency_holds_for_every_size(m: int, n: int) -> None:
    theta, v = normal(2, 3, m, m), normal(4, 3, n, n, seed=1)
    theta_hat = to_frequency(spatial_padding(theta, n))
    torch.testing.assert_close(circular_convolution(theta, v), spectral_convolution(theta_hat, v))


@pytest.mark.parametrize(("m", "n"), [*ODD, *MIXED])
def test_lemma_1_29_frequency_as_space_holds_for_odd_m(m: int, n: int) -> None:
    theta_hat, v = hermitian(m), normal(4, 3, n, n, seed=1)
    kernel = to_space(spectral_padding(theta_hat, n))
    torch.testing.assert_close(spectral_convolution(theta_hat, v), circular_convolution(kernel, v))


@pytest.mark.parametrize(("m", "n"), EVEN)
def test_lemma_1_29_frequency_as_space_fails_for_even_m_which_is_refused(m: int, n: int) -> None:
    theta_hat, v = hermitian(m), normal(4, 3, n, n, seed=1)
    assert literal_k(theta_hat, v).imag.abs().max() > 0.01  # not even real, so it is no kernel's convolution
    for refuses in (
        lambda: spectral_convolution(theta_hat, v),
        lambda: spectral_padding(theta_hat, n),
        lambda: SpectralConv2d(3, 2, m, kernel_size=3),
    ):
        with pytest.raises(ValueError, match=f"expected an odd size, got {m}$"):
            refuses()


@pytest.mark.parametrize("m", [4, 6])
def test_without_its_highest_frequency_an_even_kernel_is_fine(m: int) -> None:
    """What goes wrong for even M is the coefficient of -M / 2 alone."""
    theta_hat = hermitian(m)
    theta_hat[..., m // 2, :] = 0
    theta_hat[..., m // 2] = 0
    v = normal(4, 3, m + 3, m + 3, seed=1)
    expected = literal_k(theta_hat, v)
    assert expected.imag.abs().max() < 1e-10
    odd = theta_hat[..., torch.tensor(indices(m - 1)) % m, :][..., torch.tensor(indices(m - 1)) % m]
    odd = torch.fft.ifftshift(odd, dim=(-2, -1))
    torch.testing.assert_close(spectral_convolution(odd, v), expected.real)


# Lemma 1.30 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 5, 9, 4, 8])
def test_lemma_1_30_gradients_differ_by_the_number_of_pixels(n: int) -> None:
    """The thesis has it for odd sizes; without padding nothing in it asks for that."""
    theta, v, weight = normal(2, 3, n, n), normal(4, 3, n, n, seed=1), normal(4, 2, n, n, seed=2)
    theta.requires_grad_()
    (in_space,) = torch.autograd.grad((circular_convolution(theta, v) * weight).sum(), theta)
    expected = to_frequency(in_space) / n**2

    h = hartley(to_frequency(theta.detach())).requires_grad_()
    (given,) = torch.autograd.grad((spectral_convolution(from_hartley(h), v) * weight).sum(), h)
    torch.testing.assert_close(from_hartley(given), expected)

    # By the definition of a gradient in C_sym, without autograd: K is linear in theta^.
    direction = to_frequency(normal(2, 3, n, n, seed=3))
    slope = (spectral_convolution(direction, v) * weight).sum()
    torch.testing.assert_close((expected.conj() * direction).real.sum(), slope)


def test_a_step_in_frequency_is_a_step_in_space_that_is_shorter_by_the_number_of_pixels() -> None:
    size, lr = 7, 0.5
    x, weight = normal(4, 3, size, size), normal(4, 2, size, size, seed=1)
    space, frequency = (
        SpectralConv2d(3, 2, size, parameters=p, bias=False).double() for p in ("space", "frequency")
    )
    with torch.no_grad():
        frequency.spectrum.copy_(hartley(space.coefficients()))
    for layer, rate in ((space, lr / size**2), (frequency, lr)):
        (layer(x) * weight).sum().backward()
        torch.optim.SGD(layer.parameters(), lr=rate).step()
    torch.testing.assert_close(frequency.coefficients(), space.coefficients())


# Corollary 1.31 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [3, 5, 7])
@pytest.mark.parametrize("n", [7, 8, 9, 12])
@pytest.mark.parametrize("size", [7, 8, 10, 15])
def test_corollary_1_31_filtering_commutes_with_trigonometric_interpolation(
    m: int, n: int, size: int
) -> None:
    """For an odd number of coefficients, whatever the parity of both grids, on finer grids and coarser ones."""
    theta_hat, v = hermitian(m), normal(4, 3, n, n, seed=1)
    first = spectral_convolution(theta_hat, trigonometric(v, size))
    torch.testing.assert_close(first, trigonometric(spectral_convolution(theta_hat, v), size))


@pytest.mark.parametrize(("n", "size"), [(4, 6), (4, 7), (4, 8), (7, 4), (8, 4)])
def test_corollary_1_31_fails_for_even_m_by_the_highest_frequency(n: int, size: int) -> None:
    """On a grid of its own size the coefficient of -M / 2 counts in full, on others the real part has half of it."""
    m = 4
    theta_hat, v = hermitian(m), normal(2, 3, n, n, seed=1)

    def real_k(v: Tensor) -> Tensor:
        return literal_k(theta_hat, v).real

    gap = real_k(trigonometric(v, size)) - trigonometric(real_k(v), size)
    assert gap.abs().max() > 0.01
    seen = torch.fft.fft2(gap)
    low = [k % size for k in indices(size) if abs(k) < m // 2]
    assert seen[..., low, :][..., low].abs().max() < 1e-10  # lower frequencies agree


def test_on_images_with_fewer_pixels_than_coefficients_filtering_goes_by_way_of_a_finer_grid() -> None:
    theta_hat, v = hermitian(9), normal(2, 3, 6, 6, seed=1)
    finer = spectral_convolution(theta_hat, trigonometric(v, 9))
    torch.testing.assert_close(spectral_convolution(theta_hat, v), trigonometric(finer, 6))


# The layer and the network ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", ["frequency", "space"])
def test_the_layer_filters_alike_at_every_resolution(parameters: str) -> None:
    layer = SpectralConv2d(3, 2, 7, parameters=parameters, kernel_size=3).double()
    with torch.no_grad():
        layer.bias.fill_(0.3)
    v = normal(2, 3, 9, 9)
    for size in (7, 8, 20):
        torch.testing.assert_close(layer(trigonometric(v, size)), trigonometric(layer(v), size))


def test_a_spatial_convolution_does_not() -> None:
    theta, v = normal(2, 3, 3, 3), normal(2, 3, 9, 9, seed=1)
    gap = circular_convolution(theta, trigonometric(v, 18)) - trigonometric(
        circular_convolution(theta, v), 18
    )
    assert gap.abs().max() > 0.1


@pytest.mark.parametrize(("side", "size"), [(3, 7), (5, 8), (7, 7), (1, 4)])
def test_a_centred_kernel_is_torchs_layer(side: int, size: int) -> None:
    conv = torch.nn.Conv2d(
        3, 2, side, padding=side // 2, padding_mode="circular", bias=False, dtype=torch.float64
    )
    v = normal(2, 3, size, size)
    torch.testing.assert_close(circular_convolution(centred(conv.weight, size), v), conv(v))


def test_refuses_kernels_without_a_middle_and_those_that_do_not_fit() -> None:
    for call, text in [
        (lambda: centred(normal(1, 1, 4, 4), 9), "kernel_size: expected an odd size, got 4"),
        (lambda: spatial_padding(normal(1, 1, 5, 5), 3), "size: expected at least the kernel's 5, got 3"),
        (lambda: SpectralConv2d(1, 1, 5, kernel_size=7), "kernel_size: expected an odd size of at most 5"),
        (lambda: SpectralConv2d(1, 1, 5, kernel_size=2), "kernel_size: expected an odd size, got 2"),
        (lambda: SpectralConv2d(1, 1, 0), "modes: expected an odd size, got 0"),
        (lambda: circular_convolution(normal(1, 1, 5, 5), normal(1, 1, 4, 8)), "v: expected images of at"),
    ]:
        with pytest.raises(ValueError, match=f"^{text}"):
            call()


@pytest.mark.parametrize("size", [9, 13])
def test_on_odd_images_a_circular_cnn_is_the_fno_of_its_weights(size: int) -> None:
    """Lemma 1.29, through whole networks; on other sizes they part."""
    torch.manual_seed(0)
    settings = {"widths": (4, 3), "kernel_size": 3, "pool": 2}
    cnn = CNN(padding="circular", **settings).build(2, size, 5).double()
    fno = FNO(parameters="space", **settings).build(2, size, 5).double()
    weights = list(cnn.state_dict().values())
    fno.load_state_dict(dict(zip(fno.state_dict(), weights, strict=True)))
    x = normal(3, 2, size, size).sigmoid()
    torch.testing.assert_close(fno(x), cnn(x))
    finer = trigonometric(x, 2 * size)
    assert (fno(finer) - cnn(finer)).abs().max() > 1e-3


def test_the_residual_of_a_layer_is_one_matrix_at_every_pixel() -> None:
    torch.manual_seed(0)
    plain = FNO(widths=(3,), residual=True).build(2, 9, 4)
    layer = plain[0].double()
    u = normal(2, 2, 9, 9)
    expected = layer.spectral(u) + torch.einsum("oi,bixy->boxy", layer.residual.weight[:, :, 0, 0], u)
    torch.testing.assert_close(layer(u), expected.relu())


@pytest.mark.parametrize("parameters", ["frequency", "space"])
def test_an_fno_with_a_smooth_activation_hardly_sees_the_resolution(parameters: str) -> None:
    """Pooled to one number each, only what the activation folds back from above differs; a CNN sees other images."""
    torch.manual_seed(0)
    settings = {"widths": (6,), "kernel_size": 3, "pool": 1, "activation": "tanh"}
    fno = FNO(parameters=parameters, modes=7, **settings).build(1, 15, 4).double()
    cnn = CNN(padding="circular", **settings).build(1, 15, 4).double()
    x = trigonometric(normal(3, 1, 5, 5), 15) * 0.3
    finer = trigonometric(x, 40)
    apart = [(net(finer) - net(x)).abs().max().item() for net in (fno, cnn)]
    assert apart[0] < 1e-5 < 1e-3 < apart[1]


@pytest.mark.parametrize("parameters", ["frequency", "space"])
def test_fno_has_as_many_parameters_as_its_formula(parameters: str) -> None:
    with torch.device("meta"):
        model = FNO(widths=(6, 8), modes=9, kernel_size=3, parameters=parameters, pool=2).build(3, 16, 10)
    per_kernel = 81 if parameters == "frequency" else 9
    expected = per_kernel * (3 * 6 + 6 * 8) + 6 + 8 + (8 * 4 + 1) * 10
    assert sum(p.numel() for p in model.parameters()) == expected


def test_cnn_has_as_many_parameters_as_its_formula_and_keeps_its_grid() -> None:
    for padding in ("zeros", "circular"):
        with torch.device("meta"):
            model = CNN(widths=(6, 8), kernel_size=3, padding=padding, pool=2).build(3, 16, 10)
            assert model[:4](torch.empty(2, 3, 21, 21)).shape == (2, 8, 21, 21)
        assert sum(p.numel() for p in model.parameters()) == 9 * (3 * 6 + 6 * 8) + 6 + 8 + (8 * 4 + 1) * 10


@pytest.mark.parametrize("size", [8, 9, 14, 20, 33])
@pytest.mark.parametrize("spec", [FNO(), FNO(parameters="space"), CNN(), CNN(padding="circular")])
def test_they_take_images_of_other_sizes(spec: FNO | CNN, size: int) -> None:
    model = spec.build(1, 28, 10)
    assert model(torch.rand(2, 1, size, size)).shape == (2, 10)


@pytest.mark.parametrize("how", ["bilinear", "trigonometric"])
def test_a_cnn_may_resize_what_it_is_given(how: str) -> None:
    torch.manual_seed(0)
    plain = CNN().build(1, 12, 5)
    resizing = CNN(resize=how).build(1, 12, 5)
    resizing.load_state_dict(dict(zip(resizing.state_dict(), plain.state_dict().values(), strict=True)))
    x = torch.rand(3, 1, 12, 12)
    assert torch.equal(resizing(x), plain(x))
    for size in (9, 20):
        other = torch.rand(3, 1, size, size)
        torch.testing.assert_close(resizing(other), plain(interpolated(other, 12, how)))


@pytest.mark.parametrize(
    ("spec", "settings", "name"),
    [
        (FNO, {"widths": ()}, "widths"),
        (FNO, {"modes": 8}, "modes"),
        (FNO, {"modes": -1}, "modes"),
        (FNO, {"parameters": "time"}, "parameters"),
        (FNO, {"kernel_size": 4}, "kernel_size"),
        (FNO, {"activation": "none"}, "activation"),
        (FNO, {"pool": 0}, "pool"),
        (CNN, {"widths": (0,)}, "widths"),
        (CNN, {"kernel_size": 2}, "kernel_size"),
        (CNN, {"padding": "reflect"}, "padding"),
        (CNN, {"resize": "cubic"}, "resize"),
    ],
)
def test_rejects_settings(spec: type[FNO | CNN], settings: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        spec(**settings)


def test_rejects_images_that_are_too_small() -> None:
    for spec, name in [
        (FNO(modes=15), "modes"),
        (FNO(kernel_size=9), "kernel_size"),
        (CNN(kernel_size=11), "kernel_size"),
    ]:
        with pytest.raises(ValueError, match=f"^{name}: expected at most"):
            spec.build(1, 8, 10)
