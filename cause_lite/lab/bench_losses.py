"""One step of each loss as the bench measures it: as training takes it, in its plain form, and as released.

Begin with `modularity` and `contrast`, which are lines of `cause-lite bench`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite import mediator
from cause_lite.fast import contrast as fast_contrast
from cause_lite.fast import modularity as fast_modularity
from cause_lite.frontdoor import ConceptBank
from cause_lite.lab.bench import MatrixProducts, compare_loads, measure, seconds
from cause_lite.runtime.device import choose_device

IMAGES, PATCHES, CHANNELS, CONCEPTS, REDUCED, PROJECTED = 16, 100, 384, 2048, 90, 2048  # the release's step
TEMPERATURE, POSITIVE, NEGATIVE = 0.07, 0.3, 0.1  # of its contrast
DEVICE = choose_device("auto")


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal numbers on the device, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def step(loss: Callable[[], Tensor], *leaves: Tensor) -> Callable[[], float]:
    """Return a function that runs `loss` forward and backward, and returns its value, to compare both sides by."""

    def run() -> float:
        for leaf in leaves:
            leaf.grad = None
        value = loss()
        value.backward()
        return value.item()

    return run


def modularity_sides(patches: int, concepts: int) -> tuple[Callable[[], float], Callable[[], float]]:
    """Return a step of the clusterbook as training takes it, and one of the plain form."""
    features, codebook = normal(IMAGES, patches, CHANNELS), normal(concepts, CHANNELS, seed=1).requires_grad_()
    ways = fast_modularity.shared_concept, mediator.shared_concept
    ours, plain = (
        step(partial(mediator.modularity_loss, features, codebook, shared_concept=way), codebook) for way in ways
    )
    return ours, plain


def modularity() -> Iterator[dict]:
    """Measure one step of the clusterbook, against the plain `modularity_loss` and its B x K x P x P tensor."""
    ours, plain = modularity_sides(PATCHES, CONCEPTS)
    difference = abs(ours() - plain())
    yield from compare_loads("16 x 100 patches, K = 2048", ours, plain, rounds=3, difference=difference)


def modularity_growth() -> Iterator[dict]:
    """Measure the same step by patches and concepts; the plain form would need B x K x P x P x 4 bytes and more."""
    for patches in (100, 400, 1600):
        for concepts in (512, 1024, 2048, 4096):
            ours, _ = modularity_sides(patches, concepts)
            ours()
            yield {
                "case": f"{patches} patches, K = {concepts}",
                "patches": patches,
                "concepts": concepts,
                "seconds": min(seconds(ours) for _ in range(2)),
                "megabytes": measure(ours).megabytes,
                "plain_gigabytes": IMAGES * concepts * patches**2 * 4 / 1e9,
            }


class Contrast:
    """One step of the contrastive loss with a bank of `capacity` vectors a concept, all of it in use."""

    def __init__(self, capacity: int, concepts: int = CONCEPTS, projected: int = PROJECTED) -> None:
        self.features, self.codebook = normal(IMAGES, PATCHES, CHANNELS), normal(concepts, CHANNELS, seed=1)
        self.reduced = normal(IMAGES, PATCHES, REDUCED, seed=2).requires_grad_()
        torch.manual_seed(0)
        self.projection = nn.Linear(REDUCED, projected).to(DEVICE)
        self.teacher = normal(IMAGES, PATCHES, projected, seed=3)
        self.bank = ConceptBank(concepts, projected, capacity, DEVICE)
        generator = torch.Generator().manual_seed(4)
        for rows in self.bank.vectors.split(8192):
            rows.copy_(F.normalize(torch.randn(rows.shape, generator=generator), dim=1))
        self.bank.filled += capacity
        self.owners = torch.arange(concepts, device=DEVICE).repeat_interleave(capacity)
        self.leaves = (self.reduced, *self.projection.parameters())

    def fast(self, low_rank: bool = True) -> Callable[[], float]:
        """Return a step as training takes it; `low_rank` tells the loss what the projections are computed from."""

        def loss() -> Tensor:
            projected = (self.reduced, self.projection) if low_rank else self.projection(self.reduced)
            return fast_contrast.concept_contrastive_loss(
                self.features, self.codebook, projected, self.teacher, self.bank
            )

        return step(loss, *self.leaves)

    def loop(self) -> Callable[[], float]:
        """Return a step by a loop over images, on the same bank."""
        return self._loop(lambda: (self.bank.vectors, self.owners))

    def as_released(self) -> Callable[[], float]:
        """Return a step by a loop over images, on a bank that is joined anew each time."""
        by_concept = self.bank.vectors.split(self.bank.capacity)
        return self._loop(partial(joined_bank, by_concept, self.codebook))

    def _loop(self, bank: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], float]:
        def loss() -> Tensor:
            projected = self.projection(self.reduced)
            return looped_loss(self.features, self.codebook, projected, self.teacher, bank())

        return step(loss, *self.leaves)


def looped_loss(
    features: Tensor, codebook: Tensor, projected: Tensor, teacher: Tensor, bank: tuple[Tensor, Tensor]
) -> Tensor:
    """Return `concept_contrastive_loss` by a loop over images: the anchors of each against the batch and the bank."""
    codes = F.normalize(codebook, dim=-1)
    alike = codes @ codes.T
    concept = (F.normalize(features, dim=-1) @ codes.T).argmax(-1)
    keys = F.normalize(teacher.detach(), dim=-1).flatten(0, 1)
    patches, means = features.shape[1], []
    for vectors, owners in ((keys, concept.flatten()), (F.normalize(bank[0], dim=-1), bank[1])):
        images = []
        for number, image in enumerate(projected):
            similarity = F.normalize(image, dim=-1) @ vectors.T / TEMPERATURE
            near = alike[concept[number]][:, owners]
            positive, negative = near > POSITIVE, near < NEGATIVE
            if vectors is keys:
                positive[torch.arange(patches), number * patches + torch.arange(patches)] = False
            partition = (similarity.exp() * (positive | negative)).sum(1, keepdim=True)
            pairs = partition.expand_as(similarity)[positive].log() - similarity[positive]
            images.append(pairs.mean() if len(pairs) else similarity.sum() * 0)
        means.append(torch.stack(images).mean())
    return torch.stack(means).mean()


def joined_bank(by_concept: Sequence[Tensor], codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Join the vectors and the codes of each concept, one concept after the other as released."""
    vectors, codes = codebook.new_empty(0, by_concept[0].shape[1]), codebook.new_empty(0, codebook.shape[1])
    owners = torch.empty(0, dtype=torch.long, device=codebook.device)
    for concept, stored in enumerate(by_concept):
        codes = torch.cat([codes, codebook[concept].expand(len(stored), -1)])
        vectors = torch.cat([vectors, stored])
        owners = torch.cat([owners, owners.new_full((len(stored),), concept)])
    return vectors, owners


def contrast() -> Iterator[dict]:
    """Measure one step of the head's loss, against a loop, the release's joined bank, and its products alone."""
    for capacity, rounds in ((5, 3), (20, 2), (100, 1)):
        sides = Contrast(capacity)
        ours, loop, name = sides.fast(), sides.loop(), f"bank of 2048 x {capacity}"
        difference = abs(ours() - loop())
        yield from compare_loads(f"{name}, a loop over images", ours, loop, rounds, difference=difference)
        wide = sides.fast(low_rank=False)
        yield from compare_loads(f"{name}, without the low rank, a loop over images", wide, loop, 1)
        with MatrixProducts() as products:
            ours()
        yield from compare_loads(f"{name}, its matrix products alone", ours, products.replay(), 3)
        if capacity <= 20:
            yield from compare_loads(f"{name}, as released", ours, sides.as_released(), 1)
