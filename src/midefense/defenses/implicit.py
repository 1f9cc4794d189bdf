"""How Crafter differentiates through an attacker: the answer z*(F) of a search that minimised w ||F - E(z)||^2 moves with
F by the implicit function theorem (Wang et al., NDSS 2024; card crafter.md, 4.5d).

With H the second derivative in z, J = dE/dz and k = 2w, a loss L(z*) has dL/dF = k J p where p solves H p = dL/dz. H has
a block per image, so everything here is per image, whatever stands beside it in a batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from midefense.ranges import Count, Positive
from midefense.types import Refused, refuse_unknown

HESSIANS = ("gauss_newton", "exact")
SOLVERS = ("neumann", "cg")
SMALLEST = 1e-6  # of the largest curvature: what is below it, or negative, has no inverse worth the name
EXHAUSTED = 1e-5  # of the largest curvature: a new direction that is shorter is rounding

Product = Callable[[Tensor], Tensor]  # of a matrix per image with vectors [N, *latent]


class Implicit:
    """How p = H^-1 v is approximated.

    Args:
        hessian: `gauss_newton` (k J^T J, never negative) or `exact` (the second derivative, as the original's; a
            generator that ends in a sigmoid makes it indefinite).
        solver: `neumann`, the original's truncated series alpha sum_{j=0..terms} (I - alpha H)^j v, which resolves
            curvature above 1 / (alpha terms) and diverges above 2 / alpha; or `cg`, conjugate gradients, the limit of
            the series.
        terms: of the Neumann series, beside v itself.
        alpha: its step.
        products: Hessian-vector products that are spent. The series is a polynomial of H times v, and so is what
            conjugate gradients give after as many steps: both are looked up in the Krylov space of v (Lanczos), whose
            dimension this is. None: the series is summed term by term, one product each.
    """

    revision = 1

    def __init__(
        self,
        *,
        hessian: str = "gauss_newton",
        solver: str = "neumann",
        terms: Count = 120,
        alpha: Positive = 1e-3,
        products: Count | None = 20,
    ) -> None:
        if hessian not in HESSIANS:
            raise refuse_unknown("implicit.hessian", hessian, HESSIANS)
        if solver not in SOLVERS:
            raise refuse_unknown("implicit.solver", solver, SOLVERS)
        if solver == "cg" and products is None:
            raise Refused("implicit.products: expected a number of steps for solver=cg, got None; try 20")
        self.hessian, self.solver, self.terms, self.alpha, self.products = hessian, solver, terms, alpha, products

    def gradient(
        self, view: Product, latents: Tensor, features: Tensor, weight: float, slope: Tensor
    ) -> tuple[Tensor, Tensor]:
        """dL/dF [N, *feature] of a loss L whose gradient in the latents is `slope` [N, *latent].

        Args:
            view: E, latents [N, *latent] -> features [N, *feature]; rows must not depend on each other.
            latents: where the search ended.
            features: F, what it searched for [N, *feature].
            weight: w, of the squared residual of one image.
        Returns:
            The gradient, and the norm of the residual's own gradient in the latents per image [N], which the theorem
            takes to be 0.
        """
        with torch.enable_grad():
            graph = Linearised(view, latents, features, weight)
            curvature = graph.gauss_newton if self.hessian == "gauss_newton" else graph.exact
            solved = self.solve(curvature, slope)
            return 2 * weight * graph.push(solved), graph.slope.flatten(1).norm(dim=1)

    def solve(self, curvature: Product, vector: Tensor) -> Tensor:
        """p [N, *latent] for `vector` [N, *latent], under the Hessian's product `curvature`."""
        if self.solver == "neumann" and self.products is None:
            return neumann(curvature, vector, self.terms, self.alpha)
        of = self._series if self.solver == "neumann" else pseudo_inverse
        return krylov(curvature, vector, self.products, of)

    def _series(self, eigenvalues: Tensor) -> Tensor:
        """The series as a function of H's eigenvalues."""
        term = total = torch.ones_like(eigenvalues)
        for _ in range(self.terms):
            term = term * (1 - self.alpha * eigenvalues)
            total = total + term
        return self.alpha * total


class Linearised:
    """One forward of E at the latents, kept: products with its Jacobian and with the Hessian of w ||F - E(z)||^2 cost no
    further one. `slope` [N, *latent] is the gradient of that in the latents."""

    def __init__(self, view: Product, latents: Tensor, features: Tensor, weight: float) -> None:
        self.latents = latents.detach().requires_grad_()
        self.weight = weight
        self.seen = view(self.latents)
        residual = self.seen - features.detach()
        # J^T u, linear in u: differentiated by u it gives the products with J
        self._dummy = torch.zeros_like(self.seen, requires_grad=True)
        self._pulled = _grad(self.seen, self.latents, self._dummy, create_graph=True)
        self._slope = _grad(weight * residual.square().sum(), self.latents, create_graph=True)
        self.slope = self._slope.detach()

    def push(self, vector: Tensor) -> Tensor:
        """J `vector`: [N, *latent] -> [N, *feature]."""
        return _grad(self._pulled, self._dummy, vector)

    def pull(self, vector: Tensor) -> Tensor:
        """J^T `vector`: [N, *feature] -> [N, *latent]."""
        return _grad(self.seen, self.latents, vector)

    def gauss_newton(self, vector: Tensor) -> Tensor:
        """2w J^T J `vector`."""
        return 2 * self.weight * self.pull(self.push(vector))

    def exact(self, vector: Tensor) -> Tensor:
        """The second derivative times `vector`."""
        return _grad(self._slope, self.latents, vector)


def neumann(curvature: Product, vector: Tensor, terms: int, alpha: float) -> Tensor:
    """alpha sum_{j=0..terms} (I - alpha H)^j `vector`, term by term, as the original sums it."""
    term = total = vector
    for _ in range(terms):
        term = term - alpha * curvature(term)
        total = total + term
    return alpha * total


def krylov(curvature: Product, vector: Tensor, size: int, of: Callable[[Tensor], Tensor]) -> Tensor:
    """f(H) `vector` [N, ...] per image, in the Krylov space of `size` dimensions that Lanczos' recurrence spans.

    `of` is f, applied to the eigenvalues of H in that space, float64 [N, size]. Polynomials of a degree below `size` are
    exact, f = 1 / lambda gives conjugate gradients, and a space that is exhausted early is exact too. Vectors are kept
    orthogonal in full, as rounding would bring back the largest eigenvalues again and again.
    """
    shape, length = vector.shape, vector.flatten(1).norm(dim=1)
    newest = vector.flatten(1) / _above_zero(length)[:, None]
    basis, diagonal, beside = [newest], [], []
    for index in range(size):
        moved = curvature(newest.view(shape)).flatten(1)
        diagonal.append((moved * newest).sum(1))
        if index + 1 < size:
            known = torch.stack(basis, 1)
            for _ in range(2):  # once is not orthogonal to rounding
                moved = moved - torch.einsum("nkd,nk->nd", known, torch.einsum("nkd,nd->nk", known, moved))
            # what rounding leaves where the space is exhausted is no direction: a vector of zeros has no part in f(H)
            left = moved.norm(dim=1)
            left = left.where(left > EXHAUSTED * torch.stack(diagonal).abs().amax(0), 0)
            beside.append(left)
            newest = torch.where(left[:, None] > 0, moved / _above_zero(left)[:, None], 0)
            basis.append(newest)
    matrix = torch.diag_embed(torch.stack(diagonal, 1).double())
    for index, value in enumerate(beside):
        matrix[:, index, index + 1] = matrix[:, index + 1, index] = value.double()
    values, vectors = torch.linalg.eigh(matrix)
    mixed = torch.einsum("nkj,nj,nj->nk", vectors, of(values), vectors[:, 0]) * length[:, None].double()
    return torch.einsum("nkd,nk->nd", torch.stack(basis, 1), mixed.to(vector)).view(shape)


def pseudo_inverse(eigenvalues: Tensor) -> Tensor:
    """1 / lambda [N, size], and 0 where there is no curvature to speak of, or a negative one."""
    large = eigenvalues > SMALLEST * eigenvalues.amax(dim=1, keepdim=True).clamp_min(0)
    return torch.where(large, 1 / eigenvalues.where(large, torch.ones_like(eigenvalues)), 0)


def _above_zero(lengths: Tensor) -> Tensor:
    """Lengths to divide by: a vector of none stays one."""
    return lengths.clamp_min(torch.finfo(lengths.dtype).tiny)


def _grad(outputs: Tensor, inputs: Tensor, weights: Tensor | None = None, create_graph: bool = False) -> Tensor:
    (found,) = torch.autograd.grad(outputs, inputs, weights, retain_graph=True, create_graph=create_graph)
    return found
