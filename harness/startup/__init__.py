"""What runs when Python starts: one import hook, and the build back end that puts it into both wheels.

`hook.py` is installed as the top-level module ``_t2_startup``, beside a ``.pth`` line that imports it. No other part of t2 imports this.
"""
