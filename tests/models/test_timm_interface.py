"""Every registered name is a timm model: what timm asks of its own models, asked of these."""

import copy
import fnmatch
import io
import pickle
import re
import socket
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models import FeatureInfo
from timm.models._manipulate import group_parameters
from torch import nn

import models
from models import ACTIVATIONS, NORMALIZATIONS, ResNet
from models.crelu_resnet import IMAGENET_BLOCKS, default_cfgs

NAMES = sorted(default_cfgs)
# One of each block and layout.
BLOCKS = [
    "resnet20_relu_bn",  # BasicBlock, type-A shortcut
    "resnet20_crelu_np",  # PreActBasicBlock, BatchNorm on the identity path
    "resnet34_crelu_bn",  # PreActBasicBlock, type-B shortcut
    "resnet50_crelu_np2",  # Bottleneck, NormProp shortcut
]
# Networks of depths between those of the tables differ from them in the number of their blocks alone.
BETWEEN = ("resnet32_", "resnet44_", "resnet56_", "resnet101_")
each_name = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full if name.startswith(BETWEEN) else ()) for name in NAMES]
)
each_block = pytest.mark.parametrize("name", BLOCKS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def build(name: str, **arguments: Any) -> Any:
    """A model for quick tests: 8 filters in the first stage and, in the ImageNet layout, 5 blocks for 16."""
    with pytest.MonkeyPatch.context() as patch:
        for depth in (34, 50):
            patch.setitem(IMAGENET_BLOCKS, depth, (2, 1, 1, 1))
        return timm.create_model(name, **({"width": 8} | arguments)).eval()


def images(model: Any, batch: int = 2, channels: int = 3) -> torch.Tensor:
    size = 16 if model.pretrained_cfg["input_size"][-1] == 32 else 64
    return torch.randn(batch, channels, size, size)


# Registration and configuration


def test_timm_lists_every_depth_activation_and_normalization() -> None:
    expected = {
        f"resnet{depth}_{act}_{norm}"
        for depth in (20, 32, 44, 56, 110, 34, 50, 101)
        for act in ("relu", "crelu")
        for norm in ("bn", "plain", "nobias", "np", "np2", "np3")
    } | {"resnet110_w32_relu_bn", "resnet110_w12_crelu_bn", "resnet110_w24_crelu_bn"}
    assert expected <= set(NAMES)
    assert set(timm.list_models(module="crelu_resnet")) == set(NAMES)
    assert set(timm.list_models("resnet*_crelu_*")) == set(fnmatch.filter(NAMES, "*_crelu_*"))
    assert all(timm.is_model(name) for name in NAMES)


@each_name
def test_a_registered_model_keeps_what_its_configuration_promises(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    cfg = model.pretrained_cfg
    assert cfg["architecture"] == name
    assert name.startswith(f"resnet{sum(len(layer) for layer in stages(model)) * convolutions(model) + 2}_")
    assert (model.num_classes, model.in_chans) == (cfg["num_classes"], cfg["input_size"][0])
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    x = torch.randn(2, *cfg["input_size"], device="meta")
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, *cfg["pool_size"])
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert model.forward_head(features).shape == (2, cfg["num_classes"])
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    intermediates = model.forward_intermediates(x, intermediates_only=True)
    sizes = [(2, c, x.shape[2] // r, x.shape[3] // r) for c, r in zip(info.channels(), info.reduction(), strict=True)]
    assert [tuple(y.shape) for y in intermediates] == sizes
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert set(groups) == {key for key, _ in model.named_parameters()}


def stages(model: Any) -> list[nn.Sequential]:
    return [model.layer1, model.layer2, model.layer3, model.layer4]


def convolutions(model: Any) -> int:
    return 3 if hasattr(model.layer1[0], "conv3") else 2


def test_configurations_hold_the_statistics_of_cifar10_and_imagenet_between_0_and_1() -> None:
    for name in NAMES:
        if name.startswith(("resnet34", "resnet50", "resnet101")):
            mean, std, size = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (3, 224, 224)
        else:
            mean, std, size = (0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616), (3, 32, 32)
        registered = timm.get_pretrained_cfg(name)
        assert registered.input_size == size
        assert registered.mean == pytest.approx(mean, abs=5e-5)
        assert registered.std == pytest.approx(std, abs=5e-5)


def test_pretrained_weights_are_refused_without_a_network_access(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        pytest.fail("tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    with pytest.raises(RuntimeError, match=r"No pretrained weights exist for resnet20_relu_bn.*pretrained=False"):
        timm.create_model("resnet20_relu_bn", pretrained=True)


def test_timm_loads_a_torchvision_checkpoint_into_other_channels_and_classes() -> None:
    state = torchvision.models.resnet34(weights=None).state_dict()
    model = timm.create_model(
        "resnet34_relu_bn",
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": dict(state)},
        in_chans=1,
        num_classes=5,
    )
    assert torch.equal(model.layer4[2].conv2.weight, state["layer4.2.conv2.weight"])
    torch.testing.assert_close(model.conv1.weight, state["conv1.weight"].sum(dim=1, keepdim=True))
    assert model.fc.weight.shape == (5, 512)


def test_an_unknown_argument_is_an_error() -> None:
    with pytest.raises(TypeError, match="zero_init_last"):
        timm.create_model("resnet20_relu_bn", zero_init_last=True)


# Arguments


@each_block
def test_classes_channels_and_pooling_are_arguments(name: str) -> None:
    model = build(name, num_classes=7, in_chans=1, global_pool="max")
    x = images(model, channels=1)
    features = model.forward_features(x)
    assert model(x).shape == (2, 7)
    assert torch.equal(model(x), model.fc(features.amax(dim=(2, 3))))
    assert torch.equal(model.forward_head(features, pre_logits=True), features.amax(dim=(2, 3)))


@each_block
def test_without_classes_or_pooling_a_model_returns_its_features(name: str) -> None:
    model = build(name, num_classes=0)
    x = images(model)
    features = model.forward_features(x)
    torch.testing.assert_close(model(x), features.mean(dim=(2, 3)))
    bare = build(name, num_classes=0, global_pool="")
    bare.load_state_dict(model.state_dict())
    assert torch.equal(bare(x), features)


@each_block
def test_resetting_the_classifier_keeps_pooling_place_type_and_mode(name: str) -> None:
    model = build(name, global_pool="max", num_classes=10)
    x = images(model)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(5)
    assert (model.num_classes, model(x).shape) == (5, (2, 5))
    assert torch.equal(model.forward_head(model.forward_features(x), pre_logits=True), pooled)
    assert (model.fc.bias == 0).all()
    assert model.fc.weight.abs().max() <= model.num_features**-0.5
    assert not any(module.training for module in model.modules())

    model.reset_classifier(0)
    assert model.num_classes == 0
    assert torch.equal(model(x), pooled)
    model.reset_classifier(3, "catavgmax")
    assert model.head_hidden_size == model.fc.in_features == 2 * model.num_features
    assert model(x).shape == (2, 3)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), model.forward_features(x))

    model.to("meta", torch.float64).reset_classifier(2, "avg")
    assert (model.fc.weight.device.type, model.fc.weight.dtype) == ("meta", torch.float64)


def test_the_classifier_can_be_had_by_name_and_as_a_module() -> None:
    model = build("resnet20_relu_bn", num_classes=4)
    assert model.get_classifier(name_only=True) == "fc"
    assert model.get_classifier() is model.fc
    assert model.fc.out_features == 4


def test_dropout_acts_in_training_only() -> None:
    plain, dropping = build("resnet20_relu_bn"), build("resnet20_relu_bn", drop_rate=0.5)
    dropping.load_state_dict(plain.state_dict())
    features = torch.rand(2, plain.num_features, 4, 4) + 0.1
    assert torch.equal(dropping.forward_head(features), plain.forward_head(features))
    dropping.train()
    kept = dropping.forward_head(features, pre_logits=True)
    pooled = plain.forward_head(features, pre_logits=True)
    assert 0 < (kept == 0).sum() < kept.numel()
    torch.testing.assert_close(kept[kept != 0], 2 * pooled[kept != 0])


@each_block
def test_device_and_type_are_arguments(name: str) -> None:
    model = timm.create_model(name, device="meta", dtype=torch.bfloat16)
    tensors = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]
    assert {(tensor.device.type, tensor.dtype) for tensor in tensors} == {("meta", torch.bfloat16)}
    assert model(torch.randn(2, 3, 64, 64, device="meta", dtype=torch.bfloat16)).dtype == torch.bfloat16


@each_block
def test_init_weights_fills_an_empty_model(name: str) -> None:
    model = timm.create_model(name, width=8, device="meta").to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
    model.init_weights()
    assert model(images(model)).isfinite().all()


# Features


@each_block
@pytest.mark.parametrize("feature_cls", ["list", "dict", "hook", "getter", "fx"])
def test_every_feature_extractor_returns_the_promised_features(name: str, feature_cls: str) -> None:
    model = build(name)
    x = images(model)
    expected = model.forward_intermediates(x, indices=[1, 2], intermediates_only=True)
    extractor = build(name, features_only=True, out_indices=(1, 2), feature_cls=feature_cls)
    extractor.load_state_dict(renamed(model.state_dict(), list(extractor.state_dict())))
    found = extractor(x)
    found = list(found.values()) if isinstance(found, dict) else found
    assert [y.shape[1] for y in found] == extractor.feature_info.channels()
    assert [x.shape[-1] // y.shape[-1] for y in found] == extractor.feature_info.reduction()
    torch.testing.assert_close(found, expected)


def renamed(state: dict[str, torch.Tensor], keys: list[str]) -> dict[str, torch.Tensor]:
    """A model's tensors under the keys of a feature extractor, which may have a prefix."""
    return {key: state[re.sub(r"^(body|model|graph_module)\.", "", key)] for key in keys}


@each_block
def test_all_features_are_the_default(name: str) -> None:
    extractor = build(name, features_only=True)
    features = extractor(images(extractor))
    assert len(features) == (4 if "20" in name else 5)
    assert [y.shape[1] for y in features] == extractor.feature_info.channels()
    assert extractor.feature_info.reduction() == ([1, 1, 2, 4] if "20" in name else [2, 4, 8, 16, 32])


@each_block
def test_intermediates_come_with_the_features(name: str) -> None:
    model = build(name)
    x = images(model)
    features, every = model.forward_intermediates(x)
    assert torch.equal(features, model.forward_features(x))
    assert len(every) == len(model.feature_info)
    for indices, expected in ((2, every[-2:]), ([0, 2], [every[0], every[2]]), ([-1], every[-1:])):
        found = model.forward_intermediates(x, indices=indices, intermediates_only=True)
        assert len(found) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    last, _ = model.forward_intermediates(x, indices=[1], stop_early=True)
    assert torch.equal(last, every[1])
    normed = model.forward_intermediates(x, norm=True, intermediates_only=True)
    assert torch.equal(normed[-1], features)
    assert torch.equal(normed[-2], every[-2])
    with pytest.raises(ValueError, match=r"output_fmt='NHWC' is not valid; use 'NCHW'$"):
        model.forward_intermediates(x, output_fmt="NHWC")


@each_block
def test_a_feature_getter_with_the_final_activation_reports_its_channels(name: str) -> None:
    extractor = build(name, features_only=True, feature_cls="getter", feature_cfg={"norm": True})
    assert [y.shape[1] for y in extractor(images(extractor))] == extractor.feature_info.channels()


@each_block
def test_pruning_drops_what_the_intermediates_do_not_need(name: str) -> None:
    model = build(name)
    x = images(model)
    logits, every = model(x), model.forward_intermediates(x, intermediates_only=True)
    whole = copy.deepcopy(model)
    assert whole.prune_intermediate_layers([-1], prune_head=False) == [len(every) - 1]
    assert torch.equal(whole(x), logits)
    for index, expected in enumerate(every):
        pruned = copy.deepcopy(model)
        assert pruned.prune_intermediate_layers([index], prune_norm=True) == [index]
        assert torch.equal(pruned.forward_features(x), expected)
        assert torch.equal(pruned.forward_intermediates(x, indices=[index], intermediates_only=True)[0], expected)
        assert pruned.num_features == pruned.head_hidden_size == expected.shape[1]
        pruned.train().forward_features(x).sum().backward()
        assert all(parameter.grad is not None for parameter in pruned.parameters())


# Training


@each_block
@pytest.mark.parametrize("coarse", [False, True])
def test_stem_blocks_and_head_are_parameter_groups_in_the_order_of_the_network(name: str, coarse: bool) -> None:
    model = build(name)
    group = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    assert set(group) == {key for key, _ in model.named_parameters()}
    blocks = [stage for stage in stages(model) if len(stage)]
    if not coarse:
        blocks = [block for stage in blocks for block in stage]
    numbers = {id(parameter): group[key] for key, parameter in model.named_parameters()}
    assert numbers[id(model.conv1.weight)] == 0
    assert all(numbers[id(p)] == 0 for p in model.norm1.parameters())
    for number, block in enumerate(blocks, start=1):
        assert {numbers[id(parameter)] for parameter in block.parameters()} == {number}
    assert {numbers[id(parameter)] for parameter in model.fc.parameters()} == {len(blocks) + 1}


@each_block
def test_gradient_checkpointing_changes_neither_logits_nor_gradients(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils import checkpoint

    calls = []
    original = checkpoint.checkpoint
    monkeypatch.setattr(checkpoint, "checkpoint", lambda *a, **k: calls.append(1) or original(*a, **k))
    model = build(name)
    x = images(model)
    outcomes = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        logits = model(x)
        logits.square().sum().backward()
        outcomes.append((logits.detach(), [parameter.grad.clone() for parameter in model.parameters()]))
        assert len(calls) == (sum(len(stage) for stage in stages(model)) if enabled else 0)
    torch.testing.assert_close(*outcomes)
    torch.testing.assert_close(model.forward_intermediates(x)[0], model.forward_features(x))


@each_block
def test_bfloat16_autocast_trains_a_model(name: str) -> None:
    model = build(name, num_classes=10).train()
    x = images(model)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
        loss = logits.float().square().mean()
    loss.backward()
    assert logits.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())

    model.eval()
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(x).float()
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()


@each_block
def test_the_channels_last_layout_gives_the_same_logits(name: str) -> None:
    model = build(name)
    x = images(model)
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    features = model.forward_features(x.to(memory_format=torch.channels_last))
    assert features.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        model.forward_head(features), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item()
    )


# Copies and graphs


@each_block
def test_a_model_can_be_copied_pickled_and_restored_from_its_state(name: str) -> None:
    model = build(name)
    x = images(model)
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = build(name)
    assert not torch.equal(other(x), expected)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), expected)


@each_block
@pytest.mark.full
def test_torch_compile_takes_the_whole_forward_and_backward_pass(name: str) -> None:
    torch.compiler.reset()
    model = build(name, num_classes=10)
    x = images(model)
    expected = model(x)
    (gradient,) = torch.autograd.grad(expected.square().sum(), model.conv1.weight)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    logits = compiled(x)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(torch.autograd.grad(logits.square().sum(), model.conv1.weight), (gradient,))


@each_block
def test_torch_export_keeps_the_logits_for_any_batch_size(name: str) -> None:
    model = build(name)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (images(model),), dynamic_shapes=({0: batch},)).module()
    x = images(model, batch=3)
    torch.testing.assert_close(exported(x), model(x))


@each_block
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_torchscript_keeps_the_logits(name: str) -> None:
    with timm.layers.set_scriptable(True):
        model = build(name)
    x = images(model)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


@each_block
def test_symbolic_tracing_keeps_logits_and_parameters(name: str) -> None:
    model = build(name)
    x = images(model)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x), model(x))
    traced(x).sum().backward()
    assert all(parameter.grad is not None for parameter in traced.parameters())


@pytest.mark.parametrize("norm", NORMALIZATIONS)
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("depth", [20, pytest.param(34, marks=pytest.mark.full), 50])
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.filterwarnings("ignore:The TorchScript type system")  # of what torch.fx itself writes
def test_a_traced_network_can_be_scripted(depth: int, act: str, norm: str) -> None:
    for last in (False, False, True):
        with timm.layers.set_scriptable(True):
            model = build(f"resnet{depth}_{act}_{norm}")
        try:
            scripted = torch.jit.script(torch.fx.symbolic_trace(model))
            break
        except RuntimeError as error:
            # torch knows its builtins by their addresses, and takes a list that lies where one was for it.
            if last or "builtin cannot be used as a value" not in str(error):
                raise
    x = images(model)
    torch.testing.assert_close(scripted(x), model(x))
    found = []
    for each in (scripted, model):
        names, parameters = zip(*each.named_parameters(), strict=True)
        gradients = torch.autograd.grad(each(x).square().sum(), parameters)
        found.append(dict(zip(names, gradients, strict=True)))
    torch.testing.assert_close(*found)


def test_the_package_exports_the_class_that_timm_builds() -> None:
    assert type(build("resnet20_relu_bn")) is ResNet is models.ResNet
