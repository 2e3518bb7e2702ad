"""STEGO, HP and SmooSeg: the numbers of their released modules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite.backbones.feature_store import PatchStore
from cause_lite.head import TwoBranch
from cause_lite.methods import hp, smooseg, stego
from cause_lite.methods.training_loop import apart, centred_cosines, two_branch
from cause_lite.probe import ClusterProbe

PRECISIONS = [("f32", torch.float32, 1e-5), ("f64", torch.float64, 1e-9)]
HP_PRECISIONS = [("f32", torch.float32, 1e-5), ("f64", torch.float64, 1e-6)]  # released weights are float32 in both


def rows(maps: Tensor) -> Tensor:
    """Return maps (B, C, H, W) as patches (B, H W, C)."""
    return maps.flatten(2).mT


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, wanted.to(found), rtol=tolerance, atol=tolerance)


class GivenDropout(nn.Module):
    """Dropout of whole channels by masks (B, C) that are given, one a call; without any, none."""

    def __init__(self, masks: list[Tensor]) -> None:
        super().__init__()
        self.masks = masks

    def forward(self, x: Tensor) -> Tensor:
        return x * self.masks.pop(0)[:, None] if self.masks else x


def released_head(given: dict[str, Tensor], prefix: str, dtype: torch.dtype, masks: list[Tensor]) -> TwoBranch:
    """Return the head of a reference file, with the dropout of its masks."""
    width, dim = given[f"{prefix}1_0_weight"].shape[:2]
    head = two_branch(dim, width, 0.1)
    for layer, name in ((head.linear, "1_0"), (head.nonlinear[0], "2_0"), (head.nonlinear[2], "2_2")):
        layer.weight.data = given[f"{prefix}{name}_weight"][..., 0, 0]
        layer.bias.data = given[f"{prefix}{name}_bias"]
    head.dropout = GivenDropout(masks)
    return head.to(dtype)


def released_gradients(head: TwoBranch) -> dict[str, Tensor]:
    """Return the head's gradients by the released names."""
    layers = {"cluster1_0": head.linear, "cluster2_0": head.nonlinear[0], "cluster2_2": head.nonlinear[2]}
    found = {f"{name}_weight": layer.weight.grad[..., None, None] for name, layer in layers.items()}
    return found | {f"{name}_bias": layer.bias.grad for name, layer in layers.items()}


def sampled(maps: Tensor, coords: Tensor) -> Tensor:
    """Return maps (B, C, H, W) at coordinates (B, S, S, 2) as points (B, S S, C), in the released order."""
    found = F.grid_sample(maps, coords.transpose(1, 2), padding_mode="border", align_corners=True)
    return rows(found)


def stego_terms(
    given: dict[str, Tensor], here: Tensor, there: Tensor, code: Tensor, code_there: Tensor
) -> list[Tensor]:
    """Return the mean losses of STEGO's three terms at the reference's points."""
    kind = here.dtype
    first, second = given["coords1"].to(kind), given["coords2"].to(kind)
    points = (sampled(here, first), sampled(code, first))
    others = [(sampled(here[order], second), sampled(code[order], second)) for order in given["perm"]]
    shifts = [float(given[f"setting_{name}_shift"]) for name in ("pos_intra", "pos_inter", "neg_inter")]
    neighbours = (sampled(there, second), sampled(code_there, second))
    terms = [
        stego.pair_loss(points, other, shift)[0].mean()
        for other, shift in [(points, shifts[0]), (neighbours, shifts[1])]
    ]
    return [*terms, torch.stack([stego.pair_loss(points, other, shifts[2])[0].mean() for other in others]).mean()]


@pytest.mark.parametrize(("name", "dtype", "tolerance"), PRECISIONS)
def test_stego_compares_pairs_as_released(reference, name, dtype, tolerance):
    given = reference("stego")
    f1, f2, c1, c2 = (rows(given[f"helper_{key}"].to(dtype)) for key in ("f1", "f2", "c1", "c2"))
    c1, c2 = c1.requires_grad_(), c2.requires_grad_()
    loss, cosines = stego.pair_loss((f1, c1), (f2, c2), float(given["helper_shift"]))
    loss.mean().backward()
    close(loss.flatten(), given[f"helper_loss_{name}"].flatten(), tolerance)
    close(cosines.flatten(), given[f"helper_cd_{name}"].flatten(), tolerance)
    close(c1.grad, rows(given[f"helper_grad_c1_{name}"]), tolerance)
    close(c2.grad, rows(given[f"helper_grad_c2_{name}"]), tolerance)


@pytest.mark.parametrize(("name", "dtype", "tolerance"), PRECISIONS)
def test_a_step_of_stego_is_the_released_one(reference, name, dtype, tolerance):
    given = reference("stego")
    masks = [mask.to(dtype) / 0.9 for mask in given["dropout_masks"]]
    head = released_head(given, "head_cluster", dtype, [masks[0], masks[1], masks[3], masks[4]])
    here, there = given["feats"].to(dtype), given["feats_pos"].to(dtype)
    grid = here.shape[2:]
    code, code_there = (head(rows(maps)).mT.unflatten(2, grid) for maps in (here, there))
    close(code, given[f"head_train_code_{name}"], tolerance)
    here, there = here * masks[2][..., None, None], there * masks[5][..., None, None]
    terms = stego_terms(given, here, there, code, code_there)
    for term, key in zip(terms, ("pos_intra", "pos_inter", "neg_inter"), strict=True):
        close(term, given[f"step_loss_{key}_{name}"], tolerance)
    weights = [float(given[f"setting_{key}_weight"]) for key in ("pos_intra", "pos_inter", "neg_inter")]
    sum(weight * term for weight, term in zip(weights, terms, strict=True)).backward()
    for key, gradient in released_gradients(head).items():
        close(gradient, given[f"step_grad_{key}_{name}"], tolerance)


def test_stego_draws_partners_and_neighbours_as_released(reference, tmp_path):
    given = reference("stego")
    assert apart(given["perm_raw8"]).tolist() == given["perm_fixed8"].tolist()
    maps = rows(given["knn_feats"])
    store = PatchStore(tmp_path / "v", tuple(maps.shape), maps.dtype, maps.__getitem__, "v")
    assert stego.nearest_images(store).tolist() == given["knn_top"][:, 1:].tolist()


@pytest.mark.parametrize(("name", "dtype", "tolerance"), PRECISIONS)
def test_cosine_clusters_are_the_released_probe(reference, name, dtype, tolerance):
    given = reference("stego")
    codes, centres = given["probe_input"].to(dtype), given["cluster_centres"].to(dtype)
    probe = ClusterProbe(*centres.shape).to(dtype)
    probe.centres.data = centres
    loss = probe.loss(rows(codes))
    loss.backward()
    close(loss, given[f"probe_loss_{name}"], tolerance)
    close(probe.centres.grad, given[f"probe_grad_{name}"], tolerance)


def unpacked(bits: Tensor, columns: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits.numpy(), axis=1, count=columns)).bool()


@pytest.mark.parametrize("file", ["hp_1", "hp_2"])
@pytest.mark.parametrize(("name", "dtype", "tolerance"), HP_PRECISIONS)
def test_positives_and_contrast_of_hp_are_the_released_ones(reference, file, name, dtype, tolerance):
    given = reference(file)
    images, rho, weight, tau = (given[f"setting_{key}"].item() for key in ("batch", "rho", "lambda", "tau"))
    found = []
    for key in "fs":
        vectors = given[f"loss_{key}"].to(dtype)
        found.append(hp.positives(vectors, given[f"pool_{key}"].to(dtype)))
        assert torch.equal(found[-1], unpacked(given[f"positives_{key}"], len(vectors)))
    compared = (given["uniform"] < rho).repeat(images, 1)
    z, mixed = (given[f"loss_{key}"].to(dtype).requires_grad_() for key in ("z", "z_mix"))
    loss = sum(hp.contrast(vectors, *found, compared, images, weight, tau) for vectors in (z, mixed)) / 2
    close(loss, given[f"loss_value_{name}"], tolerance)
    loss.backward()
    close(z.grad, given[f"loss_grad_z_{name}"], tolerance)
    close(mixed.grad, given[f"loss_grad_z_mix_{name}"], tolerance)


@pytest.mark.parametrize("file", ["hp_1", "hp_2"])
@pytest.mark.parametrize(("name", "dtype", "tolerance"), HP_PRECISIONS)
def test_a_step_of_hp_is_the_released_one(reference, file, name, dtype, tolerance):
    given = reference(file)
    images, rho, weight, tau = (given[f"setting_{key}"].item() for key in ("batch", "rho", "lambda", "tau"))
    masks, of_code = (given[f"dropout_masks_{key}"].to(dtype) / 0.9 for key in ("feats", "code"))
    model = hp.HiddenPositives(1, len(given["project_bias"]), 0.1)
    model.head = released_head(given, "head_cluster", dtype, [masks[0], masks[2]])
    model.slow = released_head(given, "head_ema_model", dtype, [masks[1], masks[3]])
    model.dropout = GivenDropout([masks[4], *of_code])
    model.project.load_state_dict({key: given[f"project_{key}"] for key in ("weight", "bias")})
    attention = given["attention"].to(dtype).mean(1)[:, 1:, 1:]
    close(hp.neighbour_weights(attention), given["mix_matrix"], 1e-6)
    z, mixed, features, slow = model.to(dtype)(rows(given["feats"]).to(dtype), attention)
    found = [
        hp.positives(vectors, given[pool].to(dtype)) for vectors, pool in ((features, "pool_f"), (slow, "pool_s_step"))
    ]
    compared = (given["uniform"] < rho).repeat(images, 1)
    loss = sum(hp.contrast(vectors, *found, compared, images, weight, tau) for vectors in (z, mixed)) / 2
    close(loss, given[f"step_supcon_{name}"], tolerance)
    if not given["setting_alpha"]:  # without a view in other colours, the head has no other loss
        loss.backward()
        for key, gradient in released_gradients(model.head).items():
            close(gradient, given[f"step_grad_{key}_{name}"], tolerance)
        close(model.project.weight.grad, given[f"step_grad_project_weight_{name}"], tolerance)


def released_smooseg(given: dict[str, Tensor], dtype: torch.dtype, masks: Tensor) -> smooseg.SmooSeg:
    """Return the model of the reference file, with the dropout of masks (n, B, C)."""
    width, dim = given["init_w_lin"].shape
    model = smooseg.SmooSeg(two_branch(dim, width, 0.2, nn.SiLU()), len(given["init_student"]), width)
    model.load_state_dict({name: given[f"init_{theirs}"] for name, theirs in SMOOSEG.items()})
    model.head.dropout = GivenDropout([mask.to(dtype) for mask in masks.flatten(0, -3)])
    return model.to(dtype)


SMOOSEG = {
    "head.linear.weight": "w_lin",
    "head.linear.bias": "b_lin",
    "head.nonlinear.0.weight": "w_in",
    "head.nonlinear.0.bias": "b_in",
    "head.nonlinear.2.weight": "w_out",
    "head.nonlinear.2.bias": "b_out",
    "student.vectors": "student",
    "teacher.vectors": "teacher",
}
SMOOSEG_PRECISIONS = [("32", torch.float32, 1e-5), ("64", torch.float64, 1e-9)]


def smooseg_settings(given: dict[str, Tensor]) -> tuple[tuple[float, float], smooseg.SmooSegOptions]:
    options = smooseg.SmooSegOptions(temperature=float(given["temperature"]), decay=float(given["alpha"]))
    return (float(given["b_within"]), float(given["b_across"])), options


@pytest.mark.parametrize(("name", "dtype", "tolerance"), SMOOSEG_PRECISIONS)
def test_the_losses_of_smooseg_and_their_gradients_are_the_released_ones(reference, name, dtype, tolerance):
    given = reference("smooseg")
    model = released_smooseg(given, dtype, given["dropout_masks"])
    smooth, data = model.losses(rows(given["features"]).to(dtype), given["permutation"], *smooseg_settings(given))
    close(smooth, given[f"loss_smooth_{name}"], tolerance)
    close(data, given[f"loss_data_{name}"], tolerance)
    (smooth + data).backward()
    for ours, parameter in model.named_parameters():
        if parameter.requires_grad:
            close(parameter.grad, given[f"grad_{SMOOSEG[ours]}_{name}"], tolerance)


@pytest.mark.parametrize(("name", "dtype", "tolerance"), SMOOSEG_PRECISIONS)
def test_some_steps_of_smooseg_are_the_released_ones(reference, name, dtype, tolerance):
    given = reference("smooseg")
    model = released_smooseg(given, dtype, given["trajectory_masks"])
    optimizers = [
        torch.optim.Adam(model.head.parameters(), lr=float(given["lr_projection"])),
        torch.optim.Adam(model.student.parameters(), lr=float(given["lr_prototypes"])),
    ]
    features = rows(given["features"]).to(dtype)
    for order, wanted in zip(given["trajectory_permutations"], given[f"trajectory_losses_{name}"], strict=True):
        model.zero_grad()
        losses = model.losses(features, order, *smooseg_settings(given))
        close(torch.stack(losses), wanted, tolerance)
        sum(losses).backward()
        for optimizer in optimizers:
            optimizer.step()
    for ours, value in model.state_dict().items():
        close(value, given[f"final_{SMOOSEG[ours]}_{name}"], tolerance)


def test_the_energy_without_pairs_is_the_energy_of_pairs():
    generator = torch.Generator().manual_seed(0)
    f, g, p, q = (torch.rand(3, 7, width, generator=generator, dtype=torch.float64) for width in (5, 5, 4, 4))
    far = 1 - F.normalize(p, dim=-1) @ F.normalize(q, dim=-1).mT
    close(smooseg.smoothness(f, g, p, q, 0.2), ((centred_cosines(f, g) - 0.2) * far).mean(), 1e-12)
