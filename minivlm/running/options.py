"""The command line of every script, built from its Config dataclass.

    # optimization
    lr: float = 2e-3  # > 0; peak learning rate of AdamW

A field is an option and its default is the option's default. The comment beside the field is the
help text. Where that comment begins with a rule, values outside the rule are refused before the
script reads or writes anything:

    >= 0; ...      > 0; ...      0 .. 1; ...      mlp | linear | llava; ...

A comment on a line of its own, as "# optimization" above, is the heading of the options below it.
"""

import argparse
import dataclasses
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

FIELD = re.compile(r"^ {4}(\w+):[^#\n]*#\s*(.*)$")
HEADING = re.compile(r"^ {4}# (.+)$")
RULE = re.compile(r">=? \S+|\S+ \.\. \S+|[\w-]+(?: \| [\w-]+)+")

SOURCES = ("init", "clip", "lm", "reward", "vision", "llm")  # options that name what to start from
# what --resume may change: where the run is, how long it takes, when it is looked at
FREE = ("out", "resume", "steps", "eval_every", "log_every", "device", "dtype", "compile",
        "threads", "workers", "ref_logps")

# control characters, marks that change the direction of writing, half characters
STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Help(NamedTuple):
    """What the source of a Config says of one option."""

    text: str
    rule: str
    heading: str


def help_of(cls) -> dict[str, Help]:
    """Read help text, rule and heading of every option from the source of a Config dataclass.

    Returns:
        {} where there is no source, as in an interactive session: options then have no help and no
        rule.
    """
    try:
        source = inspect.getsource(cls)
    except OSError:
        return {}
    found, heading = {}, "options"
    for line in source.splitlines():
        field, title = FIELD.match(line), HEADING.match(line)
        if field:
            name, text = field.groups()
            rule = text.partition(";")[0]
            found[name] = Help(text, rule if RULE.fullmatch(rule) else "", heading)
        elif title:
            heading = title[1]
    return found


def obeys(value, rule: str) -> bool:
    """Whether an option's value is one that its rule allows; NaN obeys no rule about numbers.

    >>> obeys(0, ">= 0"), obeys(0.0, "> 0"), obeys(2, "0 .. 1"), obeys("mlp", "mlp | linear")
    (True, False, False, True)
    """
    if " | " in rule:
        return value in rule.split(" | ")
    if " .. " in rule:
        low, high = rule.split(" .. ")
        return float(low) <= value <= float(high)
    sign, bound = rule.split()
    return value >= float(bound) if sign == ">=" else value > float(bound)


def parse_args(cls, argv: list[str] | None = None):
    """Make a Config from the command line: `--name value`; `--name`, `--no-name` for booleans.

    An unknown flag, and a value that `check` or the class refuses (a ValueError in __post_init__),
    ends the program with one line and exit code 2.
    """
    doc = (sys.modules[cls.__module__].__doc__ or "").strip()
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.error = lambda text: parser.exit(2, f"{parser.prog}: error: {text}; see --help\n")
    helps, groups = help_of(cls), {}
    for f in dataclasses.fields(cls):
        known = helps.get(f.name, Help("", "", "options"))
        if known.heading not in groups:
            groups[known.heading] = parser.add_argument_group(known.heading)
        kind = {"type": type(f.default), "metavar": ""}
        if f.type in (bool, "bool"):
            kind = {"action": argparse.BooleanOptionalAction}
        text = f"{known.text} (default: {f.default})".replace("%", "%%")
        groups[known.heading].add_argument(f"--{f.name}", default=f.default, help=text, **kind)
    args = parser.parse_args(argv)
    try:
        cfg = cls(**vars(args))
        check(cfg)
        return cfg
    except ValueError as error:
        parser.error(str(error))


def check(cfg) -> None:
    """Refuse values that no run can use.

    Raises:
        ValueError: if an option does not obey its rule, if a run would overwrite the one it starts
            from, or if a batch has fewer rows than micro-batches.
    """
    for name, known in help_of(type(cfg)).items():
        value = getattr(cfg, name)
        if known.rule and not obeys(value, known.rule):
            if " | " in known.rule:
                choices = known.rule.replace(" | ", ", ")
                raise ValueError(f"{name} {value!r} is not one of {choices}")
            raise ValueError(f"{name} is {value!r}, expected {known.rule}")
    for name in SOURCES:
        source = getattr(cfg, name, "")
        if source and Path(source).resolve() == Path(cfg.out).resolve():
            raise ValueError(
                f"{name} and out are both {source}; the run would overwrite what it starts from"
            )
    minibatches = getattr(cfg, "minibatches", 1)
    parts = minibatches * getattr(cfg, "grad_accum", 1)
    if parts > getattr(cfg, "batch_size", parts):
        name = "grad_accum" if minibatches == 1 else "minibatches times grad_accum,"
        raise ValueError(f"{name} {parts} is more than the batch_size of {cfg.batch_size} rows")


def settings(cfg) -> dict:
    """The options that a resumed run must not change."""
    every = dataclasses.asdict(cfg)
    return {name: value for name, value in every.items() if name not in FREE + SOURCES}


def cli(main: Callable, cls) -> None:
    """Run `main` on the parsed command line.

    A mistake of the user is one line and exit code 2, not a traceback; Ctrl-C is exit code 130.
    """
    cfg = parse_args(cls)
    try:
        main(cfg)
    except (ValueError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # torch puts a worker's whole traceback before what the worker raised
        line = printable(lines[-1].removeprefix("ValueError: "), keep="")
        print(f"{Path(sys.argv[0]).name}: error: {line}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        remedy = "; --resume continues from the last checkpoint" if hasattr(cfg, "resume") else ""
        print(f"\ninterrupted{remedy}", file=sys.stderr)
        raise SystemExit(130) from None


def printable(text: str, keep: str = "\n\t") -> str:
    """Spell out the characters that would steer a terminal instead of being shown by it.

    These are control characters, half characters, and marks that change the direction of writing.

    >>> printable("red\\x1b[2J ring\\n")
    'red\\\\x1b[2J ring\\n'
    """
    return STEERING.sub(lambda m: m[0] if m[0] in keep else ascii(m[0])[1:-1], text)
