"""Change the code in every small way and count what the tests notice.

    python tests/audit/mutation.py [folder]

Needs mutmut 3.8.1 (pip install mutmut==3.8.1), which is no dependency of the project. It works in a
copy of the project, in a temporary folder or the one named as the argument. A mutant that survives
must stand in survivors.txt with the reason: one that does not is printed and ends the program with
code 1, and so does a line there whose mutant is killed or gone. Eight minutes on one core.
docs/mutation.md shows the table.
"""

import ast
import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from plant import copy_project

ROOT = Path(__file__).parents[2]
SURVIVORS = Path(__file__).with_name("survivors.txt")
MODULES = ("losses", "rl", "conversation", "generate", "metrics/answers", "metrics/hallucination",
           "metrics/retrieval")
TESTS = ("test_losses.py", "test_rl.py", "test_dpo.py", "test_conversation.py", "test_generate.py",
         "metrics", "test_rollout.py")

CONFIG = """[mutmut]
source_paths=minivlm
only_mutate=
{modules}
also_copy=
    data
    pytest.ini
{scripts}
pytest_add_cli_args_test_selection=
{tests}
pytest_add_cli_args=
    -p
    no:cacheprovider
    -k
    not transformers and not trl
timeout_multiplier=3
track_dependencies=false
use_git_change_detection=false
"""


def without_decorators(source: str) -> str:
    """The same with f = decorator(f) behind each decorated function, which mutmut would skip."""
    lines = source.splitlines()
    found = [n for n in ast.walk(ast.parse(source))
             if isinstance(n, ast.FunctionDef) and n.decorator_list]
    for node in sorted(found, key=lambda n: -n.lineno):
        wrapped = node.name
        for decorator in reversed(node.decorator_list):
            wrapped = f"{ast.unparse(decorator)}({wrapped})"
        lines.insert(node.end_lineno, f"{' ' * node.col_offset}{node.name} = {wrapped}")
        del lines[node.decorator_list[0].lineno - 1:node.lineno - 1]
    return "\n".join(lines) + "\n"


def prepare(copy: Path) -> None:
    """A copy of the project with mutmut's settings in it."""
    copy_project(copy)
    for name in MODULES:
        path = copy / "minivlm" / f"{name}.py"
        path.write_text(without_decorators(path.read_text()))
    entries = {
        "modules": [f"minivlm/{name}.py" for name in MODULES],
        "scripts": sorted(p.name for p in ROOT.glob("*.py") if p.name != "setup.py"),
        "tests": [f"tests/{name}" for name in TESTS],
    }
    (copy / "setup.cfg").write_text(CONFIG.format(
        **{key: "\n".join(f"    {v}" for v in values) for key, values in entries.items()}))


def functions(mutated: str) -> dict[str, list[str]]:
    """The lines of every function that mutmut wrote into a file, without the one with its name."""
    lines, out = mutated.splitlines(), {}
    for node in ast.walk(ast.parse(mutated)):
        if isinstance(node, ast.FunctionDef) and "__mutmut_" in node.name:
            text = "\n".join(lines[node.lineno - 1:node.end_lineno])
            out[node.name] = text.replace(node.name, "f").splitlines()
    return out


def change(original: list[str], mutant: list[str]) -> tuple[str, str]:
    """The words that a mutant changes and a neighbor on each side, and what becomes of them."""
    diff = list(difflib.ndiff(original, mutant))
    old, new = (" ".join(x[2:].strip() for x in diff if x.startswith(s)).split() for s in "-+")
    for end, two in ((0, slice(2)), (-1, slice(-2, None))):
        while min(len(old), len(new)) > 1 and old[two] == new[two]:
            del old[end], new[end]
    return " ".join(old), " ".join(new)


def alive(copy: Path, module: str) -> tuple[int, list[tuple[str, str, str]]]:
    """How many mutants of a module there are; function, old and new text of those not killed."""
    path = copy / "mutants" / "minivlm" / f"{module}.py"
    exits = json.loads(path.with_suffix(".py.meta").read_text())["exit_code_by_key"]
    text, out = functions(path.read_text()), []
    for key, code in exits.items():
        if code is None:
            raise RuntimeError(f"{key} has not been run")
        if code in (0, 5, 33):                                       # survived, or no test
            name = key.rsplit(".", 1)[1]
            stem = name.rsplit("__mutmut_", 1)[0]
            shown = stem.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
            out.append((f"{module}.{shown}", *change(text[f"{stem}__mutmut_orig"], text[name])))
    return len(exits), out


def explained() -> dict[tuple[str, str, str], list[str]]:
    """The listed survivors: function, old and new text -> "equivalent" or "left", once for each."""
    line = r"^- `([^`]+)`: `([^`]+)` -> `([^`]*)`(?: x (\d+))?; (equivalent|left): "
    text = re.sub(r"\s*\n +", " ", SURVIVORS.read_text())                 # one line each
    out: dict[tuple[str, str, str], list[str]] = {}
    for *key, times, kind in re.findall(line, text, flags=re.MULTILINE):
        out.setdefault(tuple(key), []).extend([kind] * int(times or 1))
    return out


def report(copy: Path) -> int:
    """Print the table of a finished run; 1 if its survivors are not those of the list, else 0."""
    known, unknown, rows = explained(), [], {}
    print("\n| file | mutants | killed | equivalent | survived | score |")
    print("|---|---|---|---|---|---|")
    for module in MODULES:
        total, survivors = alive(copy, module)
        kinds = [known[s].pop() if known.get(s) else unknown.append(s) for s in survivors]
        equivalent = kinds.count("equivalent")
        rows[f"{module}.py"] = (total, total - len(kinds), equivalent, len(kinds) - equivalent)
    rows["all"] = tuple(map(sum, zip(*rows.values())))
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(map(str, row))} | {row[1] / (row[0] - row[2]):.3f} |")
    gone = [key for key, kinds in known.items() for _ in kinds]
    for title, keys in (("not on the list", unknown), ("on the list, but killed or gone", gone)):
        for name, old, new in keys:
            print(f"{title}: - `{name}`: `{old}` -> `{new}`")
    return int(bool(unknown or gone))


def main(folder: str = "") -> int:
    """Run mutmut in a copy and compare what survives with the list."""
    mutmut = Path(sys.executable).with_name("mutmut")
    if not mutmut.is_file():
        sys.exit("mutmut is not installed: pip install mutmut==3.8.1")
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(folder or temporary).absolute() / "copy"
        prepare(copy)
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        subprocess.run([mutmut, "run", "--max-children", "1"], cwd=copy, env=env, check=True)
        return report(copy)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
