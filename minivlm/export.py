"""The command that exports a run; the work is done in minivlm/pretrained/export.py.

Run: python -m minivlm.export --run runs/lm --out DIR
"""

from minivlm.pretrained.export import Config, main
from minivlm.running.options import cli

if __name__ == "__main__":
    cli(main, Config)
