"""The command line of every script, built from its Config dataclass.

    # optimization
    lr: float = 2e-3  # > 0; peak learning rate of AdamW

Each field is an option, and its default is the option's default. The comment beside the
field is the help text. If the comment begins with a rule, a value that breaks the rule is
refused before the script reads or writes anything. There are four forms of rule:

    >= 0; ...      > 0; ...      0 .. 1; ...      mlp | linear | llava; ...

A comment on a line of its own, like "# optimization", is the heading of the options below.
"""

import argparse
import dataclasses
import inspect
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

FIELD = re.compile(r"^ {4}(\w+):[^#\n]*#\s*(.*)$")
HEADING = re.compile(r"^ {4}# (.+)$")
RULE = re.compile(r">=? \S+|\S+ \.\. \S+|[\w-]+(?: \| [\w-]+)+")

# options that name the models from which a run starts
SOURCES = ("init", "clip", "lm", "reward", "vision", "llm")
# options that a resumed run may change: its folder, its length, when it is measured and
# logged, the machine that it runs on, how much memory it takes
FREE = ("out", "resume", "steps", "eval_every", "log_every", "device", "dtype", "compile",
        "threads", "workers", "ref_logps", "grad_accum", "checkpoint_blocks")

# options of earlier versions that are constants now; a run with these values can be resumed
RETIRED = {"lora_layers": "gpt.*,projector.*", "center": 0.01, "kl_horizon": 10_000,
           "scratch": False}
# settings that earlier versions did not have, with what these versions did
ADDED = {
    "fit": "crop", "skip_long": False, "act": "gelu_tanh", "loss": "infonce", "norm": "layer",
    "pool": "last", "feature_layer": 0,
}
# the same for the configs of models
ADDED_GPT = {
    "act": "gelu_tanh", "n_inner": 0, "norm": "layer", "norm_eps": 1e-5, "bias": "all",
    "n_kv_head": 0, "head_dim": 0, "qk_norm": False, "learned_positions": True,
    "rotary_scaling": None, "tied": True,
}
ADDED_VIT = {"kind": "clip", "n_inner": 0, "norm_eps": 1e-5, "pool_head": True}
ADDED_CLIP = {"logit_bias": False, "text_n_inner": 0, "pad_id": 0}

# control characters, marks that change the direction of writing, lone surrogates
STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Help(NamedTuple):
    """What the source of a Config says about one option."""

    text: str     # the whole comment beside the field
    rule: str     # the rule at its beginning, or ""
    heading: str


@lru_cache(maxsize=None)  # to find a class in its file, Python parses the file: 20 ms
def help_of(cls) -> dict[str, Help]:
    """Read help text, rule and heading of every option from the source of a Config.

    Returns:
        option -> Help; {} if Python finds no source, as in an interactive session. Options
        then have no help text and no rule.
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
    """Whether a rule allows an option's value; no rule about numbers allows NaN.

    >>> obeys(0, ">= 0"), obeys(0.0, "> 0"), obeys(2, "0 .. 1"), obeys("a", "a | b")
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
    """Make a Config from the command line.

    An option is written `--name value`; a boolean one `--name` or `--no-name`. The program
    ends with one line and exit code 2 if an option is unknown, or if `check` or the class
    itself (in __post_init__) refuses a value with a ValueError.

    Args:
        cls: the Config dataclass of a script.
        argv: the words of the command line; by default those of this process.
    """
    doc = (sys.modules[cls.__module__].__doc__ or "").strip()
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.error = lambda text: parser.exit(
        2, f"{parser.prog}: error: {text}; see --help\n"
    )
    helps, groups = help_of(cls), {}
    for f in dataclasses.fields(cls):
        known = helps.get(f.name, Help("", "", "options"))
        if known.heading not in groups:
            groups[known.heading] = parser.add_argument_group(known.heading)
        kind = {"type": type(f.default), "metavar": ""}
        if f.type in (bool, "bool"):
            kind = {"action": argparse.BooleanOptionalAction}
        text = f"{known.text} (default: {f.default})".replace("%", "%%")
        group = groups[known.heading]
        group.add_argument(f"--{f.name}", default=f.default, help=text, **kind)
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
        ValueError: if an option breaks its rule, if the run would overwrite a run that it
            starts from, if it would learn nothing, or if a batch has fewer rows than
            micro-batches.
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
        folder = Path(source).parent if Path(source).is_file() else Path(source)
        if source and folder.resolve() == Path(cfg.out).resolve():
            raise ValueError(
                f"{name} and out are both {folder}; "
                "the run would overwrite what it starts from"
            )
    rates = [getattr(cfg, name) for name in ("lr", "muon_lr") if hasattr(cfg, name)]
    if rates and not any(rates) and cfg.steps:
        raise ValueError("lr and muon_lr are both 0: nothing would learn; to measure only, "
                         "use steps 0")
    minibatches = getattr(cfg, "minibatches", 1)
    parts = minibatches * getattr(cfg, "grad_accum", 1)
    if parts > getattr(cfg, "batch_size", parts):
        name = "grad_accum" if minibatches == 1 else "minibatches times grad_accum,"
        raise ValueError(
            f"{name} {parts} is more than the batch_size of {cfg.batch_size} rows; "
            "lower the one or raise the other"
        )


def settings(cfg) -> dict:
    """Return the options that a resumed run must not change, with their values."""
    every = dataclasses.asdict(cfg)
    free = set(FREE + SOURCES)
    # these compare the pairs within a micro-batch
    compares = every.get("objective") == "blip" or every.get("kind") == "kto"
    if compares or every.get("picture_coef"):
        free.remove("grad_accum")
    return {name: value for name, value in every.items() if name not in free}


def cli(main: Callable, cls) -> None:
    """Run `main` on the Config that the command line describes.

    A ValueError or OSError, which is a mistake of the user, prints one line instead of a
    traceback and ends with exit code 2. Ctrl-C ends with exit code 130.
    """
    cfg = parse_args(cls)
    try:
        main(cfg)
    except (ValueError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # if a worker process raised the error, torch puts the worker's traceback before it
        line = printable(lines[-1].removeprefix("ValueError: "), keep="")
        print(f"{Path(sys.argv[0]).name}: error: {line}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        remedy = ""
        if hasattr(cfg, "resume"):
            remedy = "; --resume continues from the last checkpoint"
        print(f"\ninterrupted{remedy}", file=sys.stderr)
        raise SystemExit(130) from None


def printable(text: str, keep: str = "\n\t") -> str:
    """Spell out the characters that a terminal would obey instead of showing them.

    These are the control characters, the marks that change the direction of writing, and
    lone surrogates (halves of characters).

    Args:
        keep: control characters that stay as they are.

    >>> printable("red\\x1b[2J ring\\n")
    'red\\\\x1b[2J ring\\n'
    """
    return STEERING.sub(lambda m: m[0] if m[0] in keep else ascii(m[0])[1:-1], text)
