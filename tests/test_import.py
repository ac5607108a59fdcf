# SPDX-License-Identifier: Apache-2.0
"""``import fastvq`` needs torch alone and loads nothing more, each time in a fresh process."""

from __future__ import annotations

import functools
import importlib.machinery
import json
import re
import subprocess
import sys
import warnings

import pytest

from fastvq import _native

# what a bare machine lacks: the import system finds none of them
WITHOUT_OPTIONAL = """
import importlib.machinery, json, sys

class Bare(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in OPTIONAL else super().find_spec(name, path, target)

OPTIONAL = {
    "triton", "typer", "rich", "matplotlib", "PIL", "tqdm", "safetensors", "sklearn", "scipy",
    "skimage", "pywt", "datasets", "tensorboard",
    "faiss", "vector_quantize_pytorch", "einops", "pytest", "hypothesis",
}
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Bare
"""


def run(script: str) -> dict:
    """Runs a script in a fresh process with every warning an error, returns the JSON it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_bare_machine_runs_the_reference():
    answer = run(
        WITHOUT_OPTIONAL
        + """
import pathlib, warnings
import torch
warnings.simplefilter("error")
import fastvq
from fastvq import _native
_native._FOLDER = pathlib.Path("nowhere")

x = torch.tensor([[0.9, 0.1], [0.2, 0.7]], requires_grad=True)
nearest = fastvq.ops.nearest(x, torch.eye(2))
quantized, indices, loss = fastvq.VectorQuantizer(dim=2, codebook_size=4, start=fastvq.Uniform())(x)
(quantized.sum() + loss).backward()
refused = {}
for name in ("native", "triton"):
    try:
        with fastvq.use_backend(name):
            fastvq.ops.nearest(x, torch.eye(2))
    except RuntimeError as error:
        refused[name] = str(error)
print(json.dumps({
    "indices": nearest.indices.tolist(),
    "gradient": bool(x.grad.isfinite().all()),
    "refused": refused,
    "backends": {status.name: status.available for status in fastvq.backends()},
}))
"""
    )
    assert answer["indices"] == [0, 1]
    assert answer["gradient"]
    assert answer["backends"] == {"native": False, "triton": False, "reference": True}
    assert "not built" in answer["refused"]["native"]
    assert "triton is not installed" in answer["refused"]["triton"]


def test_every_module_imports_on_a_bare_machine():
    # kernels, commands and suites of tests are nothing without their packages
    answer = run(
        WITHOUT_OPTIONAL
        + """
import importlib, pkgutil, torch, fastvq
names = [module.name for module in pkgutil.walk_packages(fastvq.__path__, "fastvq.")
         if not module.name.startswith(("fastvq.cli.", "fastvq.testing."))]
names = [name for name in names
         if "_triton" not in name and not name.endswith((".__main__", "._C"))]
faults = {}
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:
        faults[name] = str(error)
print(json.dumps({"names": names, "faults": faults}))
"""
    )
    assert answer["faults"] == {}
    assert "fastvq.ops.nearest.api" in answer["names"]


def test_import_loads_nothing_but_fastvq_and_is_quick():
    answer = run(
        """
import json, sys, time
start = time.process_time()
import torch
middle = time.process_time()
before = set(sys.modules)
import fastvq
end = time.process_time()
new = {name for name in set(sys.modules) - before}
print(json.dumps({
    "foreign": sorted(name for name in new if name.split(".")[0] not in
                      {"fastvq", *sys.stdlib_module_names}),
    "heavy": sorted(name for name in new if name.startswith(
                    ("fastvq.models", "fastvq.priors", "fastvq.data", "fastvq.training",
                     "fastvq.cli", "fastvq.testing")) or "_triton" in name),
    "libraries": [library for library in torch.ops.loaded_libraries if "_C" in library],
    "torch_seconds": middle - start,
    "fastvq_seconds": end - middle,
}))
"""
    )
    assert answer["foreign"] == []
    assert answer["heavy"] == []
    assert answer["libraries"] == []
    # processor time, so that a busy machine does not count; seen: 0.02 s beside torch's 0.9 s
    assert answer["fastvq_seconds"] < max(0.1, 0.15 * answer["torch_seconds"])


@pytest.fixture
def fresh_native(tmp_path, monkeypatch):
    """``_native`` before its first use, looking for its library in an empty folder."""
    monkeypatch.setattr(_native, "_FOLDER", tmp_path)
    monkeypatch.setattr(_native, "reason", functools.cache(_native.reason.__wrapped__))
    return tmp_path


def test_an_absent_library_is_silent(fresh_native):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "was not built" in _native.reason()
    with pytest.raises(ImportError, match="was not built"):
        _native.load()


def test_a_broken_library_warns_once_with_the_words_of_the_loader(fresh_native):
    library = fresh_native / f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    library.write_bytes(b"not a library")
    with pytest.warns(RuntimeWarning, match=re.escape(str(library))) as caught:
        reason = _native.reason()
    assert len(caught) == 1
    assert reason.startswith(f"{library} does not load: ")
    # the loader's own text, not only ours
    assert len(reason) > len(f"{library} does not load: ") + 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _native.reason() == reason
    with pytest.raises(ImportError, match="does not load"):
        _native.load()
