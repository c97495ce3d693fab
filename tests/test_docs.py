"""What prose and style promise: README paths, flags and numbers, help texts, imports, options."""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minivlm.running.options import check, help_of, parse_args

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = ("README.md", "README.zh.md", "docs/your_data.md", "docs/published_weights.md",
         "docs/bigger_runs.md", "docs/rlhf_by_hand.md")
SCRIPTS = (
    "train_lm", "train_clip", "train_caption", "train_align", "train_sft", "train_reward",
    "train_ppo", "train_grpo", "train_dpo", "evaluate", "chat",
    "data.book.prepare", "data.nlvr.prepare", "data.coco.prepare", "data.cifar10.prepare",
    "data.webdata.prepare", "data.llava.prepare", "data.capfilt", "data.instruct", "data.quiz",
    "data.preferences", "data.probe",
)
if importlib.util.find_spec("starlette"):  # of an extra
    SCRIPTS += ("serve",)
CORE = {"torch", "numpy", "PIL", "tqdm", "tiktoken", "pytest", "minivlm", "data"}
EXTRAS = {  # optional: extras of setup.py
    ("teachers.py", "openai"), ("bench.py", "transformers"),
    ("weights.py", "safetensors"), ("tokenizers.py", "regex"),
    ("sentencepiece.py", "tokenizers"),
    ("serve.py", "starlette"), ("serve.py", "uvicorn"),
    ("test_page.py", "selenium"), ("screenshots.py", "selenium"),
    ("test_pretrained.py", "safetensors"), ("test_families.py", "safetensors"),
    ("test_properties.py", "hypothesis"),
    ("test_fuzz.py", "hypothesis"),
}


def python_files() -> list[Path]:
    """Every Python file that git knows or would add."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "*.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    names = done.stdout.split() or [
        str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py") if ".venv" not in p.parts
    ]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


@pytest.mark.parametrize("page", PAGES)
def test_every_path_on_a_page_exists(page):
    """Catches a renamed file whose old name lives on in prose."""
    text = (ROOT / page).read_text()
    files = r"`((?:[\w.]+/)*[\w.]+\.(?:py|sh|png|svg|md|ipynb))`|\]\(([\w/.]+)\)"
    paths = re.findall(files, text)
    folders = ROOT, (ROOT / page).parent  # a link is relative to its page
    names = [name for pair in paths for name in pair if name]
    missing = [name for name in names if not any((folder / name).exists() for folder in folders)]
    assert paths and not missing


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_in_a_pages_commands_is_a_real_option(page):
    """Catches a command line that no longer works as printed."""
    program = (
        r"(?:python |\.venv/bin/python )?"
        r"((?:[\w/]+/)?(?:train_\w+|evaluate|chat|serve|quiz|prepare|preferences)\.py)"
    )
    options = r"((?: --\w+(?: [^\s`|]+)?)+)"
    commands = re.findall(program + options, (ROOT / page).read_text())
    assert commands
    for script, flags in commands:
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        for flag in re.findall(r"--(?:no-)?(\w+)", flags):
            assert flag == "help" or flag in module.Config.__dataclass_fields__, (
                f"{script} has no --{flag}"
            )


def test_the_readmes_numbers_are_those_of_the_result_files():
    """Catches numbers in prose that no run has produced."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "results" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    inside = README.split(tables.BEGIN)[1].split(tables.END)[0]
    assert inside.strip() == tables.block().strip()
    row = "\n".join(tables.row())
    assert README.split(tables.ROW_BEGIN)[1].split(tables.ROW_END)[0].strip() == row
    by_hand = tables.BY_HAND.read_text().split(tables.BY_HAND_BEGIN)[1]
    assert by_hand.split(tables.BY_HAND_END)[0].strip() == tables.by_hand_block()
    chinese = tables.CHINESE.read_text()
    inside = chinese.split(tables.BEGIN)[1].split(tables.END)[0]
    assert inside.strip() == tables.in_chinese("\n".join(tables.front_table(tables.TEN)))
    inside = chinese.split(tables.ROW_BEGIN)[1].split(tables.ROW_END)[0]
    assert inside.strip() == tables.in_chinese(row)
    assert (ROOT / "results" / "README.md").read_text() == tables.page()


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_explains_every_option(name, capsys):
    """Catches an option without a comment, which would have no help text, and a failing --help."""
    module = importlib.import_module(name)
    with pytest.raises(SystemExit) as stop:
        parse_args(module.Config, ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for field in module.Config.__dataclass_fields__:
        assert f"--{field}" in text
    source = inspect.getsource(module.Config)
    comments = dict(re.findall(r"^\s+(\w+):[^#\n]*#\s*(.*)$", source, flags=re.MULTILINE))
    assert comments.keys() >= module.Config.__dataclass_fields__.keys()


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_option_is_read(name):
    """Catches a flag that is parsed and never applied."""
    module = importlib.import_module(name)
    read = {
        n.attr for n in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(n, ast.Attribute)
    }
    running = (ROOT / "minivlm" / "running" / "run.py").read_text()
    fields = module.Config.__dataclass_fields__
    assert not [f for f in fields if f not in read and f"cfg.{f}" not in running]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_number_has_a_bound_or_a_reason_why_not(name):
    """Catches an option whose bounds nobody wrote down: its comment begins with a rule, or the
    class checks it. Defaults obey their own rules.
    """
    module = importlib.import_module(name)
    helps = help_of(module.Config)
    check(module.Config())
    checked = inspect.getsource(module.Config).partition("def __post_init__")[2]
    unbounded = [
        f.name for f in dataclasses.fields(module.Config)
        if type(f.default) in (int, float) and not helps[f.name].rule
        and f"self.{f.name}" not in checked
    ]
    assert not unbounded


@pytest.mark.parametrize("name", SCRIPTS)
def test_defaults_have_the_type_that_they_declare(name):
    """Catches `lr: float = 1`, which would make the command line take whole numbers only."""
    for field in importlib.import_module(name).Config.__dataclass_fields__.values():
        assert type(field.default).__name__ == getattr(field.type, "__name__", field.type), (
            field.name
        )


def test_only_core_packages_are_imported():
    """Catches a dependency that nobody decided on."""
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
                [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                top = name.split(".")[0]
                own = any((ROOT / f / f"{top}.py").exists() for f in ("", "results"))
                own = own or any((ROOT / "tests").rglob(f"{top}.py"))
                own = own or top in ("setuptools", "parity", "tests", "results")
                extra = (path.name, top) in EXTRAS
                assert top in CORE or own or extra or top in sys.stdlib_module_names, (
                    f"{path.name} imports {name}"
                )


def test_nothing_is_printed_or_seeded_on_import():
    """Catches side effects at import: output, seeds, thread counts."""
    code = ("import torch; a = (torch.initial_seed(), torch.get_num_threads()); import importlib\n"
            f"[importlib.import_module(n) for n in {SCRIPTS!r}]\n"
            "assert a == (torch.initial_seed(), torch.get_num_threads())")
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_scripts_do_not_import_each_other_and_share_their_banners():
    """Catches scripts that stop being alike: equal banners in equal order, each file on its own."""
    for name in SCRIPTS[:8]:
        text = (ROOT / f"{name}.py").read_text()
        banners = re.findall(r"^ *# --- (\w+) ---$", text, flags=re.MULTILINE)
        before = banners[: banners.index("run")]
        assert before[0] == "config" and set(before) <= {"config", "evaluate", "update"}
        assert sorted(banners[len(before) + 1:-3]) == ["data", "model", "optimizer"]
        assert banners[-3:] == ["resume", "loop", "finish"]
        assert not re.search(r"import train_|from train_", text)


def test_no_line_is_wider_than_100_columns():
    """Catches code that has to be scrolled sideways."""
    wide = [f"{path.name}:{i}" for path in python_files()
            for i, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 100]
    assert not wide


def test_no_function_is_written_twice():
    """Catches a copied function: two of over five statements with the same syntax tree."""
    seen: dict[str, str] = {}
    for path in python_files():
        if "tests" in path.parts or path.name.startswith("train_"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and len(node.body) > 5:
                body = ast.dump(ast.Module(node.body[1:], []))
                assert seen.setdefault(body, f"{path.name}:{node.name}") == (
                    f"{path.name}:{node.name}"
                )


def test_every_listed_mutant_changes_what_the_code_says(monkeypatch):
    """Catches a list that the code has outgrown; tests/audit/mutation.py measures anew."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "audit")
    mutation = importlib.import_module("mutation")
    text = mutation.SURVIVORS.read_text()
    assert len(mutation.explained()) == len(re.findall(r"^- `", text, flags=re.MULTILINE)) > 20
    for name, old, new in mutation.explained():
        module, function = name.split(".", 1)
        text = " ".join((ROOT / "minivlm" / f"{module}.py").read_text().split())
        assert f"def {function.split('.')[-1]}(" in text and old in text and old != new, name


def test_every_planted_bug_has_its_place():
    """Catches bugs that the source has outgrown: tests/audit/plant.py could not plant them."""
    spec = importlib.util.spec_from_file_location("plant", ROOT / "tests" / "audit" / "plant.py")
    plant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plant)
    assert len(plant.BUGS) == len({name for name, *_ in plant.BUGS}) >= 24
    for name, file, old, new, test in plant.BUGS:
        assert (
            (ROOT / file).read_text().count(old) == 1 and old != new and (ROOT / test).is_file()
        ), name


def test_the_table_of_parity_holds_what_the_tests_compare():
    """Catches a line that nobody measures any more, a new one that is missing, too few cases."""
    page = (ROOT / "docs" / "parity.md").read_text()
    line = r"^\| (.+) \| (.+): `.+` \| ([\d,]+) \| (\S+) \| (\S+) \|$"
    rows = re.findall(line, page, flags=re.MULTILINE)
    assert len(rows) == page.count("\n| ") - 1 > 50  # but for the head
    for quantity, _, cases, worst, allowed in rows:
        assert int(cases.replace(",", "")) >= 100, quantity
        assert worst == allowed == "equal" or float(worst) <= float(allowed), quantity
    compared = set()
    for path in (ROOT / "tests" / "parity").glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "agreement":
                parts = getattr(node.args[0], "values", [node.args[0]])
                texts = [re.escape(p.value) if isinstance(p, ast.Constant) else ".+" for p in parts]
                compared.add("".join(texts))
    names = [quantity for quantity, *_ in rows]
    assert all(any(re.fullmatch(c, name) for c in compared) for name in names)
    assert all(any(re.fullmatch(c, name) for name in names) for c in compared)


def test_the_readme_says_of_kills_what_was_measured():
    """Catches a claim without its file: runs cut off at random, and not a checkpoint lost."""
    stages = json.loads((ROOT / "results" / "resume.json").read_text())["stages"]
    assert {f"train_{stage}" for stage in stages} == set(SCRIPTS[:9])
    kills = sum(line["sigkill"]["kills"] for line in stages.values())
    assert f"{kills} times by SIGKILL" in " ".join(README.split()) and kills >= 100
    for line in stages.values():
        assert line["sigkill"]["unreadable"] == 0 < line["sigkill"]["while_writing"]
        assert line["sigterm"]["exit_code"] == 143
        assert all(line[how]["equal"] for how in ("ctrl_c", "sigterm", "sigkill"))
