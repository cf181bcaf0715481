"""ClassifierInput: the features of a network that stays an ordinary one."""

from __future__ import annotations

import copy
import pickle
import weakref
from typing import Any

import pytest
import torch
from held_features import seen_by
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

from ndfast.integrations.features import ClassifierInput, watched

N, D, K = 6, 8, 3
FC = ClassifierInput("classifier", "fc")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, D), nn.BatchNorm1d(D))
        self.fc = nn.Linear(D, K)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(images))


class Head(nn.Module):
    def forward(self, hidden_states: Tensor, mask: Tensor | None = None) -> Tensor:
        return hidden_states


def is_ordinary(network: nn.Module) -> bool:
    return not any(
        "forward" in module.__dict__ or module._forward_pre_hooks or module._forward_hooks
        for module in network.modules()
    )


@pytest.fixture
def images(seed: int) -> Tensor:
    return torch.randn(N, 4)


def test_what_the_classifier_was_given(images: Tensor) -> None:
    network = Network().eval()
    logits, features = FC.read(network, network, images)
    torch.testing.assert_close(logits, network(images))
    torch.testing.assert_close(features, network.body(images))
    assert features.requires_grad


def test_flattened_and_of_the_last_call(images: Tensor) -> None:
    network = Network()
    network.fc = nn.Sequential(nn.Flatten(), network.fc)
    maps = torch.randn(2, N, D, 1, 1)

    def run() -> None:
        network.fc(maps[0])
        network.fc.forward(maps[1])  # past __call__

    _, features = FC.read(network, run)
    assert torch.equal(features, maps[1].flatten(1))


def test_by_keyword_it_is_the_first_parameter(seed: int) -> None:
    network, (features, mask) = Network(), torch.randn(2, N, D)
    network.fc = Head()
    _, read = FC.read(network, lambda: network.fc(mask=mask, hidden_states=features))
    assert torch.equal(read, features)


@pytest.mark.parametrize("run", ["step", "raises", "nested"])
def test_the_network_is_as_it_was(run: str, images: Tensor) -> None:
    network = Network()
    inner: list[Any] = []

    def forward(images: Tensor) -> Tensor:
        logits = network(images)
        if run == "raises":
            raise KeyError
        if run == "nested":
            inner.append(FC.read(network, network, 2 * images)[1])
            logits = network(images)
        return logits

    try:
        _, features = FC.read(network, forward, images)
        torch.testing.assert_close(features, network.body(images))
        assert run != "raises"
    except KeyError:
        assert run == "raises"
    if run == "nested":
        torch.testing.assert_close(inner[0], network.body(2 * images))
    assert is_ordinary(network)
    network(images)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        torch.testing.assert_close(twin(images), network(images))
    torch.jit.script(network)


def test_a_forward_of_the_instances_own_stays(images: Tensor) -> None:
    network = Network()

    def own(features: Tensor) -> Tensor:
        return nn.functional.linear(2 * features, network.fc.weight)

    network.fc.forward = own
    logits, features = FC.read(network, network, images)
    torch.testing.assert_close(logits, own(features))
    assert network.fc.forward is own


def test_networks_with_one_classifier_do_not_mix(images: Tensor) -> None:
    student, teacher = Network(), Network()
    student.fc = teacher.fc
    _, expected = FC.read(teacher, teacher, images)
    _, features = FC.read(student, student, images)
    torch.testing.assert_close(expected, teacher.body(images))
    torch.testing.assert_close(features, student.body(images))


def test_nothing_is_held(images: Tensor) -> None:
    network = Network()

    def fails(images: Tensor) -> None:
        network(images)
        raise ZeroDivisionError

    with seen_by(network.fc) as seen:
        logits, features = FC.read(network, network, images)
        (logits.sum() + features.sum()).backward()
        assert seen.held() == 1
        del logits, features
        network(images)
        with pytest.raises(ZeroDivisionError):
            FC.read(network, fails, images)
        assert (len(seen), seen.held()) == (3, 0)


def test_a_classifier_that_is_replaced_is_found(images: Tensor) -> None:
    network = Network()
    FC.read(network, network, images)
    network.fc = nn.Sequential(nn.Linear(D, K))
    _, features = FC.read(network, network, images)
    torch.testing.assert_close(features, network.body(images))


def test_checkpointed_activations(images: Tensor) -> None:
    plain = Network()
    network = copy.deepcopy(plain)
    gradients = []
    for each, run in ((plain, plain), (network, checkpointed(network, False))):
        logits, features = FC.read(each, run, images)
        assert is_ordinary(each)
        (logits.square().sum() + features.square().sum()).backward()  # calls the classifier again
        assert is_ordinary(each)
        gradients.append([parameter.grad for parameter in each.parameters()])
    torch.testing.assert_close(*gradients)
    with pytest.raises(RuntimeError, match=r"'fc' ran without gradients.*use_reentrant=False"):
        FC.read(network, checkpointed(network, True), images.requires_grad_())
    with torch.no_grad():
        FC.read(network, checkpointed(network, True), images)


def checkpointed(network: nn.Module, reentrant: bool) -> Any:
    return lambda images: checkpoint(network, images, use_reentrant=reentrant)


@pytest.mark.parametrize("form", ["wrapper", "in place", "of the step"])
@pytest.mark.parametrize("first", ["step", "user"])
def test_compiled_once(form: str, first: str, images: Tensor) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    network = Network()
    run: Any = network
    if form == "wrapper":
        run = torch.compile(network, backend=counter)
    elif form == "in place":
        network.compile(backend=counter)
    before = first == "user" and form != "of the step"
    if before:
        run(images)
        assert counter.frame_count == 1

    def step(images: Tensor) -> tuple[Tensor, Tensor]:
        return FC.read(run, run, images)

    if form == "of the step":
        step = torch.compile(step, backend=counter, fullgraph=True)
    for _ in range(4):
        images = torch.randn(N, 4)
        logits, features = step(images)
        expected = copy.deepcopy(network.body)(images)
        torch.testing.assert_close(features, expected)
        torch.testing.assert_close(logits, network.fc(expected))
    assert counter.frame_count == 1 + before
    held = weakref.ref(features)
    del features, expected, logits
    assert held() is None


def test_what_cannot_be_read(images: Tensor) -> None:
    network = Network()
    with pytest.raises(ValueError, match="classifier: Network has no module 'head'; its modules "):
        ClassifierInput("classifier", "head").find(network)
    with pytest.raises(RuntimeError, match="module 'fc' was not called"):
        FC.read(network, network.body, images)
    network.fc = nn.Identity()
    with pytest.raises(TypeError, match="classifier: module 'fc' was given list; expected a ten"):
        FC.read(network, lambda: network.fc([images]))


def test_watched_reports_each_call(images: Tensor) -> None:
    network = Network()
    calls: list[Any] = []
    with watched(network.fc, lambda *call: calls.append(call)):
        outputs = [network(images), network(images)]
    assert [call[1] for call in calls] == [{}, {}]
    assert all(call[2] is output for call, output in zip(calls, outputs, strict=True))
