"""ClassMeans: exact means from a stream, and a sentence where there is none."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ndfast import class_means
from ndfast.class_means import ClassMeans

K, D = 7, 5


@pytest.fixture(params=[1, 2, None], ids="{} rows at once".format)
def rows_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many are in float64 at a time; by default more than a test has."""
    if request.param is not None:
        monkeypatch.setattr(class_means, "_CHUNK", request.param * D)


def draw(N: int) -> tuple[Tensor, Tensor, int]:
    """Features far from zero, labels of every class, and the seed that they come from."""
    generator = torch.Generator()
    seed = generator.seed()
    features = torch.randn(N, D, generator=generator) + 100
    labels = torch.randint(K, (N,), generator=generator)
    labels[:K] = torch.arange(K)
    return features, labels, seed


def means_in_float64(features: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([features[labels == k].double().mean(dim=0) for k in range(K)])


def test_worked_by_hand() -> None:
    means = ClassMeans(num_classes=2, dim=2)
    means.update(torch.tensor([[1.0, 2.0], [10.0, 20.0]]), torch.tensor([0, 1]))
    means.update(torch.tensor([[3.0, 6.0], [5.0, 7.0]]), torch.tensor([0, 0]))
    assert means.compute().tolist() == [[3.0, 5.0], [10.0, 20.0]]
    assert means.compute().dtype == torch.float32
    assert means.counts.tolist() == [3, 1]
    assert means.counts.dtype == torch.int64


@pytest.mark.usefixtures("rows_at_once")
@pytest.mark.parametrize("label_dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("pooled", [False, True], ids=["[N, D]", "[N, D, 1, 1]"])
def test_every_input_against_float64(
    dtype: torch.dtype, label_dtype: torch.dtype, pooled: bool
) -> None:
    features, labels, seed = draw(64)
    features = features.to(dtype)
    means = ClassMeans(K, D)
    for rows in torch.arange(64).split([10, 0, 53, 1]):
        batch = features[rows, :, None, None] if pooled else features[rows]
        means.update(batch, labels[rows].to(label_dtype))
    check_against_whole(means, features, labels, seed)


def test_order_of_batches_does_not_matter() -> None:
    features, labels, seed = draw(200)
    generator = torch.Generator().manual_seed(seed)
    results = []
    for batch_size in (1, 7, 200):
        means = ClassMeans(K, D)
        for rows in torch.randperm(200, generator=generator).split(batch_size):
            means.update(features[rows], labels[rows])
        results.append(means.compute(torch.float64))
    for other in results[1:]:
        assert torch.allclose(results[0], other, rtol=1e-13, atol=0), f"seed {seed}"


def test_sums_in_float64() -> None:
    means = ClassMeans(num_classes=1, dim=1)
    means.update(torch.tensor([[2.0**24]]), torch.tensor([0]))
    means.update(torch.tensor([[1.0]]), torch.tensor([0]))  # float32 would lose this one
    assert means.compute(torch.float64).item() == 2.0**23 + 0.5


@pytest.mark.parametrize("ignore_index", [-100, 255, 2])
def test_ignored_rows_are_left_out(ignore_index: int) -> None:
    means = ClassMeans(num_classes=2, dim=1, ignore_index=ignore_index)
    features = torch.tensor([[1.0], [torch.nan], [5.0]])
    means.update(features, torch.tensor([0, ignore_index, 1]))
    assert means.compute().tolist() == [[1.0], [5.0]]
    assert means.counts.tolist() == [1, 1]


def test_before_the_first_batch() -> None:
    assert ClassMeans(3, 2).counts.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"never seen, of 3: 0, 1, 2$"):
        ClassMeans(3, 2).compute()


def test_keeps_no_graph_and_leaves_its_input_alone() -> None:
    def save(tensor: Tensor) -> Tensor:
        raise AssertionError("something was saved for a backward")

    features = torch.ones(2, 1, requires_grad=True)
    labels = torch.tensor([0, -100])
    means = ClassMeans(1, 1)
    with torch.autograd.graph.saved_tensors_hooks(save, save):
        means.update(features, labels)
        assert not means.compute().requires_grad
    assert features.tolist() == [[1.0], [1.0]]
    assert labels.tolist() == [0, -100]


def test_inference_mode_stays_inside() -> None:
    means = ClassMeans(1, 1)
    with torch.inference_mode():
        means.update(torch.ones(1, 1), torch.tensor([0]))
        computed = means.compute()
    means.update(torch.full((1, 1), 3.0), torch.tensor([0]))
    assert means.compute().item() == 2
    student = torch.ones(1, 1, requires_grad=True)
    (student * computed).sum().backward()  # fails where `computed` is an inference tensor
    assert student.grad is not None


def test_computing_changes_nothing() -> None:
    means = ClassMeans(1, 1)
    means.update(torch.ones(1, 1), torch.tensor([0]))
    means.compute(torch.float64).zero_()
    assert means.compute().item() == 1


@pytest.mark.parametrize("label", [7, 8, 100, -1, -101])
def test_label_out_of_range_adds_nothing(label: int) -> None:
    features, labels, seed = draw(10)
    means = ClassMeans(K, D)
    means.update(features, labels)
    before = means.compute(torch.float64)
    bad = labels.clone()
    bad[8] = label
    with pytest.raises(IndexError, match=f"labels: class {label} in row 8 .* 7 classes"):
        means.update(features, bad)
    assert torch.equal(means.compute(torch.float64), before), f"seed {seed}"
    assert means.counts.sum() == 10, f"seed {seed}"


def test_unseen_classes_are_listed() -> None:
    means = ClassMeans(num_classes=5, dim=1)
    means.update(torch.ones(2, 1), torch.tensor([3, 1]))
    with pytest.raises(ValueError, match=r"classes never seen, of 5: 0, 2, 4$"):
        means.compute()
    with pytest.raises(ValueError, match=r"98, 99 and 20 more$"):
        ClassMeans(num_classes=120, dim=1).compute()


@pytest.mark.usefixtures("rows_at_once")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_features_that_are_not_finite_are_reported(value: float) -> None:
    means = ClassMeans(num_classes=3, dim=2)
    features = torch.tensor([[1.0, 1.0], [1.0, value], [1.0, 1.0]])
    means.update(features, torch.tensor([0, 1, 2]))
    with pytest.raises(
        ValueError, match=r"not finite in torch\.float32: 1; their features hold NaN"
    ):
        means.compute()


def test_a_mean_out_of_the_dtype_is_reported() -> None:
    means = ClassMeans(num_classes=2, dim=1)
    means.update(torch.tensor([[1.0], [70000.0]]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"not finite in torch\.float16: 1;"):
        means.compute(torch.float16)
    assert means.compute().flatten().tolist() == [1.0, 70000.0]


FEATURES, LABELS = torch.ones(4, D), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("features", "labels", "error", "message"),
    [
        ([[1.0] * D], LABELS, TypeError, "features: got list"),
        (FEATURES, [0] * 4, TypeError, "labels: got list"),
        (FEATURES.long(), LABELS, TypeError, r"features: got dtype torch\.int64"),
        (FEATURES, LABELS.float(), TypeError, r"labels: got dtype torch\.float32"),
        (FEATURES, LABELS.bool(), TypeError, r"labels: got dtype torch\.bool"),
        (FEATURES, LABELS[:, None], ValueError, r"labels: got shape \[4, 1\]"),
        (FEATURES, LABELS[0], ValueError, r"labels: got shape \[\]"),
        (FEATURES, LABELS[:3], ValueError, r"features: got shape \[4, 5\]; for 3 labels"),
        (FEATURES[:, :4], LABELS, ValueError, r"features: got shape \[4, 4\]"),
        (FEATURES[:, :, None], LABELS, ValueError, r"features: got shape \[4, 5, 1\]"),
        (FEATURES[:, :, None, None].expand(4, D, 2, 1), LABELS, ValueError, r"\[4, 5, 2, 1\]"),
    ],
)
def test_bad_batches(
    features: object, labels: object, error: type[Exception], message: str
) -> None:
    means = ClassMeans(K, D)
    with pytest.raises(error, match=message):
        means.update(features, labels)  # type: ignore[arg-type]
    assert means.counts.sum() == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 5), ValueError, "num_classes: got 0"),
        ((3, -1), ValueError, "dim: got -1"),
        ((3.0, 5), TypeError, "num_classes: got float"),
        ((3, "5"), TypeError, "dim: got str"),
    ],
)
def test_bad_sizes(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ClassMeans(*arguments)


@pytest.mark.parametrize("dtype", [torch.int64, "float32", None])
def test_bad_dtype_of_the_result(dtype: object) -> None:
    with pytest.raises(TypeError, match="dtype: got"):
        ClassMeans(K, D).compute(dtype)  # type: ignore[arg-type]


def test_all_reduce_without_a_process_group_does_nothing() -> None:
    means = ClassMeans(1, 1)
    means.update(torch.ones(1, 1), torch.tensor([0]))
    means.all_reduce()
    assert means.compute().item() == 1


def test_all_reduce_over_two_processes(tmp_path) -> None:
    features, labels, seed = draw(30)
    torch.multiprocessing.spawn(
        all_reduce_as_rank, (str(tmp_path / "store"), features, labels, seed), nprocs=2
    )


def all_reduce_as_rank(rank: int, store: str, features: Tensor, labels: Tensor, seed: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mine = slice(0, 8) if rank == 0 else slice(8, 20)
    means = ClassMeans(K, D)
    means.update(features[mine], labels[mine])
    for _ in range(2):  # a second call counts nothing twice
        means.all_reduce()
        check_against_whole(means, features[:20], labels[:20], seed)

    if rank == 0:  # updates go on, and rank 1 has none
        means.update(features[20:], labels[20:])
    means.all_reduce()
    check_against_whole(means, features, labels, seed)

    means = ClassMeans(K, D)
    if rank == 1:  # rank 0 never sees a batch
        means.update(features, labels)
    means.all_reduce()
    check_against_whole(means, features, labels, seed)
    dist.destroy_process_group()


def check_against_whole(means: ClassMeans, features: Tensor, labels: Tensor, seed: int) -> None:
    assert torch.equal(means.counts, labels.bincount(minlength=K)), f"seed {seed}"
    expected = means_in_float64(features, labels)
    got = means.compute(torch.float64)
    assert torch.allclose(got, expected, rtol=1e-13, atol=0), f"seed {seed}"


@pytest.mark.gpu
@pytest.mark.smoke
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_update_never_waits_for_the_gpu() -> None:
    features, labels, seed = draw(64)
    on_gpu = features.cuda(), labels.cuda()
    means = ClassMeans(K, D)
    torch.cuda.set_sync_debug_mode("error")
    try:
        means.update(*on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = means_in_float64(features, labels)
    got = means.compute(torch.float64)
    assert got.is_cuda
    assert torch.allclose(got.cpu(), expected, rtol=1e-13, atol=0), f"seed {seed}"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_label_out_of_range_on_a_gpu_is_reported_at_compute() -> None:
    means = ClassMeans(2, 1)
    means.update(torch.ones(4, 1).cuda(), torch.tensor([0, 1, 2, -1]).cuda())
    assert means.counts.tolist() == [1, 1]
    with pytest.raises(IndexError, match="2 rows had a class out of bounds for 2 classes"):
        means.compute()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_sums_on_a_device_of_choice() -> None:
    means = ClassMeans(1, 1, device="cpu")
    means.update(torch.ones(1, 1).cuda(), torch.tensor([0]).cuda())
    assert means.compute().device.type == "cpu"
