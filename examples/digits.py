"""Train on handwritten digits, kill the run half-way, and resume it: the example that is installed as `heptad demo`.

Its source is `plugins/heptad_plugins/examples/digits.py`; `digits.out.txt` shows what it prints.
"""

from heptad_plugins.examples.digits import main

if __name__ == "__main__":
    main()
