"""Muon against singular value decompositions, torch's own and AdamW; which weights it trains; other options."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

import hfgen
from hfgen.trainer.muon import COEFFICIENTS, Muon, hidden_matrices, orthogonal
from tests.helpers.toys import rows, run

SIDES = [(16, 16), (16, 90), (90, 16), (40, 64)]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("sides", SIDES)
def test_singular_vectors_stay_and_singular_values_follow_the_polynomial(sides):
    matrices = draw(3, *sides)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    expected = values / values.square().sum(-1, keepdim=True).sqrt()
    a, b, c = COEFFICIENTS
    for _ in range(5):
        expected = a * expected + b * expected**3 + c * expected**5
    assert expected.min() > 0.6 and expected.max() < 1.25
    torch.testing.assert_close(orthogonal(matrices).double(), left * expected[:, None] @ right, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-35, 1e-12, 1e12, 1e30])
def test_the_scale_of_a_matrix_is_of_no_influence(scale):
    matrices = draw(2, 20, 30).float()
    torch.testing.assert_close(orthogonal(matrices * scale), orthogonal(matrices), rtol=0, atol=1e-5)
    both = torch.stack([matrices[0], matrices[1] * scale])
    torch.testing.assert_close(orthogonal(both), orthogonal(matrices), rtol=0, atol=1e-5)
    assert not orthogonal(torch.zeros(1, 20, 30)).any()


def test_bases_and_sides_are_of_no_influence():
    matrix = draw(1, 20, 30)
    turn, other = (torch.linalg.qr(draw(n, n, seed=n)).Q for n in (20, 30))
    torch.testing.assert_close(
        orthogonal(turn @ matrix @ other).double(), turn @ orthogonal(matrix).double() @ other, rtol=0, atol=1e-4
    )
    torch.testing.assert_close(orthogonal(matrix.mT), orthogonal(matrix).mT)


# --- the update -------------------------------------------------------------------------------------------------------


def between(layer):
    """Return a network whose only hidden layer is this one."""
    return nn.Sequential(nn.Linear(2, 2), layer, nn.Linear(2, 2))


def settings(optimizer, **values):
    for group in optimizer.param_groups:
        group.update(values)


def steps_of(layer, read, count=4):
    """Take steps with random gradients; return the matrices (G, rows, columns) of the weight, and those that torch's
    Muon makes of them. `read` turns the weight into its matrices."""
    network = between(layer)
    ours = Muon(network, lr=0.004)
    theirs = [nn.Parameter(matrix.clone()) for matrix in read(layer.weight.detach())]
    peer = torch.optim.Muon(theirs, lr=1.0, momentum=0.8, weight_decay=0.3)
    for number in range(count):
        layer.weight.grad = draw(*layer.weight.shape, seed=number).float() * 10.0**-number
        for p, gradient in zip(theirs, read(layer.weight.grad), strict=True):
            p.grad = gradient.clone()
        settings(ours, lr=0.004 / (1 + number), ratio=7.0, momentum=0.8, matrix_decay=0.3)
        settings(peer, lr=0.028 / (1 + number))
        ours.step()
        peer.step()
    return read(layer.weight.detach()), torch.stack(list(theirs)).detach()


LAYERS = {
    "wide": (lambda: nn.Linear(50, 20), lambda w: w[None]),
    "tall": (lambda: nn.Linear(20, 50), lambda w: w[None]),
    "convolution": (lambda: nn.Conv2d(18, 20, 3), lambda w: w.reshape(1, 20, -1)),
    "of sequences": (lambda: nn.Conv1d(6, 20, 3), lambda w: w.reshape(1, 20, -1)),
    "channels last": (
        lambda: nn.Conv2d(18, 20, 3).to(memory_format=torch.channels_last),
        lambda w: w.reshape(1, 20, -1),
    ),
    "groups": (lambda: nn.Conv2d(40, 60, 3, groups=2), lambda w: w.reshape(2, 30, -1)),
    "transposed": (lambda: nn.ConvTranspose2d(18, 40, 4), lambda w: w.transpose(0, 1).reshape(1, 40, -1)),
    "transposed groups": (
        lambda: nn.ConvTranspose2d(36, 40, 2, groups=2),
        lambda w: w.reshape(2, 18, 20, 4).transpose(1, 2).reshape(2, 20, -1),
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_the_update_of_a_layer_is_that_of_torch_for_its_matrices(kind):
    make, read = LAYERS[kind]
    torch.manual_seed(0)
    got, wanted = steps_of(make(), read)
    # torch's iteration is in bfloat16: each of four steps of about 0.028 is exact to 1 %.
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-3)
    assert (got - wanted).norm() < 0.01 * wanted.norm()


def test_all_other_parameters_are_trained_by_the_bits_of_adamw():
    network = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
    twin = copy.deepcopy(network)
    options = {"lr": 0.01, "betas": (0.7, 0.8), "eps": 1e-3, "weight_decay": 0.2}
    ours, peer = Muon(network, 1.0), torch.optim.AdamW(twin.parameters(), fused=True)
    settings(ours, **options)
    settings(peer, **options)
    for number in range(3):
        for p, q in zip(network.parameters(), twin.parameters(), strict=True):
            p.grad = q.grad = draw(*p.shape, seed=number).float()
        ours.step()
        peer.step()
    for name, p in network.named_parameters():
        assert torch.equal(p, twin.get_parameter(name)) == (name != "1.weight")


def test_parameters_without_a_gradient_stay():
    network = between(nn.Linear(20, 20))
    before = copy.deepcopy(network.state_dict())
    optimizer = Muon(network, 0.1)
    network[0].weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert [name for name, p in network.named_parameters() if not torch.equal(p, before[name])] == ["0.weight"]


def test_a_step_with_infinite_gradients_is_left_out_under_a_loss_scale():
    network = between(nn.Linear(20, 20))
    before, optimizer = copy.deepcopy(network.state_dict()), Muon(network, 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(sum((p * float("inf")).sum() for p in network.parameters())).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert scaler.get_scale() == 4.0


# --- which weights ----------------------------------------------------------------------------------------------------


def names(network):
    known = {p: name for name, p in network.named_parameters()}
    return [known[p] for p in hidden_matrices(network)]


def test_first_and_last_layers_embeddings_norms_and_small_matrices_are_not_among_them():
    network = nn.ModuleDict(
        {
            "first": nn.Linear(64, 64),
            "classes": nn.Embedding(20, 64),
            "hidden": nn.Linear(64, 64),
            "norm": nn.GroupNorm(4, 64),
            "narrow": nn.Linear(64, 15),
            "depthwise": nn.Conv2d(64, 64, 3, groups=64),
            "frozen": nn.Linear(64, 64).requires_grad_(False),
            "kernel": nn.Conv2d(2, 64, 3),
            "last": nn.Linear(64, 64),
        }
    )
    network.register_parameter("positions", nn.Parameter(torch.zeros(64, 64)))
    assert names(network) == ["hidden.weight", "kernel.weight"]


def test_a_weight_that_an_end_shares_is_not_among_them():
    network = nn.Sequential(*[nn.Linear(20, 20) for _ in range(4)])
    network[2].weight = network[3].weight
    assert names(network) == ["1.weight"]


@pytest.mark.parametrize(
    "norm, name",
    [
        (parametrizations.spectral_norm, "1.parametrizations.weight.original"),
        (parametrizations.weight_norm, "1.parametrizations.weight.original1"),
        (spectral_norm, "1.weight_orig"),
    ],
)
@pytest.mark.parametrize("layer", [lambda: nn.Linear(20, 20), lambda: nn.ConvTranspose2d(20, 24, 3)])
def test_weights_under_a_norm_of_torch_are_found(norm, name, layer):
    network = between(norm(layer()))
    vectors = copy.deepcopy(dict(network.named_buffers()))
    assert names(network) == [name]
    assert all(torch.equal(value, vectors[key]) for key, value in network.named_buffers())


@pytest.mark.parametrize("architecture", ["unet", "patch_unet", "dit"])
def test_most_parameters_of_a_denoiser_are_hidden_matrices_and_its_ends_are_not(architecture):
    network = hfgen.build_denoiser(architecture, "xs", 16, 3, 10)
    found = names(network)
    assert sum(network.get_parameter(name).numel() for name in found) > 0.9 * network.num_parameters()
    ends = ("conv_in", "conv_out", "patch_embedding", "class_embedding", "output.")
    assert not [name for name in found if any(end in name for end in ends)]


def test_a_network_without_hidden_matrices_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"and Sequential has none\. Use --optimizer adamw"):
        run(tmp_path, "gan", optimizer="muon")


# --- trainings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, entry, value", [("muon_ratio", "ratio", 3.0), ("muon_momentum", "momentum", 0.5),
                                                ("muon_weight_decay", "matrix_decay", 0.4)])  # fmt: skip
def test_a_run_goes_on_with_other_options(tmp_path, capsys, name, entry, value):
    run(tmp_path / "a", "muon")
    run(tmp_path / "a", "muon", max_train_steps=8, **{name: value})
    assert f"{name}: " in capsys.readouterr().out
    groups = torch.load(tmp_path / "a" / "checkpoint-8" / "optimizer.bin")["param_groups"]
    assert [group[entry] for group in groups] == [value, value]


@pytest.mark.parametrize("options", [{"mixed_precision": "bf16"}, {"channels_last": True}, {"max_grad_norm": None}])
def test_it_learns_with_other_options_of_a_training(tmp_path, options):
    torch.manual_seed(0)
    network = hfgen.build_denoiser("patch_unet", "xs", 8, 1)
    common = {"max_train_steps": 12, "logging_steps": 1, "optimizer": "muon", "lr_scheduler": "constant"}
    run(tmp_path, "denoiser", networks={"denoiser": network}, **common, **options)
    losses = [row["loss"] for row in rows(tmp_path)]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
