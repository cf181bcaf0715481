"""`make gpu`'s parts, with small programs in their place: limits, failures, kills, the screen."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import outcomes
import pytest
import run_parts
from outcomes import Outcome
from run_parts import Part, Stop

LONG = 600  # a limit that is not reached


def shell(name: str, script: str, seconds: float = LONG) -> Part:
    return Part(name, ("sh", "-c", script), seconds)


def ended(logs: Path) -> dict[str, str]:
    return {name: outcome.ended for name, outcome in outcomes.load(logs)[1].items()}


def test_each_is_kept_before_the_next_begins(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    parts = [
        shell("one", "echo first; echo 'E   2 != 3'; echo last; exit 3"),
        Part("two", ("cat", str(tmp_path / "one.log"), str(tmp_path / "outcomes.jsonl")), LONG),
    ]
    assert not run_parts.run_all(parts, tmp_path, Stop())
    assert ended(tmp_path) == {"one": "failed", "two": "passed"}
    seen = (tmp_path / "two.log").read_text()
    assert seen.startswith("first\nE   2 != 3\nlast\n")
    assert '"part": "one", "ended": "failed"' in seen
    assert outcomes.load(tmp_path)[1]["one"].failure == ("E   2 != 3", "last")
    screen = capfdbinary.readouterr().out.decode()
    assert (
        screen == f"== one, at most 600 s\nfirst\nE   2 != 3\nlast\n== two, at most 600 s\n{seen}"
    )


def test_all_passed(tmp_path: Path) -> None:
    parts = [shell("one", "echo fine"), shell("two", "")]
    assert run_parts.run_all(parts, tmp_path, Stop())
    assert ended(tmp_path) == {"one": "passed", "two": "passed"}


class Clock:
    """Stands still until the part's log has "ready", and takes long steps then."""

    def __init__(self, log: Path) -> None:
        self.log, self.seconds = log, 0.0

    def monotonic(self) -> float:
        if self.log.exists() and "ready" in self.log.read_text():
            self.seconds += LONG
        return self.seconds


def test_at_its_limit_a_part_may_tell_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(tmp_path / "one.log")
    monkeypatch.setattr(run_parts, "time", clock)
    monkeypatch.setattr(run_parts, "GRACE", 1e9)
    waiting = "trap 'echo FAILED a; exit 0' INT; echo ready; while :; do sleep 1000 & wait; done"
    assert not run_parts.run_all([shell("one", waiting), shell("two", "", 1e12)], tmp_path, Stop())
    found = outcomes.load(tmp_path)[1]
    assert (found["one"].ended, found["one"].failure) == ("out of time", ("FAILED a",))
    assert found["two"].ended == "passed"


def has_ended(process: int) -> bool:
    """A pidfd's, within half a minute."""
    return bool(select.select([process], [], [], 30)[0])


def is_gone(pid: int) -> bool:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return has_ended(process)
    finally:
        os.close(process)


def test_one_that_does_not_end_is_killed_with_all_that_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_parts, "time", Clock(tmp_path / "one.log"))
    deaf = "trap '' INT; sleep 1000 & echo $!; echo ready; wait"
    assert not run_parts.run_all([shell("one", deaf)], tmp_path, Stop())
    assert ended(tmp_path) == {"one": "out of time"}
    assert is_gone(int((tmp_path / "one.log").read_text().split()[0]))


def test_what_a_part_leaves_behind_does_not_disturb_the_next(tmp_path: Path) -> None:
    run_parts.run_all([shell("one", "sleep 1000 & echo $!")], tmp_path, Stop())
    assert ended(tmp_path) == {"one": "passed"}
    assert is_gone(int((tmp_path / "one.log").read_text()))


def test_the_time_for_all_cuts_the_last_ones_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(run_parts, "time", Clock(tmp_path / "one.log"))
    parts = [shell("one", "echo ready"), shell("two", "")]
    assert not run_parts.run_all(parts, tmp_path, Stop(), seconds=500)
    # The grace is left for the end.
    assert b"== one, at most 490 s\n" in capfdbinary.readouterr().out
    assert ended(tmp_path)["two"] == "not begun"


# Three parts, of which the second waits for ever; run as a program, to be interrupted and killed.
PROGRAM = """
import sys
import run_parts
from run_parts import Part
run_parts.name_of_gpu = lambda: "Some GPU"
waiting = ("sh", "-c", "echo ready $$; exec sleep 1000")
parts = [Part("one", ("echo", "fine"), 60), Part("two", waiting, 600), Part("three", ("true",), 60)]
sys.exit(run_parts.main(sys.argv[1:], parts))
"""


@dataclass
class Program:
    """PROGRAM, run on folders of a test's.

    Attributes:
        folder: with the folders "logs" and "results".
        waiting: second parts, as pidfds: their numbers may be another's one day.
    """

    folder: Path
    waiting: list[int] = field(default_factory=list)

    def begin(self, *arguments: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        command = [*before, sys.executable, "-c", PROGRAM, *arguments]
        command += ["--logs", str(self.folder / "logs"), "--results", str(self.folder / "results")]
        places = (Path(run_parts.__file__).parent, run_parts.ROOT)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def begin_and_wait(self, *before: str) -> subprocess.Popen[str]:
        """Until its second part waits; ``before``: a program that runs it."""
        process = self.begin(before=before)
        assert process.stdout is not None
        ready = next(line for line in process.stdout if line.startswith("ready"))
        self.waiting.append(os.pidfd_open(int(ready.split()[1])))
        return process


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path)
    yield program
    for process in program.waiting:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        os.close(process)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_part_and_shows_the_screen(number: int, program: Program) -> None:
    process = program.begin_and_wait()
    process.send_signal(number)
    screen, _ = process.communicate()
    assert process.returncode == 1
    assert has_ended(program.waiting[0])
    found = ended(program.folder / "logs")
    assert found == {"one": "passed", "two": "stopped", "three": "not begun"}
    for lines in ("make gpu on Some GPU", "one    passed     0 s  fine", "two, stopped\nready"):
        assert lines in screen


def test_nohup_is_respected(program: Program) -> None:
    process = program.begin_and_wait("nohup")
    status = Path(f"/proc/{process.pid}/status").read_text()
    ignored = int(re.findall(r"^SigIgn:\s*(\w+)", status, flags=re.M)[0], 16)
    process.terminate()
    process.communicate()
    assert ignored >> (signal.SIGHUP - 1) & 1
    assert ended(program.folder / "logs")["two"] == "stopped"


def test_what_was_seen_outlives_a_kill(program: Program) -> None:
    process = program.begin_and_wait()
    process.kill()
    process.communicate()
    logs = program.folder / "logs"
    assert ended(logs) == {"one": "passed", "two": "cut short"}
    assert (logs / "two.log").read_text().startswith("ready")
    shown = program.begin("--show")
    screen, _ = shown.communicate()
    assert shown.returncode == 0
    assert "one    passed     0 s  fine\ntwo    cut short\nthree  not begun\n" in screen


def test_chosen_parts_stand_beside_what_was_kept(program: Program) -> None:
    logs = program.folder / "logs"
    for name in ("three", "one"):
        process = program.begin(name)
        process.communicate()
        assert process.returncode == 0
    assert ended(logs) == {"three": "passed", "one": "passed"}
    process = program.begin_and_wait()  # all of them: what was kept is forgotten
    assert ended(logs) == {"one": "passed", "two": "cut short"}
    process.terminate()
    process.communicate()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bild"], "PART: got 'bild', expected one of build, smoke, telling"),
        (["--seconds", "10"], "--seconds: got 10, expected more than 10"),
        (["--seconds", "nan"], "--seconds: got nan, expected more than 10"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_parts.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_every_part_has_its_limit_and_begins_with_what_tells_the_most() -> None:
    names = [part.name for part in run_parts.PARTS]
    assert names == ["build", "smoke", "telling", "test", "sanitize", "rest", "report"]
    # In a stretch of ten minutes these three are done, whatever happens.
    assert sum(part.seconds + run_parts.GRACE for part in run_parts.PARTS[:3]) < 600


@pytest.mark.parametrize(
    ("text", "failure", "said"),
    [
        # pytest's own line comes before its list of what failed, and both before other signs.
        ("a\nValueError: b\nFAILED c\nE   d\ne", ("E   d", "e"), "e"),
        ("a\nValueError: b\nERROR c\nd", ("ERROR c", "d"), "d"),
        ("nvcc\nx.cu(3): error: b\nc", ("x.cu(3): error: b", "c"), "c"),
        ("a\nmemcheck: exit status 99\nc", ("memcheck: exit status 99", "c"), "c"),
        ("a\nb\n\nmake: *** [Makefile:3: x] Error 1\n", ("a", "b"), "b"),
        ("no errors\n= 3 passed in 2.10s =\nb\n= 1 failed, 2 passed in 1:02:03s =\nc", None,
         "3 passed in 2.10s; 1 failed, 2 passed in 1:02:03s"),
        ("", (), ""),
    ],
)  # fmt: skip
def test_what_failed_first(text: str, failure: tuple[str, ...] | None, said: str) -> None:
    found = outcomes.of_text("x", outcomes.FAILED, 1.0, text)
    assert found.said == said
    if failure is not None:
        assert found.failure == failure
    assert outcomes.of_text("x", outcomes.PASSED, 1.0, text) == Outcome("x", "passed", 1.0, said)


def test_a_line_that_was_cut_is_left_out(tmp_path: Path) -> None:
    outcomes.begin(tmp_path, "Some GPU", anew=True)
    outcomes.keep(tmp_path, Outcome("one", "passed", 1.0, "fine"))
    with (tmp_path / "outcomes.jsonl").open("a") as file:
        file.write('{"part": "two", "en')
    assert outcomes.load(tmp_path) == ("Some GPU", {"one": Outcome("one", "passed", 1.0, "fine")})
