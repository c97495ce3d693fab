"""`python -m minivlm.export --run runs/lm --out DIR`; the code is in minivlm/pretrained/export.py."""

from minivlm.pretrained.export import Config, main
from minivlm.running.options import cli

if __name__ == "__main__":
    cli(main, Config)
