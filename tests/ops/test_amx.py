"""The AMX kernels of the CPU backend on emulated tiles, for machines that have none."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform == "win32" or shutil.which("g++") is None,
    reason="needs g++ on x86-64",
)
HERE = Path(__file__).parent / "amx"
SOURCES = Path(__file__).parents[2] / "csrc" / "cpu"


def has_avx512() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and {"avx512bw", "avx512dq", "avx512vl"} <= set(
        cpuinfo.read_text().split()
    )


@pytest.mark.skipif(not has_avx512(), reason="the rest of the kernels is AVX-512")
def test_scores_on_emulated_tiles(tmp_path):
    program = tmp_path / "check_scores"
    subprocess.run(
        [
            "g++", "-O1", "-std=c++20", "-DTORCH_TARGET_VERSION=0x020a000000000000",
            f"-I{SOURCES}", f"-I{Path(torch.__file__).parent / 'include'}",
            "-include", HERE / "emulated_tiles.h",
            SOURCES / "scores_amx.cpp", HERE / "check_scores.cpp", "-o", program,
        ],
        check=True,
    )  # fmt: skip
    run = subprocess.run([program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[:2000]
    assert run.stdout == "checked\n"
