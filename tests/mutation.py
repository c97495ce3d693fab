"""Change the code in every small way and count what the tests notice: python tests/mutation.py

Needs mutmut 3.8.1 (pip install mutmut==3.8.1), which is no dependency of the project. It works in a
copy of the project, in a temporary folder or the one named as the argument. A mutant that survives
must stand in docs/mutation.md with the reason: one that does not is printed and ends the program
with code 1, and so does a line there whose mutant is killed or gone. Half an hour on one core.
"""

import ast
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "mutation.md"
MODULES = ("losses", "rl", "conversation", "generate", "metrics")
TESTS = ("losses", "rl", "dpo", "conversation", "generate", "metrics", "rollout")

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
    skip = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=skip, dirs_exist_ok=True)
    for name in MODULES:
        path = copy / "minivlm" / f"{name}.py"
        path.write_text(without_decorators(path.read_text()))
    entries = {
        "modules": [f"minivlm/{name}.py" for name in MODULES],
        "scripts": sorted(p.name for p in ROOT.glob("*.py") if p.name != "setup.py"),
        "tests": [f"tests/test_{name}.py" for name in TESTS],
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


def change(original: list[str], mutant: list[str]) -> str:
    """What a mutant changes, as one line: what stood there -> what stands there now."""
    old, new = [], []
    for line in difflib.ndiff(original, mutant):
        if line[:2] in ("- ", "+ "):
            (old if line[0] == "-" else new).append(line[2:].strip())
    return f"{' '.join(old)} -> {' '.join(new)}"


def results(copy: Path, module: str) -> tuple[int, list[str]]:
    """How many mutants of a module there are, and those not killed: `function: old -> new`."""
    path = copy / "mutants" / "minivlm" / f"{module}.py"
    exits = json.loads(path.with_suffix(".py.meta").read_text())["exit_code_by_key"]
    text, alive = functions(path.read_text()), []
    for key, code in exits.items():
        if code in (0, 5, 33):                                       # survived, or no test
            name = key.rsplit(".", 1)[1]
            stem = name.rsplit("__mutmut_", 1)[0]
            shown = re.sub(r"^x(_|ǁ)", "", stem).replace("ǁ", ".")
            changed = change(text[f"{stem}__mutmut_orig"], text[name])
            alive.append(f"{module}.{shown}: {changed}")
        elif code is None:
            raise RuntimeError(f"{key} has not been run")
    return len(exits), alive


def main(folder: str = "") -> int:
    """Run mutmut, print the table and what the page does not explain."""
    explained = re.findall(r"^- `(.+?)`; (equivalent|left): ", PAGE.read_text(), flags=re.MULTILINE)
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(folder or Path(temporary) / "copy").absolute()
        prepare(copy)
        command = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", "1"]
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        subprocess.run(command, cwd=copy, env=env, check=True)
        return report(copy, explained)


def report(copy: Path, explained: list[tuple[str, str]]) -> int:
    """Print the table of a finished run; 1 if it and the page differ, else 0."""
    left, sums = list(explained), [0, 0, 0, 0]
    print("\n| file | mutants | killed | equivalent | survived | score |")
    print("|---|---|---|---|---|---|")
    unknown = []
    for module in MODULES:
        total, alive = results(copy, module)
        kinds = []
        for text in alive:
            match = next((e for e in left if e[0] == text), None)
            if match:
                left.remove(match)
            else:
                unknown.append(text)
            kinds.append(match[1] if match else "left")
        row = [total, total - len(alive), kinds.count("equivalent"), kinds.count("left")]
        sums = [a + b for a, b in zip(sums, row)]
        print(f"| {module}.py | {' | '.join(map(str, row))} | {row[1] / (total - row[2]):.3f} |")
    print(f"| all | {' | '.join(map(str, sums))} | {sums[1] / (sums[0] - sums[2]):.3f} |")
    for title, texts in (("not explained", unknown), ("explained, but not there", left)):
        for text in texts:
            print(f"{title}: {text if isinstance(text, str) else text[0]}")
    return int(bool(unknown or left))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
