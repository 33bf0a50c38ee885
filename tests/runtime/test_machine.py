"""What the machine gives, and that encoders share it."""

import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from t1_edge import machine
from t1_edge.bandwidth import read_bandwidth
from t1_edge.cores import Cores, process_cores
from t1_edge.errors import InputError


@pytest.fixture
def cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of two cores with two threads each, all of which this process may use."""
    for logical, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        folder = tmp_path / "cpus" / f"cpu{logical}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    monkeypatch.setattr(machine, "_CPUS", tmp_path / "cpus")
    monkeypatch.setattr(machine, "_QUOTAS", (tmp_path / "cpu.max", tmp_path / "cpu.cfs_quota_us"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.delenv(machine.THREADS_VARIABLE, raising=False)
    return tmp_path


def test_a_core_gets_one_thread(cpus: Path) -> None:
    assert machine.available_threads() == 2


def test_cores_that_the_process_may_not_use_do_not_count(
    cpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 3}, raising=False)
    assert machine.available_threads() == 1
    assert machine.processor().logical == 2


@pytest.mark.parametrize(
    ("quota", "threads"),
    [("max 100000", 2), ("100000 100000", 1), ("150000 100000", 1), ("50000 100000", 1)],
)
def test_a_quota_of_time_counts(cpus: Path, quota: str, threads: int) -> None:
    (cpus / "cpu.max").write_text(quota + "\n")
    assert machine.available_threads() == threads


@pytest.mark.parametrize(("quota", "threads"), [("-1", 2), ("50000", 1)])
def test_so_does_that_of_the_first_cgroups(cpus: Path, quota: str, threads: int) -> None:
    (cpus / "cpu.cfs_quota_us").write_text(quota + "\n")
    (cpus / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.available_threads() == threads


@pytest.mark.parametrize(("asked", "threads"), [("3", 3), ("7,2", 7), ("", 2)])
def test_omp_num_threads_is_respected(
    cpus: Path, monkeypatch: pytest.MonkeyPatch, asked: str, threads: int
) -> None:
    monkeypatch.setenv(machine.THREADS_VARIABLE, asked)
    assert machine.available_threads() == threads


@pytest.mark.parametrize("asked", ["0", "many", "-2"])
def test_omp_num_threads_must_be_a_number(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setenv(machine.THREADS_VARIABLE, asked)
    with pytest.raises(InputError, match="OMP_NUM_THREADS"):
        machine.available_threads()


def test_a_processor_without_features_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As numpy tells of one that has nothing beyond the baseline: it leaves the list out."""
    monkeypatch.setattr(np, "show_config", lambda mode: {"SIMD Extensions": {}})
    monkeypatch.setattr(machine, "_CPU_INFO", Path("/nowhere"))
    assert machine.processor().features == ()


@pytest.mark.parametrize(
    ("line", "features"),
    [
        (
            "flags\t: fpu amx_tile avx2 avx512_vnni amx_int8",
            ("amx_int8", "amx_tile", "avx512_vnni"),
        ),
        ("Features\t: fp asimd asimddp i8mm sve", ("asimddp", "i8mm")),
    ],
)
def test_products_of_small_numbers_are_among_the_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, features: tuple[str, ...]
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"model name\t: X\n{line}\n")
    monkeypatch.setattr(machine, "_CPU_INFO", file)
    monkeypatch.setattr(np, "show_config", lambda mode: {"SIMD Extensions": {}})
    assert machine.processor().features == features


@pytest.mark.parametrize(
    ("flags", "sums"),
    [("avx2 avx512_vnni fma", True), ("avx2 avx_vnni", True), ("avx2 avx512f", False), ("", False)],
)
def test_only_a_processor_that_says_so_sums_up_in_32_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, sums: bool
) -> None:
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "_CPU_INFO", file)
    assert not machine.has_vnni()
    file.write_text(f"model name\t: X\nflags\t\t: fpu {flags}\n")
    assert machine.has_vnni() == sums


def test_a_containers_memory_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(machine, "_MEMORY_LIMITS", ((limit, used),))
    assert machine.free_memory() > 10**7
    used.write_text("400\n")
    limit.write_text("max\n")
    assert machine.free_memory() > 10**7
    limit.write_text("1000\n")
    assert machine.free_memory() == 600


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_has_its_cores() -> None:
    with process_cores().hold(10**6), warnings.catch_warnings(action="ignore"):
        child = os.fork()  # of a process with threads, of which newer Pythons warn
        if child == 0:
            with process_cores().hold(1):
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_process_does_not_begin_with_the_peak_of_another() -> None:
    large = np.ones(40 * 2**20)  # 320 MB
    script = "from t1_edge.machine import peak_resident_bytes as peak; print(peak())"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert int(found.stdout) < large.nbytes / 2


def test_what_is_measured_is_plausible() -> None:
    assert 1e8 < read_bandwidth(2) < 1e13
    assert 1e7 < machine.peak_resident_bytes() < 1e12
    assert 1e7 < machine.free_memory() <= machine.total_memory() < 1e15
    found = machine.processor()
    assert found.architecture
    assert found.features
    assert found.threads >= 1


def test_cores_are_never_held_twice() -> None:
    cores, held, most = Cores(3), [0], [0]
    lock = threading.Lock()

    def work(count: int) -> None:
        for _ in range(20):
            with cores.hold(count):
                with lock:
                    held[0] += min(count, 3)
                    most[0] = max(most[0], held[0])
                time.sleep(0.0005)
                with lock:
                    held[0] -= min(count, 3)

    threads = [threading.Thread(target=work, args=[count]) for count in (1, 1, 2, 3, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [3]


def test_who_waits_for_many_cores_is_not_passed_by() -> None:
    cores, order = Cores(2), list[str]()
    waits = threading.Event()

    def take(name: str, count: int) -> None:
        waits.set()
        with cores.hold(count):
            order.append(name)

    with cores.hold(1):
        wide = threading.Thread(target=take, args=["wide", 2])
        wide.start()
        waits.wait()
        _until(lambda: len(cores._waiting) == 1)
        narrow = threading.Thread(target=take, args=["narrow", 1])
        narrow.start()
        _until(lambda: len(cores._waiting) == 2)
        assert order == []
    wide.join()
    narrow.join()
    assert order == ["wide", "narrow"]


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)
