"""``python -m benchmarks.gpu`` on a machine without a GPU: its checks in the interpreter, and that
nothing takes the rest of a run along."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import (
    build,
    checks_device,
    checks_nearest,
    checks_ops,
    measurements,
    rivals,
    small,
    tune,
    workers,
)
from benchmarks.gpu.records import FAILED, OK, SKIPPED, STARTED, Journal, Record, save, table
from benchmarks.gpu.running import Clock, Skip, Work, outcome, perform, shard
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.timing import Rates, Times
from fastvq import testing

pytest.importorskip("triton", reason="Triton has no build for this platform")

TRITON = Setting("cpu", True, ("triton",))


def device_works(setting):
    yield from checks_device.works(setting)
    yield from checks_device.sanitizer_works(setting)


def results(works, tmp_path: Path, seconds: float = 600) -> dict[str, Record]:
    journal = Journal(tmp_path / "journal.jsonl")
    perform("checks", works, journal, Clock(seconds))
    return journal.read()


@pytest.mark.parametrize("works", [checks_nearest.works, checks_ops.works, device_works])
def test_every_check_is_green_in_the_interpreter(works, tmp_path):
    # what compiles has its own tests, and its compilation takes longer than all the rest
    cheap = [work for work in works(TRITON) if not work.name.endswith("compiles whole")]
    found = results(cheap, tmp_path)
    assert len(found) == len(cheap) >= 7
    assert [record for record in found.values() if record.status == FAILED] == []
    needing_gpu = [record for record in found.values() if record.status == SKIPPED]
    assert all("GPU" in record.note for record in needing_gpu)
    assert len(needing_gpu) == (7 if works is device_works else 0)


@pytest.mark.parametrize("op", ["nearest", "quantize", "statistics"])
def test_a_broken_op_turns_its_checks_red(op, tmp_path, monkeypatch):
    def broken(original):
        def call(*args, **kwargs):
            first, *rest = original(*args, **kwargs)
            return type(original(*args, **kwargs))(torch.roll(first, 1, 0), *rest)

        return call

    module = checks_nearest if op == "nearest" else checks_ops
    monkeypatch.setattr(module, op, broken(getattr(module, op)))
    mine = [work for work in module.works(TRITON) if work.name.startswith(op)][:3]
    found = results(mine, tmp_path)
    assert FAILED in {record.status for record in found.values()}
    others = [work for work in checks_ops.works(TRITON) if not work.name.startswith(op)]
    assert outcome("checks", others[0]).status == OK


def test_what_the_sanitizer_watches_runs(monkeypatch):
    monkeypatch.setattr(small, "SHAPES", small.SHAPES[:1])
    small.main("cpu")


def test_every_measurement_can_be_taken(tmp_path, monkeypatch):
    """On tiny tensors of the CPU and with no clock: what runs, not how fast."""

    def no_clock(call, *, waits=False):
        call()
        return Times(1e-3, None if waits else 5e-4)

    def vectors(shape, dtype):
        return tuple(tensor.to(dtype) for tensor in testing.gaussian(*shape))

    monkeypatch.setattr(measurements, "times", no_clock)
    monkeypatch.setattr(measurements, "vectors", vectors)
    monkeypatch.setattr(measurements, "peak_bytes", lambda call: 1 << 20)
    monkeypatch.setattr(measurements, "rates", lambda: Rates(1e12, 1e14))
    for name in ("SEARCH_SHAPES", "STEP_SHAPES"):
        monkeypatch.setattr(measurements, name, ((9, 5, 4),))
    monkeypatch.setattr(measurements, "RESIDUAL_SHAPE", (2, 9, 5, 4))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 40, 1 << 40))
    monkeypatch.delitem(rivals.SEARCHES, "matmul+argmax, compiled")
    setting = Setting("cpu", True, ("triton", "reference"))
    parts = (measurements.search_works, measurements.statistics_works, measurements.step_works)
    found = {}
    for number, works in enumerate(parts):
        folder = tmp_path / str(number)
        folder.mkdir()
        found |= results(works(setting), folder)
    assert [record for record in found.values() if record.status == FAILED] == []
    exact = found["9x5x4 float32 fastvq triton"].figures
    assert 0 <= exact["coarse_proves"] <= exact["proven_before_float64"] <= 1
    assert found["9x5x4 float32 over bfloat16"].figures == {"ratio": 1}
    assert found["9x5x4 float32 cdist+argmin"].figures["times_ours"] == 1
    assert found["step 9x5x4 plain torch"].figures["times_ours"] == 2
    assert len(found) >= 14


def test_one_failure_leaves_the_rest(tmp_path):
    def broken() -> None:
        raise AssertionError("three wrong codes")

    def absent() -> None:
        raise Skip("needs a GPU")

    works = [
        Work("first", lambda: {"ms": 1.5}),
        Work("second", broken),
        Work("third", absent),
        Work("fourth", lambda: 1 / 0),
        Work("fifth", lambda: None),
    ]
    found = results(works, tmp_path)
    assert [r.status for r in found.values()] == [OK, FAILED, SKIPPED, FAILED, OK]
    assert found["first"].figures == {"ms": 1.5}
    assert "three wrong codes" in found["second"].note
    assert "ZeroDivisionError" in found["fourth"].note
    assert "test_triton_benchmark.py" in found["fourth"].note


def test_what_is_left_out_for_time_is_said(tmp_path):
    found = results([Work("late", lambda: None)], tmp_path, seconds=-1)
    assert found["late"].status == SKIPPED
    assert "no time" in found["late"].note


def test_shards_share_the_works():
    works = [Work(str(number), lambda: None) for number in range(10)]
    shares = [[work.name for work in shard(works, part, 3)] for part in range(3)]
    shared = [name for share in shares for name in share]
    assert sorted(shared) == sorted(work.name for work in works)
    assert max(map(len, shares)) == 4


# a worker in miniature: does what is not known yet, and dies in the middle of the second work
DYING = """
import os, sys
from pathlib import Path
from benchmarks.gpu.records import Journal
from benchmarks.gpu.running import Clock, Work, perform
works = [Work("before", lambda: None), Work("deadly", lambda: {deed}), Work("after", lambda: None)]
perform("correctness", works, Journal(Path(sys.argv[1])), Clock(60))
"""


@pytest.mark.parametrize(
    ("deed", "seconds", "note"),
    [("os._exit(7)", 60, "status 7"), ("__import__('time').sleep(99)", 4, "time was up")],
)
def test_a_dead_or_hanging_worker_costs_one_work(tmp_path, monkeypatch, deed, seconds, note):
    monkeypatch.setattr(workers, "parts", lambda: 1)
    monkeypatch.setattr(workers, "GRACE", 4)
    journal = tmp_path / "correctness-0.jsonl"
    program = [sys.executable, "-c", DYING.replace("{deed}", deed), str(journal)]
    found = workers.run("correctness", "cpu", tmp_path, seconds, quick=True, command=program)
    by_name = {record.name: record for record in found}
    assert by_name["before"].status == OK
    assert by_name["deadly"].status == FAILED
    assert note in by_name["deadly"].note
    # past its time nothing is started again
    assert ("after" in by_name) == (seconds == 60)


def test_a_worker_that_never_starts_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "parts", lambda: 1)
    program = [sys.executable, "-c", "raise SystemExit('no such module')"]
    found = workers.run("correctness", "cpu", tmp_path, 30, quick=True, command=program)
    assert [(record.name, record.status) for record in found] == [("worker 0 of 1", FAILED)]
    assert "no such module" in found[0].note


def test_the_journal_survives_half_a_line(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write(Record("s", "one", STARTED))
    journal.write(Record("s", "one", OK))
    with journal.path.open("a") as file:
        file.write('{"section": "s", "na')
    assert [record.status for record in journal.read().values()] == [OK]


RECORDS = [
    Record("nearest", "a shape", OK, figures={"ms": 1.23456, "graph_ms": None}),
    Record("nearest", "a red one", FAILED, "two\nlines of trouble"),
    Record("step", "a rival", SKIPPED, "not installed"),
    Record("step", "silent", OK),
]


def test_table():
    text = "\n".join(table(RECORDS, colour=False))
    assert "ms 1.235  graph_ms -" in text
    assert "FAILED: two lines of trouble" in text
    assert "skipped: not installed" in text
    assert "silent" not in text
    assert text.endswith("4 lines, 1 failed")
    assert "\033[31m" in "\n".join(table(RECORDS, colour=True))
    assert "all is well" in "\n".join(table(RECORDS[:1], colour=False))


def test_the_document_is_whole_or_absent(tmp_path):
    path = tmp_path / "device.json"
    save(path, {"name": "a GPU"}, RECORDS, complete=False)
    document = json.loads(path.read_text())
    assert document["complete"] is False
    assert document["records"][1]["note"] == "two\nlines of trouble"
    with pytest.raises(TypeError):
        save(path, {"name": object()}, RECORDS, complete=True)
    assert json.loads(path.read_text()) == document
    assert list(tmp_path.iterdir()) == [path]


def test_a_part_that_dies_leaves_the_document_of_the_others(tmp_path, monkeypatch, capsys):
    def run(name, *_, **__):
        if name == "nearest":
            raise OSError("disk full")
        return [Record(name, "one", OK)]

    monkeypatch.setattr(workers, "run", run)
    monkeypatch.setattr(build, "build", lambda seconds: [Record("build", "_C", OK)])
    status = command.main(["--device", "cpu", "--out", str(tmp_path)])
    assert status == 1
    (path,) = tmp_path.iterdir()
    document = json.loads(path.read_text())
    assert document["complete"] is True
    statuses = {record["section"]: record["status"] for record in document["records"]}
    parts = dict.fromkeys(["build", "correctness", "nearest", "statistics", "step"], OK)
    assert statuses == parts | {"nearest": FAILED}
    printed = capsys.readouterr().out
    assert "disk full" in printed
    assert printed.rstrip().endswith(str(path))


def test_arguments():
    options = command.arguments(["--only", "nearest", "--only", "step", "--quick"])
    assert (options.only, options.quick, options.tune) == (["nearest", "step"], True, False)
    with pytest.raises(SystemExit):
        command.arguments(["--only", "nonsense"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so(capsys):
    assert command.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_a_build_that_fails_is_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "no_cuda", lambda: "no nvcc")
    monkeypatch.setattr(build.sys, "executable", "false")
    records = build.build(30, tmp_path)
    assert [record.status for record in records] == [FAILED, SKIPPED, SKIPPED]
    # what is there is not built again
    (tmp_path / "_C.abi3.so").touch()
    assert [record.status for record in build.build(30, tmp_path)] == [OK, SKIPPED]
    monkeypatch.setattr(build, "no_cuda", lambda: None)
    assert build.build(30, tmp_path)[0].status == FAILED


def test_winners_become_rows_of_the_table():
    bucket = "D=64 K=1024 float32 | "
    records = [
        Record("tune", bucket + "as shipped", OK, figures={"best_ms": 2.0}),
        Record("tune", bucket + "(64, Cut(1)),", OK, figures={"best_ms": 1.5}),
        Record("tune", bucket + "(64, Cut(2)),", SKIPPED, "cannot be launched"),
    ]
    assert list(tune.winners(records)) == [
        "(64, Cut(1)),  # D=64 K=1024 float32: 1.5 ms, as shipped 2 ms"
    ]
