"""Packaging: the library is `minivlm/`; the scripts run from the checkout."""

from setuptools import find_packages, setup

setup(
    name="minivlm",
    version="0.1.0",
    description="The whole vision-language training recipe, from scratch, in readable PyTorch",
    license="MIT",
    packages=find_packages(include=["minivlm", "minivlm.*"]),
    package_dir={"": "."},  # an editable install puts the checkout on the path, data/ included
    python_requires=">=3.10",
    install_requires=["torch>=2.5", "numpy>=1.26", "pillow>=10.0", "tqdm>=4.66", "tiktoken>=0.7"],
    extras_require={
        "test": ["pytest>=8.0", "hypothesis>=6.100", "safetensors>=0.4", "regex"],
        # published weights: minivlm/pretrained; tokenizers for Llama 2's vocabulary alone
        "pretrained": ["safetensors>=0.4", "regex", "tokenizers>=0.20"],
        "parity": ["transformers>=5.0"],  # and tests/parity/peers.txt, see there
        "web": ["starlette>=0.40", "uvicorn>=0.30"],  # serve.py
        "browser": ["selenium>=4.20"],  # tests of its page; and Chromium with its driver
        "openai": ["openai>=1.40"],
    },
)
