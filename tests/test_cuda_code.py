"""The machine code of the CUDA kernels, read from the library as it is built: no GPU is needed.

A row moves in 16-byte pieces, all loads of a row are on their way before the first shuffle waits
for one and before the first store, nothing is spilled, and registers leave room for the warps that
the launch bounds promise.
"""

from __future__ import annotations

import re
import shutil
from importlib import import_module
from pathlib import Path

import pytest

from ndfast.backends import cuda

pytest.importorskip("triton", reason="its wheel brings the disassembler")
if cuda.missing is not None:
    pytest.skip(cuda.missing, allow_module_level=True)

from machine_code import Kernel, cuobjdump, read

LIBRARY = Path(import_module("ndfast._C").__file__ or "")
LANES, BLOCK = "LaneGroup", "BlockGroup"


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    if shutil.which("c++filt") is None:
        pytest.skip("c++filt is not there to read the kernels' names")
    return read(LIBRARY)


def of_rows(kernels: list[Kernel], name: str) -> list[Kernel]:
    chosen = [k for k in kernels if k.name == name and not k.is_plain]
    assert chosen, f"no {name} in the library"
    return chosen


def test_it_holds_code_for_every_gpu_and_ptx_for_later_ones(kernels: list[Kernel]) -> None:
    gpus = {k.gpu for k in kernels}
    assert gpus == {"sm_80", "sm_90", "sm_100", "sm_120"}
    assert cuda.facts()["kernels_gpus"] == sorted(gpus, key=lambda gpu: int(gpu[3:]))
    names = [{str(k).split(" for ")[0] for k in kernels if k.gpu == gpu} for gpu in gpus]
    assert all(of_gpu == names[0] for of_gpu in names)
    ptx = "".join(cuobjdump("-lptx", str(LIBRARY)))
    assert re.search(r"sm_100\.ptx", ptx), ptx


def test_nothing_is_spilled_and_there_is_no_stack(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        assert kernel.usage["STACK"] == kernel.usage["LOCAL"] == 0, kernel
        assert not kernel.places("LDL|STL"), kernel


def most_registers(kernel: Kernel) -> int:
    """By what a thread holds: 65,536 registers over so many threads on a multiprocessor."""
    if kernel.name == "backward_kernel":
        return 80 if kernel.is_mixed and kernel.types[3] == "2" else 64  # 768 or 1,024 threads
    if kernel.name == "forward_loop_kernel" and kernel.types[0] == "double":
        return 80  # 768 threads
    if kernel.name != "forward_kernel":
        return 64  # 1,024 threads
    words = 4 + kernel.teacher_bytes // 4 + kernel.centre_bytes // 4 * (1 + kernel.is_mixed)
    words += 2 * (kernel.row_bytes == 2) + 5 * (kernel.centre_bytes == 16 and kernel.row_bytes == 2)
    words = int(kernel.types[3]) * words + 4 * kernel.is_mixed
    if words <= 38 and kernel.types[4].startswith(LANES):
        return 64  # 1,024 threads
    return 80 if words <= 58 else 96 if words <= 72 else 128  # 768, 640 or 512 threads


def test_registers_are_within_their_bound(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        assert kernel.usage["REG"] <= most_registers(kernel), kernel


S_AND_T = r"LDG\.E\.NA\.(128|64)\.CONSTANT"  # not kept in L1
ROW_LOADS = r"LDG\.E\.(NA\.)?(128|64)\.CONSTANT"


def loads_of(piece_bytes: int) -> int:
    return max(1, piece_bytes // 16)


def check_row_loads(kernel: Kernel, pieces: int, again: int = 0) -> None:
    """Of s and t, and of s once more for the gradient."""
    wide, narrow = divmod(kernel.teacher_bytes, 16)
    s_and_t = pieces * (1 + wide)
    assert len(kernel.places(r"LDG\.E\.NA\.128\.CONSTANT")) == s_and_t + again, kernel
    assert len(kernel.places(r"LDG\.E\.NA\.64\.CONSTANT")) == pieces * (narrow // 8), kernel


def check_centre_loads(kernel: Kernel, pieces: int) -> None:
    wide, narrow = divmod(kernel.centre_bytes, 16)
    means = 2 if kernel.is_mixed else 1
    assert len(kernel.places(r"LDG\.E\.128\.CONSTANT")) == pieces * wide * means, kernel
    assert len(kernel.places(r"LDG\.E\.64\.CONSTANT")) == pieces * (narrow // 8) * means, kernel


def test_the_forward_moves_rows_in_16_byte_pieces(kernels: list[Kernel]) -> None:
    for kernel in of_rows(kernels, "forward_kernel"):
        pieces = int(kernel.types[3])
        check_row_loads(kernel, pieces)
        check_centre_loads(kernel, pieces)
        block_sums = 1
        assert len(kernel.places(r"STG\.E\.128")) == pieces + block_sums, kernel


def test_the_forward_loads_a_row_before_the_first_shuffle_and_store(kernels: list[Kernel]) -> None:
    for kernel in of_rows(kernels, "forward_kernel"):
        last_load = kernel.places(ROW_LOADS)[-1]
        assert last_load < kernel.places("SHFL")[0], kernel
        assert last_load < kernel.places("STG")[0], kernel


def most_at_once(kernel: Kernel, load: str, use: str) -> int:
    """How many loads are on their way at most before a value that was read is used."""
    code = "".join(
        "L" if re.match(load, name) else "U" if re.match(use, name) else "" for name in kernel.code
    )
    return max(map(len, re.findall("L+", code)))


PIECES_OF_ROUND = 2  # of each vector, that a thread of forward_loop_kernel takes at once


def test_the_forward_in_rounds_loads_before_it_multiplies(
    kernels: list[Kernel],
) -> None:
    for kernel in of_rows(kernels, "forward_loop_kernel"):
        loads = 1 + loads_of(kernel.teacher_bytes) + loads_of(kernel.centre_bytes)
        assert most_at_once(kernel, ROW_LOADS, "FFMA|FMUL") >= PIECES_OF_ROUND * loads, kernel


def test_the_forward_in_rounds_moves_16_byte_pieces(kernels: list[Kernel]) -> None:
    for kernel in of_rows(kernels, "forward_loop_kernel"):
        pieces = PIECES_OF_ROUND
        check_row_loads(kernel, pieces, again=pieces)
        check_centre_loads(kernel, 2 * pieces)  # c is read once more too
        block_sums = 1
        assert len(kernel.places(r"STG\.E\.128")) == pieces + block_sums, kernel


def test_elements_of_any_type_are_asked_for_before_one_is_converted(kernels: list[Kernel]) -> None:
    plain = [k for k in kernels if k.is_plain and k.types[0] == "float"]
    assert {k.name for k in plain} == {"forward_loop_kernel", "backward_kernel"}
    for kernel in plain:
        pieces = 3 if kernel.name == "forward_loop_kernel" else 2
        at_once = most_at_once(kernel, r"LDG\.E\.U16", r"HADD2\.F32")
        assert at_once >= pieces * (3 + kernel.is_mixed), kernel  # s, t or g, and c


def test_the_backward_moves_rows_in_16_byte_pieces(kernels: list[Kernel]) -> None:
    for kernel in of_rows(kernels, "backward_kernel"):
        pieces = int(kernel.types[3])
        # s and the classifier's gradient; and t, a piece at a time
        assert len(kernel.places(r"LDG\.E\.NA\.128\.CONSTANT")) == 2 * pieces + 1, kernel
        check_centre_loads(kernel, pieces)
        # gradients of s with and without the classifier's, of c in float32, and of t
        stores = 2 * pieces + pieces * (4 // kernel.row_bytes) + 1
        assert len(kernel.places(r"STG\.E\.128")) == stores, kernel


def test_the_backward_loads_before_its_first_store(kernels: list[Kernel]) -> None:
    for kernel in of_rows(kernels, "backward_kernel"):
        *loads, teacher = kernel.places(ROW_LOADS)
        first, *_ = kernel.places("STG")
        assert loads[-1] < first, kernel
        assert teacher > first, f"{kernel}: the teacher's gradient is a pass of its own"


def test_the_forward_asks_for_s_and_t_before_the_first_label(kernels: list[Kernel]) -> None:
    in_rounds = of_rows(kernels, "forward_loop_kernel")
    for kernel in [*of_rows(kernels, "forward_kernel"), *in_rounds]:
        pieces = PIECES_OF_ROUND if kernel in in_rounds else int(kernel.types[3])
        s_and_t = pieces * (1 + loads_of(kernel.teacher_bytes))
        loads = kernel.places(S_AND_T)
        assert loads[s_and_t - 1] < kernel.places(r"LDG\.E\.U8")[0], kernel


def test_the_backward_asks_for_a_row_before_its_label(kernels: list[Kernel]) -> None:
    # Whose address or predicate waits for a label stands behind that wait.
    for kernel in of_rows(kernels, "backward_kernel"):
        *rows, _ = kernel.places(r"LDG\.E\.NA\.128\.CONSTANT")
        assert rows[-1] < kernel.places(r"LDG\.E\.U8")[0], kernel


def test_the_backward_asks_for_coefficients_before_the_label(kernels: list[Kernel]) -> None:
    # So that a row waits twice: for all of it but its class mean, and for that.
    for kernel in of_rows(kernels, "backward_kernel"):
        label, store = kernel.places(r"LDG\.E\.U8")[0], kernel.places("STG")[0]
        numbers = kernel.places(r"LDG\.E$")
        assert kernel.is_mixed or not [i for i in numbers if label < i < store], kernel


def test_a_reduced_loss_takes_one_ticket(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        tickets = int(kernel.name.startswith("forward"))
        assert len(kernel.places("ATOM|RED")) == tickets, kernel
        # What was stored is seen by who takes a later number; no stronger order is paid for.
        assert len(kernel.places(r"MEMBAR\.ALL\.GPU")) == tickets, kernel
        assert not kernel.places(r"MEMBAR\.SC"), kernel


def test_the_last_block_asks_for_eight_sums_before_it_adds(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        if kernel.name.startswith("forward"):
            (ticket,) = kernel.places("ATOMG")
            first_addition = min(i for i in kernel.places("DADD") if i > ticket)
            loads = kernel.places(r"LDG\.E\.128\.STRONG\.GPU")
            assert len([i for i in loads if ticket < i < first_addition]) >= 8, kernel


def test_a_row_takes_few_shuffles(kernels: list[Kernel]) -> None:
    # All sums but one are given away in two steps; on lanes each gets all four back.
    lanes = {"LaneGroup<4>": 7, "LaneGroup<8>": 8, "LaneGroup<16>": 9, "LaneGroup<32>": 10}
    expected = {**lanes, "BlockGroup<float>": 6}
    for kernel in of_rows(kernels, "forward_kernel"):
        first_store = kernel.places("STG")[0]
        shuffles = [i for i in kernel.places("SHFL") if i < first_store]
        assert len(shuffles) == expected[kernel.types[4]], kernel


def test_roots_and_quotients_of_a_row_are_straight_line_code(kernels: list[Kernel]) -> None:
    for kernel in of_rows(kernels, "forward_kernel"):
        first_store = kernel.places("STG")[0]
        assert not [i for i in kernel.places("CALL") if i < first_store], kernel
