"""How peers are reached: whole packages, single files of a package, single functions of a file.

open_clip and clip want torchvision when imported, trl an old transformers; what is needed of them
stands in files that do not, or in functions that are read out of the source by name.
"""

import __future__
import ast
import importlib
import importlib.util
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

REMEDY = "tests/parity/install.sh installs the peers"


def folder_of(package: str) -> Path:
    """Where a package is installed, without importing it; skip the test if it is not."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed: {REMEDY}")
    return Path(spec.submodule_search_locations[0])


def whole(package: str) -> ModuleType:
    """Import a package; skip the test if it is not installed."""
    folder_of(package.split(".")[0])
    return importlib.import_module(package)


def one_file(package: str, file: str) -> ModuleType:
    """Run one file of a package as a module of its own, without the package's __init__."""
    path = folder_of(package) / file
    spec = importlib.util.spec_from_file_location(f"peer_{package}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def functions(package: str, file: str, names: tuple[str, ...], space: dict) -> dict:
    """Functions, methods and classes of a file by name, defined in `space`, which they then share.

    A method becomes a plain function whose first argument is whatever stands for `self`. Types in
    signatures are not looked up, so `space` need not hold them.
    """
    source = (folder_of(package) / file).read_text()
    for node in ast.walk(ast.parse(source)):
        if getattr(node, "name", "") in names and node.name not in space:
            text = textwrap.dedent(ast.get_source_segment(source, node, padded=True))
            exec(compile(text, file, "exec", __future__.annotations.compiler_flag), space)
    missing = [name for name in names if name not in space]
    assert not missing, f"{package}/{file} has no {', '.join(missing)}"
    return {name: space[name] for name in names}
