# Sourced by speedrun.sh, test.sh and chat.sh: makes .venv once, with the exact versions of
# constraints.txt, and makes it again when setup.py or the constraints change. Nothing is installed
# outside .venv. PYTHON=python3.12 picks another interpreter (3.10 or newer).

stamp="$(cat setup.py constraints.txt | cksum)"
if [ "$(cat .venv/stamp 2>/dev/null)" != "$stamp" ]; then
    echo "setting up .venv (once, a few minutes on a slow network)"
    "${PYTHON:-python3}" -c 'import sys; sys.exit("Python 3.10 or newer is needed" if sys.version_info < (3, 10) else 0)'
    rm -rf .venv
    "${PYTHON:-python3}" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,web]'
    echo "$stamp" > .venv/stamp
fi
python=.venv/bin/python
