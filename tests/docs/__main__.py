"""`python -m tests.docs` lists every shell and Python block of README and docs: when it is run, or why not."""

from tests.docs.blocks import listing

print(listing())
