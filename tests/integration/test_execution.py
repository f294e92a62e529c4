"""The mask token's hook under what PyTorch does with models: compilation, checkpointing, several processes, layouts
and precisions give the same loss and gradients."""

import copy

import pytest
import torch
from torch import distributed
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from modeling_a2mim import A2MIMForPreTraining
from modeling_a2mim.masking import random_mask

from ..families import FAMILIES, HIERARCHICAL, checkpointed, family_config
from ..processes import in_two_processes


pytestmark = pytest.mark.usefixtures("one_thread")
MULTISCALE = [f"{family} multiscale" for family in HIERARCHICAL]
MASKS = random_mask(6, (4, 4), 10, torch.Generator().manual_seed(0))


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(params=[*FAMILIES, *MULTISCALE])
def kind(request):
    return request.param


def make(kind, **kwargs):
    """A family, or a family and a decoder or a target."""
    family, _, option = kind.partition(" ")
    options = {"multiscale": {"decoder": "multiscale"}, "normalised": {"target": "normalised"}}
    settings = {"image_size": 128, "mask_patch_size": 32, **options.get(option, {}), **kwargs}
    torch.manual_seed(0)
    return A2MIMForPreTraining(family_config(family, **settings)).train()


def make_images(batch=4):
    return torch.randn(batch, 3, 128, 128, generator=torch.Generator().manual_seed(1))


def loss_and_gradients(model, *args, seed=2):
    """Stochastic depth draws from the seed."""
    torch.manual_seed(seed)
    model.zero_grad()
    loss = model(*args).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_close(actual, expected, tolerance):
    """Relative to the largest value of a gradient, or to 1e-4 of the largest of all if it is zero up to rounding."""
    assert actual[0].item() == pytest.approx(expected[0].item(), rel=tolerance)
    floor = 1e-4 * max(gradient.abs().max().item() for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        atol = tolerance * max(gradient.abs().max().item(), floor)
        torch.testing.assert_close(actual[1][name], gradient, rtol=0, atol=atol, msg=name)


# Compilation


QUICK = ["resnet", "efficientnet multiscale"]
OTHERS = [*(kind for kind in (*FAMILIES, *MULTISCALE) if kind not in QUICK), "vit normalised"]


@pytest.mark.ci
@pytest.mark.few(1)
@pytest.mark.parametrize("kind", [*QUICK, *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS)])
def test_compiled_in_one_graph(kind):
    """One graph with a mask and one without, whatever the mask and however often. Its gradients are compiled too for
    one family (which takes most of the time)."""
    model, images = make(kind), make_images()
    plain = copy.deepcopy(model)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager" if kind == "resnet" else "eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for first in (0, 1, 2):
        mask = MASKS[first : first + 4]
        expected = loss_and_gradients(plain, images, mask)
        torch.manual_seed(2)
        model.zero_grad()
        loss = compiled(images, mask).loss
        loss.backward()
        actual = loss.detach(), {name: p.grad for name, p in model.named_parameters()}
        assert_close(actual, expected, 1e-4)  # compiled operations are decomposed and add in another order
    assert counter.frame_count == 1
    encoder = torch.compile(model.a2mim.eval(), fullgraph=True, backend=counter)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(encoder(images).pooler_output, model.a2mim(images).pooler_output)
    assert counter.frame_count == 2
    torch._dynamo.reset()


# Gradient checkpointing: the segments run again, and the hook with them


def test_gradient_checkpointing(kind):
    model, images = make(kind), make_images()
    plain = copy.deepcopy(model)
    checkpointed(model)
    expected = loss_and_gradients(plain, images, MASKS[:4])
    assert_close(loss_and_gradients(model, images, MASKS[:4]), expected, 1e-5)  # sums in another order
    assert expected[1]["a2mim.mask_token.token"].all()


@pytest.mark.parametrize("fails", [False, True])
def test_an_ended_backward_leaves_no_mask(fails):
    """Also where the encoder is called without the model around it, with gradients and checkpointing."""
    model, images = checkpointed(make("convnext")), make_images()
    encoder = model.a2mim.encoder
    expected = encoder(images).detach()
    loss = model(images, MASKS[:4]).loss
    if fails:
        handle = next(encoder.parameters()).register_hook(lambda gradient: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loss.backward()
        handle.remove()
    else:
        loss.backward()
    features = encoder(images)
    assert torch.equal(features, expected)
    features.square().mean().backward()  # checkpointing refuses a segment that computes anything else again


# Several processes


DISTRIBUTED = ["vit", "resnet multiscale"]
REST = [kind for kind in (*FAMILIES, "resnet multiscale", "vit normalised") if kind not in DISTRIBUTED]


def half_a_batch(model, rank):
    half = slice(2 * rank, 2 * rank + 2)
    return loss_and_gradients(model, make_images()[half], MASKS[half], seed=rank)


def run_ddp(rank: int, folder: str, kinds: list[str]):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    result, sharded = {}, {}
    for kind in kinds:
        wrapped = DistributedDataParallel(make(kind))
        half_a_batch(wrapped, rank)  # a parameter left out of one backward would stop the next forward
        wrapped.module.load_state_dict(make(kind).state_dict())
        loss, gradients = half_a_batch(wrapped, rank)
        result[kind] = loss, {name.removeprefix("module."): gradient for name, gradient in gradients.items()}
        model = make(kind)
        for part in model.a2mim.encoder.children():
            for block in part.children() if isinstance(part, torch.nn.Sequential | torch.nn.ModuleList) else ():
                fully_shard(block, mesh=init_device_mesh("cpu", (2,)))
        loss, gradients = half_a_batch(fully_shard(model, mesh=init_device_mesh("cpu", (2,))), rank)
        sharded[kind] = loss, {name: gradient.full_tensor() for name, gradient in gradients.items()}
    torch.save((result, sharded), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.ci
@pytest.mark.parametrize("kinds", [DISTRIBUTED, pytest.param(REST, marks=pytest.mark.slow)], ids=" and ".join)
def test_distributed_and_sharded_data_parallel(tmp_path, kinds):
    """Two processes end up with the mean of the gradients of their halves, with DDP and with FSDP (of torch, as
    accelerate has it for GPUs only)."""
    in_two_processes(run_ddp, str(tmp_path), kinds)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for kind in kinds:
        halves = [half_a_batch(make(kind), rank) for rank in range(2)]
        gradients = {name: (x + halves[1][1][name]) / 2 for name, x in halves[0][1].items()}
        for (loss, _), both in zip(halves, results, strict=True):
            for actual in both:
                assert_close(actual[kind], (loss, gradients), 1e-5)


# Layouts and precisions


def test_channels_last(kind):
    model, images = make(kind).eval(), make_images()  # BatchNorm in training is 6e-4 off in channels_last on a CPU
    expected = loss_and_gradients(model, images, MASKS[:4])
    model.to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    assert_close(loss_and_gradients(model, images, MASKS[:4]), expected, 1e-4)


@pytest.mark.few(4)
def test_bfloat16(kind):
    """Eight bits of mantissa: 0.4% for each operation, of which some dozens follow each other."""
    model, images = make(kind).eval(), make_images(2)
    expected = loss_and_gradients(model, images, MASKS[:2])
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradients = loss_and_gradients(model, images, MASKS[:2])
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected[0].item(), rel=0.01)
    one, two = (torch.cat([x.flatten() for x in g.values()]) for g in (gradients, expected[1]))
    assert torch.cosine_similarity(one, two, dim=0) > 0.99


def test_weights_in_bfloat16(kind):
    """As with transformers' own models, images may be float32 (`--bf16_full_eval`); the loss is."""
    model, images = make(kind).eval(), make_images(2)
    with torch.no_grad():
        expected = model(images, MASKS[:2]).loss
        found = model.to(torch.bfloat16)(images, MASKS[:2]).loss
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=0.02)
