"""How peers are reached: whole packages, single files of a package, single functions of a file.

open_clip and clip want torchvision when imported, trl an old transformers; what is needed of them
stands in files that do not, or in functions that are read out of the source by name.
"""

import __future__
import ast
import importlib
import importlib.util
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

REMEDY = "tests/parity/install.sh installs the peers"


def folder_of(package: str) -> Path:
    """Where a package is installed, without importing it; skip the test if it is not.

    package: its name; or "trl-0.24.0", a second version that install.sh puts into a folder of its
        own.
    """
    name, _, version = package.partition("-")
    if version:
        folder = Path(sys.prefix) / "peers" / package / name
        if not folder.is_dir():
            pytest.skip(f"{package} is not installed: {REMEDY}")
        return folder
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


def lines(package: str, file: str, first: str, last: str) -> str:
    """The lines of a file from one that begins with `first` to one that begins with `last`.

    For a few lines in the middle of a method of hundreds. Each must stand in the file once.
    """
    source = (folder_of(package) / file).read_text().splitlines()
    ends = []
    for text in (first, last):
        [place] = [i for i, line in enumerate(source) if line.strip().startswith(text)]
        ends.append(place)
    return textwrap.dedent("\n".join(source[ends[0]:ends[1] + 1]))
