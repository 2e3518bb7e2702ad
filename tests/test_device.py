"""On every device that is there: the losses agree with float64 on a CPU, and the same work gives the same bits."""

from __future__ import annotations

import pytest
import torch
from conftest import quick_config, random_backbone

from cause_lite.backbones.feature_store import cached_features
from cause_lite.fast.contrast import concept_contrastive_loss
from cause_lite.fast.modularity import shared_concept
from cause_lite.frontdoor import ConceptBank
from cause_lite.mediator import modularity_loss
from cause_lite.methods.as_released import fit
from cause_lite.runtime import device
from cause_lite.runtime.device import choose_device, device_name

DEVICES = sorted({"cpu", choose_device("auto").type})


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("place", DEVICES)
@pytest.mark.parametrize("patches, concepts", [(100, 2048), (196, 300), (16, 8)])
def test_modularity_agrees_with_float64(place, patches, concepts):
    features, codebook = drawn(3, patches, 32, seed=0), drawn(concepts, 32, seed=1)
    sides = [(features, codebook), (features.float().to(place), codebook.float().to(place))]
    values = []
    for x, codes in sides:
        loss = modularity_loss(x, codes.requires_grad_(), shared_concept=shared_concept)
        loss.backward()
        values.append((loss.detach().cpu().double(), codes.grad.cpu().double()))
    for wide, narrow in zip(*values, strict=True):
        assert float((wide - narrow).norm() / wide.norm()) < 1e-4


@pytest.mark.parametrize("place", DEVICES)
@pytest.mark.parametrize("banked", [False, True])
def test_contrast_agrees_with_float64(place, banked):
    values = []
    for dtype, where in ((torch.float64, "cpu"), (torch.float32, place)):
        features, codebook, teacher = (
            drawn(*s, seed=i).to(where, dtype) for i, s in enumerate([(4, 25, 16), (12, 16), (4, 25, 64)])
        )
        x, linear = drawn(4, 25, 8, seed=3).to(where, dtype).requires_grad_(), torch.nn.Linear(8, 64)
        linear.weight.data, linear.bias.data = drawn(64, 8, seed=4), drawn(64, seed=5)
        linear.to(where, dtype)
        bank = ConceptBank(12, 64, 6, where) if banked else None
        if bank is not None:
            bank.vectors = bank.vectors.to(dtype)
            generator = torch.Generator().manual_seed(6)
            bank.update(drawn(80, 64, seed=7).to(where, dtype), torch.arange(80, device=where) % 12, generator)
        loss = concept_contrastive_loss(features, codebook, (x, linear), teacher, bank)
        loss.backward()
        values.append([v.detach().cpu().double() for v in (loss, x.grad, linear.weight.grad, linear.bias.grad)])
    for wide, narrow in zip(*values, strict=True):
        assert float((wide - narrow).norm() / wide.norm()) < 1e-4


@pytest.mark.parametrize("place", DEVICES)
@pytest.mark.parametrize("head", ["mlp", "tr"])
@pytest.mark.parametrize("flow", ["clean", "as_released"])
@pytest.mark.filterwarnings("ignore:label_flow")
def test_the_same_fit_gives_the_same_bits(few_scenes, place, head, flow):
    config = quick_config({"head.kind": head, "probe.label_flow": flow})
    states = [fit(config, few_scenes, random_backbone().to(place)).segmenter.state_dict() for _ in "ab"]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("place", DEVICES)
def test_features_agree_with_those_of_a_cpu(few_scenes, place):
    wide = random_backbone().features(few_scenes.images).float()
    found = cached_features(random_backbone().to(place), few_scenes.images, "Features")[:].float()
    assert torch.nn.functional.cosine_similarity(wide, found, dim=-1).min() > 1 - 1e-3


@pytest.mark.parametrize("place", DEVICES)
def test_a_device_has_a_name(place):
    assert device_name(torch.device(place))


class OtherDevice:
    """Stands for torch's module of an accelerator whose draws advance a state of its own."""

    def __init__(self) -> None:
        self.state = torch.tensor([7])

    def get_rng_state(self) -> torch.Tensor:
        return self.state.clone()

    def set_rng_state(self, state: torch.Tensor) -> None:
        self.state = state.clone()


@pytest.mark.parametrize("block", [device.state_kept, lambda: device.seeded(3)])
def test_the_state_of_every_device_returns_after_a_block(block, monkeypatch):
    other = OtherDevice()
    monkeypatch.setattr(device, "_random_modules", lambda: {"cpu": torch, "other": other})
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), block():
        torch.rand(3)
        other.state += 1
        1 / 0  # noqa: B018
    assert torch.equal(torch.get_rng_state(), before) and other.state == 7
