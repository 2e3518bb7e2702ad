"""`python -m cause_lite` is `cause-lite`; torchrun starts it this way."""

from cause_lite.cli import main

main()
