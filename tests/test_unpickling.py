"""Nothing unpickles data that it did not write: a hostile checkpoint or data set must not run code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(file for part in ("respipe", "pipelines", "tools") for file in (ROOT / part).rglob("*.py"))

UNSAFE = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve"}
# Functions of these modules that read no pickle, and the classes of errors.
HARMLESS = {"pickle.dumps", "pickle.PicklingError", "pickle.UnpicklingError"}
# Pipes to processes that the same program has started, and what reads them.
RECEIVES = {"respipe/conversion/workers.py", "tools/benchmarks/process.py"}
READS_PIPES = (".recv", "pickle.loads")


def unpickling(source: str) -> Iterator[str]:
    """What a source uses that can unpickle, at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE:
            yield f"from {node.module} import ..."
        is_unsafe = isinstance(node, ast.Attribute) and ast.unparse(node.value) in UNSAFE
        if is_unsafe and ast.unparse(node) not in HARMLESS:
            yield ast.unparse(node)
        if isinstance(node, ast.Call):
            function, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if function.endswith("torch.load") and options.get("weights_only") != "True":
                yield ast.unparse(node)
            if "allow_pickle" in options and options["allow_pickle"] != "False":
                yield ast.unparse(node)
            if function.endswith((".recv", "load_state_dict_from_url", "hub.load")):
                yield function


def test_no_file_unpickles_what_it_did_not_write() -> None:
    found = {(str(file.relative_to(ROOT)), use) for file in FILES for use in unpickling(file.read_text())}
    assert {(file, use) for file, use in found if file not in RECEIVES or not use.endswith(READS_PIPES)} == set()


@pytest.mark.parametrize(
    "source",
    [
        "from pickle import loads",
        "import pickle\npickle.load(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "connection.recv()",
    ],
)
def test_unpickling_is_found(source: str) -> None:
    assert list(unpickling(source))
