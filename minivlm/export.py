"""The command that writes a run's weights as huggingface/transformers saves its own.

minivlm/pretrained/export.py does the work.

Run: python -m minivlm.export --run runs/lm --out DIR
"""

from minivlm.pretrained.export import Config, main
from minivlm.running.options import cli

if __name__ == "__main__":
    cli(main, Config)
